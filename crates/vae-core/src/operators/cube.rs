//! Operators on GPUs, as kernels for every runtime of CubeCL (CUDA, Vulkan, Metal, wgpu). Features are dense and channels last from the first convolution to the
//! last; so are weights, from loading on. Statistics and sums are f32 whatever the dtype, and in a fixed order: every run gives the same bits.

#[cfg(all(test, feature = "testing"))]
mod bench;
mod convolution;
mod kernels;
mod norms;
mod tensor;
#[cfg(all(test, feature = "testing"))]
mod tests;

use std::sync::{Arc, OnceLock};

use burn::backend::DispatchTensor;
use burn::tensor::{DType, Tensor};
use burn_cubecl::CubeBackend;
use burn_cubecl::ops::{numeric, permute};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::InputScalar;
use cubecl::zspace::metadata::Metadata;

#[cfg(feature = "testing")]
pub(crate) use self::norms::has_shared_memory;

use self::convolution::Problem;
use self::norms::GroupNorm;
use self::tensor::{View, address, dense, element, elementwise, empty, reshaped, vector_size};
use super::activation::Activation;
use super::convolution::{Convolution, Padding, TemporalWindow};
use super::group_norm::{GroupMoments, GroupNormParameters, TensorMoments};
use super::interface::Operators;
use super::plain::{self, QUERY_BLOCK};
use crate::{Context, MathMode};

/// Operators on [`Map`]s.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cube;

/// Features `[b, t, h, w, c]`, dense, with an operation that is applied when they are read.
#[derive(Clone)]
pub(crate) struct Map {
    x: CubeTensor,
    pending: Pending,
}

#[derive(Clone)]
enum Pending {
    None,
    /// The RMS norm, which is computed together with frames before it where it can be.
    RmsNorm(Arc<RmsNorm>),
    /// Twice the height and width, which the next convolution may do without.
    Doubling,
}

struct RmsNorm {
    gamma: Tensor<1>,
    silu: bool,
    computed: OnceLock<CubeTensor>,
}

impl From<CubeTensor> for Map {
    fn from(x: CubeTensor) -> Self {
        Self { x, pending: Pending::None }
    }
}

impl Map {
    /// `[b, t, h, w, c]` of what is in memory.
    fn stored(&self) -> [usize; 5] {
        std::array::from_fn(|axis| self.x.meta.shape()[axis])
    }

    /// `[b, t, h, w, c]`.
    fn shape(&self) -> [usize; 5] {
        let [b, t, h, w, c] = self.stored();
        if matches!(self.pending, Pending::Doubling) { [b, t, 2 * h, 2 * w, c] } else { [b, t, h, w, c] }
    }

    /// Batch items, px of all frames of each, and channels.
    fn items(x: &CubeTensor) -> CubeTensor {
        let shape = x.meta.shape();
        reshaped(x.clone(), [shape[0], shape[1] * shape[2] * shape[3], shape[4]])
    }

    /// Frames of all batch items, px of each, and channels.
    fn frames(x: &CubeTensor) -> CubeTensor {
        let shape = x.meta.shape();
        reshaped(x.clone(), [shape[0] * shape[1], shape[2] * shape[3], shape[4]])
    }

