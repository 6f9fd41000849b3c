use std::fmt;

use burn::tensor::Device;
use serde::Serialize;
use tiling::{BlendConfig, FrameScale, Geometry, GridConfig, GridDefaults, HostTensor, Overlap, Scale};

use crate::backends::planning_device;
use crate::coder::CoderSpec;
use crate::{VaeError, VaeModules};

/// Channels that the CPU kernels keep side by side: an image of 3 channels takes the memory of 16. On other backends narrow layers take less than is
/// predicted.
pub const CHANNEL_BLOCK: usize = 16;

/// What planning needs to know of a model, and no weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VaeSpec {
    /// Channels of the samples that the encoder takes.
    pub input_channels: usize,
    /// Channels of the samples that the decoder gives.
    pub output_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// What the encoder's output holds, and so how many channels it has.
    pub posterior: PosteriorKind,
    /// Sample px in a latent px, on each axis. A remainder of samples that fills no latent px is not encoded: sides round down.
    pub spatial_ratio: usize,
    /// Side of the patches of samples that the model folds into channels first, and puts together last; 1 without. Blending takes a patch as one px.
    pub patch: usize,
    /// How frames map.
    pub frames: FrameRule,
    /// How pipelines scale latents.
    pub latent_norm: LatentNorm,
    /// Whether decoded samples below -1 and above 1 are clamped.
    pub clamp: Clamp,
    /// The family's default tiles, in sample px; in an encode, in patches.
    pub grid: GridDefaults,
    /// Grids and blend policies that the family brings. The kind `family` of `[tiling]` and `[blend]`, the default, selects them; without them, it selects
    /// the grid of diffusers with the tiles of [`grid`](Self::grid), and the cascade.
    #[serde(skip_serializing_if = "FamilyTiling::is_empty")]
    pub tiling: FamilyTiling,
    /// Whether a model whose weights are f16 computes in f32, because f16 overflows.
    pub force_upcast: bool,
    /// Of a family that does not list its layers: values that a decode and an encode hold at their peak, for each sample px of a tile and each sample frame that
    /// runs at once. That is the layer with the largest sum of what it reads, the normalised copy of that, what it writes, and what a residual connection keeps.
    /// Channels count in whole [`CHANNEL_BLOCK`](crate::CHANNEL_BLOCK)s. Weights, and what does not grow with the tile, are not part of it.
    pub peak_values_per_px: [usize; 2],
    /// The decoder without weights, where the family lists its layers.
    #[serde(skip)]
    pub decoder: Option<CoderSpec>,
    /// The encoder without weights, where the family lists its layers.
    #[serde(skip)]
    pub encoder: Option<CoderSpec>,
    /// Values of earlier frames that a decode and an encode keep from one chunk of frames to the next, for each latent px of a tile. Nothing is kept
    /// of a single chunk. Channels count in whole [`CHANNEL_BLOCK`](crate::CHANNEL_BLOCK)s.
    pub cache_values_per_latent_px: [usize; 2],
}

impl VaeSpec {
    /// The spec of a plain image model: the same number of channels in and out, a Gaussian posterior, unscaled latents, no clamping, tiles of 64 latent px that
    /// overlap by a quarter.
    pub fn image(channels: usize, latent_channels: usize, spatial_ratio: usize) -> Self {
        Self {
            input_channels: channels,
            output_channels: channels,
            latent_channels,
            posterior: PosteriorKind::Gaussian,
            spatial_ratio,
            patch: 1,
            frames: FrameRule::Image,
            latent_norm: LatentNorm::identity(),
            clamp: Clamp::Never,
            grid: GridDefaults { tile_px: [spatial_ratio.saturating_mul(64); 2], overlap: Overlap::Share([0.25; 2]) },
            tiling: FamilyTiling::default(),
            force_upcast: false,
            peak_values_per_px: [channels.saturating_mul(2); 2],
            decoder: None,
            encoder: None,
            cache_values_per_latent_px: [0, 0],
        }
    }

