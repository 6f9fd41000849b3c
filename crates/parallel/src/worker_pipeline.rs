use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tiling::{DevicePiece, FrameScale, HostTensor, Party, Stop, TileRun, catch};

use crate::error::{guarded, guarded_drop};
use crate::schedule::{Assignment, Blame, FailureOutcome, Scheduler, Task};
use crate::seam::{self, Progressed};
use crate::sequential::{all_finite, discard};
use crate::trace::{Recorder, Stage, Subject};
use crate::{ExecError, Worker};

/// What all threads of a run know.
pub(crate) struct Shared {
    pub(crate) state: Mutex<SchedulerState>,
    /// Something has changed for a worker that waits for a tile.
    pub(crate) changed: Vec<Condvar>,
    /// Thrown when the run ends, however it does.
    pub(crate) stop: Stop,
    pub(crate) recorder: Recorder,
    /// Bytes up and down, for each worker.
    pub(crate) moved: Vec<[AtomicU64; 2]>,
    /// How frames change from input to output.
    pub(crate) frames: FrameScale,
    /// Frames, height and width of the answer for each tile.
    pub(crate) answers: Vec<[usize; 3]>,
}

/// Who does what, and what went wrong.
pub(crate) struct SchedulerState {
    pub(crate) scheduler: Scheduler,
    /// The last failure of each worker.
    causes: Vec<Option<String>>,
    /// The last failure.
    error: Option<ExecError>,
    /// What workers have in work.
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

    /// Waits for tiles; none when there is nothing left to do.
    pub(crate) fn next_batch(&self, worker: usize, patience: Duration) -> Option<Arc<TileBatch>> {
        let mut state = self.state();
        while !self.is_stopped() {
            match state.scheduler.turn(worker, self.recorder.now()) {
                Assignment::Run(task) => {
                    let Task { tiles, is_upcast } = task;
                    let beside = state.batches.iter().find(|other| other.tiles.contains(&tiles[0])).map(|other| other.worker);
                    let batch = TileBatch { worker, tiles, beside, is_upcast, is_finite: AtomicBool::new(true), stop: self.stop.branch() };
                    let batch = Arc::new(batch);
                    state.batches.push(batch.clone());
                    return Some(batch);
                }
                Assignment::Leave => return None,
                Assignment::Wait => state = self.changed[worker].wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
        None
    }
}

impl SchedulerState {
    pub(crate) fn new(scheduler: Scheduler, workers: usize) -> Self {
        Self { scheduler, causes: vec![None; workers], error: None, batches: Vec::new() }
    }

    /// The worker gives a batch back that it has not begun, or not been given to the end.
    pub(crate) fn give_back(&mut self, batch: &TileBatch) {
        if !batch.stop.is_stopped() {
            self.change(|scheduler| scheduler.give_back(batch.worker, &batch.tiles));
        }
    }

    /// Does something to the schedule, and throws the switch of what nobody waits for after it.
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

    /// Notes why a worker has failed.
    pub(crate) fn blame(&mut self, worker: usize, error: ExecError) -> String {
        let message = error.line();
        self.causes[worker] = Some(message.clone());
        self.error = Some(error);
        message
    }

    /// Takes everything from a worker, for good.
    pub(crate) fn give_up(&mut self, worker: usize, error: ExecError) -> Message {
        let tiles = self.change(|scheduler| scheduler.give_up(worker));
        Message::Failed { worker, tiles, message: self.blame(worker, error), is_retired: true }
    }

    /// What ends the run, if it can come to no good end: a cause for each worker, once all have failed, else the last.
    pub(crate) fn failure_outcome(&mut self, workers: &[Worker]) -> Option<ExecError> {
        if !self.scheduler.is_hopeless() {
            return None;
        }
        let cause = |(worker, cause): (&Worker, &Option<String>)| Some(format!("{}: {}", worker.name, cause.as_ref()?));
        let known: Vec<String> = workers.iter().zip(&self.causes).filter_map(cause).collect();
        let is_alone = workers.len() == 1 || known.len() < workers.len();
        Some(self.error.take().filter(|_| is_alone).unwrap_or(ExecError::NoWorkerLeft { causes: known }))
    }
}

/// What workers tell the calling thread.
pub(crate) enum Message {
    Started { worker: usize, tiles: Vec<usize> },
    Piece { tile: usize, first: usize, piece: HostTensor },
    Finished { worker: usize, tiles: Vec<usize> },
    Failed { worker: usize, tiles: Vec<usize>, message: String, is_retired: bool },
    Upcast { worker: usize, tiles: Vec<usize> },
    Fatal(ExecError),
}

/// Tiles that a worker runs together.
pub(crate) struct TileBatch {
    pub(crate) worker: usize,
    pub(crate) tiles: Vec<usize>,
    /// Who has them, too.
    pub(crate) beside: Option<usize>,
    pub(crate) is_upcast: bool,
    /// Whether all that was read of it is finite.
    pub(crate) is_finite: AtomicBool,
    /// Thrown when nobody waits for it any more: the worker has it no longer (whoever holds the state knows that), or the run has ended.
    pub(crate) stop: Stop,
}

/// A piece of a batch on its way through the stages.
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

/// What a worker does on its device: on one thread, one stage after the other, or on one for each stage. The threads are nobody's children: a device that
/// does not come back must not keep the run from ending.
#[derive(Clone)]
pub(crate) struct WorkerPipeline {
    pub(crate) worker: usize,
    pub(crate) workers: Arc<[Worker]>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) messages: Sender<Message>,
}

/// The tile in work, with what it remembers.
type Begun<'a> = Option<(Arc<TileBatch>, TileRun<'a>)>;

