//! Every operation by Burn's own operators, on tensors `[b, c, t, h, w]` of any backend.

use burn::tensor::activation::{gelu, mish, relu, silu, softmax};
use burn::tensor::ops::{ConvOptions, InterpolateMode, InterpolateOptions};
use burn::tensor::{DType, FloatDType, Tensor, module};

use super::activation::Activation;
use super::convolution::{Convolution, Padding};
use super::group_norm::{GroupNormParameters, TensorMoments};
use super::part::Part;
use crate::Context;

/// Queries whose scores are in memory at once.
pub(super) const QUERY_BLOCK: usize = 1024;

/// The smallest L2 norm that an RMS norm divides by (torch, `functional.normalize`).
pub(crate) const EPS: f64 = 1e-12;

/// See [`Operators::convolve`](super::Operators::convolve).
pub(super) fn convolve(x: Tensor<5>, convolution: &Convolution, residual: Option<Tensor<5>>) -> Tensor<5> {
    let y = convolve_frames(x, convolution);
    match residual {
        Some(residual) => y + residual,
        None => y,
    }
}

fn convolve_frames(x: Tensor<5>, convolution: &Convolution) -> Tensor<5> {
    let Convolution { stride, padding, window, .. } = *convolution;
    let (weight, bias) = (convolution.weight.clone(), convolution.bias.clone());
    let output = convolution.output_dims(x.dims());
    if output.contains(&0) {
        return Tensor::zeros(output, (&x.device(), x.dtype()));
    }
    let (x, padding) = without_left_out(x, padding);
    let [b, c, given, h, w] = x.dims();
    let [kernel_frames, kernel_height, kernel_width] = convolution.kernel();
    // Of a single frame's kernel only the last frame meets something.
    let (weight, kernel_frames) = if given == 1 { (weight.narrow(2, kernel_frames - 1, 1), 1) } else { (weight, kernel_frames) };
    // Frames that no output depends on are cut off, and those before the first are filled up with zeros.
    let first = (window.context + 1).saturating_sub(kernel_frames);
    let missing = (kernel_frames - 1).saturating_sub(window.context);
    let x = if first > 0 { x.narrow(2, first, given - first) } else { x };
    if kernel_frames == 1 {
        let options = ConvOptions::new_with_padding(stride, padding, [1, 1], 1);
        return frames(module::conv2d(images(every(x, window.stride)), weight.squeeze_dim(2), bias, options), b);
    }
    let x = if missing == 0 { x } else { Tensor::cat(vec![Tensor::zeros([b, c, missing, h, w], (&x.device(), x.dtype())), x], 2) };
    if [kernel_height, kernel_width] == [1, 1] && stride == [1, 1] && padding == [(0, 0); 2] {
        let t = x.dims()[2];
        let options = ConvOptions::new([window.stride, 1], [0, 0], [1, 1], 1);
        return module::conv2d(x.reshape([b, c, t, h * w]), weight.squeeze_dim::<4>(4), bias, options).reshape(output);
    }
    let options = ConvOptions::new_with_padding([window.stride, stride[0], stride[1]], [(0, 0), padding[0], padding[1]], [1; 3], 1);
    module::conv3d(x, weight, bias, options)
}

/// The px that a negative padding does not leave out, and the zeros around them: above and below, to the left and to the right.
fn without_left_out(x: Tensor<5>, Padding { top, bottom, left, right }: Padding) -> (Tensor<5>, [(usize, usize); 2]) {
    let [_, _, _, height, width] = x.dims();
    let sides = [(3, height, top, bottom), (4, width, left, right)];
    let left_out = |padding: isize| padding.min(0).unsigned_abs();
    let x = sides.iter().fold(x, |x, &(axis, side, before, after)| match left_out(before) + left_out(after) {
        0 => x,
        count => x.narrow(axis, left_out(before), side - count),
    });
    (x, sides.map(|(_, _, before, after)| (before.max(0).unsigned_abs(), after.max(0).unsigned_abs())))
}

