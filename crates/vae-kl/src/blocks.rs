use burn::module::Module;
use burn::tensor::Device;
use vae_core::coder::Layer;
use vae_core::layers::{Conv2d, GroupNorm, Linear};
use vae_core::operators::Activation;

const EPSILON: f64 = 1e-6;

/// Down blocks that are implemented: plain, and with attention.
pub(crate) const DOWN_BLOCKS: [&str; 2] = ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"];
/// Up blocks that are implemented: plain, and with attention.
pub(crate) const UP_BLOCKS: [&str; 2] = ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"];

/// What every block of a coder is built with.
#[derive(Clone, Copy)]
pub(crate) struct Style<'a> {
    pub(crate) groups: usize,
    pub(crate) activation: Activation,
    pub(crate) device: &'a Device,
}

impl Style<'_> {
    pub(crate) fn norm(&self, channels: usize) -> GroupNorm {
        GroupNorm::new(self.groups, channels, EPSILON, self.device)
    }
}

/// Norm, activation, convolution, twice, and the input added (diffusers, `ResnetBlock2D`).
#[derive(Module, Debug)]
pub(crate) struct Resnet {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    conv_shortcut: Option<Conv2d>,
    #[module(skip)]
    activation: Activation,
}

impl Resnet {
    pub(crate) fn new(channels_in: usize, channels_out: usize, style: Style) -> Self {
        let device = style.device;
        Self {
            norm1: style.norm(channels_in),
            conv1: Conv2d::same([channels_in, channels_out], device),
            norm2: style.norm(channels_out),
            conv2: Conv2d::same([channels_out, channels_out], device),
            conv_shortcut: (channels_in != channels_out).then(|| Conv2d::pointwise([channels_in, channels_out], device)),
            activation: style.activation,
        }
    }

    /// From `[b, in, 1, h, w]` to `[b, out, 1, h, w]`.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        let shortcut = self.conv_shortcut.as_ref().map(|conv| Box::new(Layer::Conv2d(conv)));
        layers.extend([
            Layer::Branch(None),
            Layer::GroupNorm(&self.norm1, self.activation),
            Layer::Conv2d(&self.conv1),
            Layer::GroupNorm(&self.norm2, self.activation),
            Layer::Conv2d(&self.conv2),
            Layer::Add(shortcut),
        ]);
    }

    #[cfg(test)]
    pub(crate) fn has_shortcut(&self) -> bool {
        self.conv_shortcut.is_some()
    }
}

/// Attention over all px with one head, and the input added (diffusers, `Attention` as the VAE uses it).
#[derive(Module, Debug)]
pub(crate) struct Attention {
    group_norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Vec<Linear>,
}

impl Attention {
    pub(crate) fn new(channels: usize, style: Style) -> Self {
        let linear = || Linear::square(channels, style.device);
        Self { group_norm: style.norm(channels), to_q: linear(), to_k: linear(), to_v: linear(), to_out: vec![linear()] }
    }

    /// From `[b, c, 1, h, w]` to the same.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        layers.extend([
            Layer::Branch(None),
            Layer::GroupNorm(&self.group_norm, Activation::None),
            Layer::Branch(Some(Layer::Linear(&self.to_k).into())),
            Layer::Branch(Some(Layer::Linear(&self.to_v).into())),
            Layer::Linear(&self.to_q),
            Layer::Attend,
            Layer::Linear(&self.to_out[0]),
            Layer::Add(None),
        ]);
    }
}

/// Residual blocks with attention between them (diffusers, `UNetMidBlock2D`).
#[derive(Module, Debug)]
pub(crate) struct MidBlock {
    attentions: Vec<Attention>,
    resnets: Vec<Resnet>,
}

impl MidBlock {
    pub(crate) fn new(channels: usize, attention: bool, style: Style) -> Self {
        Self {
            attentions: attention.then(|| Attention::new(channels, style)).into_iter().collect(),
            resnets: (0..2).map(|_| Resnet::new(channels, channels, style)).collect(),
        }
    }

    /// From `[b, c, 1, h, w]` to the same.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        self.resnets[0].list(layers);
        self.attentions.iter().for_each(|attention| attention.list(layers));
        self.resnets[1].list(layers);
    }

    #[cfg(test)]
    pub(crate) fn attention(&self) -> Option<&Attention> {
        self.attentions.first()
    }
}

