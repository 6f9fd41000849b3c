//! Operators on GPUs, as kernels for every runtime of CubeCL (CUDA, Vulkan, Metal, wgpu). Features are dense and channels last from the first convolution to the
//! last; so are weights, from loading on. Statistics and sums are f32 whatever the dtype. The order of sums depends on the kernel alone: two runs differ only where
//! tuning chose different ones.

mod attention;
#[cfg(all(test, feature = "testing"))]
mod bench;
mod convolution;
mod feature_map;
mod kernels;
mod norms;
mod tensor;
#[cfg(all(test, feature = "testing"))]
mod tests;

use std::sync::{Arc, OnceLock};

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;
use burn_cubecl::ops::{numeric, permute};
use burn_cubecl::tensor::CubeTensor;
use cubecl::zspace::metadata::Metadata;

#[cfg(feature = "testing")]
pub(crate) use self::norms::has_shared_memory;

use self::feature_map::{FeatureMap, Pending, RmsNorm, copy_frames, copy_part};
use self::norms::GroupNorm;
use self::tensor::{address, dense, element, elementwise, empty, generic, primitive, reshaped};
use super::activation::Activation;
use super::convolution::{Convolution, TemporalWindow};
use super::group_norm::{GroupMoments, GroupNormParameters, TensorMoments};
use super::interface::Operators;
use super::part::Part;
use super::plain;
use crate::{Context, MathMode};

/// Operators on [`FeatureMap`]s.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cube;

/// Whether the kernels of norms apply SiLU, and the activation that is left.
fn split(activation: Activation) -> (bool, Activation) {
    if activation == Activation::Silu { (true, Activation::None) } else { (false, activation) }
}

impl Cube {
    fn activate_rest(self, x: FeatureMap, activation: Activation, context: &Context) -> FeatureMap {
        if activation == Activation::None { x } else { self.activate(x, activation, context) }
    }
}

impl Operators for Cube {
    type Data = FeatureMap;

    fn import_tensor(&self, x: Tensor<5>, _: &Context) -> FeatureMap {
        dense(permute(primitive(x), &[0, 2, 3, 4, 1])).into()
    }

    fn export_tensor(&self, x: FeatureMap) -> Tensor<5> {
        generic(permute(x.values(), &[0, 4, 1, 2, 3]))
    }

    fn dims(&self, x: &FeatureMap) -> [usize; 5] {
        let [b, t, h, w, c] = x.shape();
        [b, c, t, h, w]
    }

    fn convolve(&self, x: FeatureMap, convolution: &Convolution, residual: Option<FeatureMap>, context: &Context) -> FeatureMap {
        let [b, out, frames, height, width] = convolution.output_dims(self.dims(&x));
        let residual = residual.map(FeatureMap::values);
        let y = empty(&x.x, [b, frames, height, width, out]);
        if [b, frames, height, width, out].contains(&0) {
            return y.into();
        }
        let parts = if folds(&x, convolution, context.math_mode()) {
            convolution::folded_parts(&x.x, convolution, &y)
        } else {
            vec![convolution::whole(x.values(), convolution, &y)]
        };
        convolution::run(parts, &y, residual, context.math_mode());
        y.into()
    }

    fn group_moments(&self, x: &FeatureMap, groups: usize) -> GroupMoments {
        let [_, _, h, w, c] = x.shape();
        let values = FeatureMap::frames(&x.clone().values());
        let count = (c / groups * h * w) as f64;
        match GroupNorm::new(&values, groups).filter(|_| values.meta.num_elements() > 0) {
            Some(norm) => GroupMoments::Device(TensorMoments { count, values: generic(norm.moments()) }),
            None => GroupMoments::Device(plain::group_moments(self.export_tensor(x.clone()), groups)),
        }
    }

    fn apply_group_norm(
        &self,
        x: FeatureMap,
        moments: GroupMoments,
        norm: &GroupNormParameters,
        activation: Activation,
        context: &Context,
    ) -> FeatureMap {
        let shape = x.shape();
        let x = x.values();
        let frames = FeatureMap::frames(&x);
        let moments = moments.on(&norm.weight.device());
        let (fused, rest) = split(activation);
        let Some(kernel) = GroupNorm::new(&frames, norm.groups).filter(|_| frames.meta.num_elements() > 0) else {
            return self.import_tensor(plain::apply_group_norm(self.export_tensor(x.into()), &moments, norm, activation), context);
        };
        let y = kernel.apply(dense(primitive(moments.values)), norm, fused);
        self.activate_rest(reshaped(y, shape).into(), rest, context)
    }

