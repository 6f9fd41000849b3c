use burn::module::{Module, Param};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Tensor};

use super::{Conv3x3, parameter};

/// A 2-D convolution with bias; padding may differ on the four sides.
#[derive(Module, Debug)]
pub struct Conv2d {
    /// `[out, in, kernel, kernel]`.
    pub weight: Param<Tensor<4>>,
    /// `[out]`.
    pub bias: Param<Tensor<1>>,
    #[module(skip)]
    stride: usize,
    /// Before and after, the same for height and width.
    #[module(skip)]
    padding: (usize, usize),
    #[module(skip)]
    plain: Conv3x3,
}

impl Conv2d {
    /// A square kernel of odd size, stride 1, as large an output as the input.
    pub fn same([channels_in, channels_out]: [usize; 2], kernel: usize, device: &Device) -> Self {
        Self::new([channels_in, channels_out], kernel, 1, (kernel / 2, kernel / 2), device)
    }

    /// A 3x3 kernel with stride 2 that pads one row below and one column to the right (diffusers, `Downsample2D` with `padding=0`).
    pub fn halving(channels: usize, device: &Device) -> Self {
        Self::new([channels, channels], 3, 2, (0, 1), device)
    }

    fn new([channels_in, channels_out]: [usize; 2], kernel: usize, stride: usize, padding: (usize, usize), device: &Device) -> Self {
        let weight = parameter([channels_out, channels_in, kernel, kernel], device);
        Self { weight, bias: parameter([channels_out], device), stride, padding, plain: Conv3x3::default() }
    }

    /// # Shapes
    /// `[b, in, h, w]` to `[b, out, h', w']`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        let (weight, bias) = (self.weight.val(), self.bias.val());
        let is_plain = self.stride == 1 && self.padding == (1, 1) && weight.dims()[2..] == [3, 3];
        if is_plain {
            return self.plain.forward(x, weight, bias);
        }
        conv2d(x, weight, Some(bias), ConvOptions::new_with_padding([self.stride; 2], [self.padding; 2], [1, 1], 1))
    }
}
