use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};
use tiling::{Block, Resident, Stop, TileRun};

use crate::error::guarded;
use crate::schedule::{Blame, Scheduler, Verdict};
use crate::sequential::all_finite;
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
}

/// Who does what, and what went wrong.
pub(crate) struct Ledger {
    pub(crate) scheduler: Scheduler,
    /// The last failure of each worker.
    pub(crate) causes: Vec<Option<String>>,
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
}

impl Ledger {
    /// What a failure means for the run. One that nobody can make good ends it: with a cause for each worker, once all have failed.
    pub(crate) fn judge(&mut self, workers: &[Worker], worker: usize, tiles: &[usize], verdict: Verdict, error: ExecError) -> Message {
        let message = error.line();
        self.causes[worker] = Some(message.clone());
        if !verdict.is_hopeless && self.scheduler.live_workers() > 0 {
            return Message::Failed { worker, tiles: tiles.to_vec(), message, is_retired: verdict.is_retired };
        }
        let causes: Option<Vec<String>> =
            workers.iter().zip(&self.causes).map(|(worker, cause)| Some(format!("{}: {}", worker.name, cause.as_ref()?))).collect();
        match causes {
            Some(causes) if causes.len() > 1 => Message::Fatal(ExecError::NoWorkerLeft { causes }),
            _ => Message::Fatal(error),
        }
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
    pub(crate) is_upcast: bool,
    /// Whether all that was read of it is finite.
    pub(crate) is_finite: AtomicBool,
    /// Whether it has failed.
    pub(crate) is_over: AtomicBool,
}

/// A piece of a unit on its way through the stages.
pub(crate) struct Item<T> {
    pub(crate) unit: Arc<Unit>,
    /// The piece's first input frame.
    pub(crate) frame: usize,
    pub(crate) is_last: bool,
    pub(crate) load: T,
}

impl<T> Item<T> {
    pub(crate) fn subject(&self) -> Subject {
        Subject { worker: Some(self.unit.worker), tile: self.unit.tiles[0], stacked: self.unit.tiles.len(), frame: self.frame }
    }
}

/// What a worker does on its device: on one thread, one stage after the other, or on one for each stage. The threads are nobody's children: a device that
/// does not come back must not keep the run from ending.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) workers: Arc<[Worker]>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) messages: Sender<Message>,
}

impl Line {
    /// Starts the threads that take what comes from `inlet`.
    pub(crate) fn start(self, worker: usize, inlet: Receiver<Item<Block>>, overlap: bool) -> std::io::Result<Vec<JoinHandle<()>>> {
        let name = self.workers[worker].name.clone();
        let named = |stage: &str| thread::Builder::new().name(format!("{name} {stage}").trim().to_owned());
        if !overlap {
            return Ok(vec![named("").spawn(move || {
                let (mut begun, mut emitted) = (None, 0);
                for item in inlet {
                    let answer = self.upload(item).and_then(|item| self.compute(&mut begun, item));
                    if let Some(answer) = answer {
                        self.download(&mut emitted, answer);
                    }
                }
            })?]);
        }
        let (uploaded, to_compute) = bounded(1);
        let (computed, to_download) = bounded(1);
        let [first, second, third] = [self.clone(), self.clone(), self];
        Ok(vec![
            named("upload").spawn(move || {
                for item in inlet {
                    if let Some(item) = first.upload(item)
                        && uploaded.send(item).is_err()
                    {
                        return;
                    }
                }
            })?,
            named("compute").spawn(move || {
                let mut begun = None;
                for item in to_compute {
                    if let Some(item) = second.compute(&mut begun, item)
                        && computed.send(item).is_err()
                    {
                        return;
                    }
                }
            })?,
            named("download").spawn(move || {
                let mut emitted = 0;
                for item in to_download {
                    third.download(&mut emitted, item);
                }
            })?,
        ])
    }

    /// One stage of an item; none when the unit has failed, now or before, or the run has ended.
    fn stage<T, U>(&self, stage: Stage, item: Item<T>, work: impl FnOnce(&Unit, T) -> Result<U, ExecError>) -> Option<Item<U>> {
        if self.shared.is_stopped() || item.unit.is_over.load(Ordering::Relaxed) {
            return None;
        }
        let subject = item.subject();
        let Item { unit, frame, is_last, load } = item;
        match self.shared.recorder.time(stage, subject, || work(&unit, load)) {
            Ok(load) => Some(Item { unit, frame, is_last, load }),
            Err(error) => {
                self.fail(&unit, error);
                None
            }
        }
    }