    fn group_norm(&self, x: FeatureMap, norm: &GroupNormParameters, activation: Activation, context: &Context) -> FeatureMap {
        let shape = x.shape();
        let x = x.values();
        let frames = FeatureMap::frames(&x);
        let (fused, rest) = split(activation);
        let Some(kernel) = GroupNorm::new(&frames, norm.groups).filter(|_| frames.meta.num_elements() > 0) else {
            let x = FeatureMap::from(x);
            let moments = self.group_moments(&x, norm.groups);
            return self.apply_group_norm(x, moments, norm, activation, context);
        };
        self.activate_rest(reshaped(kernel.run(norm, fused), shape).into(), rest, context)
    }

    fn rms_norm(&self, x: FeatureMap, gamma: Tensor<1>, activation: Activation, context: &Context) -> FeatureMap {
        let (silu, rest) = split(activation);
        let x = x.values();
        if x.meta.num_elements() == 0 {
            return x.into();
        }
        let pending = Pending::RmsNorm(Arc::new(RmsNorm { gamma, silu, computed: OnceLock::new() }));
        self.activate_rest(FeatureMap { x, pending }, rest, context)
    }

    fn attend(&self, queries: FeatureMap, keys: FeatureMap, values: FeatureMap, context: &Context) -> FeatureMap {
        let [b, t, h, w, _] = queries.shape();
        let channels = values.shape()[4];
        let [queries, keys, values] = [queries, keys, values].map(|x| FeatureMap::frames(&x.values()));
        let y = empty(&values, [b, t, h, w, channels]);
        if y.meta.num_elements() > 0 {
            attention::attend([queries, keys, values], &FeatureMap::frames(&y), context);
        }
        y.into()
    }

    fn upsample_nearest2x(&self, x: FeatureMap, _: &Context) -> FeatureMap {
        let x = if matches!(x.pending, Pending::None) { x.x } else { x.values() };
        FeatureMap { x, pending: Pending::Doubling }
    }

    fn crop(&self, x: FeatureMap, [top, left]: [usize; 2], [height, width]: [usize; 2], context: &Context) -> FeatureMap {
        let [b, c, t, ..] = self.dims(&x);
        let part = Part { x, from: [0, top, left], to: [0; 3], size: [t, height, width] };
        self.assemble(vec![part], [b, c, t, height, width], context)
    }

    fn assemble(&self, parts: Vec<Part<FeatureMap>>, [b, c, t, h, w]: [usize; 5], _: &Context) -> FeatureMap {
        let parts: Vec<Part<CubeTensor>> = parts.into_iter().map(|part| part.map(FeatureMap::values)).collect();
        let y = empty(&parts[0].x, [b, t, h, w, c]);
        for part in parts {
            copy_part(part, &y);
        }
        y.into()
    }

    fn add(&self, x: FeatureMap, other: FeatureMap, _: &Context) -> FeatureMap {
        let (x, other) = (x.values(), other.values());
        if x.handle.can_mut() {
            convolution::add_into(&x, other);
            return x.into();
        }
        dense(numeric::add(x, other)).into()
    }

    fn concat_frames(&self, x: FeatureMap, later: FeatureMap, _: &Context) -> FeatureMap {
        let [b, t, h, w, c] = x.shape();
        let frames = later.shape()[1];
        let x = x.values();
        if let Pending::RmsNorm(norm) = &later.pending
            && norm.computed.get().is_none()
            && x.meta.num_elements() > 0
        {
            let y = norms::rms_norm(&FeatureMap::items(&later.x), Some(&FeatureMap::items(&x)), norm.gamma.clone(), norm.silu);
            return reshaped(y, [b, t + frames, h, w, c]).into();
        }
        let later = later.values();
        let y = empty(&x, [b, t + frames, h, w, c]);
        copy_frames(&x, [0, 1], &y, [0, 1], t);
        copy_frames(&later, [0, 1], &y, [t, 1], frames);
        y.into()
    }

    fn interleave_frames(&self, even: FeatureMap, odd: FeatureMap, _: &Context) -> FeatureMap {
        let [b, t, h, w, c] = even.shape();
        let (even, odd) = (even.values(), odd.values());
        let y = empty(&even, [b, 2 * t, h, w, c]);
        copy_frames(&even, [0, 1], &y, [0, 2], t);
        copy_frames(&odd, [0, 1], &y, [1, 2], t);
        y.into()
    }

    fn last_frames(&self, x: &FeatureMap, count: usize, _: &Context) -> FeatureMap {
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

/// Whether a convolution runs on px that are still to be doubled. With tensor cores its output has to begin anywhere in memory.
fn folds(x: &FeatureMap, convolution: &Convolution, math_mode: MathMode) -> bool {
    let fits = convolution.kernel() == [1, 3, 3] && convolution.stride == [1, 1] && convolution.window == TemporalWindow::EACH;
    let is_bindable = matches!(x.x.device, cubecl::Device::Cuda(_)) || !convolution::uses_tensor_cores(&x.x, math_mode);
    matches!(x.pending, Pending::Doubling) && fits && is_bindable
}
