use std::time::Instant;

use tiling::{Block, TileInput};

use crate::executor::{Ended, run_tile};
use crate::{Done, ExecError, Executor, Job, Progress, RunStats, WorkerStats};

/// One tile after the other, in raster order, on the calling thread and one device.
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

    fn run(&self, mut job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        self.check_workers(job.workers.len())?;
        let worker = &job.workers[0];
        let start = Instant::now();
        let frames = job.plan.output[0];
        let mut done = Done { of_tiles: job.plan.tiles.len(), of_frames: job.plan.tiles.len() * frames, ..Done::default() };
        for planned in &job.plan.tiles {
            if job.stop.is_stopped() {
                return Err(ExecError::Stopped);
            }
            let (compositor, stop) = (&mut job.compositor, job.stop);
            let mut emit = |piece: Block| {
                if stop.is_stopped() {
                    return Err(Ended.into());
                }
                done.frames += piece.shape()[2];
                compositor.push(planned.index, piece)?;
                progress.advanced(done);
                Ok(())
            };
            run_tile(worker.op.as_ref(), planned.index, &TileInput::new(job.source, planned.input), &mut emit)?;
            done.tiles += 1;
            progress.advanced(done);
        }
        job.compositor.finish().map_err(ExecError::Unfinished)?;
        let elapsed = start.elapsed();
        let stats = WorkerStats { tiles: done.tiles, busy: elapsed, ..WorkerStats::new(&worker.name) };
        Ok(RunStats { tiles: done.tiles, frames, elapsed, workers: vec![stats] })
    }
}
