use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::features::Features;
use crate::VaeError;
use crate::operators::{Convolution, Padding, TemporalWindow, with_five_axes};
use crate::parameter::parameter;

/// Kernel, stride and padding of a [`Conv2d`]. The default is a 3x3 kernel with a bias, whose output is as large as the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dOptions {
    /// Height and width of the kernel, in px.
    pub kernel: [usize; 2],
    /// Input px from one px of the output to the next, over height and width.
    pub stride: [usize; 2],
    /// Zeros around the input.
    pub padding: Padding,
    /// Whether there is a bias.
    pub bias: bool,
}

impl Default for Conv2dOptions {
    fn default() -> Self {
        Self { kernel: [3, 3], stride: [1, 1], padding: Padding::all(1), bias: true }
    }
}

/// A 2-D convolution of each frame (torch, `Conv2d`).
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in, kernel_height, kernel_width]`.
    pub weight: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    stride: [usize; 2],
    #[module(skip)]
    padding: Padding,
}

impl Conv2d {
    /// A convolution of any kernel, stride and padding. The workspace's CPU kernels compute those of 1x1 px, and those of 3x3 px with stride 1 or 2; others go
    /// through Burn's operators, which take longer.
    ///
    /// # Errors
    /// [`VaeError::Spec`] when a side of the kernel or a stride is 0.
    pub fn new(channels: [usize; 2], options: Conv2dOptions, device: &Device) -> Result<Self, VaeError> {
        check("convolution kernel", &options.kernel)?;
        check("convolution stride", &options.stride)?;
        Ok(Self::checked(channels, options, device))
    }

    /// A 3x3 kernel with a bias, whose output is as large as the input.
    pub fn same(channels: [usize; 2], device: &Device) -> Self {
        Self::checked(channels, Conv2dOptions::default(), device)
    }

    /// A 1x1 kernel with a bias.
    pub fn pointwise(channels: [usize; 2], device: &Device) -> Self {
        Self::checked(channels, Conv2dOptions { kernel: [1, 1], padding: Padding::NONE, ..Conv2dOptions::default() }, device)
    }

    /// A 3x3 kernel with a bias and stride 2, with one row of zeros below and one column to the right (diffusers, `Downsample2D` with `padding=0`).
    pub fn downsample2x(channels: usize, device: &Device) -> Self {
        Self::checked([channels; 2], Conv2dOptions { stride: [2, 2], padding: Padding::BOTTOM_RIGHT, ..Conv2dOptions::default() }, device)
    }

    fn checked([channels_in, channels_out]: [usize; 2], options: Conv2dOptions, device: &Device) -> Self {
        let Conv2dOptions { kernel: [height, width], stride, padding, bias } = options;
        let bias = bias.then(|| parameter([channels_out], device));
        Self { weight: parameter([channels_out, channels_in, height, width], device), bias, stride, padding }
    }

    /// # Shapes
    /// `[b, in, t, h, w]` to `[b, out, t, h', w']`.
    ///
    /// # Panics
    /// When the input has another number of channels.
    pub fn forward(&self, x: Features) -> Features {
        x.convolve(&self.convolution(), None)
    }

    /// The same, added to `residual`.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` and `[b, out, t, h', w']`, to the latter.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn forward_residual(&self, x: Features, residual: Features) -> Features {
        x.convolve(&self.convolution(), Some(residual))
    }

    pub(crate) fn stride(&self) -> [usize; 2] {
        self.stride
    }

    pub(crate) fn padding(&self) -> Padding {
        self.padding
    }

    pub(crate) fn convolution(&self) -> Convolution {
        Convolution {
            weight: with_five_axes(self.weight.val(), [Some(0), Some(1), None, Some(2), Some(3)]),
            bias: self.bias.as_ref().map(Param::val),
            stride: self.stride,
            padding: self.padding,
            window: TemporalWindow::EACH,
        }
    }
}

/// Kernel, stride and padding of a [`Conv3d`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv3dOptions {
    /// Frames, height and width of the kernel. A kernel `[n, 1, 1]` is 1-D, over frames.
    pub kernel: [usize; 3],
    /// Input px from one px of the output to the next, over height and width.
    pub stride: [usize; 2],
    /// Zeros around each frame.
    pub padding: Padding,
    /// Whether there is a bias.
    pub bias: bool,
}

