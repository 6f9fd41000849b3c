//! Every part of a run may fail, panic or hang: the run ends in time, with an error that names the part, or with success.

mod answers;
mod hangs;
mod panics;
mod retries;

use std::thread::sleep;

use tiling::{BlendPolicy, Panicked, Party, catch};

use super::*;

/// The parts of a run. The default ones work.
struct Given {
    plan: TilePlan,
    source: Box<dyn TileSource + Send>,
    workers: Vec<Worker>,
    blend: Box<dyn BlendPolicy>,
    sink: Box<dyn Sink>,
    progress: Box<dyn Progress>,
    stop: Stop,
}

impl Default for Given {
    fn default() -> Self {
        let workers = vec![good("a")];
        Self {
            plan: plan(),
            source: Box::new(clip()),
            workers,
            blend: Box::new(Cascade),
            sink: Box::new(Canvas::default()),
            progress: Box::new(()),
            stop: Stop::default(),
        }
    }
}

/// A run that must neither hang nor unwind.
fn outcome(executor: &(impl Executor + Clone + 'static), given: Given) -> Result<RunStats, ExecError> {
    let executor = executor.clone();
    within(move || {
        let Given { plan, source, workers, blend, mut sink, mut progress, stop } = given;
        let compositor = Compositor::new(&plan, blend.as_ref(), sink.as_mut());
        let job = Job { plan: &plan, source: source.as_ref(), workers: &workers, compositor, stop: &stop };
        catch(|| executor.run(job, progress.as_mut())).expect("a run does not unwind")
    })
}

/// Hands each executor to a test, with numbers of workers.
fn each(test: impl Fn(&dyn Fn(Given) -> Result<RunStats, ExecError>, usize)) {
    test(&|given| outcome(&Sequential, given), 1);
    for batch in [1, 3] {
        for executor in many(|settings| settings.batch_tiles = count(batch)) {
            for count in [1, 3] {
                test(&|given| outcome(&executor, given), count);
            }
        }
    }
}

fn workers(count: usize) -> Vec<Worker> {
    (0..count).map(|i| good(&i.to_string())).collect()
}

/// A source that sleeps at each piece.
struct SlowToRead(Duration);

impl TileSource for SlowToRead {
    fn shape(&self) -> [usize; 5] {
        clip().shape()
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        sleep(self.0);
        Ok(clip().region(region))
    }
}
