use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::math::exp;
use crate::memory::{Buffer, Scratch, Shared};
use crate::norms::sum_of;
use crate::products::{Depth, Stretch, multiply};
use crate::vectors::dispatch;
use crate::{BlockedImage, LANES, Lanes, TILES};

/// Groups of queries whose scores are held at once by each thread.
const GROUPS: usize = 4;

/// Attention of all px of `queries` to all px of `keys` with one head, scaled by the inverse root of the number of channels.
///
/// # Panics
/// When sizes do not fit one another.
#[must_use]
pub fn attend(queries: &BlockedImage, keys: &BlockedImage, values: &BlockedImage) -> BlockedImage {
    assert!(queries.channels() == keys.channels() && keys.area() == values.area(), "sizes");
    let [area, blocks_out] = [queries.area(), values.blocks()];
    let workspace = queries.workspace();
    let output = Shared::fresh(1, area * blocks_out, workspace);
    if area > 0 && keys.area() > 0 {
        let keys_by_channel = turned(keys);
        let attention = Attention { queries, values, keys: &keys_by_channel, output: &output };
        let tasks = (0..area.div_ceil(GROUPS * TILES)).into_par_iter();
        tasks.for_each_init(
            || workspace.scratch(),
            |scratch, task| {
                workspace.check();
                dispatch(Task { attention: &attention, first: task * GROUPS * TILES, scratch });
            },
        );
    }
    assert!(area == 0 || keys.area() > 0, "no keys");
    // SAFETY: the tasks write every px of every block.
    #[expect(unsafe_code, reason = "to not clear what is overwritten")]
    let mut px = unsafe { output.finish() };
    BlockedImage::filled(px.remove(0), values.channels(), queries.size(), workspace)
}

/// By 16 px and channel: px side by side. Where the px end, zeros.
fn turned(image: &BlockedImage) -> Buffer {
    let per_group = image.blocks() * LANES;
    let groups = image.area().div_ceil(LANES);
    let mut turned = image.workspace().room(groups * per_group);
    turned.resize(groups * per_group, Lanes::ZERO);
    turned.par_chunks_mut(per_group).enumerate().for_each(|(group, turned)| {
        for (block, turned) in turned.chunks_mut(LANES).enumerate() {
            let px = &image.block(block)[group * LANES..];
            for (lane, px) in px.iter().take(LANES).enumerate() {
                for (turned, &value) in turned.iter_mut().zip(&px.0) {
                    turned.0[lane] = value;
                }
            }
        }
    });
    Buffer::new(turned, image.workspace().clone())
}

struct Attention<'a> {
    queries: &'a BlockedImage,
    values: &'a BlockedImage,
    keys: &'a [Lanes],
    output: &'a Shared<Lanes>,
}

/// Some queries from the first on.
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
        let (slabs, scores) = self.scratch.px(needed).split_at_mut(groups * per_queries);
        for (group, slab) in slabs.chunks_mut(per_queries).enumerate() {
            for (block, slab) in slab.chunks_mut(TILES).enumerate() {
                for (tile, px) in slab.iter_mut().enumerate() {
                    // Behind the last query comes the last query.
                    *px = queries.block(block)[(self.first + group * TILES + tile).min(area - 1)];
                }
            }
        }
        let depth = Depth::new(queries.channels());
        let per_key_group = queries.blocks() * LANES;
        for pair in (0..key_groups).step_by(2) {
            let count = (key_groups - pair).min(2);
            let kernels = [pair, pair + count - 1].map(|group| &keys[group * per_key_group..][..per_key_group]);
            for (slab, scores) in slabs.chunks(per_queries).zip(scores.chunks_mut(per_scores)) {
                multiply(simd, &[Stretch { kernels, values: slab }], depth, &mut scores[pair * TILES..][..count * TILES]);
            }
        }
        let scale = 1.0 / (queries.channels() as f32).sqrt();
        let mut factors = [[0.0; TILES]; GROUPS];
        for (scores, factors) in scores.chunks_mut(per_scores).zip(&mut factors) {
            for (tile, factor) in factors.iter_mut().enumerate() {
                *factor = soften(scores, tile, values.area(), scale);
            }
        }
        let depth = Depth::new(values.area());
        let mut sums = [Lanes::ZERO; 2 * TILES];
        for pair in (0..values.blocks()).step_by(2) {
            let blocks = (values.blocks() - pair).min(2);
            let kernels = [pair, pair + blocks - 1].map(|block| values.block(block));
            for (group, (scores, factors)) in scores.chunks(per_scores).zip(&factors).enumerate() {
                multiply(simd, &[Stretch { kernels, values: scores }], depth, &mut sums[..blocks * TILES]);
                let first = self.first + group * TILES;
                for (at, sums) in sums.chunks_mut(TILES).take(blocks).enumerate() {
                    let sums = &mut sums[..TILES.min(area - first)];
                    for (px, factor) in sums.iter_mut().zip(factors) {
                        for value in &mut px.0 {
                            *value *= factor;
                        }
                    }
                    // SAFETY: no other task has these queries.
                    #[expect(unsafe_code, reason = "see `Shared`")]
                    unsafe {
                        output.put(0, (pair + at) * area + first, sums, false);
                    }
                }
            }
        }
    }
}

/// Makes the scores of a query the exponentials of their differences from the greatest, and returns the inverse of their sum.
#[inline(always)]
fn soften(scores: &mut [Lanes], tile: usize, keys: usize, scale: f32) -> f32 {
    let rest = (keys + LANES - 1) % LANES + 1;
    let last = scores.len() - TILES + tile;
    // Behind the last key there is nothing.
    scores[last].0[rest..].fill(f32::NEG_INFINITY);
    let mut greatest = [f32::NEG_INFINITY; LANES];
    for px in scores.iter().skip(tile).step_by(TILES) {
        for (greatest, &value) in greatest.iter_mut().zip(&px.0) {
            *greatest = if value > *greatest { value } else { *greatest };
        }
    }
    let greatest = greatest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = [0.0_f32; LANES];
    for px in scores.iter_mut().skip(tile).step_by(TILES) {
        for (value, sum) in px.0.iter_mut().zip(&mut sum) {
            *value = exp((*value - greatest) * scale);
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
    use crate::Workspace;
    use crate::vectors::tests::with_each_kind_of_vectors;

    #[test]
    fn every_query_sees_every_key() {
        let cases: &[_] = if cfg!(miri) { &[(3, [1, 1]), (17, [3, 3])] } else { &[(3, [1, 1]), (20, [5, 7]), (40, [9, 11]), (16, [4, 8])] };
        for &(channels, size) in cases {
            let area = size[0] * size[1];
            let values = |step: f32| (0..channels * area).map(|at| (at as f32 * step).sin() * 3.0).collect::<Vec<f32>>();
            let [q, k, v] = [0.37, 0.71, 1.3].map(values);
            let image = |values: &[f32]| BlockedImage::from_planes(values, area, channels, size, &Workspace::default());
            let answers = with_each_kind_of_vectors(|| {
                let mut got = vec![0.0; channels * area];
                attend(&image(&q), &image(&k), &image(&v)).to_planes(&mut got, area);
                got
            });
            assert!(answers.iter().all(|answer| *answer == answers[0]), "{channels} {size:?}");
            for query in 0..area {
                let score = |key: usize| {
                    let of = |values: &[f32], channel: usize, px: usize| f64::from(values[channel * area + px]);
                    ((0..channels).map(|channel| of(&q, channel, query) * of(&k, channel, key)).sum::<f64>() / (channels as f64).sqrt()).exp()
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
}
