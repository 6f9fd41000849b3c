//! The kernels that run on the GPU. Each unit (thread) computes one value, px or partial sum.
//!
//! A list is the values of a group of channels in one frame.

use cubecl::prelude::*;

use crate::operators::plain::EPS;

/// The index of the first channel of a frame's px.
#[cube]
fn place<F: Float>(x: &Tensor<F>, frame: usize, px: usize) -> usize {
    let (t, w) = (x.shape(2), x.shape(4));
    frame / t * x.stride(0) + frame % t * x.stride(2) + px / w * x.stride(3) + px % w * x.stride(4)
}

/// A value of the group that is subtracted from the others before they are squared, so that the sums lose no precision.
#[cube]
fn reference<F: Float>(x: &Tensor<F>, frame: usize, group: usize, #[comptime] groups: usize) -> f32 {
    f32::cast_from(x[place::<F>(x, frame, 0) + group * (x.shape(1) / groups) * x.stride(1)])
}

#[cube]
fn silu(value: f32) -> f32 {
    value / (1.0f32 + f32::exp(-value))
}

/// Each unit writes a partial sum of the differences from the reference, and one of their squares.
#[cube(launch)]
pub(super) fn group_sums<F: Float>(
    x: &Tensor<F>,
    sums: &mut Tensor<f32>,
    #[comptime] groups: usize,
    parts: usize,
    #[comptime] channels_last: bool,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    if 2 * ABSOLUTE_POS >= sums.len() {
        terminate!();
    }
    let (list, part) = (ABSOLUTE_POS / parts, ABSOLUTE_POS % parts);
    let (frame, group) = (list / groups, list % groups);
    let per_group = x.shape(1) / groups;
    let area = x.shape(3) * x.shape(4);
    let reference = reference::<F>(x, frame, group, groups);
    let mut sum = 0.0f32;
    let mut squares = 0.0f32;
    // Neighbouring units read neighbouring values.
    let mut at = part;
    while at < area * per_group {
        let mut channel = at / area;
        let mut px = at % area;
        if comptime!(channels_last) {
            channel = at % per_group;
            px = at / per_group;
        }
        let value = f32::cast_from(x[place::<F>(x, frame, px) + (group * per_group + channel) * x.stride(1)]) - reference;
        sum += value;
        squares += value * value;
        at += parts;
    }
    sums[2 * ABSOLUTE_POS] = sum;
    sums[2 * ABSOLUTE_POS + 1] = squares;
}

/// Each unit adds up some of the partial sums of a list.
#[cube(launch)]
pub(super) fn sums_of_sums(sums: &Tensor<f32>, fewer_sums: &mut Tensor<f32>, parts: usize, fewer: usize) {
    if 2 * ABSOLUTE_POS >= fewer_sums.len() {
        terminate!();
    }
    let (list, part) = (ABSOLUTE_POS / fewer, ABSOLUTE_POS % fewer);
    let mut sum = 0.0f32;
    let mut squares = 0.0f32;
    let mut at = part;
    while at < parts {
        sum += sums[2 * (list * parts + at)];
        squares += sums[2 * (list * parts + at) + 1];
        at += fewer;
    }
    fewer_sums[2 * ABSOLUTE_POS] = sum;
    fewer_sums[2 * ABSOLUTE_POS + 1] = squares;
}

/// Each unit adds up the partial sums of a group of a frame, in their order, to its mean and its variance.
#[cube(launch)]
pub(super) fn group_moments<F: Float>(
    x: &Tensor<F>,
    sums: &Tensor<f32>,
    moments: &mut Tensor<f32>,
    parts: usize,
    #[comptime] groups: usize,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let lists = moments.len() / 2;
    if ABSOLUTE_POS >= lists {
        terminate!();
    }
    let (frame, group) = (ABSOLUTE_POS / groups, ABSOLUTE_POS % groups);
    let mut sum = 0.0f32;
    let mut squares = 0.0f32;
    for part in 0..parts {
        sum += sums[2 * (ABSOLUTE_POS * parts + part)];
        squares += sums[2 * (ABSOLUTE_POS * parts + part) + 1];
    }
    let count = f32::cast_from(x.shape(1) / groups * x.shape(3) * x.shape(4));
    let mean = sum / count;
    let variance = f32::max(squares / count - mean * mean, 0.0f32);
    moments[ABSOLUTE_POS] = mean + reference::<F>(x, frame, group, groups);
    moments[lists + ABSOLUTE_POS] = variance;
}

/// Each unit normalises one value.
#[cube(launch)]
pub(super) fn group_apply<F: Float, P: Float>(
    x: &Tensor<F>,
    weight: &Tensor<P>,
    bias: &Tensor<P>,
    moments: &Tensor<f32>,
    y: &mut Tensor<F>,
    epsilon: f32,
    #[comptime] groups: usize,
    #[comptime] channels_last: bool,
    #[comptime] silu_after: bool,
    #[define(F, P)] _dtypes: [cubecl::ir::ElemType; 2],
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let (channels, frames) = (x.shape(1), x.shape(2));
    let area = x.shape(3) * x.shape(4);
    let mut px = ABSOLUTE_POS % area;
    let mut channel = ABSOLUTE_POS / (area * frames) % channels;
    let mut frame = ABSOLUTE_POS / (area * frames * channels) * frames + ABSOLUTE_POS / area % frames;
    if comptime!(channels_last) {
        px = ABSOLUTE_POS / channels % area;
        channel = ABSOLUTE_POS % channels;
        frame = ABSOLUTE_POS / (channels * area);
    }
    let value = f32::cast_from(x[place::<F>(x, frame, px) + channel * x.stride(1)]);
    let list = frame * groups + channel / (channels / groups);
    let normal = (value - moments[list]) * (1.0f32 / f32::sqrt(moments[moments.len() / 2 + list] + epsilon));
    let mut value = normal * f32::cast_from(weight[channel]) + f32::cast_from(bias[channel]);
    if comptime!(silu_after) {
        value = silu(value);
    }
    y[ABSOLUTE_POS] = F::cast_from(value);
}