impl WorkerPipeline {
    /// Starts the threads that take what comes from `inlet`.
    pub(crate) fn start(&self, inlet: Receiver<Chunk<HostTensor>>, overlap: bool) -> std::io::Result<Vec<JoinHandle<()>>> {
        if !overlap {
            return Ok(vec![self.spawn("", move |line| {
                let (mut begun, mut emitted) = (None, 0);
                for item in inlet {
                    let answer = line.upload(item).and_then(|item| line.compute(&mut begun, item));
                    if let Some(answer) = answer {
                        line.download(&mut emitted, answer);
                    }
                }
                discard(begun);
            })?]);
        }
        let (uploaded, to_compute) = bounded(1);
        let (computed, to_download) = bounded(1);
        Ok(vec![
            self.spawn("upload", move |line| {
                for item in inlet {
                    if let Some(item) = line.upload(item) {
                        hand_on(&uploaded, item);
                    }
                }
            })?,
            self.spawn("compute", move |line| {
                let mut begun = None;
                for item in to_compute {
                    if let Some(item) = line.compute(&mut begun, item) {
                        hand_on(&computed, item);
                    }
                }
                discard(begun);
            })?,
            self.spawn("download", move |line| {
                let mut emitted = 0;
                for item in to_download {
                    line.download(&mut emitted, item);
                }
            })?,
        ])
    }

    /// Starts a thread. A panic of it is the worker's end.
    fn spawn(&self, stage: &str, work: impl FnOnce(&Self) + Send + 'static) -> std::io::Result<JoinHandle<()>> {
        let line = self.clone();
        let name = format!("{} {stage}", self.workers[self.worker].name);
        // The system takes no name with a zero in it.
        thread::Builder::new().name(name.trim().replace('\0', " ")).spawn(move || {
            if let Err(message) = catch(|| work(&line)) {
                let message = line.shared.state().give_up(line.worker, ExecError::PartyPanicked { who: Party::Operation, message });
                line.shared.notify_all();
                let _ = line.messages.send(message);
            }
        })
    }

    /// One stage of an item; none when the batch has failed, now or before, or the run has ended.
    fn stage<T, U>(&self, stage: Stage, item: Chunk<T>, work: impl FnOnce(&TileBatch, T) -> Result<U, ExecError>) -> Option<Chunk<U>> {
        let subject = item.subject();
        let Chunk { batch, frames, is_last, load } = item;
        let recorder = &self.shared.recorder;
        let mut state = self.shared.state();
        if batch.stop.is_stopped() || !state.scheduler.enter(self.worker, &batch.tiles, recorder.now()) {
            drop(state);
            discard(load);
            return None;
        }
        drop(state);
        let done = recorder.time(stage, subject, || work(&batch, load)).map_err(|error| {
            let blame = self.blame(&batch, &error);
            (error, blame)
        });
        self.shared.state().scheduler.leave(self.worker, &batch.tiles, recorder.now());
        match done {
            Ok(load) => Some(Chunk { batch, frames, is_last, load }),
            Err((error, blame)) => {
                self.fail(&batch, blame, error);
                None
            }
        }
    }

    fn upload(&self, item: Chunk<HostTensor>) -> Option<Chunk<DevicePiece>> {
        self.count(0, size_of_val(item.load.data()));
        self.stage(Stage::Upload, item, |batch, piece| {
            let op = self.workers[self.worker].op(batch.is_upcast);
            guarded(batch.tiles[0], || op.upload(piece))
        })
    }

