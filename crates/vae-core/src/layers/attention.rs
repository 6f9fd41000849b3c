use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{Device, FloatDType, Tensor};

use super::parameter;

/// Queries whose scores are held at once.
const QUERY_BLOCK: usize = 1024;

/// A linear map with bias, its weight stored as torch stores it.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
}

impl Linear {
    /// A map from `channels` to as many.
    pub fn square(channels: usize, device: &Device) -> Self {
        Self { weight: parameter([channels, channels], device), bias: parameter([channels], device) }
    }

    /// # Shapes
    /// `[b, n, in]` to `[b, n, out]`.
    pub fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        x.matmul(self.weight.val().transpose().unsqueeze()) + self.bias.val().unsqueeze()
    }
}

/// Attention with one head, scaled by `1 / sqrt(c)`, softmax in f32. The scores of at most 1024 queries are held at once.
///
/// # Shapes
/// Queries `[b, n, c]`, keys and values `[b, m, c]`, to `[b, n, c]`.
pub fn attend(queries: Tensor<3>, keys: Tensor<3>, values: Tensor<3>) -> Tensor<3> {
    let [b, n, c] = queries.dims();
    let dtype = queries.dtype();
    let keys = keys.swap_dims(1, 2);
    let blocks = (0..n).step_by(QUERY_BLOCK).map(|start| {
        let end = (start + QUERY_BLOCK).min(n);
        let block = queries.clone().slice([0..b, start..end, 0..c]);
        let scores = block.matmul(keys.clone()).cast(FloatDType::F32) * (1.0 / (c as f64).sqrt());
        softmax(scores, 2).cast(dtype).matmul(values.clone())
    });
    Tensor::cat(blocks.collect(), 1)
}
