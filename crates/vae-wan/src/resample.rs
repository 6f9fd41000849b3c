use std::num::NonZeroUsize;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use tiling::Scale;
use vae_core::coder::{FrameChange, Layer, PxMap};
use vae_core::layers::{Conv2d, Conv3d};

/// Frames of the temporal convolutions.
const KERNEL_FRAMES: NonZeroUsize = NonZeroUsize::MIN.saturating_add(2);

/// Which axes are resampled by 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Axes {
    Space,
    SpaceAndTime,
}

impl Axes {
    pub(crate) fn new(time: bool) -> Self {
        if time { Self::SpaceAndTime } else { Self::Space }
    }
}

/// Twice the height and width, and twice the frames but for the clip's first (diffusers, `WanResample` with `upsample2d` or `upsample3d`).
#[derive(Module, Debug)]
pub(crate) struct Upsample {
    resample: Conv2d,
    time_conv: Option<Conv3d>,
}

impl Upsample {
    pub(crate) fn new([channels_in, channels_out]: [usize; 2], axes: Axes, device: &Device) -> Self {
        let time_conv = || Conv3d::temporal(KERNEL_FRAMES, [channels_in, 2 * channels_in], device);
        Self { resample: Conv2d::same([channels_in, channels_out], device), time_conv: (axes == Axes::SpaceAndTime).then(time_conv) }
    }

    #[cfg(test)]
    pub(crate) fn is_temporal(&self) -> bool {
        self.time_conv.is_some()
    }

    /// From `[b, in, t, h, w]` to `[b, out, t', 2 * h, 2 * w]`, where `t'` is 1 for the first frame and `2 * t` later.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        layers.extend(self.time_conv.iter().map(Layer::DoubleFrames));
        layers.extend([Layer::UpsampleNearest2x, Layer::Conv2d(&self.resample)]);
    }
}

/// Half the height and width, and half the frames but for the clip's first (diffusers, `WanResample` with `downsample2d` or `downsample3d`).
#[derive(Module, Debug)]
pub(crate) struct Downsample {
    resample: Conv2d,
    time_conv: Option<Conv3d>,
}

impl Downsample {
    pub(crate) fn new(channels: usize, axes: Axes, device: &Device) -> Self {
        let time_conv = || Conv3d::temporal(KERNEL_FRAMES, [channels; 2], device);
        Self { resample: Conv2d::downsample2x(channels, device), time_conv: (axes == Axes::SpaceAndTime).then(time_conv) }
    }

    #[cfg(test)]
    pub(crate) fn is_temporal(&self) -> bool {
        self.time_conv.is_some()
    }

    /// From `[b, c, t, h, w]` to `[b, c, t', h / 2, w / 2]`, where `t'` is 1 for the first frame and `t / 2` later.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        layers.push(Layer::Conv2d(&self.resample));
        layers.extend(self.time_conv.iter().map(Layer::HalveFrames));
    }
}

/// Means over blocks of px and frames and over channels: the shortcut past a down block of Wan 2.2 (diffusers, `AvgDown3D`).
///
/// Where frames are missing in a block, it is filled up with zeros in front, which count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MeanShortcut {
    pub(crate) channels_out: usize,
    /// Frames, and px of height and width, that become one.
    pub(crate) factors: [usize; 2],
}

/// From `[b, in, t, h, w]` to `[b, out, t / ft, h / fs, w / fs]`, the frames rounded up.
impl PxMap for MeanShortcut {
    fn scale(&self) -> Scale {
        Scale::Down(self.factors[1])
    }

    fn channels(&self, _: usize) -> usize {
        self.channels_out
    }

    fn frames(&self) -> FrameChange {
        if self.factors[0] == 2 { FrameChange::Halve } else { FrameChange::Same }
    }

