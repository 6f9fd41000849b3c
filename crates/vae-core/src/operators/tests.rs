//! Every operation of every implementation that is compiled in, against [`Plain`] in f32 on the CPU.

use burn::tensor::{DType, Device, FloatDType, Tensor, TensorData};

use super::erased::AnyOperators;
use super::{Activation, Convolution, GroupNormParameters, Padding, Part, Plain, TemporalWindow};
use crate::layers::Features;
use crate::{Context, DeviceName, MathMode, Precision, backends};

/// Batch, channels, frames, height, width: odd sides, one px, one channel, channels that are no multiple of a vector's length, batch items and frames.
const SHAPES: [[usize; 5]; 7] =
    [[1, 1, 1, 1, 1], [1, 12, 1, 9, 22], [2, 12, 3, 8, 5], [1, 20, 2, 1, 7], [2, 16, 1, 3, 1], [1, 3, 4, 13, 6], [1, 32, 1, 30, 41]];

/// An implementation on a device, in a dtype.
struct Subject {
    name: String,
    operators: &'static dyn AnyOperators,
    device: Device,
    dtype: DType,
    math_mode: MathMode,
}

/// Those of the device that `TILEVAE_TEST_DEVICE` names, or of every device of this machine that opens, in every dtype that it computes in. Says what it skips.
#[expect(clippy::print_stdout, reason = "tests say what they skip")]
fn subjects() -> Vec<Subject> {
    let mut subjects = Vec::new();
    let named = std::env::var("TILEVAE_TEST_DEVICE").ok().map(|name| vec![name.parse().expect("the name of a device")]);
    let names: Vec<DeviceName> = named.unwrap_or_else(|| backends::local_devices().map(|(name, _)| name).collect());
    for name in names {
        let device = match name.open() {
            Ok(device) => device,
            Err(error) => {
                println!("skipped: {name}: {error}");
                continue;
            }
        };
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            if !backends::computes_in(&device, dtype) {
                println!("skipped: {name} does not compute in {dtype:?}");
                continue;
            }
            let operators = backends::operators(&device, dtype);
            for precision in [Precision::Fast, Precision::Strict] {
                let name = format!("{operators:?} on {name}, {dtype:?}, {precision:?}");
                subjects.push(Subject { name, operators, device: device.clone(), dtype, math_mode: MathMode { precision, tf32: false } });
            }
        }
    }
    assert!(!subjects.is_empty());
    subjects
}

/// Values of order 1 that repeat only after many. They are exact in every dtype, so that all implementations compute with the same.
fn ramp<const D: usize>(shape: [usize; D], step: f32) -> Tensor<D> {
    let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|at| ((at as f32 + 1.0) * step).sin()).collect();
    let values: Vec<f32> = values.into_iter().map(|value| (value * 64.0).round() / 64.0).collect();
    Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F32))
}

/// Where an operation runs.
struct Bench<'a> {
    operators: &'static dyn AnyOperators,
    device: &'a Device,
    dtype: DType,
    context: Context,
}

impl Bench<'_> {
    fn features(&self, x: Tensor<5>) -> Features {
        Features::with_operators(self.parameter(x), self.operators, &self.context)
    }

    fn parameter<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        x.to_device(self.device).cast(FloatDType::from(self.dtype))
    }

    fn convolution(&self, [channels_in, channels_out]: [usize; 2], kernel: [usize; 3], bias: bool) -> Convolution {
        let [frames, height, width] = kernel;
        let [vertical, horizontal] = [height, width].map(|side| side.cast_signed() / 2);
        let weight = ramp([channels_out, channels_in, frames, height, width], 0.37);
        let scale = 1.0 / (1 << (channels_in * frames * height * width).ilog2().div_ceil(2)) as f32;
        Convolution {
            weight: self.parameter(weight * scale),
            bias: bias.then(|| self.parameter(ramp([channels_out], 0.9))),
            stride: [1, 1],
            padding: Padding { top: vertical, bottom: vertical, left: horizontal, right: horizontal },
            window: TemporalWindow::EACH,
        }
    }

    fn norm(&self, channels: usize) -> GroupNormParameters {
        let groups = (1..=4).rev().find(|groups| channels.is_multiple_of(*groups)).unwrap();
        let [weight, bias] = [0.3, 0.7].map(|step| self.parameter(ramp([channels], step)));
        GroupNormParameters { groups, epsilon: 1e-6, weight, bias }
    }
}

