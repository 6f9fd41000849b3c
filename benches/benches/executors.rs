//! What executors cost for each tile when the operation costs nothing, and how well they keep simulated devices busy.

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group};
use parallel::testing::{Behavior, Scripted};
use parallel::{Executor, Job, MultiDevice, RunStats, Sequential, Stop, Worker};
use tilevae_benches::{Free, Nowhere};
use tiling::{HostTensor, Cascade, Compositor, Geometry, Scale, TilePlan, Uniform};

/// A grid of so many tiles, each of few px.
fn plan(rows: usize, columns: usize) -> (TilePlan, HostTensor) {
    let source = HostTensor::zeros([1, 1, 1, 3 * rows + 1, 3 * columns + 1]);
    let plan = TilePlan::new(&Uniform::with_tile([4, 4], [1, 1]), Geometry::image(Scale::Up(1)), source.extent()).expect("a grid");
    assert_eq!(plan.tiles.len(), rows * columns);
    (plan, source)
}

fn run(executor: &dyn Executor, plan: &TilePlan, source: &HostTensor, workers: &[Worker]) -> RunStats {
    let mut sink = Nowhere::default();
    let compositor = Compositor::new(plan, &Cascade, &mut sink);
    executor.run(Job { plan, source, workers, compositor, stop: &Stop::default() }, &mut ()).expect("nothing fails")
}

fn overhead(criterion: &mut Criterion) {
    let (plan, source) = plan(40, 50);
    let mut group = criterion.benchmark_group("tiles that cost nothing");
    group.throughput(Throughput::Elements(plan.tiles.len() as u64)).sample_size(20);
    let executors: [(&str, &dyn Executor, usize); 5] = [
        ("sequential", &Sequential, 1),
        ("multi-device, 1 worker", &MultiDevice::default(), 1),
        ("multi-device, 4 workers", &MultiDevice::default(), 4),
        ("multi-device, 16 workers", &MultiDevice::default(), 16),
        ("pipelined, 4 workers", &MultiDevice::pipelined(), 4),
    ];
    for (name, executor, count) in executors {
        let workers: Vec<Worker> = (0..count).map(|worker| Worker::new(worker.to_string(), Arc::new(Free))).collect();
        group.bench_function(name, |bencher| bencher.iter(|| run(executor, &plan, &source, &workers)));
    }
    group.finish();
}

/// Devices that take a set time for a tile: the length of a run against the shortest there is.
fn simulated_devices() {
    let time = |milliseconds: u64, speed: u64| Behavior::AnswerAfter(Duration::from_micros(milliseconds * 1000 / speed));
    let workers = |speeds: &[u64]| -> Vec<Worker> {
        let worker = |&speed: &u64| Worker::new(format!("speed {speed}"), Arc::new(Scripted::new(Arc::new(Free), move |_| time(20, speed))));
        speeds.iter().map(worker).collect()
    };
    for (name, speeds) in [("4 equal devices", vec![1; 4]), ("16 equal devices", vec![1; 16]), ("speeds 1, 2 and 4", vec![1, 2, 4])] {
        let (plan, source) = plan(20, 20);
        // Each device takes whole tiles: the best is the least time in which some division of them is done.
        let finished_by = |time: f64| speeds.iter().map(|&speed| (time * speed as f64 / 0.02 + 1e-9).floor()).sum::<f64>() >= plan.tiles.len() as f64;
        let best = (1..).map(|step| f64::from(step) * 0.005).find(|&time| finished_by(time)).expect("some time is enough");
        for executor in [&MultiDevice::default() as &dyn Executor, &MultiDevice::pipelined()] {
            let took = run(executor, &plan, &source, &workers(&speeds)).elapsed.as_secs_f64();
            println!("{name}, {}: {took:.3} s for 400 tiles, the best is {best:.3} s: {:.1} %", executor.name(), 100.0 * best / took);
        }
    }
}

criterion_group!(benches, overhead);

fn main() {
    simulated_devices();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
