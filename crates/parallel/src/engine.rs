use std::num::NonZeroUsize;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, SendTimeoutError, Sender, bounded};
use tiling::{Compositor, HostTensor, Party, Stop, TilePlan, guard};

use crate::schedule::{Blame, Rules, Scheduler};
use crate::seam::{self, Input, Listener};
use crate::sequential::{all_finite, unknown_frames};
use crate::trace::{Recorder, Subject};
use crate::worker_pipeline::{Chunk, Message, SchedulerState, Shared, TileBatch, WorkerPipeline};
use crate::{Count, Done, Event, ExecError, Job, Progress, RunStats, Stage, Worker, WorkerStats};

/// How long anybody waits before looking again without being told that something has happened.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long workers are waited for when a run ends.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// The silence of a worker on its first tile that others wait for.
pub(crate) const SILENCE: Duration = Duration::from_mins(5);

/// Messages of each worker that may wait for the calling thread; pieces of answers are among them.
const MESSAGES: usize = 4;

/// How tiles are run on many workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Settings {
    pub(crate) retries: usize,
    pub(crate) batch: Count,
    pub(crate) timeout: Option<Duration>,
    /// How long a worker that has not finished a tile yet may give no sign of life before others that have nothing to do run its tile, too.
    pub(crate) silence: Duration,
    /// How long a run that has ended waits for workers to come back from what they are at.
    pub(crate) grace: Duration,
    /// Tiles, or stacks of them, that a worker has in work at once, its stages overlapping; none: one at a time, one stage after the other.
    pub(crate) in_flight: Option<NonZeroUsize>,
}

impl Settings {
    fn at_once(&self) -> usize {
        self.in_flight.map_or(1, NonZeroUsize::get)
    }

    pub(crate) fn held_tiles(&self, plan: &TilePlan, workers: usize) -> usize {
        plan.held_tiles(workers.min(plan.tiles.len()), self.at_once().saturating_mul(Rules::largest_batch(self.batch)))
    }
}

/// Runs a job: for each worker a thread here reads its tiles, and threads of its [`WorkerPipeline`] work on them; the calling thread blends.
pub(crate) fn run(settings: Settings, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
    let Job { plan, source, workers, mut compositor, stop } = job;
    let input = Input::new(source, plan)?;
    seam::prepare(&mut compositor)?;
    let recorder = Recorder::new();
    let workers: Arc<[_]> = workers.into();
    let rules = Rules {
        window: settings.held_tiles(plan, workers.len()),
        at_once: settings.at_once(),
        batch: settings.batch,
        retries: settings.retries,
        timeout: settings.timeout,
        silence: settings.silence,
    };
    let work = plan.tiles.iter().map(|tile| tile.input.volume() as f64).collect();
    let scheduler = Scheduler::new(work, classes(plan), workers.iter().map(|worker| worker.device).collect(), rules);
    let shared = Arc::new(Shared {
        state: Mutex::new(SchedulerState::new(scheduler, workers.len())),
        changed: workers.iter().map(|_| Condvar::new()).collect(),
        stop: stop.branch(),
        recorder,
        moved: workers.iter().map(|_| Default::default()).collect(),
        frames: plan.geometry.frames,
        answers: plan.tiles.iter().map(|tile| tile.output.size).collect(),
    });
    let (messages, inbox) = bounded(MESSAGES * workers.len());
    let mut lines = Vec::new();
    let mut readers = Vec::new();
    for worker in 0..workers.len() {
        let (inlet, outlet) = bounded(1);
        let line = WorkerPipeline { worker, workers: workers.clone(), shared: shared.clone(), messages: messages.clone() };
        lines.push(line.start(outlet, settings.in_flight.is_some()).map_err(ExecError::Thread)?);
        readers.push(Reader { line, plan, input, inlet });
    }
    drop(messages);
    let mut coordinator = Coordinator {
        shared: shared.clone(),
        plan,
        compositor,
        known: vec![0; plan.tiles.len()],
        done: Done::nothing(plan),
        stats: workers.iter().map(|worker| WorkerStats::new(&worker.name)).collect(),
        upcast_tiles: 0,
        has_given_up: vec![false; workers.len()],
        grace: settings.grace,
        workers,
        progress: Listener(progress),
    };
    let outcome = thread::scope(|scope| {
        let mut readers = readers.into_iter();
        let fed = readers.try_for_each(|reader| thread::Builder::new().spawn_scoped(scope, move || reader.work()).map(drop));
        drop(readers);
        let outcome = match fed {
            Ok(()) => guard(Party::Engine, || coordinator.attend(&inbox, stop)).map_err(ExecError::from).flatten(),
            Err(error) => Err(ExecError::Thread(error)),
        };
        shared.stop();
        // Whoever still wants to send learns that nobody listens.
        drop(inbox);
        outcome
    });
    coordinator.dismiss(lines);
    outcome?;
    coordinator.finish()
}

