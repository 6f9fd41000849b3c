//! A VAE family from outside: `AutoencoderTiny` of diffusers (TAESD), with the tiles that diffusers cuts for it and an executor of its own.

mod executor;
#[cfg(test)]
mod tests;
mod tiles;

use burn::module::Module;
use burn::tensor::{DType, Device};
use serde::{Deserialize, Serialize};
use tiling::{BlendConfig, GridConfig};
use vae_core::layers::{Conv2d, Conv2dOptions, Features};
use vae_core::operators::{Activation, Padding};
use vae_core::{
    Context, FamilyTiling, FrameStream, LatentNorm, LoadedVae, PosteriorKind, Tiling, Vae, VaeError, VaeFamily, VaeModules, VaeSpec, Weights,
};

pub use executor::Zigzag;
pub use tiles::{TinyBlend, TinyGrid};

vae_core::register_vae!(Tiny);

/// The family.
pub struct Tiny;

/// The fields of upstream's `config.json`. Others are ignored with a warning.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "named as upstream")]
pub struct TinyConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    pub latent_channels: usize,
    pub block_out_channels: Vec<usize>,
    pub encoder_block_out_channels: Vec<usize>,
    pub decoder_block_out_channels: Vec<usize>,
    pub num_encoder_blocks: Vec<usize>,
    pub num_decoder_blocks: Vec<usize>,
    pub act_fn: String,
    pub upsample_fn: String,
    pub upsampling_scaling_factor: usize,
    pub scaling_factor: f32,
    pub shift_factor: f32,
    pub latent_magnitude: f32,
    pub latent_shift: f32,
    pub force_upcast: bool,
}

impl Default for TinyConfig {
    fn default() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 4,
            block_out_channels: vec![64; 4],
            encoder_block_out_channels: vec![64; 4],
            decoder_block_out_channels: vec![64; 4],
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            act_fn: "relu".to_owned(),
            upsample_fn: "nearest".to_owned(),
            upsampling_scaling_factor: 2,
            scaling_factor: 1.0,
            shift_factor: 0.0,
            latent_magnitude: 3.0,
            latent_shift: 0.5,
            force_upcast: false,
        }
    }
}

impl VaeFamily for Tiny {
    const NAME: &'static str = "tiny";
    const ALIASES: &'static [&'static str] = &["AutoencoderTiny"];
    const SUMMARY: &'static str = "AutoencoderTiny (TAESD), an example of a family from outside";
    const MARKERS: &'static [&'static str] = &["encoder.layers.0.weight", "decoder.layers.0.weight"];
    type Config = TinyConfig;

    fn spec(config: &TinyConfig) -> Result<VaeSpec, VaeError> {
        let TinyConfig { num_encoder_blocks: down, num_decoder_blocks: up, .. } = config;
        VaeError::check_range("num_encoder_blocks", down.len(), 1..=8)?;
        VaeError::check_range("num_decoder_blocks", up.len(), down.len()..=down.len())?;
        for &blocks in down.iter().chain(up) {
            VaeError::check_range("num_encoder_blocks and num_decoder_blocks", blocks, 0..=64)?;
        }
        for channels in [config.in_channels, config.out_channels, config.latent_channels] {
            VaeError::check_range("in_channels, out_channels and latent_channels", channels, 1..=1024)?;
        }
        VaeError::check_range("upsampling_scaling_factor", config.upsampling_scaling_factor, 2..=2)?;
        if (config.act_fn.as_str(), config.upsample_fn.as_str()) != ("relu", "nearest") {
            return Err(VaeError::family(format!("only relu and nearest are implemented, not {} and {}", config.act_fn, config.upsample_fn)));
        }
        let width = *width(&config.decoder_block_out_channels, up)?.max(width(&config.encoder_block_out_channels, down)?);
        let tiling = Tiling {
            grid: GridConfig::of(&TinyGrid::default()).map_err(VaeError::family)?,
            blend: BlendConfig::of(&TinyBlend {}).map_err(VaeError::family)?,
        };
        Ok(VaeSpec {
            output_channels: config.out_channels,
            // An encode gives latents.
            posterior: PosteriorKind::None,
            latent_norm: LatentNorm { scale: vec![1.0 / config.scaling_factor], shift: vec![config.shift_factor] },
            tiling: FamilyTiling { decode: Some(tiling.clone()), encode: Some(tiling) },
            // A residual block at full size: its input, and the input and the output of one of its convolutions.
            peak_values_per_px: [3 * width; 2],
            ..VaeSpec::image(config.in_channels, config.latent_channels, 1 << (down.len() - 1))
        })
    }

    fn load(config: &TinyConfig, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        let spec = Self::spec(config)?;
        let components = weights.components();
        let modules = AutoencoderTiny {
            encoder: components.encoder(|| Layers::encoder(config, device)).transpose()?,
            decoder: components.decoder(|| Layers::decoder(config, device)).transpose()?,
        };
        LoadedVae::load(modules, weights.of_components(&["encoder."], &["decoder."]), spec, device, dtype)
    }
}