    /// The values, after what was pending.
    fn values(self) -> CubeTensor {
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
fn copy_frames(x: &CubeTensor, from: [usize; 2], y: &CubeTensor, to: [usize; 2], count: usize) {
    let frames = |x: &CubeTensor| {
        let shape = x.meta.shape();
        reshaped(x.clone(), [shape[0], shape[1], shape[2] * shape[3] * shape[4]])
    };
    let (x, y) = (frames(x), frames(y));
    let values = x.meta.shape()[2];
    let size = vector_size(&x, [values]).min(vector_size(&y, []));
    let units = x.meta.shape()[0] * count * values / size;
    if units == 0 {
        return;
    }
    let (cubes, dim) = elementwise(&x, units);
    let (client, address, element) = (x.client.clone(), address([&x, &y]), element(&x));
    let (x, y) = (x.into_tensor_arg(), y.into_tensor_arg());
    #[expect(unsafe_code, reason = "callers name frames that both have")]
    unsafe {
        kernels::copy_frames::launch_unchecked(&client, cubes, dim, address, size, x, y, from[0], from[1], to[0], to[1], count, element);
    }
}

/// A tensor of the backend as Burn's generic one holds it.
fn primitive<const D: usize>(x: Tensor<D>) -> CubeTensor {
    x.try_into_primitive::<CubeBackend>().expect("a tensor on a backend of CubeCL")
}

fn generic<const D: usize>(x: CubeTensor) -> Tensor<D> {
    Tensor::from_primitive::<CubeBackend>(x)
}

/// Whether the kernels of norms apply SiLU, and the activation that is left.
fn split(activation: Activation) -> (bool, Activation) {
    if activation == Activation::Silu { (true, Activation::None) } else { (false, activation) }
}

impl Cube {
    fn activate_rest(self, x: Map, activation: Activation, context: &Context) -> Map {
        if activation == Activation::None { x } else { self.activate(x, activation, context) }
    }
}

impl Operators for Cube {
    type Data = Map;

    fn import_tensor(&self, x: Tensor<5>, _: &Context) -> Map {
        dense(permute(primitive(x), &[0, 2, 3, 4, 1])).into()
    }

    fn export_tensor(&self, x: Map) -> Tensor<5> {
        generic(permute(x.values(), &[0, 4, 1, 2, 3]))
    }

    fn dims(&self, x: &Map) -> [usize; 5] {
        let [b, t, h, w, c] = x.shape();
        [b, c, t, h, w]
    }

    fn convolve(&self, x: Map, convolution: &Convolution, residual: Option<Map>, context: &Context) -> Map {
        let [b, out, frames, height, width] = convolution.output_dims(self.dims(&x));
        let Convolution { stride, padding: Padding { top, left, .. }, window, .. } = *convolution;
        let residual = residual.map(Map::values);
        let y = empty(&x.x, [b, frames, height, width, out]);
        if [b, frames, height, width, out].contains(&0) {
            return y.into();
        }
        let bias = convolution.bias.clone().map(|bias| dense(primitive(bias)));
        let mut weight = weight_view(convolution.weight.clone());
        let parts = if folds(&x, convolution, context.math_mode()) {
            let folded = convolution::fold(weight);
            let part = |phase: usize| {
                let [down, across] = [phase / 2, phase % 2];
                let mut parts = View::new(reshaped(folded.clone(), [4 * out, 1, 2, 2, x.stored()[4]]));
                parts.shape[0] = out;
                parts.offset = phase * out * parts.strides[0];
                let mut to = View::new(y.clone());
                to.offset = down * to.strides[2] + across * to.strides[3];
                to.shape[2] /= 2;
                to.shape[3] /= 2;
                to.strides[2] *= 2;
                to.strides[3] *= 2;
                let x = View::new(x.x.clone());
                Problem { x, weight: parts, bias: bias.clone(), y: to, stride: [1; 3], padding: [0, 1 - down, 1 - across] }.with_frames_as_items()
            };
            (0..4).map(part).collect()
        } else {
            let mut x = View::new(x.values());
            let given = x.shape[1];
            // Of a single frame's kernel only the last frame meets something.
            let kernel_frames = if given == 1 { 1 } else { weight.shape[1] };
            weight.offset += (weight.shape[1] - kernel_frames) * weight.strides[1];
            weight.shape[1] = kernel_frames;
            // Frames that no output depends on are cut off, and those before the first are zeros.
            let first = (window.context + 1).saturating_sub(kernel_frames);
            let missing = (kernel_frames - 1).saturating_sub(window.context);
            x.offset += first * x.strides[1];
            x.shape[1] -= first;
            let (y, stride, padding) = (View::new(y.clone()), [window.stride, stride[0], stride[1]], [missing, top, left]);
            vec![Problem { x, weight, bias, y, stride, padding }.with_frames_as_items()]
        };
        convolution::run(parts, &y, residual, context.math_mode());
        y.into()
    }

    fn group_moments(&self, x: &Map, groups: usize) -> GroupMoments {
        let [_, _, h, w, c] = x.shape();
        let values = Map::frames(&x.clone().values());
        let count = (c / groups * h * w) as f64;
        match GroupNorm::new(&values, groups).filter(|_| values.meta.num_elements() > 0) {
            Some(norm) => GroupMoments::Device(TensorMoments { count, values: generic(norm.moments()) }),
            None => GroupMoments::Device(plain::group_moments(self.export_tensor(x.clone()), groups)),
        }
    }

    fn apply_group_norm(&self, x: Map, moments: GroupMoments, norm: &GroupNormParameters, activation: Activation, context: &Context) -> Map {
        let shape = x.shape();
        let x = x.values();
        let frames = Map::frames(&x);
        let moments = moments.on(&norm.weight.device());
        let (fused, rest) = split(activation);
        let Some(kernel) = GroupNorm::new(&frames, norm.groups).filter(|_| frames.meta.num_elements() > 0) else {
            return self.import_tensor(plain::apply_group_norm(self.export_tensor(x.into()), &moments, norm, activation), context);
        };
        let y = kernel.apply(dense(primitive(moments.values)), norm, fused);
        self.activate_rest(reshaped(y, shape).into(), rest, context)
    }

    fn group_norm(&self, x: Map, norm: &GroupNormParameters, activation: Activation, context: &Context) -> Map {
        let shape = x.shape();
        let x = x.values();
        let frames = Map::frames(&x);
        let (fused, rest) = split(activation);
        let Some(kernel) = GroupNorm::new(&frames, norm.groups).filter(|_| frames.meta.num_elements() > 0) else {
            let x = Map::from(x);
            let moments = self.group_moments(&x, norm.groups);
            return self.apply_group_norm(x, moments, norm, activation, context);
        };
        self.activate_rest(reshaped(kernel.run(norm, fused), shape).into(), rest, context)
    }

    fn rms_norm(&self, x: Map, gamma: Tensor<1>, activation: Activation, context: &Context) -> Map {
        let (silu, rest) = split(activation);
        let x = x.values();
        if x.meta.num_elements() == 0 {
            return x.into();
        }
        let pending = Pending::RmsNorm(Arc::new(RmsNorm { gamma, silu, computed: OnceLock::new() }));
        self.activate_rest(Map { x, pending }, rest, context)
    }

    fn attend(&self, queries: Map, keys: Map, values: Map, context: &Context) -> Map {
        let [b, t, h, w, _] = queries.shape();
        let channels = values.shape()[4];
        let [queries, keys, values] = [queries, keys, values].map(|x| Map::frames(&x.values()));
        let y = empty(&values, [b, t, h, w, channels]);
        if y.meta.num_elements() > 0 {
            attend([queries, keys, values], &Map::frames(&y), context);
        }
        y.into()
    }

    fn upsample_nearest2x(&self, x: Map, _: &Context) -> Map {
        let x = if matches!(x.pending, Pending::None) { x.x } else { x.values() };
        Map { x, pending: Pending::Doubling }
    }

    fn add(&self, x: Map, other: Map, _: &Context) -> Map {
        dense(numeric::add(x.values(), other.values())).into()
    }

    fn concat_frames(&self, x: Map, later: Map, _: &Context) -> Map {
        let [b, t, h, w, c] = x.shape();
        let frames = later.shape()[1];
        let x = x.values();
        if let Pending::RmsNorm(norm) = &later.pending
            && norm.computed.get().is_none()
            && x.meta.num_elements() > 0
        {
            let y = norms::rms_norm(&Map::items(&later.x), Some(&Map::items(&x)), norm.gamma.clone(), norm.silu);
            return reshaped(y, [b, t + frames, h, w, c]).into();
        }
        let later = later.values();
        let y = empty(&x, [b, t + frames, h, w, c]);
        copy_frames(&x, [0, 1], &y, [0, 1], t);
        copy_frames(&later, [0, 1], &y, [t, 1], frames);
        y.into()
    }

    fn interleave_frames(&self, even: Map, odd: Map, _: &Context) -> Map {
        let [b, t, h, w, c] = even.shape();
        let (even, odd) = (even.values(), odd.values());
        let y = empty(&even, [b, 2 * t, h, w, c]);
        copy_frames(&even, [0, 1], &y, [0, 2], t);
        copy_frames(&odd, [0, 1], &y, [1, 2], t);
        y.into()
    }

    fn last_frames(&self, x: &Map, count: usize, _: &Context) -> Map {
        let [b, t, h, w, c] = x.shape();
        let x = x.clone().values();
        if count == t {
            return x.into();
        }
        let y = empty(&x, [b, count, h, w, c]);
        copy_frames(&x, [t - count, 1], &y, [0, 1], count);
        y.into()
    }

    fn pack(&self, x: Tensor<5>) -> Tensor<5> {
        let x = primitive(x);
        let [b, c, t, h, w] = std::array::from_fn(|axis| x.meta.shape()[axis]);
        let y = tensor::empty_f32(&x, [b, c.div_ceil(3), t, h, w]);
        let count = y.meta.num_elements();
        if count > 0 {
            let (cubes, dim) = elementwise(&y, count);
            let (client, address, element) = (y.client.clone(), address([&x, &y]), element(&x));
            #[expect(unsafe_code, reason = "every unit reads and writes inside of the tensors")]
            unsafe {
                kernels::pack::launch_unchecked(&client, cubes, dim, address, x.into_tensor_arg(), y.clone().into_tensor_arg(), element);
            }
        }
        generic(y)
    }

    fn prepare_weight(&self, weight: DispatchTensor) -> DispatchTensor {
        // The number of axes is known to the primitive.
        let weight = primitive(Tensor::<1>::from_dispatch(weight));
        let axes: Vec<usize> = [0].into_iter().chain(2..weight.meta.num_dims()).chain([1]).collect();
        let last = axes.len() - 1;
        let back: Vec<usize> = [0, last].into_iter().chain(1..last).collect();
        generic::<1>(permute(dense(permute(weight, &axes)), &back)).into_dispatch()
    }
}

/// Five axes for a weight, in the memory that it has: `axes` names the axis of the weight that each of them is, and those of length 1 that are added.
pub(crate) fn with_five_axes<const D: usize>(weight: Tensor<D>, axes: [Option<usize>; 5]) -> Tensor<5> {
    let mut weight = primitive(weight);
    let [shape, strides] = [weight.meta.shape().to_vec(), weight.meta.strides().to_vec()];
    let of = |values: &[usize]| axes.map(|axis| axis.map_or(1, |axis| values[axis])).to_vec();
    *weight.meta = Metadata::new(of(&shape), of(&strides));
    generic(weight)
}

/// `[out, in, t, h, w]` as kernels read it: `[out, t, h, w, in]`, in the memory that it has if its channels lie next to one another.
fn weight_view(weight: Tensor<5>) -> View {
    let weight = permute(primitive(weight), &[0, 2, 3, 4, 1]);
    let is_channels_last = weight.meta.strides()[4] == 1 || weight.meta.shape()[4] == 1;
    let weight = if is_channels_last { weight } else { dense(weight) };
    let strides = std::array::from_fn(|axis| weight.meta.strides()[axis]);
    let shape = std::array::from_fn(|axis| weight.meta.shape()[axis]);
    View { tensor: weight, offset: 0, shape, strides }
}

/// Whether a convolution runs on px that are still to be doubled. With tensor cores its output has to begin anywhere in memory.
fn folds(x: &Map, convolution: &Convolution, math_mode: MathMode) -> bool {
    let fits = convolution.kernel() == [1, 3, 3]
        && convolution.stride == [1, 1]
        && convolution.padding == Padding::all(1)
        && convolution.window == TemporalWindow::EACH;
    let is_bindable = matches!(x.x.device, cubecl::Device::Cuda(_)) || !convolution::uses_tensor_cores(&x.x, math_mode);
    matches!(x.pending, Pending::Doubling) && fits && is_bindable
}

/// `softmax(Q K' / sqrt(c)) V` of each frame. All are `[frames, px, channels]`, and the last is written.
///
/// Both products are convolutions of one px: keys are the weights of the first, and values, transposed, those of the second.
fn attend([queries, keys, values]: [CubeTensor; 3], y: &CubeTensor, context: &Context) {
    let [frames, px, channels] = std::array::from_fn(|axis| keys.meta.shape()[axis]);
    let channels_out = values.meta.shape()[2];
    // f16 ends at 65504, which scores may exceed.
    let [before, after] = if queries.dtype == DType::F16 { plain::scales(channels) } else { [1.0, 1.0 / (channels as f64).sqrt()] };
    let queries = if before == 1.0 { queries } else { dense(numeric::mul_scalar(queries.clone(), InputScalar::new(before, element(&queries)))) };
    let values = dense(permute(values, &[0, 2, 1]));
    // Rows of one matrix.
    let rows = |tensor: &CubeTensor, first: usize, [count, width]: [usize; 2]| {
        let shape = [1, 1, 1, count, width];
        View { offset: first * width, shape, strides: [count * width, count * width, count * width, width, 1], tensor: tensor.clone() }
    };
    let weights = |tensor: &CubeTensor, frame: usize, [count, width]: [usize; 2]| {
        let offset = frame * count * width;
        View { offset, shape: [count, 1, 1, 1, width], strides: [width, width, width, width, 1], tensor: tensor.clone() }
    };
    let multiply = |x: View, weight: View, to: View, whole: &CubeTensor| {
        let problem = Problem { x, weight, bias: None, y: to, stride: [1; 3], padding: [0; 3] };
        convolution::run(vec![problem], whole, None, context.math_mode());
    };
    for frame in 0..frames {
        for first in (0..px).step_by(QUERY_BLOCK) {
            context.check_stop();
            let count = QUERY_BLOCK.min(px - first);
            let scores = empty(&keys, [count, px]);
            let block = rows(&queries, frame * px + first, [count, channels]);
            multiply(block, weights(&keys, frame, [px, channels]), rows(&scores, 0, [count, px]), &scores);
            let shares = norms::softmax_rows(&scores, after as f32);
            let to = rows(y, frame * px + first, [count, channels_out]);
            multiply(rows(&shares, 0, [count, px]), weights(&values, frame, [channels_out, px]), to, y);
        }
    }
}