/// For each tile a number that it has in common with the tiles of its shape.
fn classes(plan: &TilePlan) -> Vec<usize> {
    let shapes = plan.shapes();
    plan.tiles.iter().filter_map(|tile| shapes.iter().position(|&shape| shape == tile.input.size)).collect()
}

/// Fetches tiles for a worker and reads them.
struct Reader<'a> {
    line: WorkerPipeline,
    plan: &'a TilePlan,
    input: Input<'a>,
    inlet: Sender<Chunk<HostTensor>>,
}

impl Reader<'_> {
    fn work(self) {
        let messages = self.line.messages.clone();
        if let Err(error) = guard(Party::Engine, || self.feed()).map_err(ExecError::from).flatten() {
            let _ = messages.send(Message::Fatal(error));
        }
    }

    fn feed(self) -> Result<(), ExecError> {
        while let Some(batch) = self.line.shared.next_batch(self.line.worker, PATIENCE) {
            if let Some(other) = batch.beside {
                let [name, other] = [self.line.worker, other].map(|worker| &self.line.workers[worker].name);
                tracing::warn!("{other} has given no sign of life for long; {name} runs its tile {}, too", batch.tiles[0]);
            }
            let started = Message::Started { worker: self.line.worker, tiles: batch.tiles.clone() };
            if self.line.messages.send(started).is_err() || !self.hand_over(&batch)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads the pieces of a batch and hands them to the line. False when that does not take them any more.
    fn hand_over(&self, batch: &Arc<TileBatch>) -> Result<bool, ExecError> {
        let WorkerPipeline { worker, workers, shared, .. } = &self.line;
        let chunks = match seam::chunks(workers[*worker].op(batch.is_upcast), self.plan.geometry.frames, batch.tiles[0], self.plan.input[0]) {
            Ok(chunks) => chunks,
            Err(error) => {
                self.line.fail(batch, Some(Blame::Tile), error);
                return Ok(true);
            }
        };
        let mut chunks = chunks.into_iter().peekable();
        while let Some(frames) = chunks.next() {
            if batch.stop.is_stopped() {
                break;
            }
            let subject = Subject { worker: Some(*worker), tile: batch.tiles[0], stacked: batch.tiles.len(), frame: frames.start };
            let pieces = shared.recorder.time(Stage::Read, subject, || {
                batch.tiles.iter().map(|&tile| self.input.read(tile, &self.plan.tiles[tile].input.frames(&frames))).collect::<Result<Vec<_>, _>>()
            });
            let load = HostTensor::join_batch(pieces?);
            if !all_finite(&load) {
                batch.is_finite.store(false, Ordering::Relaxed);
            }
            let mut item = Chunk { batch: batch.clone(), frames, is_last: chunks.peek().is_none(), load };
            loop {
                item = match self.inlet.send_timeout(item, PATIENCE) {
                    Ok(()) => break,
                    Err(SendTimeoutError::Timeout(item)) if !self.is_dismissed() => item,
                    Err(_) => {
                        shared.state().give_back(batch);
                        shared.notify_all();
                        return Ok(false);
                    }
                };
                if batch.stop.is_stopped() {
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    fn is_dismissed(&self) -> bool {
        self.line.shared.is_stopped() || self.line.shared.state().scheduler.is_retired(self.line.worker)
    }
}

/// The calling thread: blends, counts, and watches over the workers.
struct Coordinator<'a, 'b> {
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
    grace: Duration,
    progress: Listener<'b>,
}

impl Coordinator<'_, '_> {
    fn attend(&mut self, inbox: &Receiver<Message>, stop: &Stop) -> Result<(), ExecError> {
        self.progress.on_event(&Event::Started { workers: self.workers.iter().map(|worker| worker.name.clone()).collect(), done: self.done })?;
        let mut looked = self.shared.recorder.now();
        while self.done.tiles < self.done.of_tiles || self.compositor.placed_tiles() < self.done.of_tiles {
            if stop.is_stopped() {
                return Err(ExecError::Stopped);
            }
            match inbox.recv_timeout(PATIENCE) {
                Ok(message) => {
                    let is_failure = matches!(message, Message::Failed { .. });
                    self.take(message)?;
                    if is_failure {
                        self.check_hopeless(inbox)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if stop.is_stopped() => return Err(ExecError::Stopped),
                Err(RecvTimeoutError::Disconnected) => {
                    self.check_hopeless(inbox)?;
                    break;
                }
            }
            // However much there is to do.
            if self.shared.recorder.now().saturating_sub(looked) >= PATIENCE {
                self.retire_stalled()?;
                self.check_hopeless(inbox)?;
                looked = self.shared.recorder.now();
            }
        }
        Ok(())
    }

    fn take(&mut self, message: Message) -> Result<(), ExecError> {
        match message {
            Message::Started { worker, tiles } => {
                for tile in tiles {
                    self.progress.on_event(&Event::TileStarted { worker, tile })?;
                }
            }
            Message::Piece { tile, first, piece } => self.blend(tile, first, piece)?,
            Message::Finished { worker, tiles } => {
                for tile in tiles {
                    self.done.tiles += 1;
                    self.stats[worker].tiles += 1;
                    self.stats[worker].work += self.plan.tiles[tile].input.volume() as f64;
                    self.progress.on_event(&Event::TileFinished { worker, tile, done: self.done })?;
                }
            }
            Message::Failed { worker, tiles, message, is_retired } => {
                let name = &self.workers[worker].name;
                let consequence = if tiles.is_empty() { "" } else { "; the tile is run again" };
                tracing::warn!("{name}: {message}{consequence}");
                if is_retired {
                    tracing::warn!("{name} gets no more tiles, or none so large");
                }
                self.stats[worker].faults += 1;
                for tile in tiles {
                    self.progress.on_event(&Event::TileFailed { worker, tile, message: message.clone() })?;
                }
                if is_retired {
                    self.stats[worker].retired = Some(message.clone());
                    self.progress.on_event(&Event::WorkerRetired { worker, message })?;
                }
            }
            Message::Upcast { worker, tiles } => {
                tracing::warn!("the answer for tile {} is not finite; it is run again in a wider dtype", tiles[0]);
                self.upcast_tiles += tiles.len();
                for tile in tiles {
                    self.progress.on_event(&Event::TileUpcast { worker, tile })?;
                }
            }
            Message::Fatal(error) => return Err(error),
        }
        Ok(())
    }

    fn blend(&mut self, tile: usize, mut first: usize, piece: HostTensor) -> Result<(), ExecError> {
        let frame = first;
        let Some(fresh) = unknown_frames(piece, &mut first, &mut self.known[tile]) else { return Ok(()) };
        self.done.tile_frames += fresh.shape()[2];
        let subject = Subject { worker: None, tile, stacked: 1, frame };
        let before = self.compositor.placed_tiles();
        self.shared.recorder.time(Stage::Blend, subject, || seam::push(&mut self.compositor, tile, fresh))?;
        self.done.output_frames = self.compositor.finished_frames();
        if self.compositor.placed_tiles() > before {
            self.shared.state().scheduler.placed(self.compositor.placed_tiles());
            self.shared.notify_all();
        }
        self.progress.on_event(&Event::Advanced(self.done))
    }

    /// Takes their tiles from workers that do not come back.
    fn retire_stalled(&mut self) -> Result<(), ExecError> {
        let mut state = self.shared.state();
        let stalled = state.scheduler.stalled(self.shared.recorder.now());
        let mut given_up = Vec::new();
        for (worker, tile) in stalled {
            self.has_given_up[worker] = true;
            given_up.push(state.give_up(worker, ExecError::Stalled { tile, worker: self.workers[worker].name.clone() }));
        }
        drop(state);
        if !given_up.is_empty() {
            self.shared.notify_all();
        }
        given_up.into_iter().try_for_each(|message| self.take(message))
    }

    /// Ends a run that can come to no good end, after what is known of it.
    fn check_hopeless(&mut self, inbox: &Receiver<Message>) -> Result<(), ExecError> {
        let failure_outcome = self.shared.state().failure_outcome(&self.workers);
        let Some(error) = failure_outcome else { return Ok(()) };
        while let Ok(message) = inbox.try_recv() {
            self.take(message)?;
        }
        Err(error)
    }

    /// Waits for the threads of all workers but those that do not come back.
    fn dismiss(&mut self, lines: Vec<Vec<JoinHandle<()>>>) {
        let begun = Instant::now();
        for (worker, line) in lines.into_iter().enumerate() {
            while !self.has_given_up[worker] && !line.iter().all(JoinHandle::is_finished) {
                if begun.elapsed() > self.grace {
                    tracing::warn!("{} does not come back from its tile; it is left behind", self.workers[worker].name);
                    break;
                }
                thread::sleep(Duration::from_micros(200));
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
