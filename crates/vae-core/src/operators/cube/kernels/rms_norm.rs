use cubecl::prelude::*;

use super::{UNITS, silu};
use crate::operators::plain::EPS;

/// The px of `earlier` as they are, then those of `x`, normalised. `units_per_px` units of a cube share a px.
///
/// Values are rounded to their type before they are scaled, and after each step, as in diffusers.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn rms_apply<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    earlier: &Tensor<Vector<F, N>>,
    gamma: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    earlier_px: usize,
    #[comptime] channels: usize,
    #[comptime] units_per_px: usize,
    #[comptime] silu_after: bool,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let size = x.vector_size();
    let columns = comptime!(channels / size);
    let px_per_cube = comptime!(UNITS as usize / units_per_px);
    let unit = UNIT_POS as usize;
    let (row, lane) = (unit / units_per_px, unit % units_per_px);
    let item = CUBE_POS_Y as usize;
    let (px_in, px_out) = (x.shape(1), y.shape(1));
    let root = f32::sqrt(f32::cast_from(channels));
    let mut shared = Shared::<[f32]>::new_slice(comptime!(if units_per_px > 1 { UNITS as usize } else { 1 }));
    let mut base = CUBE_POS_X as usize * px_per_cube;
    // All units of a cube take the same turns, since they wait for each other.
    while base < px_out {
        let px = base + row;
        let is_new = px >= earlier_px && px < px_out;
        let to = (item * px_out + px) * columns;
        let mut from = 0usize.runtime();
        let mut sum = 0.0f32;
        if is_new {
            from = (item * px_in + px - earlier_px) * columns;
            let mut column = lane;
            while column < columns {
                let value = Vector::<f32, N>::cast_from(x[from + column]);
                let squares = value * value;
                #[unroll]
                for at in 0..size {
                    sum += squares.extract(at);
                }
                column += units_per_px;
            }
        }
        if comptime!(units_per_px > 1) {
            shared[unit] = sum;
            sync_cube();
            sum = 0.0f32;
            for at in 0..units_per_px {
                sum += shared[row * units_per_px + at];
            }
            sync_cube();
        }
        if is_new {
            let length = Vector::<f32, N>::new(f32::max(f32::sqrt(sum), comptime!(EPS as f32).runtime()));
            let mut column = lane;
            while column < columns {
                let divided = Vector::<F, N>::cast_from(Vector::<f32, N>::cast_from(x[from + column]) / length);
                let scaled = Vector::<F, N>::cast_from(Vector::<f32, N>::cast_from(divided) * Vector::new(root));
                let mut value = Vector::<F, N>::cast_from(Vector::<f32, N>::cast_from(scaled) * Vector::<f32, N>::cast_from(gamma[column]));
                if comptime!(silu_after) {
                    value = Vector::cast_from(silu::<N>(Vector::<f32, N>::cast_from(value)));
                }
                y[to + column] = value;
                column += units_per_px;
            }
        } else if px < earlier_px {
            let from = (item * earlier_px + px) * columns;
            let mut column = lane;
            while column < columns {
                y[to + column] = earlier[from + column];
                column += units_per_px;
            }
        }
        base += CUBE_COUNT_X as usize * px_per_cube;
    }
}
