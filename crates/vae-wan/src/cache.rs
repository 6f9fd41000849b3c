use std::ops::Range;

use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};
use vae_core::layers::{Features, Kind, TemporalWindow, convolve, parameter};

/// Frames that a 3-frame kernel reaches back.
const REACH: usize = 2;

/// What one run over the frames of a clip remembers: frames that the temporal convolutions have seen, one slot for each, in the order in which they run.
#[derive(Debug, Default)]
pub(crate) struct FrameCache {
    slots: Vec<Option<Features>>,
    next: usize,
    is_first: bool,
}

impl FrameCache {
    /// Before the layers see the next frames.
    pub(crate) fn rewind(&mut self) {
        self.next = 0;
        self.is_first = self.slots.is_empty();
    }

    /// Whether the frames that run now are the first.
    pub(crate) fn is_first(&self) -> bool {
        self.is_first
    }

    /// The slot of the convolution that runs now: what it left there the last time.
    pub(crate) fn slot(&mut self) -> &mut Option<Features> {
        if self.next == self.slots.len() {
            self.slots.push(None);
        }
        self.next += 1;
        &mut self.slots[self.next - 1]
    }

    /// Values that are held, channels in whole blocks.
    #[cfg(test)]
    pub(crate) fn values(&self) -> usize {
        let values = |[b, c, t, h, w]: [usize; 5]| b * c.next_multiple_of(vae_core::CHANNEL_BLOCK) * t * h * w;
        self.slots.iter().flatten().map(|frames| values(frames.dims())).sum()
    }
}

/// A 3x3x3 convolution that sees two earlier frames and no later one (diffusers, `WanCausalConv3d`).
#[derive(Module, Debug)]
pub(crate) struct CausalConv3d {
    /// `[out, in, 3, 3, 3]`.
    pub(crate) weight: Param<Tensor<5>>,
    /// `[out]`.
    pub(crate) bias: Param<Tensor<1>>,
}

impl CausalConv3d {
    pub(crate) fn new([channels_in, channels_out]: [usize; 2], device: &Device) -> Self {
        let kernel = REACH + 1;
        let weight = parameter([channels_out, channels_in, kernel, kernel, kernel], device);
        Self { weight, bias: parameter([channels_out], device) }
    }

    /// # Shapes
    /// `[b, in, t, h, w]` to `[b, out, t, h, w]`.
    pub(crate) fn forward(&self, x: Features, cache: &mut FrameCache) -> Features {
        self.convolved(x, cache, None)
    }

    /// The same, added to `onto`.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` and `[b, out, t, h, w]`, to the latter.
    pub(crate) fn forward_onto(&self, x: Features, cache: &mut FrameCache, onto: Features) -> Features {
        self.convolved(x, cache, Some(onto))
    }

    fn convolved(&self, x: Features, cache: &mut FrameCache, onto: Option<Features>) -> Features {
        let slot = cache.slot();
        let (x, context) = match slot.take() {
            Some(earlier) => {
                let context = earlier.dims()[2];
                (earlier.then(x), context)
            }
            None => (x, 0),
        };
        *slot = Some(x.last_frames(x.dims()[2].min(REACH)));
        convolve(x, self.weight.val(), self.bias.val(), Kind::Same, TemporalWindow { context, stride: 1 }, onto)
    }
}

/// A 1x1x1 convolution.
#[derive(Module, Debug)]
pub(crate) struct Pointwise {
    /// `[out, in, 1, 1, 1]`.
    pub(crate) weight: Param<Tensor<5>>,
    /// `[out]`.
    pub(crate) bias: Param<Tensor<1>>,
}

impl Pointwise {
    pub(crate) fn new([channels_in, channels_out]: [usize; 2], device: &Device) -> Self {
        Self { weight: parameter([channels_out, channels_in, 1, 1, 1], device), bias: parameter([channels_out], device) }
    }

    /// # Shapes
    /// `[b, in, t, h, w]` to `[b, out, t, h, w]`.
    pub(crate) fn forward(&self, x: Features) -> Features {
        convolve(x, self.weight.val(), self.bias.val(), Kind::Point, TemporalWindow::EACH, None)
    }
}

/// A 3x1x1 convolution over frames that are all given: no frame is padded.
#[derive(Module, Debug)]
pub(crate) struct TimeConv {
    /// `[out, in, 3, 1, 1]`.
    pub(crate) weight: Param<Tensor<5>>,
    /// `[out]`.
    pub(crate) bias: Param<Tensor<1>>,
    #[module(skip)]
    stride: usize,
}

impl TimeConv {
    pub(crate) fn new([channels_in, channels_out]: [usize; 2], stride: usize, device: &Device) -> Self {
        let weight = parameter([channels_out, channels_in, REACH + 1, 1, 1], device);
        Self { weight, bias: parameter([channels_out], device), stride }
    }

    /// # Shapes
    /// `[b, in, t, h, w]` to `[b, out, (t - 3) / stride + 1, h, w]`.
    pub(crate) fn forward(&self, x: Features) -> Features {
        self.convolved(x, 0..self.bias.dims()[0])
    }

    /// The first and the second half of the output channels.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` to twice `[b, out / 2, (t - 3) / stride + 1, h, w]`.
    pub(crate) fn forward_in_halves(&self, x: Features) -> [Features; 2] {
        let half = self.bias.dims()[0] / 2;
        [self.convolved(x.clone(), 0..half), self.convolved(x, half..2 * half)]
    }

    fn convolved(&self, x: Features, channels: Range<usize>) -> Features {
        let weight = self.weight.val().narrow(0, channels.start, channels.len());
        let bias = self.bias.val().narrow(0, channels.start, channels.len());
        convolve(x, weight, bias, Kind::Point, TemporalWindow { context: REACH, stride: self.stride }, None)
    }
}
