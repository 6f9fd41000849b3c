use serde::{Deserialize, Serialize};
use tiling::{GridDefaults, Overlap};
use vae_core::{FamilyTiling, LatentNorm, VaeError, VaeSpec};

use crate::blocks::{DOWN_BLOCKS, UP_BLOCKS};
use vae_core::operators::Activation;

/// Bounds of what a configuration may say, far above every published model: what is computed of it stays within memory and time.
const MAX_CHANNELS: usize = 1 << 16;
const MAX_LAYERS: usize = 256;
const MAX_SIDE: usize = 1 << 20;

/// The fields of `AutoencoderKL`'s `config.json`, by their names there, with its defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "the fields are those of an upstream file")]
pub struct KlConfig {
    /// Channels of the encoder's input.
    pub in_channels: usize,
    /// Channels of the decoder's output.
    pub out_channels: usize,
    /// `DownEncoderBlock2D` or `AttnDownEncoderBlock2D`, from the finest to the coarsest.
    pub down_block_types: Vec<String>,
    /// `UpDecoderBlock2D` or `AttnUpDecoderBlock2D`, from the coarsest to the finest.
    pub up_block_types: Vec<String>,
    /// Channels of each block, from the finest to the coarsest.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks in a down block; an up block has one more.
    pub layers_per_block: usize,
    /// The activation of the residual blocks.
    pub act_fn: String,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Groups of every group norm.
    pub norm_num_groups: usize,
    /// The tile of diffusers' tiling, in sample px.
    pub sample_size: SampleSize,
    /// Pipelines return latents multiplied by this.
    pub scaling_factor: f64,
    /// Pipelines subtract this from latents before they multiply.
    pub shift_factor: Option<f64>,
    /// The mean of each latent channel.
    pub latents_mean: Option<Vec<f64>>,
    /// The deviation of each latent channel.
    pub latents_std: Option<Vec<f64>>,
    /// Whether f16 weights are computed with in f32.
    pub force_upcast: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
    /// Whether the middle of encoder and decoder attends.
    pub mid_block_add_attention: bool,
}

/// `sample_size`: one number, or `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleSize(pub [usize; 2]);

impl Serialize for SampleSize {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0[0] == self.0[1] { self.0[0].serialize(serializer) } else { self.0.serialize(serializer) }
    }
}

impl<'de> Deserialize<'de> for SampleSize {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        tiling::PerAxis::deserialize(deserializer).map(|sides| Self(sides.0))
    }
}

impl Default for KlConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![DOWN_BLOCKS[0].to_owned()],
            up_block_types: vec![UP_BLOCKS[0].to_owned()],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".to_owned(),
            latent_channels: 4,
            norm_num_groups: 32,
            sample_size: SampleSize([32, 32]),
            scaling_factor: 0.18215,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            mid_block_add_attention: true,
        }
    }
}

impl KlConfig {
    /// Sample px in a latent px.
    pub fn spatial_ratio(&self) -> usize {
        1_usize.checked_shl(self.block_out_channels.len().saturating_sub(1) as u32).unwrap_or(usize::MAX)
    }

    /// What planning needs besides the layers, once every field is checked.
    pub(crate) fn spec(&self) -> Result<VaeSpec, VaeError> {
        self.check()?;
        Ok(VaeSpec {
            input_channels: self.in_channels,
            latent_norm: self.latent_norm(),
            grid: GridDefaults { tile_px: self.sample_size.0, overlap: Overlap::Share([0.25, 0.25]) },
            tiling: FamilyTiling::default(),
            force_upcast: self.force_upcast,
            ..VaeSpec::image(self.out_channels, self.latent_channels, self.spatial_ratio())
        })
    }

    /// How latents are scaled, and whose models do so.
    pub(crate) fn scaling(&self) -> String {
        if self.latents_mean.is_some() {
            return format!("its latents_mean and latents_std, and scaling_factor {}", self.scaling_factor);
        }
        let shift = self.shift_factor.filter(|&shift| shift != 0.0);
        let known = [
            (0.18215, None, " (Stable Diffusion 1.x and 2.x)"),
            (0.13025, None, " (SDXL)"),
            (1.5305, Some(0.0609), " (SD3)"),
            (0.3611, Some(0.1159), " (FLUX.1)"),
        ];
        let whose = known.iter().find(|known| (known.0, known.1) == (self.scaling_factor, shift)).map_or("", |known| known.2);
        let shift = shift.map(|shift| format!(" and shift_factor {shift}")).unwrap_or_default();
        format!("scaling_factor {}{shift}{whose}", self.scaling_factor)
    }

