use tiling::{BoxError, HostTensor, Region, TileSource};
use vae_core::{FrameRule, VaeError};

use crate::{Error, FrameRemainder};

/// A clip with a number of frames that a model takes: its last frames are dropped, or the last one is repeated.
pub struct FittedFrames<'a> {
    samples: &'a dyn TileSource,
    frames: usize,
}

impl<'a> FittedFrames<'a> {
    /// Fits the number of frames of `samples` to `rule`.
    ///
    /// # Errors
    /// [`Error::Frames`] when there is a remainder and `remainder` refuses it, and when there are no frames.
    pub fn new(samples: &'a dyn TileSource, rule: FrameRule, remainder: FrameRemainder) -> Result<Self, Error> {
        let got = samples.shape()[2];
        if got == 0 {
            return Err(VaeError::Frames { what: "samples", got }.into());
        }
        let FrameRule::Causal { ratio } = rule else { return Ok(Self { samples, frames: got }) };
        let [fewer, more] = rule.nearest(got);
        let frames = match remainder {
            _ if fewer == got => got,
            FrameRemainder::Refuse => return Err(Error::Frames { got, ratio, fewer, more }),
            FrameRemainder::Drop => fewer,
            FrameRemainder::Pad => more,
        };
        Ok(Self { samples, frames })
    }

    /// Frames of the result that are the clip's own.
    pub fn own_frames(&self) -> usize {
        self.frames.min(self.samples.shape()[2])
    }

    /// Whether the last frame is repeated.
    pub fn is_padded(&self) -> bool {
        self.frames > self.samples.shape()[2]
    }
}

impl TileSource for FittedFrames<'_> {
    fn shape(&self) -> [usize; 5] {
        let [b, c, _, h, w] = self.samples.shape();
        [b, c, self.frames, h, w]
    }

    fn is_in_memory(&self) -> bool {
        self.samples.is_in_memory()
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        let [first, y, x] = region.start;
        let [count, height, width] = region.size;
        let own = self.own_frames();
        let start = first.min(own - 1);
        let there = (first + count).min(own).max(start + 1) - start;
        let tensor = self.samples.read(&Region { start: [start, y, x], size: [there, height, width] })?;
        if there == count {
            return Ok(tensor);
        }
        let last = tensor.frames(there - 1, 1);
        let mut pieces = vec![tensor];
        pieces.extend((there..count).map(|_| last.clone()));
        Ok(HostTensor::join_frames(pieces))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clip(frames: usize) -> HostTensor {
        HostTensor::from_fn([1, 2, frames, 1, 2], |[_, c, t, _, x]| (100 * c + 10 * t + x) as f32)
    }

    fn fitted(clip: &HostTensor, remainder: FrameRemainder) -> Result<HostTensor, Error> {
        let fitted = FittedFrames::new(clip, FrameRule::Causal { ratio: 4 }, remainder)?;
        let [.., frames, height, width] = fitted.shape();
        let whole = fitted.read(&Region { start: [0; 3], size: [frames, height, width] }).unwrap();
        // In parts, it is the same.
        for first in 0..frames {
            let part = fitted.read(&Region { start: [first, 0, 1], size: [frames - first, 1, 1] }).unwrap();
            assert_eq!(part, whole.region(&Region { start: [first, 0, 1], size: [frames - first, 1, 1] }));
        }
        Ok(whole)
    }

    #[test]
    fn a_remainder_is_refused_dropped_or_filled_up() {
        for frames in [1, 5, 9] {
            let clip = clip(frames);
            for remainder in [FrameRemainder::Refuse, FrameRemainder::Drop, FrameRemainder::Pad] {
                assert_eq!(fitted(&clip, remainder).unwrap(), clip);
            }
        }
        for remainder in [FrameRemainder::Refuse, FrameRemainder::Drop, FrameRemainder::Pad] {
            for rule in [FrameRule::Causal { ratio: 4 }, FrameRule::Image] {
                let error = FittedFrames::new(&clip(0), rule, remainder).err().unwrap();
                assert!(error.to_string().contains("0 frames"), "{error}");
            }
        }
        let six = clip(6);
        assert_eq!(fitted(&six, FrameRemainder::Drop).unwrap(), six.frames(0, 5));
        let padded = fitted(&six, FrameRemainder::Pad).unwrap();
        assert_eq!((padded.shape()[2], padded.frames(0, 6)), (9, six.clone()));
        assert!((6..9).all(|frame| padded.frames(frame, 1) == six.frames(5, 1)));
        let error = fitted(&six, FrameRemainder::Refuse).unwrap_err();
        assert!(matches!(error, Error::Frames { got: 6, ratio: 4, fewer: 5, more: 9 }) && error.is_usage(), "{error}");
    }
}
