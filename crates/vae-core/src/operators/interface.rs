use std::fmt::Debug;

use burn::backend::DispatchTensor;
use burn::tensor::Tensor;

use super::activation::Activation;
use super::convolution::Convolution;
use super::group_norm::{GroupMoments, GroupNormParameters};
use super::part::Part;
use super::plain;
use crate::{Context, eight_bits};

/// The operations that layers are made of, on features `[b, c, t, h, w]` (batch, channels, frames, height, width) that an implementation stores as it likes.
///
/// Only the conversions have to be written: by default an operation converts its input to a tensor, uses Burn's operators, and converts back. Where operands
/// have to agree in shape, they do: callers check.
pub trait Operators: Debug + Send + Sync + 'static {
    /// Features as this implementation stores them. Clones share memory.
    type Data: Clone + Send + Sync + 'static;

    /// Features of a tensor.
    fn import_tensor(&self, x: Tensor<5>, context: &Context) -> Self::Data;

    /// The tensor of features.
    fn export_tensor(&self, x: Self::Data) -> Tensor<5>;

    /// `[b, c, t, h, w]`.
    fn dims(&self, x: &Self::Data) -> [usize; 5];

    /// A convolution, added to `residual` if there is one.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` to [`Convolution::output_dims`], which are also those of the residual.
    fn convolve(&self, x: Self::Data, convolution: &Convolution, residual: Option<Self::Data>, context: &Context) -> Self::Data {
        let residual = residual.map(|residual| self.export_tensor(residual));
        self.import_tensor(plain::convolve(self.export_tensor(x), convolution, residual), context)
    }

    /// The moments of each group of consecutive channels, in each frame.
    fn group_moments(&self, x: &Self::Data, groups: usize) -> GroupMoments {
        GroupMoments::Device(plain::group_moments(self.export_tensor(x.clone()), groups))
    }

    /// A group norm with given moments, then an activation.
    fn apply_group_norm(
        &self,
        x: Self::Data,
        moments: GroupMoments,
        norm: &GroupNormParameters,
        activation: Activation,
        context: &Context,
    ) -> Self::Data {
        let x = self.export_tensor(x);
        let moments = moments.on(&x.device());
        self.import_tensor(plain::apply_group_norm(x, &moments, norm, activation), context)
    }

    /// A group norm with the moments of `x` itself, then an activation.
    fn group_norm(&self, x: Self::Data, norm: &GroupNormParameters, activation: Activation, context: &Context) -> Self::Data {
        let moments = self.group_moments(&x, norm.groups);
        self.apply_group_norm(x, moments, norm, activation, context)
    }

    /// Each px divided by the L2 norm of its channels, times the root of their number and `gamma` (`[c]`), then an activation (diffusers, `WanRMS_norm`).
    fn rms_norm(&self, x: Self::Data, gamma: Tensor<1>, activation: Activation, context: &Context) -> Self::Data {
        self.import_tensor(plain::rms_norm(self.export_tensor(x), gamma, activation), context)
    }

    /// Scaled dot-product attention with one head over the px of each frame: `softmax(Q K' / sqrt(c)) V`, with the softmax in f32.
    fn attend(&self, queries: Self::Data, keys: Self::Data, values: Self::Data, context: &Context) -> Self::Data {
        let tensors = [queries, keys, values].map(|x| self.export_tensor(x));
        self.import_tensor(plain::attend(tensors, context), context)
    }

    /// An activation of each value.
    fn activate(&self, x: Self::Data, activation: Activation, context: &Context) -> Self::Data {
        self.import_tensor(plain::activate(self.export_tensor(x), activation), context)
    }

    /// Twice the height and width, each value four times (diffusers, `Upsample2D`).
    fn upsample_nearest2x(&self, x: Self::Data, context: &Context) -> Self::Data {
        self.import_tensor(plain::upsample_nearest2x(self.export_tensor(x)), context)
    }

    /// The px of `size` (height and width) from row and column `start` on.
    fn crop(&self, x: Self::Data, start: [usize; 2], size: [usize; 2], context: &Context) -> Self::Data {
        self.import_tensor(plain::crop(self.export_tensor(x), start, size), context)
    }

    /// Features `[b, c, t, h, w]` of parts of others, which cover them and do not overlap.
    fn assemble(&self, parts: Vec<Part<Self::Data>>, shape: [usize; 5], context: &Context) -> Self::Data {
        let parts = parts.into_iter().map(|part| part.map(|x| self.export_tensor(x))).collect();
        self.import_tensor(plain::assemble(parts, shape), context)
    }

    /// The same features, without operations that wait to be computed.
    fn computed(&self, x: Self::Data, context: &Context) -> Self::Data {
        self.import_tensor(self.export_tensor(x), context)
    }

    /// Bytes of memory that features take once they are [computed](Self::computed).
    fn bytes(&self, x: &Self::Data) -> u64 {
        let x = self.export_tensor(x.clone());
        (x.shape().num_elements() * x.dtype().size()) as u64
    }

    /// The sum of two features of one shape.
    fn add(&self, x: Self::Data, other: Self::Data, context: &Context) -> Self::Data {
        self.import_tensor(self.export_tensor(x) + self.export_tensor(other), context)
    }

    /// The frames of `x`, then those of `later`.
    fn concat_frames(&self, x: Self::Data, later: Self::Data, context: &Context) -> Self::Data {
        self.import_tensor(Tensor::cat(vec![self.export_tensor(x), self.export_tensor(later)], 2), context)
    }

    /// The frames of both in turn: the first of `even`, the first of `odd`, the second of `even` and so on.
    fn interleave_frames(&self, even: Self::Data, odd: Self::Data, context: &Context) -> Self::Data {
        self.import_tensor(plain::interleave_frames(self.export_tensor(even), self.export_tensor(odd)), context)
    }

    /// The last `count` frames, which do not keep those before them in memory.
    fn last_frames(&self, x: &Self::Data, count: usize, context: &Context) -> Self::Data {
        self.import_tensor(plain::last_frames(&self.export_tensor(x.clone()), count), context)
    }

    /// `count` frames of zeros, which agree with `x` in everything else.
    fn zero_frames(&self, x: &Self::Data, count: usize, context: &Context) -> Self::Data {
        let x = self.export_tensor(x.clone());
        let [b, c, _, h, w] = x.dims();
        self.import_tensor(Tensor::zeros([b, c, count, h, w], (&x.device(), x.dtype())), context)
    }

    /// Samples from -1 to 1 as codes of eight bits, packed: a third of the bytes to bring back.
    fn pack(&self, x: Tensor<5>) -> Tensor<5> {
        eight_bits::pack(x)
    }

    /// The weight of a convolution, with two axes or more, in the memory layout that [`convolve`](Self::convolve) reads it in. Called once, when it is loaded.
    fn prepare_weight(&self, weight: DispatchTensor) -> DispatchTensor {
        weight
    }
}

/// Burn's own operators, on any backend and in any dtype: the defaults of all operations, and the reference for tests.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl Operators for Plain {
    type Data = Tensor<5>;

    fn import_tensor(&self, x: Tensor<5>, _: &Context) -> Tensor<5> {
        x
    }

    fn export_tensor(&self, x: Tensor<5>) -> Tensor<5> {
        x
    }

    fn dims(&self, x: &Tensor<5>) -> [usize; 5] {
        x.dims()
    }
}
