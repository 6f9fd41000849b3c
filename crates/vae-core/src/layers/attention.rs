use burn::tensor::activation::softmax;
use burn::tensor::{FloatDType, Tensor};

use super::Features;
#[cfg(feature = "flex")]
use super::features::Layout;

/// Queries whose scores are held at once.
const QUERY_BLOCK: usize = 1024;

/// Attention over the px of each frame with one head, scaled by `1 / sqrt(c)`, softmax in f32. On the CPU the scores of 32 queries are held by each thread,
/// elsewhere those of at most 1024.
///
/// # Shapes
/// Queries, keys and values `[b, c, t, h, w]`, to the same.
pub fn attend(queries: Features, keys: Features, values: Features) -> Features {
    match (queries.0, keys.0, values.0) {
        #[cfg(feature = "flex")]
        (Layout::Images(queries), Layout::Images(keys), Layout::Images(values)) => Features(Layout::Images(queries.attended(keys, values))),
        (queries, keys, values) => {
            let [queries, keys, values] = [queries, keys, values].map(|layout| Tensor::from(Features(layout)));
            #[cfg(feature = "remote")]
            if super::remote::takes(&queries) {
                return super::remote::attend(queries, keys, values).into();
            }
            let [b, c, t, h, w] = queries.dims();
            let tokens = |x: Tensor<5>| x.permute([0, 2, 3, 4, 1]).reshape([b * t, h * w, c]);
            let y = by_operators(tokens(queries), tokens(keys), tokens(values));
            y.reshape([b, t, h, w, c]).permute([0, 4, 1, 2, 3]).into()
        }
    }
}

/// Queries `[b, n, c]`, keys and values `[b, m, c]`, to `[b, n, c]`.
fn by_operators(queries: Tensor<3>, keys: Tensor<3>, values: Tensor<3>) -> Tensor<3> {
    let [b, n, c] = queries.dims();
    let dtype = queries.dtype();
    let keys = keys.swap_dims(1, 2);
    let blocks = (0..n).step_by(QUERY_BLOCK).map(|start| {
        let end = (start + QUERY_BLOCK).min(n);
        let block = queries.clone().slice([0..b, start..end, 0..c]);
        let scale = 1.0 / (c as f64).sqrt();
        #[cfg(feature = "cube")]
        if super::gpu::takes(&block) {
            let weights = super::gpu::softmax(super::gpu::matmul(block, keys.clone()), scale);
            return super::gpu::matmul(weights, values.clone());
        }
        let scores = block.matmul(keys.clone());
        softmax(scores.cast(FloatDType::F32) * scale, 2).cast(dtype).matmul(values.clone())
    });
    Tensor::cat(blocks.collect(), 1)
}
