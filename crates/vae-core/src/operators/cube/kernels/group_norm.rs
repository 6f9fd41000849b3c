//! Group norms: sums over parts of each frame, then the norm itself, which adds the parts up.
//!
//! From each value a value of its group is subtracted before it is squared, so that the sums lose no precision: that of the group's first channel in the first px.

use cubecl::prelude::*;

use super::{UNITS, silu};

/// Px that a unit loads before it needs the first.
const AHEAD: usize = 4;

/// What is subtracted from the values of a group: `first` is the frame's first vector, and `channel` the group's first channel.
#[cube]
fn reference<F: Float, N: Size>(x: &Tensor<Vector<F, N>>, first: usize, channel: usize) -> f32 {
    let size = x.vector_size();
    let values = x[first + channel / size];
    let mut reference = 0.0f32;
    #[unroll]
    for at in 0..size {
        if channel % size == at {
            reference = f32::cast_from(values.extract(at));
        }
    }
    reference
}

/// Each cube adds up a part of a frame: for each group the differences from its reference, and their squares.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn group_sums<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    sums: &mut Tensor<f32>,
    px_per_part: usize,
    #[comptime] channels: usize,
    #[comptime] groups: usize,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let size = x.vector_size();
    let columns = comptime!(channels / size);
    let rows = comptime!(UNITS as usize / columns);
    let per_group = comptime!(channels / groups);
    let unit = UNIT_POS as usize;
    let (row, column) = (unit / columns, unit % columns);
    let (part, frame) = (CUBE_POS_X as usize, CUBE_POS_Y as usize);
    let area = x.shape(1);
    let first = frame * area * columns + column;
    let mut end = (part + 1) * px_per_part;
    if end > area {
        end = area;
    }

    let mut references = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for lane in 0..size {
        references.insert(lane, reference::<F, N>(x, frame * area * columns, (column * size + lane) / per_group * per_group));
    }
    let mut sum = Vector::<f32, N>::new(0.0f32);
    let mut squares = Vector::<f32, N>::new(0.0f32);
    if row < rows {
        let mut px = part * px_per_part + row;
        while px + comptime!((AHEAD - 1) * rows) < end {
            #[unroll]
            for ahead in 0..AHEAD {
                let value = Vector::<f32, N>::cast_from(x[first + (px + comptime!(ahead * rows)) * columns]) - references;
                sum += value;
                squares += value * value;
            }
            px += comptime!(AHEAD * rows);
        }
        while px < end {
            let value = Vector::<f32, N>::cast_from(x[first + px * columns]) - references;
            sum += value;
            squares += value * value;
            px += rows;
        }
    }

    let mut shared_sums = Shared::<[f32]>::new_slice(comptime!(UNITS as usize * size));
    let mut shared_squares = Shared::<[f32]>::new_slice(comptime!(UNITS as usize * size));
    #[unroll]
    for lane in 0..size {
        shared_sums[unit * size + lane] = sum.extract(lane);
        shared_squares[unit * size + lane] = squares.extract(lane);
    }
    sync_cube();
    if unit < groups {
        let mut sum = 0.0f32;
        let mut squares = 0.0f32;
        for row in 0..rows {
            for channel in 0..per_group {
                let at = row * channels + unit * per_group + channel;
                sum += shared_sums[at];
                squares += shared_squares[at];
            }
        }
        let to = (frame * (CUBE_COUNT_X as usize) + part) * comptime!(2 * groups) + unit;
        sums[to] = sum;
        sums[to + groups] = squares;
    }
}

/// Each unit adds up a part of a group of a frame, in vectors of one value.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn group_sums_plain<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    sums: &mut Tensor<f32>,
    px_per_part: usize,
    parts: usize,
    #[comptime] channels: usize,
    #[comptime] groups: usize,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let (frames, area) = (x.shape(0), x.shape(1));
    if ABSOLUTE_POS >= frames * parts * groups {
        terminate!();
    }
    let per_group = comptime!(channels / groups);
    let (group, part, frame) = (ABSOLUTE_POS % groups, ABSOLUTE_POS / groups % parts, ABSOLUTE_POS / groups / parts);
    let first = frame * area * channels + group * per_group;
    let mut end = (part + 1) * px_per_part;
    if end > area {
        end = area;
    }
    let reference = reference::<F, N>(x, frame * area * channels, group * per_group);
    let mut sum = 0.0f32;
    let mut squares = 0.0f32;
    for px in part * px_per_part..end {
        for channel in 0..per_group {
            let value = f32::cast_from(x[first + px * channels + channel].extract(0usize)) - reference;
            sum += value;
            squares += value * value;
        }
    }
    let to = (frame * parts + part) * comptime!(2 * groups) + group;
    sums[to] = sum;
    sums[to + groups] = squares;
}

/// Each unit makes the mean and the variance of a group of a frame, `[2, frames, groups]`, from vectors of one value.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn moments_of_sums<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    sums: &Tensor<f32>,
    moments: &mut Tensor<f32>,
    parts: usize,
    #[comptime] channels: usize,
    #[comptime] groups: usize,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let (frames, area) = (x.shape(0), x.shape(1));
    if ABSOLUTE_POS >= frames * groups {
        terminate!();
    }
    let per_group = comptime!(channels / groups);
    let (frame, group) = (ABSOLUTE_POS / groups, ABSOLUTE_POS % groups);
    let mut sum = 0.0f32;
    let mut squares = 0.0f32;
    for part in 0..parts {
        let at = (frame * parts + part) * comptime!(2 * groups) + group;
        sum += sums[at];
        squares += sums[at + groups];
    }
    let count = f32::cast_from(area * per_group);
    let mean = sum / count;
    let reference = reference::<F, N>(x, frame * area * channels, group * per_group);
    moments[ABSOLUTE_POS] = mean + reference;
    moments[frames * groups + ABSOLUTE_POS] = f32::max(squares / count - mean * mean, 0.0f32);
}

