use std::time::Duration;

use tiling::TilePlan;

use crate::engine::{self, GRACE, SILENCE, Settings};
use crate::{Count, ExecError, Executor, Job, Progress, RunStats};

/// Tiles run at once on all workers, one at a time on each; the calling thread blends.
///
/// The largest tiles go first, and a free worker takes the next. A tile on which a worker fails, panics, or answers a finite input with values that are
/// not finite, goes to another worker, and a worker that fails again and again, or whose device is lost, gets no more; the run ends well if one is left.
/// Finished tiles wait for their turn to be blended; when too many wait (see [`Executor::held_tiles`]), so do workers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MultiDevice {
    /// How often a tile may fail before the run does. It is tried on every worker before that, and the last worker is not retired for it.
    pub retries: usize,
    /// Tiles of one shape that run in one stack.
    pub batch_tiles: Count,
    /// How long a worker may be inside its operation for a tile before it is given up; none: many times as long as is to be expected, and a first tile that
    /// gives no sign of life is run by others, too.
    pub tile_timeout: Option<Duration>,
}

impl Default for MultiDevice {
    fn default() -> Self {
        Self { retries: 2, batch_tiles: Count::ONE, tile_timeout: None }
    }
}

impl MultiDevice {
    fn settings(self) -> Settings {
        Settings { retries: self.retries, batch: self.batch_tiles, timeout: self.tile_timeout, silence: SILENCE, grace: GRACE, in_flight: None }
    }
}

impl Executor for MultiDevice {
    fn name(&self) -> &'static str {
        "multi-device"
    }

    fn check_workers(&self, count: usize) -> Result<(), ExecError> {
        if count == 0 { Err(ExecError::NoDevice) } else { Ok(()) }
    }

    fn held_tiles(&self, plan: &TilePlan, workers: usize) -> usize {
        self.settings().held_tiles(plan, workers)
    }

    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        self.check_workers(job.workers.len())?;
        engine::run(self.settings(), job, progress)
    }
}
