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

/// Hears how far a run is.
pub trait Progress {
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct RunStats {
    /// Tiles that were run.
    pub tiles: usize,
    /// Frames of the output.
    pub frames: usize,
    /// From the first read to the last piece written.
    pub elapsed: Duration,
}
