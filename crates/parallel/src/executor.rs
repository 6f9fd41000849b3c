use std::any::Any;
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;
use tiling::{Compositor, Emit, TileInput, TileOp, TilePlan, TileSource};

use crate::ExecError;

/// What is to be run.
pub struct Job<'a> {
    /// The tiles.
    pub plan: &'a TilePlan,
    /// Where they are read from.
    pub source: &'a dyn TileSource,
    /// Who runs them.
    pub workers: &'a [Worker],
    /// Where their answers go.
    pub compositor: Compositor<'a>,
    /// Whether to go on.
    pub stop: &'a Stop,
}

/// A switch that ends runs, from any thread or a signal's handler. Clones are one switch.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends every run that looks at this switch, at the latest when the tiles that run now are finished.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was thrown.
    pub fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What an operation is told when it hands on a piece of an answer that nobody wants any more.
#[derive(Debug, thiserror::Error)]
#[error("the run has ended")]
pub(crate) struct Ended;

/// A device that runs tiles, or a share of one.
#[derive(Clone)]
pub struct Worker {
    /// What people call it.
    pub name: String,
    /// The operation, with what it needs on that device.
    pub op: Arc<dyn TileOp>,
}

/// Runs the tiles of a plan and feeds the compositor.
pub trait Executor: Debug + Send + Sync {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// Whether the executor can use this many workers.
    ///
    /// # Errors
    /// [`ExecError::NoDevice`] or [`ExecError::TooManyDevices`].
    fn check_workers(&self, count: usize) -> Result<(), ExecError>;

    /// Runs every tile. The compositor and `progress` are called on the calling thread.
    ///
    /// # Errors
    /// What the run could not get over; no tile is started after it.
    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError>;
}

/// Hears how far a run is.
pub trait Progress: Send {
    /// A piece of a tile is finished, or a whole tile.
    fn advanced(&mut self, done: Done);
}

/// Nobody listens.
impl Progress for () {
    fn advanced(&mut self, _: Done) {}
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    /// Tiles that are finished.
    pub tiles: usize,
    /// All tiles.
    pub of_tiles: usize,
    /// Output frames that are finished, counted in each tile.
    pub frames: usize,
    /// The output frames of all tiles.
    pub of_frames: usize,
}

/// What a run took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunStats {
    /// Tiles that were run.
    pub tiles: usize,
    /// Frames of the output.
    pub frames: usize,
    /// From the first read to the last piece written.
    pub elapsed: Duration,
    /// What each worker did.
    pub workers: Vec<WorkerStats>,
}

/// What a worker did in a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkerStats {
    /// Its name.
    pub name: String,
    /// Tiles that it finished.
    pub tiles: usize,
    /// Tiles that it failed on.
    pub faults: usize,
    /// The time that it ran tiles.
    pub busy: Duration,
}

impl WorkerStats {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), tiles: 0, faults: 0, busy: Duration::ZERO }
    }
}

/// Runs one tile; a panic of the operation, which is how Burn reports most errors, becomes an error.
pub(crate) fn run_tile(op: &dyn TileOp, tile: usize, input: &TileInput<'_>, emit: &mut Emit<'_>) -> Result<(), ExecError> {
    match catch_unwind(AssertUnwindSafe(|| op.run(input, emit))) {
        Ok(answer) => answer.map_err(|error| ExecError::of_tile(tile, error)),
        Err(panic) => Err(ExecError::Panicked { tile, message: panic_message(panic.as_ref()) }),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "the operation panicked".to_owned())
}
