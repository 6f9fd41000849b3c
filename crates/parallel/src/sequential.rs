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

    fn check_devices(&self, count: usize) -> Result<(), ExecError> {
        match count {
            0 => Err(ExecError::NoDevice),
            1 => Ok(()),
            got => Err(ExecError::TooManyDevices { executor: self.name(), got }),
        }
    }

    fn run(&self, mut job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        self.check_devices(job.ops.len())?;
        let op = &job.ops[0];
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tiling::{BoxError, Canvas, Cascade, Compositor, Geometry, Region, Scale, TilePlan, TileSource, Uniform};

    use super::*;

    /// Negates, except for the tile that starts at a chosen place.
    struct Negate {
        fails_at: Option<usize>,
        panics_at: Option<usize>,
    }

    impl TileOp for Negate {
        fn geometry(&self) -> Geometry {
            Geometry::image(Scale::Up(1))
        }

        fn run(&self, mut tile: Block) -> Result<Block, BoxError> {
            let place = Some(tile.data()[0] as usize);
            assert!(place != self.panics_at, "a panic at {place:?}");
            if place == self.fails_at {
                return Err("a failure".into());
            }
            tile.data_mut().iter_mut().for_each(|value| *value = -*value);
            Ok(tile)
        }
    }

    struct Unreadable;

    impl TileSource for Unreadable {
        fn shape(&self) -> [usize; 5] {
            [1, 1, 1, 1, 6]
        }

        fn read(&self, _: &Region) -> Result<Block, BoxError> {
            Err("gone".into())
        }
    }

    #[derive(Default)]
    struct Heard(Vec<(usize, usize)>);

    impl Progress for Heard {
        fn tile_done(&mut self, done: usize, total: usize) {
            self.0.push((done, total));
        }
    }

    fn run(source: &dyn TileSource, ops: &[Arc<dyn TileOp>], heard: &mut Heard) -> Result<Block, ExecError> {
        let plan = TilePlan::new(&Uniform::with_tile([1, 2], [0, 0]), Geometry::image(Scale::Up(1)), [1, 1, 6]).unwrap();
        let mut canvas = Canvas::default();
        let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
        let stats = Sequential.run(Job { plan: &plan, source, ops, compositor }, heard)?;
        assert_eq!(stats.tiles, 3);
        Ok(canvas.into_block())
    }

    fn row() -> Block {
        Block::from_fn([1, 1, 1, 1, 6], |[.., x]| x as f32)
    }

    fn op(fails_at: Option<usize>, panics_at: Option<usize>) -> Arc<dyn TileOp> {
        Arc::new(Negate { fails_at, panics_at })
    }

    #[test]
    fn every_tile_runs_once_in_order() {
        let mut heard = Heard::default();
        let answer = run(&row(), &[op(None, None)], &mut heard).unwrap();
        assert_eq!(answer.data(), [0.0, -1.0, -2.0, -3.0, -4.0, -5.0]);
        assert_eq!(heard.0, [(1, 3), (2, 3), (3, 3)]);
    }

    #[test]
    fn the_first_failure_ends_the_run_and_names_its_tile() {
        let mut heard = Heard::default();
        let error = run(&row(), &[op(Some(2), None)], &mut heard).unwrap_err();
        assert!(matches!(&error, ExecError::Tile { tile: 1, source } if source.to_string() == "a failure"), "{error}");
        assert_eq!(heard.0, [(1, 3)]);
        let error = run(&row(), &[op(None, Some(4))], &mut heard).unwrap_err();
        assert!(matches!(&error, ExecError::Panicked { tile: 2, message } if message.contains("a panic at Some(4)")), "{error}");
        let error = run(&Unreadable, &[op(None, None)], &mut heard).unwrap_err();
        assert!(matches!(error, ExecError::Source { tile: 0, .. }), "{error}");
    }

    #[test]
    fn one_device_exactly() {
        let mut heard = Heard::default();
        assert!(matches!(run(&row(), &[], &mut heard), Err(ExecError::NoDevice)));
        let two = [op(None, None), op(None, None)];
        assert!(matches!(run(&row(), &two, &mut heard), Err(ExecError::TooManyDevices { got: 2, .. })));
    }
}
