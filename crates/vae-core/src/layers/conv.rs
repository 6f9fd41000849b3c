use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::convolution::{Kind, TemporalWindow, convolve};
use super::{Features, parameter};

/// A 2-D convolution with bias, of each frame.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    kind: Kind,
}

impl Conv2d {
    /// A kernel of 3x3 px, as large an output as the input.
    pub fn same(channels: [usize; 2], device: &Device) -> Self {
        Self::new(channels, 3, Kind::Same, device)
    }

    /// A kernel of one px.
    pub fn point(channels: [usize; 2], device: &Device) -> Self {
        Self::new(channels, 1, Kind::Point, device)
    }

    /// A 3x3 kernel with stride 2 that pads one row below and one column to the right (diffusers, `Downsample2D` with `padding=0`).
    pub fn halving(channels: usize, device: &Device) -> Self {
        Self::new([channels, channels], 3, Kind::Halving, device)
    }

    fn new([channels_in, channels_out]: [usize; 2], kernel: usize, kind: Kind, device: &Device) -> Self {
        let weight = parameter([channels_out, channels_in, kernel, kernel], device);
        Self { weight, bias: parameter([channels_out], device), kind }
    }

    /// # Shapes
    /// `[b, in, t, h, w]` to `[b, out, t, h', w']`.
    pub fn forward(&self, x: Features) -> Features {
        convolve(x, self.weight.val().unsqueeze_dim(2), self.bias.val(), self.kind, TemporalWindow::EACH, None)
    }

    /// The same, added to `onto`.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` and `[b, out, t, h', w']`, to the latter.
    pub fn forward_onto(&self, x: Features, onto: Features) -> Features {
        convolve(x, self.weight.val().unsqueeze_dim(2), self.bias.val(), self.kind, TemporalWindow::EACH, Some(onto))
    }

    /// The convolutions of so many equal parts of the output channels.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` to `PARTS` times `[b, out / PARTS, t, h', w']`.
    pub fn forward_in_parts<const PARTS: usize>(&self, x: &Features) -> [Features; PARTS] {
        let channels = self.bias.dims()[0] / PARTS;
        std::array::from_fn(|part| {
            let weight = self.weight.val().narrow(0, part * channels, channels).unsqueeze_dim(2);
            convolve(x.clone(), weight, self.bias.val().narrow(0, part * channels, channels), self.kind, TemporalWindow::EACH, None)
        })
    }
}

/// A linear map of each px's channels with bias, its weight stored as torch stores it.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Param<Tensor<2>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
}

impl Linear {
    /// A map from `channels` to as many.
    pub fn square(channels: usize, device: &Device) -> Self {
        Self { weight: parameter([channels, channels], device), bias: parameter([channels], device) }
    }

    /// # Shapes
    /// `[b, in, t, h, w]` to `[b, out, t, h, w]`.
    pub fn forward(&self, x: Features) -> Features {
        self.convolved(x, None)
    }

    /// The same, added to `onto`.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` and `[b, out, t, h, w]`, to the latter.
    pub fn forward_onto(&self, x: Features, onto: Features) -> Features {
        self.convolved(x, Some(onto))
    }

    fn convolved(&self, x: Features, onto: Option<Features>) -> Features {
        let [channels_out, channels_in] = self.weight.dims();
        let weight = self.weight.val().reshape([channels_out, channels_in, 1, 1, 1]);
        convolve(x, weight, self.bias.val(), Kind::Point, TemporalWindow::EACH, onto)
    }
}
