//! The engine of [`MultiDevice`]. For each worker a [`Reader`] takes tiles from the scheduler and reads them, and a [`WorkerPipeline`] of one or three
//! threads takes them through their stages. The calling thread, the [`Coordinator`], blends, counts and watches the workers.

mod coordinator;
mod pipeline;
mod reader;
mod state;

use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;
use tiling::{Party, TilePlan, guard};

use coordinator::Coordinator;
use pipeline::WorkerPipeline;
use reader::Reader;
use state::{SchedulerState, Shared};

use crate::scheduler::{Rules, Scheduler};
use crate::{ExecError, Executor, Job, MultiDevice, Progress, RunStats, Worker};

/// The longest wait before a thread looks again at what others have changed.
const POLL: Duration = Duration::from_millis(20);

/// Messages of each worker that may wait for the calling thread; pieces of output are among them.
const MESSAGES: usize = 4;

/// How tiles are run on many workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Settings {
    pub(crate) executor: MultiDevice,
    /// How long a worker that has not finished a tile yet may give no sign of life before idle workers run its tile, too.
    pub(crate) silence: Duration,
    /// How long a run that has ended waits for its workers' threads.
    pub(crate) grace: Duration,
}

impl Settings {
    pub(crate) fn new(executor: MultiDevice) -> Self {
        Self { executor, silence: Duration::from_mins(5), grace: Duration::from_secs(5) }
    }
}

/// Runs a job.
pub(crate) fn run(settings: Settings, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
    let Settings { executor, silence, grace } = settings;
    let job_stop = job.stop;
    let (runner, output) = job.begin(progress)?;
    let plan = runner.plan();
    let workers: Arc<[Worker]> = runner.workers().into();
    let rules = Rules {
        window: executor.held_tiles(plan, workers.len()),
        at_once: executor.in_flight.map_or(1, std::num::NonZero::get),
        batch: executor.batch_tiles.get(),
        retries: executor.retries,
        timeout: executor.tile_timeout,
        silence,
    };
    let work = plan.tiles.iter().map(|tile| tile.input.volume() as f64).collect();
    let scheduler = Scheduler::new(work, shape_classes(plan), workers.iter().map(|worker| worker.device).collect(), rules)
        .with_expected_speeds(workers.iter().map(|worker| worker.speed))
        .with_near_tiles(workers.iter().map(|worker| &worker.near_tiles[..]));
    let shared = Arc::new(Shared {
        state: Mutex::new(SchedulerState::new(scheduler, workers.len())),
        changed: workers.iter().map(|_| Condvar::new()).collect(),
        stop: runner.stop.clone(),
        recorder: runner.recorder.clone(),
        run: runner.run,
        frames: plan.geometry.frames,
        batch: runner.input.batch(),
        answers: plan.tiles.iter().map(|tile| tile.output.size).collect(),
    });
    let (messages, inbox) = bounded(MESSAGES * workers.len());
    let mut threads = Vec::new();
    let mut readers = Vec::new();
    for worker in 0..workers.len() {
        let (chunks, to_upload) = bounded(1);
        let pipeline = WorkerPipeline { worker, workers: workers.clone(), shared: shared.clone(), messages: messages.clone() };
        threads.push(pipeline.start(to_upload, executor.in_flight.is_some()).map_err(ExecError::Thread)?);
        readers.push(Reader { pipeline, plan, input: runner.input, chunks });
    }
    drop(messages);
    let mut coordinator = Coordinator { shared: shared.clone(), workers, output, is_given_up: vec![false; threads.len()], grace };
    let outcome = thread::scope(|scope| {
        let mut readers = readers.into_iter();
        let started = readers.try_for_each(|reader| thread::Builder::new().spawn_scoped(scope, move || reader.work()).map(drop));
        drop(readers);
        let outcome = match started {
            Ok(()) => guard(Party::Engine, || coordinator.run(&inbox, job_stop)).map_err(ExecError::from).flatten(),
            Err(error) => Err(ExecError::Thread(error)),
        };
        shared.stop();
        // Threads that wait to send a message see that the channel is closed.
        drop(inbox);
        outcome
    });
    coordinator.join(threads);
    outcome?;
    coordinator.output.finish()
}

/// For each tile a number that it shares with the tiles of its shape: they can run as one stack.
fn shape_classes(plan: &TilePlan) -> Vec<usize> {
    let shapes = plan.shapes();
    plan.tiles.iter().filter_map(|tile| shapes.iter().position(|&shape| shape == tile.input.size)).collect()
}
