use burn::tensor::Tensor;
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};

#[cfg(feature = "flex")]
use super::cpu::{self, Images};
#[cfg(feature = "flex")]
use super::run::Context;

/// What layers hand on: channels of pictures or frames, laid out as the device computes fastest.
///
/// In f32 on Burn's CPU backend these are images of [`kernels`], whose norms and doublings wait until a convolution reads them; elsewhere a tensor. Clones
/// share their memory.
#[derive(Debug, Clone)]
pub struct Features(pub(super) Layout);

#[cfg_attr(all(feature = "flex", feature = "remote"), expect(clippy::large_enum_variant, reason = "few exist at a time"))]
#[derive(Debug, Clone)]
pub(super) enum Layout {
    Tensor(Tensor<5>),
    #[cfg(feature = "flex")]
    Images(Images),
}

impl From<Tensor<5>> for Features {
    /// `[b, c, t, h, w]`.
    fn from(x: Tensor<5>) -> Self {
        #[cfg(feature = "flex")]
        if cpu::takes(&x) {
            let workspace = Context::current().run.map(|run| run.workspace().clone()).unwrap_or_default();
            return Self(Layout::Images(Images::new(x, &workspace)));
        }
        Self(Layout::Tensor(x))
    }
}

impl From<Features> for Tensor<5> {
    /// `[b, c, t, h, w]`.
    fn from(features: Features) -> Self {
        match features.0 {
            Layout::Tensor(x) => x,
            #[cfg(feature = "flex")]
            Layout::Images(images) => images.into_tensor(),
        }
    }
}

impl Features {
    /// Batch, channels, frames, height and width.
    pub fn dims(&self) -> [usize; 5] {
        match &self.0 {
            Layout::Tensor(x) => x.dims(),
            #[cfg(feature = "flex")]
            Layout::Images(images) => images.dims(),
        }
    }

    /// Changes the values by what needs a tensor: for what is rare.
    #[must_use]
    pub fn map(self, change: impl FnOnce(Tensor<5>) -> Tensor<5>) -> Self {
        #[cfg(feature = "flex")]
        if let Layout::Images(images) = &self.0 {
            let workspace = images.workspace();
            let y = change(self.into());
            return if cpu::takes(&y) { Self(Layout::Images(Images::new(y, &workspace))) } else { Self(Layout::Tensor(y)) };
        }
        change(self.into()).into()
    }

    /// Doubles height and width, each value four times (diffusers, `Upsample2D`).
    #[must_use]
    pub fn doubled(self) -> Self {
        match self.0 {
            #[cfg(feature = "flex")]
            Layout::Images(images) => Self(Layout::Images(images.doubled())),
            Layout::Tensor(x) => {
                let [b, c, t, h, w] = x.dims();
                let options = InterpolateOptions::new(InterpolateMode::Nearest).with_scale_factor([2.0, 2.0]);
                let pictures = if t == 1 { x.reshape([b, c, h, w]) } else { x.swap_dims(1, 2).reshape([b * t, c, h, w]) };
                let y = burn::tensor::module::interpolate(pictures, options);
                let y = if t == 1 { y.reshape([b, c, t, 2 * h, 2 * w]) } else { y.reshape([b, t, c, 2 * h, 2 * w]).swap_dims(1, 2) };
                Self(Layout::Tensor(y))
            }
        }
    }

    /// The sum of both.
    ///
    /// # Panics
    /// When their shapes differ.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        match (self.0, other.0) {
            #[cfg(feature = "flex")]
            (Layout::Images(a), Layout::Images(b)) => Self(Layout::Images(a.plus(b))),
            (a, b) => Self(Layout::Tensor(Tensor::from(Self(a)) + Tensor::from(Self(b)))),
        }
    }

    /// The frames of both, one after the other.
    ///
    /// # Panics
    /// When anything but the number of frames differs.
    #[must_use]
    pub fn then(self, later: Self) -> Self {
        match (self.0, later.0) {
            #[cfg(feature = "flex")]
            (Layout::Images(a), Layout::Images(b)) => Self(Layout::Images(a.then(&b))),
            (a, b) => Self(Layout::Tensor(Tensor::cat(vec![Self(a).into(), Self(b).into()], 2))),
        }
    }

    /// The frames of both in turn.
    ///
    /// # Panics
    /// When their shapes differ.
    #[must_use]
    pub fn in_turn_with(self, other: Self) -> Self {
        match (self.0, other.0) {
            #[cfg(feature = "flex")]
            (Layout::Images(a), Layout::Images(b)) => Self(Layout::Images(a.in_turn_with(&b))),
            (a, b) => {
                let [a, b] = [a, b].map(|layout| Tensor::from(Self(layout)));
                let [n, c, t, h, w] = a.dims();
                Self(Layout::Tensor(Tensor::stack::<6>(vec![a, b], 3).reshape([n, c, 2 * t, h, w])))
            }
        }
    }

    /// The last `count` frames, without keeping those before in memory.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn last_frames(&self, count: usize) -> Self {
        match &self.0 {
            #[cfg(feature = "flex")]
            Layout::Images(images) => Self(Layout::Images(images.last_frames(count))),
            Layout::Tensor(x) => {
                let frames = x.dims()[2];
                // Concatenation copies; a slice alone would keep the whole of `x` alive.
                let frames = (frames - count..frames).map(|frame| x.clone().narrow(2, frame, 1));
                Self(Layout::Tensor(Tensor::cat(frames.collect(), 2)))
            }
        }
    }

    /// So many frames of zeros.
    #[must_use]
    pub fn zero_frames(&self, count: usize) -> Self {
        match &self.0 {
            #[cfg(feature = "flex")]
            Layout::Images(images) => Self(Layout::Images(images.zero_frames(count))),
            Layout::Tensor(x) => {
                let [b, c, _, h, w] = x.dims();
                Self(Layout::Tensor(Tensor::zeros([b, c, count, h, w], (&x.device(), x.dtype()))))
            }
        }
    }
}
