//! Matrix products over input channels: output channels by tiles.

use pulp::Simd;

use crate::groups::TILES;
use crate::lanes::{LANES, Lanes};
use crate::vectors::{load, store};

/// Pairs of operands that are summed at once, which is the largest number of frames of a kernel.
pub(crate) const MAX_PAIRS: usize = 3;

/// The two factors of a product.
#[derive(Clone, Copy)]
pub(crate) struct Operands<'a> {
    /// For one or two blocks of output channels, `[input channels]`.
    pub(crate) kernels: [&'a [Lanes]; 2],
    /// `[input channels / 16, TILES]`.
    pub(crate) values: &'a [Lanes],
}

impl Operands<'_> {
    pub(crate) const EMPTY: Self = Self { kernels: [&[]; 2], values: &[] };
}

/// How many input channels there are to sum over.
#[derive(Clone, Copy)]
pub(crate) struct Depth {
    /// Blocks of 16 channels, the last of which may be incomplete. Operands are one or several such lists, one after another.
    pub(crate) blocks: usize,
    /// Channels in the last block.
    pub(crate) last: usize,
}

impl Depth {
    pub(crate) fn new(channels: usize) -> Self {
        Self { blocks: channels.div_ceil(LANES), last: (channels + LANES - 1) % LANES + 1 }
    }
}

/// Sums the products of all pairs of operands over their channels: `sums` is `[output blocks (one or two), TILES]`.
///
/// The order of each sum does not depend on the width of vectors: pair by pair, channel by channel, with fused multiply-adds.
#[inline(always)]
pub(crate) fn multiply<S: Simd>(simd: S, operands: &[Operands], depth: Depth, sums: &mut [Lanes]) {
    // The tiles are chosen so that sums, kernels and one broadcast value fit the vector registers.
    match (S::F32_LANES, sums.len() / TILES) {
        (16, 2) => block::<S, 2, 1, 8>(simd, operands, depth, [0, 0], sums),
        (16, _) => block::<S, 1, 1, 8>(simd, operands, depth, [0, 0], sums),
        (8, blocks) => {
            for at in 0..blocks {
                for tile in [0, 4] {
                    block_of::<S, 2, 4>(simd, operands, depth, at, [0, tile], sums);
                }
            }
        }
        (4, blocks) => {
            for at in 0..blocks {
                for tile in [0, 4] {
                    block_of::<S, 4, 4>(simd, operands, depth, at, [0, tile], sums);
                }
            }
        }
        (lanes, blocks) => {
            for at in 0..blocks {
                for vector in (0..LANES / lanes).step_by(4) {
                    for tile in (0..TILES).step_by(2) {
                        block_of::<S, 4, 2>(simd, operands, depth, at, [vector, tile], sums);
                    }
                }
            }
        }
    }
}

/// [`block`] for one of the two blocks of output channels.
#[inline(always)]
fn block_of<S: Simd, const VECTORS: usize, const COUNT: usize>(
    simd: S,
    operands: &[Operands],
    depth: Depth,
    block_at: usize,
    first: [usize; 2],
    sums: &mut [Lanes],
) {
    let mut own = [Operands::EMPTY; MAX_PAIRS];
    for (own, operands) in own.iter_mut().zip(operands) {
        *own = Operands { kernels: [operands.kernels[block_at], &[]], values: operands.values };
    }
    block::<S, 1, VECTORS, COUNT>(simd, &own[..operands.len()], depth, first, &mut sums[block_at * TILES..][..TILES]);
}

/// The sums of `COUNT` tiles and `VECTORS` vectors of output channels, held in registers, from the indices `[vector, tile]` on.
#[inline(always)]
fn block<S: Simd, const BLOCKS: usize, const VECTORS: usize, const COUNT: usize>(
    simd: S,
    operands: &[Operands],
    depth: Depth,
    [vector, tile]: [usize; 2],
    answers: &mut [Lanes],
) {
    let mut sums = [[[simd.splat_f32s(0.0); VECTORS]; BLOCKS]; COUNT];
    for operands in operands {
        let mut rest = depth.blocks;
        for (row, values) in operands.values.as_chunks::<TILES>().0.iter().enumerate() {
            rest -= 1;
            let count = if rest == 0 { depth.last } else { LANES };
            rest = if rest == 0 { depth.blocks } else { rest };
            let kernels: [&[Lanes]; BLOCKS] = std::array::from_fn(|at| &operands.kernels[at][row * LANES..][..count]);
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
                store::<S>(answer, vector + of, sum);
            }
        }
    }
}
