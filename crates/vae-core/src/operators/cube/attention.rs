use burn::tensor::DType;
use burn_cubecl::ops::{numeric, permute};
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::InputScalar;

use super::convolution::{self, Problem};
use super::norms;
use super::tensor::{View, dense, element, empty};
use crate::Context;
use crate::operators::plain::{self, QUERY_BLOCK};

/// `softmax(Q K' / sqrt(c)) V` of each frame. All are `[frames, px, channels]`, and the last is written.
///
/// Both products are convolutions of one px: keys are the weights of the first, and values, transposed, those of the second.
pub(super) fn attend([queries, keys, values]: [CubeTensor; 3], y: &CubeTensor, context: &Context) {
    let [frames, px, channels] = std::array::from_fn(|axis| keys.meta.shape()[axis]);
    let channels_out = values.meta.shape()[2];
    // f16 ends at 65504, which scores may exceed.
    let [before, after] = if queries.dtype == DType::F16 { plain::scales(channels) } else { [1.0, 1.0 / (channels as f64).sqrt()] };
    let queries = if before == 1.0 { queries } else { dense(numeric::mul_scalar(queries.clone(), InputScalar::new(before, element(&queries)))) };
    let values = dense(permute(values, &[0, 2, 1]));
    // Rows of one matrix.
    let rows = |tensor: &CubeTensor, first: usize, [count, width]: [usize; 2]| {
        let shape = [1, 1, 1, count, width];
        View { offset: first * width, shape, strides: [count * width, count * width, count * width, width, 1], tensor: tensor.clone() }
    };
    let weights = |tensor: &CubeTensor, frame: usize, [count, width]: [usize; 2]| {
        let offset = frame * count * width;
        View { offset, shape: [count, 1, 1, 1, width], strides: [width, width, width, width, 1], tensor: tensor.clone() }
    };
    let multiply = |x: View, weight: View, to: View, whole: &CubeTensor| {
        let problem = Problem { x, weight, bias: None, y: to, stride: [1; 3], padding: [0; 3] };
        convolution::run(vec![problem], whole, None, context.math_mode());
    };
    for frame in 0..frames {
        for first in (0..px).step_by(QUERY_BLOCK) {
            context.check_stop();
            let count = QUERY_BLOCK.min(px - first);
            let scores = empty(&keys, [count, px]);
            let block = rows(&queries, frame * px + first, [count, channels]);
            multiply(block, weights(&keys, frame, [px, channels]), rows(&scores, 0, [count, px]), &scores);
            let shares = norms::softmax_rows(&scores, after as f32);
            let to = rows(y, frame * px + first, [count, channels_out]);
            multiply(rows(&shares, 0, [count, px]), weights(&values, frame, [channels_out, px]), to, y);
        }
    }
}
