//! An executor that uses nothing but the public items of this crate, as one of another crate does; and all executors in the conformance tests.

use std::sync::mpsc::sync_channel;
use std::thread;

use tiling::TilePlan;

use crate::testing::executor_conformance;
use crate::{ExecError, Executor, Job, MultiDevice, Progress, RunStats, Sequential, TileUpdate};

/// Each worker has its share of the tiles, and tries a tile three times.
#[derive(Debug, Clone, Copy)]
struct RoundRobin;

enum Message {
    Update(TileUpdate),
    Failed(usize, usize, ExecError),
    Fatal(ExecError),
}

impl Executor for RoundRobin {
    fn name(&self) -> &'static str {
        "round-robin"
    }

    fn check_workers(&self, count: usize) -> Result<(), ExecError> {
        if count == 0 { Err(ExecError::NoDevice) } else { Ok(()) }
    }

    fn held_tiles(&self, plan: &TilePlan, _: usize) -> usize {
        plan.tiles.len()
    }

    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        self.check_workers(job.workers.len())?;
        let (runner, mut output) = job.begin(progress)?;
        let (tiles, workers) = (runner.plan().tiles.len(), runner.workers().len());
        thread::scope(|scope| {
            let (sender, messages) = sync_channel(workers);
            for worker in 0..workers {
                let (sender, runner) = (sender.clone(), runner.clone());
                scope.spawn(move || {
                    for tile in (worker..tiles).step_by(workers) {
                        for attempt in 0.. {
                            let send = |update| sender.send(Message::Update(update)).map_err(|_| ExecError::Stopped);
                            match runner.run_tile(worker, tile, send) {
                                Ok(()) => break,
                                Err(error) if attempt < 2 && !runner.stop().is_stopped() => {
                                    let _ = sender.send(Message::Failed(worker, tile, error));
                                }
                                Err(error) => return drop(sender.send(Message::Fatal(error))),
                            }
                        }
                    }
                });
            }
            drop(sender);
            for message in messages {
                match message {
                    Message::Update(update) => output.update(update)?,
                    Message::Failed(worker, tile, error) => output.tile_failed(worker, tile, &error)?,
                    Message::Fatal(error) => return Err(error),
                }
            }
            output.finish()
        })
    }
}

#[test]
fn an_executor_from_outside_conforms() {
    executor_conformance(RoundRobin);
}

#[test]
fn the_executors_of_this_crate_conform() {
    executor_conformance(Sequential);
    executor_conformance(MultiDevice::default());
    executor_conformance(MultiDevice::pipelined());
}
