use std::num::NonZeroUsize;

use tiling::TilePlan;

use crate::engine::{self, GRACE, SILENCE, Settings};
use crate::{ExecError, Executor, Job, MultiDevice, Progress, RunStats};

/// As [`MultiDevice`], but each worker is a pipeline: the next tiles are read and brought to the device while it works on one, and the answers of earlier
/// ones are brought back and blended meanwhile, so that the device does not wait for the host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pipelined {
    /// Tiles that are in some stage at once on each worker.
    pub in_flight: NonZeroUsize,
    /// The rest.
    pub devices: MultiDevice,
}

impl Default for Pipelined {
    fn default() -> Self {
        Self { in_flight: NonZeroUsize::MIN.saturating_add(2), devices: MultiDevice::default() }
    }
}

impl Pipelined {
    fn settings(self) -> Settings {
        let MultiDevice { retries, batch_tiles, tile_timeout } = self.devices;
        Settings { retries, batch: batch_tiles, timeout: tile_timeout, silence: SILENCE, grace: GRACE, in_flight: Some(self.in_flight) }
    }
}

impl Executor for Pipelined {
    fn name(&self) -> &'static str {
        "pipelined"
    }

    fn check_workers(&self, count: usize) -> Result<(), ExecError> {
        self.devices.check_workers(count)
    }

    fn held_tiles(&self, plan: &TilePlan, workers: usize) -> usize {
        self.settings().held_tiles(plan, workers)
    }

    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        self.check_workers(job.workers.len())?;
        engine::run(self.settings(), job, progress)
    }
}