/// Runs an operation on every implementation and on the reference. Differences are relative to values of order 1.
fn agree(what: &str, shape: [usize; 5], operation: impl Fn(&Bench, Features) -> Features) {
    let run = |bench: &Bench, what: &str| {
        let y = operation(bench, bench.features(ramp(shape, 0.7)));
        let dims = y.dims();
        let y = Tensor::from(y);
        assert_eq!(y.dims(), dims, "{what}");
        assert_eq!(y.dtype(), bench.dtype, "{what}");
        (dims, y.cast(FloatDType::F32).into_data().try_into_vec::<f32>().unwrap())
    };
    let (dims, expected) = run(&Bench { operators: &Plain, device: &Device::flex(), dtype: DType::F32, context: Context::default() }, what);
    for Subject { name, operators, device, dtype, math_mode } in subjects() {
        let what = format!("{what} of {shape:?}, {name}");
        let context = Context::new(math_mode, &tiling::Stop::default());
        let (got_dims, got) = run(&Bench { operators, device: &device, dtype, context }, &what);
        assert_eq!(got_dims, dims, "{what}");
        let difference = |(got, expected): (&f32, &f32)| (got - expected).abs() / expected.abs().max(1.0);
        let worst = got.iter().zip(&expected).map(difference).fold(0.0, |a: f32, b| if b.is_nan() { f32::INFINITY } else { a.max(b) });
        let tolerance = match dtype {
            DType::F16 => 0.02,
            DType::BF16 => 0.15,
            _ => 1e-4,
        };
        assert!(worst <= tolerance, "{what}: {worst}");
    }
}

#[test]
fn features_are_put_together_from_parts() {
    for shape in SHAPES {
        let [b, c, t, h, w] = shape;
        let (row, column) = (h / 2, w.div_ceil(3));
        agree("assemble", shape, |bench, x| {
            let other = bench.features(ramp([b, c, t + 1, h + 2, w], 0.3));
            let context = bench.context.clone();
            let boxes = [([0, 0, 0], [t, row, w]), ([0, row, 0], [t, h - row, column]), ([0, row, column], [t, h - row, w - column])];
            let parts = boxes.into_iter().enumerate().filter(|(_, (_, size))| !size.contains(&0));
            // Of the other features the last frames, from another row on.
            let part = |(at, (to, size)): (usize, ([usize; 3], [usize; 3]))| {
                let (x, from) = if at == 1 { (other.clone(), [1, to[1] + 2, to[2]]) } else { (x.clone(), to) };
                Part { x, from, to, size }
            };
            Features::assemble(parts.map(part).collect(), shape, &context)
        });
    }
}

#[test]
fn convolutions_of_every_kernel() {
    let kernels = [[1, 1], [3, 3], [2, 5], [1, 3], [4, 1]];
    for (at, shape) in SHAPES.into_iter().enumerate() {
        for kernel in kernels {
            for bias in [true, false] {
                agree(&format!("kernel {kernel:?}"), shape, |bench, x| {
                    x.convolve(&bench.convolution([shape[1], 1 + 9 * at], [1, kernel[0], kernel[1]], bias), None)
                });
            }
        }
    }
}

#[test]
fn convolutions_of_every_stride_and_padding() {
    let sides = |top, bottom, left, right| Padding { top, bottom, left, right };
    let paddings = [Padding::NONE, Padding::BOTTOM_RIGHT, Padding::all(1), sides(2, 0, 1, 3), sides(-1, 0, 1, -2), sides(1, -1, -1, 0)];
    for shape in SHAPES {
        let [_, _, _, height, width] = shape.map(usize::cast_signed);
        let leaves_some = |padding: &Padding| {
            let left_out = [padding.top, padding.bottom, padding.left, padding.right].map(|px| px.min(0));
            height + left_out[0] + left_out[1] > 0 && width + left_out[2] + left_out[3] > 0
        };
        for padding in paddings.into_iter().filter(leaves_some) {
            for (kernel, stride) in [([3, 3], [1, 1]), ([3, 3], [2, 2]), ([1, 1], [2, 2]), ([1, 1], [1, 1]), ([3, 2], [1, 2]), ([4, 4], [3, 3])] {
                agree(&format!("kernel {kernel:?}, stride {stride:?}, {padding:?}"), shape, |bench, x| {
                    let convolution = bench.convolution([shape[1], 5], [1, kernel[0], kernel[1]], true);
                    x.convolve(&Convolution { stride, padding, ..convolution }, None)
                });
            }
        }
    }
}

