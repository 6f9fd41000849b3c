use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::groups::TILES;
use crate::image::BlockedImage;
use crate::lanes::{LANES, Lanes, sum_of};
use crate::math::exp;
use crate::memory::{Buffer, Scratch, SharedBuffers};
use crate::products::{Depth, Operands, multiply};
use crate::vectors::dispatch;

/// Groups of `TILES` queries in a task.
const GROUPS: usize = 4;

/// Keys whose scores a task holds at once.
const MOST_KEYS: usize = 2048;

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
    let mut attention = Attention::new(queries.clone(), values.channels());
    attention.add(keys, values);
    attention.finish()
}

/// [`attend`] over keys and values that come part by part: the sums of earlier parts are scaled as the largest score grows (M. Milakov, N. Gimelshein: Online
/// normalizer calculation for softmax). The output depends on the order of the parts as sums of floats do.
#[derive(Debug)]
pub struct Attention {
    queries: BlockedImage,
    channels: usize,
    /// Sums of values, weighted by the exponentials of scores: block by block of channels.
    sums: Buffer,
    /// For each query the largest score, and the sum of the exponentials of the differences from it.
    softmax: Vec<[f32; 2]>,
}

impl Attention {
    /// The attention of these queries over values with so many channels.
    #[must_use]
    pub fn new(queries: BlockedImage, channels: usize) -> Self {
        let count = queries.area() * channels.div_ceil(LANES);
        let mut sums = queries.workspace().allocate(count);
        sums.resize(count, Lanes::ZERO);
        let sums = Buffer::new(sums, queries.workspace().clone());
        let softmax = vec![[f32::NEG_INFINITY, 0.0]; queries.area()];
        Self { queries, channels, sums, softmax }
    }

    /// Adds keys and their values.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn add(&mut self, keys: &BlockedImage, values: &BlockedImage) {
        let Self { queries, channels, .. } = self;
        assert!(queries.channels() == keys.channels() && values.channels() == *channels && keys.area() == values.area(), "queries, keys and values");
        let workspace = queries.workspace().clone();
        if queries.area() * queries.channels() == 0 {
            return;
        }
        let mut transposed = Buffer::new(Vec::new(), workspace.clone());
        for first in (0..keys.area()).step_by(MOST_KEYS) {
            let px = first..(first + MOST_KEYS).min(keys.area());
            transposed = transpose(keys, px.clone(), transposed);
            let sums = std::mem::replace(&mut self.sums, Buffer::new(Vec::new(), workspace.clone()));
            let sums = SharedBuffers::initialised(vec![sums.into_lanes()]);
            let part = Part { queries: &self.queries, keys: &transposed, values, px, sums: &sums };
            self.softmax.par_chunks_mut(GROUPS * TILES).enumerate().for_each_init(
                || workspace.scratch(),
                |scratch, (task, softmax)| {
                    workspace.check();
                    dispatch(Task { part: &part, first: task * GROUPS * TILES, softmax, scratch });
                },
            );
            // SAFETY: all values were initialised before.
            #[expect(unsafe_code, reason = "see `SharedBuffers::into_vecs`")]
            let mut lanes = unsafe { sums.into_vecs() };
            self.sums = Buffer::new(lanes.swap_remove(0), workspace.clone());
        }
    }

    /// The output for all keys that were added.
    #[must_use]
    pub fn finish(self) -> BlockedImage {
        let Self { queries, channels, sums, softmax } = self;
        let mut sums = sums.into_lanes();
        sums.par_chunks_mut(queries.area().max(1)).for_each(|px| {
            for (px, [_, sum]) in px.iter_mut().zip(&softmax) {
                let factor = if *sum == 0.0 { 0.0 } else { 1.0 / sum };
                for value in &mut px.0 {
                    *value *= factor;
                }
            }
        });
        BlockedImage::from_lanes(sums, channels, queries.size(), queries.workspace())
    }
}

/// Px of an image as `[px / 16, channels, 16 px]`, padded with zeros, in the memory of `buffer`.
fn transpose(image: &BlockedImage, px: Range<usize>, buffer: Buffer) -> Buffer {
    let per_group = image.blocks() * LANES;
    let groups = px.len().div_ceil(LANES);
    let workspace = buffer.workspace().clone();
    let mut transposed = buffer.into_lanes();
    if transposed.capacity() < groups * per_group {
        transposed = workspace.allocate(groups * per_group);
    }
    transposed.clear();
    transposed.resize(groups * per_group, Lanes::ZERO);
    transposed.par_chunks_mut(per_group).enumerate().for_each(|(group, transposed)| {
        for (block, transposed) in transposed.chunks_mut(LANES).enumerate() {
            let px = &image.block(block)[px.clone()][group * LANES..];
            for (lane, px) in px.iter().take(LANES).enumerate() {
                for (transposed, &value) in transposed.iter_mut().zip(&px.0) {
                    transposed.0[lane] = value;
                }
            }
        }
    });
    Buffer::new(transposed, workspace)
}

