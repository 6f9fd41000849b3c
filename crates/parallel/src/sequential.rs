use tiling::TilePlan;

use crate::{ExecError, Executor, Job, Progress, RunStats};

/// Runs one tile after the other, in raster order, on the calling thread and one worker: the definition of the right answer.
///
/// A stop takes effect between the pieces of a tile, and within one where the operation looks at its stop.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sequential;

impl Executor for Sequential {
    fn name(&self) -> &'static str {
        "sequential"
    }

    fn check_workers(&self, count: usize) -> Result<(), ExecError> {
        match count {
            0 => Err(ExecError::NoDevice),
            1 => Ok(()),
            got => Err(ExecError::TooManyDevices { executor: self.name(), got }),
        }
    }

    fn held_tiles(&self, _: &TilePlan, _: usize) -> usize {
        1
    }

    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        self.check_workers(job.workers.len())?;
        let (runner, mut output) = job.begin(progress)?;
        for tile in 0..runner.plan().tiles.len() {
            runner.run_tile(0, tile, |update| output.update(update))?;
        }
        output.finish()
    }
}
