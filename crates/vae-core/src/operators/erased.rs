//! Operators without their type, so that features of every implementation are one type.

use std::any::{Any, TypeId};
use std::fmt::Debug;
use std::sync::Arc;

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use super::activation::Activation;
use super::convolution::Convolution;
use super::group_norm::{GroupMoments, GroupNormParameters};
use super::interface::Operators;
use super::part::Part;
use crate::Context;

/// An [`Operators::Data`] of unknown type.
pub(crate) type AnyData = Arc<dyn Any + Send + Sync>;

/// [`Operators`] whose data are [`AnyData`], all of one type.
pub(crate) trait AnyOperators: Debug + Send + Sync {
    /// The type of the data.
    fn data_type(&self) -> TypeId;
    fn import_tensor(&self, x: Tensor<5>, context: &Context) -> AnyData;
    fn export_tensor(&self, x: AnyData) -> Tensor<5>;
    fn dims(&self, x: &AnyData) -> [usize; 5];
    fn convolve(&self, x: AnyData, convolution: &Convolution, residual: Option<AnyData>, context: &Context) -> AnyData;
    fn group_moments(&self, x: &AnyData, groups: usize) -> GroupMoments;
    fn apply_group_norm(&self, x: AnyData, moments: GroupMoments, norm: &GroupNormParameters, activation: Activation, context: &Context) -> AnyData;
    fn group_norm(&self, x: AnyData, norm: &GroupNormParameters, activation: Activation, context: &Context) -> AnyData;
    fn rms_norm(&self, x: AnyData, gamma: Tensor<1>, activation: Activation, context: &Context) -> AnyData;
    fn attend(&self, queries: AnyData, keys: AnyData, values: AnyData, context: &Context) -> AnyData;
    fn activate(&self, x: AnyData, activation: Activation, context: &Context) -> AnyData;
    fn upsample_nearest2x(&self, x: AnyData, context: &Context) -> AnyData;
    fn crop(&self, x: AnyData, start: [usize; 2], size: [usize; 2], context: &Context) -> AnyData;
    fn assemble(&self, parts: Vec<Part<AnyData>>, shape: [usize; 5], context: &Context) -> AnyData;
    fn computed(&self, x: AnyData, context: &Context) -> AnyData;
    fn bytes(&self, x: &AnyData) -> u64;
    fn add(&self, x: AnyData, other: AnyData, context: &Context) -> AnyData;
    fn concat_frames(&self, x: AnyData, later: AnyData, context: &Context) -> AnyData;
    fn interleave_frames(&self, even: AnyData, odd: AnyData, context: &Context) -> AnyData;
    fn last_frames(&self, x: &AnyData, count: usize, context: &Context) -> AnyData;
    fn zero_frames(&self, x: &AnyData, count: usize, context: &Context) -> AnyData;
    fn pack(&self, x: Tensor<5>) -> Tensor<5>;
    fn prepare_weight(&self, weight: DispatchTensor) -> DispatchTensor;
}

const FOREIGN: &str = "data of these operators";

fn typed<D: Clone + Send + Sync + 'static>(x: AnyData) -> D {
    Arc::unwrap_or_clone(x.downcast().expect(FOREIGN))
}

fn typed_ref<D: 'static>(x: &AnyData) -> &D {
    x.downcast_ref().expect(FOREIGN)
}

impl<O: Operators> AnyOperators for O {
    fn data_type(&self) -> TypeId {
        TypeId::of::<O::Data>()
    }

    fn import_tensor(&self, x: Tensor<5>, context: &Context) -> AnyData {
        Arc::new(O::import_tensor(self, x, context))
    }

    fn export_tensor(&self, x: AnyData) -> Tensor<5> {
        O::export_tensor(self, typed(x))
    }

    fn dims(&self, x: &AnyData) -> [usize; 5] {
        O::dims(self, typed_ref(x))
    }

    fn convolve(&self, x: AnyData, convolution: &Convolution, residual: Option<AnyData>, context: &Context) -> AnyData {
        Arc::new(O::convolve(self, typed(x), convolution, residual.map(typed), context))
    }

    fn group_moments(&self, x: &AnyData, groups: usize) -> GroupMoments {
        O::group_moments(self, typed_ref(x), groups)
    }

    fn apply_group_norm(&self, x: AnyData, moments: GroupMoments, norm: &GroupNormParameters, activation: Activation, context: &Context) -> AnyData {
        Arc::new(O::apply_group_norm(self, typed(x), moments, norm, activation, context))
    }

    fn group_norm(&self, x: AnyData, norm: &GroupNormParameters, activation: Activation, context: &Context) -> AnyData {
        Arc::new(O::group_norm(self, typed(x), norm, activation, context))
    }

    fn rms_norm(&self, x: AnyData, gamma: Tensor<1>, activation: Activation, context: &Context) -> AnyData {
        Arc::new(O::rms_norm(self, typed(x), gamma, activation, context))
    }

    fn attend(&self, queries: AnyData, keys: AnyData, values: AnyData, context: &Context) -> AnyData {
        Arc::new(O::attend(self, typed(queries), typed(keys), typed(values), context))
    }

    fn activate(&self, x: AnyData, activation: Activation, context: &Context) -> AnyData {
        Arc::new(O::activate(self, typed(x), activation, context))
    }

    fn upsample_nearest2x(&self, x: AnyData, context: &Context) -> AnyData {
        Arc::new(O::upsample_nearest2x(self, typed(x), context))
    }

    fn crop(&self, x: AnyData, start: [usize; 2], size: [usize; 2], context: &Context) -> AnyData {
        Arc::new(O::crop(self, typed(x), start, size, context))
    }

    fn assemble(&self, parts: Vec<Part<AnyData>>, shape: [usize; 5], context: &Context) -> AnyData {
        Arc::new(O::assemble(self, parts.into_iter().map(|part| part.map(typed)).collect(), shape, context))
    }

    fn computed(&self, x: AnyData, context: &Context) -> AnyData {
        Arc::new(O::computed(self, typed(x), context))
    }

    fn bytes(&self, x: &AnyData) -> u64 {
        O::bytes(self, typed_ref(x))
    }

    fn add(&self, x: AnyData, other: AnyData, context: &Context) -> AnyData {
        Arc::new(O::add(self, typed(x), typed(other), context))
    }

    fn concat_frames(&self, x: AnyData, later: AnyData, context: &Context) -> AnyData {
        Arc::new(O::concat_frames(self, typed(x), typed(later), context))
    }

    fn interleave_frames(&self, even: AnyData, odd: AnyData, context: &Context) -> AnyData {
        Arc::new(O::interleave_frames(self, typed(even), typed(odd), context))
    }

    fn last_frames(&self, x: &AnyData, count: usize, context: &Context) -> AnyData {
        Arc::new(O::last_frames(self, typed_ref(x), count, context))
    }

    fn zero_frames(&self, x: &AnyData, count: usize, context: &Context) -> AnyData {
        Arc::new(O::zero_frames(self, typed_ref(x), count, context))
    }

    fn pack(&self, x: Tensor<5>) -> Tensor<5> {
        O::pack(self, x)
    }

    fn prepare_weight(&self, weight: DispatchTensor) -> DispatchTensor {
        O::prepare_weight(self, weight)
    }
}
