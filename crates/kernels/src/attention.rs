use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::groups::TILES;
use crate::image::BlockedImage;
use crate::lanes::{LANES, Lanes, sum_of};
use crate::math::exp;
use crate::memory::{Buffer, Scratch, SharedBuffers};
use crate::products::{Depth, Operands, multiply};
use crate::vectors::dispatch;

/// Groups of `TILES` queries in a task, which holds their scores for all keys.
const GROUPS: usize = 4;

/// Scaled dot-product attention with one head: `softmax(Q K' / sqrt(channels)) V`, where each px is a token. Zeros if there are no keys or no channels.
///
/// # Shapes
/// `keys` have the channels of `queries`, and `values` the height and width of `keys`. The output has the height and width of `queries` and the channels of
/// `values`.
///
/// # Panics
/// When the shapes do not fit.
#[must_use]
pub fn attend(queries: &BlockedImage, keys: &BlockedImage, values: &BlockedImage) -> BlockedImage {
    assert!(queries.channels() == keys.channels() && keys.area() == values.area(), "shapes of queries, keys and values");
    let [area, blocks_out] = [queries.area(), values.blocks()];
    let workspace = queries.workspace();
    if area * keys.area() * keys.channels() == 0 {
        return BlockedImage::zeros(values.channels(), queries.size(), workspace);
    }
    let output = SharedBuffers::uninitialised(1, area * blocks_out, workspace);
    let transposed_keys = transposed(keys);
    let attention = Attention { queries, values, keys: &transposed_keys, output: &output };
    let tasks = (0..area.div_ceil(GROUPS * TILES)).into_par_iter();
    tasks.for_each_init(
        || workspace.scratch(),
        |scratch, task| {
            workspace.check();
            dispatch(Task { attention: &attention, first: task * GROUPS * TILES, scratch });
        },
    );
    // SAFETY: the tasks write every px of every block.
    #[expect(unsafe_code, reason = "the output is not cleared before it is written")]
    let mut lanes = unsafe { output.into_vecs() };
    BlockedImage::from_lanes(lanes.remove(0), values.channels(), queries.size(), workspace)
}

/// `[px / 16, channels, 16 px]`, padded with zeros.
fn transposed(image: &BlockedImage) -> Buffer {
    let per_group = image.blocks() * LANES;
    let groups = image.area().div_ceil(LANES);
    let mut transposed = image.workspace().allocate(groups * per_group);
    transposed.resize(groups * per_group, Lanes::ZERO);
    transposed.par_chunks_mut(per_group).enumerate().for_each(|(group, transposed)| {
        for (block, transposed) in transposed.chunks_mut(LANES).enumerate() {
            let px = &image.block(block)[group * LANES..];
            for (lane, px) in px.iter().take(LANES).enumerate() {
                for (transposed, &value) in transposed.iter_mut().zip(&px.0) {
                    transposed.0[lane] = value;
                }
            }
        }
    });
    Buffer::new(transposed, image.workspace().clone())
}

struct Attention<'a> {
    queries: &'a BlockedImage,
    values: &'a BlockedImage,
    /// Transposed.
    keys: &'a [Lanes],
    output: &'a SharedBuffers<Lanes>,
}

/// Up to `GROUPS * TILES` queries, from the index `first` on.
struct Task<'a, 's> {
    attention: &'a Attention<'a>,
    first: usize,
    scratch: &'s mut Scratch,
}

impl WithSimd for Task<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Attention { queries, values, keys, output } = *self.attention;
        let area = queries.area();
        let count = (area - self.first).min(GROUPS * TILES);
        let groups = count.div_ceil(TILES);
        let key_groups = values.area().div_ceil(LANES);
        let (per_queries, per_scores) = (queries.blocks() * TILES, key_groups * TILES);
        let needed = groups * (per_queries + per_scores);
        let (packed, scores) = self.scratch.lanes(needed).split_at_mut(groups * per_queries);
        for (group, packed) in packed.chunks_mut(per_queries).enumerate() {
            for (block, packed) in packed.chunks_mut(TILES).enumerate() {
                for (tile, px) in packed.iter_mut().enumerate() {
                    // The last group is padded with the last query.
                    *px = queries.block(block)[(self.first + group * TILES + tile).min(area - 1)];
                }
            }
        }
        let depth = Depth::new(queries.channels());
        let per_key_group = queries.blocks() * LANES;
        for pair in (0..key_groups).step_by(2) {
            let count = (key_groups - pair).min(2);
            let kernels = [pair, pair + count - 1].map(|group| &keys[group * per_key_group..][..per_key_group]);
            for (packed, scores) in packed.chunks(per_queries).zip(scores.chunks_mut(per_scores)) {
                multiply(simd, &[Operands { kernels, values: packed }], depth, &mut scores[pair * TILES..][..count * TILES]);
            }
        }
        let scale = 1.0 / (queries.channels() as f32).sqrt();
        let mut factors = [[0.0; TILES]; GROUPS];
        for (scores, factors) in scores.chunks_mut(per_scores).zip(&mut factors) {
            for (tile, factor) in factors.iter_mut().enumerate() {
                *factor = exponentiate(scores, tile, values.area(), scale);
            }
        }
        let depth = Depth::new(values.area());
        let mut sums = [Lanes::ZERO; 2 * TILES];
        for pair in (0..values.blocks()).step_by(2) {
            let blocks = (values.blocks() - pair).min(2);
            let kernels = [pair, pair + blocks - 1].map(|block| values.block(block));
            for (group, (scores, factors)) in scores.chunks(per_scores).zip(&factors).enumerate() {
                multiply(simd, &[Operands { kernels, values: scores }], depth, &mut sums[..blocks * TILES]);
                let first = self.first + group * TILES;
                for (at, sums) in sums.chunks_mut(TILES).take(blocks).enumerate() {
                    let sums = &mut sums[..TILES.min(area - first)];
                    for (px, factor) in sums.iter_mut().zip(factors) {
                        for value in &mut px.0 {
                            *value *= factor;
                        }
                    }
                    // SAFETY: no other task writes these queries.
                    #[expect(unsafe_code, reason = "see `SharedBuffers::write`")]
                    unsafe {
                        output.write(0, (pair + at) * area + first, sums, false);
                    }
                }
            }
        }
    }
}

