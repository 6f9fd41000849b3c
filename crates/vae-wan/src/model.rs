use burn::module::Module;
use burn::tensor::{DType, Device, Tensor};
use vae_core::layers::Features;
use vae_core::{Components, Context, FrameStream, Vae, VaeError, VaeFamily, VaeSpec, Weights, stream_frames};

use crate::cache::{FrameCache, Pointwise};
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

    fn is_told(weights: &Weights) -> bool {
        layouts::is_told(weights)
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

/// The family `qwen-image`: Wan 2.1 under another name, for pictures.
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
    let components = weights.components();
    let weights = layouts::to_modules(weights).of_components(&["encoder.", "quant_conv."], &["decoder.", "post_quant_conv."]);
    let modules = weights.apply(AutoencoderKlWan::new(config, components, device)?, dtype)?;
    Ok(Box::new(WanVae { modules, spec, dtype, device: device.clone() }))
}

/// The modules of an `AutoencoderKLWan`, named as in diffusers.
#[derive(Module, Debug)]
pub struct AutoencoderKlWan {
    pub(crate) encoder: Option<Encoder>,
    quant_conv: Option<Pointwise>,
    post_quant_conv: Option<Pointwise>,
    pub(crate) decoder: Option<Decoder>,
}

impl AutoencoderKlWan {
    /// Modules whose parameters take no memory before they are loaded.
    ///
    /// # Errors
    /// When the configuration is refused.
    pub fn new(config: &WanConfig, components: Components, device: &Device) -> Result<Self, VaeError> {
        config.spec()?;
        Ok(Self {
            encoder: components.encoder(|| Encoder::new(config, device)),
            quant_conv: components.encoder(|| Pointwise::new([2 * config.z_dim; 2], device)),
            post_quant_conv: components.decoder(|| Pointwise::new([config.z_dim; 2], device)),
            decoder: components.decoder(|| Decoder::new(config, device)),
        })
    }
}

#[derive(Debug)]
struct WanVae {
    modules: AutoencoderKlWan,
    spec: VaeSpec,
    dtype: DType,
    device: Device,
}

impl Vae for WanVae {
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
        stream_frames(self.decode_stream(context), latents, self.spec.decode_geometry().frames, 1)
    }

    fn encode(&self, samples: Tensor<5>, context: &Context) -> Result<Tensor<5>, VaeError> {
        self.spec.check_samples(samples.dims())?;
        stream_frames(self.encode_stream(context), samples, self.spec.encode_geometry().frames, 1)
    }

    fn decode_stream(&self, context: &Context) -> FrameStream<'_> {
        let (context, mut cache) = (context.clone(), FrameCache::default());
        Box::new(move |latents| {
            let (Some(decoder), Some(conv)) = (&self.modules.decoder, &self.modules.post_quant_conv) else {
                return Err(VaeError::NotLoaded { component: "decoder" });
            };
            cache.rewind();
            let x = conv.forward(Features::new(latents.cast(self.dtype), &context));
            Ok(unpatchify(decoder.forward(x, &mut cache).into(), self.spec.patch))
        })
    }

    fn encode_stream(&self, context: &Context) -> FrameStream<'_> {
        let (context, mut cache) = (context.clone(), FrameCache::default());
        Box::new(move |samples| {
            let (Some(encoder), Some(conv)) = (&self.modules.encoder, &self.modules.quant_conv) else {
                return Err(VaeError::NotLoaded { component: "encoder" });
            };
            cache.rewind();
            let x = patchify(samples.cast(self.dtype), self.spec.patch, self.spec.spatial_ratio);
            Ok(conv.forward(encoder.forward(Features::new(x, &context), &mut cache)).into())
        })
    }

    fn to_device(&self, device: &Device) -> Box<dyn Vae> {
        let modules = self.modules.clone().to_device(device);
        Box::new(Self { modules, spec: self.spec.clone(), dtype: self.dtype, device: device.clone() })
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
