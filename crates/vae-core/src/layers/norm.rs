use burn::module::{Module, Param};
use burn::tensor::activation::silu;
use burn::tensor::{DType, Device, FloatDType, Tensor};

use super::features::Layout;
use super::{Features, parameter};

/// Group normalisation of each frame with statistics in f32 whatever the dtype of its input (torch, `GroupNorm`).
#[derive(Module, Debug)]
pub struct GroupNorm {
    /// `[channels]`.
    pub weight: Param<Tensor<1>>,
    /// `[channels]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    groups: usize,
    #[module(skip)]
    epsilon: f64,
}

impl GroupNorm {
    /// Normalises `channels` channels in `groups` groups.
    pub fn new(groups: usize, channels: usize, epsilon: f64, device: &Device) -> Self {
        Self { weight: parameter([channels], device), bias: parameter([channels], device), groups, epsilon }
    }

    /// # Shapes
    /// `[b, c, t, h, w]` to the same.
    pub fn forward(&self, x: Features) -> Features {
        self.normalised(x, false)
    }

    /// The norm followed by SiLU.
    ///
    /// # Shapes
    /// `[b, c, t, h, w]` to the same.
    pub fn forward_silu(&self, x: Features) -> Features {
        self.normalised(x, true)
    }

    fn normalised(&self, x: Features, then_silu: bool) -> Features {
        group_norm(x, self.weight.val(), self.bias.val(), GroupRule { groups: self.groups, epsilon: self.epsilon, then_silu })
    }
}

/// How channels are normalised in groups.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupRule {
    pub(super) groups: usize,
    pub(super) epsilon: f64,
    /// Whether SiLU follows.
    pub(super) then_silu: bool,
}

/// # Shapes
/// `[b, c, t, h, w]` and twice `[c]`, to `[b, c, t, h, w]`.
pub(super) fn group_norm(x: Features, weight: Tensor<1>, bias: Tensor<1>, rule: GroupRule) -> Features {
    let context = x.context;
    context.check_stop();
    let layout = match x.layout {
        #[cfg(feature = "flex")]
        Layout::Images(images) => Layout::Images(images.group_norm(weight, bias, rule)),
        Layout::Tensor(x) => {
            #[cfg(feature = "remote")]
            if super::remote::takes(&x) {
                return Features { layout: Layout::Tensor(super::remote::group_norm(x, weight, bias, rule)), context };
            }
            #[cfg(feature = "cube")]
            if super::gpu::takes(&x) {
                return Features { layout: Layout::Tensor(super::gpu::group_norm(x, weight, bias, rule)), context };
            }
            let [b, c, t, h, w] = x.dims();
            Layout::Tensor(if t == 1 {
                group_norm_by_operators(x.reshape([b, c, h, w]), weight, bias, rule).reshape([b, c, t, h, w])
            } else {
                let y = group_norm_by_operators(x.swap_dims(1, 2).reshape([b * t, c, h, w]), weight, bias, rule);
                y.reshape([b, t, c, h, w]).swap_dims(1, 2)
            })
        }
    };
    Features { layout, context }
}

/// The answer has the dtype of the input; SiLU sees the values in f32.
fn group_norm_by_operators(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, rule: GroupRule) -> Tensor<4> {
    let dtype = x.dtype();
    let [b, c, h, w] = x.dims();
    let grouped = x.cast(FloatDType::F32).reshape([b, rule.groups, c / rule.groups * h * w]);
    let (variance, mean) = grouped.clone().var_mean_bias(2);
    let normal = (grouped - mean) / (variance + rule.epsilon).sqrt();
    let affine = |parameter: Tensor<1>| parameter.cast(FloatDType::F32).reshape([1, c, 1, 1]);
    let y = normal.reshape([b, c, h, w]) * affine(weight) + affine(bias);
    let y = if rule.then_silu { silu(y) } else { y };
    y.cast(dtype)
}

/// Each px divided by the length of its vector of channels, scaled by the root of their number and `gamma` (diffusers, `WanRMS_norm`).
#[derive(Module, Debug)]
pub struct RmsNorm {
    /// `[channels]`.
    pub gamma: Param<Tensor<1>>,
}

/// The least length that is divided by (torch, `functional.normalize`).
pub(super) const LEAST_LENGTH: f64 = 1e-12;

impl RmsNorm {
    /// Normalises over `channels` channels.
    pub fn new(channels: usize, device: &Device) -> Self {
        Self { gamma: parameter([channels], device) }
    }

    /// # Shapes
    /// `[b, c, t, h, w]` to the same.
    pub fn forward(&self, x: Features) -> Features {
        rms_norm(x, self.gamma.val(), false)
    }

    /// The norm followed by SiLU.
    ///
    /// # Shapes
    /// `[b, c, t, h, w]` to the same.
    pub fn forward_silu(&self, x: Features) -> Features {
        rms_norm(x, self.gamma.val(), true)
    }
}

/// # Shapes
/// `[b, c, t, h, w]` and `[c]`, to `[b, c, t, h, w]`.
pub(super) fn rms_norm(x: Features, gamma: Tensor<1>, then_silu: bool) -> Features {
    let context = x.context;
    context.check_stop();
    let layout = match x.layout {
        #[cfg(feature = "flex")]
        Layout::Images(images) => Layout::Images(images.rms_norm(gamma, then_silu)),
        Layout::Tensor(x) => {
            #[cfg(feature = "remote")]
            if super::remote::takes(&x) {
                return Features { layout: Layout::Tensor(super::remote::rms_norm(x, gamma, then_silu)), context };
            }
            #[cfg(feature = "cube")]
            if super::gpu::takes(&x) {
                return Features { layout: Layout::Tensor(super::gpu::rms_norm(x, gamma, then_silu)), context };
            }
            Layout::Tensor(rms_norm_by_operators(x, gamma, then_silu))
        }
    };
    Features { layout, context }
}

/// Lengths are taken in f32 for half types, and what is divided is rounded to the type before it is scaled.
fn rms_norm_by_operators(x: Tensor<5>, gamma: Tensor<1>, then_silu: bool) -> Tensor<5> {
    let dtype = x.dtype();
    let channels = x.dims()[1];
    let wide = if matches!(dtype, DType::F16 | DType::BF16) { x.cast(FloatDType::F32) } else { x };
    let length = wide.clone().square().sum_dim(1).sqrt().clamp_min(LEAST_LENGTH);
    let scale = (channels as f64).sqrt();
    let y = (wide / length).cast(dtype) * scale * gamma.reshape([1, channels, 1, 1, 1]);
    if then_silu { silu(y) } else { y }
}
