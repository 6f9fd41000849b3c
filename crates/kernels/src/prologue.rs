//! What is done to values when they are read: norm, activation and upsampling.

use std::sync::Arc;

use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::activation::Activation;
use crate::image::BlockedImage;
use crate::lanes::Lanes;
use crate::norms::Norm;
use crate::vectors::dispatch;

/// Px of a line that is read at once.
pub(crate) const LINE: usize = 34;
/// Lines that are read at once.
pub(crate) const LINES: usize = 18;

/// Lines of input px.
pub(crate) type Lines = [[Lanes; LINE]];

/// Elementwise operations that are applied to an image while a convolution reads it, in the order of the fields.
#[derive(Debug, Clone, Default)]
pub struct Prologue {
    /// A norm that was made for the image.
    pub norm: Option<Arc<Norm>>,
    /// The activation that follows.
    pub activation: Activation,
    /// Whether height and width are doubled by repeating each px (nearest neighbour).
    pub upsample: bool,
}

impl Prologue {
    /// Applies all operations to a whole image.
    ///
    /// # Panics
    /// When the norm was made for another image with fewer channels or px.
    #[must_use]
    pub fn applied(&self, image: BlockedImage) -> BlockedImage {
        let image = self.normalised(image);
        if self.upsample { image.upsampled() } else { image }
    }

    /// Norm and activation.
    fn normalised(&self, image: BlockedImage) -> BlockedImage {
        /// Px of one task.
        const CHUNK_PX: usize = 512;
        let (channels, size, area) = (image.channels(), image.size(), image.area());
        if self.norm.is_none() && self.activation == Activation::None || area == 0 {
            return image;
        }
        let workspace = image.workspace().clone();
        let mut lanes = image.into_lanes();
        lanes.par_chunks_mut(area).enumerate().for_each(|(block, px)| {
            px.par_chunks_mut(CHUNK_PX)
                .enumerate()
                .for_each(|(chunk, px)| dispatch(NormalisedTask { prologue: self, block, start: chunk * CHUNK_PX, px }));
        });
        BlockedImage::from_lanes(lanes, channels, size, &workspace)
    }

    /// Norm and activation of px of a block of channels. `position` maps an index of `px` to its index in the image.
    #[inline(always)]
    fn normalise<S: Simd>(&self, simd: S, block: usize, px: &mut [Lanes], position: impl Fn(usize) -> usize) {
        match &self.norm {
            Some(norm) => norm.apply(simd, self.activation, block, px, position),
            None if self.activation == Activation::None => {}
            None => {
                for px in px {
                    self.activation.apply(px);
                }
            }
        }
    }
}

struct NormalisedTask<'a> {
    prologue: &'a Prologue,
    block: usize,
    start: usize,
    px: &'a mut [Lanes],
}

impl WithSimd for NormalisedTask<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let start = self.start;
        self.prologue.normalise(simd, self.block, self.px, |at| start + at);
    }
}

/// An image that a convolution reads, with its prologue.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The stored image.
    pub image: &'a BlockedImage,
    /// What is done to its values.
    pub prologue: &'a Prologue,
}

/// Px of one row, some of which may lie outside of the image.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) row: isize,
    pub(crate) column: isize,
    pub(crate) count: usize,
}

impl Input<'_> {
    /// Height and width after the prologue.
    #[must_use]
    pub fn size(&self) -> [usize; 2] {
        self.image.size().map(|side| if self.prologue.upsample { 2 * side } else { side })
    }

    /// Reads a span of a block of channels. Px outside of the image are zero.
    #[inline(always)]
    pub(crate) fn read<S: Simd>(&self, simd: S, block: usize, span: Span, line: &mut [Lanes; LINE]) {
        let Span { row, column, count } = span;
        let [rows, columns] = self.size();
        let line = &mut line[..count];
        let (from, to) = (column.max(0).cast_unsigned(), (column + count.cast_signed()).max(0).cast_unsigned().min(columns));
        // A negative row becomes a large number.
        let row = row.cast_unsigned();
        if row >= rows || from >= to {
            line.fill(Lanes::ZERO);
            return;
        }
        let (before, inside) = line.split_at_mut((from.cast_signed() - column).cast_unsigned());
        let (inside, after) = inside.split_at_mut(to - from);
        before.fill(Lanes::ZERO);
        after.fill(Lanes::ZERO);
        let width = self.image.size()[1];
        if self.prologue.upsample {
            let row = row / 2 * width;
            let read = &self.image.block(block)[row..row + width];
            for (px, at) in inside.iter_mut().zip(from..) {
                *px = read[at / 2];
            }
            self.prologue.normalise(simd, block, inside, |at| row + usize::midpoint(from, at));
        } else {
            let start = row * width + from;
            for (px, read) in inside.iter_mut().zip(&self.image.block(block)[start..]) {
                *px = *read;
            }
            self.prologue.normalise(simd, block, inside, |at| start + at);
        }
    }
}

#[cfg(test)]
mod tests;
