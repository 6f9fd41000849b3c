use std::num::NonZeroUsize;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tiling::TilePlan;

use crate::config::whole_seconds;
use crate::engine::{self, Settings};
use crate::{ExecError, Executor, Job, Progress, RunStats};

/// Runs tiles at once on all workers; the calling thread blends.
///
/// The largest tiles go first, and a free worker takes the next. A tile on which a worker fails, panics, or answers a finite input with values that are
/// not finite, goes to another worker. A worker that fails three times in a row, or whose device is lost, is retired; the run succeeds if one is left.
/// Finished tiles wait until all tiles before them are blended; when too many wait (see [`Executor::held_tiles`]), so do workers.
///
/// Without [`in_flight`](Self::in_flight) (`multi-device` in a configuration) a worker has one tile at a time and runs one stage after the other. With it
/// (`pipelined`) the stages of a worker overlap: the next tiles are read and copied to the device while it computes one, and earlier answers are copied
/// back and blended meanwhile, so that the device does not wait for the host.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiDevice {
    /// Tiles, or stacks of them, that are in some stage at once on each worker; none: one, without overlapping stages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<NonZeroUsize>,
    /// How often a tile may fail before the run does. It is tried on every worker before that, and the last worker is not retired for it.
    pub retries: usize,
    /// Tiles of one shape that run as one stack, at most.
    pub batch_tiles: NonZeroUsize,
    /// How long a worker may be inside its operation for a tile before it is given up. None: many times the expected time, and where nothing is known
    /// yet, a first tile without a sign of life is run by another worker, too.
    #[serde(rename = "tile_timeout_s", with = "whole_seconds", skip_serializing_if = "Option::is_none")]
    pub tile_timeout: Option<Duration>,
}

impl Default for MultiDevice {
    fn default() -> Self {
        Self { in_flight: None, retries: 2, batch_tiles: NonZeroUsize::MIN, tile_timeout: None }
    }
}

impl MultiDevice {
    /// The executor `pipelined`: three tiles in flight on each worker.
    pub fn pipelined() -> Self {
        Self { in_flight: Some(NonZeroUsize::MIN.saturating_add(2)), ..Self::default() }
    }
}

impl Executor for MultiDevice {
    fn name(&self) -> &'static str {
        if self.in_flight.is_some() { "pipelined" } else { "multi-device" }
    }

    fn check_workers(&self, count: usize) -> Result<(), ExecError> {
        if count == 0 { Err(ExecError::NoDevice) } else { Ok(()) }
    }

    fn held_tiles(&self, plan: &TilePlan, workers: usize) -> usize {
        let in_flight = self.in_flight.map_or(1, NonZeroUsize::get);
        plan.held_tiles(workers.min(plan.tiles.len()), in_flight.saturating_mul(self.batch_tiles.get()))
    }

    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        self.check_workers(job.workers.len())?;
        engine::run(Settings::new(*self), job, progress)
    }
}
