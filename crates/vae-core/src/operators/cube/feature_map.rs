use std::sync::{Arc, OnceLock};

use burn::tensor::Tensor;
use burn_cubecl::tensor::CubeTensor;
use cubecl::{CubeCount, CubeDim};

use super::kernels::{self, UNITS};
use super::norms;
use super::tensor::{address, element, elementwise, empty, reshaped, vector_size};
use crate::operators::Part;

/// Features `[b, t, h, w, c]`, dense, with an operation that is applied when they are read.
#[derive(Clone)]
pub(crate) struct FeatureMap {
    /// `[b, t, h, w, c]`, before what is pending.
    pub(super) x: CubeTensor,
    pub(super) pending: Pending,
}

/// What is done to features when they are read.
#[derive(Clone)]
pub(super) enum Pending {
    None,
    /// The RMS norm, which is computed together with frames before it where it can be.
    RmsNorm(Arc<RmsNorm>),
    /// Twice the height and width, which the next convolution may do without.
    Doubling,
}

/// An RMS norm, and what it gave if it was needed alone.
pub(super) struct RmsNorm {
    pub(super) gamma: Tensor<1>,
    pub(super) silu: bool,
    pub(super) computed: OnceLock<CubeTensor>,
}

impl From<CubeTensor> for FeatureMap {
    fn from(x: CubeTensor) -> Self {
        Self { x, pending: Pending::None }
    }
}

impl FeatureMap {
    /// `[b, t, h, w, c]` of what is in memory.
    pub(super) fn stored(&self) -> [usize; 5] {
        std::array::from_fn(|axis| self.x.meta.shape()[axis])
    }

    /// `[b, t, h, w, c]`.
    pub(super) fn shape(&self) -> [usize; 5] {
        let [b, t, h, w, c] = self.stored();
        if matches!(self.pending, Pending::Doubling) { [b, t, 2 * h, 2 * w, c] } else { [b, t, h, w, c] }
    }

    /// Batch items, px of all frames of each, and channels.
    pub(super) fn items(x: &CubeTensor) -> CubeTensor {
        let shape = x.meta.shape();
        reshaped(x.clone(), [shape[0], shape[1] * shape[2] * shape[3], shape[4]])
    }

    /// Frames of all batch items, px of each, and channels.
    pub(super) fn frames(x: &CubeTensor) -> CubeTensor {
        let shape = x.meta.shape();
        reshaped(x.clone(), [shape[0] * shape[1], shape[2] * shape[3], shape[4]])
    }

    /// The values, after what was pending.
    pub(super) fn values(self) -> CubeTensor {
        let [b, t, h, w, c] = self.stored();
        match self.pending {
            Pending::None => self.x,
            Pending::RmsNorm(norm) => {
                let compute = || reshaped(norms::rms_norm(&Self::items(&self.x), None, norm.gamma.clone(), norm.silu), [b, t, h, w, c]);
                norm.computed.get_or_init(compute).clone()
            }
            Pending::Doubling => {
                let y = empty(&self.x, [b, t, 2 * h, 2 * w, c]);
                let size = vector_size(&self.x, [c]);
                let (cubes, dim) = elementwise(&y, y.meta.num_elements() / size);
                let (address, element) = (address([&y]), element(&y));
                let x = reshaped(self.x, [b * t, h, w, c]);
                let (client, x, to) = (y.client.clone(), x.into_tensor_arg(), y.clone().into_tensor_arg());
                #[expect(unsafe_code, reason = "every unit reads and writes inside of the tensors")]
                unsafe {
                    kernels::upsample_nearest2x::launch_unchecked(&client, cubes, dim, address, size, x, to, element);
                }
                y
            }
        }
    }
}

/// Copies `count` frames from the index `from`, by its step, of each item of `x` to the index `to` of `y`. Both are `[b, t, h, w, c]`.
pub(super) fn copy_frames(x: &CubeTensor, from: [usize; 2], y: &CubeTensor, to: [usize; 2], count: usize) {
    let frames = |x: &CubeTensor| {
        let shape = x.meta.shape();
        reshaped(x.clone(), [shape[0], shape[1], shape[2] * shape[3] * shape[4]])
    };
    let (x, y) = (frames(x), frames(y));
    let values = x.meta.shape()[2];
    let size = vector_size(&x, [values]).min(vector_size(&y, []));
    let items = x.meta.shape()[0];
    if items * count * values == 0 {
        return;
    }
    let (cubes, dim) = lines(values / size, count, items);
    let (client, address, element) = (x.client.clone(), address([&x, &y]), element(&x));
    let (x, y) = (x.into_tensor_arg(), y.into_tensor_arg());
    #[expect(unsafe_code, reason = "callers name frames that both have")]
    unsafe {
        kernels::copy_frames::launch_unchecked(&client, cubes, dim, address, size, x, y, from[0], from[1], to[0], to[1], element);
    }
}

/// Copies a box of `[b, t, h, w, c]` into `y`, which has other frames, rows and columns.
pub(super) fn copy_part(Part { x, from, to, size: [frames, rows, columns] }: Part<CubeTensor>, y: &CubeTensor) {
    let shape = x.meta.shape();
    let (items, channels) = (shape[0], shape[4]);
    let size = vector_size(&x, [channels]).min(vector_size(y, [channels]));
    if items * frames * rows * columns * channels == 0 {
        return;
    }
    let (cubes, dim) = lines(columns * channels / size, rows.min(MOST_CUBES), items * frames);
    let (client, address, element) = (x.client.clone(), address([&x, y]), element(&x));
    let (x, y) = (x.into_tensor_arg(), y.clone().into_tensor_arg());
    let ([from_frame, from_row, from_column], [to_frame, to_row, to_column]) = (from, to);
    #[expect(unsafe_code, reason = "callers name boxes that both have")]
    unsafe {
        kernels::copy_part::launch_unchecked(
            &client,
            cubes,
            dim,
            address,
            size,
            x,
            y,
            from_frame,
            from_row,
            from_column,
            to_frame,
            to_row,
            to_column,
            frames,
            rows,
            columns,
            element,
        );
    }
}

/// Cubes along an axis at most, on every device.
const MOST_CUBES: usize = 65_535;

/// The cubes and units of a kernel that copies lines of so many vectors.
fn lines(vectors: usize, lines: usize, images: usize) -> (CubeCount, CubeDim) {
    let across = vectors.div_ceil(UNITS as usize).min(MOST_CUBES);
    (CubeCount::Static(across as u32, lines as u32, images as u32), CubeDim::new_1d(UNITS))
}
