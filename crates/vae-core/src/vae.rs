use std::fmt::Debug;

use burn::tensor::{DType, Device, Tensor};

use crate::{VaeError, VaeSpec};

/// A VAE with its weights on one device.
///
/// Tensors always have rank 5, `[batch, channels, frames, height, width]`; an image has one frame. All state of a call lives in locals, so one
/// value serves many threads and tiles cannot leak into each other.
pub trait Vae: Debug + Send + Sync {
    /// What is known of the model without its weights.
    fn spec(&self) -> &VaeSpec;

    /// The dtype of weights and compute. Inputs may have any float dtype and are cast at the door.
    fn dtype(&self) -> DType;

    /// The device that holds the weights.
    fn device(&self) -> Device;

    /// Latents to samples.
    ///
    /// # Shapes
    /// `[b, latent_channels, t, h, w]` of the VAE's own latents (not scaled or shifted) to `[b, output_channels, t', h * ratio, w * ratio]`, about -1 to 1.
    ///
    /// # Errors
    /// When the shape is not one that the model takes.
    fn decode(&self, latents: Tensor<5>) -> Result<Tensor<5>, VaeError>;

    /// Samples to the moments of the posterior: its mean, then its log-variance (not clamped), along the channels.
    ///
    /// # Shapes
    /// `[b, input_channels, t', h, w]`, -1 to 1, to `[b, 2 * latent_channels, t, h / ratio, w / ratio]`.
    ///
    /// # Errors
    /// When the shape is not one that the model takes.
    fn encode(&self, samples: Tensor<5>) -> Result<Tensor<5>, VaeError>;

    /// The same model on another device; on the same one the weights are shared.
    fn to_device(&self, device: &Device) -> Box<dyn Vae>;
}
