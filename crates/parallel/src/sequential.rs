use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use tiling::{Block, Emit, TileInput, TileOp};

use crate::{Done, ExecError, Executor, Job, Progress, RunStats};

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
        let frames = job.plan.output[0];
        let mut done = Done { of_tiles: job.plan.tiles.len(), of_frames: job.plan.tiles.len() * frames, ..Done::default() };
        for planned in &job.plan.tiles {
            let compositor = &mut job.compositor;
            let mut emit = |piece: Block| {
                done.frames += piece.shape()[2];
                compositor.push(planned.index, piece)?;
                progress.advanced(done);
                Ok(())
            };
            run_tile(op.as_ref(), planned.index, &TileInput::new(job.source, planned.input), &mut emit)?;
            done.tiles += 1;
            progress.advanced(done);
        }
        job.compositor.finish().map_err(ExecError::Unfinished)?;
        Ok(RunStats { tiles: done.tiles, frames, elapsed: start.elapsed() })
    }
}

/// Runs one tile; a panic of the operation, which is how Burn reports most errors, becomes an error.
fn run_tile(op: &dyn TileOp, tile: usize, input: &TileInput<'_>, emit: &mut Emit<'_>) -> Result<(), ExecError> {
    match catch_unwind(AssertUnwindSafe(|| op.run(input, emit))) {
        Ok(answer) => answer.map_err(|error| ExecError::of_tile(tile, error)),
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

    use tiling::{BoxError, Canvas, Cascade, Compositor, Geometry, Region, Scale, Sink, TilePlan, TileSource, Uniform};

    use super::*;

    /// Negates, frame by frame, except for the tile that starts at a chosen place.
    struct Negate {
        fails_at: Option<usize>,
        panics_at: Option<usize>,
    }

    impl TileOp for Negate {
        fn geometry(&self) -> Geometry {
            Geometry::image(Scale::Up(1))
        }

        fn run(&self, tile: &TileInput<'_>, emit: &mut Emit<'_>) -> Result<(), BoxError> {
            for frame in 0..tile.shape()[2] {
                let mut piece = tile.frames(frame..frame + 1)?;
                let place = Some(piece.data()[0] as usize);
                assert!(place != self.panics_at, "a panic at {place:?}");
                if place == self.fails_at {
                    return Err("a failure".into());
                }
                piece.data_mut().iter_mut().for_each(|value| *value = -*value);
                emit(piece)?;
            }
            Ok(())
        }
    }

    struct Unreadable;

    impl TileSource for Unreadable {
        fn shape(&self) -> [usize; 5] {
            [1, 1, 2, 1, 6]
        }

        fn read(&self, _: &Region) -> Result<Block, BoxError> {
            Err("gone".into())
        }
    }

    struct Full;

    impl Sink for Full {
        fn take(&mut self, _: [usize; 3], _: [usize; 3], _: Block) -> Result<(), BoxError> {
            Err("full".into())
        }
    }

    /// Tiles and frames at each step.
    #[derive(Default)]
    struct Heard(Vec<[usize; 2]>);

    impl Progress for Heard {
        fn advanced(&mut self, done: Done) {
            assert_eq!((done.of_tiles, done.of_frames), (3, 6));
            self.0.push([done.tiles, done.frames]);
        }
    }

    fn run(source: &dyn TileSource, ops: &[Arc<dyn TileOp>], heard: &mut Heard) -> Result<Block, ExecError> {
        let mut canvas = Canvas::default();
        run_to(source, ops, heard, &mut canvas)?;
        Ok(canvas.into_block())
    }

    fn run_to(source: &dyn TileSource, ops: &[Arc<dyn TileOp>], heard: &mut Heard, sink: &mut dyn Sink) -> Result<(), ExecError> {
        let plan = TilePlan::new(&Uniform::with_tile([1, 2], [0, 0]), Geometry::image(Scale::Up(1)), [2, 1, 6]).unwrap();
        let compositor = Compositor::new(&plan, &Cascade, sink);
        let stats = Sequential.run(Job { plan: &plan, source, ops, compositor }, heard)?;
        assert_eq!((stats.tiles, stats.frames), (3, 2));
        Ok(())
    }

    /// Two frames of one row.
    fn row() -> Block {
        Block::from_fn([1, 1, 2, 1, 6], |[_, _, t, _, x]| (10 * t + x) as f32)
    }

    fn op(fails_at: Option<usize>, panics_at: Option<usize>) -> Arc<dyn TileOp> {
        Arc::new(Negate { fails_at, panics_at })
    }

    #[test]
    fn every_tile_runs_once_in_order() {
        let mut heard = Heard::default();
        let answer = run(&row(), &[op(None, None)], &mut heard).unwrap();
        assert_eq!(answer.data(), [0.0, -1.0, -2.0, -3.0, -4.0, -5.0, -10.0, -11.0, -12.0, -13.0, -14.0, -15.0]);
        assert_eq!(heard.0, [[0, 1], [0, 2], [1, 2], [1, 3], [1, 4], [2, 4], [2, 5], [2, 6], [3, 6]]);
    }

    #[test]
    fn the_first_failure_ends_the_run_and_names_its_tile() {
        let mut heard = Heard::default();
        let error = run(&row(), &[op(Some(2), None)], &mut heard).unwrap_err();
        assert!(matches!(&error, ExecError::Tile { tile: 1, source } if source.to_string() == "a failure"), "{error}");
        assert_eq!(heard.0.last(), Some(&[1, 2]));
        let error = run(&row(), &[op(None, Some(4))], &mut heard).unwrap_err();
        assert!(matches!(&error, ExecError::Panicked { tile: 2, message } if message.contains("a panic at Some(4)")), "{error}");
        let error = run(&Unreadable, &[op(None, None)], &mut heard).unwrap_err();
        assert!(matches!(error, ExecError::Source { tile: 0, .. }), "{error}");
        let error = run_to(&row(), &[op(None, None)], &mut heard, &mut Full).unwrap_err();
        assert!(matches!(error, ExecError::Composite { tile: 0, source: tiling::CompositeError::Sink(_) }), "{error}");
    }

    #[test]
    fn one_device_exactly() {
        let mut heard = Heard::default();
        assert!(matches!(run(&row(), &[], &mut heard), Err(ExecError::NoDevice)));
        let two = [op(None, None), op(None, None)];
        assert!(matches!(run(&row(), &two, &mut heard), Err(ExecError::TooManyDevices { got: 2, .. })));
    }
}