    /// The same with what follows from the layers that `modules` lists: decoder, encoder, and what is kept between chunks of frames. `modules` builds all of them
    /// for a device; nothing is computed there.
    ///
    /// # Errors
    /// Those of `modules`.
    pub fn with_layers_of<M: VaeModules>(mut self, modules: impl FnOnce(&Device) -> Result<M, VaeError>) -> Result<Self, VaeError> {
        let Some(device) = planning_device() else { return Ok(self) };
        let modules = modules(&device)?;
        let [decoder, encoder] = [modules.decoder(), modules.encoder()].map(|coder| coder.map(|coder| coder.spec().clone()));
        let cached = |coder: &Option<CoderSpec>, side| coder.as_ref().map_or(0, |coder| coder.cached_values([side; 2]));
        self.cache_values_per_latent_px = [cached(&decoder, 1), cached(&encoder, self.spatial_ratio)];
        Ok(Self { decoder, encoder, ..self })
    }

    /// Refuses a spec that nothing can be computed with, before anything relies on it.
    pub(crate) fn checked(self) -> Result<Self, VaeError> {
        let [above, below] = self.grid.tile_px;
        for (field, value) in [
            ("input_channels", self.input_channels),
            ("output_channels", self.output_channels),
            ("latent_channels", self.latent_channels),
            ("spatial_ratio", self.spatial_ratio),
            ("patch", self.patch),
            ("frames.ratio", self.frames.ratio()),
            ("grid.tile_px", above.min(below)),
        ] {
            if value == 0 {
                return Err(VaeError::Spec { field, got: "0".to_owned(), expected: "it must be at least 1" });
            }
        }
        for (field, values) in [("latent_norm.scale", &self.latent_norm.scale), ("latent_norm.shift", &self.latent_norm.shift)] {
            if ![1, self.latent_channels].contains(&values.len()) {
                return Err(VaeError::Spec {
                    field,
                    got: format!("{} values", values.len()),
                    expected: "there must be one, or one for each latent channel",
                });
            }
        }
        if !self.latent_norm.is_invertible() {
            return Err(VaeError::Spec {
                field: "latent_norm",
                got: format!("{:?}", self.latent_norm),
                expected: "its factors must be finite and not 0",
            });
        }
        Ok(self)
    }

    /// How a region of latents maps to a region of samples.
    pub fn decode_geometry(&self) -> Geometry {
        Geometry { scale: Scale::Up(self.spatial_ratio), frames: self.frames.scale(FrameScale::CausalUp), blend_unit: self.patch }
    }

    /// How a region of samples maps to a region of latents.
    pub fn encode_geometry(&self) -> Geometry {
        Geometry { scale: Scale::Down(self.spatial_ratio), frames: self.frames.scale(FrameScale::CausalDown), blend_unit: 1 }
    }

    /// Channels of what the encoder gives: those of the latents, twice where they are moments.
    pub fn encoder_channels(&self) -> usize {
        match self.posterior {
            PosteriorKind::Gaussian => self.latent_channels.saturating_mul(2),
            PosteriorKind::None => self.latent_channels,
        }
    }

    /// Checks the channels of what a decoder has given.
    ///
    /// # Errors
    /// [`VaeError::AnswerChannels`].
    pub fn check_decoded(&self, shape: [usize; 5]) -> Result<(), VaeError> {
        check_answer("decoder", shape[1], self.output_channels)
    }

    /// Checks the channels of what an encoder has given, moments or latents.
    ///
    /// # Errors
    /// [`VaeError::AnswerChannels`].
    pub fn check_encoded(&self, shape: [usize; 5]) -> Result<(), VaeError> {
        check_answer("encoder", shape[1], self.encoder_channels())
    }

