//! Memory layouts, and the number of kernels. What they compute is tested with the other operators.

use burn::tensor::{Distribution, FloatDType};
use burn_cubecl::tensor::CubeTensor;

use super::*;
use crate::operators::with_five_axes;
use crate::testing::{self, gpu};

fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Default, &testing::device())
}

fn is_channels_last(x: &CubeTensor) -> bool {
    tensor::is_dense(&permute(x.clone(), &[0, 2, 3, 4, 1]))
}

fn convolution(channels: [usize; 2], frames: usize) -> Convolution {
    let weight = random([channels[1], channels[0], frames, 3, 3]).into_dispatch();
    let weight = Tensor::from_dispatch(Cube.prepare_weight(weight));
    let bias = Some(random([channels[1]]));
    Convolution { weight, bias, stride: [1, 1], padding: Padding::all(1), window: TemporalWindow::EACH }
}

#[test]
fn weights_are_laid_out_once() {
    let Some(_) = gpu() else { return };
    let weight = random([7, 5, 3, 3]);
    let prepared: Tensor<4> = Tensor::from_dispatch(Cube.prepare_weight(weight.clone().into_dispatch()));
    prepared.to_data().assert_eq(&weight.to_data(), true);
    assert_eq!(primitive(prepared.clone()).meta.strides().to_vec(), [45, 1, 15, 5]);
    // Neither again, nor for an axis more, nor where a kernel reads it.
    let place = |x: CubeTensor| x.handle.binding().claim_key();
    let of = |x: Tensor<4>| place(primitive(x));
    let again: Tensor<4> = Tensor::from_dispatch(Cube.prepare_weight(prepared.clone().into_dispatch()));
    assert_eq!(of(again), of(prepared.clone()));
    let five = with_five_axes(prepared.clone(), [Some(0), Some(1), None, Some(2), Some(3)]);
    assert_eq!(five.dims(), [7, 5, 1, 3, 3]);
    assert_eq!(place(super::convolution::weight_view(five).tensor), of(prepared));
}

#[test]
fn features_are_channels_last_without_gaps() {
    let Some(_) = gpu() else { return };
    let context = Context::default();
    // Channels of which a pitched row would be longer.
    let x = Cube.import_tensor(random([2, 12, 3, 5, 7]).cast(FloatDType::F32), &context);
    let norm = GroupNormParameters { groups: 4, epsilon: 1e-6, weight: random([12]), bias: random([12]) };
    let y = Cube.group_norm(x.clone(), &norm, Activation::Silu, &context);
    let y = Cube.convolve(y, &convolution([12, 20], 1), None, &context);
    let y = Cube.rms_norm(y, random([20]), Activation::Silu, &context);
    let y = Cube.concat_frames(Cube.zero_frames(&y, 2, &context), y, &context);
    let y = Cube.convolve(y, &convolution([20, 12], 3), Some(Cube.concat_frames(x.clone(), Cube.last_frames(&x, 2, &context), &context)), &context);
    let y = Cube.convolve(Cube.upsample_nearest2x(y, &context), &convolution([12, 12], 1), None, &context);
    assert_eq!(Cube.dims(&y), [2, 12, 5, 10, 14]);
    let tensor = Cube.export_tensor(y);
    assert!(is_channels_last(&primitive(tensor.clone())));
    // Back again without a copy.
    let place = |x: CubeTensor| x.handle.binding().claim_key();
    let back = Cube.import_tensor(tensor.clone(), &context);
    assert_eq!(place(back.x), place(primitive(tensor)));
}
