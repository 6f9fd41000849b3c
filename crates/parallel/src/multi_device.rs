use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tiling::{Block, BoxError, Region, TileInput, TilePlan, TileSource};

use crate::executor::{Ended, run_tile};
use crate::schedule::{Scheduler, Turn};
use crate::{Done, ExecError, Executor, Job, Progress, RunStats, Worker, WorkerStats};

/// Faults in a row after which a worker gets no more tiles.
const FAULTS_BEFORE_RETIREMENT: usize = 3;
/// Tiles begun ahead of the first unfinished one, for each worker.
const TILES_AHEAD: usize = 4;
/// How long the calling thread and waiting workers wait before they look again without being told that something has happened.
const PATIENCE: Duration = Duration::from_millis(20);

/// Tiles run at once on all workers, each on a thread of its own; the calling thread blends.
///
/// The largest tiles go first, and a free worker takes the next. A tile on which a worker fails, panics, or answers a finite input with values that are
/// not finite, goes to another worker, and a worker that fails again and again gets no more; the run ends well if one is left. Finished tiles wait for
/// their turn to be blended: at most four for each worker, and then workers wait.
#[derive(Debug, Clone, Copy)]
pub struct MultiDevice {
    /// How often a tile may fail before the run does.
    pub retries: usize,
}

impl Executor for MultiDevice {
    fn name(&self) -> &'static str {
        "multi-device"
    }

    fn check_workers(&self, count: usize) -> Result<(), ExecError> {
        if count == 0 { Err(ExecError::NoDevice) } else { Ok(()) }
    }

    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        let Job { plan, source, workers, mut compositor, stop } = job;
        self.check_workers(workers.len())?;
        let start = Instant::now();
        let frames = plan.output[0];
        let tiles = plan.tiles.len();
        let workers = &workers[..workers.len().min(tiles)];
        let work = plan.tiles.iter().map(|tile| tile.input.volume() as f64).collect();
        let window = TILES_AHEAD * workers.len();
        let run = Run {
            scheduler: Mutex::new(Scheduler::new(work, workers.len(), window)),
            changed: Condvar::new(),
            is_stopped: AtomicBool::new(false),
            start,
            retries: self.retries,
            plan,
            source,
            workers,
        };
        let mut stats: Vec<WorkerStats> = workers.iter().map(|worker| WorkerStats::new(&worker.name)).collect();
        let mut done = Done { of_tiles: tiles, of_frames: tiles * frames, ..Done::default() };
        let mut received = vec![0_usize; tiles];
        let (sender, receiver) = sync_channel(workers.len());
        let outcome = thread::scope(|scope| {
            for worker in 0..workers.len() {
                let (run, sender) = (&run, sender.clone());
                scope.spawn(move || run.work(worker, &sender));
            }
            drop(sender);
            let mut outcome = Ok(());
            loop {
                if stop.is_stopped() {
                    outcome = Err(ExecError::Stopped);
                    break;
                }
                let event = match receiver.recv_timeout(PATIENCE) {
                    Ok(event) => event,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                match event {
                    Event::Piece { tile, first, piece } => {
                        // A tile that is run again brings frames that are there already.
                        let known = received[tile].saturating_sub(first).min(piece.shape()[2]);
                        let fresh = piece.shape()[2] - known;
                        if fresh == 0 {
                            continue;
                        }
                        let piece = if known == 0 { piece } else { piece.frames(known, fresh) };
                        received[tile] += fresh;
                        done.frames += fresh;
                        if let Err(source) = compositor.push(tile, piece) {
                            outcome = Err(ExecError::Composite { tile, source });
                            break;
                        }
                    }
                    Event::Finished { worker, busy } => {
                        done.tiles += 1;
                        stats[worker].tiles += 1;
                        stats[worker].busy += busy;
                    }
                    Event::Fault { worker, error, busy } => {
                        tracing::warn!("{}: {error}; the tile is run again", workers[worker].name);
                        stats[worker].faults += 1;
                        stats[worker].busy += busy;
                    }
                    Event::Retired { worker } => tracing::warn!("{} gets no more tiles", workers[worker].name),
                    Event::Fatal(error) => {
                        outcome = Err(error);
                        break;
                    }
                }
                progress.advanced(done);
            }
            run.stop();
            // Whoever still wants to send learns that nobody listens.
            drop(receiver);
            outcome
        });
        outcome?;
        compositor.finish().map_err(ExecError::Unfinished)?;
        Ok(RunStats { tiles: done.tiles, frames, elapsed: start.elapsed(), workers: stats })
    }
}