    /// Checks the shape of latents.
    ///
    /// # Errors
    /// [`VaeError::Channels`], [`VaeError::Frames`] or [`VaeError::TooSmall`].
    pub fn check_latents(&self, shape: [usize; 5]) -> Result<(), VaeError> {
        self.check("latents", shape, self.latent_channels, 1)
    }

    /// Checks the shape of samples.
    ///
    /// # Errors
    /// [`VaeError::Channels`], [`VaeError::Frames`], [`VaeError::FrameCount`] or [`VaeError::TooSmall`].
    pub fn check_samples(&self, shape: [usize; 5]) -> Result<(), VaeError> {
        self.check_sample_piece(shape)?;
        match self.frames {
            FrameRule::Causal { ratio } if !(shape[2] - 1).is_multiple_of(ratio) => Err(VaeError::FrameCount { got: shape[2], ratio }),
            _ => Ok(()),
        }
    }

    /// Checks the shape of some frames of samples: what [`check_samples`](Self::check_samples) checks but for the number of frames.
    pub(crate) fn check_sample_piece(&self, shape: [usize; 5]) -> Result<(), VaeError> {
        self.check("samples", shape, self.input_channels, self.spatial_ratio)
    }

    fn check(&self, what: &'static str, [b, c, t, h, w]: [usize; 5], channels: usize, smallest: usize) -> Result<(), VaeError> {
        if c != channels {
            return Err(VaeError::Channels { what, got: c, expected: channels });
        }
        if t == 0 || (self.frames == FrameRule::Image && t != 1) {
            return Err(VaeError::Frames { what, got: t });
        }
        if b == 0 || h < smallest || w < smallest {
            return Err(VaeError::TooSmall { what, got: [b, c, t, h, w], smallest });
        }
        Ok(())
    }
}

fn check_answer(component: &'static str, got: usize, expected: usize) -> Result<(), VaeError> {
    if got == expected { Ok(()) } else { Err(VaeError::AnswerChannels { component, got, expected }) }
}

/// Grids and blend policies that a family brings, for each direction.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct FamilyTiling {
    /// Of a decode.
    pub decode: Option<Tiling>,
    /// Of an encode.
    pub encode: Option<Tiling>,
}

/// A grid and a blend policy with their settings.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tiling {
    /// The grid: [`GridConfig::of`] a family's own kind, or one that is registered.
    pub grid: GridConfig,
    /// The blend policy.
    pub blend: BlendConfig,
}

impl FamilyTiling {
    fn is_empty(&self) -> bool {
        self.decode.is_none() && self.encode.is_none()
    }
}

/// What an encoder gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PosteriorKind {
    /// The moments of a Gaussian for each latent value: all means, then all log-variances, along the channels.
    Gaussian,
    /// The latents themselves. There is nothing to sample from.
    None,
}

/// When decoded samples are clamped to -1..1, once tiles are blended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Clamp {
    /// Never.
    Never,
    /// Where there is a single tile.
    Untiled,
    /// Always.
    Always,
}

impl Clamp {
    /// Clamps in place.
    pub fn apply(self, samples: &mut HostTensor, is_tiled: bool) {
        if self == Self::Always || (self == Self::Untiled && !is_tiled) {
            samples.data_mut().iter_mut().for_each(|value| *value = value.clamp(-1.0, 1.0));
        }
    }
}

/// How the frames of samples map to those of latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameRule {
    /// One frame.
    Image,
    /// `1 + (t - 1) * ratio` sample frames belong to `t` latent frames, and no frame depends on a later one.
    Causal {
        /// Sample frames in a latent frame, after the first.
        ratio: usize,
    },
}

impl FrameRule {
    /// Sample frames in a latent frame, after the first.
    pub fn ratio(self) -> usize {
        match self {
            Self::Image => 1,
            Self::Causal { ratio } => ratio,
        }
    }

