use tiling::{HostTensor, TileOp, TilePlan, TileRun, catch};

use crate::error::{guarded, guarded_drop};
use crate::seam::{self, Input, Listener, Progressed};
use crate::trace::{Recorder, Subject};
use crate::{Done, Event, ExecError, Executor, Job, Progress, RunStats, Stage, WorkerStats};

/// One tile after the other, in raster order, on the calling thread and one device: the definition of the right answer.
///
/// A stop is looked for between the pieces of a tile, and by operations that look at theirs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sequential;

impl Executor for Sequential {
    fn name(&self) -> &'static str {
        "sequential"
    }

    fn check_workers(&self, count: usize) -> Result<(), ExecError> {
        match count {
            0 => Err(ExecError::NoDevice),
            1 => Ok(()),
            got => Err(ExecError::TooManyDevices { executor: self.name(), got }),
        }
    }

    fn held_tiles(&self, _: &TilePlan, _: usize) -> usize {
        1
    }

    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        self.check_workers(job.workers.len())?;
        let (plan, name) = (job.plan, job.workers[0].name.clone());
        let input = Input::new(job.source, plan)?;
        let mut run =
            Run { recorder: Recorder::new(), done: Done::nothing(plan), stats: WorkerStats::new(&name), progress: Listener(progress), input, job };
        seam::prepare(&mut run.job.compositor)?;
        run.progress.on_event(&Event::Started { workers: vec![name.clone()], done: run.done })?;
        let mut upcast_tiles = 0;
        for tile in 0..plan.tiles.len() {
            run.progress.on_event(&Event::TileStarted { worker: 0, tile })?;
            let mut known = 0;
            match run.tile(tile, false, &mut known) {
                Err(ExecError::NotFinite { .. }) if run.job.workers[0].upcast.is_some() => {
                    tracing::warn!("the answer for tile {tile} is not finite; it is run again in a wider dtype");
                    upcast_tiles += 1;
                    run.progress.on_event(&Event::TileUpcast { worker: 0, tile })?;
                    run.tile(tile, true, &mut known)?;
                }
                outcome => outcome?,
            }
            run.done.tiles += 1;
            run.stats.tiles += 1;
            run.stats.work += plan.tiles[tile].input.volume() as f64;
            run.progress.on_event(&Event::TileFinished { worker: 0, tile, done: run.done })?;
        }
        let Run { recorder, done, mut stats, job, .. } = run;
        job.compositor.finish().map_err(ExecError::Unfinished)?;
        let elapsed = recorder.now();
        let trace = recorder.trace(vec![name]);
        stats.busy = trace.busy(0);
        Ok(RunStats { tiles: done.tiles, frames: plan.output[0], upcast_tiles, elapsed, workers: vec![stats], trace })
    }
}

struct Run<'a, 'b> {
    job: Job<'a>,
    input: Input<'a>,
    recorder: Recorder,
    done: Done,
    stats: WorkerStats,
    progress: Listener<'b>,
}

impl Run<'_, '_> {
    /// Runs a tile of whose answer `known` frames are there already.
    fn tile(&mut self, tile: usize, is_upcast: bool, known: &mut usize) -> Result<(), ExecError> {
        let (stop, worker) = (self.job.stop, &self.job.workers[0]);
        let op = worker.op(is_upcast);
        let outcome = guarded(tile, || Ok(op.begin(stop))).and_then(|mut run| {
            let outcome = self.pieces(tile, op, &mut run, known);
            // What it remembers may panic when it goes.
            outcome.and(guarded_drop(tile, run))
        });
        let is_of_operation = |error: &ExecError| {
            matches!(error, ExecError::Tile { .. } | ExecError::Panicked { .. } | ExecError::NotFinite { .. } | ExecError::AnswerShape { .. })
        };
        // An operation may fail in any way once it is to stop.
        outcome.map_err(|error| if stop.is_stopped() && is_of_operation(&error) { ExecError::Stopped } else { error })
    }

    fn pieces(&mut self, tile: usize, op: &dyn TileOp, run: &mut TileRun<'_>, known: &mut usize) -> Result<(), ExecError> {
        let plan = self.job.plan;
        let chunks = seam::chunks(op, plan.geometry.frames, tile, plan.input[0])?;
        let mut is_finite = true;
        let mut first = 0;
        let last = chunks.len() - 1;
        for (index, frames) in chunks.into_iter().enumerate() {
            if self.job.stop.is_stopped() {
                return Err(ExecError::Stopped);
            }
            let subject = Subject { worker: Some(0), tile, stacked: 1, frame: frames.start };
            let region = plan.tiles[tile].input.frames(&frames);
            let piece = self.recorder.time(Stage::Read, subject, || self.input.read(tile, &region))?;
            is_finite &= all_finite(&piece);
            self.stats.uploaded_bytes += size_of_val(piece.data()) as u64;
            let piece = self.recorder.time(Stage::Upload, subject, || guarded(tile, || op.upload(piece)))?;
            let answer = self.recorder.time(Stage::Compute, subject, || guarded(tile, || run(piece)))?;
            let bytes = answer.bytes();
            let answer = self.recorder.time(Stage::Download, subject, || guarded(tile, || op.download(answer)))?;
            self.stats.downloaded_bytes += bytes.unwrap_or_else(|| size_of_val(answer.data())) as u64;
            let so_far = Progressed { stacked: 1, input: frames.end, is_last: index == last, before: first };
            seam::check_answer(&answer, tile, &so_far, plan.geometry.frames, plan.tiles[tile].output.size)?;
            if is_finite && !all_finite(&answer) {
                return Err(ExecError::NotFinite { tile });
            }
            let subject = Subject { worker: None, frame: first, ..subject };
            if let Some(fresh) = unknown_frames(answer, &mut first, known) {
                self.done.tile_frames += fresh.shape()[2];
                self.recorder.time(Stage::Blend, subject, || seam::push(&mut self.job.compositor, tile, fresh))?;
                self.done.output_frames = self.job.compositor.finished_frames();
                self.progress.on_event(&Event::Advanced(self.done))?;
            }
        }
        Ok(())
    }
}

/// Drops what an operation made, which may panic.
pub(crate) fn discard<T>(value: T) {
    if let Err(message) = catch(|| drop(value)) {
        tracing::warn!("the operation panicked when its work was dropped: {message}");
    }
}

/// Of the frames that begin with the `first` those from the `known`th on; both are counted on. A tile that is run again brings frames that are there already.
pub(crate) fn unknown_frames(piece: HostTensor, first: &mut usize, known: &mut usize) -> Option<HostTensor> {
    let count = piece.shape()[2];
    let skipped = known.saturating_sub(*first).min(count);
    *first += count;
    *known = (*known).max(*first);
    match skipped {
        0 => Some(piece),
        _ if skipped == count => None,
        _ => Some(piece.frames(skipped, count - skipped)),
    }
}

/// Whether all values are numbers.
pub(crate) fn all_finite(block: &HostTensor) -> bool {
    block.data().iter().all(|value| value.is_finite())
}
