use serde::{Deserialize, Serialize};
use tiling::{GridDefaults, Overlap};
use vae_core::{Clamp, FamilyTiling, FrameRule, LatentNorm, PosteriorKind, VaeError, VaeSpec};

/// Bounds of what a configuration may say, far above every published model: what is computed of it stays within memory and time.
const MAX_CHANNELS: usize = 1 << 16;
const MAX_LAYERS: usize = 256;
const MAX_PATCH: usize = 64;

/// Mean and deviation of the latent channels of Wan 2.1 (and the defaults of `AutoencoderKLWan`).
const WAN_2_1: [[f64; 2]; 16] = [
    [-0.7571, 2.8184],
    [-0.7089, 1.4541],
    [-0.9113, 2.3275],
    [0.1075, 2.6558],
    [-0.1745, 1.2196],
    [0.9653, 1.7708],
    [-0.1517, 2.6052],
    [1.5508, 2.0743],
    [0.4134, 3.2687],
    [-0.0715, 2.1526],
    [0.5517, 2.8652],
    [-0.3632, 1.5579],
    [-0.1922, 1.6382],
    [-0.9497, 1.1253],
    [0.2503, 2.8251],
    [-0.2921, 1.9160],
];

/// Means of the latent channels of Wan 2.2 (`Wan2_2_VAE` in the original `vae2_2.py`).
const WAN_2_2_MEAN: [f64; 48] = [
    -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891, 0.1570, -0.0098, 0.0375, -0.1825, -0.2246,
    -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313,
    -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667,
];

/// Deviations of the latent channels of Wan 2.2, from the same source.
const WAN_2_2_STD: [f64; 48] = [
    0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901, 0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523,
    0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659, 0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
    0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
];

/// The fields of `AutoencoderKLWan`'s `config.json`, by their names there, with its defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WanConfig {
    /// Channels of the encoder's first layer.
    pub base_dim: usize,
    /// Channels of the decoder's last layers; `base_dim` when absent.
    pub decoder_base_dim: Option<usize>,
    /// Channels of the latents.
    pub z_dim: usize,
    /// Channels of each block as a multiple of the base, from the finest to the coarsest.
    pub dim_mult: Vec<usize>,
    /// Residual blocks in a down block; an up block has one more.
    pub num_res_blocks: usize,
    /// Scales of the encoder (1, 0.5, 0.25, …) whose residual blocks are followed by attention. Wan 2.2's encoder has no place for it.
    pub attn_scales: Vec<f64>,
    /// Whether each halving of the encoder halves the frames, too.
    pub temperal_downsample: Vec<bool>,
    /// Of use in training only.
    pub dropout: f64,
    /// The mean of each latent channel.
    pub latents_mean: Vec<f64>,
    /// The deviation of each latent channel.
    pub latents_std: Vec<f64>,
    /// Whether blocks have shortcuts, as in Wan 2.2.
    pub is_residual: bool,
    /// Channels of the encoder's input, after patches were folded into channels.
    pub in_channels: usize,
    /// Channels of the decoder's output, before channels are unfolded into patches.
    pub out_channels: usize,
    /// Height and width of the patches of samples that are folded into channels.
    pub patch_size: Option<usize>,
    /// Sample frames in a latent frame.
    pub scale_factor_temporal: Option<usize>,
    /// Sample px in a latent px, on each axis.
    pub scale_factor_spatial: Option<usize>,
    /// Published with Wan 2.2 and without effect: decoded samples are clamped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_output: Option<bool>,
}

impl Default for WanConfig {
    fn default() -> Self {
        Self {
            base_dim: 96,
            decoder_base_dim: None,
            z_dim: 16,
            dim_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            attn_scales: Vec::new(),
            temperal_downsample: vec![false, true, true],
            dropout: 0.0,
            latents_mean: WAN_2_1.iter().map(|pair| pair[0]).collect(),
            latents_std: WAN_2_1.iter().map(|pair| pair[1]).collect(),
            is_residual: false,
            in_channels: 3,
            out_channels: 3,
            patch_size: None,
            scale_factor_temporal: Some(4),
            scale_factor_spatial: Some(8),
            clip_output: None,
        }
    }
}

/// Doubles a number some times; what is too large for a usize was never checked.
fn shifted(number: usize, times: usize) -> usize {
    number.saturating_mul(1_usize.checked_shl(times as u32).unwrap_or(usize::MAX))
}

impl WanConfig {
    /// Height and width of a patch, 1 without patches.
    pub fn patch(&self) -> usize {
        self.patch_size.unwrap_or(1)
    }

    /// Sample px in a latent px, on each axis.
    pub fn spatial_ratio(&self) -> usize {
        shifted(self.patch(), self.dim_mult.len().saturating_sub(1))
    }

    /// Sample frames in a latent frame.
    pub fn temporal_ratio(&self) -> usize {
        shifted(1, self.temperal_downsample.iter().filter(|&&time| time).count())
    }