#[test]
fn convolutions_over_frames() {
    for side in [3, 1] {
        for (frames, context, stride) in [(1, 0, 1), (4, 0, 1), (4, 1, 1), (6, 2, 1), (5, 2, 2), (4, 2, 2), (7, 0, 2), (6, 4, 1), (2, 3, 1)] {
            for kernel_frames in [3, 2, 1] {
                agree(&format!("{kernel_frames}x{side}x{side} from {context} by {stride}"), [2, 5, frames, 9, 22], |bench, x| {
                    let convolution = bench.convolution([5, 20], [kernel_frames, side, side], true);
                    x.convolve(&Convolution { window: TemporalWindow { context, stride }, ..convolution }, None)
                });
            }
        }
    }
}

#[test]
fn residuals() {
    for shape in SHAPES {
        let [b, c, t, h, w] = shape;
        agree("residual", shape, |bench, x| {
            let residual = bench.features(ramp([b, 20, t, h, w], 0.13));
            x.convolve(&bench.convolution([c, 20], [1, 3, 3], true), Some(residual))
        });
        agree("residual of itself", shape, |bench, x| x.clone().convolve(&bench.convolution([c, c], [1, 1, 1], true), Some(x)));
        agree("normalised residual", shape, |bench, x| {
            let residual = x.clone().group_norm(&bench.norm(c), Activation::Silu);
            x.convolve(&bench.convolution([c, c], [1, 3, 3], false), Some(residual))
        });
    }
}

const ACTIVATIONS: [Activation; 5] = [Activation::None, Activation::Silu, Activation::Relu, Activation::Mish, Activation::Gelu];

#[test]
fn norms_and_activations() {
    for shape in SHAPES {
        let c = shape[1];
        let large = |x: Features| x.map(|x| x * 2.0 + 3.0);
        for activation in ACTIVATIONS {
            agree(&format!("{activation:?}"), shape, |_, x| x.activate(activation));
            agree(&format!("group norm, {activation:?}"), shape, |bench, x| large(x).group_norm(&bench.norm(c), activation));
            agree(&format!("RMS norm, {activation:?}"), shape, |bench, x| large(x).rms_norm(bench.parameter(ramp([c], 0.3)), activation));
            // Read by a convolution, behind one, upsampled and twice.
            agree(&format!("{activation:?} before a convolution"), shape, |bench, x| {
                x.activate(activation).convolve(&bench.convolution([c, 7], [1, 3, 3], true), None)
            });
            agree(&format!("group norm, {activation:?} between convolutions"), shape, |bench, x| {
                let x = x.convolve(&bench.convolution([c, 20], [1, 3, 3], true), None).group_norm(&bench.norm(20), activation);
                let x = x.convolve(&bench.convolution([20, 20], [1, 3, 3], true), None).group_norm(&bench.norm(20), activation);
                x.upsample_nearest2x().convolve(&bench.convolution([20, 3], [1, 3, 3], true), None)
            });
            agree(&format!("RMS norm, {activation:?} between convolutions"), shape, |bench, x| {
                let gamma = || bench.parameter(ramp([20], 0.3));
                let x = x.convolve(&bench.convolution([c, 20], [1, 3, 3], true), None).rms_norm(gamma(), activation);
                x.convolve(&bench.convolution([20, 20], [1, 1, 1], true), None).rms_norm(gamma(), activation)
            });
        }
        agree("two norms", shape, |bench, x| {
            large(x).group_norm(&bench.norm(c), Activation::Silu).rms_norm(bench.parameter(ramp([c], 0.3)), Activation::Relu)
        });
        agree("two activations", shape, |_, x| x.activate(Activation::Relu).activate(Activation::Silu));
    }
}

#[test]
fn moments_of_tiles_are_merged() {
    for shape in SHAPES {
        let [_, c, _, _, width] = shape;
        agree("a norm by the moments of two tiles", shape, |bench, x| {
            let norm = bench.norm(c);
            let part = |start: usize, end: usize| x.clone().map(|x| x.narrow(4, start, end - start));
            let cut = width / 2;
            let moments = match cut {
                0 => x.group_moments(norm.groups),
                _ => part(0, cut).group_moments(norm.groups).merge(part(cut, width).group_moments(norm.groups)),
            };
            x.apply_group_norm(moments, &norm, Activation::Silu)
        });
    }
}

