//! Layers that VAE families share. Field names are those of diffusers, so that a checkpoint's names need no mapping.

mod attention;
mod conv;
#[cfg(feature = "flex")]
mod cpu;
mod norm;
mod precision;
#[cfg(feature = "remote")]
mod remote;
#[cfg(feature = "flex")]
mod winograd;

pub use attention::{Linear, attend};
pub use conv::Conv2d;
pub use norm::{GroupNorm, RmsNorm};
pub use precision::Precision;
#[cfg(feature = "remote")]
pub use remote::host_remotely;

#[cfg(feature = "flex")]
use std::sync::{Arc, OnceLock};

use burn::module::{Param, ParamId};
use burn::tensor::ops::{InterpolateMode, InterpolateOptions};
use burn::tensor::{Device, Tensor};

/// What convolutions with kernels of 3x3 px keep for the algorithm with fewer products: transformed kernels, made when they are first needed.
///
/// It is for f32 on Burn's CPU backend, where [`Precision`] allows it and it pays. Clones share the kernels: they belong to one set of weights.
#[derive(Debug, Clone, Default)]
pub struct Winograd(#[cfg(feature = "flex")] Arc<OnceLock<winograd::Kernels>>);

impl Winograd {
    /// A convolution with stride 1 and a border of zeros of one px; or none where it is to be run otherwise.
    ///
    /// # Shapes
    /// `[b, in, h, w]`, `[out, in, 3, 3]` and `[out]`, to `[b, out, h, w]`.
    #[cfg_attr(not(feature = "flex"), expect(clippy::unused_self, reason = "there is no CPU backend"))]
    pub fn conv2d(&self, x: &Tensor<4>, weight: Tensor<4>, bias: Tensor<1>) -> Option<Tensor<4>> {
        #[cfg(feature = "flex")]
        return self.convolve(x, weight, bias);
        #[cfg(not(feature = "flex"))]
        {
            let _ = (x, weight, bias);
            None
        }
    }

    /// A convolution over height, width and the frame with the two before it, which are given: `t` frames give `t - 2`. A lone frame gives one, with
    /// nothing before it. Or none where it is to be run otherwise.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]`, `[out, in, 3, 3, 3]` and `[out]`, to `[b, out, t - 2, h, w]`.
    #[cfg_attr(not(feature = "flex"), expect(clippy::unused_self, reason = "there is no CPU backend"))]
    pub fn causal_conv3d(&self, x: &Tensor<5>, weight: Tensor<5>, bias: Tensor<1>) -> Option<Tensor<5>> {
        #[cfg(feature = "flex")]
        return self.convolve_causally(x, weight, bias);
        #[cfg(not(feature = "flex"))]
        {
            let _ = (x, weight, bias);
            None
        }
    }
}

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
