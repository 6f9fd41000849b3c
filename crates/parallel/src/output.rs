use std::sync::Arc;

use tiling::{Compositor, HostTensor, Stop, TilePlan};

use crate::checked::{self, Listener};
use crate::runner::{TileRunner, TileUpdate, Update};
use crate::trace::{Recorder, Subject};
use crate::{Done, Event, ExecError, Progress, RunStats, Stage, WorkerStats};

/// The output of a run, on the thread that called it: blends the pieces of tiles, counts, and reports events. When it is dropped, the run's tiles stop.
pub struct RunOutput<'a, 'p> {
    plan: &'a TilePlan,
    compositor: Compositor<'a>,
    /// Frames of each tile that have come.
    known: Vec<usize>,
    done: Done,
    workers: Vec<WorkerStats>,
    upcast_tiles: usize,
    recorder: Arc<Recorder>,
    progress: Listener<'p>,
    _stop: StopOnDrop,
}

struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

impl<'a, 'p> RunOutput<'a, 'p> {
    pub(crate) fn start(runner: &TileRunner<'a>, mut compositor: Compositor<'a>, progress: &'p mut dyn Progress) -> Result<Self, ExecError> {
        checked::prepare(&mut compositor)?;
        let plan = runner.plan();
        let names: Vec<String> = runner.workers().iter().map(|worker| worker.name.clone()).collect();
        let mut output = Self {
            plan,
            compositor,
            known: vec![0; plan.tiles.len()],
            done: Done::nothing(plan),
            workers: names.iter().map(|name| WorkerStats::new(name)).collect(),
            upcast_tiles: 0,
            recorder: runner.recorder.clone(),
            progress: Listener(progress),
            _stop: StopOnDrop(runner.stop().clone()),
        };
        output.progress.on_event(&Event::Started { workers: names, done: output.done })?;
        Ok(output)
    }

    /// Takes what [`TileRunner::run_tile`] emits. The updates of one tile have to come in order; those of different tiles may come in any order.
    ///
    /// # Errors
    /// When a piece cannot be composed, or the sink or the listener fails or panics. The run is then to end.
    pub fn update(&mut self, update: TileUpdate) -> Result<(), ExecError> {
        match update.0 {
            Update::Started { worker, tile } => self.tile_started(worker, tile),
            Update::Piece { tile, first, piece } => self.piece(tile, first, piece),
            Update::Upcast { worker, tile } => self.tile_upcast(worker, tile),
            Update::Finished { worker, tile } => self.tile_finished(worker, tile),
        }
    }

    /// Reports a failure of a worker on a tile that the executor recovers from: the tile is run again.
    ///
    /// # Errors
    /// When the listener panics.
    pub fn tile_failed(&mut self, worker: usize, tile: usize, error: &ExecError) -> Result<(), ExecError> {
        self.failed(worker, &[tile], &error.in_one_line())
    }

    /// Reports that a worker is limited to smaller tiles.
    ///
    /// # Errors
    /// When the listener panics.
    pub fn worker_limited(&mut self, worker: usize, message: String) -> Result<(), ExecError> {
        self.workers[worker].is_limited = true;
        self.worker_retired(worker, message)
    }

    /// Reports that a worker is retired.
    ///
    /// # Errors
    /// When the listener panics.
    pub fn worker_retired(&mut self, worker: usize, message: String) -> Result<(), ExecError> {
        self.workers[worker].retired = Some(message.clone());
        self.progress.on_event(&Event::WorkerRetired { worker, message })
    }

    /// The number of blended tiles, in raster order. Other tiles that were begun are in memory.
    pub fn placed_tiles(&self) -> usize {
        self.compositor.placed_tiles()
    }

    /// Ends the run.
    ///
    /// # Errors
    /// When tiles are missing.
    pub fn finish(self) -> Result<RunStats, ExecError> {
        self.compositor.finish().map_err(ExecError::Unfinished)?;
        let elapsed = self.recorder.now();
        let mut workers = self.workers;
        // Workers that stood by to the end had no part in the run.
        while workers.len() > self.plan.tiles.len() && workers.last().is_some_and(|last| last.tiles + last.faults == 0) {
            workers.pop();
        }
        let trace = self.recorder.trace(workers.iter().map(|worker| worker.name.clone()).collect());
        for (worker, stats) in workers.iter_mut().enumerate() {
            stats.busy = trace.busy(worker);
            [stats.uploaded_bytes, stats.downloaded_bytes] = self.recorder.transferred(worker);
        }
        Ok(RunStats { tiles: self.done.tiles, stages: 1, frames: self.plan.output[0], upcast_tiles: self.upcast_tiles, elapsed, workers, trace })
    }

    pub(crate) fn done(&self) -> Done {
        self.done
    }

    pub(crate) fn tile_started(&mut self, worker: usize, tile: usize) -> Result<(), ExecError> {
        self.progress.on_event(&Event::TileStarted { worker, tile })
    }

    pub(crate) fn tile_upcast(&mut self, worker: usize, tile: usize) -> Result<(), ExecError> {
        tracing::warn!("the output of tile {tile} is not finite; it is run again in a wider dtype");
        self.upcast_tiles += 1;
        self.progress.on_event(&Event::TileUpcast { worker, tile })
    }

    pub(crate) fn tile_finished(&mut self, worker: usize, tile: usize) -> Result<(), ExecError> {
        self.done.tiles += 1;
        self.workers[worker].tiles += 1;
        self.workers[worker].work += self.plan.tiles[tile].input.volume() as f64;
        self.progress.on_event(&Event::TileFinished { worker, tile, done: self.done })
    }

    /// A failure on tiles that run as one.
    pub(crate) fn failed(&mut self, worker: usize, tiles: &[usize], message: &str) -> Result<(), ExecError> {
        self.workers[worker].faults += 1;
        tiles.iter().try_for_each(|&tile| self.progress.on_event(&Event::TileFailed { worker, tile, message: message.to_owned() }))
    }

    /// Blends the frames of a tile's output from the `first` on, without those that came in an earlier attempt.
    pub(crate) fn piece(&mut self, tile: usize, first: usize, piece: HostTensor) -> Result<(), ExecError> {
        let count = piece.shape()[2];
        let known = self.known[tile].saturating_sub(first).min(count);
        if known == count {
            return Ok(());
        }
        self.known[tile] = first + count;
        let fresh = if known == 0 { piece } else { piece.frames(known, count - known) };
        self.done.tile_frames += fresh.shape()[2];
        let subject = Subject { worker: None, tile, stacked: 1, frame: first };
        self.recorder.time(Stage::Blend, subject, || checked::push(&mut self.compositor, tile, fresh))?;
        self.done.output_frames = self.compositor.finished_frames();
        self.progress.on_event(&Event::Advanced(self.done))
    }
}