/// Normalises a cube's px: `means` and `inverse_deviations` are those of the channels of the unit's column of vectors.
#[cube]
fn normalise<F: Float, P: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<P, N>>,
    bias: &Tensor<Vector<P, N>>,
    y: &mut Tensor<Vector<F, N>>,
    means: Vector<f32, N>,
    inverse_deviations: Vector<f32, N>,
    px_per_cube: usize,
    #[comptime] channels: usize,
    #[comptime] silu_after: bool,
) {
    let size = x.vector_size();
    let columns = comptime!(channels / size);
    let rows = comptime!(UNITS as usize / columns);
    let (row, column) = (UNIT_POS as usize / columns, UNIT_POS as usize % columns);
    let area = x.shape(1);
    let first = CUBE_POS_Y as usize * area * columns + column;
    let mut end = (CUBE_POS_X as usize + 1) * px_per_cube;
    if end > area {
        end = area;
    }
    let factor = inverse_deviations * Vector::<f32, N>::cast_from(weight[column]);
    let bias = Vector::<f32, N>::cast_from(bias[column]);
    if row < rows {
        let mut px = CUBE_POS_X as usize * px_per_cube + row;
        while px < end {
            let mut value = (Vector::<f32, N>::cast_from(x[first + px * columns]) - means) * factor + bias;
            if comptime!(silu_after) {
                value = silu::<N>(value);
            }
            y[first + px * columns] = Vector::cast_from(value);
            px += rows;
        }
    }
}

/// Each cube normalises px of a frame with the moments of the sums, which it adds up first.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn group_sums_apply<F: Float, P: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<P, N>>,
    bias: &Tensor<Vector<P, N>>,
    sums: &Tensor<f32>,
    y: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    parts: usize,
    px_per_cube: usize,
    #[comptime] channels: usize,
    #[comptime] groups: usize,
    #[comptime] silu_after: bool,
    #[define(F, P)] _dtypes: [cubecl::ir::ElemType; 2],
) {
    let size = x.vector_size();
    let columns = comptime!(channels / size);
    let per_group = comptime!(channels / groups);
    // Units that add up the parts of one group.
    let slices = comptime!(UNITS as usize / groups);
    let unit = UNIT_POS as usize;
    let frame = CUBE_POS_Y as usize;
    let mut shared_sums = Shared::<[f32]>::new_slice(comptime!(slices * groups));
    let mut shared_squares = Shared::<[f32]>::new_slice(comptime!(slices * groups));
    let (slice, group) = (unit / groups, unit % groups);
    if slice < slices {
        let mut sum = 0.0f32;
        let mut squares = 0.0f32;
        let mut part = slice;
        while part < parts {
            let at = (frame * parts + part) * comptime!(2 * groups) + group;
            sum += sums[at];
            squares += sums[at + groups];
            part += slices;
        }
        shared_sums[unit] = sum;
        shared_squares[unit] = squares;
    }
    sync_cube();
    let mut means = Shared::<[f32]>::new_slice(groups);
    let mut inverse_deviations = Shared::<[f32]>::new_slice(groups);
    if unit < groups {
        let mut sum = 0.0f32;
        let mut squares = 0.0f32;
        for slice in 0..slices {
            sum += shared_sums[slice * groups + unit];
            squares += shared_squares[slice * groups + unit];
        }
        let count = f32::cast_from(x.shape(1) * per_group);
        let mean = sum / count;
        let variance = f32::max(squares / count - mean * mean, 0.0f32);
        means[unit] = mean + reference::<F, N>(x, frame * x.shape(1) * columns, unit * per_group);
        inverse_deviations[unit] = 1.0f32 / f32::sqrt(variance + epsilon);
    }
    sync_cube();
    let column = unit % columns;
    let mut of_lanes = Vector::<f32, N>::new(0.0f32);
    let mut factors = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for lane in 0..size {
        let group = (column * size + lane) / per_group;
        of_lanes.insert(lane, means[group]);
        factors.insert(lane, inverse_deviations[group]);
    }
    normalise::<F, P, N>(x, weight, bias, y, of_lanes, factors, px_per_cube, channels, silu_after);
}

/// Each cube normalises px of a frame with given moments.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn group_apply<F: Float, P: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    weight: &Tensor<Vector<P, N>>,
    bias: &Tensor<Vector<P, N>>,
    moments: &Tensor<f32>,
    y: &mut Tensor<Vector<F, N>>,
    epsilon: f32,
    px_per_cube: usize,
    #[comptime] channels: usize,
    #[comptime] groups: usize,
    #[comptime] silu_after: bool,
    #[define(F, P)] _dtypes: [cubecl::ir::ElemType; 2],
) {
    let size = x.vector_size();
    let column = UNIT_POS as usize % comptime!(channels / size);
    let per_group = comptime!(channels / groups);
    let first = CUBE_POS_Y as usize * groups;
    let variances = x.shape(0) * groups;
    let mut means = Vector::<f32, N>::new(0.0f32);
    let mut factors = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for lane in 0..size {
        let at = first + (column * size + lane) / per_group;
        means.insert(lane, moments[at]);
        factors.insert(lane, 1.0f32 / f32::sqrt(moments[variances + at] + epsilon));
    }
    normalise::<F, P, N>(x, weight, bias, y, means, factors, px_per_cube, channels, silu_after);
}