/// Every `stride`th frame, from the first.
fn every(x: Tensor<5>, stride: usize) -> Tensor<5> {
    if stride == 1 {
        return x;
    }
    let frames = (0..x.dims()[2]).step_by(stride).map(|frame| x.clone().narrow(2, frame, 1));
    Tensor::cat(frames.collect(), 2)
}

/// Frames as images: `[b * t, c, h, w]`.
fn images(x: Tensor<5>) -> Tensor<4> {
    let [b, c, t, h, w] = x.dims();
    if t == 1 { x.reshape([b, c, h, w]) } else { x.swap_dims(1, 2).reshape([b * t, c, h, w]) }
}

/// The inverse of [`images`], for images of any size and number of channels.
fn frames(y: Tensor<4>, b: usize) -> Tensor<5> {
    let [bt, c, h, w] = y.dims();
    let t = bt / b.max(1);
    if t == 1 { y.reshape([b, c, t, h, w]) } else { y.reshape([b, t, c, h, w]).swap_dims(1, 2) }
}

/// See [`Operators::group_moments`](super::Operators::group_moments).
pub(super) fn group_moments(x: Tensor<5>, groups: usize) -> TensorMoments {
    let [b, c, t, h, w] = x.dims();
    let values = c / groups * h * w;
    let grouped = images(x).cast(FloatDType::F32).reshape([b * t, groups, values]);
    let (variance, mean) = grouped.var_mean_bias(2);
    TensorMoments { count: values as f64, values: Tensor::stack(vec![mean.squeeze_dim::<2>(2), variance.squeeze_dim(2)], 0) }
}

/// See [`Operators::apply_group_norm`](super::Operators::apply_group_norm). The output has the dtype of the input; everything before is in f32.
pub(super) fn apply_group_norm(x: Tensor<5>, moments: &TensorMoments, norm: &GroupNormParameters, activation: Activation) -> Tensor<5> {
    let dtype = x.dtype();
    let [b, c, t, h, w] = x.dims();
    let grouped = images(x).cast(FloatDType::F32).reshape([b * t, norm.groups, c / norm.groups * h * w]);
    let [mean, variance] = moments.mean_and_variance().map(|moment| moment.unsqueeze_dim::<3>(2));
    let normal = (grouped - mean) / (variance + norm.epsilon).sqrt();
    let affine = |parameter: &Tensor<1>| parameter.clone().cast(FloatDType::F32).reshape([1, c, 1, 1]);
    let y = normal.reshape([b * t, c, h, w]) * affine(&norm.weight) + affine(&norm.bias);
    frames(activate(y, activation).cast(dtype), b)
}

/// See [`Operators::rms_norm`](super::Operators::rms_norm). L2 norms are computed in f32 for 16-bit types, and the quotient is rounded to the type before it is
/// scaled.
pub(super) fn rms_norm(x: Tensor<5>, gamma: Tensor<1>, activation: Activation) -> Tensor<5> {
    let dtype = x.dtype();
    let channels = x.dims()[1];
    let wide = if matches!(dtype, DType::F16 | DType::BF16) { x.cast(FloatDType::F32) } else { x };
    let length = wide.clone().square().sum_dim(1).sqrt().clamp_min(EPS);
    let scale = (channels as f64).sqrt();
    activate((wide / length).cast(dtype) * scale * gamma.reshape([1, channels, 1, 1, 1]), activation)
}

