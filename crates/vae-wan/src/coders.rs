use burn::module::Module;
use burn::tensor::Device;
#[cfg(test)]
use burn::tensor::Tensor;
#[cfg(test)]
use tiling::Scale;
use vae_core::coder::Layer;
#[cfg(test)]
use vae_core::coder::PxMap;
use vae_core::layers::{Conv3d, RmsNorm};
use vae_core::operators::Activation;

use crate::WanConfig;
use crate::blocks::{Attention, DownLayer, MidBlock, ResidualDownBlock, Resnet, UpBlock};
use crate::resample::{Axes, Downsample};
#[cfg(test)]
use crate::resample::{SpreadShortcut, Upsample};

/// Samples to moments (diffusers, `WanEncoder3d`).
#[derive(Module, Debug)]
pub(crate) struct Encoder {
    conv_in: Conv3d,
    down_blocks: Vec<DownLayer>,
    mid_block: MidBlock,
    norm_out: RmsNorm,
    conv_out: Conv3d,
}

impl Encoder {
    pub(crate) fn new(config: &WanConfig, device: &Device) -> Self {
        let widths = config.encoder_widths();
        let blocks = widths.len() - 1;
        let mut layers = Vec::new();
        for (i, pair) in widths.windows(2).enumerate() {
            let downsampling = config.temperal_downsample.get(i).filter(|_| i + 1 < blocks).map(|&time| Axes::new(time));
            let [channels_in, channels_out] = [pair[0], pair[1]];
            if config.is_residual {
                layers.push(DownLayer::Block(ResidualDownBlock::new([channels_in, channels_out], config.num_res_blocks, downsampling, device)));
                continue;
            }
            for layer in 0..config.num_res_blocks {
                let from = if layer == 0 { channels_in } else { channels_out };
                layers.push(DownLayer::Resnet(Resnet::new([from, channels_out], device)));
                if config.attends_at(i) {
                    layers.push(DownLayer::Attention(Attention::new(channels_out, device)));
                }
            }
            layers.extend(downsampling.map(|axes| DownLayer::Downsample(Downsample::new(channels_out, axes, device))));
        }
        let last = widths[blocks];
        Self {
            conv_in: Conv3d::same([config.in_channels, widths[0]], device),
            down_blocks: layers,
            mid_block: MidBlock::new(last, device),
            norm_out: RmsNorm::new(last, device),
            conv_out: Conv3d::same([last, 2 * config.z_dim], device),
        }
    }

    /// From `[b, in_channels, t, h, w]`, one frame first and then multiples of the temporal ratio, to `[b, 2 * z_dim, t', h', w']`.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        layers.push(Layer::CausalConv3d(&self.conv_in));
        self.down_blocks.iter().for_each(|layer| layer.list(layers));
        self.mid_block.list(layers);
        layers.extend([Layer::RmsNorm(&self.norm_out, Activation::Silu), Layer::CausalConv3d(&self.conv_out)]);
    }
}

/// Latents to samples (diffusers, `WanDecoder3d`).
#[derive(Module, Debug)]
pub(crate) struct Decoder {
    conv_in: Conv3d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    norm_out: RmsNorm,
    conv_out: Conv3d,
}

impl Decoder {
    pub(crate) fn new(config: &WanConfig, device: &Device) -> Self {
        let widths = config.decoder_widths();
        let blocks = widths.len() - 1;
        let block = |i: usize| {
            let upsampling = (i + 1 < blocks).then(|| Axes::new(config.temperal_downsample[blocks - 2 - i]));
            let layers = config.num_res_blocks + 1;
            if config.is_residual {
                UpBlock::residual([widths[i], widths[i + 1]], layers, upsampling, device)
            } else {
                let from = if i == 0 { widths[0] } else { widths[i] / 2 };
                UpBlock::plain([from, widths[i + 1]], layers, upsampling, device)
            }
        };
        let last = widths[blocks];
        Self {
            conv_in: Conv3d::same([config.z_dim, widths[0]], device),
            mid_block: MidBlock::new(widths[0], device),
            up_blocks: (0..blocks).map(block).collect(),
            norm_out: RmsNorm::new(last, device),
            conv_out: Conv3d::same([last, config.out_channels], device),
        }
    }

