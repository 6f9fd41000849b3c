use std::fmt::Debug;

use burn::module::Param;
use burn::tensor::Tensor;
use tiling::Scale;

use super::spec::CoderSpec;
use super::step::{Flow, FrameChange, Step, Support};
use crate::layers::{Conv2d, Conv3d, GroupNorm, Linear, RmsNorm};
use crate::operators::{Activation, Convolution, TemporalWindow};

/// The layers of a decoder or an encoder, in the order in which the reference code runs them.
#[derive(Debug)]
pub struct Coder<'a> {
    pub(super) layers: Vec<Layer<'a>>,
    pub(super) spec: CoderSpec,
}

/// One layer, with its weights.
#[derive(Debug)]
pub enum Layer<'a> {
    /// A convolution of each frame.
    Conv2d(&'a Conv2d),
    /// The same for one of equal parts of its output channels: which, and of how many.
    Conv2dPart(&'a Conv2d, usize, usize),
    /// A linear map of each px's channels.
    Linear(&'a Linear),
    /// A convolution of each frame by itself, whose kernel has one frame.
    Conv3d(&'a Conv3d),
    /// A convolution of each frame with those before it, of which it keeps the last from chunk to chunk (diffusers, `WanCausalConv3d`).
    CausalConv3d(&'a Conv3d),
    /// A group norm, then an activation.
    GroupNorm(&'a GroupNorm, Activation),
    /// An RMS norm of each px, then an activation.
    RmsNorm(&'a RmsNorm, Activation),
    /// Attention over all px of each frame, with one head (see [`Features::attend`](crate::layers::Features::attend)). The features are the queries; keys and values are what the last two open
    /// branches kept, in that order.
    Attend,
    /// Twice the height and width, each value four times.
    UpsampleNearest2x,
    /// Two frames for each but the first of a clip: a convolution over three frames with twice the channels, whose halves are the even and the odd frames
    /// (diffusers, `WanResample` with `upsample3d`).
    DoubleFrames(&'a Conv3d),
    /// One frame for each two but the first of a clip: a convolution over three frames with stride 2 (diffusers, `WanResample` with `downsample3d`).
    HalveFrames(&'a Conv3d),
    /// A change without weights by operators of a tensor.
    Map(Box<dyn PxMap + 'a>),
    /// Keeps the features for the [`Add`](Self::Add) or [`Attend`](Self::Attend) that belongs to it, or what a layer makes of them: a map of each px without
    /// memory.
    Branch(Option<Box<Layer<'a>>>),
    /// Adds what the last open branch kept, after the layer of a shortcut if it has one: a map of each px without memory, or a [`Map`](Self::Map).
    Add(Option<Box<Layer<'a>>>),
}

/// A change of px without weights, in which blocks of px become one px, or one px a block.
pub trait PxMap: Debug + Send + Sync {
    /// Whether blocks or px grow.
    fn scale(&self) -> Scale;

    /// Channels of the output.
    fn channels(&self, channels: usize) -> usize;

    /// How the number of frames changes.
    fn frames(&self) -> FrameChange {
        FrameChange::Same
    }

    /// The change, of the first frames of a clip or of later ones.
    ///
    /// # Shapes
    /// `[b, c, t, h, w]` to `[b, c', t', h', w']`, with channels and sides as above.
    fn apply(&self, x: Tensor<5>, is_first: bool) -> Tensor<5>;
}

impl<'a> Coder<'a> {
    /// The coder of these layers, whose input has `channels` channels.
    pub fn new(channels: usize, layers: Vec<Layer<'a>>) -> Self {
        let mut steps: Vec<Step> = Vec::with_capacity(layers.len());
        let mut kept = Vec::new();
        let mut current = channels;
        for layer in &layers {
            let step = match layer {
                Layer::Branch(map) => {
                    let map = map.as_ref().map(|layer| Box::new(layer.step(current)));
                    kept.push(map.as_ref().map_or(current, |map| map.channels));
                    Step { flow: Flow::Branch(map), ..Step::plain(current) }
                }
                Layer::Add(shortcut) => {
                    let from = kept.pop().unwrap_or(current);
                    let shortcut = shortcut.as_ref().map(|layer| Box::new(layer.step(from)));
                    Step { flow: Flow::Add(shortcut), ..Step::plain(current) }
                }
                Layer::Attend => {
                    let values = kept.pop().unwrap_or(current);
                    kept.pop();
                    Step { multiply_adds_per_pair: (current + values) as u64, flow: Flow::Attend, ..Step::plain(values) }
                }
                layer => layer.step(current),
            };
            current = step.channels;
            steps.push(step);
        }
        Self { layers, spec: CoderSpec { channels, whole_px: 1, steps } }
    }

    /// The same for pictures of which rows below and columns to the right that do not fill a block of `side` px are left out.
    #[must_use]
    pub fn with_whole_px_of(self, side: usize) -> Self {
        Self { spec: CoderSpec { whole_px: side, ..self.spec }, ..self }
    }

    /// The same without weights.
    pub fn spec(&self) -> &CoderSpec {
        &self.spec
    }
}

impl Layer<'_> {
    fn step(&self, channels: usize) -> Step {
        let plain = Step::plain(channels);
        match self {
            Self::Conv2d(conv) => of_conv2d(conv, channels, 1),
            Self::Conv2dPart(conv, _, parts) => of_conv2d(conv, channels, *parts),
            Self::Linear(map) => convolution(Support::Same, channels, shape(&map.weight)[0], [1; 3]),
            Self::Conv3d(conv) | Self::CausalConv3d(conv) => {
                let [channels_out, _, frames, height, width] = shape(&conv.weight);
                let support = Support::Window { kernel: [height, width], stride: conv.stride(), padding: conv.padding() };
                Step { kept_frames: frames - 1, ..convolution(support, channels, channels_out, [frames, height, width]) }
            }
            Self::GroupNorm(norm, _) => Step { flow: Flow::GroupNorm(norm.groups()), ..plain },
            Self::UpsampleNearest2x => Step { support: Support::Blocks(Scale::Up(2)), ..plain },
            Self::DoubleFrames(conv) => {
                let [channels_out, _, frames, ..] = shape(&conv.weight);
                Step {
                    frames: FrameChange::Double,
                    kept_frames: frames - 1,
                    ..convolution(Support::Same, channels, channels_out / 2, [frames, 1, 1])
                }
            }
            Self::HalveFrames(conv) => {
                let [channels_out, _, frames, ..] = shape(&conv.weight);
                Step { frames: FrameChange::Halve, kept_frames: 1, ..convolution(Support::Same, channels, channels_out, [frames, 1, 1]) }
            }
            Self::Map(map) => {
                let support = if map.scale().ratio() == 1 { Support::Same } else { Support::Blocks(map.scale()) };
                Step { channels: map.channels(channels), support, frames: map.frames(), ..plain }
            }
            Self::RmsNorm(..) | Self::Branch(_) | Self::Attend | Self::Add(_) => plain,
        }
    }

    /// The operands of a layer that is a single convolution without memory.
    pub(super) fn convolution(&self) -> Option<Convolution> {
        match self {
            Self::Conv2d(conv) => Some(conv.convolution()),
            Self::Conv2dPart(conv, part, parts) => Some(conv.convolution().part(*part, *parts)),
            Self::Linear(map) => Some(map.convolution()),
            Self::Conv3d(conv) => Some(conv.convolution(TemporalWindow::EACH)),
            _ => None,
        }
    }
}

/// The shape of a parameter, which need not be loaded.
fn shape<const D: usize>(parameter: &Param<Tensor<D>>) -> [usize; D] {
    parameter.lazy_shape().dims()
}

fn of_conv2d(conv: &Conv2d, channels: usize, parts: usize) -> Step {
    let [channels_out, _, height, width] = shape(&conv.weight);
    let support = Support::Window { kernel: [height, width], stride: conv.stride(), padding: conv.padding() };
    convolution(support, channels, channels_out / parts, [1, height, width])
}

fn convolution(support: Support, channels_in: usize, channels_out: usize, kernel: [usize; 3]) -> Step {
    let area: usize = kernel.iter().product();
    // A kernel of one px without stride is a map of each px.
    let is_plain = support == Support::Window { kernel: [1, 1], stride: [1, 1], padding: crate::operators::Padding::NONE };
    let support = if is_plain { Support::Same } else { support };
    let weights = channels_in as u64 * channels_out as u64 * area as u64;
    Step { support, weights, multiply_adds: weights, ..Step::plain(channels_out) }
}