    fn apply(&self, x: Tensor<5>, _: bool) -> Tensor<5> {
        let [ft, fs] = self.factors;
        let [b, c, t, h, w] = x.dims();
        let missing = t.next_multiple_of(ft) - t;
        let x = if missing == 0 { x } else { Tensor::cat(vec![Tensor::zeros([b, c, missing, h, w], (&x.device(), x.dtype())), x], 2) };
        let [t, h, w] = [(t + missing) / ft, h / fs, w / fs];
        let blocks = x.reshape([b, c, t, ft, h, fs, w, fs]).permute([0, 1, 3, 5, 7, 2, 4, 6]);
        let grouped = blocks.reshape([b, self.channels_out, c * ft * fs * fs / self.channels_out, t * h * w]);
        grouped.mean_dim(2).reshape([b, self.channels_out, t, h, w])
    }
}

/// Channels spread over px and frames, repeated where they are too few: the shortcut past an up block of Wan 2.2 (diffusers, `DupUp3D`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct SpreadShortcut {
    pub(crate) channels_out: usize,
    /// Frames, and px of height and width, that one becomes.
    pub(crate) factors: [usize; 2],
}

/// From `[b, in, t, h, w]` to `[b, out, t * ft, h * fs, w * fs]`; of a clip's first frame only the last of its `ft` frames is given.
impl PxMap for SpreadShortcut {
    fn scale(&self) -> Scale {
        Scale::Up(self.factors[1])
    }

    fn channels(&self, _: usize) -> usize {
        self.channels_out
    }

    fn frames(&self) -> FrameChange {
        if self.factors[0] == 2 { FrameChange::Double } else { FrameChange::Same }
    }

    fn apply(&self, x: Tensor<5>, is_first: bool) -> Tensor<5> {
        let [ft, fs] = self.factors;
        let [b, c, t, h, w] = x.dims();
        let repeats = self.channels_out * ft * fs * fs / c;
        let x = x.reshape([b, c, 1, t, h, w]).expand([b, c, repeats, t, h, w]).reshape([b, self.channels_out, ft, fs, fs, t, h, w]);
        let x = x.permute([0, 1, 5, 2, 6, 3, 7, 4]).reshape([b, self.channels_out, t * ft, h * fs, w * fs]);
        if is_first { x.narrow(2, ft - 1, t * ft - (ft - 1)) } else { x }
    }
}

/// Patches of samples as channels, in the order channel, column, row (diffusers, `patchify`): from `[b, c, t, h, w]` to
/// `[b, c * patch * patch, t, h / patch, w / patch]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patchify(pub(crate) usize);

impl PxMap for Patchify {
    fn scale(&self) -> Scale {
        Scale::Down(self.0)
    }

    fn channels(&self, channels: usize) -> usize {
        channels * self.0 * self.0
    }

    fn apply(&self, samples: Tensor<5>, _: bool) -> Tensor<5> {
        let patch = self.0;
        let [b, c, t, h, w] = samples.dims();
        let [h, w] = [h / patch, w / patch];
        let patches = samples.reshape([b, c, t, h, patch, w, patch]).permute([0, 1, 6, 4, 2, 3, 5]);
        patches.reshape([b, c * patch * patch, t, h, w])
    }
}

/// The inverse of [`Patchify`] (diffusers, `unpatchify`): from `[b, c * patch * patch, t, h, w]` to `[b, c, t, h * patch, w * patch]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unpatchify(pub(crate) usize);

impl PxMap for Unpatchify {
    fn scale(&self) -> Scale {
        Scale::Up(self.0)
    }

    fn channels(&self, channels: usize) -> usize {
        channels / (self.0 * self.0)
    }

    fn apply(&self, x: Tensor<5>, _: bool) -> Tensor<5> {
        let patch = self.0;
        let [b, c, t, h, w] = x.dims();
        let channels = c / (patch * patch);
        let patches = x.reshape([b, channels, patch, patch, t, h, w]).permute([0, 1, 4, 5, 3, 6, 2]);
        patches.reshape([b, channels, t, h * patch, w * patch])
    }
}
