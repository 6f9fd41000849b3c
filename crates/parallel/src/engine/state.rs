use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tiling::{FrameScale, HostTensor, Stop};

use crate::scheduler::{Assignment, Scheduler, Task};
use crate::trace::{Recorder, Subject};
use crate::worker_lock::RunId;
use crate::{ExecError, Worker};

/// What all threads of a run share.
pub(crate) struct Shared {
    pub(crate) state: Mutex<SchedulerState>,
    /// For each worker: notified when there may be a tile for it.
    pub(crate) changed: Vec<Condvar>,
    /// Stopped when the run ends, for any reason.
    pub(crate) stop: Stop,
    pub(crate) recorder: Arc<Recorder>,
    pub(crate) run: RunId,
    /// How frames change from input to output.
    pub(crate) frames: FrameScale,
    /// Batch items of the input.
    pub(crate) batch: usize,
    /// Frames, height and width of the output of each tile.
    pub(crate) answers: Vec<[usize; 3]>,
}

/// The scheduler, the batches in work, and the failures.
pub(crate) struct SchedulerState {
    pub(crate) scheduler: Scheduler,
    /// The last failure of each worker.
    causes: Vec<Option<String>>,
    /// The last failure.
    error: Option<ExecError>,
    /// The batches that workers have.
    batches: Vec<Arc<TileBatch>>,
}

impl Shared {
    pub(crate) fn state(&self) -> MutexGuard<'_, SchedulerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stop(&self) {
        self.stop.stop();
        self.notify_all();
    }

    /// Wakes every worker that waits for a tile.
    pub(crate) fn notify_all(&self) {
        self.changed.iter().for_each(Condvar::notify_one);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    /// Waits for tiles; none when nothing is left to do.
    pub(crate) fn next_batch(&self, worker: usize, poll: Duration) -> Option<Arc<TileBatch>> {
        let mut state = self.state();
        while !self.is_stopped() {
            match state.scheduler.assign(worker, self.recorder.now()) {
                Assignment::Run(Task { tiles, is_upcast }) => {
                    let also_on = state.batches.iter().find(|other| other.tiles.contains(&tiles[0])).map(|other| other.worker);
                    let batch = TileBatch { worker, tiles, also_on, is_upcast, is_finite: AtomicBool::new(true), stop: self.stop.branch() };
                    let batch = Arc::new(batch);
                    state.batches.push(batch.clone());
                    return Some(batch);
                }
                Assignment::Leave => return None,
                Assignment::Wait => state = self.changed[worker].wait_timeout(state, poll).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
        None
    }
}

impl SchedulerState {
    pub(crate) fn new(scheduler: Scheduler, workers: usize) -> Self {
        Self { scheduler, causes: vec![None; workers], error: None, batches: Vec::new() }
    }

    /// Gives a batch back that was not read to the end.
    pub(crate) fn give_back(&mut self, batch: &TileBatch) {
        if !batch.stop.is_stopped() {
            self.change(|scheduler| scheduler.give_back(batch.worker, &batch.tiles));
        }
    }

    /// Changes the schedule, then stops the batches that their workers do not have any longer.
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut Scheduler) -> T) -> T {
        let changed = change(&mut self.scheduler);
        let scheduler = &self.scheduler;
        self.batches.retain(|batch| {
            let is_wanted = scheduler.has(batch.worker, &batch.tiles);
            if !is_wanted {
                batch.stop.stop();
            }
            is_wanted
        });
        changed
    }

    /// The message of a failure on `tiles`, which the worker does not have any longer. Notes the cause.
    pub(crate) fn failure(&mut self, worker: usize, tiles: Vec<usize>, error: ExecError, is_retired: bool) -> Message {
        let message = error.in_one_line();
        self.causes[worker] = Some(message.clone());
        self.error = Some(error);
        let is_run_again = self.scheduler.is_run_again(&tiles);
        Message::Failed { worker, tiles, message, is_run_again, is_retired }
    }

    /// Takes everything from a worker, for good.
    pub(crate) fn give_up(&mut self, worker: usize, error: ExecError) -> Message {
        let tiles = self.change(|scheduler| scheduler.give_up(worker));
        self.failure(worker, tiles, error, true)
    }

    /// The error that ends the run, if it cannot succeed any more: a cause for each worker, once all have failed, else the last failure.
    pub(crate) fn final_error(&mut self, workers: &[Worker]) -> Option<ExecError> {
        if !self.scheduler.is_hopeless() {
            return None;
        }
        let cause = |(worker, cause): (&Worker, &Option<String>)| Some(format!("{}: {}", worker.name, cause.as_ref()?));
        let known: Vec<String> = workers.iter().zip(&self.causes).filter_map(cause).collect();
        let is_alone = workers.len() == 1 || known.len() < workers.len();
        Some(self.error.take().filter(|_| is_alone).unwrap_or(ExecError::NoWorkerLeft { causes: known }))
    }
}

/// A message of a worker to the calling thread.
pub(crate) enum Message {
    Started { worker: usize, tiles: Vec<usize> },
    Piece { tile: usize, first: usize, piece: HostTensor },
    Finished { worker: usize, tiles: Vec<usize> },
    Failed { worker: usize, tiles: Vec<usize>, message: String, is_run_again: bool, is_retired: bool },
    Upcast { worker: usize, tiles: Vec<usize> },
    Fatal(ExecError),
}

/// Tiles that a worker runs as one stack.
pub(crate) struct TileBatch {
    pub(crate) worker: usize,
    pub(crate) tiles: Vec<usize>,
    /// The worker that has them, too, and gives no sign of life.
    pub(crate) also_on: Option<usize>,
    pub(crate) is_upcast: bool,
    /// Whether all input that was read for it is finite.
    pub(crate) is_finite: AtomicBool,
    /// Stopped when the worker does not have it any longer, or the run has ended. The first is changed only with the state locked.
    pub(crate) stop: Stop,
}

/// A piece of a batch between two stages.
pub(crate) struct Chunk<T> {
    pub(crate) batch: Arc<TileBatch>,
    /// Its frames of the input.
    pub(crate) frames: Range<usize>,
    pub(crate) is_last: bool,
    pub(crate) load: T,
}

impl<T> Chunk<T> {
    pub(crate) fn subject(&self) -> Subject {
        Subject { worker: Some(self.batch.worker), tile: self.batch.tiles[0], stacked: self.batch.tiles.len(), frame: self.frames.start }
    }
}
