//! The kernels of a convolution, transformed.

use std::marker::PhantomData;
use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::algorithms::TileAlgorithm;
use crate::lanes::{LANES, Lanes};
use crate::vectors::dispatch;

/// Kernels as PyTorch stores them.
#[derive(Clone, Copy)]
pub(super) struct Weight<'a> {
    /// `[output channels, input channels, frames, height, width]`.
    pub(super) values: &'a [f32],
    /// Input and output channels.
    pub(super) channels: [usize; 2],
    pub(super) frames: usize,
    /// Height times width.
    pub(super) area: usize,
}

impl Weight<'_> {
    /// Transforms the last `frames` frames of the kernels: `[blocks of output channels, POSITIONS, frames, UNROLLED, input channels]` with `block_stride` from
    /// block to block and the input channels padded to blocks.
    pub(super) fn transform<const OUT: usize, T: TileAlgorithm<OUT>>(
        &self,
        frames: usize,
        blocks: Range<usize>,
        block_stride: usize,
        transformed: &mut [Lanes],
    ) {
        transformed.par_chunks_mut(block_stride.max(1)).zip(blocks).for_each(|(transformed, block)| {
            dispatch(TransformTask::<OUT, T> { weight: *self, frames, block, transformed, algorithm: PhantomData });
        });
    }
}

struct TransformTask<'a, const OUT: usize, T> {
    weight: Weight<'a>,
    frames: usize,
    block: usize,
    transformed: &'a mut [Lanes],
    algorithm: PhantomData<T>,
}

impl<const OUT: usize, T: TileAlgorithm<OUT>> WithSimd for TransformTask<'_, OUT, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        /// Input channels that are transformed before they are stored, so that stores to one position are adjacent.
        const CHANNELS: usize = 4;
        let Weight { values, channels: [channels_in, channels_out], frames: all_frames, area } = self.weight;
        let position_stride = self.transformed.len() / T::POSITIONS;
        let frame_stride = position_stride / self.frames;
        let unrolled_stride = frame_stride / T::UNROLLED;
        let first = LANES * self.block;
        let count_out = (channels_out - first).min(LANES);
        let per_out = channels_in * all_frames * area;
        let values = &values[first * per_out..(first + count_out) * per_out];
        let mut kernels = [[Lanes::ZERO; 9]; CHANNELS];
        let mut results = [[Lanes::ZERO; 36]; CHANNELS];
        for frame in 0..self.frames {
            for channel in (0..channels_in).step_by(CHANNELS) {
                let count = (channels_in - channel).min(CHANNELS);
                for (lane, values) in values.chunks_exact(per_out).enumerate() {
                    for (at, kernel) in kernels.iter_mut().enumerate().take(count) {
                        let start = ((channel + at + 1) * all_frames - self.frames + frame) * area;
                        for (px, &value) in kernel.iter_mut().zip(&values[start..start + area]) {
                            px.0[lane] = value;
                        }
                    }
                }
                for (kernel, result) in kernels.iter().zip(&mut results).take(count) {
                    T::kernels(simd, &kernel[..area], &mut result[..T::POSITIONS * T::UNROLLED]);
                }
                for position in 0..T::POSITIONS {
                    for unrolled in 0..T::UNROLLED {
                        let first = position * position_stride + frame * frame_stride + unrolled * unrolled_stride + channel;
                        for (transformed, result) in self.transformed[first..first + count].iter_mut().zip(&results) {
                            *transformed = result[position * T::UNROLLED + unrolled];
                        }
                    }
                }
            }
        }
    }
}