    fn latent_norm(&self) -> LatentNorm {
        let scaling = self.scaling_factor;
        match (&self.latents_mean, &self.latents_std) {
            (Some(mean), Some(std)) => {
                LatentNorm { scale: std.iter().map(|std| (std / scaling) as f32).collect(), shift: mean.iter().map(|&mean| mean as f32).collect() }
            }
            _ => LatentNorm { scale: vec![(1.0 / scaling) as f32], shift: vec![self.shift_factor.unwrap_or(0.0) as f32] },
        }
    }

    pub(crate) fn check(&self) -> Result<(), VaeError> {
        let wrong = |field, got: String, expected: String| Err(VaeError::ConfigValue { field, got, expected });
        let blocks = self.block_out_channels.len();
        if blocks == 0 || blocks > 16 {
            return wrong("block_out_channels", format!("{:?}", self.block_out_channels), "1 to 16 blocks are possible".to_owned());
        }
        for (field, types, known) in [("down_block_types", &self.down_block_types, DOWN_BLOCKS), ("up_block_types", &self.up_block_types, UP_BLOCKS)]
        {
            if types.len() != blocks {
                return wrong(field, format!("{types:?}"), format!("there are {blocks} block_out_channels, so {blocks} types are needed"));
            }
            if let Some(unknown) = types.iter().find(|name| !known.contains(&name.as_str())) {
                return wrong(field, format!("`{unknown}`"), format!("implemented are {}", known.join(" and ")));
            }
        }
        let Ok(_) = self.act_fn.parse::<Activation>() else {
            return wrong("act_fn", format!("`{}`", self.act_fn), format!("implemented are {}", Activation::NAMES.join(", ")));
        };
        for (field, value) in [
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
            ("latent_channels", self.latent_channels),
            ("norm_num_groups", self.norm_num_groups),
        ] {
            VaeError::check_range(field, value, 1..=MAX_CHANNELS)?;
        }
        VaeError::check_range("layers_per_block", self.layers_per_block, 1..=MAX_LAYERS)?;
        for side in self.sample_size.0 {
            VaeError::check_range("sample_size", side, 1..=MAX_SIDE)?;
        }
        for &channels in &self.block_out_channels {
            VaeError::check_range("block_out_channels", channels, 1..=MAX_CHANNELS)?;
        }
        if let Some(channels) = self.block_out_channels.iter().find(|&&channels| channels % self.norm_num_groups != 0) {
            return wrong("block_out_channels", channels.to_string(), format!("it must be a multiple of norm_num_groups, {}", self.norm_num_groups));
        }
        let plain = LatentNorm { scale: vec![(1.0 / self.scaling_factor) as f32], shift: vec![self.shift_factor.unwrap_or(0.0) as f32] };
        if !plain.is_invertible() {
            let (field, got) =
                if plain.shift[0].is_finite() { ("scaling_factor", Some(self.scaling_factor)) } else { ("shift_factor", self.shift_factor) };
            return wrong(field, got.unwrap_or_default().to_string(), "latents are divided and shifted by it, and must come back".to_owned());
        }
        for (field, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if let Some(values) = values.as_ref().filter(|values| values.len() != self.latent_channels) {
                return wrong(field, format!("{} values", values.len()), format!("there are {} latent_channels", self.latent_channels));
            }
        }
        if self.latents_mean.is_some() != self.latents_std.is_some() {
            return wrong("latents_mean", "given without its pair".to_owned(), "latents_mean and latents_std belong together".to_owned());
        }
        if !self.latent_norm().is_invertible() {
            let field = if self.latent_norm().shift.iter().all(|shift| shift.is_finite()) { "latents_std" } else { "latents_mean" };
            return wrong(
                field,
                "0 or past all bounds in a channel".to_owned(),
                "latents are divided and shifted by it, and must come back".to_owned(),
            );
        }
        Ok(())
    }
}
