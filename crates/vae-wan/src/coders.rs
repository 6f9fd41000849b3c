use burn::module::Module;
use burn::tensor::Device;
use vae_core::layers::{Conv3d, Features, RmsNorm};
use vae_core::operators::Activation;

use crate::WanConfig;
use crate::blocks::{Attention, DownLayer, MidBlock, ResidualDownBlock, Resnet, UpBlock};
use crate::cache::{FrameCache, convolve_causally};
#[cfg(test)]
use crate::resample::Upsample;
use crate::resample::{Axes, Downsample};

/// Samples to moments (diffusers, `WanEncoder3d`), as a list of stages: stem, down layers, middle, head.
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

    /// # Shapes
    /// `[b, in_channels, t, h, w]`, one frame first and then multiples of the temporal ratio, to `[b, 2 * z_dim, t', h', w']`.
    pub(crate) fn forward(&self, samples: Features, cache: &mut FrameCache) -> Features {
        let x = convolve_causally(&self.conv_in, samples, cache, None);
        let x = self.down_blocks.iter().fold(x, |x, layer| layer.forward(x, cache));
        let x = self.mid_block.forward(x, cache);
        convolve_causally(&self.conv_out, self.norm_out.forward_activated(x, Activation::Silu), cache, None)
    }
}

/// Latents to samples (diffusers, `WanDecoder3d`), as a list of stages: stem, middle, up blocks, head.
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

    /// # Shapes
    /// `[b, z_dim, t, h, w]`, one frame first and then any number, to `[b, out_channels, t', h', w']`.
    pub(crate) fn forward(&self, latents: Features, cache: &mut FrameCache) -> Features {
        let x = self.mid_block.forward(convolve_causally(&self.conv_in, latents, cache, None), cache);
        let x = self.up_blocks.iter().fold(x, |x, block| block.forward(x, cache));
        convolve_causally(&self.conv_out, self.norm_out.forward_activated(x, Activation::Silu), cache, None)
    }
}

#[cfg(test)]
pub(crate) type Check<'a> = &'a dyn Fn(&str, &dyn Fn(Features) -> Features);

#[cfg(test)]
pub(crate) type CheckStream<'a> = &'a dyn Fn(&str, &dyn Fn(Features, &mut FrameCache) -> Features);

#[cfg(test)]
impl Encoder {
    /// Calls the checks with the layers that the golden files hold.
    pub(crate) fn check_blocks(&self, check: Check, check_stream: CheckStream) {
        check_stream("mid", &|x, cache| self.mid_block.forward(x, cache));
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
            check_stream(name, &|x, cache| sampler.forward(x, cache));
        }
        for (index, layer) in self.down_blocks.iter().enumerate() {
            let DownLayer::Block(block) = layer else { continue };
            for frames in [1, 4] {
                check(&format!("mean.{index}.{frames}"), &|x| block.shortcut().forward(x));
            }
        }
    }
}

#[cfg(test)]
impl Decoder {
    /// Calls the checks with the layers that the golden files hold.
    pub(crate) fn check_blocks(&self, check: Check, check_stream: CheckStream) {
        check("attention", &|x| self.mid_block.attention().forward(x));
        let samplers: Vec<&Upsample> = self.up_blocks.iter().filter_map(UpBlock::sampler).collect();
        for (name, in_time) in [("up2d", false), ("up3d", true)] {
            let sampler = samplers.iter().find(|sampler| sampler.is_temporal() == in_time).expect("a sampler of each kind");
            check_stream(name, &|x, cache| sampler.forward(x, cache));
        }
        for (index, block) in self.up_blocks.iter().enumerate() {
            let Some(shortcut) = block.shortcut() else { continue };
            check(&format!("spread.{index}.first"), &|x| shortcut.forward(x, true));
            check(&format!("spread.{index}.later"), &|x| shortcut.forward(x, false));
        }
    }
}
