use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

use super::convolution::{Kind, convolve};
use super::parameter;

/// A 2-D convolution with bias.
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
    /// `[b, in, h, w]` to `[b, out, h', w']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        convolve(x.unsqueeze_dim(2), self.weight.val().unsqueeze_dim(2), self.bias.val(), self.kind).squeeze_dim(2)
    }
}
