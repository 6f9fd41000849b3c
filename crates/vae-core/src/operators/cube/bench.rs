//! Timed single kernels: a JSON line each. Run with `--ignored --nocapture` on the device of the tests, in the dtype that `TILEVAE_TEST_DTYPE` names (bf16), with
//! sides divided by `TILEVAE_TEST_SHARE`.

#![expect(clippy::print_stdout, reason = "it prints its results")]

use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, FloatDType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use serde_json::json;

use super::Cube;
use super::convolution::{KERNELS, Kernel, Problem};
use super::feature_map::{FeatureMap, copy_frames};
use super::tensor::{View, dense, primitive};
use crate::operators::{Activation, GroupNormParameters, Operators};
use crate::{Context, testing};

/// Name, `[t, h, w]`, channels in and out, and kernel.
type Shape = (&'static str, [usize; 3], [usize; 2], [usize; 3]);

/// Those of SDXL at 1024x1024, and of Wan 2.1 at 480x832 with four frames at once.
const CONVOLUTIONS: [Shape; 14] = [
    ("sdxl conv_in", [1, 128, 128], [4, 512], [1, 3, 3]),
    ("sdxl mid", [1, 128, 128], [512, 512], [1, 3, 3]),
    ("sdxl attention", [1, 128, 128], [512, 512], [1, 1, 1]),
    ("sdxl up 1", [1, 256, 256], [512, 512], [1, 3, 3]),
    ("sdxl up 2 first", [1, 512, 512], [512, 256], [1, 3, 3]),
    ("sdxl up 2", [1, 512, 512], [256, 256], [1, 3, 3]),
    ("sdxl up 3 first", [1, 1024, 1024], [256, 128], [1, 3, 3]),
    ("sdxl up 3", [1, 1024, 1024], [128, 128], [1, 3, 3]),
    ("sdxl conv_out", [1, 1024, 1024], [128, 3], [1, 3, 3]),
    ("wan mid", [1, 60, 104], [384, 384], [3, 3, 3]),
    ("wan up 0", [2, 120, 208], [384, 384], [3, 3, 3]),
    ("wan up 2", [4, 240, 416], [192, 192], [3, 3, 3]),
    ("wan up 3", [4, 480, 832], [96, 96], [3, 3, 3]),
    ("wan conv_out", [4, 480, 832], [96, 3], [3, 3, 3]),
];

/// Seconds that a kernel is timed for.
const SECONDS: f64 = 0.1;

fn dtype() -> DType {
    match std::env::var("TILEVAE_TEST_DTYPE").as_deref() {
        Ok("f32") => DType::F32,
        Ok("f16") => DType::F16,
        _ => DType::BF16,
    }
}

fn share() -> usize {
    std::env::var("TILEVAE_TEST_SHARE").map_or(1, |share| share.parse().expect("a number"))
}

fn print_bandwidth(what: &str, (seconds, bytes): (f64, usize)) {
    println!("\n{}", json!({"what": what, "seconds": seconds, "gigabytes_per_second": bytes as f64 / seconds / 1e9}));
}

fn print_candidates(name: &str, [t, h, w]: [usize; 3], channels: [usize; 2], kernel: [usize; 3]) {
    let size = [t, h.div_ceil(share()), w / share()];
    let products: usize = size.iter().chain(&channels).chain(&kernel).product();
    convolution(&testing::device(), dtype(), size, channels, kernel, |kernel, result| {
        let rate = result.as_ref().ok().map(|seconds| 2.0 * products as f64 / seconds / 1e12);
        let row =
            json!({"what": name, "kernel": kernel.to_string(), "seconds": result.as_ref().ok(), "teraflops": rate, "error": result.as_ref().err()});
        println!("\n{row}");
    });
}

#[test]
#[ignore = "measures"]
fn bandwidth() {
    print_bandwidth("copy", copy(&testing::device(), dtype(), [4096 / share(), 4096, 32]));
}

#[test]
#[ignore = "measures"]
fn matrix_rate() {
    print_candidates("8192x8192 by 8192", [1, 1, 8192], [8192 / share(); 2], [1, 1, 1]);
}

#[test]
#[ignore = "measures"]
fn convolutions() {
    for (name, size, channels, kernel) in CONVOLUTIONS {
        print_candidates(name, size, channels, kernel);
    }
}

#[test]
#[ignore = "measures"]
fn norms() {
    let (device, share) = (testing::device(), share());
    for (name, [h, w, c]) in [("group norm 512", [256, 256, 512]), ("group norm 256", [512, 512, 256]), ("group norm 128", [1024, 1024, 128])] {
        print_bandwidth(name, group_norm(&device, dtype(), [h / share, w / share, c]));
    }
    for (name, [t, h, w, c]) in [("RMS norm 384", [2, 120, 208, 384]), ("RMS norm 96", [4, 480, 832, 96])] {
        print_bandwidth(name, rms_norm(&device, dtype(), [t, h / share, w / share, c]));
    }
}

/// Seconds of one call: the least of a few rounds, each of as many calls as take a quarter of [`SECONDS`].
fn seconds_of(device: &Device, mut work: impl FnMut()) -> f64 {
    let mut time = |calls: usize| {
        device.sync().expect("a device that works");
        let begun = Instant::now();
        (0..calls).for_each(|_| work());
        device.sync().expect("a device that works");
        begun.elapsed().as_secs_f64() / calls as f64
    };
    time(1);
    let calls = (SECONDS / 4.0 / time(2).max(1e-7)).clamp(1.0, 1000.0) as usize;
    (0..3).map(|_| time(calls)).fold(f64::INFINITY, f64::min)
}

/// Not zeros, with which a GPU takes less power and is faster.
fn random(device: &Device, shape: [usize; 5], dtype: DType) -> CubeTensor {
    dense(primitive(Tensor::<5>::random(shape, Distribution::Default, device).cast(FloatDType::from(dtype))))
}

/// A copy of `[1, 1, h, w, c]` to itself elsewhere: seconds, and the bytes that are read and written.
fn copy(device: &Device, dtype: DType, [h, w, c]: [usize; 3]) -> (f64, usize) {
    let [x, y] = [0, 1].map(|_| random(device, [1, 1, h, w, c], dtype));
    (seconds_of(device, || copy_frames(&x, [0, 1], &y, [0, 1], 1)), 2 * h * w * c * dtype.size())
}

/// Tells of every kernel for a convolution of `[1, t, h, w, in]` to `[1, t, h, w, out]`, whose input has no frames before, its name, and its seconds or why it does
/// not run.
fn convolution(
    device: &Device,
    dtype: DType,
    [t, h, w]: [usize; 3],
    [channels_in, channels_out]: [usize; 2],
    kernel: [usize; 3],
    mut tell: impl FnMut(Kernel, Result<f64, String>),
) {
    let [kernel_t, kernel_h, kernel_w] = kernel;
    let problem = Problem {
        x: View::new(random(device, [1, t, h, w, channels_in], dtype)),
        weight: View::new(random(device, [channels_out, kernel_t, kernel_h, kernel_w, channels_in], dtype)),
        bias: Some(dense(primitive(Tensor::<1>::zeros([channels_out], device).cast(FloatDType::from(dtype))))),
        y: View::new(random(device, [1, t, h, w, channels_out], dtype)),
        stride: [1; 3],
        padding: [kernel_t - 1, kernel_h / 2, kernel_w / 2],
    }
    .with_frames_as_items();
    let time =
        |run: &dyn Fn() -> Result<(), String>| tiling::catch(|| run().map(|()| seconds_of(device, || run().expect("as before")))).unwrap_or_else(Err);
    for kernel in KERNELS {
        tell(kernel, time(&|| problem.clone().run_by(kernel)));
    }
}

/// A group norm with 32 groups and SiLU: seconds, and the bytes that cannot but be read and written.
fn group_norm(device: &Device, dtype: DType, [h, w, c]: [usize; 3]) -> (f64, usize) {
    let parameter = || Tensor::<1>::zeros([c], device).cast(FloatDType::from(dtype));
    let norm = GroupNormParameters { groups: 32, epsilon: 1e-6, weight: parameter(), bias: parameter() };
    let (x, context) = (FeatureMap::from(random(device, [1, 1, h, w, c], dtype)), Context::default());
    let run = || drop(Cube.group_norm(x.clone(), &norm, Activation::Silu, &context));
    (seconds_of(device, run), 3 * h * w * c * dtype.size())
}

/// An RMS norm with SiLU, behind two earlier frames: seconds, and the bytes that cannot but be read and written.
fn rms_norm(device: &Device, dtype: DType, [t, h, w, c]: [usize; 4]) -> (f64, usize) {
    let gamma = Tensor::<1>::zeros([c], device).cast(FloatDType::from(dtype));
    let context = Context::default();
    let [x, earlier] = [t, 2].map(|frames| FeatureMap::from(random(device, [1, frames, h, w, c], dtype)));
    let run = || drop(Cube.concat_frames(earlier.clone(), Cube.rms_norm(x.clone(), gamma.clone(), Activation::Silu, &context), &context));
    (seconds_of(device, run), 2 * (t + 2) * h * w * c * dtype.size())
}