/// A convolution over frames, height and width (torch, `Conv3d`). Which frames it sees is up to the caller: see [`TemporalWindow`].
#[derive(Module, Debug)]
pub struct Conv3d {
    /// `[out, in, kernel_frames, kernel_height, kernel_width]`.
    pub weight: Param<Tensor<5>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    stride: [usize; 2],
    #[module(skip)]
    padding: Padding,
}

impl Conv3d {
    /// A convolution of any kernel, stride and padding. See [`Conv2d::new`] for those that the CPU computes fastest.
    ///
    /// # Errors
    /// [`VaeError::Spec`] when a side of the kernel or a stride is 0.
    pub fn new(channels: [usize; 2], options: Conv3dOptions, device: &Device) -> Result<Self, VaeError> {
        check("convolution kernel", &options.kernel)?;
        check("convolution stride", &options.stride)?;
        Ok(Self::checked(channels, options, device))
    }

    /// A 3x3x3 kernel with a bias, which keeps height and width.
    pub fn same(channels: [usize; 2], device: &Device) -> Self {
        Self::checked(channels, Conv3dOptions { kernel: [3, 3, 3], stride: [1, 1], padding: Padding::all(1), bias: true }, device)
    }

    /// A kernel of `frames` frames of one px, with a bias.
    pub fn temporal(frames: std::num::NonZeroUsize, channels: [usize; 2], device: &Device) -> Self {
        let kernel = [frames.get(), 1, 1];
        Self::checked(channels, Conv3dOptions { kernel, stride: [1, 1], padding: Padding::NONE, bias: true }, device)
    }

    fn checked([channels_in, channels_out]: [usize; 2], options: Conv3dOptions, device: &Device) -> Self {
        let Conv3dOptions { kernel: [frames, height, width], stride, padding, bias } = options;
        let bias = bias.then(|| parameter([channels_out], device));
        Self { weight: parameter([channels_out, channels_in, frames, height, width], device), bias, stride, padding }
    }

    /// # Shapes
    /// `[b, in, t, h, w]` to `[b, out, t', h', w']`.
    ///
    /// # Panics
    /// When the input has another number of channels.
    pub fn forward(&self, x: Features, window: TemporalWindow) -> Features {
        x.convolve(&self.convolution(window), None)
    }

    /// The same, added to `residual`.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` and `[b, out, t', h', w']`, to the latter.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn forward_residual(&self, x: Features, window: TemporalWindow, residual: Features) -> Features {
        x.convolve(&self.convolution(window), Some(residual))
    }

    /// The convolutions of `PARTS` equal parts of the output channels.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` to `PARTS` times `[b, out / PARTS, t', h', w']`.
    ///
    /// # Panics
    /// When the input has another number of channels.
    pub fn forward_in_parts<const PARTS: usize>(&self, x: &Features, window: TemporalWindow) -> [Features; PARTS] {
        split(&self.convolution(window), x)
    }

    pub(crate) fn stride(&self) -> [usize; 2] {
        self.stride
    }

    pub(crate) fn padding(&self) -> Padding {
        self.padding
    }

    /// Frames of the kernel.
    pub(crate) fn frames(&self) -> usize {
        self.weight.lazy_shape()[2]
    }

    pub(crate) fn convolution(&self, window: TemporalWindow) -> Convolution {
        let (weight, bias) = (self.weight.val(), self.bias.as_ref().map(Param::val));
        Convolution { weight, bias, stride: self.stride, padding: self.padding, window }
    }
}

/// A convolution over frames, for each px by itself (torch, `Conv1d`). Which frames it sees is up to the caller: see [`TemporalWindow`].
#[derive(Module, Debug)]
pub struct Conv1d {
    /// `[out, in, kernel_frames]`.
    pub weight: Param<Tensor<3>>,
    /// `[out]`.
    pub bias: Option<Param<Tensor<1>>>,
}

impl Conv1d {
    /// A kernel of `frames` frames, with or without a bias.
    pub fn new([channels_in, channels_out]: [usize; 2], frames: std::num::NonZeroUsize, bias: bool, device: &Device) -> Self {
        Self { weight: parameter([channels_out, channels_in, frames.get()], device), bias: bias.then(|| parameter([channels_out], device)) }
    }

    /// # Shapes
    /// `[b, in, t, h, w]` to `[b, out, t', h, w]`.
    ///
    /// # Panics
    /// When the input has another number of channels.
    pub fn forward(&self, x: Features, window: TemporalWindow) -> Features {
        let convolution = Convolution {
            weight: with_five_axes(self.weight.val(), [Some(0), Some(1), Some(2), None, None]),
            bias: self.bias.as_ref().map(Param::val),
            stride: [1, 1],
            padding: Padding::NONE,
            window,
        };
        x.convolve(&convolution, None)
    }
}

