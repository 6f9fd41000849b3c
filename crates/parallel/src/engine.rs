use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use tiling::{Block, Compositor, Region, TilePlan, TileSource};

use crate::error::guarded;
use crate::line::{Item, Ledger, Line, Message, Shared, Unit};
use crate::schedule::{Rules, Scheduler, Task, Turn, Verdict};
use crate::sequential::{all_finite, unknown_frames};
use crate::trace::{Recorder, Subject};
use crate::{Count, Done, Event, ExecError, Job, Progress, RunStats, Stage, Stop, Worker, WorkerStats};

/// How long anybody waits before looking again without being told that something has happened.
const PATIENCE: Duration = Duration::from_millis(20);

/// Messages of each worker that may wait for the calling thread; pieces of answers are among them.
const MESSAGES: usize = 4;

/// How tiles are run on many workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Settings {
    pub(crate) retries: usize,
    pub(crate) batch: Count,
    pub(crate) timeout: Option<Duration>,
    /// Tiles, or stacks of them, that a worker has in work at once, its stages overlapping; none: one at a time, one stage after the other.
    pub(crate) in_flight: Option<NonZeroUsize>,
}

impl Settings {
    fn at_once(&self) -> usize {
        self.in_flight.map_or(1, NonZeroUsize::get)
    }

    pub(crate) fn held_tiles(&self, plan: &TilePlan, workers: usize) -> usize {
        plan.held_tiles(workers.min(plan.tiles.len()), self.at_once() * Rules::largest_batch(self.batch))
    }
}

/// Runs a job: for each worker a thread here reads its tiles, and threads of its [`Line`] work on them; the calling thread blends.
pub(crate) fn run(settings: Settings, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
    let Job { plan, source, workers, compositor, stop } = job;
    let recorder = Recorder::new();
    let workers: Arc<[_]> = workers.into();
    let rules =
        Rules { window: settings.held_tiles(plan, workers.len()), at_once: settings.at_once(), batch: settings.batch, retries: settings.retries };
    let work = plan.tiles.iter().map(|tile| tile.input.volume() as f64).collect();
    let scheduler = Scheduler::new(work, classes(plan), workers.len(), rules);
    let shared = Arc::new(Shared {
        ledger: Mutex::new(Ledger { scheduler, causes: vec![None; workers.len()] }),
        changed: workers.iter().map(|_| Condvar::new()).collect(),
        stop: stop.branch(),
        recorder,
        moved: workers.iter().map(|_| Default::default()).collect(),
    });
    let (messages, inbox) = bounded(MESSAGES * workers.len());
    let mut lines = Vec::new();
    let mut feeders = Vec::new();
    for worker in 0..workers.len() {
        let (inlet, outlet) = bounded(1);
        let line = Line { workers: workers.clone(), shared: shared.clone(), messages: messages.clone() };
        lines.push(line.start(worker, outlet, settings.in_flight.is_some()).map_err(ExecError::Thread)?);
        feeders.push(Feeder { worker, workers: workers.clone(), shared: shared.clone(), messages: messages.clone(), plan, source, inlet });
    }
    drop(messages);
    let mut foreman = Foreman {
        settings,
        shared: shared.clone(),
        plan,
        compositor,
        known: vec![0; plan.tiles.len()],
        done: Done::nothing(plan),
        stats: workers.iter().map(|worker| WorkerStats::new(&worker.name)).collect(),
        upcast_tiles: 0,
        has_given_up: vec![false; workers.len()],
        workers,
        progress,
    };
    let outcome = thread::scope(|scope| {
        for feeder in feeders {
            scope.spawn(move || feeder.feed());
        }
        let outcome = foreman.attend(&inbox, stop);
        shared.stop();
        // Whoever still wants to send learns that nobody listens.
        drop(inbox);
        outcome
    });
    foreman.dismiss(lines);
    outcome?;
    foreman.finish()
}

/// For each tile a number that it has in common with the tiles of its shape.
fn classes(plan: &TilePlan) -> Vec<usize> {
    let shapes = plan.shapes();
    plan.tiles.iter().filter_map(|tile| shapes.iter().position(|&shape| shape == tile.input.size)).collect()
}

/// Fetches tiles for a worker and reads them.
struct Feeder<'a> {
    worker: usize,
    workers: Arc<[Worker]>,
    shared: Arc<Shared>,
    messages: Sender<Message>,
    plan: &'a TilePlan,
    source: &'a dyn TileSource,
    inlet: Sender<Item<Block>>,
}