    /// Channels before the encoder's first block and after each.
    pub(crate) fn encoder_widths(&self) -> Vec<usize> {
        [1].iter().chain(&self.dim_mult).map(|multiple| self.base_dim * multiple).collect()
    }

    /// Channels before the decoder's first block and after each.
    pub(crate) fn decoder_widths(&self) -> Vec<usize> {
        let base = self.decoder_base_dim.unwrap_or(self.base_dim);
        self.dim_mult.iter().rev().take(1).chain(self.dim_mult.iter().rev()).map(|multiple| base * multiple).collect()
    }

    /// Whether the encoder's residual blocks attend in block `block`.
    pub(crate) fn attends_at(&self, block: usize) -> bool {
        !self.is_residual && self.attn_scales.contains(&0.5_f64.powi(i32::try_from(block).unwrap_or(i32::MAX)))
    }

    /// How latents are scaled, and whose models do so.
    pub(crate) fn scaling(&self) -> String {
        let own = [&self.latents_mean, &self.latents_std];
        let is_published = |z_dim| Self::published_latents(z_dim).iter().eq(own);
        if self.latents_mean.iter().all(|&mean| mean == 0.0) && self.latents_std.iter().all(|&std| std == 1.0) {
            return "latents that are not scaled".to_owned();
        }
        match self.z_dim {
            16 if is_published(16) => "Wan 2.1's latents_mean and latents_std".to_owned(),
            48 if is_published(48) => "Wan 2.2's latents_mean and latents_std".to_owned(),
            z_dim => format!("latents_mean and latents_std of its own for {z_dim} channels"),
        }
    }

    /// Mean and deviation of the published model with this number of latent channels.
    pub(crate) fn published_latents(z_dim: usize) -> [Vec<f64>; 2] {
        match z_dim {
            16 => [0, 1].map(|which| WAN_2_1.iter().map(|pair| pair[which]).collect()),
            48 => [WAN_2_2_MEAN.to_vec(), WAN_2_2_STD.to_vec()],
            _ => [vec![0.0; z_dim], vec![1.0; z_dim]],
        }
    }

    /// What planning needs besides the layers, once every field is checked.
    pub(crate) fn spec(&self) -> Result<VaeSpec, VaeError> {
        self.check()?;
        let patch_values = self.patch() * self.patch();
        Ok(VaeSpec {
            input_channels: self.in_channels / patch_values,
            output_channels: self.out_channels / patch_values,
            latent_channels: self.z_dim,
            posterior: PosteriorKind::Gaussian,
            spatial_ratio: self.spatial_ratio(),
            patch: self.patch(),
            frames: FrameRule::Causal { ratio: self.temporal_ratio() },
            latent_norm: LatentNorm {
                scale: self.latents_std.iter().map(|&std| std as f32).collect(),
                shift: self.latents_mean.iter().map(|&mean| mean as f32).collect(),
            },
            clamp: Clamp::Always,
            grid: GridDefaults { tile_px: [256; 2], overlap: Overlap::StridePx([192; 2]) },
            tiling: FamilyTiling::default(),
            force_upcast: false,
            peak_values_per_px: [0, 0],
            decoder: None,
            encoder: None,
            cache_values_per_latent_px: [0, 0],
        })
    }

