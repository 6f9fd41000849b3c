use burn::module::{Module, Param};
use burn::tensor::activation::silu;
use burn::tensor::{DType, Device, FloatDType, Tensor};

use super::parameter;

/// Group normalisation with statistics in f32 whatever the dtype of its input (torch, `GroupNorm`).
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
    /// `[b, c, h, w]` to the same.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        self.normalised(x, |y| y)
    }

    /// The norm followed by SiLU.
    ///
    /// # Shapes
    /// `[b, c, h, w]` to the same.
    pub fn forward_silu(&self, x: Tensor<4>) -> Tensor<4> {
        self.normalised(x, silu)
    }

    /// `after` sees the values in f32; the answer has the dtype of the input.
    fn normalised(&self, x: Tensor<4>, after: impl Fn(Tensor<4>) -> Tensor<4>) -> Tensor<4> {
        let dtype = x.dtype();
        let [b, c, h, w] = x.dims();
        let grouped = x.cast(FloatDType::F32).reshape([b, self.groups, c / self.groups * h * w]);
        let (variance, mean) = grouped.clone().var_mean_bias(2);
        let normal = (grouped - mean) / (variance + self.epsilon).sqrt();
        let affine = |parameter: &Param<Tensor<1>>| parameter.val().cast(FloatDType::F32).reshape([1, c, 1, 1]);
        let y = normal.reshape([b, c, h, w]) * affine(&self.weight) + affine(&self.bias);
        cast(after(y), dtype)
    }
}

fn cast(x: Tensor<4>, dtype: DType) -> Tensor<4> {
    if x.dtype() == dtype { x } else { x.cast(dtype) }
}
