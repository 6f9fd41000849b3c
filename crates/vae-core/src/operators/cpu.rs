//! The workspace's [`kernels`], for f32 on Burn's CPU backend.

use std::sync::Arc;

use burn::backend::Flex;
use burn::tensor::{Bytes, DType, Tensor};
use burn_flex::{FlexTensor, Layout};
use kernels::{Algorithm, BlockedImage, Input, Norm, Prologue, Statistics};

use super::activation::Activation;
use super::convolution::{Convolution, Padding, TemporalWindow};
use super::group_norm::{GroupMoments, GroupNormParameters};
use super::interface::Operators;
use super::part::Part;
use super::plain;
use crate::{CHANNEL_BLOCK, Context, Precision};

/// Operators on [`Images`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cpu;

/// Images of one size, those of each batch item consecutive.
#[derive(Debug, Clone)]
pub(crate) struct Images {
    items: usize,
    frames: Vec<Frame>,
    /// Of frames, when there are none.
    channels: usize,
    size: [usize; 2],
    /// What the norms so far were made from: the next will be, too, so convolutions collect it from their output.
    statistics: Statistics,
}

/// An image with operations that are applied when it is read.
#[derive(Debug, Clone)]
struct Frame {
    image: BlockedImage,
    prologue: Prologue,
}

impl From<BlockedImage> for Frame {
    fn from(image: BlockedImage) -> Self {
        Self { image, prologue: Prologue::default() }
    }
}

impl Frame {
    fn input(&self) -> Input<'_> {
        Input { image: &self.image, prologue: &self.prologue }
    }

    /// The image after its prologue.
    fn applied(self) -> BlockedImage {
        self.prologue.applied(self.image)
    }

    /// The same frame with only upsampling left in its prologue. Norms and activations commute with that.
    fn normalised(self) -> Self {
        let Prologue { norm, activation, upsample } = self.prologue;
        let image = Prologue { norm, activation, upsample: false }.applied(self.image);
        Self { image, prologue: Prologue { upsample, ..Prologue::default() } }
    }
}

impl Images {
    /// Images of a size, those of each batch item consecutive.
    pub(crate) fn new(items: usize, images: Vec<BlockedImage>, channels: usize, size: [usize; 2]) -> Self {
        Self { items, frames: images.into_iter().map(Frame::from).collect(), channels, size, statistics: Statistics::None }
    }

    /// The images, after their prologues.
    pub(crate) fn into_images(self) -> Vec<BlockedImage> {
        self.frames.into_iter().map(Frame::applied).collect()
    }

    fn frames_per_item(&self) -> usize {
        self.frames.len() / self.items.max(1)
    }

    /// Other images for the same batch items.
    fn with_images(&self, images: Vec<BlockedImage>, channels: usize, size: [usize; 2]) -> Self {
        Self { items: self.items, frames: images.into_iter().map(Frame::from).collect(), channels, size, statistics: self.statistics }
    }

    /// Sets a norm that is made for each frame's image, after what the frame's prologue already has.
    fn with_norms(mut self, statistics: Statistics, activation: Activation, norm: impl Fn(usize, &BlockedImage) -> Norm) -> Self {
        let normalise = |(at, frame): (usize, Frame)| {
            let Frame { image, prologue } = frame.normalised();
            let norm = Some(Arc::new(norm(at, &image)));
            Frame { image, prologue: Prologue { norm, activation: kernel_activation(activation), ..prologue } }
        };
        self.frames = self.frames.into_iter().enumerate().map(normalise).collect();
        Self { statistics, ..self }
    }
}

/// The activations that a prologue has.
fn is_lazy(activation: Activation) -> bool {
    matches!(activation, Activation::None | Activation::Silu | Activation::Relu)
}

/// An activation of a prologue; none for others.
fn kernel_activation(activation: Activation) -> kernels::Activation {
    match activation {
        Activation::Silu => kernels::Activation::Silu,
        Activation::Relu => kernels::Activation::Relu,
        _ => kernels::Activation::None,
    }
}

impl Cpu {
    /// Applies activations that no prologue has.
    fn activate_rest(self, x: Images, activation: Activation, context: &Context) -> Images {
        if is_lazy(activation) { x } else { self.activate(x, activation, context) }
    }
}

impl Operators for Cpu {
    type Data = Images;

    fn import_tensor(&self, x: Tensor<5>, context: &Context) -> Images {
        let [items, channels, frames, height, width] = x.dims();
        let x = contiguous(x);
        let values = values(&x);
        let area = height * width;
        let image = |at: usize| {
            let start = (at / frames * channels * frames + at % frames) * area;
            BlockedImage::from_planes(&values[start..], frames * area, channels, [height, width], context.workspace())
        };
        let frames = (0..items * frames).map(|at| image(at).into()).collect();
        Images { items, frames, channels, size: [height, width], statistics: Statistics::None }
    }