    /// The nearest numbers of sample frames, below and above, that a model encodes without a remainder.
    pub fn nearest(self, frames: usize) -> [usize; 2] {
        match self {
            Self::Image => [1, 1],
            Self::Causal { ratio } => {
                let (ratio, later) = (ratio.max(1), frames.max(1) - 1);
                [1 + later / ratio * ratio, later.div_ceil(ratio).saturating_mul(ratio).saturating_add(1)]
            }
        }
    }

    fn scale(self, causal: impl Fn(usize) -> FrameScale) -> FrameScale {
        match self {
            Self::Image => FrameScale::Same,
            Self::Causal { ratio } => causal(ratio),
        }
    }
}

/// How the latents that diffusion pipelines use (zero mean, unit deviation) differ from the VAE's own: `own = diffusion * scale + shift` for each channel.
///
/// Source: the `decode` steps of diffusers' pipelines (`latents / scaling_factor + shift_factor`, and with `latents_mean` and `latents_std`,
/// `latents * std / scaling_factor + mean`).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LatentNorm {
    /// One factor, or one a channel.
    pub scale: Vec<f32>,
    /// One summand, or one a channel.
    pub shift: Vec<f32>,
}

impl LatentNorm {
    /// No scaling: both latent spaces are the same.
    pub fn identity() -> Self {
        Self { scale: vec![1.0], shift: vec![0.0] }
    }

    /// Whether all factors and summands are finite and no factor is 0.
    pub fn is_invertible(&self) -> bool {
        self.scale.iter().all(|scale| scale.is_normal() && (1.0 / scale).is_finite()) && self.shift.iter().all(|shift| shift.is_finite())
    }

    /// From a pipeline's latents to the VAE's own, in place.
    pub fn to_vae(&self, latents: &mut HostTensor) {
        self.apply(latents, |value, scale, shift| value * scale + shift);
    }

    /// From the VAE's own latents to a pipeline's, in place.
    pub fn to_diffusion(&self, latents: &mut HostTensor) {
        self.apply(latents, |value, scale, shift| (value - shift) / scale);
    }

    fn apply(&self, latents: &mut HostTensor, f: impl Fn(f32, f32, f32) -> f32) {
        let [_, channels, t, h, w] = latents.shape();
        for (plane, values) in latents.data_mut().chunks_mut((t * h * w).max(1)).enumerate() {
            let channel = plane % channels;
            let pick = |values: &[f32]| values[if values.len() == 1 { 0 } else { channel }];
            let (scale, shift) = (pick(&self.scale), pick(&self.shift));
            for value in values {
                *value = f(*value, scale, shift);
            }
        }
    }
}

/// In the terms of `config.json`, where all channels have the same factor.
impl fmt::Display for LatentNorm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A factor of f32 is exact to seven digits.
        let rounded = |value: f64| (value * 1e6).round() / 1e6;
        match (&self.scale[..], &self.shift[..]) {
            ([scale], [shift]) if *scale == 1.0 && *shift == 0.0 => f.write_str("latents that are not scaled"),
            ([scale], [shift]) => {
                write!(f, "scaling_factor {}", rounded(1.0 / f64::from(*scale)))?;
                if *shift == 0.0 { Ok(()) } else { write!(f, " and shift_factor {}", rounded(f64::from(*shift))) }
            }
            (scale, shift) => write!(f, "latents_mean and latents_std of {} channels", scale.len().max(shift.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latents_are_scaled_by_channel_and_back() {
        let norm = LatentNorm { scale: vec![2.0, 0.5], shift: vec![1.0, -1.0] };
        let passed = HostTensor::from_fn([2, 2, 1, 1, 2], |[b, c, _, _, x]| (4 * b + 2 * c + x) as f32);
        let mut own = passed.clone();
        norm.to_vae(&mut own);
        assert_eq!(own.data(), [1.0, 3.0, 0.0, 0.5, 9.0, 11.0, 2.0, 2.5]);
        norm.to_diffusion(&mut own);
        assert_eq!(own, passed);
    }
}
