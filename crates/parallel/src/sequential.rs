use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use tiling::{Block, TileOp};

use crate::{ExecError, Executor, Job, Progress, RunStats};

/// One tile after the other, in raster order, on the calling thread and one device.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sequential;

impl Executor for Sequential {
    fn name(&self) -> &'static str {
        "sequential"
    }

    fn run(&self, mut job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        let [op] = job.ops else {
            return Err(match job.ops.len() {
                0 => ExecError::NoDevice,
                got => ExecError::TooManyDevices { executor: self.name(), got },
            });
        };
        let start = Instant::now();
        let total = job.plan.tiles.len();
        for planned in &job.plan.tiles {
            let tile = planned.index;
            let input = job.source.read(&planned.input).map_err(|source| ExecError::Source { tile, source })?;
            let answer = run_tile(op.as_ref(), tile, input)?;
            job.compositor.push(tile, answer).map_err(|source| ExecError::Composite { tile, source })?;
            progress.tile_done(tile + 1, total);
        }
        job.compositor.finish().map_err(ExecError::Unfinished)?;
        Ok(RunStats { tiles: total, elapsed: start.elapsed() })
    }
}

/// Runs one tile; a panic of the operation, which is how Burn reports most errors, becomes an error.
fn run_tile(op: &dyn TileOp, tile: usize, input: Block) -> Result<Block, ExecError> {
    match catch_unwind(AssertUnwindSafe(|| op.run(input))) {
        Ok(answer) => answer.map_err(|source| ExecError::Tile { tile, source }),
        Err(panic) => Err(ExecError::Panicked { tile, message: panic_message(panic.as_ref()) }),
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "the operation panicked".to_owned())
}
