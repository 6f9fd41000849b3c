//! `AutoencoderKLWan`: the causal video VAE of Wan 2.1 and Wan 2.2, and `AutoencoderKLQwenImage`, which is the former under another name.
//!
//! Linking this crate registers the families `wan` and `qwen-image`. Checkpoints may be in the layout of diffusers or in that of the original Wan code.
//!
//! A run over the frames of a clip caches the last two input frames of every temporal convolution. The first call takes one frame, later calls any number;
//! the output does not depend on the division, float rounding apart.
//!
//! Source of the architecture: diffusers 0.42.1, `models/autoencoders/autoencoder_kl_wan.py` and `autoencoder_kl_qwenimage.py`.

mod blocks;
mod coders;
mod config;
mod layouts;
mod model;
mod resample;

pub use config::{QwenImageConfig, WanConfig};
pub use model::{AutoencoderKlWan, QwenImage, Wan};

vae_core::register_vae!(Wan);
vae_core::register_vae!(QwenImage);

#[cfg(test)]
mod tests;
