//! The kernels of [`kernels`] for tensors on Burn's CPU backend.

use std::sync::Arc;

use burn::backend::{DispatchDevice, Flex};
use burn::tensor::{Bytes, DType, Tensor};
use burn_flex::{FlexTensor, Layout};
use kernels::{Algorithm, BlockedImage, Convolution, Gather, GroupRule, Input, Norm, Workspace};

use super::convolution::{Kind, TemporalWindow};
use crate::Precision;

/// Tiles of 4x4 px from which on they take less time than tiles of 2x2: below, transforming the kernels weighs more than the products that are saved.
const WIDE_TILES: usize = 26;

/// Whether the kernels here can take the tensor.
pub(super) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && matches!(x.device().as_dispatch(), DispatchDevice::Flex(_))
}

/// Frames of one size, those of each batch item side by side.
#[derive(Debug, Clone)]
pub(super) struct Images {
    items: usize,
    frames: Vec<Frame>,
    /// Of frames, when there are none.
    channels: usize,
    size: [usize; 2],
    /// What norms have asked for so far, and so will ask for again.
    gather: Gather,
    workspace: Workspace,
}

/// An image, and what is to be done to it when it is read.
#[derive(Debug, Clone)]
struct Frame {
    image: BlockedImage,
    norm: Arc<Norm>,
    doubled: bool,
}

impl From<BlockedImage> for Frame {
    fn from(image: BlockedImage) -> Self {
        Self { image, norm: Arc::new(Norm::None), doubled: false }
    }
}

impl Frame {
    fn input(&self) -> Input<'_> {
        Input { image: &self.image, norm: &self.norm, upsampled: self.doubled }
    }

    /// The image with everything done.
    fn done(self) -> BlockedImage {
        let Self { image, norm, doubled } = self;
        let image = norm.applied(image);
        if doubled { image.upsampled() } else { image }
    }
}

impl Images {
    pub(super) fn new(x: Tensor<5>, workspace: &Workspace) -> Self {
        let [items, channels, frames, height, width] = x.dims();
        let x = contiguous(x);
        let values = x.as_slice::<f32>().expect("contiguous f32");
        let area = height * width;
        let image = |at: usize| {
            let start = (at / frames * channels * frames + at % frames) * area;
            BlockedImage::from_planes(&values[start..], frames * area, channels, [height, width], workspace)
        };
        let frames = (0..items * frames).map(|at| image(at).into()).collect();
        Self { items, frames, channels, size: [height, width], gather: Gather::Nothing, workspace: workspace.clone() }
    }

    pub(super) fn workspace(&self) -> Workspace {
        self.workspace.clone()
    }

    /// Other images for the same batch items.
    fn of(&self, images: Vec<BlockedImage>, channels: usize, size: [usize; 2]) -> Self {
        let (items, gather, workspace) = (self.items, self.gather, self.workspace());
        Self { items, frames: images.into_iter().map(Frame::from).collect(), channels, size, gather, workspace }
    }

    pub(super) fn dims(&self) -> [usize; 5] {
        let [height, width] = self.size;
        [self.items, self.channels, self.per_item(), height, width]
    }

    fn per_item(&self) -> usize {
        self.frames.len() / self.items.max(1)
    }