/// A value of a px with that L2 norm: rounded to its type before it is scaled, and after each step, as in diffusers.
#[cube]
fn scaled<F: Float>(value: F, length: f32, channels: usize, gamma: F, #[comptime] silu_after: bool) -> F {
    let divided = F::cast_from(f32::cast_from(value) / length);
    let root = f32::sqrt(f32::cast_from(channels));
    let scaled = F::cast_from(f32::cast_from(divided) * root);
    let mut value = F::cast_from(f32::cast_from(scaled) * f32::cast_from(gamma));
    if comptime!(silu_after) {
        value = F::cast_from(silu(f32::cast_from(value)));
    }
    value
}

/// Each unit normalises one px.
#[cube(launch)]
pub(super) fn px_apply<F: Float>(
    x: &Tensor<F>,
    gamma: &Tensor<F>,
    y: &mut Tensor<F>,
    #[comptime] channels_last: bool,
    #[comptime] silu_after: bool,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let (channels, frames) = (x.shape(1), x.shape(2));
    let area = x.shape(3) * x.shape(4);
    if ABSOLUTE_POS * channels >= y.len() {
        terminate!();
    }
    let (frame, px) = (ABSOLUTE_POS / area, ABSOLUTE_POS % area);
    let from = place::<F>(x, frame, px);
    let mut to = frame / frames * channels * frames * area + frame % frames * area + px;
    let mut step = frames * area;
    if comptime!(channels_last) {
        to = ABSOLUTE_POS * channels;
        step = 1usize.runtime();
    }
    let mut sum = 0.0f32;
    for channel in 0..channels {
        let value = f32::cast_from(x[from + channel * x.stride(1)]);
        sum += value * value;
    }
    let length = f32::max(f32::sqrt(sum), comptime!(EPS as f32).runtime());
    for channel in 0..channels {
        y[to + channel * step] = scaled::<F>(x[from + channel * x.stride(1)], length, channels, gamma[channel], silu_after);
    }
}

/// Each unit computes one value.
#[cube(launch)]
pub(super) fn products<F: Float>(left: &Tensor<F>, right: &Tensor<F>, y: &mut Tensor<F>, #[define(F)] _dtype: cubecl::ir::ElemType) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let (rows, columns) = (left.shape(1), right.shape(2));
    let (item, row, column) = (ABSOLUTE_POS / columns / rows, ABSOLUTE_POS / columns % rows, ABSOLUTE_POS % columns);
    let from = item * left.stride(0) + row * left.stride(1);
    let with = item * right.stride(0) + column * right.stride(2);
    let mut sum = 0.0f32;
    for at in 0..left.shape(2) {
        sum += f32::cast_from(left[from + at * left.stride(2)]) * f32::cast_from(right[with + at * right.stride(1)]);
    }
    y[ABSOLUTE_POS] = F::cast_from(sum);
}

/// Each unit takes some scores of a row: the greatest, and the sum of the exponentials of what the others are below it.
#[cube(launch)]
pub(super) fn row_parts<F: Float>(
    scores: &Tensor<F>,
    partial: &mut Tensor<f32>,
    scale: f32,
    parts: usize,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    if 2 * ABSOLUTE_POS >= partial.len() {
        terminate!();
    }
    let columns = scores.shape(2);
    let (row, part) = (ABSOLUTE_POS / parts, ABSOLUTE_POS % parts);
    let mut most = f32::cast_from(scores[row * columns + part]) * scale;
    let mut at = part + parts;
    while at < columns {
        most = f32::max(most, f32::cast_from(scores[row * columns + at]) * scale);
        at += parts;
    }
    let mut sum = 0.0f32;
    let mut at = part;
    while at < columns {
        sum += f32::exp(f32::cast_from(scores[row * columns + at]) * scale - most);
        at += parts;
    }
    partial[2 * ABSOLUTE_POS] = most;
    partial[2 * ABSOLUTE_POS + 1] = sum;
}

/// Each unit does the same for the parts of a row.
#[cube(launch)]
pub(super) fn row_sums(partial: &Tensor<f32>, whole: &mut Tensor<f32>, parts: usize) {
    if 2 * ABSOLUTE_POS >= whole.len() {
        terminate!();
    }
    let first = ABSOLUTE_POS * parts;
    let mut most = partial[2 * first];
    for part in 1..parts {
        most = f32::max(most, partial[2 * (first + part)]);
    }
    let mut sum = 0.0f32;
    for part in 0..parts {
        sum += partial[2 * (first + part) + 1] * f32::exp(partial[2 * (first + part)] - most);
    }
    whole[2 * ABSOLUTE_POS] = most;
    whole[2 * ABSOLUTE_POS + 1] = sum;
}

/// Each unit takes one score.
#[cube(launch)]
pub(super) fn row_apply<F: Float>(scores: &Tensor<F>, whole: &Tensor<f32>, y: &mut Tensor<F>, scale: f32, #[define(F)] _dtype: cubecl::ir::ElemType) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let row = ABSOLUTE_POS / scores.shape(2);
    y[ABSOLUTE_POS] = F::cast_from(f32::exp(f32::cast_from(scores[ABSOLUTE_POS]) * scale - whole[2 * row]) / whole[2 * row + 1]);
}
