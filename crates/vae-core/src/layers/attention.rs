use burn::tensor::activation::softmax;
use burn::tensor::{FloatDType, Tensor};

use super::Features;
use super::features::Layout;
use crate::Context;

/// Queries whose scores are held at once.
const QUERY_BLOCK: usize = 1024;

/// Attention over the px of each frame with one head, scaled by `1 / sqrt(c)`, softmax in f32. On the CPU the scores of 32 queries are held by each thread,
/// elsewhere those of at most 1024.
///
/// # Shapes
/// Queries, keys and values `[b, c, t, h, w]`, to the same.
pub fn attend(queries: Features, keys: Features, values: Features) -> Features {
    let context = queries.context;
    context.check_stop();
    let layout = match (queries.layout, keys.layout, values.layout) {
        #[cfg(feature = "flex")]
        (Layout::Images(queries), Layout::Images(keys), Layout::Images(values)) => Layout::Images(queries.attended(keys, values)),
        (queries, keys, values) => {
            let [queries, keys, values] = [queries, keys, values].map(Layout::into_tensor);
            #[cfg(feature = "remote")]
            if super::remote::takes(&queries) {
                let y = super::remote::attend(queries, keys, values, context.math_mode());
                return Features { layout: Layout::Tensor(y), context };
            }
            let [b, c, t, h, w] = queries.dims();
            let tokens = |x: Tensor<5>| x.permute([0, 2, 3, 4, 1]).reshape([b * t, h * w, c]);
            let y = by_operators(tokens(queries), tokens(keys), tokens(values), &context);
            Layout::Tensor(y.reshape([b, t, h, w, c]).permute([0, 4, 1, 2, 3]))
        }
    };
    Features { layout, context }
}

/// Queries `[b, n, c]`, keys and values `[b, m, c]`, to `[b, n, c]`.
fn by_operators(queries: Tensor<3>, keys: Tensor<3>, values: Tensor<3>, context: &Context) -> Tensor<3> {
    let [b, n, c] = queries.dims();
    let dtype = queries.dtype();
    let keys = keys.swap_dims(1, 2);
    let [before, after] = scales(c);
    let queries = queries * before;
    let blocks = (0..n).step_by(QUERY_BLOCK).map(|start| {
        context.check_stop();
        let end = (start + QUERY_BLOCK).min(n);
        let block = queries.clone().slice([0..b, start..end, 0..c]);
        #[cfg(feature = "cube")]
        if super::gpu::takes(&block) {
            let weights = super::gpu::softmax(super::gpu::matmul(block, keys.clone(), context.math_mode()), after);
            return super::gpu::matmul(weights, values.clone(), context.math_mode());
        }
        let scores = block.matmul(keys.clone());
        softmax(scores.cast(FloatDType::F32) * after, 2).cast(dtype).matmul(values.clone())
    });
    Tensor::cat(blocks.collect(), 1)
}

/// What queries and scores are multiplied by, together the inverse root of the number of channels. Scores have the type of the input, of which f16 holds no
/// more than 65504: so queries get as much of it as leaves their digits alone, a power of two, and scores the rest, from 1 to 2.
fn scales(channels: usize) -> [f64; 2] {
    let scale = 1.0 / (channels as f64).sqrt();
    let power = scale.log2().floor().exp2();
    [power, scale / power]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_split_without_rounding_queries() {
        for channels in 1..3000 {
            let [before, after] = scales(channels);
            assert_eq!((before.log2().fract(), before * after), (0.0, 1.0 / (channels as f64).sqrt()));
            assert!((1.0..2.0).contains(&after) && before <= 1.0, "{channels}: {before} {after}");
        }
    }

    #[cfg(feature = "testing")]
    #[test]
    fn half_types_hold_scores_that_are_large_before_they_are_scaled() {
        use burn::tensor::TensorData;

        use crate::testing::{computable, device};
        use burn::tensor::DType;
        // Some queries and keys have a product of 130000.
        let (channels, px) = (512, 40);
        let shape = [1, channels, 1, 1, px];
        let values = |f: &dyn Fn(usize, usize) -> f32| {
            let values: Vec<f32> = (0..channels * px).map(|at| f(at / px, at % px)).collect();
            Tensor::<5>::from_data(TensorData::new(values, shape), (&device(), DType::F32))
        };
        let queries = values(&|channel, px| if channel % 2 == px % 2 { 22.5 } else { 0.01 * ((channel * px) as f32).sin() });
        let keys = values(&|channel, px| if channel % 2 == px % 2 { 22.5 } else { 0.01 * ((channel + 3 * px) as f32).cos() });
        let mixed = values(&|channel, px| ((7 * channel + 13 * px) as f32).sin());
        let run = |dtype: DType| {
            let cast = |x: &Tensor<5>| Features::new(x.clone().cast(dtype), &Context::default());
            let y: Tensor<5> = attend(cast(&queries), cast(&keys), cast(&mixed)).into();
            y.cast(FloatDType::F32).into_data().try_into_vec::<f32>().unwrap()
        };
        let expected = run(DType::F32);
        for dtype in computable(&[DType::F16, DType::BF16]) {
            let got = run(dtype);
            let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(got.iter().all(|value| value.is_finite()) && worst < 0.02, "{dtype:?}: {worst}");
        }
    }
}