    fn upload(&self, item: Item<Block>) -> Option<Item<Resident>> {
        self.count(0, item.unit.worker, size_of_val(item.load.data()));
        self.stage(Stage::Upload, item, |unit, piece| {
            let op = self.workers[unit.worker].op(unit.is_upcast);
            guarded(unit.tiles[0], || op.upload(piece))
        })
    }

    fn compute<'a>(&'a self, begun: &mut Option<(Arc<Unit>, TileRun<'a>)>, item: Item<Resident>) -> Option<Item<Resident>> {
        let unit = item.unit.clone();
        let is_last = item.is_last;
        let answer = self.stage(Stage::Compute, item, |_, piece| {
            let tile = unit.tiles[0];
            if begun.as_ref().is_some_and(|(of, _)| !Arc::ptr_eq(of, &unit)) {
                // What the last tile remembered goes first.
                *begun = None;
            }
            let run = if let Some((_, run)) = &mut *begun {
                run
            } else {
                let run = guarded(tile, || Ok(self.workers[unit.worker].op(unit.is_upcast).begin(&self.shared.stop)))?;
                &mut begun.insert((unit.clone(), run)).1
            };
            guarded(tile, || run(piece))
        });
        if is_last || answer.is_none() {
            *begun = None;
        }
        answer
    }

    /// `emitted` counts the frames of the unit that were handed on.
    fn download(&self, emitted: &mut usize, item: Item<Resident>) {
        if item.frame == 0 {
            *emitted = 0;
        }
        let bytes = item.load.bytes();
        let answer = self.stage(Stage::Download, item, |unit, answer| {
            let tile = unit.tiles[0];
            let op = self.workers[unit.worker].op(unit.is_upcast);
            let answer = guarded(tile, || op.download(answer))?;
            if unit.is_finite.load(Ordering::Relaxed) && !all_finite(&answer) {
                return Err(ExecError::NotFinite { tile });
            }
            Ok(answer)
        });
        let Some(item) = answer else { return };
        self.count(1, item.unit.worker, bytes.unwrap_or_else(|| size_of_val(item.load.data())));
        let (unit, is_last) = (item.unit.clone(), item.is_last);
        let pieces = item.load.split_batch(unit.tiles.len());
        let first = *emitted;
        *emitted += pieces[0].shape()[2];
        for (&tile, piece) in unit.tiles.iter().zip(pieces) {
            if self.messages.send(Message::Piece { tile, first, piece }).is_err() {
                return;
            }
        }
        if is_last {
            let mut ledger = self.shared.ledger();
            let finished = ledger.scheduler.finished(unit.worker, &unit.tiles, self.shared.recorder.now());
            let concerns_all = ledger.scheduler.is_ending();
            drop(ledger);
            if concerns_all {
                self.shared.tell_all();
            } else {
                self.shared.changed[unit.worker].notify_one();
            }
            if finished {
                let _ = self.messages.send(Message::Finished { worker: unit.worker, tiles: unit.tiles.clone() });
            }
        }
    }

    fn count(&self, way: usize, worker: usize, bytes: usize) {
        self.shared.moved[worker][way].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Gives the tiles of a unit back, and finds out whether that ends the run.
    fn fail(&self, unit: &Unit, error: ExecError) {
        if unit.is_over.swap(true, Ordering::Relaxed) || self.shared.is_stopped() {
            return;
        }
        let &Unit { worker, ref tiles, is_upcast, .. } = unit;
        let this = &self.workers[worker];
        if matches!(error, ExecError::NotFinite { .. }) && !is_upcast && this.upcast.is_some() {
            if self.shared.ledger().scheduler.upcast(worker, tiles) {
                self.shared.tell_all();
                let _ = self.messages.send(Message::Upcast { worker, tiles: tiles.clone() });
            }
            return;
        }
        let lost = guarded(tiles[0], || this.op(is_upcast).check()).err();
        let blame = match &lost {
            _ if error.is_out_of_memory() => Blame::Memory,
            Some(_) => Blame::Device,
            None => Blame::Tile,
        };
        let mut ledger = self.shared.ledger();
        let Some(verdict) = ledger.scheduler.failed(worker, tiles, blame) else { return };
        let message = ledger.judge(&self.workers, worker, tiles, verdict, error);
        drop(ledger);
        self.shared.tell_all();
        let _ = self.messages.send(message);
    }
}
