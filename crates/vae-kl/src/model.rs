use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use vae_core::layers::{Conv2d, Features};
use vae_core::{Components, Context, Vae, VaeError, VaeFamily, VaeSpec, Weights};

use crate::blocks::Style;
use crate::coders::{Decoder, Encoder};
use crate::{Activation, KlConfig, layouts};

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
        config.spec()
    }

    fn infer(weights: &Weights) -> Option<KlConfig> {
        layouts::infer(weights)
    }

    fn is_told(weights: &Weights) -> bool {
        layouts::is_told(weights)
    }

    fn fits(config: &KlConfig, weights: &Weights) -> bool {
        layouts::fits(config, weights)
    }

    fn scaling(config: &KlConfig) -> Option<String> {
        Some(config.scaling())
    }

    fn load(config: &KlConfig, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        let spec = config.spec()?;
        let components = weights.components();
        let weights = layouts::to_diffusers(weights, config).of_components(&["encoder.", "quant_conv."], &["decoder.", "post_quant_conv."]);
        let modules = weights.apply(AutoencoderKl::new(config, components, device)?, dtype)?;
        Ok(Box::new(KlVae { modules, spec, dtype, device: device.clone() }))
    }
}

/// The modules of an `AutoencoderKL`, named as in diffusers.
#[derive(Module, Debug)]
pub struct AutoencoderKl {
    encoder: Option<Encoder>,
    decoder: Option<Decoder>,
    quant_conv: Option<Conv2d>,
    post_quant_conv: Option<Conv2d>,
}

impl AutoencoderKl {
    /// Modules whose parameters take no memory before they are loaded.
    ///
    /// # Errors
    /// When the configuration is refused.
    pub fn new(config: &KlConfig, components: Components, device: &Device) -> Result<Self, VaeError> {
        config.spec()?;
        let activation = config.act_fn.parse().unwrap_or(Activation::Silu);
        let style = Style { groups: config.norm_num_groups, activation, device };
        let pointwise = |channels: usize| Conv2d::point([channels; 2], device);
        Ok(Self {
            encoder: components.encoder(|| Encoder::new(config, style)),
            decoder: components.decoder(|| Decoder::new(config, style)),
            quant_conv: components.encoder(|| config.use_quant_conv.then(|| pointwise(2 * config.latent_channels))).flatten(),
            post_quant_conv: components.decoder(|| config.use_post_quant_conv.then(|| pointwise(config.latent_channels))).flatten(),
        })
    }
}

#[derive(Debug)]
struct KlVae {
    modules: AutoencoderKl,
    spec: VaeSpec,
    dtype: DType,
    device: Device,
}

impl Vae for KlVae {
    fn spec(&self) -> &VaeSpec {
        &self.spec
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn device(&self) -> Device {
        self.device.clone()
    }

    fn decode(&self, latents: Tensor<5>, context: &Context) -> Result<Tensor<5>, VaeError> {
        self.spec.check_latents(latents.dims())?;
        let decoder = self.modules.decoder.as_ref().ok_or(VaeError::NotLoaded { component: "decoder" })?;
        let x = Features::new(latents.cast(self.dtype), context);
        let x = self.modules.post_quant_conv.iter().fold(x, |x, conv| conv.forward(x));
        Ok(decoder.forward(x).into())
    }

    fn encode(&self, samples: Tensor<5>, context: &Context) -> Result<Tensor<5>, VaeError> {
        self.spec.check_samples(samples.dims())?;
        let encoder = self.modules.encoder.as_ref().ok_or(VaeError::NotLoaded { component: "encoder" })?;
        let x = encoder.forward(Features::new(samples.cast(self.dtype), context));
        Ok(self.modules.quant_conv.iter().fold(x, |x, conv| conv.forward(x)).into())
    }

    fn to_device(&self, device: &Device) -> Box<dyn Vae> {
        let modules = self.modules.clone().to_device(device);
        Box::new(Self { modules, spec: self.spec.clone(), dtype: self.dtype, device: device.clone() })
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
