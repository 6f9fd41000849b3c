use burn::module::Module;
use burn::tensor::{DType, Device};
use vae_core::coder::{Coder, Layer};
use vae_core::layers::Conv2d;
use vae_core::operators::Activation;
use vae_core::{Components, LoadedVae, Vae, VaeError, VaeFamily, VaeModules, VaeSpec, Weights};

use crate::blocks::Style;
use crate::coders::{Decoder, Encoder};
use crate::{KlConfig, layouts};

/// The family `kl`.
#[derive(Debug)]
pub struct Kl;

impl VaeFamily for Kl {
    const NAME: &'static str = "kl";
    const ALIASES: &'static [&'static str] = &["AutoencoderKL"];
    const SUMMARY: &'static str = "AutoencoderKL, the image VAE of SD 1.x, SD 2.x, SDXL, SD3 and FLUX.1";
    const MARKERS: &'static [&'static str] = &layouts::MARKERS;
    type Config = KlConfig;

    fn spec(config: &KlConfig) -> Result<VaeSpec, VaeError> {
        config.spec()?.with_layers_of(|device| AutoencoderKl::new(config, Components::Both, device))
    }

    fn infer(weights: &Weights) -> Option<KlConfig> {
        layouts::infer(weights)
    }

    fn determines_scaling(weights: &Weights) -> bool {
        layouts::determines_scaling(weights)
    }

    fn fits(config: &KlConfig, weights: &Weights) -> bool {
        layouts::fits(config, weights)
    }

    fn scaling(config: &KlConfig) -> Option<String> {
        Some(config.scaling())
    }

    fn load(config: &KlConfig, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        let modules = AutoencoderKl::new(config, weights.components(), device)?;
        let weights = layouts::to_diffusers(weights, config).of_components(&["encoder.", "quant_conv."], &["decoder.", "post_quant_conv."]);
        LoadedVae::load(modules, weights, Self::spec(config)?, device, dtype)
    }
}

/// The modules of an `AutoencoderKL`, named as in diffusers.
#[derive(Module, Debug)]
pub struct AutoencoderKl {
    encoder: Option<Encoder>,
    decoder: Option<Decoder>,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
    #[module(skip)]
    in_channels: usize,
    #[module(skip)]
    latent_channels: usize,
}

impl AutoencoderKl {
    /// The modules, whose parameters take no memory before they are loaded.
    ///
    /// # Errors
    /// When the configuration is refused.
    pub fn new(config: &KlConfig, components: Components, device: &Device) -> Result<Self, VaeError> {
        config.check()?;
        let activation = config.act_fn.parse().unwrap_or(Activation::Silu);
        let style = Style { groups: config.norm_num_groups, activation, device };
        let pointwise = |channels: usize| Conv2d::pointwise([channels; 2], device);
        Ok(Self {
            encoder: components.encoder(|| Encoder::new(config, style)),
            decoder: components.decoder(|| Decoder::new(config, style)),
            quant_conv: components.encoder(|| config.use_quant_conv.then(|| pointwise(2 * config.latent_channels))).flatten(),
            post_quant_conv: components.decoder(|| config.use_post_quant_conv.then(|| pointwise(config.latent_channels))).flatten(),
            in_channels: config.in_channels,
            latent_channels: config.latent_channels,
        })
    }
}

impl VaeModules for AutoencoderKl {
    fn decoder(&self) -> Option<Coder<'_>> {
        let decoder = self.decoder.as_ref()?;
        let mut layers: Vec<Layer> = self.post_quant_conv.iter().map(Layer::Conv2d).collect();
        decoder.list(&mut layers);
        Some(Coder::new(self.latent_channels, layers))
    }

    fn encoder(&self) -> Option<Coder<'_>> {
        let encoder = self.encoder.as_ref()?;
        let mut layers = Vec::new();
        encoder.list(&mut layers);
        layers.extend(self.quant_conv.iter().map(Layer::Conv2d));
        Some(Coder::new(self.in_channels, layers))
    }
}

#[cfg(test)]
impl AutoencoderKl {
    /// Calls `check` with the blocks that the golden files hold.
    pub(crate) fn check_blocks(&self, check: crate::coders::Check) {
        self.encoder.iter().for_each(|encoder| encoder.check_blocks(check));
        self.decoder.iter().for_each(|decoder| decoder.check_blocks(check));
    }
}
