use burn::module::{Module, Param};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};
use vae_core::layers::{Kind, convolve, parameter};

/// Frames that a 3-frame kernel reaches back.
const REACH: usize = 2;

/// What one run over the frames of a clip remembers: frames that the temporal convolutions have seen, one slot for each, in the order in which they run.
#[derive(Debug, Default)]
pub(crate) struct FrameCache {
    slots: Vec<Option<Tensor<5>>>,
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
    pub(crate) fn slot(&mut self) -> &mut Option<Tensor<5>> {
        if self.next == self.slots.len() {
            self.slots.push(None);
        }
        self.next += 1;
        &mut self.slots[self.next - 1]
    }

    /// Values that are held.
    #[cfg(test)]
    pub(crate) fn values(&self) -> usize {
        self.slots.iter().flatten().map(|frames| frames.dims().iter().product::<usize>()).sum()
    }
}

/// The last `count` frames, in memory of their own.
pub(crate) fn last_frames(x: &Tensor<5>, count: usize) -> Tensor<5> {
    let [.., frames, _, _] = x.dims();
    // Concatenation copies; a slice alone would keep the whole of `x` alive.
    Tensor::cat((frames - count..frames).map(|frame| x.clone().narrow(2, frame, 1)).collect(), 2)
}

/// Frames as batch items.
///
/// # Shapes
/// `[b, c, t, h, w]` to `[b * t, c, h, w]`.
pub(crate) fn frames_to_batch(x: Tensor<5>) -> Tensor<4> {
    let [b, c, t, h, w] = x.dims();
    if t == 1 { x.reshape([b, c, h, w]) } else { x.swap_dims(1, 2).reshape([b * t, c, h, w]) }
}

/// The inverse of [`frames_to_batch`].
///
/// # Shapes
/// `[b * t, c, h, w]` to `[b, c, t, h, w]`.
pub(crate) fn batch_to_frames(x: Tensor<4>, frames: usize) -> Tensor<5> {
    let [n, c, h, w] = x.dims();
    if frames == 1 { x.reshape([n, c, 1, h, w]) } else { x.reshape([n / frames, frames, c, h, w]).swap_dims(1, 2) }
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
    pub(crate) fn forward(&self, x: Tensor<5>, cache: &mut FrameCache) -> Tensor<5> {
        let [b, c, t, h, w] = x.dims();
        let slot = cache.slot();
        let earlier = slot.take();
        let (weight, bias) = (self.weight.val(), self.bias.val());
        if earlier.is_none() && t == 1 {
            *slot = Some(x.clone());
            return convolve(x, weight, bias, Kind::Same);
        }
        let missing = REACH - earlier.as_ref().map_or(0, |earlier| earlier.dims()[2]);
        let zeros = (missing > 0).then(|| Tensor::zeros([b, c, missing, h, w], (&x.device(), x.dtype())));
        let x = Tensor::cat(zeros.into_iter().chain(earlier).chain([x]).collect(), 2);
        *slot = Some(last_frames(&x, REACH));
        convolve(x, weight, bias, Kind::Same)
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
    pub(crate) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        convolve(x, self.weight.val(), self.bias.val(), Kind::Point)
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
    pub(crate) fn forward(&self, x: Tensor<5>) -> Tensor<5> {
        let [b, c, t, h, w] = x.dims();
        let kernel = self.weight.val().squeeze_dim::<4>(4);
        let y = conv2d(x.reshape([b, c, t, h * w]), kernel, Some(self.bias.val()), ConvOptions::new([self.stride, 1], [0, 0], [1, 1], 1));
        let [_, channels, t, _] = y.dims();
        y.reshape([b, channels, t, h, w])
    }
}
