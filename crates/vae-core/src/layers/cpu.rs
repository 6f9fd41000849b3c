//! The kernels of [`kernels`] for tensors on Burn's CPU backend.

use burn::backend::{DispatchDevice, Flex};
use burn::tensor::{Bytes, DType, Tensor};
use burn_flex::{FlexTensor, Layout};
use kernels::{Convolution, Course, Form, Frame, GroupRule, Norm, Strides};

use super::convolution::Kind;
use super::{Precision, norm};

/// Tiles of 4x4 px from which on they take less time than tiles of 2x2: below, transforming the kernels weighs more than the products that are saved.
const WIDE_TILES: usize = 17;

/// Whether the kernels here can take the tensor.
pub(super) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && matches!(x.device().as_dispatch(), DispatchDevice::Flex(_))
}

/// See [`convolve`](super::convolve).
pub(super) fn convolve(x: Tensor<5>, weight: Tensor<5>, bias: Tensor<1>, kind: Kind) -> Tensor<5> {
    let ([batch, channels_in, frames, height, width], [channels_out, _, taps, ..]) = (x.dims(), weight.dims());
    let (x, weight, bias) = (contiguous(x), contiguous(weight), contiguous(bias));
    let [values, weight, bias] = [&x, &weight, &bias].map(|tensor| tensor.as_slice::<f32>().expect("contiguous f32"));
    let form = match kind {
        Kind::Point => Form::Point,
        Kind::Halving => Form::Halving,
        Kind::Same if Precision::current() == Precision::Fast && height.div_ceil(4) * width.div_ceil(4) >= WIDE_TILES => Form::Wide,
        Kind::Same => Form::Narrow,
    };
    let convolution = Convolution { form, weight, bias, channels: [channels_in, channels_out], taps, size: [height, width], doubled: false };
    let seen = taps.min(frames);
    let frames_out = frames + 1 - seen;
    let [height_out, width_out] = convolution.output_size();
    let (area, area_out) = (height * width, height_out * width_out);
    let frame = |start: usize, stride: usize| Frame { values: &values[start..], stride, norm: Norm::None };
    let output = if frames == 1 {
        // Batch items are frames that do not see one another.
        let input: Vec<Frame> = (0..batch).map(|item| frame(item * channels_in * area, area)).collect();
        // Of a lone frame's kernel only the last tap meets something.
        let last;
        let convolution = if taps > 1 {
            let kernel = form_area(&convolution);
            last = weight.chunks(kernel).skip(taps - 1).step_by(taps).flatten().copied().collect::<Vec<f32>>();
            Convolution { weight: &last, taps: 1, ..convolution }
        } else {
            convolution
        };
        let strides = Strides { frame: channels_out * area_out, channel: area_out };
        convolution.run(&input, Course { lead: 0, step: 1, frames: batch }, strides)
    } else {
        let course = Course { lead: seen - 1, step: 1, frames: frames_out };
        let strides = Strides { frame: area_out, channel: frames_out * area_out };
        let mut items = (0..batch).map(|item| {
            let start = |at: usize| (item * channels_in * frames + at) * area;
            let input: Vec<Frame> = (0..frames).map(|at| frame(start(at), frames * area)).collect();
            convolution.run(&input, course, strides)
        });
        let mut output = items.next().unwrap_or_default();
        items.for_each(|item| output.extend(item));
        output
    };
    let shape = [batch, channels_out, frames_out, height_out, width_out];
    Tensor::from_primitive::<Flex>(FlexTensor::new(Bytes::from_elems(output), Layout::contiguous(shape.into()), DType::F32))
}

/// Px of a kernel.
fn form_area(convolution: &Convolution) -> usize {
    let [channels_in, channels_out] = convolution.channels;
    convolution.weight.len() / (channels_in * channels_out * convolution.taps).max(1)
}

fn contiguous<const D: usize>(x: Tensor<D>) -> FlexTensor {
    let x: FlexTensor = x.try_into_primitive::<Flex>().expect("a tensor on the CPU backend");
    if x.is_contiguous() && x.layout().start_offset() == 0 { x } else { x.to_contiguous() }
}

/// Group normalisation.
///
/// # Shapes
/// `[b, c, h, w]` and twice `[c]`, to `[b, c, h, w]`.
pub(super) fn group_norm(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, rule: norm::GroupRule) -> Tensor<4> {
    let [_, _, height, width] = x.dims();
    let parameters = [weight, bias].map(|parameter| parameter.into_data().convert::<f32>());
    let [weight, bias] = parameters.each_ref().map(|data| data.as_slice::<f32>().expect("converted to f32"));
    let norm::GroupRule { groups, epsilon, then_silu } = rule;
    in_place(x, |values| kernels::normalise_groups(values, height * width, weight, bias, GroupRule { groups, epsilon, then_silu }))
}

