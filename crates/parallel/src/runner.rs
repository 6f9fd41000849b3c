use std::sync::Arc;

use tiling::{HostTensor, Stop, TileOp, TilePlan, TileRun, TileSource};

use crate::checked::{self, Expected, Input, all_finite};
use crate::error::{guarded, guarded_drop};
use crate::trace::{Recorder, Subject, Transfer};
use crate::worker_lock::{RunId, Unavailable};
use crate::{ExecError, Stage, Worker};

/// Runs single tiles of a job, on any thread. Clones belong to one run.
///
/// Every call of the operation and of the source is guarded: a panic is an error. Every output is checked: its shape, and that it is finite where its
/// input is.
#[derive(Clone)]
pub struct TileRunner<'a> {
    pub(crate) plan: &'a TilePlan,
    pub(crate) input: Input<'a>,
    workers: &'a [Worker],
    /// Ends this run: with the job's, or alone.
    pub(crate) stop: Stop,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) run: RunId,
}

/// A step in the work on a tile, for [`RunOutput::update`](crate::RunOutput::update).
#[derive(Debug)]
pub struct TileUpdate(pub(crate) Update);

#[derive(Debug)]
pub(crate) enum Update {
    Started {
        worker: usize,
        tile: usize,
    },
    /// Frames of the output from the `first` on.
    Piece {
        tile: usize,
        first: usize,
        piece: HostTensor,
    },
    Upcast {
        worker: usize,
        tile: usize,
    },
    Finished {
        worker: usize,
        tile: usize,
    },
}

impl<'a> TileRunner<'a> {
    pub(crate) fn new(plan: &'a TilePlan, source: &'a dyn TileSource, workers: &'a [Worker], stop: &Stop) -> Result<Self, ExecError> {
        let input = Input::new(source, plan)?;
        let recorder = Arc::new(Recorder::new(workers.len()));
        Ok(Self { plan, input, workers, stop: stop.branch(), recorder, run: RunId::new() })
    }

    /// The tiles.
    pub fn plan(&self) -> &'a TilePlan {
        self.plan
    }

    /// The workers.
    pub fn workers(&self) -> &'a [Worker] {
        self.workers
    }

    /// The stop of this run: stopped with the job's, and when the run's [`RunOutput`](crate::RunOutput) is dropped.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Runs the tile `tile` of the plan on the worker `worker`, once that has no other tile in work, and hands `emit` what [`RunOutput::update`] is to
    /// receive, in this order. An output that is not finite is computed again in the worker's wider dtype, if it has one.
    ///
    /// A tile may be run again after an error; [`RunOutput::update`] takes each of its frames once.
    ///
    /// # Errors
    /// When the source or the operation fails, panics, or gives something of a wrong shape, when the output is not finite, with [`ExecError::Stopped`]
    /// when the run was stopped, or with the error of `emit`.
    ///
    /// [`RunOutput::update`]: crate::RunOutput::update
    pub fn run_tile(&self, worker: usize, tile: usize, mut emit: impl FnMut(TileUpdate) -> Result<(), ExecError>) -> Result<(), ExecError> {
        let mut emit = |update| emit(TileUpdate(update));
        emit(Update::Started { worker, tile })?;
        match self.attempt(worker, tile, false, &mut emit) {
            Err(ExecError::NotFinite { .. }) if self.workers[worker].upcast.is_some() => {
                emit(Update::Upcast { worker, tile })?;
                self.attempt(worker, tile, true, &mut emit)?;
            }
            outcome => outcome?,
        }
        emit(Update::Finished { worker, tile })
    }

    fn attempt(&self, worker: usize, tile: usize, is_upcast: bool, emit: &mut impl FnMut(Update) -> Result<(), ExecError>) -> Result<(), ExecError> {
        let name = || self.workers[worker].name.clone();
        let _guard = self.workers[worker].lock.acquire(self.run, &self.stop).map_err(|unavailable| match unavailable {
            Unavailable::Stopped => ExecError::Stopped,
            Unavailable::Hung => ExecError::WorkerHung { tile, worker: name() },
        })?;
        let op = self.workers[worker].op(is_upcast);
        let outcome = guarded(tile, || Ok(op.begin(&[tile], &self.stop))).and_then(|mut run| {
            let outcome = self.pieces(worker, tile, op, &mut run, emit);
            // What the operation remembers may panic when it is dropped.
            outcome.and(guarded_drop(tile, run))
        });
        let is_of_operation = |error: &ExecError| {
            matches!(error, ExecError::Tile { .. } | ExecError::Panicked { .. } | ExecError::NotFinite { .. } | ExecError::AnswerShape { .. })
        };
        // An operation may fail in any way once it is stopped.
        outcome.map_err(|error| if self.stop.is_stopped() && is_of_operation(&error) { ExecError::Stopped } else { error })
    }

    fn pieces(
        &self,
        worker: usize,
        tile: usize,
        op: &dyn TileOp,
        run: &mut TileRun<'_>,
        emit: &mut impl FnMut(Update) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let (plan, recorder) = (self.plan, &self.recorder);
        let chunks = checked::chunks(op, plan.geometry.frames, tile, plan.input[0])?;
        let mut is_finite = true;
        let mut first = 0;
        let last = chunks.len() - 1;
        for (index, frames) in chunks.into_iter().enumerate() {
            if self.stop.is_stopped() {
                return Err(ExecError::Stopped);
            }
            let subject = Subject { worker: Some(worker), tile, stacked: 1, frame: frames.start };
            let region = plan.tiles[tile].input.frames(&frames);
            let piece = recorder.time(Stage::Read, subject, || self.input.read(tile, &region))?;
            is_finite &= all_finite(&piece);
            recorder.count(worker, Transfer::Upload, size_of_val(piece.data()));
            let piece = recorder.time(Stage::Upload, subject, || guarded(tile, || op.upload(piece)))?;
            let answer = recorder.time(Stage::Compute, subject, || guarded(tile, || run(piece)))?;
            let bytes = answer.bytes();
            let answer = recorder.time(Stage::Download, subject, || guarded(tile, || op.download(answer)))?;
            recorder.count(worker, Transfer::Download, bytes.unwrap_or_else(|| size_of_val(answer.data())));
            let expected = Expected {
                batch: self.input.batch(),
                input_frames: frames.end,
                frames_before: first,
                is_last: index == last,
                whole: plan.tiles[tile].output.size,
            };
            expected.check(&answer, tile, plan.geometry.frames)?;
            if is_finite && !all_finite(&answer) {
                return Err(ExecError::NotFinite { tile });
            }
            let count = answer.shape()[2];
            emit(Update::Piece { tile, first, piece: answer })?;
            first += count;
        }
        Ok(())
    }
}