    /// From `[b, z_dim, t, h, w]`, one frame first and then any number, to `[b, out_channels, t', h', w']`.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        layers.push(Layer::CausalConv3d(&self.conv_in));
        self.mid_block.list(layers);
        self.up_blocks.iter().for_each(|block| block.list(layers));
        layers.extend([Layer::RmsNorm(&self.norm_out, Activation::Silu), Layer::CausalConv3d(&self.conv_out)]);
    }
}

/// Takes the name of a layer of the golden files and the list of its layers.
#[cfg(test)]
pub(crate) type Check<'a> = &'a dyn Fn(&str, Vec<Layer>);

#[cfg(test)]
fn listed<'a>(list: impl FnOnce(&mut Vec<Layer<'a>>)) -> Vec<Layer<'a>> {
    let mut layers = Vec::new();
    list(&mut layers);
    layers
}

#[cfg(test)]
impl Encoder {
    /// Calls the checks with the layers that the golden files hold.
    pub(crate) fn check_blocks(&self, check: Check, check_stream: Check) {
        check_stream("mid", listed(|layers| self.mid_block.list(layers)));
        let samplers: Vec<&Downsample> = self
            .down_blocks
            .iter()
            .filter_map(|layer| match layer {
                DownLayer::Downsample(sampler) => Some(sampler),
                DownLayer::Block(block) => block.sampler(),
                DownLayer::Resnet(_) | DownLayer::Attention(_) => None,
            })
            .collect();
        for (name, in_time) in [("down2d", false), ("down3d", true)] {
            let sampler = samplers.iter().find(|sampler| sampler.is_temporal() == in_time).expect("a sampler of each kind");
            check_stream(name, listed(|layers| sampler.list(layers)));
        }
        for (index, layer) in self.down_blocks.iter().enumerate() {
            let DownLayer::Block(block) = layer else { continue };
            for frames in [1, 4] {
                check(&format!("mean.{index}.{frames}"), vec![Layer::Map(Box::new(block.shortcut()))]);
            }
        }
    }
}

#[cfg(test)]
impl Decoder {
    /// Calls the checks with the layers that the golden files hold.
    pub(crate) fn check_blocks(&self, check: Check, check_stream: Check) {
        check("attention", listed(|layers| self.mid_block.attention().list(layers)));
        let samplers: Vec<&Upsample> = self.up_blocks.iter().filter_map(UpBlock::sampler).collect();
        for (name, in_time) in [("up2d", false), ("up3d", true)] {
            let sampler = samplers.iter().find(|sampler| sampler.is_temporal() == in_time).expect("a sampler of each kind");
            check_stream(name, listed(|layers| sampler.list(layers)));
        }
        for (index, block) in self.up_blocks.iter().enumerate() {
            let Some(shortcut) = block.shortcut() else { continue };
            check(&format!("spread.{index}.first"), vec![Layer::Map(Box::new(shortcut))]);
            check(&format!("spread.{index}.later"), vec![Layer::Map(Box::new(Later(shortcut)))]);
        }
    }
}

/// A shortcut past later frames of a clip.
#[cfg(test)]
#[derive(Debug)]
struct Later(SpreadShortcut);

#[cfg(test)]
impl PxMap for Later {
    fn scale(&self) -> Scale {
        self.0.scale()
    }

    fn channels(&self, channels: usize) -> usize {
        self.0.channels(channels)
    }

    fn apply(&self, x: Tensor<5>, _: bool) -> Tensor<5> {
        self.0.apply(x, false)
    }
}
