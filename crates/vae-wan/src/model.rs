use std::num::NonZeroUsize;

use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use vae_core::layers::{Conv3d, Features};
use vae_core::operators::TemporalWindow;
use vae_core::{Components, Context, FrameStream, LoadedVae, Vae, VaeError, VaeFamily, VaeModules, VaeSpec, Weights};

use crate::cache::FrameCache;
use crate::coders::{Decoder, Encoder};
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
        config.spec()
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
        load(config, config.spec()?, weights, device, dtype)
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
        config.spec()
    }

    fn fits(config: &QwenImageConfig, weights: &Weights) -> bool {
        layouts::fits(&config.to_wan(), weights)
    }

    fn scaling(config: &QwenImageConfig) -> Option<String> {
        Some(config.to_wan().scaling())
    }

    fn load(config: &QwenImageConfig, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        load(&config.to_wan(), config.spec()?, weights, device, dtype)
    }
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
}

impl AutoencoderKlWan {
    /// The modules, whose parameters take no memory before they are loaded.
    ///
    /// # Errors
    /// When the configuration is refused.
    pub fn new(config: &WanConfig, components: Components, device: &Device) -> Result<Self, VaeError> {
        config.spec()?;
        Ok(Self {
            encoder: components.encoder(|| Encoder::new(config, device)),
            quant_conv: components.encoder(|| Conv3d::temporal(NonZeroUsize::MIN, [2 * config.z_dim; 2], device)),
            post_quant_conv: components.decoder(|| Conv3d::temporal(NonZeroUsize::MIN, [config.z_dim; 2], device)),
            decoder: components.decoder(|| Decoder::new(config, device)),
        })
    }
}

impl VaeModules for AutoencoderKlWan {
    fn decoder<'a>(&'a self, spec: &'a VaeSpec, context: &Context) -> Option<FrameStream<'a>> {
        let (decoder, conv) = (self.decoder.as_ref()?, self.post_quant_conv.as_ref()?);
        let (context, mut cache) = (context.clone(), FrameCache::new(context));
        Some(Box::new(move |latents| {
            cache.rewind()?;
            let x = conv.forward(Features::new(latents, &context), TemporalWindow::EACH);
            Ok(unpatchify(decoder.forward(x, &mut cache).into(), spec.patch))
        }))
    }

    fn encoder<'a>(&'a self, spec: &'a VaeSpec, context: &Context) -> Option<FrameStream<'a>> {
        let (encoder, conv) = (self.encoder.as_ref()?, self.quant_conv.as_ref()?);
        let (context, mut cache) = (context.clone(), FrameCache::new(context));
        Some(Box::new(move |samples| {
            cache.rewind()?;
            let x = Features::new(patchify(samples, spec.patch, spec.spatial_ratio), &context);
            Ok(conv.forward(encoder.forward(x, &mut cache), TemporalWindow::EACH).into())
        }))
    }
}

/// Patches of samples as channels, in the order channel, column, row (diffusers, `patchify`). Rows below and columns to the right that fill no latent px of `ratio` px
/// are left out: the shortcuts of such a model average whole blocks of px.
///
/// # Shapes
/// `[b, c, t, h, w]` to `[b, c * patch * patch, t, h / patch, w / patch]`, where h and w are rounded down to multiples of `ratio`.
fn patchify(samples: Tensor<5>, patch: usize, ratio: usize) -> Tensor<5> {
    if patch == 1 {
        return samples;
    }
    let [b, c, t, h, w] = samples.dims();
    let [h, w] = [h, w].map(|side| side / ratio * ratio / patch);
    let whole = samples.narrow(3, 0, h * patch).narrow(4, 0, w * patch);
    let patches = whole.reshape([b, c, t, h, patch, w, patch]).permute([0, 1, 6, 4, 2, 3, 5]);
    patches.reshape([b, c * patch * patch, t, h, w])
}

/// The inverse of [`patchify`] (diffusers, `unpatchify`).
///
/// # Shapes
/// `[b, c * patch * patch, t, h, w]` to `[b, c, t, h * patch, w * patch]`.
fn unpatchify(x: Tensor<5>, patch: usize) -> Tensor<5> {
    if patch == 1 {
        return x;
    }
    let [b, c, t, h, w] = x.dims();
    let channels = c / (patch * patch);
    let patches = x.reshape([b, channels, patch, patch, t, h, w]).permute([0, 1, 4, 5, 3, 6, 2]);
    patches.reshape([b, channels, t, h * patch, w * patch])
}
