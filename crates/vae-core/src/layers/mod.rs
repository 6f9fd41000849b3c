//! Layers that VAE families share. Field names are those of diffusers, so that a checkpoint's names need no mapping.

mod attention;
mod conv;
mod convolution;
#[cfg(feature = "flex")]
mod cpu;
mod norm;
mod precision;
#[cfg(feature = "remote")]
mod remote;

pub use attention::{Linear, attend};
pub use conv::Conv2d;
pub use convolution::{Kind, convolve};
pub use norm::{GroupNorm, RmsNorm};
pub use precision::Precision;
#[cfg(feature = "remote")]
pub use remote::host_remotely;

use burn::module::{Param, ParamId};
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Tensor};

/// A parameter that takes no memory before it is loaded, and is zero if it never is.
pub fn parameter<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(ParamId::new(), move |device, _| Tensor::zeros(shape, device), device.clone(), false, shape.into())
}

/// Doubles height and width, each value four times (diffusers, `Upsample2D`).
///
/// # Shapes
/// `[b, c, h, w]` to `[b, c, 2 * h, 2 * w]`.
pub fn upsample_nearest(x: Tensor<4>) -> Tensor<4> {
    let options = InterpolateOptions::new(InterpolateMode::Nearest).with_scale_factor([2.0, 2.0]);
    burn::tensor::module::interpolate(x, options)
}