/// Some keys, for all queries.
struct Part<'a> {
    queries: &'a BlockedImage,
    /// Transposed.
    keys: &'a [Lanes],
    /// Their values are among these.
    values: &'a BlockedImage,
    px: Range<usize>,
    sums: &'a SharedBuffers<Lanes>,
}

/// Up to `GROUPS * TILES` queries, from the index `first` on.
struct Task<'a, 's> {
    part: &'a Part<'a>,
    first: usize,
    softmax: &'s mut [[f32; 2]],
    scratch: &'s mut Scratch,
}

impl WithSimd for Task<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Part { queries, keys, values, px, sums: output } = self.part;
        let area = queries.area();
        let groups = self.softmax.len().div_ceil(TILES);
        let key_groups = px.len().div_ceil(LANES);
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
        for (group, (scores, factors)) in scores.chunks_mut(per_scores).zip(&mut factors).enumerate() {
            for (tile, factor) in factors.iter_mut().enumerate() {
                let mut padding = [f32::NEG_INFINITY, 0.0];
                *factor = exponentiate(scores, tile, px.len(), scale, self.softmax.get_mut(group * TILES + tile).unwrap_or(&mut padding));
            }
        }
        let depth = Depth::new(px.len());
        let mut sums = [Lanes::ZERO; 2 * TILES];
        for pair in (0..values.blocks()).step_by(2) {
            let blocks = (values.blocks() - pair).min(2);
            let kernels = [pair, pair + blocks - 1].map(|block| &values.block(block)[px.clone()]);
            for (group, (scores, factors)) in scores.chunks(per_scores).zip(&factors).enumerate() {
                multiply(simd, &[Operands { kernels, values: scores }], depth, &mut sums[..blocks * TILES]);
                let first = self.first + group * TILES;
                for (at, sums) in sums.chunks_mut(TILES).take(blocks).enumerate() {
                    let sums = &mut sums[..TILES.min(area - first)];
                    // SAFETY: no other task writes these queries, whose sums are initialised.
                    #[expect(unsafe_code, reason = "see `SharedBuffers::add_to_scaled`")]
                    unsafe {
                        output.add_to_scaled((pair + at) * area + first, sums, factors);
                    }
                }
            }
        }
    }
}

/// The numerators of the softmax over the scores of one query, in place: the exponentials of the differences from the largest score so far. Updates that and the
/// sum of all exponentials, and returns what the sums of earlier ones are to be multiplied by.
#[inline(always)]
fn exponentiate(scores: &mut [Lanes], tile: usize, keys: usize, scale: f32, [largest, all]: &mut [f32; 2]) -> f32 {
    let rest = (keys + LANES - 1) % LANES + 1;
    let last = scores.len() - TILES + tile;
    // Lanes beyond the last key.
    scores[last].0[rest..].fill(f32::NEG_INFINITY);
    let mut maximum = [*largest; LANES];
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
    // Nothing before the first part.
    let factor = if *largest == f32::NEG_INFINITY { 0.0 } else { exp((*largest - maximum) * scale) };
    *all = all.mul_add(factor, sum_of(&sum));
    *largest = maximum;
    factor
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Workspace;
    use crate::vectors::tests::with_each_instruction_set;

    #[test]
    fn attention_equals_its_definition() {
        let cases: &[_] =
            if cfg!(miri) { &[(3, [1, 1]), (17, [3, 3])] } else { &[(3, [1, 1]), (20, [5, 7]), (40, [9, 11]), (16, [4, 8]), (5, [3, 800])] };
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
            // The rows of keys one after the other, the last first.
            let mut attention = Attention::new(image(&q), channels);
            for row in (0..size[0]).rev() {
                let part = |values: &[f32]| image(values).cropped([row, 0], [1, size[1]]);
                attention.add(&part(&k), &part(&v));
            }
            let mut in_parts = vec![0.0; channels * area];
            attention.finish().to_planes(&mut in_parts, area);
            assert!(in_parts.iter().zip(&answers[0]).all(|(a, b)| (a - b).abs() < 1e-5), "{channels} {size:?}");
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
