use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use tiling::{Block, FrameScale, Party, Resident, Stop, TileRun, catch};

use crate::error::{guarded, guarded_drop};
use crate::schedule::{Blame, Scheduler, Task, Turn, Verdict};
use crate::seam::{self, Progressed};
use crate::sequential::{all_finite, discard};
use crate::trace::{Recorder, Stage, Subject};
use crate::{ExecError, Worker};

/// What all threads of a run know.
pub(crate) struct Shared {
    pub(crate) ledger: Mutex<Ledger>,
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
pub(crate) struct Ledger {
    pub(crate) scheduler: Scheduler,
    /// The last failure of each worker.
    causes: Vec<Option<String>>,
    /// The last failure.
    error: Option<ExecError>,
    /// What workers have in work.
    units: Vec<Arc<Unit>>,
}

impl Shared {
    pub(crate) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn stop(&self) {
        self.stop.stop();
        self.tell_all();
    }

    /// Wakes every worker that waits for a tile.
    pub(crate) fn tell_all(&self) {
        self.changed.iter().for_each(Condvar::notify_one);
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    /// Waits for tiles; none when there is nothing left to do.
    pub(crate) fn next_unit(&self, worker: usize, patience: Duration) -> Option<Arc<Unit>> {
        let mut ledger = self.ledger();
        while !self.is_stopped() {
            match ledger.scheduler.turn(worker, self.recorder.now()) {
                Turn::Run(task) => {
                    let Task { tiles, is_upcast } = task;
                    let beside = ledger.units.iter().find(|other| other.tiles.contains(&tiles[0])).map(|other| other.worker);
                    let unit = Unit { worker, tiles, beside, is_upcast, is_finite: AtomicBool::new(true), stop: self.stop.branch() };
                    let unit = Arc::new(unit);
                    ledger.units.push(unit.clone());
                    return Some(unit);
                }
                Turn::Leave => return None,
                Turn::Wait => ledger = self.changed[worker].wait_timeout(ledger, patience).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
        None
    }
}

impl Ledger {
    pub(crate) fn new(scheduler: Scheduler, workers: usize) -> Self {
        Self { scheduler, causes: vec![None; workers], error: None, units: Vec::new() }
    }

    /// The worker gives a unit back that it has not begun, or not been given to the end.
    pub(crate) fn give_back(&mut self, unit: &Unit) {
        if !unit.stop.is_stopped() {
            self.change(|scheduler| scheduler.give_back(unit.worker, &unit.tiles));
        }
    }

    /// Does something to the schedule, and throws the switch of what nobody waits for after it.
    pub(crate) fn change<T>(&mut self, change: impl FnOnce(&mut Scheduler) -> T) -> T {
        let changed = change(&mut self.scheduler);
        let scheduler = &self.scheduler;
        self.units.retain(|unit| {
            let is_wanted = scheduler.has(unit.worker, &unit.tiles);
            if !is_wanted {
                unit.stop.stop();
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
    pub(crate) fn verdict(&mut self, workers: &[Worker]) -> Option<ExecError> {
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
    Piece { tile: usize, first: usize, piece: Block },
    Finished { worker: usize, tiles: Vec<usize> },
    Failed { worker: usize, tiles: Vec<usize>, message: String, is_retired: bool },
    Upcast { worker: usize, tiles: Vec<usize> },
    Fatal(ExecError),
}

/// Tiles that a worker runs together.
pub(crate) struct Unit {
    pub(crate) worker: usize,
    pub(crate) tiles: Vec<usize>,
    /// Who has them, too.
    pub(crate) beside: Option<usize>,
    pub(crate) is_upcast: bool,
    /// Whether all that was read of it is finite.
    pub(crate) is_finite: AtomicBool,
    /// Thrown when nobody waits for it any more: the worker has it no longer (whoever holds the ledger knows that), or the run has ended.
    pub(crate) stop: Stop,
}

/// A piece of a unit on its way through the stages.
pub(crate) struct Item<T> {
    pub(crate) unit: Arc<Unit>,
    /// Its frames of the input.
    pub(crate) frames: Range<usize>,
    pub(crate) is_last: bool,
    pub(crate) load: T,
}

impl<T> Item<T> {
    pub(crate) fn subject(&self) -> Subject {
        Subject { worker: Some(self.unit.worker), tile: self.unit.tiles[0], stacked: self.unit.tiles.len(), frame: self.frames.start }
    }
}

/// What a worker does on its device: on one thread, one stage after the other, or on one for each stage. The threads are nobody's children: a device that
/// does not come back must not keep the run from ending.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) worker: usize,
    pub(crate) workers: Arc<[Worker]>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) messages: Sender<Message>,
}

/// The tile in work, with what it remembers.
type Begun<'a> = Option<(Arc<Unit>, TileRun<'a>)>;

impl Line {
    /// Starts the threads that take what comes from `inlet`.
    pub(crate) fn start(&self, inlet: Receiver<Item<Block>>, overlap: bool) -> std::io::Result<Vec<JoinHandle<()>>> {
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
                let message = line.shared.ledger().give_up(line.worker, ExecError::PartyPanicked { who: Party::Operation, message });
                line.shared.tell_all();
                let _ = line.messages.send(message);
            }
        })
    }

    /// One stage of an item; none when the unit has failed, now or before, or the run has ended.
    fn stage<T, U>(&self, stage: Stage, item: Item<T>, work: impl FnOnce(&Unit, T) -> Result<U, ExecError>) -> Option<Item<U>> {
        let subject = item.subject();
        let Item { unit, frames, is_last, load } = item;
        let recorder = &self.shared.recorder;
        let mut ledger = self.shared.ledger();
        if unit.stop.is_stopped() || !ledger.scheduler.enter(self.worker, &unit.tiles, recorder.now()) {
            drop(ledger);
            discard(load);
            return None;
        }
        drop(ledger);
        let done = recorder.time(stage, subject, || work(&unit, load)).map_err(|error| {
            let blame = self.blame(&unit, &error);
            (error, blame)
        });
        self.shared.ledger().scheduler.leave(self.worker, &unit.tiles, recorder.now());
        match done {
            Ok(load) => Some(Item { unit, frames, is_last, load }),
            Err((error, blame)) => {
                self.fail(&unit, blame, error);
                None
            }
        }
    }

    fn upload(&self, item: Item<Block>) -> Option<Item<Resident>> {
        self.count(0, size_of_val(item.load.data()));
        self.stage(Stage::Upload, item, |unit, piece| {
            let op = self.workers[self.worker].op(unit.is_upcast);
            guarded(unit.tiles[0], || op.upload(piece))
        })
    }

    fn compute<'a>(&'a self, begun: &mut Begun<'a>, item: Item<Resident>) -> Option<Item<Resident>> {
        let (unit, is_last) = (item.unit.clone(), item.is_last);
        let answer = self.stage(Stage::Compute, item, |_, piece| {
            let tile = unit.tiles[0];
            if begun.as_ref().is_some_and(|(of, _)| !Arc::ptr_eq(of, &unit)) {
                // What the last tile remembered goes first.
                guarded_drop(tile, begun.take())?;
            }
            let run = if let Some((_, run)) = &mut *begun {
                run
            } else {
                let run = guarded(tile, || Ok(self.workers[self.worker].op(unit.is_upcast).begin(&unit.stop)))?;
                &mut begun.insert((unit.clone(), run)).1
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

    /// `emitted` counts the frames of the unit that were handed on.
    fn download(&self, emitted: &mut usize, item: Item<Resident>) {
        if item.frames.start == 0 {
            *emitted = 0;
        }
        let input = item.frames.end;
        let (bytes, is_last) = (item.load.bytes(), item.is_last);
        let answer = self.stage(Stage::Download, item, |unit, answer| {
            let tile = unit.tiles[0];
            let op = self.workers[self.worker].op(unit.is_upcast);
            let answer = guarded(tile, || op.download(answer))?;
            let so_far = Progressed { stacked: unit.tiles.len(), input, is_last, before: *emitted };
            seam::check_answer(&answer, tile, &so_far, self.shared.frames, self.shared.answers[tile])?;
            if unit.is_finite.load(Ordering::Relaxed) && !all_finite(&answer) {
                return Err(ExecError::NotFinite { tile });
            }
            Ok(answer)
        });
        let Some(Item { unit, load: answer, .. }) = answer else { return };
        self.count(1, bytes.unwrap_or_else(|| size_of_val(answer.data())));
        let first = *emitted;
        *emitted += answer.shape()[2];
        for (&tile, piece) in unit.tiles.iter().zip(answer.split_batch(unit.tiles.len())) {
            if self.messages.send(Message::Piece { tile, first, piece }).is_err() {
                return;
            }
        }
        if is_last {
            let mut ledger = self.shared.ledger();
            if unit.stop.is_stopped() {
                return;
            }
            let tiles = ledger.change(|scheduler| scheduler.finished(self.worker, &unit.tiles, self.shared.recorder.now()));
            let concerns_all = ledger.scheduler.is_ending();
            drop(ledger);
            if concerns_all {
                self.shared.tell_all();
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
    fn blame(&self, unit: &Unit, error: &ExecError) -> Option<Blame> {
        let worker = &self.workers[self.worker];
        if matches!(error, ExecError::NotFinite { .. }) && !unit.is_upcast && worker.upcast.is_some() {
            return None;
        }
        if error.is_out_of_memory() {
            return Some(Blame::Memory);
        }
        if unit.stop.is_stopped() {
            return Some(Blame::Tile);
        }
        let is_lost = guarded(unit.tiles[0], || worker.op(unit.is_upcast).check()).is_err();
        Some(if is_lost { Blame::Device } else { Blame::Tile })
    }

    /// Gives the tiles of a unit back. What fails once it is to stop is nobody's fault.
    pub(crate) fn fail(&self, unit: &Unit, blame: Option<Blame>, error: ExecError) {
        let mut ledger = self.shared.ledger();
        if unit.stop.is_stopped() {
            return;
        }
        let message = match blame {
            None => {
                let is_new = ledger.change(|scheduler| scheduler.upcast(self.worker, &unit.tiles));
                is_new.then(|| Message::Upcast { worker: self.worker, tiles: unit.tiles.clone() })
            }
            Some(blame) => {
                let verdict = ledger.change(|scheduler| scheduler.failed(self.worker, &unit.tiles, blame));
                verdict.map(|Verdict { tiles, is_retired }| Message::Failed {
                    worker: self.worker,
                    tiles,
                    message: ledger.blame(self.worker, error),
                    is_retired,
                })
            }
        };
        drop(ledger);
        self.shared.tell_all();
        if let Some(message) = message {
            let _ = self.messages.send(message);
        }
    }
}

/// Hands an item to the next stage. Where that has ended, nobody needs it.
fn hand_on<T>(next: &Sender<Item<T>>, item: Item<T>) {
    if let Err(refused) = next.send(item) {
        discard(refused.into_inner().load);
    }
}