    fn export_tensor(&self, x: Images) -> Tensor<5> {
        let shape = self.dims(&x);
        let [_, channels, frames, height, width] = shape;
        let area = height * width;
        let mut values = vec![0.0_f32; shape.iter().product()];
        for (at, frame) in x.frames.into_iter().enumerate() {
            let start = (at / frames * channels * frames + at % frames) * area;
            frame.applied().to_planes(&mut values[start..], frames * area);
        }
        Tensor::from_primitive::<Flex>(FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32))
    }

    fn dims(&self, x: &Images) -> [usize; 5] {
        let [height, width] = x.size;
        [x.items, x.channels, x.frames_per_item(), height, width]
    }

    fn convolve(&self, x: Images, convolution: &Convolution, residual: Option<Images>, context: &Context) -> Images {
        let Convolution { weight, bias, stride, padding, window, .. } = convolution;
        let [_, channels_out, frames_out, height, width] = convolution.output_dims(self.dims(&x));
        let allow_f4 = context.math_mode().precision == Precision::Fast;
        let Some(algorithm) = Algorithm::select(convolution.kernel(), *stride, [height, width], allow_f4) else {
            let residual = residual.map(|residual| self.export_tensor(residual));
            let statistics = x.statistics;
            let y = plain::convolve(self.export_tensor(x), convolution, residual);
            return Images { statistics, ..self.import_tensor(y, context) };
        };
        let [_, channels_in, kernel_frames, ..] = weight.dims();
        let (weight, bias) = (contiguous(weight.clone()), bias.clone().map(contiguous));
        let Padding { top, bottom, left, right } = *padding;
        let convolution = kernels::Convolution {
            algorithm,
            weight: values(&weight),
            bias: bias.as_ref().map(values),
            channels: [channels_in, channels_out],
            kernel_frames,
            padding: kernels::Padding { top, bottom, left, right },
            statistics: x.statistics,
        };
        let mut residual = residual.map(|residual| residual.frames.into_iter().map(Frame::applied));
        let mut run = |frames: &[Frame], window: kernels::TemporalWindow| {
            let input: Vec<Input> = frames.iter().map(Frame::input).collect();
            let residual = residual.as_mut().map(|residual| residual.take(window.frames).collect());
            convolution.run(&input, window, residual)
        };
        let images = if kernel_frames == 1 && *window == TemporalWindow::EACH {
            // Images of all batch items at once: none depends on another.
            run(&x.frames, kernels::TemporalWindow { context: 0, stride: 1, frames: x.frames.len() })
        } else {
            let window = kernels::TemporalWindow { context: window.context, stride: window.stride, frames: frames_out };
            x.frames.chunks(x.frames_per_item().max(1)).flat_map(|frames| run(frames, window)).collect()
        };
        x.with_images(images, channels_out, [height, width])
    }

    fn group_moments(&self, x: &Images, groups: usize) -> GroupMoments {
        let moments = |frame: &Frame| kernels::GroupMoments::of_image(&frame.clone().normalised().image, groups);
        GroupMoments::Host(x.frames.iter().map(moments).collect())
    }

    fn apply_group_norm(&self, x: Images, moments: GroupMoments, norm: &GroupNormParameters, activation: Activation, context: &Context) -> Images {
        let GroupMoments::Host(moments) = moments else {
            let y = plain::apply_group_norm(self.export_tensor(x), &moments.on(&norm.weight.device()), norm, activation);
            return self.import_tensor(y, context);
        };
        let [weight, bias] = [&norm.weight, &norm.bias].map(|parameter| contiguous(parameter.clone()));
        let norm = |at: usize, _: &BlockedImage| Norm::group_norm(&moments[at], values(&weight), values(&bias), norm.epsilon);
        self.activate_rest(x.with_norms(Statistics::Moments, activation, norm), activation, context)
    }

    fn group_norm(&self, x: Images, norm: &GroupNormParameters, activation: Activation, context: &Context) -> Images {
        // Once, for the moments and for the norm.
        let x = Images { frames: x.frames.into_iter().map(Frame::normalised).collect(), ..x };
        let moments = self.group_moments(&x, norm.groups);
        self.apply_group_norm(x, moments, norm, activation, context)
    }

    fn rms_norm(&self, x: Images, gamma: Tensor<1>, activation: Activation, context: &Context) -> Images {
        let gamma = contiguous(gamma);
        let x = x.with_norms(Statistics::SquaredNorms, activation, |_, image| Norm::rms_norm(image, values(&gamma)));
        self.activate_rest(x, activation, context)
    }

    fn attend(&self, queries: Images, keys: Images, values: Images, _: &Context) -> Images {
        let frames = queries.frames.iter().cloned().zip(keys.frames).zip(values.frames);
        let attend = |((queries, keys), values): ((Frame, Frame), Frame)| kernels::attend(&queries.applied(), &keys.applied(), &values.applied());
        queries.with_images(frames.map(attend).collect(), values.channels, queries.size)
    }

    fn activate(&self, mut x: Images, activation: Activation, context: &Context) -> Images {
        if !is_lazy(activation) {
            return self.import_tensor(plain::activate(self.export_tensor(x), activation), context);
        }
        let activate = |frame: Frame| {
            let mut frame = if frame.prologue.activation == kernels::Activation::None { frame } else { frame.normalised() };
            frame.prologue.activation = kernel_activation(activation);
            frame
        };
        x.frames = x.frames.into_iter().map(activate).collect();
        x
    }

    fn upsample_nearest2x(&self, mut x: Images, _: &Context) -> Images {
        let upsample = |frame: Frame| {
            let mut frame = if frame.prologue.upsample { frame.applied().into() } else { frame };
            frame.prologue.upsample = true;
            frame
        };
        x.frames = x.frames.into_iter().map(upsample).collect();
        x.size = x.size.map(|side| 2 * side);
        x
    }

    fn crop(&self, x: Images, start: [usize; 2], size: [usize; 2], _: &Context) -> Images {
        if x.size == size {
            return x;
        }
        let images = x.frames.iter().map(|frame| frame.clone().applied().cropped(start, size)).collect();
        x.with_images(images, x.channels, size)
    }

    fn assemble(&self, parts: Vec<Part<Images>>, [items, channels, frames, height, width]: [usize; 5], context: &Context) -> Images {
        let parts: Vec<Part<Images>> = parts.into_iter().map(|part| part.map(|x| self.computed(x, context))).collect();
        let image = |at: usize| {
            let (item, frame) = (at / frames, at % frames);
            let mut of_frame = Vec::new();
            for Part { x, from, to, size } in &parts {
                if (to[0]..to[0] + size[0]).contains(&frame) {
                    let image = &x.frames[item * x.frames_per_item() + from[0] + frame - to[0]].image;
                    of_frame.push(kernels::Part { image, from: [from[1], from[2]], to: [to[1], to[2]], size: [size[1], size[2]] });
                }
            }
            match of_frame[..] {
                [kernels::Part { image, from: [0, 0], .. }] if image.size() == [height, width] => image.clone(),
                _ => BlockedImage::from_parts(channels, [height, width], context.workspace(), &of_frame),
            }
        };
        Images::new(items, (0..items * frames).map(image).collect(), channels, [height, width])
    }

    fn computed(&self, x: Images, _: &Context) -> Images {
        let (items, channels, size) = (x.items, x.channels, x.size);
        Images::new(items, x.into_images(), channels, size)
    }

    fn bytes(&self, x: &Images) -> u64 {
        let [height, width] = x.size;
        (x.frames.len() * x.channels.next_multiple_of(CHANNEL_BLOCK) * height * width * size_of::<f32>()) as u64
    }

    fn add(&self, x: Images, other: Images, _: &Context) -> Images {
        let frames = x.frames.into_iter().zip(other.frames);
        Images { frames: frames.map(|(a, b)| a.applied().plus(&b.applied()).into()).collect(), ..x }
    }

    fn concat_frames(&self, x: Images, later: Images, _: &Context) -> Images {
        let [a, b] = [x.frames_per_item(), later.frames_per_item()];
        let frames_of = |item: usize| x.frames[item * a..][..a].iter().chain(&later.frames[item * b..][..b]).cloned();
        let frames = (0..x.items).flat_map(frames_of).collect();
        Images { frames, ..x }
    }

    fn interleave_frames(&self, even: Images, odd: Images, _: &Context) -> Images {
        let frames = even.frames.into_iter().zip(odd.frames).flat_map(|(even, odd)| [even, odd]).collect();
        Images { frames, ..even }
    }

    fn last_frames(&self, x: &Images, count: usize, _: &Context) -> Images {
        let each = x.frames_per_item();
        let frames = x.frames.chunks(each.max(1)).flat_map(|frames| &frames[each - count..]).cloned().collect();
        Images { frames, ..*x }
    }

    fn zero_frames(&self, x: &Images, count: usize, context: &Context) -> Images {
        let image = BlockedImage::zeros(x.channels, x.size, context.workspace());
        x.with_images(vec![image; x.items * count], x.channels, x.size)
    }
}

fn contiguous<const D: usize>(x: Tensor<D>) -> FlexTensor {
    let x: FlexTensor = x.try_into_primitive::<Flex>().expect("a tensor on the CPU backend");
    if x.is_contiguous() && x.layout().start_offset() == 0 { x } else { x.to_contiguous() }
}

fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice::<f32>().expect("contiguous f32")
}