/// The numerators of the softmax over the scores of one query, in place: the exponentials of the differences from the maximum. Returns the inverse of their
/// sum.
#[inline(always)]
fn exponentiate(scores: &mut [Lanes], tile: usize, keys: usize, scale: f32) -> f32 {
    let rest = (keys + LANES - 1) % LANES + 1;
    let last = scores.len() - TILES + tile;
    // Lanes beyond the last key.
    scores[last].0[rest..].fill(f32::NEG_INFINITY);
    let mut maximum = [f32::NEG_INFINITY; LANES];
    for px in scores.iter().skip(tile).step_by(TILES) {
        for (maximum, &value) in maximum.iter_mut().zip(&px.0) {
            *maximum = if value > *maximum { value } else { *maximum };
        }
    }
    let maximum = maximum.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = [0.0_f32; LANES];
    for px in scores.iter_mut().skip(tile).step_by(TILES) {
        for (value, sum) in px.0.iter_mut().zip(&mut sum) {
            *value = exp((*value - maximum) * scale);
            *sum += *value;
        }
    }
    for (value, sum) in scores[last].0.iter_mut().zip(&mut sum).skip(rest) {
        *sum -= *value;
        *value = 0.0;
    }
    1.0 / sum_of(&sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Workspace;
    use crate::vectors::tests::with_each_instruction_set;

    #[test]
    fn attention_equals_its_definition() {
        let cases: &[_] = if cfg!(miri) { &[(3, [1, 1]), (17, [3, 3])] } else { &[(3, [1, 1]), (20, [5, 7]), (40, [9, 11]), (16, [4, 8])] };
        for &(channels, size) in cases {
            let area = size[0] * size[1];
            let values = |step: f32| (0..channels * area).map(|at| (at as f32 * step).sin() * 3.0).collect::<Vec<f32>>();
            let [q, k, v] = [0.37, 0.71, 1.3].map(values);
            let image = |values: &[f32]| BlockedImage::from_planes(values, area, channels, size, &Workspace::default());
            let answers = with_each_instruction_set(|| {
                let mut got = vec![0.0; channels * area];
                attend(&image(&q), &image(&k), &image(&v)).to_planes(&mut got, area);
                got
            });
            assert!(answers.iter().all(|answer| *answer == answers[0]), "{channels} {size:?}");
            for query in 0..area {
                let score = |key: usize| {
                    let at = |values: &[f32], channel: usize, px: usize| f64::from(values[channel * area + px]);
                    ((0..channels).map(|channel| at(&q, channel, query) * at(&k, channel, key)).sum::<f64>() / (channels as f64).sqrt()).exp()
                };
                let scores: Vec<f64> = (0..area).map(score).collect();
                let sum: f64 = scores.iter().sum();
                for channel in 0..channels {
                    let expected: f64 = scores.iter().enumerate().map(|(key, score)| score / sum * f64::from(v[channel * area + key])).sum();
                    let error = (f64::from(answers[0][channel * area + query]) - expected).abs();
                    assert!(error < 1e-5, "{channels} {size:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn empty_images_are_no_error() {
        let zeros = |channels, size| BlockedImage::zeros(channels, size, &Workspace::default());
        let sizes = |queries, keys, values| {
            let output = attend(&queries, &keys, &values);
            assert!(output.lanes().iter().all(|px| *px == Lanes::ZERO));
            (output.channels(), output.size())
        };
        assert_eq!(sizes(zeros(3, [0, 5]), zeros(3, [2, 2]), zeros(20, [2, 2])), (20, [0, 5]));
        assert_eq!(sizes(zeros(3, [4, 5]), zeros(3, [0, 2]), zeros(20, [0, 2])), (20, [4, 5]));
        assert_eq!(sizes(zeros(0, [4, 5]), zeros(0, [2, 2]), zeros(2, [2, 2])), (2, [4, 5]));
        assert_eq!(sizes(zeros(3, [4, 5]), zeros(3, [2, 2]), zeros(0, [2, 2])), (0, [4, 5]));
    }
}
