//! An executor from outside.

use parallel::{ExecError, Executor, Job, Progress, RunStats};
use tiling::TilePlan;

/// Runs the second tile of each pair before the first, on one worker and on the calling thread. The bytes are those of every executor.
#[derive(Debug, Clone, Copy)]
pub struct Zigzag;

impl Executor for Zigzag {
    fn name(&self) -> &'static str {
        "zigzag"
    }

    fn check_workers(&self, count: usize) -> Result<(), ExecError> {
        match count {
            0 => Err(ExecError::NoDevice),
            1 => Ok(()),
            got => Err(ExecError::TooManyDevices { executor: self.name(), got }),
        }
    }

    fn held_tiles(&self, plan: &TilePlan, _: usize) -> usize {
        plan.tiles.len().min(2)
    }

    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        self.check_workers(job.workers.len())?;
        let (runner, mut output) = job.begin(progress)?;
        let tiles = runner.plan().tiles.len();
        for tile in (0..tiles).step_by(2).flat_map(|first| (first..tiles.min(first + 2)).rev()) {
            runner.run_tile(0, tile, |update| output.update(update))?;
        }
        output.finish()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn it_passes_the_tests_of_executors() {
        parallel::testing::executor_conformance(super::Zigzag);
    }
}
