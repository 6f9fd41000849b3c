//! `AutoencoderKL`: the image VAE of Stable Diffusion 1.x and 2.x, SDXL, SD3, FLUX.1 and others, which differ by configuration only.
//!
//! Linking this crate registers the family `kl`. Checkpoints may be in the layout of diffusers, with its old attention names too, or in that of the
//! original latent diffusion code, alone or inside a whole Stable Diffusion checkpoint.
//!
//! Source of the architecture: diffusers 0.42.1, `models/autoencoders/autoencoder_kl.py`, `vae.py` and `models/unets/unet_2d_blocks.py`.

mod blocks;
mod coders;
mod config;
mod layouts;
mod model;

pub use config::{KlConfig, SampleSize};
pub use model::{AutoencoderKl, Kl};

vae_core::register_vae!(Kl);

#[cfg(test)]
mod tests;