/// See [`Operators::attend`](super::Operators::attend).
pub(super) fn attend([queries, keys, values]: [Tensor<5>; 3], context: &Context) -> Tensor<5> {
    let [b, c, t, h, w] = queries.dims();
    let (dtype, channels_out) = (queries.dtype(), values.dims()[1]);
    let tokens = |x: Tensor<5>| {
        let [b, c, t, h, w] = x.dims();
        x.permute([0, 2, 3, 4, 1]).reshape([b * t, h * w, c])
    };
    let [before, after] = scales(c);
    let (queries, keys, values) = (tokens(queries) * before, tokens(keys).swap_dims(1, 2), tokens(values));
    let blocks = (0..h * w).step_by(QUERY_BLOCK).map(|start| {
        context.check_stop();
        let block = queries.clone().slice([0..b * t, start..(start + QUERY_BLOCK).min(h * w), 0..c]);
        let scores = block.matmul(keys.clone());
        softmax(scores.cast(FloatDType::F32) * after, 2).cast(dtype).matmul(values.clone())
    });
    Tensor::cat(blocks.collect(), 1).reshape([b, t, h, w, channels_out]).permute([0, 4, 1, 2, 3])
}

/// What queries and scores are multiplied by; the product is the inverse root of the number of channels. Scores have the dtype of the input, and f16 ends at
/// 65504: so queries get a power of two, which does not round them, and scores the rest, from 1 to 2.
pub(super) fn scales(channels: usize) -> [f64; 2] {
    let scale = 1.0 / (channels as f64).sqrt();
    let power = scale.log2().floor().exp2();
    [power, scale / power]
}

pub(super) fn activate<const D: usize>(x: Tensor<D>, activation: Activation) -> Tensor<D> {
    match activation {
        Activation::None => x,
        Activation::Silu => silu(x),
        Activation::Relu => relu(x),
        Activation::Mish => mish(x),
        Activation::Gelu => gelu(x),
    }
}

/// See [`Operators::upsample_nearest2x`](super::Operators::upsample_nearest2x).
pub(super) fn upsample_nearest2x(x: Tensor<5>) -> Tensor<5> {
    let b = x.dims()[0];
    let options = InterpolateOptions::new(InterpolateMode::Nearest).with_scale_factor([2.0, 2.0]);
    frames(module::interpolate(images(x), options), b)
}

/// See [`Operators::crop`](super::Operators::crop).
pub(super) fn crop(x: Tensor<5>, [top, left]: [usize; 2], [height, width]: [usize; 2]) -> Tensor<5> {
    x.narrow(3, top, height).narrow(4, left, width)
}

/// See [`Operators::assemble`](super::Operators::assemble).
pub(super) fn assemble(parts: Vec<Part<Tensor<5>>>, shape: [usize; 5]) -> Tensor<5> {
    let [b, c, ..] = shape;
    let like = parts[0].x.clone();
    parts.into_iter().fold(Tensor::empty(shape, (&like.device(), like.dtype())), |y, Part { x, from, to, size }| {
        let ranges = |start: [usize; 3]| {
            let [frames, rows, columns] = std::array::from_fn(|axis| start[axis]..start[axis] + size[axis]);
            [0..b, 0..c, frames, rows, columns]
        };
        y.slice_assign(ranges(to), x.slice(ranges(from)))
    })
}

/// See [`Operators::interleave_frames`](super::Operators::interleave_frames).
pub(super) fn interleave_frames(even: Tensor<5>, odd: Tensor<5>) -> Tensor<5> {
    let [n, c, t, h, w] = even.dims();
    Tensor::stack::<6>(vec![even, odd], 3).reshape([n, c, 2 * t, h, w])
}

/// See [`Operators::last_frames`](super::Operators::last_frames).
pub(super) fn last_frames(x: &Tensor<5>, count: usize) -> Tensor<5> {
    let frames = x.dims()[2];
    // Concatenation copies; a slice alone would keep the whole of `x` alive.
    let frames = (frames - count..frames).map(|frame| x.clone().narrow(2, frame, 1));
    Tensor::cat(frames.collect(), 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_split_without_rounding_queries() {
        for channels in 1..3000 {
            let [before, after] = scales(channels);
            assert_eq!((before.log2().fract(), before * after), (0.0, 1.0 / (channels as f64).sqrt()));
            assert!((1.0..2.0).contains(&after) && before <= 1.0, "{channels}: {before} {after}");
        }
    }
}
