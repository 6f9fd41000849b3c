use burn::tensor::Tensor;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};

#[cfg(feature = "flex")]
use super::cpu::{self, Images};
use crate::Context;

/// What layers hand on: channels of pictures or frames, laid out as the device computes fastest.
///
/// In f32 on Burn's CPU backend these are images of [`kernels`], whose norms and doublings wait until a convolution reads them; elsewhere a tensor. Clones
/// share their memory.
#[derive(Debug, Clone)]
pub struct Features {
    pub(super) layout: Layout,
    pub(super) context: Context,
}

#[cfg_attr(all(feature = "flex", feature = "remote"), expect(clippy::large_enum_variant, reason = "few exist at a time"))]
#[derive(Debug, Clone)]
pub(super) enum Layout {
    Tensor(Tensor<5>),
    #[cfg(feature = "flex")]
    Images(Images),
}

impl Layout {
    pub(super) fn into_tensor(self) -> Tensor<5> {
        match self {
            Self::Tensor(x) => x,
            #[cfg(feature = "flex")]
            Self::Images(images) => images.into_tensor(),
        }
    }
}

impl From<Features> for Tensor<5> {
    /// `[b, c, t, h, w]`.
    fn from(features: Features) -> Self {
        features.layout.into_tensor()
    }
}

impl Features {
    /// Features of `[b, c, t, h, w]`, for one run.
    pub fn new(x: Tensor<5>, context: &Context) -> Self {
        let context = context.clone();
        #[cfg(feature = "flex")]
        if cpu::takes(&x) {
            let images = Images::new(x, context.workspace());
            return Self { layout: Layout::Images(images), context };
        }
        Self { layout: Layout::Tensor(x), context }
    }

    /// The run that they belong to.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Batch, channels, frames, height and width.
    pub fn dims(&self) -> [usize; 5] {
        match &self.layout {
            Layout::Tensor(x) => x.dims(),
            #[cfg(feature = "flex")]
            Layout::Images(images) => images.dims(),
        }
    }

    /// Changes the values by what needs a tensor: for what is rare.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Tensor<5>) -> Tensor<5>) -> Self {
        let context = self.context.clone();
        Self::new(change(self.into()), &context)
    }

    /// Doubles height and width, each value four times (diffusers, `Upsample2D`).
    #[must_use]
    pub fn doubled(self) -> Self {
        let context = self.context.clone();
        let wrap = |layout| Self { layout, context };
        match self.layout {
            #[cfg(feature = "flex")]
            Layout::Images(images) => wrap(Layout::Images(images.doubled())),
            Layout::Tensor(x) => {
                let [b, c, t, h, w] = x.dims();
                let options = InterpolateOptions::new(InterpolateMode::Nearest).with_scale_factor([2.0, 2.0]);
                let pictures = if t == 1 { x.reshape([b, c, h, w]) } else { x.swap_dims(1, 2).reshape([b * t, c, h, w]) };
                let y = burn::tensor::module::interpolate(pictures, options);
                let y = if t == 1 { y.reshape([b, c, t, 2 * h, 2 * w]) } else { y.reshape([b, t, c, 2 * h, 2 * w]).swap_dims(1, 2) };
                wrap(Layout::Tensor(y))
            }
        }
    }

    /// The sum of both.
    ///
    /// # Panics
    /// When their shapes differ.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let context = self.context.clone();
        let wrap = |layout| Self { layout, context };
        match (self.layout, other.layout) {
            #[cfg(feature = "flex")]
            (Layout::Images(a), Layout::Images(b)) => wrap(Layout::Images(a.plus(b))),
            (a, b) => wrap(Layout::Tensor(a.into_tensor() + b.into_tensor())),
        }
    }

    /// The frames of both, one after the other.
    ///
    /// # Panics
    /// When anything but the number of frames differs.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        let context = self.context.clone();
        let wrap = |layout| Self { layout, context };
        match (self.layout, later.layout) {
            #[cfg(feature = "flex")]
            (Layout::Images(a), Layout::Images(b)) => wrap(Layout::Images(a.then(&b))),
            (a, b) => wrap(Layout::Tensor(Tensor::cat(vec![a.into_tensor(), b.into_tensor()], 2))),
        }
    }

    /// The frames of both in turn.
    ///
    /// # Panics
    /// When their shapes differ.
    #[must_use]
    pub fn in_turn_with(self, other: Self) -> Self {
        let context = self.context.clone();
        let wrap = |layout| Self { layout, context };
        match (self.layout, other.layout) {
            #[cfg(feature = "flex")]
            (Layout::Images(a), Layout::Images(b)) => wrap(Layout::Images(a.in_turn_with(&b))),
            (a, b) => {
                let [a, b] = [a, b].map(Layout::into_tensor);
                let [n, c, t, h, w] = a.dims();
                wrap(Layout::Tensor(Tensor::stack::<6>(vec![a, b], 3).reshape([n, c, 2 * t, h, w])))
            }
        }
    }

    /// The last `count` frames, without keeping those before in memory.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn last_frames(&self, count: usize) -> Self {
        let context = self.context.clone();
        let wrap = |layout| Self { layout, context };
        match &self.layout {
            #[cfg(feature = "flex")]
            Layout::Images(images) => wrap(Layout::Images(images.last_frames(count))),
            Layout::Tensor(x) => {
                let frames = x.dims()[2];
                // Concatenation copies; a slice alone would keep the whole of `x` alive.
                let frames = (frames - count..frames).map(|frame| x.clone().narrow(2, frame, 1));
                wrap(Layout::Tensor(Tensor::cat(frames.collect(), 2)))
            }
        }
    }

    /// So many frames of zeros.
    #[must_use]
    pub fn zero_frames(&self, count: usize) -> Self {
        let context = self.context.clone();
        let wrap = |layout| Self { layout, context };
        match &self.layout {
            #[cfg(feature = "flex")]
            Layout::Images(images) => wrap(Layout::Images(images.zero_frames(count))),
            Layout::Tensor(x) => {
                let [b, c, _, h, w] = x.dims();
                wrap(Layout::Tensor(Tensor::zeros([b, c, count, h, w], (&x.device(), x.dtype()))))
            }
        }
    }
}