#[test]
fn moments_of_the_whole_equal_merged_ones() {
    let shape = [1, 8, 2, 9, 14];
    agree("the difference of two norms", shape, |bench, x| {
        let norm = bench.norm(8);
        let parts = [(0, 5), (5, 9)].map(|(start, count)| x.clone().map(|x| x.narrow(4, start, count)).group_moments(norm.groups));
        let [first, second] = parts;
        let merged = x.clone().apply_group_norm(first.merge(second), &norm, Activation::None);
        let whole = x.clone().group_norm(&norm, Activation::None).map(|x| x * -1.0);
        let difference = (merged + whole).map(|difference| difference.abs().clamp_min(1e-2) - 1e-2);
        x.map(|x| x * 0.0) + difference
    });
}

#[test]
fn attention() {
    for shape in SHAPES.into_iter().chain([[1, 4, 1, 40, 40]]) {
        let c = shape[1];
        agree("attention", shape, |bench, x| {
            let keys = x.clone().convolve(&bench.convolution([c, c], [1, 1, 1], true), None);
            x.clone().attend(keys, x.activate(Activation::Silu))
        });
    }
}

#[test]
fn scores_that_are_large_before_they_are_scaled_fit_16_bits() {
    // Some queries and keys have a product of 130000, and f16 ends at 65504.
    let (channels, px) = (512, 40);
    agree("attention", [1, channels, 1, 1, px], |bench, x| {
        let values = |f: &dyn Fn(usize, usize) -> f32| {
            let values: Vec<f32> = (0..channels * px).map(|at| f(at / px, at % px)).collect();
            bench.features(Tensor::from_data(TensorData::new(values, [1, channels, 1, 1, px]), (&Device::flex(), DType::F32)))
        };
        let queries = values(&|channel, px| if channel % 2 == px % 2 { 16.0 } else { 0.0 });
        let keys = values(&|channel, px| if channel % 2 == px % 2 { 16.0 + (px % 4) as f32 } else { 0.0 });
        queries.attend(keys, x)
    });
}

#[test]
fn frames_and_sizes() {
    for shape in SHAPES {
        let c = shape[1];
        agree("upsampled", shape, |_, x| x.upsample_nearest2x());
        agree("upsampled twice and normalised", shape, |bench, x| {
            x.upsample_nearest2x().upsample_nearest2x().group_norm(&bench.norm(c), Activation::None)
        });
        agree("cropped", shape, |_, x| x.crop([shape[3] / 3, shape[4] / 2], [shape[3].div_ceil(2), shape[4].div_ceil(3)]));
        let sides = |top, bottom, left, right| Padding { top, bottom, left, right };
        // As tiles inside of a picture and at its borders have it.
        let paddings = [Padding::all(1), Padding::all(-1), sides(1, -1, -1, 1), sides(-1, 1, 1, -1), sides(0, 2, -1, 0), sides(2, 0, 0, -1)];
        for padding in paddings.into_iter().filter(|padding| shape[3] > 1 && shape[4] > 1 || *padding == Padding::all(1)) {
            agree(&format!("upsampled before a convolution, {padding:?}"), shape, |bench, x| {
                x.upsample_nearest2x().convolve(&Convolution { padding, ..bench.convolution([c, 7], [1, 3, 3], true) }, None)
            });
        }
        agree("added", shape, |bench, x| x.clone() + x.group_norm(&bench.norm(c), Activation::Relu));
        agree("frames", shape, |_, x| {
            let earlier = x.zero_frames(1).concat_frames(x.clone());
            let frames = earlier.interleave_frames(x.clone().concat_frames(x.last_frames(1)));
            frames.concat_frames(x.activate(Activation::Relu)).last_frames(2 + shape[2])
        });
    }
}

/// Channels-last, and a part of something larger, are layouts that operators leave behind.
#[test]
fn memory_layouts() {
    for shape in SHAPES {
        let [b, c, t, h, w] = shape;
        let channels_last = |x: Tensor<5>| x.permute([0, 2, 3, 4, 1]).reshape([b, t * h * w * c]).reshape([b, t, h, w, c]).permute([0, 4, 1, 2, 3]);
        let part = |x: Tensor<5>| Tensor::cat(vec![x; 2], 4).narrow(4, w, w);
        for layout in [&channels_last as &dyn Fn(Tensor<5>) -> Tensor<5>, &part] {
            agree("group norm", shape, |bench, x| x.map(layout).group_norm(&bench.norm(c), Activation::Silu));
            agree("RMS norm", shape, |bench, x| x.map(layout).rms_norm(bench.parameter(ramp([c], 0.3)), Activation::Silu));
            agree("convolution", shape, |bench, x| x.map(layout).convolve(&bench.convolution([c, 4], [1, 3, 3], true), None));
        }
    }
}
