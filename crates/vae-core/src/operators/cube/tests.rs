//! Memory layouts, and the number of kernels. What they compute is tested with the other operators.

use burn::tensor::{DType, Distribution, FloatDType};
use burn_cubecl::tensor::CubeTensor;

use super::convolution::{KERNELS, Kernel, Problem};
use super::*;
use crate::operators::{Padding, with_five_axes};
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

/// Every kernel for tensor cores that takes a problem agrees with our own. Rows of outputs end within what a kernel computes at once.
#[test]
#[expect(clippy::print_stdout, reason = "tests say what they skip")]
fn kernels_for_tensor_cores_agree() {
    let Some(device) = gpu() else { return };
    if !crate::backends::computes_in(&device, DType::BF16) {
        println!("skipped: no bf16");
        return;
    }
    let context = Context::default();
    let x = Cube.import_tensor((random([1, 32, 2, 37, 100]) - 0.5).cast(FloatDType::BF16), &context).x;
    if !super::convolution::uses_tensor_cores(&x, context.math_mode()) {
        println!("skipped: no tensor cores");
        return;
    }
    let convolution = |padding: Padding| Convolution { padding, ..convolution([32, 48], 1) };
    let sides = |top, bottom, left, right| Padding { top, bottom, left, right };
    // Inside of a picture and at each of its borders, then upsampled.
    let mut problems = Vec::new();
    for padding in [sides(1, 1, 1, 1), sides(0, 0, 0, 0), sides(1, 0, 1, 0), sides(0, 1, 0, 1), sides(-1, -1, -1, -1)] {
        let convolution = Convolution { weight: convolution(padding).weight.cast(FloatDType::BF16), bias: None, ..convolution(padding) };
        let [b, c, t, h, w] = convolution.output_dims([1, 32, 2, 37, 100]);
        problems.push(super::convolution::whole(x.clone(), &convolution, &empty(&x, [b, t, h, w, c])));
        if padding.top != 0 {
            let [b, c, t, h, w] = convolution.output_dims([1, 32, 2, 74, 200]);
            problems.extend(super::convolution::folded_parts(&x, &convolution, &empty(&x, [b, t, h, w, c])));
        }
    }
    let mut taken = 0;
    for problem in problems {
        let into = |y: &CubeTensor| Problem { y: tensor::View { tensor: y.clone(), ..problem.y.clone() }, ..problem.clone() };
        let zeros = || primitive(Tensor::<1>::zeros([problem.y.tensor.meta.num_elements()], &testing::device()).cast(FloatDType::BF16));
        let values = |y: CubeTensor| generic::<1>(y).cast(DType::F32);
        let expected = zeros();
        into(&expected).multiply(None);
        let expected = values(expected);
        for kernel in KERNELS.into_iter().filter(|kernel| *kernel != Kernel::Direct) {
            let y = zeros();
            match tiling::catch(|| into(&y).run_by(kernel)).unwrap_or_else(Err) {
                Ok(()) => {
                    let difference = (values(y) - expected.clone()).abs().max().into_scalar::<f32>();
                    assert!(difference < 0.1, "{kernel}, padding {:?}: {difference}", problem.padding);
                    taken += 1;
                }
                Err(error) => println!("skipped: {kernel}: {error}"),
            }
        }
    }
    assert!(taken > 0);
}
