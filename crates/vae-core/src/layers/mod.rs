//! Layers that VAE families share. Field names are those of diffusers, so that a checkpoint's names need no mapping.

mod attention;
mod conv;
mod convolution;
#[cfg(feature = "flex")]
mod cpu;
mod features;
#[cfg(feature = "cube")]
mod gpu;
mod norm;
#[cfg(feature = "remote")]
mod remote;

pub use attention::attend;
pub use conv::{Conv2d, Linear};
pub use convolution::{Kind, TemporalWindow, convolve};
pub use features::Features;
pub use norm::{GroupNorm, RmsNorm};
#[cfg(feature = "remote")]
pub use remote::host_remotely;

use burn::module::{Param, ParamId};
use burn::tensor::{Device, Tensor};

/// A parameter that takes no memory before it is loaded, and is zero if it never is.
pub fn parameter<const D: usize>(shape: [usize; D], device: &Device) -> Param<Tensor<D>> {
    Param::uninitialized(ParamId::new(), move |device, _| Tensor::zeros(shape, device), device.clone(), false, shape.into())
}
