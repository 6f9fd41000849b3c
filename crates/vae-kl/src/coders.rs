use burn::module::Module;
use vae_core::coder::Layer;
use vae_core::layers::{Conv2d, GroupNorm};
use vae_core::operators::Activation;

use crate::KlConfig;
use crate::blocks::{DownBlock, MidBlock, Style, UpBlock};

/// Samples to moments (diffusers, `Encoder`).
#[derive(Module, Debug)]
pub(crate) struct Encoder {
    conv_in: Conv2d,
    down_blocks: Vec<DownBlock>,
    mid_block: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    pub(crate) fn new(config: &KlConfig, style: Style) -> Self {
        let widths = &config.block_out_channels;
        let last = widths.len() - 1;
        let block = |i: usize| {
            let channels = [widths[i.saturating_sub(1)], widths[i]];
            DownBlock::new(&config.down_block_types[i], channels, config.layers_per_block, i != last, style)
        };
        Self {
            conv_in: Conv2d::same([config.in_channels, widths[0]], style.device),
            down_blocks: (0..=last).map(block).collect(),
            mid_block: MidBlock::new(widths[last], config.mid_block_add_attention, style),
            conv_norm_out: style.norm(widths[last]),
            conv_out: Conv2d::same([widths[last], 2 * config.latent_channels], style.device),
        }
    }

    /// From `[b, in_channels, 1, h, w]` to `[b, 2 * latent_channels, 1, h / ratio, w / ratio]`.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        layers.push(Layer::Conv2d(&self.conv_in));
        self.down_blocks.iter().for_each(|block| block.list(layers));
        self.mid_block.list(layers);
        layers.extend([Layer::GroupNorm(&self.conv_norm_out, Activation::Silu), Layer::Conv2d(&self.conv_out)]);
    }
}

/// Latents to samples (diffusers, `Decoder`).
#[derive(Module, Debug)]
pub(crate) struct Decoder {
    conv_in: Conv2d,
    mid_block: MidBlock,
    up_blocks: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    pub(crate) fn new(config: &KlConfig, style: Style) -> Self {
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let last = widths.len() - 1;
        let block = |i: usize| {
            let channels = [widths[i.saturating_sub(1)], widths[i]];
            UpBlock::new(&config.up_block_types[i], channels, config.layers_per_block + 1, i != last, style)
        };
        Self {
            conv_in: Conv2d::same([config.latent_channels, widths[0]], style.device),
            mid_block: MidBlock::new(widths[0], config.mid_block_add_attention, style),
            up_blocks: (0..=last).map(block).collect(),
            conv_norm_out: style.norm(widths[last]),
            conv_out: Conv2d::same([widths[last], config.out_channels], style.device),
        }
    }

    /// From `[b, latent_channels, 1, h, w]` to `[b, out_channels, 1, h * ratio, w * ratio]`.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        layers.push(Layer::Conv2d(&self.conv_in));
        self.mid_block.list(layers);
        self.up_blocks.iter().for_each(|block| block.list(layers));
        layers.extend([Layer::GroupNorm(&self.conv_norm_out, Activation::Silu), Layer::Conv2d(&self.conv_out)]);
    }
}

/// Takes the name of a block of the golden files and its layers.
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
    pub(crate) fn check_blocks(&self, check: Check) {
        check("down", listed(|layers| self.down_blocks[self.down_blocks.len() - 2].list(layers)));
        check("mid", listed(|layers| self.mid_block.list(layers)));
        if let Some(attention) = self.mid_block.attention() {
            check("attention", listed(|layers| attention.list(layers)));
        }
    }
}

#[cfg(test)]
impl Decoder {
    pub(crate) fn check_blocks(&self, check: Check) {
        check("up", listed(|layers| self.up_blocks[0].list(layers)));
        let shortcut = self.up_blocks.iter().rev().map(UpBlock::first_resnet).find(|resnet| resnet.has_shortcut());
        check("shortcut", listed(|layers| shortcut.expect("a block that changes its width").list(layers)));
    }
}
