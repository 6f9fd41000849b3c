//! The kernels that run on the GPU, on features `[frames, px, channels]`: dense, and channels last.
//!
//! A unit (thread) reads and writes vectors of channels, always of the same column of vectors, so that it needs no division for each value. Sums have a fixed
//! order: every run gives the same bits. A cube (workgroup) has [`UNITS`] units. Kernels whose name ends in `plain` use no shared memory.

#![allow(
    clippy::used_underscore_binding,
    clippy::too_many_lines,
    clippy::neg_cmp_op_on_partial_ord,
    reason = "what CubeCL makes of a kernel uses all of its arguments, and comparisons with NaN are meant"
)]

mod convolution;
mod eight_bits;
mod frames;
mod group_norm;
mod rms_norm;
mod softmax;

pub(super) use convolution::{PX, WindowLaunch, add_into, direct_convolution, fold_weight};
pub(super) use eight_bits::pack;
pub(super) use frames::{copy_frames, copy_part, upsample_nearest2x};
pub(super) use group_norm::{group_apply, group_sums, group_sums_apply, group_sums_plain, moments_of_sums};
pub(super) use rms_norm::rms_apply;
pub(super) use softmax::{row_apply, row_parts, row_sums, softmax_rows};

use cubecl::prelude::*;

/// Units of a cube.
pub(super) const UNITS: u32 = 256;

#[cube]
fn silu<N: Size>(x: Vector<f32, N>) -> Vector<f32, N> {
    x / (Vector::new(1.0f32) + Vector::exp(-x))
}
