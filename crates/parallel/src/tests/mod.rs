//! Every executor against an operation whose tiles can be slow, fail, panic or answer with values that are not finite.

mod executors;
mod faults;
mod outside;
mod recovery;
mod sharing;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tiling::{
    BoxError, Canvas, Cascade, Compositor, DevicePiece, Geometry, HostTensor, Region, Scale, Sink, TileOp, TilePlan, TileRun, TileSource, Uniform,
};

use crate::testing::{Behavior, Negate, Scripted, within};
use crate::{Done, Event, ExecError, Executor, Job, MultiDevice, Progress, RunStats, Sequential, Stage, Stop, Worker};

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn scripted(name: &str, script: impl Fn(usize) -> Behavior + Send + Sync + 'static) -> Worker {
    Worker::new(name, Arc::new(Scripted::new(Arc::new(Negate), script)))
}

fn good(name: &str) -> Worker {
    Worker::new(name, Arc::new(Negate))
}

/// Two frames.
fn clip() -> HostTensor {
    HostTensor::from_fn([1, 2, 2, 11, 17], |[_, c, t, y, x]| ((c * 7 + t * 5 + y * 3 + x) as f32).sin())
}

fn plan() -> TilePlan {
    TilePlan::new(&Uniform::with_tile([4, 5], [1, 2]), Geometry::image(Scale::Up(1)), clip().extent()).unwrap()
}

/// All events. Their counts must grow.
#[derive(Default)]
struct Log {
    done: Done,
    events: Vec<Event>,
}

impl Progress for Log {
    fn on_event(&mut self, event: &Event) {
        if let Event::Advanced(done) | Event::TileFinished { done, .. } = *event {
            assert!(
                done.tiles >= self.done.tiles
                    && done.tile_frames >= self.done.tile_frames
                    && done.output_frames >= self.done.output_frames
                    && done.tiles <= done.of_tiles
            );
            self.done = done;
        }
        self.events.push(event.clone());
    }
}

fn run_to(executor: &dyn Executor, source: &dyn TileSource, workers: &[Worker], sink: &mut dyn Sink) -> Result<(RunStats, Vec<Event>), ExecError> {
    let plan = plan();
    let mut log = Log::default();
    let compositor = Compositor::new(&plan, &Cascade, sink);
    let stats = executor.run(Job { plan: &plan, source, workers, compositor, stop: &Stop::default() }, &mut log)?;
    let [tiles, frames] = [plan.tiles.len(), 2 * plan.tiles.len()];
    let all = Done { tiles, of_tiles: tiles, output_frames: 2, of_output_frames: 2, tile_frames: frames, of_tile_frames: frames };
    assert_eq!((log.done, stats.tiles, stats.frames), (all, plan.tiles.len(), 2));
    assert_eq!(stats.workers.iter().map(|worker| worker.tiles).sum::<usize>(), plan.tiles.len());
    Ok((stats, log.events))
}

/// Nothing may hang: a run that has not ended in time fails its test.
fn run(executor: &(impl Executor + Clone + 'static), workers: &[Worker]) -> Result<(HostTensor, RunStats), ExecError> {
    let (executor, workers) = (executor.clone(), workers.to_vec());
    within(move || {
        let mut canvas = Canvas::default();
        let (stats, _) = run_to(&executor, &clip(), &workers, &mut canvas)?;
        Ok((canvas.into_tensor(), stats))
    })
}

/// The executors that use many workers: one tile at a time, and with one and three tiles in flight.
fn many(change: impl Fn(&mut MultiDevice)) -> [MultiDevice; 3] {
    let mut executor = MultiDevice::default();
    change(&mut executor);
    let pipelined = |in_flight| MultiDevice { in_flight: NonZeroUsize::new(in_flight), ..executor };
    [executor, pipelined(1), pipelined(3)]
}

fn count(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

fn negative() -> HostTensor {
    let mut negative = clip();
    negative.data_mut().iter_mut().for_each(|value| *value = -*value);
    negative
}

fn close(a: &HostTensor, b: &HostTensor) -> bool {
    a.shape() == b.shape() && a.data().iter().zip(b.data()).all(|(a, b)| (a - b).abs() < 1e-6)
}

fn right_answer() -> HostTensor {
    run(&Sequential, &[good("a")]).unwrap().0
}
