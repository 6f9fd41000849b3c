//! Input px, normalised, activated and upsampled as they are read.

use pulp::Simd;

use crate::norms::Norm;
use crate::{BlockedImage, Lanes};

/// Lanes of a line that is read at once.
pub(crate) const LINE: usize = 34;
/// Lines that are read at once.
pub(crate) const LINES: usize = 18;

/// Lines of input px.
pub(crate) type Lines = [[Lanes; LINE]];

/// A picture or frame that is read, and what is done to its values on the way.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// As it lies.
    pub image: &'a BlockedImage,
    /// How its values are normalised.
    pub norm: &'a Norm,
    /// Whether each px is read as if it were four.
    pub upsampled: bool,
}

/// Lanes side by side, some of which may lie outside of the picture.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) row: isize,
    pub(crate) column: isize,
    pub(crate) count: usize,
}

impl Input<'_> {
    /// Height and width as they are read.
    #[must_use]
    pub fn size(&self) -> [usize; 2] {
        self.image.size().map(|side| if self.upsampled { 2 * side } else { side })
    }

    /// Reads a span of a block; outside of the picture it is zero.
    #[inline(always)]
    pub(crate) fn read<S: Simd>(&self, simd: S, block: usize, span: Span, line: &mut [Lanes; LINE]) {
        let Span { row, column, count } = span;
        let [rows, columns] = self.size();
        let line = &mut line[..count];
        let (from, to) = (column.max(0).cast_unsigned(), (column + count.cast_signed()).max(0).cast_unsigned().min(columns));
        // A row above the picture is a large number.
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
        if self.upsampled {
            let row = row / 2 * width;
            let read = &self.image.block(block)[row..row + width];
            for (px, at) in inside.iter_mut().zip(from..) {
                *px = read[at / 2];
            }
            self.norm.apply(simd, block, inside, |at| row + usize::midpoint(from, at));
        } else {
            let start = row * width + from;
            for (px, read) in inside.iter_mut().zip(&self.image.block(block)[start..]) {
                *px = *read;
            }
            self.norm.apply(simd, block, inside, |at| start + at);
        }
    }
}
