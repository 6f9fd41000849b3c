use std::fmt::Debug;

use burn::tensor::{DType, Device, Tensor};

use tiling::FrameScale;

use crate::coder::Coder;
use crate::{Context, VaeError, VaeSpec};

/// A run over the frames of one clip: takes the next frames and returns their output. It owns the state that it keeps from call to call.
pub type FrameStream<'a> = Box<dyn FnMut(Tensor<5>) -> Result<Tensor<5>, VaeError> + Send + 'a>;

/// A VAE with its weights on one device.
///
/// Tensors always have rank 5, `[batch, channels, frames, height, width]`; an image has one frame. All state of a call lives in locals and in its [`Context`], so
/// one value serves many threads and tiles cannot leak into each other.
pub trait Vae: Debug + Send + Sync {
    /// The shapes and limits of the model.
    fn spec(&self) -> &VaeSpec;

    /// The dtype of weights and compute. Inputs may have any float dtype and are cast.
    fn dtype(&self) -> DType;

    /// The device that holds the weights.
    fn device(&self) -> Device;

    /// Latents to samples.
    ///
    /// # Shapes
    /// `[b, latent_channels, t, h, w]` of the VAE's own latents (not scaled or shifted) to `[b, output_channels, t', h * ratio, w * ratio]`, about -1 to 1.
    ///
    /// # Errors
    /// When the shape is not one that the model takes, or the decoder was not loaded.
    fn decode(&self, latents: Tensor<5>, context: &Context) -> Result<Tensor<5>, VaeError>;

    /// Samples to the moments of the posterior: its mean, then its log-variance (not clamped), along the channels; to latents where the model has no posterior (see
    /// [`PosteriorKind`](crate::PosteriorKind)).
    ///
    /// # Shapes
    /// `[b, input_channels, t', h, w]`, -1 to 1, to `[b, c, t, h / ratio, w / ratio]` with the channels of [`VaeSpec::encoder_channels`]. Sides round down.
    ///
    /// # Errors
    /// When the shape is not one that the model takes, or the encoder was not loaded.
    fn encode(&self, samples: Tensor<5>, context: &Context) -> Result<Tensor<5>, VaeError>;

    /// A decode that takes latent frames as they come: of a causal model one frame first, then any number. Others take all frames at once.
    fn decode_stream(&self, context: &Context) -> FrameStream<'_> {
        let context = context.clone();
        Box::new(move |latents| self.decode(latents, &context))
    }

    /// An encode that takes sample frames as they come: of a causal model one frame first, then multiples of its ratio. Others take all frames at once.
    fn encode_stream(&self, context: &Context) -> FrameStream<'_> {
        let context = context.clone();
        Box::new(move |samples| self.encode(samples, &context))
    }

    /// The layers of the decoder, for runs in stages. `None` when it was not loaded, or the model does not list them.
    fn decoder(&self) -> Option<Coder<'_>> {
        None
    }

    /// The layers of the encoder, for runs in stages. `None` when it was not loaded, or the model does not list them.
    fn encoder(&self) -> Option<Coder<'_>> {
        None
    }

    /// A copy of the model on another device; on the same device the weights are shared.
    fn to_device(&self, device: &Device) -> Box<dyn Vae>;
}

/// Runs `stream` over all of `input`, in chunks (see [`FrameScale::chunks`]), and concatenates the outputs.
///
/// # Errors
/// The first error of the stream.
pub fn stream_frames(mut stream: FrameStream<'_>, input: Tensor<5>, frames: FrameScale, per_chunk: usize) -> Result<Tensor<5>, VaeError> {
    let chunks = frames.chunks(input.dims()[2], per_chunk);
    let answers = chunks.into_iter().map(|range| stream(input.clone().narrow(2, range.start, range.len()))).collect::<Result<Vec<_>, _>>()?;
    Ok(Tensor::cat(answers, 2))
}
