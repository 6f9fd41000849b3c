//! The softmax of rows of scores `[rows, columns]`, in f32.

use cubecl::prelude::*;

use super::UNITS;

/// The sum or the greatest of the values of all units of a cube, for each of them.
#[cube]
fn of_all_units(value: f32, shared: &mut Shared<[f32]>, #[comptime] greatest: bool) -> f32 {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(UNITS.ilog2()) {
        let half = comptime!(UNITS as usize >> (step + 1));
        if unit < half {
            let other = shared[unit + half];
            if comptime!(greatest) {
                shared[unit] = f32::max(shared[unit], other);
            } else {
                shared[unit] += other;
            }
        }
        sync_cube();
    }
    let result = shared[0];
    sync_cube();
    result
}

/// Each cube takes one row.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn softmax_rows<F: Float, N: Size>(
    scores: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    scale: f32,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let size = scores.vector_size();
    let columns = scores.shape(1) / size;
    let first = CUBE_POS_X as usize * columns;
    let unit = UNIT_POS as usize;
    let scale = Vector::<f32, N>::new(scale);
    let mut shared = Shared::<[f32]>::new_slice(comptime!(UNITS as usize));

    let mut greatest = f32::cast_from(scores[first].extract(0usize)) * scale.extract(0usize);
    let mut column = unit;
    while column < columns {
        let value = Vector::<f32, N>::cast_from(scores[first + column]) * scale;
        #[unroll]
        for at in 0..size {
            greatest = f32::max(greatest, value.extract(at));
        }
        column += comptime!(UNITS as usize);
    }
    let greatest = Vector::<f32, N>::new(of_all_units(greatest, &mut shared, true));

    let mut sum = 0.0f32;
    let mut column = unit;
    while column < columns {
        let value = Vector::exp(Vector::<f32, N>::cast_from(scores[first + column]) * scale - greatest);
        #[unroll]
        for at in 0..size {
            sum += value.extract(at);
        }
        column += comptime!(UNITS as usize);
    }
    let factor = Vector::<f32, N>::new(1.0f32 / of_all_units(sum, &mut shared, false));

    let mut column = unit;
    while column < columns {
        let value = Vector::exp(Vector::<f32, N>::cast_from(scores[first + column]) * scale - greatest);
        y[first + column] = Vector::cast_from(value * factor);
        column += comptime!(UNITS as usize);
    }
}

/// Without shared memory, first step. Each unit takes some scores of a row: the greatest, and the sum of the exponentials of what the others are below it.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn row_parts<F: Float>(
    scores: &Tensor<F>,
    partial: &mut Tensor<f32>,
    scale: f32,
    parts: usize,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    if 2 * ABSOLUTE_POS >= partial.len() {
        terminate!();
    }
    let columns = scores.shape(1);
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

/// Second step. Each unit does the same for the parts of a row.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn row_sums(partial: &Tensor<f32>, whole: &mut Tensor<f32>, parts: usize) {
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

/// Third step. Each unit takes one score.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn row_apply<F: Float>(
    scores: &Tensor<F>,
    whole: &Tensor<f32>,
    y: &mut Tensor<F>,
    scale: f32,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    if ABSOLUTE_POS >= y.len() {
        terminate!();
    }
    let row = ABSOLUTE_POS / scores.shape(1);
    y[ABSOLUTE_POS] = F::cast_from(f32::exp(f32::cast_from(scores[ABSOLUTE_POS]) * scale - whole[2 * row]) / whole[2 * row + 1]);
}
