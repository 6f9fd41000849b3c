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
    pub norm: Norm<'a>,
}

/// How values are normalised.
#[derive(Debug, Clone, Copy)]
pub enum Norm<'a> {
    /// Values are taken as they are.
    None,
    /// Each channel is scaled and shifted.
    Channels { scale: &'a [f32], shift: &'a [f32], silu: bool },
    /// Each px is multiplied by one number for it and one for its channel.
    Pixels { inverse: &'a [f32], gain: &'a [f32], silu: bool },
}

impl Frame<'_> {
    /// Has the processor fetch what [`read`](Self::read) will read.
    #[inline(always)]
    pub(crate) fn prefetch(&self, channel: usize, [height, width]: [usize; 2], doubled: bool, y: isize, x: isize, count: usize) {
        let (y, x, count) = if doubled { (y >> 1, x >> 1, count / 2 + 1) } else { (y, x, count) };
        let y = y.clamp(0, height as isize - 1) as usize;
        let x = x.max(0) as usize;
        let start = channel * self.stride + y * width + x;
        for at in (0..count + 15).step_by(16) {
            prefetch(self.values, start + at.min(count - 1));
        }
    }

    /// Reads `count` px of a row from the column `x` on, which may lie outside: there it is zero.
    #[inline(always)]
    pub(crate) fn read(&self, channel: usize, [height, width]: [usize; 2], doubled: bool, y: isize, x: isize, count: usize, line: &mut Line) {
        let line = &mut line.0;
        let size = if doubled { [2 * height, 2 * width] } else { [height, width] };
        let (from, to) = (x.max(0), (x + count as isize).min(size[1] as isize));
        if y < 0 || y >= size[0] as isize || from >= to {
            line.fill(0.0);
            return;
        }
        let (from, to, y) = (from as usize, to as usize, y as usize);
        let offset = (from as isize - x) as usize;
        if doubled {
            let start = channel * self.stride + y / 2 * width;
            let row = &self.values[start..start + width];
            for (at, px) in line[offset..].iter_mut().enumerate().take(to - from) {
                *px = row[(from + at) / 2];
            }
        } else {
            let start = y * width + from;
            copy(&self.values[channel * self.stride + start..][..to - from], &mut line[offset..]);
            match self.norm {
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
