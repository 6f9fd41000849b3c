use cubecl::prelude::*;

/// Frames of `x` from the index `from_first` on, by `from_step`, to the frames of `y` from `to_first` on, by `to_step`. `x` and `y` are `[items, frames, values]`,
/// and `frames` are copied of each item.
#[cube(launch_unchecked, address_type = "dynamic")]
pub(in super::super) fn copy_frames<F: Float, N: Size>(
    x: &Tensor<Vector<F, N>>,
    y: &mut Tensor<Vector<F, N>>,
    from_first: usize,
    from_step: usize,
    to_first: usize,
    to_step: usize,
    frames: usize,
    #[define(F)] _dtype: cubecl::ir::ElemType,
) {
    let vectors = x.shape(2) / x.vector_size();
    if ABSOLUTE_POS >= x.shape(0) * frames * vectors {
        terminate!();
    }
    let (at, frame) = (ABSOLUTE_POS % vectors, ABSOLUTE_POS / vectors % frames);
    let item = ABSOLUTE_POS / vectors / frames;
    let from = (item * x.shape(1) + from_first + frame * from_step) * vectors;
    let to = (item * y.shape(1) + to_first + frame * to_step) * vectors;
    y[to + at] = x[from + at];
}

/// A box of frames, rows and columns of each item of `x` to `y`, both `[items, frames, height, width, channels]`.
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
    if ABSOLUTE_POS >= x.shape(0) * frames * rows * columns * vectors {
        terminate!();
    }
    let (at, px) = (ABSOLUTE_POS % vectors, ABSOLUTE_POS / vectors);
    let (column, line) = (px % columns, px / columns);
    let (row, image) = (line % rows, line / rows);
    let (frame, item) = (image % frames, image / frames);
    let from = ((item * x.shape(1) + from_frame + frame) * x.shape(2) + from_row + row) * x.shape(3) + from_column + column;
    let to = ((item * y.shape(1) + to_frame + frame) * y.shape(2) + to_row + row) * y.shape(3) + to_column + column;
    y[to * vectors + at] = x[from * vectors + at];
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
