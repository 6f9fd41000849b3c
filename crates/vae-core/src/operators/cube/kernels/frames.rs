use cubecl::prelude::*;

use super::UNITS;

/// Frames of `x` from the index `from_first` on, by `from_step`, to the frames of `y` from `to_first` on, by `to_step`. `x` and `y` are `[items, frames, values]`.
/// Cubes along y take the frames, those along z the items.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn copy_frames<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    from_first: usize,
    from_step: usize,
    to_first: usize,
    to_step: usize,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let vectors = x.shape(2) / x.vector_size();
    let (frame, item) = (CUBE_POS_Y as usize, CUBE_POS_Z as usize);
    let from = (item * x.shape(1) + from_first + frame * from_step) * vectors;
    let to = (item * y.shape(1) + to_first + frame * to_step) * vectors;
    copy_vectors::<F, N>(x, y, from, to, vectors);
}

/// A box of frames, rows and columns of each item of `x` to `y`, both `[items, frames, height, width, channels]`. Cubes along y take the rows, those along z the
/// frames of all items.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn copy_part<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    from_frame: usize,
    from_row: usize,
    from_column: usize,
    to_frame: usize,
    to_row: usize,
    to_column: usize,
    frames: usize,
    rows: usize,
    columns: usize,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let vectors = x.shape(4) / x.vector_size();
    let (frame, item) = (CUBE_POS_Z as usize % frames, CUBE_POS_Z as usize / frames);
    let mut row = CUBE_POS_Y as usize;
    while row < rows {
        let from = ((item * x.shape(1) + from_frame + frame) * x.shape(2) + from_row + row) * x.shape(3) + from_column;
        let to = ((item * y.shape(1) + to_frame + frame) * y.shape(2) + to_row + row) * y.shape(3) + to_column;
        copy_vectors::<F, N>(x, y, from * vectors, to * vectors, columns * vectors);
        row += CUBE_COUNT_Y as usize;
    }
}

/// Copies `count` vectors that lie next to one another, by all units along x.
#[cube]
fn copy_vectors<F: Float, N: Size>(x: &Tensor<Vector<F, N>>, y: &mut Tensor<Vector<F, N>>, from: usize, to: usize, count: usize) {
    let mut at = CUBE_POS_X as usize * comptime!(UNITS as usize) + UNIT_POS as usize;
    while at < count {
        y[to + at] = x[from + at];
        at += CUBE_COUNT_X as usize * comptime!(UNITS as usize);
    }
}

/// Twice the height and width: each unit writes one vector. `x` is `[frames, height, width, channels]`.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn upsample_nearest2x<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let columns = x.shape(3) / x.vector_size();
    let (height, width) = (x.shape(1), x.shape(2));
    if ABSOLUTE_POS >= 4 * x.shape(0) * height * width * columns {
        terminate!();
    }
    let column = ABSOLUTE_POS % columns;
    let px = ABSOLUTE_POS / columns;
    let (across, row) = (px % (2 * width), px / (2 * width));
    let (down, frame) = (row % (2 * height), row / (2 * height));
    y[ABSOLUTE_POS] = x[((frame * height + down / 2) * width + across / 2) * columns + column];
}
