use std::num::NonZeroUsize;

use burn::module::Module;
use burn::tensor::Device;
use vae_core::coder::Layer;
use vae_core::layers::{Conv2d, Conv3d, RmsNorm};
use vae_core::operators::Activation;

use crate::resample::{Axes, Downsample, MeanShortcut, SpreadShortcut, Upsample};

/// Norm, SiLU, convolution, twice, and the input added (diffusers, `WanResidualBlock`).
#[derive(Module, Debug)]
pub(crate) struct Resnet {
    norm1: RmsNorm,
    conv1: Conv3d,
    norm2: RmsNorm,
    conv2: Conv3d,
    conv_shortcut: Option<Conv3d>,
}

impl Resnet {
    pub(crate) fn new([channels_in, channels_out]: [usize; 2], device: &Device) -> Self {
        Self {
            norm1: RmsNorm::new(channels_in, device),
            conv1: Conv3d::same([channels_in, channels_out], device),
            norm2: RmsNorm::new(channels_out, device),
            conv2: Conv3d::same([channels_out; 2], device),
            conv_shortcut: (channels_in != channels_out).then(|| Conv3d::temporal(NonZeroUsize::MIN, [channels_in, channels_out], device)),
        }
    }

    /// From `[b, in, t, h, w]` to `[b, out, t, h, w]`.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        let shortcut = self.conv_shortcut.as_ref().map(|conv| Box::new(Layer::Conv3d(conv)));
        layers.extend([
            Layer::Branch(None),
            Layer::RmsNorm(&self.norm1, Activation::Silu),
            Layer::CausalConv3d(&self.conv1),
            Layer::RmsNorm(&self.norm2, Activation::Silu),
            Layer::CausalConv3d(&self.conv2),
            Layer::Add(shortcut),
        ]);
    }
}

/// Attention over the px of each frame with one head, and the input added (diffusers, `WanAttentionBlock`).
#[derive(Module, Debug)]
pub(crate) struct Attention {
    norm: RmsNorm,
    to_qkv: Conv2d,
    proj: Conv2d,
}

impl Attention {
    pub(crate) fn new(channels: usize, device: &Device) -> Self {
        let [to_qkv, proj] = [3, 1].map(|times| Conv2d::pointwise([channels, times * channels], device));
        Self { norm: RmsNorm::new(channels, device), to_qkv, proj }
    }

    /// From `[b, c, t, h, w]` to the same.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        // Queries, keys and values.
        let part = |part: usize| Layer::Conv2dPart(&self.to_qkv, part, 3);
        layers.extend([
            Layer::Branch(None),
            Layer::RmsNorm(&self.norm, Activation::None),
            Layer::Branch(Some(part(1).into())),
            Layer::Branch(Some(part(2).into())),
            part(0),
            Layer::Attend,
            Layer::Conv2d(&self.proj),
            Layer::Add(None),
        ]);
    }
}

/// Residual blocks with attention between them (diffusers, `WanMidBlock`).
#[derive(Module, Debug)]
pub(crate) struct MidBlock {
    attentions: Vec<Attention>,
    resnets: Vec<Resnet>,
}

impl MidBlock {
    pub(crate) fn new(channels: usize, device: &Device) -> Self {
        let resnets = (0..2).map(|_| Resnet::new([channels; 2], device)).collect();
        Self { attentions: vec![Attention::new(channels, device)], resnets }
    }

    /// From `[b, c, t, h, w]` to the same.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        self.resnets[0].list(layers);
        self.attentions.iter().for_each(|attention| attention.list(layers));
        self.resnets[1].list(layers);
    }

    #[cfg(test)]
    pub(crate) fn attention(&self) -> &Attention {
        &self.attentions[0]
    }
}

/// An entry of the encoder's list: Wan 2.1 counts single layers, Wan 2.2 whole blocks.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "a model has a dozen")]
pub(crate) enum DownLayer {
    Resnet(Resnet),
    Attention(Attention),
    Downsample(Downsample),
    Block(ResidualDownBlock),
}

impl DownLayer {
    /// From `[b, in, t, h, w]` to `[b, out, t', h', w']`.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        match self {
            Self::Resnet(resnet) => resnet.list(layers),
            Self::Attention(attention) => attention.list(layers),
            Self::Downsample(sampler) => sampler.list(layers),
            Self::Block(block) => block.list(layers),
        }
    }
}

/// Residual blocks and a downsampling unless it is the last, with a shortcut past all of it (diffusers, `WanResidualDownBlock`).
#[derive(Module, Debug)]
pub(crate) struct ResidualDownBlock {
    resnets: Vec<Resnet>,
    downsampler: Option<Downsample>,
    #[module(skip)]
    shortcut: MeanShortcut,
}

