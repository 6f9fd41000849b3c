use std::fmt;
use std::ops::Add;

use burn::tensor::Tensor;

#[cfg(feature = "flex")]
use crate::operators::cpu::Images;
use crate::operators::erased::{AnyData, AnyOperators};
use crate::operators::{Activation, Convolution, GroupMoments, GroupNormParameters, Part};
use crate::{Context, backends};

/// What layers pass on: channels of images or frames `[b, c, t, h, w]`, stored as the operators of their device and dtype store them. Clones share memory.
///
/// The operators are chosen once, where a tensor comes in. In f32 on Burn's CPU backend norms, activations and upsampling wait until a convolution reads them.
#[derive(Clone)]
pub struct Features {
    data: AnyData,
    operators: &'static dyn AnyOperators,
    context: Context,
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Features").field("dims", &self.dims()).field("operators", &self.operators).finish_non_exhaustive()
    }
}

impl From<Features> for Tensor<5> {
    /// `[b, c, t, h, w]`.
    fn from(features: Features) -> Self {
        features.operators.export_tensor(features.data)
    }
}

impl Add for Features {
    type Output = Self;

    /// The sum of both.
    ///
    /// # Panics
    /// When their shapes differ.
    fn add(self, other: Self) -> Self {
        assert_eq!(self.dims(), other.dims(), "shapes");
        self.change(|operators, x, context| operators.add(x, other.data_for(operators), context))
    }
}

impl Features {
    /// Features of `[b, c, t, h, w]`, for one run.
    pub fn new(x: Tensor<5>, context: &Context) -> Self {
        let operators = backends::operators(&x.device(), x.dtype());
        Self::with_operators(x, operators, context)
    }

    pub(crate) fn with_operators(x: Tensor<5>, operators: &'static dyn AnyOperators, context: &Context) -> Self {
        Self { data: operators.import_tensor(x, context), operators, context: context.clone() }
    }

    /// The run that they belong to.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Batch, channels, frames, height and width.
    pub fn dims(&self) -> [usize; 5] {
        self.operators.dims(&self.data)
    }

    /// A convolution, added to `residual` if there is one.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` to [`Convolution::output_dims`], which are also those of the residual.
    ///
    /// # Panics
    /// When the shapes of input, weight, bias and residual do not fit.
    #[must_use]
    pub fn convolve(self, convolution: &Convolution, residual: Option<Self>) -> Self {
        let Self { data, operators, context } = self;
        context.check_stop();
        let residual = residual.map(|residual| residual.data_for(operators));
        Self { data: operators.convolve(data, convolution, residual, &context), operators, context }
    }

    /// The moments of each group of consecutive channels, in each frame. Those of several tiles can be [merged](GroupMoments::merge).
    pub fn group_moments(&self, groups: usize) -> GroupMoments {
        self.context.check_stop();
        self.operators.group_moments(&self.data, groups)
    }

    /// A group norm with given moments, then an activation.
    ///
    /// # Panics
    /// When the moments have another number of frames or groups.
    #[must_use]
    pub fn apply_group_norm(self, moments: GroupMoments, norm: &GroupNormParameters, activation: Activation) -> Self {
        self.change(|operators, x, context| operators.apply_group_norm(x, moments, norm, activation, context))
    }

    /// A group norm with their own moments, then an activation.
    #[must_use]
    pub fn group_norm(self, norm: &GroupNormParameters, activation: Activation) -> Self {
        self.change(|operators, x, context| operators.group_norm(x, norm, activation, context))
    }

    /// Each px divided by the L2 norm of its channels, times the root of their number and `gamma` (`[c]`), then an activation (diffusers, `WanRMS_norm`).
    #[must_use]
    pub fn rms_norm(self, gamma: Tensor<1>, activation: Activation) -> Self {
        self.change(|operators, x, context| operators.rms_norm(x, gamma, activation, context))
    }

    /// Attention over the px of each frame with one head, scaled by `1 / sqrt(c)`, with the softmax in f32. `self` are the queries. On the CPU the scores of 32
    /// queries are in memory for each thread, elsewhere those of at most 1024.
    ///
    /// # Shapes
    /// Queries, keys and values `[b, c, t, h, w]`, to the same.
    ///
    /// # Panics
    /// When the shapes differ.
    #[must_use]
    pub fn attend(self, keys: Self, values: Self) -> Self {
        self.change(|operators, queries, context| operators.attend(queries, keys.data_for(operators), values.data_for(operators), context))
    }

    /// An activation of each value.
    #[must_use]
    pub fn activate(self, activation: Activation) -> Self {
        self.change(|operators, x, context| operators.activate(x, activation, context))
    }