    pub(crate) fn check(&self) -> Result<(), VaeError> {
        let wrong = |field, got: String, expected: String| Err(VaeError::ConfigValue { field, got, expected });
        let blocks = self.dim_mult.len();
        if blocks == 0 || blocks > 16 || self.dim_mult.contains(&0) {
            return wrong("dim_mult", format!("{:?}", self.dim_mult), "1 to 16 blocks of at least 1 are possible".to_owned());
        }
        for (field, value) in [
            ("base_dim", self.base_dim),
            ("decoder_base_dim", self.decoder_base_dim.unwrap_or(1)),
            ("z_dim", self.z_dim),
            ("in_channels", self.in_channels),
            ("out_channels", self.out_channels),
        ] {
            VaeError::check_range(field, value, 1..=MAX_CHANNELS)?;
        }
        VaeError::check_range("num_res_blocks", self.num_res_blocks, 1..=MAX_LAYERS)?;
        VaeError::check_range("patch_size", self.patch(), 1..=MAX_PATCH)?;
        let base = self.base_dim.max(self.decoder_base_dim.unwrap_or(1));
        if let Some(multiple) = self.dim_mult.iter().find(|&&multiple| multiple > MAX_CHANNELS / base) {
            return wrong("dim_mult", multiple.to_string(), format!("{base} channels times it must be at most {MAX_CHANNELS}"));
        }
        if self.temperal_downsample.len() != blocks - 1 {
            let got = format!("{:?}", self.temperal_downsample);
            return wrong("temperal_downsample", got, format!("there are {blocks} blocks in dim_mult, so {} values are needed", blocks - 1));
        }
        let patch_values = self.patch() * self.patch();
        for (field, value) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if value % patch_values != 0 {
                let expected = format!("it must be a multiple of {patch_values}, the values of a patch");
                return wrong(field, value.to_string(), expected);
            }
        }
        for (field, given, ratio) in [
            ("scale_factor_spatial", self.scale_factor_spatial, self.spatial_ratio()),
            ("scale_factor_temporal", self.scale_factor_temporal, self.temporal_ratio()),
        ] {
            if let Some(given) = given.filter(|&given| given != ratio) {
                return wrong(field, given.to_string(), format!("the blocks and patches of this model make it {ratio}"));
            }
        }
        for (field, values) in [("latents_mean", &self.latents_mean), ("latents_std", &self.latents_std)] {
            if values.len() != self.z_dim {
                return wrong(field, format!("{} values", values.len()), format!("z_dim is {}", self.z_dim));
            }
        }
        let norm = |scale: f64, shift: f64| LatentNorm { scale: vec![scale as f32], shift: vec![shift as f32] };
        let expected = || "latents are divided and shifted by it, and must come back".to_owned();
        if let Some(std) = self.latents_std.iter().find(|&&std| !norm(std, 0.0).is_invertible()) {
            return wrong("latents_std", std.to_string(), expected());
        }
        if let Some(mean) = self.latents_mean.iter().find(|&&mean| !norm(1.0, mean).is_invertible()) {
            return wrong("latents_mean", mean.to_string(), expected());
        }
        if !self.is_residual {
            if self.decoder_widths()[1..blocks].contains(&1) {
                return wrong("dim_mult", format!("{:?}", self.dim_mult), "a doubling halves its channels, of which there is one".to_owned());
            }
            return Ok(());
        }
        self.check_shortcuts()
    }

    /// The shortcuts of Wan 2.2 divide and repeat channels by whole numbers.
    fn check_shortcuts(&self) -> Result<(), VaeError> {
        let blocks = self.dim_mult.len();
        let values = |halving: usize| if self.temperal_downsample[halving] { 8 } else { 4 };
        let (down, up) = (self.encoder_widths(), self.decoder_widths());
        for block in 0..blocks {
            let [from, to] = [down[block] * if block + 1 < blocks { values(block) } else { 1 }, down[block + 1]];
            let [up_from, up_to] = [up[block], up[block + 1] * if block + 1 < blocks { values(blocks - 2 - block) } else { 0 }];
            if from % to != 0 || up_to % up_from != 0 {
                let expected = format!("the shortcut of block {block} cannot divide its channels evenly");
                return Err(VaeError::ConfigValue { field: "dim_mult", got: format!("{:?}", self.dim_mult), expected });
            }
        }
        Ok(())
    }
}

/// The fields of `AutoencoderKLQwenImage`'s `config.json`, by their names there, with its defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct QwenImageConfig {
    /// Channels of the encoder's first and the decoder's last layers.
    pub base_dim: usize,
    /// Channels of the latents.
    pub z_dim: usize,
    /// Channels of each block as a multiple of the base, from the finest to the coarsest.
    pub dim_mult: Vec<usize>,
    /// Residual blocks in a down block; an up block has one more.
    pub num_res_blocks: usize,
    /// See [`WanConfig::attn_scales`].
    pub attn_scales: Vec<f64>,
    /// Whether each halving of the encoder halves the frames, too.
    pub temperal_downsample: Vec<bool>,
    /// Of use in training only.
    pub dropout: f64,
    /// Channels of the samples.
    pub input_channels: usize,
    /// The mean of each latent channel.
    pub latents_mean: Vec<f64>,
    /// The deviation of each latent channel.
    pub latents_std: Vec<f64>,
}

impl Default for QwenImageConfig {
    fn default() -> Self {
        let wan = WanConfig::default();
        Self {
            base_dim: wan.base_dim,
            z_dim: wan.z_dim,
            dim_mult: wan.dim_mult,
            num_res_blocks: wan.num_res_blocks,
            attn_scales: wan.attn_scales,
            temperal_downsample: wan.temperal_downsample,
            dropout: wan.dropout,
            input_channels: wan.in_channels,
            latents_mean: wan.latents_mean,
            latents_std: wan.latents_std,
        }
    }
}

impl QwenImageConfig {
    /// The same model in the terms of Wan 2.1.
    pub fn to_wan(&self) -> WanConfig {
        let own = self.clone();
        WanConfig {
            base_dim: own.base_dim,
            z_dim: own.z_dim,
            dim_mult: own.dim_mult,
            num_res_blocks: own.num_res_blocks,
            attn_scales: own.attn_scales,
            temperal_downsample: own.temperal_downsample,
            dropout: own.dropout,
            in_channels: own.input_channels,
            out_channels: own.input_channels,
            latents_mean: own.latents_mean,
            latents_std: own.latents_std,
            scale_factor_temporal: None,
            scale_factor_spatial: None,
            ..WanConfig::default()
        }
    }

    /// As Wan's, but diffusers does not clamp what it put together from tiles.
    pub(crate) fn spec(&self) -> Result<VaeSpec, VaeError> {
        Ok(VaeSpec { clamp: Clamp::Untiled, ..self.to_wan().spec()? })
    }
}