impl Feeder<'_> {
    fn feed(&self) {
        while let Some(Task { tiles, is_upcast }) = self.next_task() {
            let unit = Unit { worker: self.worker, tiles, is_upcast, is_finite: AtomicBool::new(true), is_over: AtomicBool::new(false) };
            let unit = Arc::new(unit);
            if self.messages.send(Message::Started { worker: self.worker, tiles: unit.tiles.clone() }).is_err() {
                return;
            }
            match self.hand_over(&unit) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    let _ = self.messages.send(Message::Fatal(error));
                    return;
                }
            }
        }
    }

    /// Waits for tiles; none when there is nothing left to do.
    fn next_task(&self) -> Option<Task> {
        let mut ledger = self.shared.ledger();
        while !self.shared.is_stopped() {
            match ledger.scheduler.turn(self.worker, self.shared.recorder.now()) {
                Turn::Run(task) => return Some(task),
                Turn::Leave => return None,
                Turn::Wait => ledger = self.shared.changed[self.worker].wait_timeout(ledger, PATIENCE).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
        None
    }

    /// Reads the pieces of a unit and hands them to the line. False when that does not take them any more.
    fn hand_over(&self, unit: &Arc<Unit>) -> Result<bool, ExecError> {
        let mut chunks = self.workers[self.worker].op(unit.is_upcast).chunks(self.plan.input[0]).into_iter().peekable();
        while let Some(frames) = chunks.next() {
            if unit.is_over.load(Ordering::Relaxed) {
                break;
            }
            let subject = Subject { worker: Some(self.worker), tile: unit.tiles[0], stacked: unit.tiles.len(), frame: frames.start };
            let pieces = self.shared.recorder.time(Stage::Read, subject, || {
                unit.tiles.iter().map(|&tile| self.read(tile, &self.plan.tiles[tile].input.frames(&frames))).collect::<Result<Vec<_>, _>>()
            });
            let load = Block::join_batch(pieces?);
            if !all_finite(&load) {
                unit.is_finite.store(false, Ordering::Relaxed);
            }
            let mut item = Item { unit: unit.clone(), frame: frames.start, is_last: chunks.peek().is_none(), load };
            loop {
                item = match self.inlet.send_timeout(item, PATIENCE) {
                    Ok(()) => break,
                    Err(SendTimeoutError::Timeout(item)) if !self.is_dismissed() => item,
                    Err(_) => {
                        self.give_back(unit);
                        return Ok(false);
                    }
                };
            }
        }
        Ok(true)
    }

    fn read(&self, tile: usize, region: &Region) -> Result<Block, ExecError> {
        guarded(tile, || self.source.read(region)).map_err(|error| match error {
            ExecError::Tile { tile, source } => ExecError::Source { tile, source },
            error => error,
        })
    }

    /// What a worker has not read to the end when it is retired goes to others.
    fn give_back(&self, unit: &Unit) {
        unit.is_over.store(true, Ordering::Relaxed);
        self.shared.ledger().scheduler.give_back(self.worker, &unit.tiles);
        self.shared.tell_all();
    }

    fn is_dismissed(&self) -> bool {
        self.shared.is_stopped() || self.shared.ledger().scheduler.is_retired(self.worker)
    }
}

/// The calling thread: blends, counts, and watches over the workers.
struct Foreman<'a, 'b> {
    settings: Settings,
    shared: Arc<Shared>,
    workers: Arc<[Worker]>,
    plan: &'a TilePlan,
    compositor: Compositor<'a>,
    /// Frames that have come of each tile.
    known: Vec<usize>,
    done: Done,
    stats: Vec<WorkerStats>,
    upcast_tiles: usize,
    /// Workers that did not come back.
    has_given_up: Vec<bool>,
    progress: &'b mut dyn Progress,
}

impl Foreman<'_, '_> {
    fn attend(&mut self, inbox: &Receiver<Message>, stop: &Stop) -> Result<(), ExecError> {
        self.progress.hear(&Event::Started { workers: self.workers.iter().map(|worker| worker.name.clone()).collect(), done: self.done });
        while self.done.tiles < self.done.of_tiles || self.compositor.placed_tiles() < self.done.of_tiles {
            if stop.is_stopped() {
                return Err(ExecError::Stopped);
            }
            match inbox.recv_timeout(PATIENCE) {
                Ok(message) => self.take(message)?,
                Err(RecvTimeoutError::Timeout) => self.look_for_stalled()?,
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), ExecError> {
        match message {
            Message::Started { worker, tiles } => {
                for tile in tiles {
                    self.progress.hear(&Event::TileStarted { worker, tile });
                }
            }
            Message::Piece { tile, first, piece } => self.blend(tile, first, piece)?,
            Message::Finished { worker, tiles } => {
                for tile in tiles {
                    self.done.tiles += 1;
                    self.stats[worker].tiles += 1;
                    self.stats[worker].work += self.plan.tiles[tile].input.volume() as f64;
                    self.progress.hear(&Event::TileFinished { worker, tile, done: self.done });
                }
            }
            Message::Failed { worker, tiles, message, is_retired } => {
                let name = &self.workers[worker].name;
                tracing::warn!("{name}: {message}; the tile is run again");
                if is_retired {
                    tracing::warn!("{name} gets no more tiles, or none so large");
                }
                self.stats[worker].faults += 1;
                for tile in tiles {
                    self.progress.hear(&Event::TileFailed { worker, tile, message: message.clone() });
                }
                if is_retired {
                    self.stats[worker].retired = Some(message.clone());
                    self.progress.hear(&Event::WorkerRetired { worker, message });
                }
            }
            Message::Upcast { worker, tiles } => {
                tracing::warn!("the answer for tile {} is not finite; it is run again in a wider dtype", tiles[0]);
                self.upcast_tiles += tiles.len();
                for tile in tiles {
                    self.progress.hear(&Event::TileUpcast { worker, tile });
                }
            }
            Message::Fatal(error) => return Err(error),
        }
        Ok(())
    }

    fn blend(&mut self, tile: usize, mut first: usize, piece: Block) -> Result<(), ExecError> {
        let frame = first;
        let Some(fresh) = unknown_frames(piece, &mut first, &mut self.known[tile]) else { return Ok(()) };
        self.done.frames += fresh.shape()[2];
        let subject = Subject { worker: None, tile, stacked: 1, frame };
        let before = self.compositor.placed_tiles();
        let placed = self.shared.recorder.time(Stage::Blend, subject, || self.compositor.push(tile, fresh));
        placed.map_err(|source| ExecError::Composite { tile, source })?;
        if self.compositor.placed_tiles() > before {
            self.shared.ledger().scheduler.placed(self.compositor.placed_tiles());
            self.shared.tell_all();
        }
        self.progress.hear(&Event::Advanced(self.done));
        Ok(())
    }

    /// Takes their tiles from workers that do not come back.
    fn look_for_stalled(&mut self) -> Result<(), ExecError> {
        let shared = self.shared.clone();
        let mut ledger = shared.ledger();
        let stalled = ledger.scheduler.stalled(shared.recorder.now(), self.settings.timeout);
        if stalled.is_empty() {
            return Ok(());
        }
        for worker in stalled {
            self.has_given_up[worker] = true;
            let (tiles, is_hopeless) = ledger.scheduler.give_up(worker);
            let error = ExecError::Stalled { tile: tiles[0], worker: self.workers[worker].name.clone() };
            let verdict = Verdict { is_retired: true, is_hopeless };
            let message = ledger.judge(&self.workers, worker, &tiles, verdict, error);
            self.take(message)?;
        }
        drop(ledger);
        shared.tell_all();
        Ok(())
    }

    /// Waits for the threads of all workers but those that do not come back.
    fn dismiss(&mut self, lines: Vec<Vec<JoinHandle<()>>>) {
        for (worker, line) in lines.into_iter().enumerate() {
            for thread in line {
                while !self.has_given_up[worker] && !thread.is_finished() {
                    let stalled = self.shared.ledger().scheduler.stalled(self.shared.recorder.now(), self.settings.timeout);
                    for worker in stalled {
                        self.has_given_up[worker] = true;
                    }
                    thread::sleep(Duration::from_micros(200));
                }
            }
        }
    }

    fn finish(self) -> Result<RunStats, ExecError> {
        self.compositor.finish().map_err(ExecError::Unfinished)?;
        let elapsed = self.shared.recorder.now();
        let mut stats = self.stats;
        // Workers that stood by to the end had no part in the run.
        while stats.len() > self.plan.tiles.len() && stats.last().is_some_and(|last| last.tiles + last.faults == 0) {
            stats.pop();
        }
        let trace = self.shared.recorder.trace(stats.iter().map(|worker| worker.name.clone()).collect());
        for (worker, stats) in stats.iter_mut().enumerate() {
            stats.busy = trace.busy(worker);
            [stats.uploaded_bytes, stats.downloaded_bytes] = [0, 1].map(|way| self.shared.moved[worker][way].load(Ordering::Relaxed));
        }
        Ok(RunStats { tiles: self.done.tiles, frames: self.plan.output[0], upcast_tiles: self.upcast_tiles, elapsed, workers: stats, trace })
    }
}
