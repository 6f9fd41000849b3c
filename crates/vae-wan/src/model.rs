use std::num::NonZeroUsize;

use burn::module::Module;
use burn::tensor::{DType, Device};
use vae_core::coder::{Coder, Layer};
use vae_core::layers::Conv3d;
use vae_core::{Components, LoadedVae, Vae, VaeError, VaeFamily, VaeModules, VaeSpec, Weights};

use crate::coders::{Decoder, Encoder};
use crate::resample::{Patchify, Unpatchify};
use crate::{QwenImageConfig, WanConfig, layouts};

/// The family `wan`.
#[derive(Debug)]
pub struct Wan;

impl VaeFamily for Wan {
    const NAME: &'static str = "wan";
    const ALIASES: &'static [&'static str] = &["AutoencoderKLWan"];
    const SUMMARY: &'static str = "AutoencoderKLWan, the video VAE of Wan 2.1 and Wan 2.2";
    const MARKERS: &'static [&'static str] = &layouts::MARKERS;
    type Config = WanConfig;

    fn spec(config: &WanConfig) -> Result<VaeSpec, VaeError> {
        with_layers(config.spec()?, config)
    }

    fn infer(weights: &Weights) -> Option<WanConfig> {
        layouts::infer(weights)
    }

    fn determines_scaling(weights: &Weights) -> bool {
        layouts::determines_scaling(weights)
    }

    fn fits(config: &WanConfig, weights: &Weights) -> bool {
        layouts::fits(config, weights)
    }

    fn scaling(config: &WanConfig) -> Option<String> {
        Some(config.scaling())
    }

    fn load(config: &WanConfig, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        load(config, Self::spec(config)?, weights, device, dtype)
    }
}

/// The family `qwen-image`: Wan 2.1 under another name, for images.
#[derive(Debug)]
pub struct QwenImage;

impl VaeFamily for QwenImage {
    const NAME: &'static str = "qwen-image";
    const ALIASES: &'static [&'static str] = &["AutoencoderKLQwenImage"];
    const SUMMARY: &'static str = "AutoencoderKLQwenImage, the VAE of Qwen-Image, which is Wan 2.1's with other weights";
    const MARKERS: &'static [&'static str] = &layouts::MARKERS;
    type Config = QwenImageConfig;

    fn spec(config: &QwenImageConfig) -> Result<VaeSpec, VaeError> {
        with_layers(config.spec()?, &config.to_wan())
    }

    fn fits(config: &QwenImageConfig, weights: &Weights) -> bool {
        layouts::fits(&config.to_wan(), weights)
    }

    fn scaling(config: &QwenImageConfig) -> Option<String> {
        Some(config.to_wan().scaling())
    }

    fn load(config: &QwenImageConfig, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        load(&config.to_wan(), Self::spec(config)?, weights, device, dtype)
    }
}

fn with_layers(spec: VaeSpec, config: &WanConfig) -> Result<VaeSpec, VaeError> {
    spec.with_layers_of(|device| AutoencoderKlWan::new(config, Components::Both, device))
}

fn load(config: &WanConfig, spec: VaeSpec, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
    let modules = AutoencoderKlWan::new(config, weights.components(), device)?;
    let weights = layouts::to_modules(weights).of_components(&["encoder.", "quant_conv."], &["decoder.", "post_quant_conv."]);
    LoadedVae::load(modules, weights, spec, device, dtype)
}

/// The modules of an `AutoencoderKLWan`, named as in diffusers.
#[derive(Module, Debug)]
pub struct AutoencoderKlWan {
    pub(crate) encoder: Option<Encoder>,
    quant_conv: Option<Conv3d>,
    post_quant_conv: Option<Conv3d>,
    pub(crate) decoder: Option<Decoder>,
    #[module(skip)]
    latent_channels: usize,
    #[module(skip)]
    sample_channels: usize,
    #[module(skip)]
    patch: usize,
    #[module(skip)]
    spatial_ratio: usize,
    /// Whether patches or shortcuts take whole blocks of px.
    #[module(skip)]
    divides_blocks: bool,
}

impl AutoencoderKlWan {
    /// The modules, whose parameters take no memory before they are loaded.
    ///
    /// # Errors
    /// When the configuration is refused.
    pub fn new(config: &WanConfig, components: Components, device: &Device) -> Result<Self, VaeError> {
        config.check()?;
        Ok(Self {
            encoder: components.encoder(|| Encoder::new(config, device)),
            quant_conv: components.encoder(|| Conv3d::temporal(NonZeroUsize::MIN, [2 * config.z_dim; 2], device)),
            post_quant_conv: components.decoder(|| Conv3d::temporal(NonZeroUsize::MIN, [config.z_dim; 2], device)),
            decoder: components.decoder(|| Decoder::new(config, device)),
            latent_channels: config.z_dim,
            sample_channels: config.in_channels / (config.patch() * config.patch()),
            patch: config.patch(),
            spatial_ratio: config.spatial_ratio(),
            divides_blocks: config.patch() > 1 || config.is_residual,
        })
    }
}

impl VaeModules for AutoencoderKlWan {
    fn decoder(&self) -> Option<Coder<'_>> {
        let mut layers = vec![Layer::Conv3d(self.post_quant_conv.as_ref()?)];
        self.decoder.as_ref()?.list(&mut layers);
        if self.patch > 1 {
            layers.push(Layer::Map(Box::new(Unpatchify(self.patch))));
        }
        Some(Coder::new(self.latent_channels, layers))
    }

    fn encoder(&self) -> Option<Coder<'_>> {
        let mut layers = Vec::new();
        if self.patch > 1 {
            layers.push(Layer::Map(Box::new(Patchify(self.patch))));
        }
        self.encoder.as_ref()?.list(&mut layers);
        layers.push(Layer::Conv3d(self.quant_conv.as_ref()?));
        let coder = Coder::new(self.sample_channels, layers);
        Some(if self.divides_blocks { coder.with_whole_px_of(self.spatial_ratio) } else { coder })
    }
}
