//! Timed single kernels, for `examples/gpu_bench.rs`.

#![expect(clippy::missing_panics_doc, reason = "it panics where a device fails")]

use std::time::Instant;

use burn::tensor::{DType, Device, FloatDType, Tensor};
use burn_cubecl::tensor::CubeTensor;
use cubek::convolution::Strategy;

use super::convolution::{CANDIDATES, Problem};
use super::tensor::{View, dense};
use super::{Cube, Map, copy_frames, primitive};
use crate::Context;
use crate::operators::{Activation, GroupNormParameters, Operators};

/// Seconds of one call: the least of a few rounds, each of as many calls as take `seconds` / 4.
pub fn seconds_of(device: &Device, seconds: f64, mut work: impl FnMut()) -> f64 {
    let mut time = |calls: usize| {
        device.sync().expect("a device that works");
        let begun = Instant::now();
        (0..calls).for_each(|_| work());
        device.sync().expect("a device that works");
        begun.elapsed().as_secs_f64() / calls as f64
    };
    time(1);
    let calls = (seconds / 4.0 / time(2).max(1e-7)).clamp(1.0, 1000.0) as usize;
    (0..3).map(|_| time(calls)).fold(f64::INFINITY, f64::min)
}

fn zeros(device: &Device, shape: [usize; 5], dtype: DType) -> CubeTensor {
    primitive(Tensor::<5>::zeros(shape, device).cast(FloatDType::from(dtype)))
}

/// A copy of `[1, 1, h, w, c]` to itself elsewhere: seconds, and the bytes that are read and written.
pub fn copy(device: &Device, dtype: DType, [h, w, c]: [usize; 3], seconds: f64) -> (f64, usize) {
    let [x, y] = [0, 1].map(|_| zeros(device, [1, 1, h, w, c], dtype));
    (seconds_of(device, seconds, || copy_frames(&x, [0, 1], &y, [0, 1], 1)), 2 * h * w * c * dtype.size())
}

/// Every kernel for a convolution of `[1, t, h, w, in]` to `[1, t, h, w, out]`, whose input has no frames before: its name, and its seconds or why it does not run.
pub fn convolution(
    device: &Device,
    dtype: DType,
    [t, h, w]: [usize; 3],
    [channels_in, channels_out]: [usize; 2],
    kernel: [usize; 3],
    seconds: f64,
) -> Vec<(String, Result<f64, String>)> {
    let [kernel_t, kernel_h, kernel_w] = kernel;
    let problem = Problem {
        x: View::new(zeros(device, [1, t, h, w, channels_in], dtype)),
        weight: View::new(zeros(device, [channels_out, kernel_t, kernel_h, kernel_w, channels_in], dtype)),
        bias: Some(dense(primitive(Tensor::<1>::zeros([channels_out], device).cast(FloatDType::from(dtype))))),
        y: View::new(zeros(device, [1, t, h, w, channels_out], dtype)),
        stride: [1; 3],
        padding: [kernel_t - 1, kernel_h / 2, kernel_w / 2],
    }
    .with_frames_as_items();
    let time = |run: &dyn Fn() -> Result<(), String>| {
        tiling::catch(|| run().map(|()| seconds_of(device, seconds, || run().expect("as before")))).unwrap_or_else(Err)
    };
    let matrices = CANDIDATES.iter().map(|&(algorithm, tile_kind)| {
        let strategy = Strategy::Inferred { algorithm, tile_kind };
        (strategy.to_string(), time(&|| problem.clone().multiply_matrices(&strategy)))
    });
    let multiply = || {
        problem.clone().multiply(None);
        Ok(())
    };
    matrices.chain([("multiply".to_owned(), time(&multiply))]).collect()
}

/// A group norm with 32 groups and SiLU: seconds, and the bytes that cannot but be read and written.
pub fn group_norm(device: &Device, dtype: DType, [h, w, c]: [usize; 3], seconds: f64) -> (f64, usize) {
    let parameter = || Tensor::<1>::zeros([c], device).cast(FloatDType::from(dtype));
    let norm = GroupNormParameters { groups: 32, epsilon: 1e-6, weight: parameter(), bias: parameter() };
    let (x, context) = (Map::from(zeros(device, [1, 1, h, w, c], dtype)), Context::default());
    let run = || drop(Cube.group_norm(x.clone(), &norm, Activation::Silu, &context));
    (seconds_of(device, seconds, run), 3 * h * w * c * dtype.size())
}

/// An RMS norm with SiLU, behind two earlier frames: seconds, and the bytes that cannot but be read and written.
pub fn rms_norm(device: &Device, dtype: DType, [t, h, w, c]: [usize; 4], seconds: f64) -> (f64, usize) {
    let gamma = Tensor::<1>::zeros([c], device).cast(FloatDType::from(dtype));
    let context = Context::default();
    let [x, earlier] = [t, 2].map(|frames| Map::from(zeros(device, [1, frames, h, w, c], dtype)));
    let run = || drop(Cube.concat_frames(earlier.clone(), Cube.rms_norm(x.clone(), gamma.clone(), Activation::Silu, &context), &context));
    (seconds_of(device, seconds, run), 2 * (t + 2) * h * w * c * dtype.size())
}