    pub(super) fn into_tensor(self) -> Tensor<5> {
        let shape = self.dims();
        let [_, channels, frames, height, width] = shape;
        let area = height * width;
        let mut values = vec![0.0_f32; shape.iter().product()];
        for (at, frame) in self.frames.into_iter().enumerate() {
            let start = (at / frames * channels * frames + at % frames) * area;
            frame.done().to_planes(&mut values[start..], frames * area);
        }
        Tensor::from_primitive::<Flex>(FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32))
    }

    pub(super) fn doubled(mut self) -> Self {
        for frame in &mut self.frames {
            if frame.doubled {
                *frame = frame.clone().done().into();
            }
            frame.doubled = true;
        }
        self.size = self.size.map(|side| 2 * side);
        self
    }

    pub(super) fn plus(self, other: Self) -> Self {
        assert_eq!(self.dims(), other.dims(), "shapes");
        let frames = self.frames.into_iter().zip(other.frames);
        let frames = frames.map(|(a, b)| a.done().plus(&b.done()).into()).collect();
        Self { frames, ..self }
    }

    pub(super) fn then(self, later: &Self) -> Self {
        assert!(self.items == later.items && self.channels == later.channels && self.size == later.size, "shapes");
        let [a, b] = [self.per_item(), later.per_item()];
        let of = |item: usize| self.frames[item * a..][..a].iter().chain(&later.frames[item * b..][..b]).cloned();
        let frames = (0..self.items).flat_map(of).collect();
        Self { frames, ..self }
    }

    pub(super) fn in_turn_with(self, other: &Self) -> Self {
        assert_eq!(self.dims(), other.dims(), "shapes");
        let frames = self.frames.into_iter().zip(&other.frames).flat_map(|(a, b)| [a, b.clone()]).collect();
        Self { frames, ..self }
    }

    pub(super) fn last_frames(&self, count: usize) -> Self {
        let each = self.per_item();
        let frames = self.frames.chunks(each.max(1)).flat_map(|frames| &frames[each - count..]).cloned().collect();
        Self { frames, workspace: self.workspace(), ..*self }
    }

    pub(super) fn zero_frames(&self, count: usize) -> Self {
        let image = BlockedImage::zeros(self.channels, self.size, &self.workspace);
        self.of(vec![image; self.items * count], self.channels, self.size)
    }

    /// Has every frame normalised when it is read.
    fn normalised(mut self, gather: Gather, norm: impl Fn(&BlockedImage) -> Norm) -> Self {
        let normalised = |Frame { image, norm: earlier, doubled }| {
            let image = earlier.applied(image);
            Frame { norm: Arc::new(norm(&image)), image, doubled }
        };
        self.frames = self.frames.into_iter().map(normalised).collect();
        Self { gather, ..self }
    }

    /// See [`GroupNorm`](super::GroupNorm).
    pub(super) fn group_norm(self, weight: Tensor<1>, bias: Tensor<1>, rule: super::norm::GroupRule) -> Self {
        let super::norm::GroupRule { groups, epsilon, then_silu } = rule;
        let [weight, bias] = [weight, bias].map(contiguous);
        let [weight, bias] = [&weight, &bias].map(values);
        self.normalised(Gather::Moments, |image| Norm::group_norm(image, weight, bias, GroupRule { groups, epsilon, then_silu }))
    }

    /// See [`RmsNorm`](super::RmsNorm).
    pub(super) fn rms_norm(self, gamma: Tensor<1>, then_silu: bool) -> Self {
        let gamma = contiguous(gamma);
        self.normalised(Gather::Lengths, |image| Norm::rms_norm(image, values(&gamma), then_silu))
    }

    /// See [`convolve`](super::convolve).
    pub(super) fn convolved(
        self,
        weight: Tensor<5>,
        bias: Tensor<1>,
        kind: Kind,
        window: TemporalWindow,
        onto: Option<Self>,
        precision: Precision,
    ) -> Self {
        let [channels_out, channels_in, kernel_frames, ..] = weight.dims();
        let [height, width] = self.size;
        let (weight, bias) = (contiguous(weight), contiguous(bias));
        let algorithm = match kind {
            Kind::Point => Algorithm::Pointwise,
            Kind::Halving => Algorithm::Downsample2x,
            Kind::Same if precision == Precision::Fast && height.div_ceil(4) * width.div_ceil(4) >= WIDE_TILES => Algorithm::WinogradF4,
            Kind::Same => Algorithm::WinogradF2,
        };
        let convolution = Convolution {
            algorithm,
            weight: values(&weight),
            bias: values(&bias),
            channels: [channels_in, channels_out],
            kernel_frames,
            gather: self.gather,
        };
        let each = self.per_item();
        let size = algorithm.output_size(self.size);
        let mut onto = onto.map(|onto| onto.frames.into_iter().map(Frame::done));
        let mut run = |frames: &[Frame], window: kernels::TemporalWindow| {
            let input: Vec<Input> = frames.iter().map(Frame::input).collect();
            let onto = onto.as_mut().map(|onto| onto.take(window.frames).collect());
            convolution.run(&input, window, onto)
        };
        let images = if kernel_frames == 1 && window == TemporalWindow::EACH {
            // Batch items are frames that do not see one another.
            run(&self.frames, kernels::TemporalWindow { context: 0, stride: 1, frames: self.frames.len() })
        } else {
            let TemporalWindow { context, stride } = window;
            let window = kernels::TemporalWindow { context, stride, frames: window.frames(each) };
            self.frames.chunks(each.max(1)).flat_map(|frames| run(frames, window)).collect()
        };
        self.of(images, channels_out, size)
    }

    /// See [`attend`](super::attend).
    pub(super) fn attended(self, keys: Self, values: Self) -> Self {
        let of_one = |((queries, keys), values): ((Frame, Frame), Frame)| kernels::attend(&queries.done(), &keys.done(), &values.done());
        let images = self.frames.iter().cloned().zip(keys.frames).zip(values.frames).map(of_one).collect();
        self.of(images, values.channels, self.size)
    }
}

fn contiguous<const D: usize>(x: Tensor<D>) -> FlexTensor {
    let x: FlexTensor = x.try_into_primitive::<Flex>().expect("a tensor on the CPU backend");
    if x.is_contiguous() && x.layout().start_offset() == 0 { x } else { x.to_contiguous() }
}

fn values(x: &FlexTensor) -> &[f32] {
    x.as_slice::<f32>().expect("contiguous f32")
}

