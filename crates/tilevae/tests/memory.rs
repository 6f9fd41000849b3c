//! Peak memory of runs on the CPU against what plans predict, and what is held after them, counted by the allocator: a process of its own, with nothing
//! beside it.

#![cfg(all(feature = "flex", feature = "kl", feature = "wan"))]

#[path = "it/hostile/counting.rs"]
mod counting;

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use counting::{LIVE, peak_of};
use tilevae::tiling::FrameScale;
use tilevae::{Config, Direction, HostTensor, Pipeline, RunOptions, RunPlan};

/// The tests run one after the other: the allocator counts for the process.
static ALONE: Mutex<()> = Mutex::new(());

/// Bytes of each worker that plans do not count: the transformed weights of one layer (2.3 MiB in the largest of these models) and buffers of threads.
const FIXED: usize = 5 << 20;

/// How many times the measured peak a prediction for one worker may be. The CPU kernels normalise while they read, where other backends hold a normalised copy, and
/// what they keep of earlier frames shares memory with a layer's input.
const FACTOR: f64 = 2.0;

/// Bytes that may be held after a run besides weights: queues of thread pools.
const SMALL: usize = 256 << 10;

/// Bytes at the peak of a run whose input is in memory. For clips, strips and waiting answers lie in a scratch file.
fn predicted(plan: &RunPlan) -> usize {
    let bytes = plan.bytes;
    let blending = if plan.tiles.geometry.frames == FrameScale::Same { bytes.strips + bytes.waiting } else { 0 };
    bytes.output + blending + plan.workers * bytes.largest_tile
}

fn noise(shape: [usize; 5]) -> HostTensor {
    HostTensor::from_fn(shape, |[_, c, t, y, x]| ((c * 31 + t * 7 + y * 17 + x * 3) % 23) as f32 / 11.0 - 1.0)
}

/// Bytes in use, once threads that end have freed what they held: waits for no more than `expected` for a second at most.
fn held(expected: usize) -> usize {
    let start = Instant::now();
    while LIVE.load(Relaxed) > expected && start.elapsed() < Duration::from_secs(1) {
        std::thread::sleep(Duration::from_millis(5));
    }
    LIVE.load(Relaxed)
}

/// Decodes and encodes three times each, and says what is wrong.
fn faults(model: &str, [height, width]: [usize; 2], latent_frames: usize, settings: &str) -> Vec<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let config = Config::from_toml(&format!("model.path = \"{root}/{model}\"\n{settings}")).unwrap();
    let pipeline = Pipeline::load(&config).unwrap();
    let spec = pipeline.spec();
    let ratio = spec.spatial_ratio;
    let latents = noise([1, spec.latent_channels, latent_frames, height, width]);
    let samples = noise([1, spec.input_channels, 1 + (latent_frames - 1) * spec.frames.ratio(), height * ratio, width * ratio]);
    let mut faults = Vec::new();
    for (direction, input) in [(Direction::Decode, &latents), (Direction::Encode, &samples)] {
        let plan = pipeline.plan(direction, input.shape()).unwrap();
        let (predicted, workers, before) = (predicted(&plan), plan.workers, LIVE.load(Relaxed));
        for run in 1..=3 {
            let ((), peak) = peak_of(usize::MAX / 2, || match direction {
                Direction::Decode => drop(pipeline.decode(input, RunOptions::default()).unwrap()),
                Direction::Encode => drop(pipeline.encode(input, RunOptions::default()).unwrap()),
            });
            let kept = held(before + SMALL).saturating_sub(before);
            let text = format!(
                "{model}, {latent_frames} latent frames, {settings:?}, {direction:?}, run {run}: {peak} bytes at the peak, {predicted} predicted, {kept} kept"
            );
            // Several workers need not be at their peaks at once.
            let is_too_high = workers == 1 && predicted as f64 > FACTOR * peak as f64;
            if peak > predicted + workers * FIXED || is_too_high || kept > SMALL {
                faults.push(text);
            }
        }
    }
    faults
}