    fn compute<'a>(&'a self, begun: &mut Begun<'a>, item: Chunk<DevicePiece>) -> Option<Chunk<DevicePiece>> {
        let (batch, is_last) = (item.batch.clone(), item.is_last);
        let answer = self.stage(Stage::Compute, item, |_, piece| {
            let tile = batch.tiles[0];
            if begun.as_ref().is_some_and(|(of, _)| !Arc::ptr_eq(of, &batch)) {
                // What the last tile remembered goes first.
                guarded_drop(tile, begun.take())?;
            }
            let run = if let Some((_, run)) = &mut *begun {
                run
            } else {
                let run = guarded(tile, || Ok(self.workers[self.worker].op(batch.is_upcast).begin(&batch.stop)))?;
                &mut begun.insert((batch.clone(), run)).1
            };
            let answer = guarded(tile, || run(piece))?;
            if is_last {
                guarded_drop(tile, begun.take())?;
            }
            Ok(answer)
        });
        if answer.is_none() {
            discard(begun.take());
        }
        answer
    }

    /// `emitted` counts the frames of the batch that were handed on.
    fn download(&self, emitted: &mut usize, item: Chunk<DevicePiece>) {
        if item.frames.start == 0 {
            *emitted = 0;
        }
        let input = item.frames.end;
        let (bytes, is_last) = (item.load.bytes(), item.is_last);
        let answer = self.stage(Stage::Download, item, |batch, answer| {
            let tile = batch.tiles[0];
            let op = self.workers[self.worker].op(batch.is_upcast);
            let answer = guarded(tile, || op.download(answer))?;
            let so_far = Progressed { stacked: batch.tiles.len(), input, is_last, before: *emitted };
            seam::check_answer(&answer, tile, &so_far, self.shared.frames, self.shared.answers[tile])?;
            if batch.is_finite.load(Ordering::Relaxed) && !all_finite(&answer) {
                return Err(ExecError::NotFinite { tile });
            }
            Ok(answer)
        });
        let Some(Chunk { batch, load: answer, .. }) = answer else { return };
        self.count(1, bytes.unwrap_or_else(|| size_of_val(answer.data())));
        let first = *emitted;
        *emitted += answer.shape()[2];
        for (&tile, piece) in batch.tiles.iter().zip(answer.split_batch(batch.tiles.len())) {
            if self.messages.send(Message::Piece { tile, first, piece }).is_err() {
                return;
            }
        }
        if is_last {
            let mut state = self.shared.state();
            if batch.stop.is_stopped() {
                return;
            }
            let tiles = state.change(|scheduler| scheduler.finished(self.worker, &batch.tiles, self.shared.recorder.now()));
            let concerns_all = state.scheduler.is_ending();
            drop(state);
            if concerns_all {
                self.shared.notify_all();
            } else {
                self.shared.changed[self.worker].notify_one();
            }
            if !tiles.is_empty() {
                let _ = self.messages.send(Message::Finished { worker: self.worker, tiles });
            }
        }
    }

    fn count(&self, way: usize, bytes: usize) {
        self.shared.moved[self.worker][way].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What a failure is to be put down to; none where the tile is to be run in a wider dtype. It is asked within the stage: a device that is lost may not answer.
    fn blame(&self, batch: &TileBatch, error: &ExecError) -> Option<Blame> {
        let worker = &self.workers[self.worker];
        if matches!(error, ExecError::NotFinite { .. }) && !batch.is_upcast && worker.upcast.is_some() {
            return None;
        }
        if error.is_out_of_memory() {
            return Some(Blame::Memory);
        }
        if batch.stop.is_stopped() {
            return Some(Blame::Tile);
        }
        let is_lost = guarded(batch.tiles[0], || worker.op(batch.is_upcast).check()).is_err();
        Some(if is_lost { Blame::Device } else { Blame::Tile })
    }

    /// Gives the tiles of a batch back. What fails once it is to stop is nobody's fault.
    pub(crate) fn fail(&self, batch: &TileBatch, blame: Option<Blame>, error: ExecError) {
        let mut state = self.shared.state();
        if batch.stop.is_stopped() {
            return;
        }
        let message = match blame {
            None => {
                let is_new = state.change(|scheduler| scheduler.upcast(self.worker, &batch.tiles));
                is_new.then(|| Message::Upcast { worker: self.worker, tiles: batch.tiles.clone() })
            }
            Some(blame) => {
                let failure_outcome = state.change(|scheduler| scheduler.failed(self.worker, &batch.tiles, blame));
                failure_outcome.map(|FailureOutcome { tiles, is_retired }| Message::Failed {
                    worker: self.worker,
                    tiles,
                    message: state.blame(self.worker, error),
                    is_retired,
                })
            }
        };
        drop(state);
        self.shared.notify_all();
        if let Some(message) = message {
            let _ = self.messages.send(message);
        }
    }
}

/// Hands an item to the next stage. Where that has ended, nobody needs it.
fn hand_on<T>(next: &Sender<Chunk<T>>, item: Chunk<T>) {
    if let Err(refused) = next.send(item) {
        discard(refused.into_inner().load);
    }
}