/// What workers tell the calling thread.
enum Event {
    Piece { tile: usize, first: usize, piece: Block },
    Finished { worker: usize, busy: Duration },
    Fault { worker: usize, error: ExecError, busy: Duration },
    Retired { worker: usize },
    Fatal(ExecError),
}

struct Run<'a> {
    scheduler: Mutex<Scheduler>,
    changed: Condvar,
    is_stopped: AtomicBool,
    start: Instant,
    retries: usize,
    plan: &'a TilePlan,
    source: &'a dyn TileSource,
    workers: &'a [Worker],
}

impl Run<'_> {
    fn scheduler(&self) -> MutexGuard<'_, Scheduler> {
        self.scheduler.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// The life of a worker.
    fn work(&self, worker: usize, events: &SyncSender<Event>) {
        let mut faults_in_a_row = 0;
        while let Some(tile) = self.next_tile(worker) {
            let begun = Instant::now();
            let answer = self.run_tile(worker, tile, events);
            let busy = begun.elapsed();
            let event = match answer {
                Ok(()) => {
                    faults_in_a_row = 0;
                    self.scheduler().finished(worker, self.start.elapsed());
                    Event::Finished { worker, busy }
                }
                Err(error @ ExecError::Source { .. }) => Event::Fatal(error),
                Err(_) if self.is_stopped.load(Ordering::Relaxed) => return,
                Err(error) => {
                    faults_in_a_row += 1;
                    let mut scheduler = self.scheduler();
                    let failures = scheduler.failed(worker);
                    let is_retired = faults_in_a_row == FAULTS_BEFORE_RETIREMENT;
                    if is_retired {
                        scheduler.retire(worker);
                    }
                    let is_hopeless = failures > self.retries || scheduler.live_workers() == 0;
                    drop(scheduler);
                    if is_hopeless {
                        Event::Fatal(error)
                    } else {
                        if is_retired && events.send(Event::Retired { worker }).is_err() {
                            return;
                        }
                        Event::Fault { worker, error, busy }
                    }
                }
            };
            self.changed.notify_all();
            if events.send(event).is_err() {
                return;
            }
        }
    }

    /// Waits for a tile; none when there is nothing left to do.
    fn next_tile(&self, worker: usize) -> Option<usize> {
        let mut scheduler = self.scheduler();
        while !self.is_stopped.load(Ordering::Relaxed) {
            match scheduler.turn(worker, self.start.elapsed()) {
                Turn::Run(tile) => return Some(tile),
                Turn::Leave => return None,
                Turn::Wait => scheduler = self.changed.wait_timeout(scheduler, PATIENCE).unwrap_or_else(PoisonError::into_inner).0,
            }
        }
        None
    }

    fn run_tile(&self, worker: usize, tile: usize, events: &SyncSender<Event>) -> Result<(), ExecError> {
        let source = Watched { source: self.source, is_finite: AtomicBool::new(true) };
        let input = TileInput::new(&source, self.plan.tiles[tile].input);
        let mut first = 0;
        let mut emit = |piece: Block| -> Result<(), BoxError> {
            if self.is_stopped.load(Ordering::Relaxed) {
                return Err(Ended.into());
            }
            if source.is_finite.load(Ordering::Relaxed) && !piece.data().iter().all(|value| value.is_finite()) {
                return Err(NotFinite.into());
            }
            let count = piece.shape()[2];
            events.send(Event::Piece { tile, first, piece }).map_err(|_| Ended)?;
            first += count;
            Ok(())
        };
        run_tile(self.workers[worker].op.as_ref(), tile, &input, &mut emit)
    }
}

/// An answer with values that are no numbers.
#[derive(Debug, thiserror::Error)]
#[error("the answer to a finite input is not finite")]
struct NotFinite;

/// A source that notes whether all that was read is finite.
struct Watched<'a> {
    source: &'a dyn TileSource,
    is_finite: AtomicBool,
}

impl TileSource for Watched<'_> {
    fn shape(&self) -> [usize; 5] {
        self.source.shape()
    }

    fn read(&self, region: &Region) -> Result<Block, BoxError> {
        let block = self.source.read(region)?;
        if !block.data().iter().all(|value| value.is_finite()) {
            self.is_finite.store(false, Ordering::Relaxed);
        }
        Ok(block)
    }
}