#[cfg(test)]
mod tests {
    use burn::module::Param;
    use burn::tensor::{Device, TensorData};

    use super::super::features::Layout;
    use super::super::{Conv2d, Features, GroupNorm, Linear, RmsNorm, attend, convolve};
    use super::*;
    use crate::Context;

    fn ramp<const D: usize>(shape: [usize; D], step: f32) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|at| (at as f32 * step).sin()).collect();
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    /// Runs layers on images and on the same values as a tensor, which goes through Burn's operators.
    fn agree(x: Tensor<5>, what: &str, layers: impl Fn(Features) -> Features) {
        let images = Features::new(x.clone(), &Context::default());
        assert!(matches!(images.layout, Layout::Images(_)));
        let [got, expected] = [images, Features { layout: Layout::Tensor(x), context: Context::default() }].map(|x| {
            let y = layers(x);
            let dims = y.dims();
            let y = Tensor::from(y);
            assert_eq!(y.dims(), dims, "{what}");
            y
        });
        assert_eq!(got.dims(), expected.dims(), "{what}");
        let [got, expected] = [got, expected].map(|y| y.into_data().try_into_vec::<f32>().unwrap());
        let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4 && expected.iter().any(|value| value.abs() > 0.1), "{what}: {worst}");
    }

    #[test]
    fn images_and_tensors_go_through_all_layers_alike() {
        let device = Device::flex();
        let conv = |mut conv: Conv2d| {
            conv.weight = Param::from_tensor(ramp(conv.weight.dims(), 0.37) * 0.1);
            conv.bias = Param::from_tensor(ramp(conv.bias.dims(), 0.9));
            conv
        };
        let (same, point, halving) =
            (conv(Conv2d::same([12, 20], &device)), conv(Conv2d::point([12, 40], &device)), conv(Conv2d::halving(12, &device)));
        let mut groups = GroupNorm::new(4, 12, 1e-6, &device);
        (groups.weight, groups.bias) = (Param::from_tensor(ramp([12], 0.3)), Param::from_tensor(ramp([12], 0.7)));
        let rms = RmsNorm { gamma: Param::from_tensor(ramp([12], 0.3)) };
        let mut linear = Linear::square(12, &device);
        (linear.weight, linear.bias) = (Param::from_tensor(ramp([12, 12], 0.41)), Param::from_tensor(ramp([12], 0.2)));
        for shape in [[1, 12, 1, 9, 22], [2, 12, 3, 8, 5]] {
            let x = ramp(shape, 0.7);
            let with = |like: &Features, y: Tensor<5>| match like.layout {
                Layout::Images(_) => Features::new(y, &Context::default()),
                Layout::Tensor(_) => Features { layout: Layout::Tensor(y), context: Context::default() },
            };
            agree(x.clone(), "3x3", |x| same.forward(x));
            agree(x.clone(), "halved", |x| halving.forward(x));
            agree(x.clone(), "parts", |x| {
                let [a, b] = point.forward_in_parts(&x);
                a.plus(b)
            });
            agree(x.clone(), "onto", |x| {
                let onto = with(&x, ramp([shape[0], 20, shape[2], shape[3], shape[4]], 0.13));
                same.forward_onto(x, onto)
            });
            agree(x.clone(), "linear onto itself", |x| linear.forward_onto(x.clone(), x));
            agree(x.clone(), "doubled", |x| same.forward(x.doubled()));
            agree(x.clone(), "doubled twice", |x| groups.forward(x.doubled().doubled()));
            agree(x.clone(), "normalised twice", |x| rms.forward(groups.forward_silu(x)));
            agree(x.clone(), "group norm", |x| same.forward(groups.forward_silu(x)));
            agree(x.clone(), "norm of px", |x| same.forward(rms.forward_silu(x)));
            agree(x.clone(), "attention", |x| attend(linear.forward(x.clone()), groups.forward(x.clone()), x));
            agree(x.clone(), "frames", |x| {
                let earlier = x.zero_frames(1).then(x.clone()).in_turn_with(x.clone().then(x.last_frames(1)));
                earlier.then(x.map(|x| x * 2.0))
            });
        }
    }

    #[test]
    fn images_and_tensors_go_through_frames_alike() {
        let bias = ramp([20], 0.9);
        for (kind, side) in [(Kind::Same, 3), (Kind::Point, 1)] {
            let weight = ramp([20, 5, 3, side, side], 0.37) * 0.1;
            for (frames, context, stride) in [(1, 0, 1), (4, 0, 1), (4, 1, 1), (6, 2, 1), (5, 2, 2), (4, 2, 2), (7, 0, 2)] {
                agree(ramp([2, 5, frames, 9, 22], 0.7), &format!("{kind:?} of {frames} frames from {context} by {stride}"), |x| {
                    convolve(x, weight.clone(), bias.clone(), kind, TemporalWindow { context, stride }, None)
                });
            }
        }
    }
}