    /// Changes the values by operators of a tensor: a slow way out for what [`Operators`](crate::operators::Operators) lack. On the CPU the values are copied to a
    /// tensor and back, and norms and activations that were waiting are computed.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Tensor<5>) -> Tensor<5>) -> Self {
        let context = self.context.clone();
        Self::new(change(self.into()), &context)
    }

    /// Twice the height and width, each value four times (diffusers, `Upsample2D`).
    #[must_use]
    pub fn upsample_nearest2x(self) -> Self {
        self.change(|operators, x, context| operators.upsample_nearest2x(x, context))
    }

    /// The px of `size` (height and width) from row and column `start` on.
    ///
    /// # Panics
    /// When they reach beyond the features.
    #[must_use]
    pub fn crop(self, start: [usize; 2], size: [usize; 2]) -> Self {
        self.change(|operators, x, context| operators.crop(x, start, size, context))
    }

    /// The frames of both, one after the other.
    ///
    /// # Panics
    /// When anything but the number of frames differs.
    #[must_use]
    pub fn concat_frames(self, later: Self) -> Self {
        let without_frames = |[b, c, _, h, w]: [usize; 5]| [b, c, h, w];
        assert_eq!(without_frames(self.dims()), without_frames(later.dims()), "shapes");
        self.change(|operators, x, context| operators.concat_frames(x, later.data_for(operators), context))
    }

    /// The frames of both in turn, beginning with the first of `self`.
    ///
    /// # Panics
    /// When their shapes differ.
    #[must_use]
    pub fn interleave_frames(self, odd: Self) -> Self {
        assert_eq!(self.dims(), odd.dims(), "shapes");
        self.change(|operators, even, context| operators.interleave_frames(even, odd.data_for(operators), context))
    }

    /// The last `count` frames, without keeping those before in memory.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn last_frames(&self, count: usize) -> Self {
        Self { data: self.operators.last_frames(&self.data, count, &self.context), ..self.clone() }
    }

    /// So many frames of zeros.
    #[must_use]
    pub fn zero_frames(&self, count: usize) -> Self {
        Self { data: self.operators.zero_frames(&self.data, count, &self.context), ..self.clone() }
    }

    /// Features of `[b, c, t, h, w]` of parts of others on the same device, which cover them and do not overlap.
    pub(crate) fn assemble(parts: Vec<Part<Self>>, shape: [usize; 5], context: &Context) -> Self {
        context.check_stop();
        let operators = parts[0].x.operators;
        let parts = parts.into_iter().map(|part| part.map(|x| x.data_for(operators))).collect();
        Self { data: operators.assemble(parts, shape, context), operators, context: context.clone() }
    }

    /// The same, with all operations that were waiting.
    pub(crate) fn computed(self) -> Self {
        self.change(AnyOperators::computed)
    }

    /// Bytes of memory that they take once they are [computed](Self::computed).
    pub(crate) fn bytes(&self) -> u64 {
        self.operators.bytes(&self.data)
    }

    /// The same for another run.
    pub(crate) fn in_run(self, context: &Context) -> Self {
        Self { context: context.clone(), ..self }
    }

    /// Whether these are features of the CPU kernels.
    #[cfg(feature = "flex")]
    pub(crate) fn has_images(&self) -> bool {
        (*self.data).is::<Images>()
    }

    /// Images with the norms and activations that were waiting, those of each batch item consecutive. `None` where these are no features of the CPU kernels.
    #[cfg(feature = "flex")]
    pub(crate) fn into_images(self) -> Option<Vec<kernels::BlockedImage>> {
        let images = self.data.downcast::<Images>().ok()?;
        Some(std::sync::Arc::unwrap_or_clone(images).into_images())
    }

    /// Features of the CPU kernels.
    #[cfg(feature = "flex")]
    pub(crate) fn from_images(items: usize, images: Vec<kernels::BlockedImage>, channels: usize, size: [usize; 2], context: &Context) -> Self {
        let data = std::sync::Arc::new(Images::new(items, images, channels, size));
        Self { data, operators: &crate::operators::cpu::Cpu, context: context.clone() }
    }

    fn change(self, change: impl FnOnce(&'static dyn AnyOperators, AnyData, &Context) -> AnyData) -> Self {
        let Self { data, operators, context } = self;
        context.check_stop();
        Self { data: change(operators, data, &context), operators, context }
    }

    /// Their data for the operators of other features of the run.
    fn data_for(self, operators: &'static dyn AnyOperators) -> AnyData {
        if (*self.data).type_id() == operators.data_type() {
            return self.data;
        }
        operators.import_tensor(self.operators.export_tensor(self.data), &self.context)
    }
}
