//! Input px, normalised and activated as they are read.

use crate::math::silu;
use crate::memory::prefetch;

/// Px of a line that is read at once, and room for the last vector.
pub(crate) const LINE: usize = 80;

/// A line of input px.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; LINE]);

/// One picture or frame that is read, and what is done to its values on the way.
#[derive(Debug, Clone, Copy)]
pub struct Frame<'a> {
    /// From the first px of the first channel on.
    pub values: &'a [f32],
    /// Values from one channel to the next.
    pub stride: usize,
    /// How its values are normalised.
    pub norm: Norm<'a>,
}

/// How values are normalised.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'a> {
    /// Values are taken as they are.
    None,
    /// Each channel is scaled and shifted.
    Channels {
        /// A factor for each channel.
        scale: &'a [f32],
        /// What is added to it.
        shift: &'a [f32],
        /// Whether SiLU follows.
        silu: bool,
    },
    /// Each px is multiplied by one number for it and one for its channel.
    Pixels {
        /// A factor for each px.
        inverse: &'a [f32],
        /// A factor for each channel.
        gain: &'a [f32],
        /// Whether SiLU follows.
        silu: bool,
    },
}

/// A frame that a task reads.
#[derive(Clone, Copy)]
pub(crate) struct Picture<'a> {
    pub(crate) frame: &'a Frame<'a>,
    /// Height and width as it lies.
    pub(crate) size: [usize; 2],
    /// Whether each px is read as if it were four.
    pub(crate) doubled: bool,
}

/// Px side by side, some of which may lie outside of the picture.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) row: isize,
    pub(crate) column: isize,
    pub(crate) count: usize,
}

impl Picture<'_> {
    /// Has the processor fetch what [`read`](Self::read) will read.
    #[inline(always)]
    pub(crate) fn prefetch(&self, channel: usize, span: Span) {
        let [height, width] = self.size;
        let Span { row, column, count } = span;
        let (row, column, count) = if self.doubled { (row >> 1, column >> 1, count / 2 + 1) } else { (row, column, count) };
        let row = row.max(0).cast_unsigned().min(height - 1);
        let start = channel * self.frame.stride + row * width + column.max(0).cast_unsigned();
        for at in (0..count + 15).step_by(16) {
            prefetch(self.frame.values, start + at.min(count - 1));
        }
    }

    /// Reads a span; outside of the picture it is zero.
    #[inline(always)]
    pub(crate) fn read(&self, channel: usize, span: Span, line: &mut Line) {
        let Self { frame, size: [height, width], doubled } = *self;
        let Span { row, column, count } = span;
        let line = &mut line.0;
        let [rows, columns] = if doubled { [2 * height, 2 * width] } else { [height, width] };
        let (from, to) = (column.max(0).cast_unsigned(), (column + count.cast_signed()).max(0).cast_unsigned().min(columns));
        // A row above the picture is a large number.
        let row = row.cast_unsigned();
        if row >= rows || from >= to {
            line.fill(0.0);
            return;
        }
        let offset = (from.cast_signed() - column).cast_unsigned();
        if doubled {
            let start = channel * frame.stride + row / 2 * width;
            let row = &frame.values[start..start + width];
            for (at, px) in line[offset..].iter_mut().enumerate().take(to - from) {
                *px = row[(from + at) >> 1];
            }
        } else {
            let start = row * width + from;
            copy(&frame.values[channel * frame.stride + start..][..to - from], &mut line[offset..]);
            match frame.norm {
                Norm::None => {}
                Norm::Channels { scale, shift, silu: activate } => {
                    let (scale, shift) = (scale[channel], shift[channel]);
                    let line = &mut line[..count.next_multiple_of(16)];
                    if activate {
                        for px in line {
                            *px = silu(*px * scale + shift);
                        }
                    } else {
                        for px in line {
                            *px = *px * scale + shift;
                        }
                    }
                }
                Norm::Pixels { inverse, gain, silu: activate } => {
                    let gain = gain[channel];
                    let inverse = &inverse[start..start + to - from];
                    let line = &mut line[offset..offset + to - from];
                    if activate {
                        for (px, &inverse) in line.iter_mut().zip(inverse) {
                            *px = silu(*px * inverse * gain);
                        }
                    } else {
                        for (px, &inverse) in line.iter_mut().zip(inverse) {
                            *px = *px * inverse * gain;
                        }
                    }
                }
            }
        }
        if to - from < count {
            line[..offset].fill(0.0);
            line[offset + to - from..].fill(0.0);
        }
    }
}

/// Copies without a call for what is short.
#[inline(always)]
fn copy(from: &[f32], to: &mut [f32]) {
    let (from_chunks, from_rest) = from.as_chunks::<16>();
    let (to_chunks, _) = to.as_chunks_mut::<16>();
    for (to, from) in to_chunks.iter_mut().zip(from_chunks) {
        *to = *from;
    }
    for (to, &from) in to[from.len() - from_rest.len()..].iter_mut().zip(from_rest) {
        *to = from;
    }
}
