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