/// The width of all blocks: upstream's convolutions between blocks do not change it.
fn width<'a>(widths: &'a [usize], blocks: &[usize]) -> Result<&'a usize, VaeError> {
    match widths {
        [first, others @ ..] if widths.len() == blocks.len() && others.iter().all(|width| width == first) && (1..=4096).contains(first) => Ok(first),
        _ => Err(VaeError::family(format!("{} blocks of one width from 1 to 4096 are expected, not {widths:?}", blocks.len()))),
    }
}

/// The modules, named as in diffusers.
#[derive(Module, Debug)]
struct AutoencoderTiny {
    encoder: Option<Layers>,
    decoder: Option<Layers>,
}

/// An `nn.Sequential`: the names of its tensors begin with their position. What has no tensors is `None`.
#[derive(Module, Debug)]
struct Layers {
    layers: Vec<Option<Layer>>,
}

/// The name of a variant is no part of the names of its tensors.
#[derive(Module, Debug)]
enum Layer {
    Conv(Conv2d),
    Block(Block),
}

/// A residual block of three convolutions (diffusers, `AutoencoderTinyBlock`), with `None` where upstream has a ReLU.
#[derive(Module, Debug)]
struct Block {
    conv: Vec<Option<Conv2d>>,
}

impl Layers {
    fn encoder(config: &TinyConfig, device: &Device) -> Result<Self, VaeError> {
        let width = config.encoder_block_out_channels[0];
        let mut layers = vec![Some(Layer::Conv(Conv2d::same([config.in_channels, width], device)))];
        for (stage, &blocks) in config.num_encoder_blocks.iter().enumerate() {
            if stage > 0 {
                let down = Conv2dOptions { stride: [2, 2], padding: Padding::all(1), bias: false, ..Conv2dOptions::default() };
                layers.push(Some(Layer::Conv(Conv2d::new([width; 2], down, device)?)));
            }
            layers.extend((0..blocks).map(|_| Some(Layer::Block(Block::new(width, device)))));
        }
        layers.push(Some(Layer::Conv(Conv2d::same([width, config.latent_channels], device))));
        Ok(Self { layers })
    }

    fn decoder(config: &TinyConfig, device: &Device) -> Result<Self, VaeError> {
        let width = config.decoder_block_out_channels[0];
        // The second layer is a ReLU.
        let mut layers = vec![Some(Layer::Conv(Conv2d::same([config.latent_channels, width], device))), None];
        for (stage, &blocks) in config.num_decoder_blocks.iter().enumerate() {
            layers.extend((0..blocks).map(|_| Some(Layer::Block(Block::new(width, device)))));
            if stage + 1 < config.num_decoder_blocks.len() {
                let bare = Conv2dOptions { bias: false, ..Conv2dOptions::default() };
                // An upsampling, then a convolution.
                layers.extend([None, Some(Layer::Conv(Conv2d::new([width; 2], bare, device)?))]);
            }
        }
        layers.push(Some(Layer::Conv(Conv2d::same([width, config.out_channels], device))));
        Ok(Self { layers })
    }

    fn forward(&self, x: Features) -> Features {
        self.layers.iter().enumerate().fold(x, |x, (position, layer)| match layer {
            Some(Layer::Conv(conv)) => conv.forward(x),
            Some(Layer::Block(block)) => block.forward(x),
            None if position == 1 => x.activate(Activation::Relu),
            None => x.upsample_nearest2x(),
        })
    }
}

impl Block {
    fn new(width: usize, device: &Device) -> Self {
        let conv = || Some(Conv2d::same([width; 2], device));
        Self { conv: vec![conv(), None, conv(), None, conv()] }
    }

    fn forward(&self, x: Features) -> Features {
        let [first, middle, last] = [0, 2, 4].map(|position| self.conv[position].as_ref().expect("a convolution"));
        let y = middle.forward(first.forward(x.clone()).activate(Activation::Relu)).activate(Activation::Relu);
        last.forward_residual(y, x).activate(Activation::Relu)
    }
}

impl VaeModules for AutoencoderTiny {
    fn decode_stream<'a>(&'a self, _: &'a VaeSpec, context: &Context) -> Option<FrameStream<'a>> {
        let (decoder, context) = (self.decoder.as_ref()?, context.clone());
        Some(Box::new(move |latents| {
            let x = Features::new((latents / 3.0).tanh() * 3.0, &context);
            Ok(burn::tensor::Tensor::from(decoder.forward(x)) * 2.0 - 1.0)
        }))
    }

    fn encode_stream<'a>(&'a self, spec: &'a VaeSpec, context: &Context) -> Option<FrameStream<'a>> {
        let (encoder, context) = (self.encoder.as_ref()?, context.clone());
        Some(Box::new(move |samples| {
            // Sides round down; upstream's stride with a border all around would round up.
            let [b, c, t, h, w] = samples.dims();
            let [h, w] = [h, w].map(|side| side / spec.spatial_ratio * spec.spatial_ratio);
            let whole = samples.slice([0..b, 0..c, 0..t, 0..h, 0..w]);
            Ok(encoder.forward(Features::new((whole + 1.0) / 2.0, &context)).into())
        }))
    }
}