impl ResidualDownBlock {
    pub(crate) fn new([channels_in, channels_out]: [usize; 2], layers: usize, downsampling: Option<Axes>, device: &Device) -> Self {
        Self {
            resnets: resnets([channels_in, channels_out], layers, device),
            downsampler: downsampling.map(|axes| Downsample::new(channels_out, axes, device)),
            shortcut: MeanShortcut { channels_out, factors: factors(downsampling) },
        }
    }

    fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        layers.push(Layer::Branch(None));
        self.resnets.iter().for_each(|resnet| resnet.list(layers));
        self.downsampler.iter().for_each(|sampler| sampler.list(layers));
        layers.push(Layer::Add(Some(Box::new(Layer::Map(Box::new(self.shortcut))))));
    }

    #[cfg(test)]
    pub(crate) fn shortcut(&self) -> MeanShortcut {
        self.shortcut
    }

    #[cfg(test)]
    pub(crate) fn sampler(&self) -> Option<&Downsample> {
        self.downsampler.as_ref()
    }
}

/// Residual blocks and an upsampling unless it is the last; in Wan 2.2 with a shortcut past a block that upsamples (diffusers, `WanUpBlock` and
/// `WanResidualUpBlock`).
#[derive(Module, Debug)]
pub(crate) struct UpBlock {
    resnets: Vec<Resnet>,
    /// Wan 2.1's name for the upsampling.
    upsamplers: Vec<Upsample>,
    /// Wan 2.2's.
    upsampler: Option<Upsample>,
    #[module(skip)]
    shortcut: Option<SpreadShortcut>,
}

impl UpBlock {
    /// A block of Wan 2.1, whose upsampling halves the number of channels.
    pub(crate) fn plain([channels_in, channels_out]: [usize; 2], layers: usize, upsampling: Option<Axes>, device: &Device) -> Self {
        let sampler = |axes| Upsample::new([channels_out, channels_out / 2], axes, device);
        Self {
            resnets: resnets([channels_in, channels_out], layers, device),
            upsamplers: upsampling.map(sampler).into_iter().collect(),
            upsampler: None,
            shortcut: None,
        }
    }

    /// A block of Wan 2.2.
    pub(crate) fn residual([channels_in, channels_out]: [usize; 2], layers: usize, upsampling: Option<Axes>, device: &Device) -> Self {
        Self {
            resnets: resnets([channels_in, channels_out], layers, device),
            upsamplers: Vec::new(),
            upsampler: upsampling.map(|axes| Upsample::new([channels_out; 2], axes, device)),
            shortcut: upsampling.map(|_| SpreadShortcut { channels_out, factors: factors(upsampling) }),
        }
    }

    /// From `[b, in, t, h, w]` to `[b, out, t', 2 * h, 2 * w]`, or `[b, out, t, h, w]` without an upsampling.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        layers.extend(self.shortcut.map(|_| Layer::Branch(None)));
        self.resnets.iter().for_each(|resnet| resnet.list(layers));
        self.upsamplers.iter().chain(&self.upsampler).for_each(|sampler| sampler.list(layers));
        layers.extend(self.shortcut.map(|shortcut| Layer::Add(Some(Box::new(Layer::Map(Box::new(shortcut)))))));
    }

    #[cfg(test)]
    pub(crate) fn shortcut(&self) -> Option<SpreadShortcut> {
        self.shortcut
    }

    #[cfg(test)]
    pub(crate) fn sampler(&self) -> Option<&Upsample> {
        self.upsamplers.first().or(self.upsampler.as_ref())
    }
}

fn resnets([channels_in, channels_out]: [usize; 2], layers: usize, device: &Device) -> Vec<Resnet> {
    (0..layers).map(|layer| Resnet::new([if layer == 0 { channels_in } else { channels_out }, channels_out], device)).collect()
}

fn factors(axes: Option<Axes>) -> [usize; 2] {
    match axes {
        None => [1, 1],
        Some(Axes::Space) => [1, 2],
        Some(Axes::SpaceAndTime) => [2, 2],
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Tensor;
    use vae_core::coder::{Coder, FrameCache};
    use vae_core::layers::Features;
    use vae_core::{Context, testing};

    use super::*;

    #[test]
    fn a_residual_block_starts_at_most_ten_kernels_on_a_gpu() {
        let count = testing::kernels_of("blocks::tests::a_residual_block_starts_at_most_ten_kernels_on_a_gpu", |device| {
            let block = testing::prepared(Resnet::new([96, 192], device));
            let context = Context::default();
            let x = Features::new(Tensor::zeros([1, 96, 1, 24, 40], device), &context);
            let mut cache = FrameCache::new(&context);
            move || {
                let mut layers = Vec::new();
                block.list(&mut layers);
                drop(Coder::new(96, layers).forward(x.clone(), &mut cache).unwrap());
            }
        });
        assert!(count.is_none_or(|count| count <= 10), "{count:?} kernels");
    }
}