#[test]
fn plans_predict_the_peak_and_runs_keep_nothing() {
    const UNTILED: &str = "tiling.kind = \"off\"";
    const TILED: &str = "tiling = { kind = \"diffusers\", tile_px = 256 }";
    const TWO_WORKERS: &str = "tiling = { kind = \"diffusers\", tile_px = 256 }\nexecutor.kind = \"pipelined\"";
    let [flux, sd] = ["crates/vae-kl/tests/data/flux", "crates/vae-kl/tests/data/sd"];
    let [wan21, wan22] = ["crates/vae-wan/tests/data/wan21", "crates/vae-wan/tests/data/wan22"];
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cases = [
        ("models/demo-kl", [40, 70], 1, UNTILED),
        ("models/demo-kl", [32, 60], 1, TILED),
        ("models/demo-kl", [32, 60], 1, TWO_WORKERS),
        (flux, [40, 70], 1, UNTILED),
        (sd, [32, 60], 1, TILED),
        ("models/demo-wan", [20, 32], 1, UNTILED),
        ("models/demo-wan", [20, 24], 3, UNTILED),
        ("models/demo-wan", [20, 48], 2, TILED),
        ("models/demo-wan", [20, 48], 2, TWO_WORKERS),
        (wan21, [20, 24], 3, UNTILED),
        (wan22, [16, 24], 1, UNTILED),
        (wan22, [16, 16], 3, UNTILED),
        (wan22, [16, 40], 2, TILED),
    ];
    let faults: Vec<String> = cases.into_iter().flat_map(|(model, size, frames, settings)| faults(model, size, frames, settings)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Takes parts of an output and keeps none.
struct Nowhere;

impl tilevae::tiling::Sink for Nowhere {
    fn take(&mut self, _: [usize; 3], _: [usize; 3], _: HostTensor) -> Result<(), tilevae::tiling::BoxError> {
        Ok(())
    }
}

/// Bytes of a budget that are not the allocator's: the program, and stacks.
const PROGRAM: u64 = 20 << 20;

/// Runs within shares of the least budget for the whole, and says what is wrong. Counts the runs that were tiled, and those with a scratch file.
fn over_budget(model: &str, size: [usize; 2], latent_frames: usize, settings: &str, counts: &mut [usize; 2]) -> Vec<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let mut faults = Vec::new();
    let load = |mib: u64| {
        let text = format!("model.path = \"{root}/{model}\"\ntiling = {{ kind = \"seamless\", memory_mib = {mib} }}\n{settings}");
        Pipeline::load(&Config::from_toml(&text).unwrap()).unwrap()
    };
    for direction in [Direction::Decode, Direction::Encode] {
        let shape = |pipeline: &Pipeline| {
            let spec = pipeline.spec();
            let latents = [1, spec.latent_channels, latent_frames, size[0], size[1]];
            let [frames, height, width] = spec.decode_geometry().output([latent_frames, size[0], size[1]]);
            if direction == Direction::Decode { latents } else { [1, spec.input_channels, frames, height, width] }
        };
        let pipeline = load(1 << 20);
        let whole = pipeline.plan(direction, shape(&pipeline)).unwrap().peak_bytes.unwrap() >> 20;
        drop(pipeline);
        for share in [1.0, 0.8, 0.65, 0.5] {
            let budget = (whole as f64 * share) as u64 + 1;
            let pipeline = load(budget);
            let Ok(plan) = pipeline.plan(direction, shape(&pipeline)) else { continue };
            let input = noise(shape(&pipeline));
            let before = LIVE.load(Relaxed);
            let ((), peak) = peak_of(usize::MAX / 2, || drop(pipeline.run(&plan, &input, &mut Nowhere, RunOptions::default()).unwrap()));
            let memory = plan.memory.unwrap();
            counts[0] += usize::from(!plan.stages.is_empty());
            counts[1] += usize::from(memory.scratch > 0);
            let used = (before + peak) as u64 + PROGRAM;
            if used > budget << 20 || memory.peak > budget << 20 {
                faults.push(format!("{model}, {direction:?}, {budget} MiB: {} MiB at the peak, {memory:?}", used >> 20));
            }
        }
    }
    faults
}

#[test]
fn seamless_runs_stay_within_their_budgets() {
    const ONE: &str = "";
    const TWO: &str = "executor.kind = \"multi-device\"\ndevices.cpu.workers = 2";
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut counts = [0, 0];
    let cases = [
        ("models/demo-kl", [96, 112], 1, ONE),
        ("models/demo-kl", [112, 96], 1, TWO),
        ("models/demo-wan", [40, 56], 2, ONE),
        ("models/demo-wan", [48, 64], 1, TWO),
        ("crates/vae-wan/tests/data/wan22", [40, 40], 2, ONE),
        ("crates/vae-kl/tests/data/sd", [96, 96], 1, ONE),
        ("crates/vae-kl/tests/data/flux", [40, 40], 1, "model.dtype = \"bf16\""),
        ("models/demo-wan", [32, 40], 3, "model.frames_per_chunk = 2"),
    ];
    let faults: Vec<String> =
        cases.into_iter().flat_map(|(model, size, frames, settings)| over_budget(model, size, frames, settings, &mut counts)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(counts[0] >= 12 && counts[1] >= 6, "{counts:?} runs were tiled, and had a scratch file");
}