/// The convolution of a down- or upsampling, under the name that diffusers gives it.
#[derive(Module, Debug)]
pub(crate) struct Sampler {
    conv: Conv2d,
}

/// Residual blocks, each with its attention where the type has it, and a downsampling by 2 unless it is the last.
#[derive(Module, Debug)]
pub(crate) struct DownBlock {
    resnets: Vec<Resnet>,
    attentions: Vec<Attention>,
    downsamplers: Vec<Sampler>,
}

impl DownBlock {
    pub(crate) fn new(kind: &str, channels: [usize; 2], layers: usize, downsample: bool, style: Style) -> Self {
        let (resnets, attentions) = layers_of(kind == DOWN_BLOCKS[1], channels, layers, style);
        let sampler = || Sampler { conv: Conv2d::downsample2x(channels[1], style.device) };
        Self { resnets, attentions, downsamplers: downsample.then(sampler).into_iter().collect() }
    }

    /// From `[b, in, 1, h, w]` to `[b, out, 1, h / 2, w / 2]`, or `[b, out, 1, h, w]` without it.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        list_layers(&self.resnets, &self.attentions, layers);
        layers.extend(self.downsamplers.iter().map(|sampler| Layer::Conv2d(&sampler.conv)));
    }
}

/// Residual blocks, each with its attention where the type has it, and an upsampling by 2 unless it is the last.
#[derive(Module, Debug)]
pub(crate) struct UpBlock {
    resnets: Vec<Resnet>,
    attentions: Vec<Attention>,
    upsamplers: Vec<Sampler>,
}

impl UpBlock {
    pub(crate) fn new(kind: &str, channels: [usize; 2], layers: usize, upsample: bool, style: Style) -> Self {
        let (resnets, attentions) = layers_of(kind == UP_BLOCKS[1], channels, layers, style);
        let sampler = || Sampler { conv: Conv2d::same([channels[1]; 2], style.device) };
        Self { resnets, attentions, upsamplers: upsample.then(sampler).into_iter().collect() }
    }

    /// From `[b, in, 1, h, w]` to `[b, out, 1, 2 * h, 2 * w]`, or `[b, out, 1, h, w]` without it.
    pub(crate) fn list<'a>(&'a self, layers: &mut Vec<Layer<'a>>) {
        list_layers(&self.resnets, &self.attentions, layers);
        layers.extend(self.upsamplers.iter().flat_map(|sampler| [Layer::UpsampleNearest2x, Layer::Conv2d(&sampler.conv)]));
    }

    #[cfg(test)]
    pub(crate) fn first_resnet(&self) -> &Resnet {
        &self.resnets[0]
    }
}

fn layers_of(attend: bool, [channels_in, channels_out]: [usize; 2], layers: usize, style: Style) -> (Vec<Resnet>, Vec<Attention>) {
    let first = |layer: usize| if layer == 0 { channels_in } else { channels_out };
    let resnets = (0..layers).map(|layer| Resnet::new(first(layer), channels_out, style)).collect();
    let attentions = (0..if attend { layers } else { 0 }).map(|_| Attention::new(channels_out, style)).collect();
    (resnets, attentions)
}

fn list_layers<'a>(resnets: &'a [Resnet], attentions: &'a [Attention], layers: &mut Vec<Layer<'a>>) {
    for (at, resnet) in resnets.iter().enumerate() {
        resnet.list(layers);
        attentions.get(at).into_iter().for_each(|attention| attention.list(layers));
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
    fn a_residual_block_starts_at_most_eight_kernels_on_a_gpu() {
        let count = testing::kernels_of("blocks::tests::a_residual_block_starts_at_most_eight_kernels_on_a_gpu", |device| {
            let style = Style { groups: 32, activation: Activation::Silu, device };
            let block = testing::prepared(Resnet::new(64, 128, style));
            let context = Context::default();
            let x = Features::new(Tensor::zeros([1, 64, 1, 24, 40], device), &context);
            move || {
                let mut layers = Vec::new();
                block.list(&mut layers);
                drop(Coder::new(64, layers).forward(x.clone(), &mut FrameCache::new(&context)).unwrap());
            }
        });
        // Without shared memory a group norm takes one more.
        let most = if testing::has_shared_memory() { 8 } else { 10 };
        assert!(count.is_none_or(|count| count <= most), "{count:?} kernels");
    }
}