/// The norm of each px's channels (see [`RmsNorm`](super::RmsNorm)), with SiLU after it when asked.
///
/// # Shapes
/// `[b, c, t, h, w]` and `[c]`, to `[b, c, t, h, w]`.
pub(super) fn rms_norm(x: Tensor<5>, gamma: Tensor<1>, then_silu: bool) -> Tensor<5> {
    let [_, _, frames, height, width] = x.dims();
    let gamma = gamma.into_data().convert::<f32>();
    let gamma = gamma.as_slice::<f32>().expect("converted to f32");
    in_place(x, |values| kernels::normalise_pixels(values, frames * height * width, gamma, then_silu))
}

/// Changes the values of a contiguous f32 tensor: where they lie when nobody else holds them, else in a copy.
fn in_place<const D: usize>(x: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    let shape = x.dims();
    let mut x = contiguous(x);
    if let Some(values) = x.try_storage_mut::<f32>() {
        change(values);
        return Tensor::from_primitive::<Flex>(x);
    }
    let mut values = x.as_slice::<f32>().expect("contiguous f32").to_vec();
    drop(x);
    change(&mut values);
    Tensor::from_primitive::<Flex>(FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32))
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::super::norm::{group_norm_by_operators, rms_norm_by_operators};
    use super::*;

    #[test]
    fn the_kernel_equals_the_operators() {
        let device = Device::flex();
        for (shape, groups) in [([2, 6, 5, 7], 3), ([1, 4, 1, 1], 2), ([1, 8, 40, 33], 8)] {
            let mut norm = super::super::GroupNorm::new(groups, shape[1], 1e-6, &device);
            norm.weight = burn::module::Param::from_tensor(ramp([shape[1]], 0.3, &device));
            norm.bias = burn::module::Param::from_tensor(ramp([shape[1]], 0.7, &device));
            let whole = ramp([shape[0], shape[1], shape[2], shape[3] + 2], 1.0, &device);
            // A view into a larger tensor, and a tensor that nobody else holds.
            let view = whole.narrow(3, 1, shape[3]);
            for then_silu in [false, true] {
                let rule = norm::GroupRule { groups, epsilon: 1e-6, then_silu };
                let expected = group_norm_by_operators(view.clone(), norm.weight.val(), norm.bias.val(), rule).into_data();
                let run = |x: Tensor<4>| if then_silu { norm.forward_silu(x) } else { norm.forward(x) };
                for x in [view.clone(), Tensor::from_data(view.clone().into_data(), &device)] {
                    let got = run(x).into_data();
                    let pairs = got.as_slice::<f32>().unwrap().iter().zip(expected.as_slice::<f32>().unwrap());
                    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                    assert!(worst < 2e-5, "{shape:?} silu {then_silu}: {worst}");
                }
            }
        }
    }

    #[test]
    fn the_kernel_of_the_channel_norm_equals_the_operators() {
        let device = Device::flex();
        for shape in [[2, 6, 1, 5, 7], [1, 3, 2, 1, 1], [1, 16, 3, 40, 33]] {
            let mut norm = super::super::RmsNorm::new(shape[1], &device);
            norm.gamma = burn::module::Param::from_tensor(ramp([shape[1]], 0.3, &device));
            let mut x = ramp(shape, 1.0, &device);
            // A px without length.
            x = x.slice_assign([0..1, 0..shape[1], 0..1, 0..1, 0..1], Tensor::zeros([1, shape[1], 1, 1, 1], &device));
            for then_silu in [false, true] {
                let expected = rms_norm_by_operators(x.clone(), norm.gamma.val(), then_silu).into_data();
                let got = if then_silu { norm.forward_silu(x.clone()) } else { norm.forward(x.clone()) }.into_data();
                let pairs = got.as_slice::<f32>().unwrap().iter().zip(expected.as_slice::<f32>().unwrap());
                let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < 2e-6, "{shape:?} silu {then_silu}: {worst}");
            }
        }
    }

    fn ramp<const D: usize>(shape: [usize; D], step: f32, device: &Device) -> Tensor<D> {
        let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| (i as f32 * step).sin() * 2.0 + 0.5).collect();
        Tensor::from_data(TensorData::new(values, shape), device)
    }
}
