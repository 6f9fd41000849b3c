//! Statistics of an image that norms are computed from. A convolution collects them while it writes its output; else they are computed from the image.

use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::groups::{TILES, TileGroup, tile_groups};
use crate::lanes::{LANES, Lanes, sum_of};
use crate::vectors::dispatch;

/// Statistics that a convolution collects from its output for the norm that follows. The result of the norm is the same to the bit without them; collecting
/// saves a pass over memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Statistics {
    /// Nothing.
    #[default]
    None,
    /// For [`GroupMoments`](crate::GroupMoments): mean and squared deviations of each channel.
    Moments,
    /// For [`Norm::rms_norm`](crate::Norm::rms_norm): the squared L2 norm of each px over its channels.
    SquaredNorms,
}

/// Collected [`Statistics`] of one image.
#[derive(Debug)]
pub(crate) enum Collected {
    /// By block of channels and group of 4x4 tiles: the mean of each channel, and the sum of its squared deviations from that mean.
    Moments(Vec<Lanes>),
    /// By px: the sum of the squares of its channels.
    SquaredNorms(Vec<f32>),
}

/// Accumulates the mean and the squared deviations of each channel of a block.
#[derive(Clone, Copy)]
pub(crate) struct PartialMoments {
    /// The first px. Sums are of differences from it, which avoids cancellation where the mean is large.
    shift: Lanes,
    sum: Lanes,
    squares: Lanes,
    count: usize,
}

impl PartialMoments {
    pub(crate) const EMPTY: Self = Self { shift: Lanes::ZERO, sum: Lanes::ZERO, squares: Lanes::ZERO, count: 0 };

    #[inline(always)]
    pub(crate) fn add(&mut self, px: &[Lanes]) {
        if self.count == 0 {
            self.shift = px.first().copied().unwrap_or(Lanes::ZERO);
        }
        self.count += px.len();
        for px in px {
            for lane in 0..LANES {
                let value = px.0[lane] - self.shift.0[lane];
                self.sum.0[lane] += value;
                self.squares.0[lane] = value.mul_add(value, self.squares.0[lane]);
            }
        }
    }

    /// The mean, and the sum of the squared deviations from it.
    #[inline(always)]
    pub(crate) fn finish(&self) -> [Lanes; 2] {
        let inverse_count = 1.0 / self.count.max(1) as f32;
        let mean = Lanes(std::array::from_fn(|lane| self.sum.0[lane] * inverse_count + self.shift.0[lane]));
        let squares = Lanes(std::array::from_fn(|lane| (self.squares.0[lane] - self.sum.0[lane] * (self.sum.0[lane] * inverse_count)).max(0.0)));
        [mean, squares]
    }
}

/// The sum of the squares of the channels of one px.
#[inline(always)]
pub(crate) fn sum_of_squares(lanes: &Lanes) -> f32 {
    sum_of(&lanes.0.map(|value| value * value))
}

/// [`Collected::Moments`] of an image given as blocks of channels.
pub(crate) fn moments(blocks: &[Lanes], size: [usize; 2]) -> Vec<Lanes> {
    /// Groups of tiles of one task.
    const CHUNK_GROUPS: usize = 64;
    let groups = tile_groups::<4>(size, true);
    let area = size[0] * size[1];
    if area == 0 {
        return Vec::new();
    }
    let mut moments = vec![Lanes::ZERO; 2 * (blocks.len() / area) * groups.len()];
    moments.par_chunks_mut(2 * groups.len()).zip(blocks.par_chunks(area)).for_each(|(moments, px)| {
        moments.par_chunks_mut(2 * CHUNK_GROUPS).zip(groups.par_chunks(CHUNK_GROUPS)).for_each(|(moments, groups)| {
            dispatch(MomentsTask { px, size, groups, moments });
        });
    });
    moments
}

struct MomentsTask<'a> {
    px: &'a [Lanes],
    size: [usize; 2],
    groups: &'a [TileGroup],
    moments: &'a mut [Lanes],
}

impl WithSimd for MomentsTask<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let [height, width] = self.size;
        for (group, answer) in self.groups.iter().zip(self.moments.chunks_mut(2)) {
            let mut moments = PartialMoments::EMPTY;
            for tile in 0..TILES {
                let [top, left] = group.tile(tile).map(|at| 4 * at);
                for row in top..(top + 4).min(height) {
                    if left < width {
                        moments.add(&self.px[row * width + left..row * width + (left + 4).min(width)]);
                    }
                }
            }
            answer.copy_from_slice(&moments.finish());
        }
    }
}

/// [`Collected::SquaredNorms`] of an image given as blocks of channels.
pub(crate) fn squared_norms(blocks: &[Lanes], area: usize) -> Vec<f32> {
    /// Px of one task.
    const CHUNK_PX: usize = 512;
    let mut squares = vec![0.0; area];
    squares
        .par_chunks_mut(CHUNK_PX)
        .enumerate()
        .for_each(|(chunk, squares)| dispatch(SquaredNormsTask { blocks, area, start: chunk * CHUNK_PX, squares }));
    squares
}

struct SquaredNormsTask<'a> {
    blocks: &'a [Lanes],
    area: usize,
    start: usize,
    squares: &'a mut [f32],
}

impl WithSimd for SquaredNormsTask<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for block in self.blocks.chunks_exact(self.area) {
            for (square, px) in self.squares.iter_mut().zip(&block[self.start..]) {
                *square += sum_of_squares(px);
            }
        }
    }
}

/// Adds the partial moments of a block over all groups of tiles with `counts` px: for each channel the sum, and the sum of the squared deviations from the
/// mean. The mean is computed first, so that the deviations do not suffer from cancellation.
pub(crate) fn total_moments(moments: &[Lanes], counts: &[f64]) -> [[f64; LANES]; 2] {
    let (partial, _) = moments.as_chunks::<2>();
    let mut sums = [0.0; LANES];
    for ([mean, _], count) in partial.iter().zip(counts) {
        for (sum, &mean) in sums.iter_mut().zip(&mean.0) {
            *sum += count * f64::from(mean);
        }
    }
    let area: f64 = counts.iter().sum();
    let means = sums.map(|sum| sum / area);
    let mut squares = [0.0; LANES];
    for ([mean, deviations], count) in partial.iter().zip(counts) {
        for lane in 0..LANES {
            squares[lane] += f64::from(deviations.0[lane]) + count * (f64::from(mean.0[lane]) - means[lane]).powi(2);
        }
    }
    [sums, squares]
}

/// Checks that collected statistics equal those computed from the image, to the bit.
#[cfg(test)]
pub(crate) fn check(collected: Option<&Collected>, blocks: &[Lanes], size: [usize; 2]) {
    match collected {
        None => {}
        Some(Collected::Moments(collected)) => assert!(*collected == moments(blocks, size)),
        Some(Collected::SquaredNorms(collected)) => assert!(*collected == squared_norms(blocks, size[0] * size[1])),
    }
}
