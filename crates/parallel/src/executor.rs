use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tiling::{Compositor, TileOp, TilePlan, TileSource};

use crate::ExecError;

/// What is to be run.
pub struct Job<'a> {
    /// The tiles.
    pub plan: &'a TilePlan,
    /// Where they are read from.
    pub source: &'a dyn TileSource,
    /// The operation, once for every device.
    pub ops: &'a [Arc<dyn TileOp>],
    /// Where their answers go.
    pub compositor: Compositor<'a>,
}

/// Runs the tiles of a plan and feeds the compositor.
pub trait Executor: Debug + Send + Sync {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// Whether the executor can use this many devices.
    ///
    /// # Errors
    /// [`ExecError::NoDevice`] or [`ExecError::TooManyDevices`].
    fn check_devices(&self, count: usize) -> Result<(), ExecError>;

    /// Runs every tile once. `progress` is called on the calling thread.
    ///
    /// # Errors
    /// The first failure; no tile is started after it.
    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError>;
}

/// Hears of finished tiles.
pub trait Progress {
    /// `done` of `total` tiles are finished.
    fn tile_done(&mut self, done: usize, total: usize);
}

/// Nobody listens.
impl Progress for () {
    fn tile_done(&mut self, _: usize, _: usize) {}
}

/// What a run took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RunStats {
    /// Tiles that were run.
    pub tiles: usize,
    /// From the first read to the last row written.
    pub elapsed: Duration,
}