fn split<const PARTS: usize>(convolution: &Convolution, x: &Features) -> [Features; PARTS] {
    std::array::from_fn(|part| x.clone().convolve(&convolution.part(part, PARTS), None))
}

fn check(field: &'static str, sides: &[usize]) -> Result<(), VaeError> {
    if sides.contains(&0) {
        return Err(VaeError::Spec { field, got: format!("{sides:?}"), expected: "each side must be at least 1" });
    }
    Ok(())
}

/// A linear map of each px's channels, with its weight stored as torch stores it (torch, `Linear`).
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
}

impl Linear {
    /// A map from `channels` to `channels`.
    pub fn square(channels: usize, device: &Device) -> Self {
        Self { weight: parameter([channels, channels], device), bias: parameter([channels], device) }
    }

    /// # Shapes
    /// `[b, in, t, h, w]` to `[b, out, t, h, w]`.
    ///
    /// # Panics
    /// When the input has another number of channels.
    pub fn forward(&self, x: Features) -> Features {
        x.convolve(&self.convolution(), None)
    }

    /// The same, added to `residual`.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` and `[b, out, t, h, w]`, to the latter.
    ///
    /// # Panics
    /// When the shapes do not fit.
    pub fn forward_residual(&self, x: Features, residual: Features) -> Features {
        x.convolve(&self.convolution(), Some(residual))
    }

    pub(crate) fn convolution(&self) -> Convolution {
        Convolution {
            weight: with_five_axes(self.weight.val(), [Some(0), Some(1), None, None, None]),
            bias: Some(self.bias.val()),
            stride: [1, 1],
            padding: Padding::NONE,
            window: TemporalWindow::EACH,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "flex")]
    #[test]
    fn kernels_and_strides_of_nothing_are_refused() {
        let device = Device::flex();
        let fails = |options: Conv2dOptions| Conv2d::new([3, 4], options, &device).unwrap_err().to_string();
        let error = fails(Conv2dOptions { kernel: [3, 0], ..Conv2dOptions::default() });
        assert_eq!(error, "`convolution kernel` in the family's spec is [3, 0]; each side must be at least 1");
        assert!(fails(Conv2dOptions { stride: [0, 1], ..Conv2dOptions::default() }).contains("stride"));
        let options = Conv3dOptions { kernel: [0, 1, 1], stride: [1, 1], padding: Padding::NONE, bias: false };
        assert!(matches!(Conv3d::new([3, 4], options, &device), Err(VaeError::Spec { .. })));
        assert!(Conv2d::new([3, 4], Conv2dOptions { kernel: [7, 2], stride: [3, 1], ..Conv2dOptions::default() }, &device).is_ok());
    }

    #[cfg(feature = "flex")]
    #[test]
    fn conv1d_is_burns_conv1d_of_each_px() {
        use burn::tensor::module::conv1d;
        use burn::tensor::ops::ConvOptions;
        use burn::tensor::{Distribution, Tolerance};

        let device = Device::flex();
        let mut convolution = Conv1d::new([5, 7], 3.try_into().unwrap(), true, &device);
        convolution.weight = Param::from_tensor(Tensor::random([7, 5, 3], Distribution::Default, &device));
        convolution.bias = Some(Param::from_tensor(Tensor::random([7], Distribution::Default, &device)));
        let x: Tensor<5> = Tensor::random([2, 5, 6, 3, 4], Distribution::Default, &device);
        let context = crate::Context::default();
        let window = TemporalWindow { context: 2, stride: 2 };
        let got: Tensor<5> = convolution.forward(Features::new(x.clone(), &context), window).into();
        // Px to the batch: [b * h * w, in, t].
        let rows = x.permute([0, 3, 4, 1, 2]).reshape([24, 5, 6]);
        let bias = convolution.bias.as_ref().map(Param::val);
        let expected = conv1d(rows, convolution.weight.val(), bias, ConvOptions::new([2], [0], [1], 1));
        let expected: Tensor<5> = expected.reshape([2, 3, 4, 7, 2]).permute([0, 3, 4, 1, 2]);
        got.into_data().assert_approx_eq::<f32>(&expected.into_data(), Tolerance::absolute(1e-5));
    }
}
