//! Products of matrices: sums over input channels of kernels and values.

use pulp::Simd;

use crate::vectors::load;
use crate::{LANES, Lanes, TILES};

/// What is summed: kernels of one or two blocks of output channels, by input channel, and the values that they meet, by 16 input channels and tile.
#[derive(Clone, Copy)]
pub(crate) struct Stretch<'a> {
    pub(crate) kernels: [&'a [Lanes]; 2],
    pub(crate) values: &'a [Lanes],
}

impl Stretch<'_> {
    pub(crate) const EMPTY: Self = Self { kernels: [&[]; 2], values: &[] };
}

/// Input channels: rows of 16, of which every `per_value`th has only `rest`.
#[derive(Clone, Copy)]
pub(crate) struct Depth {
    pub(crate) per_value: usize,
    pub(crate) rest: usize,
}

impl Depth {
    pub(crate) fn new(channels: usize) -> Self {
        Self { per_value: channels.div_ceil(LANES), rest: (channels + LANES - 1) % LANES + 1 }
    }
}

/// Sums over all channels of all stretches: `TILES` px for each of the one or two blocks of `sums`.
#[inline(always)]
pub(crate) fn multiply<S: Simd>(simd: S, stretches: &[Stretch], depth: Depth, sums: &mut [Lanes]) {
    // The sums, the kernels' vectors and one value fit the registers.
    match (S::F32_LANES, sums.len() / TILES) {
        (16, 2) => block::<S, 2, 1, 8>(simd, stretches, depth, [0, 0], sums),
        (16, _) => block::<S, 1, 1, 8>(simd, stretches, depth, [0, 0], sums),
        (8, blocks) => {
            for at in 0..blocks {
                for tile in [0, 4] {
                    block_of::<S, 2, 4>(simd, stretches, depth, at, [0, tile], sums);
                }
            }
        }
        (4, blocks) => {
            for at in 0..blocks {
                for tile in [0, 4] {
                    block_of::<S, 4, 4>(simd, stretches, depth, at, [0, tile], sums);
                }
            }
        }
        (lanes, blocks) => {
            for at in 0..blocks {
                for vector in (0..LANES / lanes).step_by(4) {
                    for tile in (0..TILES).step_by(2) {
                        block_of::<S, 4, 2>(simd, stretches, depth, at, [vector, tile], sums);
                    }
                }
            }
        }
    }
}

/// One of two blocks of output channels.
#[inline(always)]
fn block_of<S: Simd, const VECTORS: usize, const COUNT: usize>(
    simd: S,
    stretches: &[Stretch],
    depth: Depth,
    block_at: usize,
    first: [usize; 2],
    sums: &mut [Lanes],
) {
    let mut own = [Stretch::EMPTY; 3];
    for (own, stretch) in own.iter_mut().zip(stretches) {
        *own = Stretch { kernels: [stretch.kernels[block_at], &[]], values: stretch.values };
    }
    block::<S, 1, VECTORS, COUNT>(simd, &own[..stretches.len()], depth, first, &mut sums[block_at * TILES..][..TILES]);
}

/// `COUNT` tiles and some vectors of one or two blocks of output channels.
#[inline(always)]
fn block<S: Simd, const BLOCKS: usize, const VECTORS: usize, const COUNT: usize>(
    simd: S,
    stretches: &[Stretch],
    depth: Depth,
    [vector, tile]: [usize; 2],
    answers: &mut [Lanes],
) {
    let mut sums = [[[simd.splat_f32s(0.0); VECTORS]; BLOCKS]; COUNT];
    for stretch in stretches {
        let mut rest = depth.per_value;
        for (row, values) in stretch.values.as_chunks::<TILES>().0.iter().enumerate() {
            rest -= 1;
            let count = if rest == 0 { depth.rest } else { LANES };
            rest = if rest == 0 { depth.per_value } else { rest };
            let kernels: [&[Lanes]; BLOCKS] = std::array::from_fn(|at| &stretch.kernels[at][row * LANES..][..count]);
            for channel in 0..count.min(LANES) {
                let kernels: [[S::f32s; VECTORS]; BLOCKS] =
                    std::array::from_fn(|at| std::array::from_fn(|of| load::<S>(&kernels[at][channel], vector + of)));
                for (sums, values) in sums.iter_mut().zip(&values[tile..tile + COUNT]) {
                    let value = simd.splat_f32s(values.0[channel]);
                    for (sums, kernels) in sums.iter_mut().zip(&kernels) {
                        for (sum, &kernel) in sums.iter_mut().zip(kernels) {
                            *sum = simd.mul_add_f32s(kernel, value, *sum);
                        }
                    }
                }
            }
        }
    }
    for (at, sums) in sums.into_iter().enumerate() {
        for (block, sums) in sums.into_iter().enumerate() {
            let answer = &mut answers[block * TILES + tile + at];
            for (of, sum) in sums.into_iter().enumerate() {
                crate::vectors::store::<S>(answer, vector + of, sum);
            }
        }
    }
}
