//! Kernels for tensors on Burn's CPU backend, where one pass over memory takes the place of many.
//!
//! Functions that are to become vector code for the processor at hand are inlined into the `with_simd` that `pulp` compiles for it.
//!
//! Work is spread over the rayon pool of the caller. Each sum is taken in one fixed order, so the answer does not depend on the number of threads.

#![expect(clippy::inline_always, reason = "vector code is made where a function is inlined")]

use burn::backend::{DispatchDevice, Flex};
use burn::tensor::{Bytes, DType, Tensor};
use burn_flex::{FlexTensor, Layout};
use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use super::norm::{GroupRule, LEAST_LENGTH};

/// Whether the kernels here can take the tensor.
pub(super) fn takes<const D: usize>(x: &Tensor<D>) -> bool {
    x.dtype() == DType::F32 && matches!(x.device().as_dispatch(), DispatchDevice::Flex(_))
}

/// Group normalisation.
///
/// # Shapes
/// `[b, c, h, w]` and twice `[c]`, to `[b, c, h, w]`.
pub(super) fn group_norm(x: Tensor<4>, weight: Tensor<1>, bias: Tensor<1>, rule: GroupRule) -> Tensor<4> {
    let [_, channels, height, width] = x.dims();
    let parameters = [weight, bias].map(|parameter| parameter.into_data().convert::<f32>());
    let [weight, bias] = parameters.each_ref().map(|data| data.as_slice::<f32>().expect("converted to f32"));
    in_place(x, |values| {
        let per_group = channels / rule.groups;
        let group_size = (per_group * height * width).max(1);
        values.par_chunks_mut(group_size).enumerate().for_each(|(index, group)| {
            let first = index % rule.groups * per_group;
            let range = first..first + per_group;
            let (weight, bias) = (&weight[range.clone()], &bias[range]);
            pulp::Arch::new().dispatch(GroupPart { rule, group, weight, bias });
        });
    })
}

/// One group of one batch item. A closure would not do: `pulp` makes vector code of what is always inlined.
struct GroupPart<'a> {
    rule: GroupRule,
    group: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
}

impl WithSimd for GroupPart<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        self.rule.normalise(self.group, self.weight, self.bias);
    }
}

impl GroupRule {
    #[inline(always)]
    fn normalise(&self, group: &mut [f32], weight: &[f32], bias: &[f32]) {
        let count = group.len() as f64;
        let mean = sum(group, |value| value) / count;
        let center = mean as f32;
        let variance = sum(group, |value| (value - center) * (value - center)) / count;
        let inverse = 1.0 / (variance + self.epsilon).sqrt();
        let channel_size = (group.len() / weight.len()).max(1);
        for ((channel, &weight), &bias) in group.chunks_mut(channel_size).zip(weight).zip(bias) {
            let scale = (f64::from(weight) * inverse) as f32;
            let shift = (f64::from(bias) - mean * f64::from(weight) * inverse) as f32;
            if self.then_silu {
                for value in channel {
                    *value = silu(*value * scale + shift);
                }
            } else {
                for value in channel {
                    *value = *value * scale + shift;
                }
            }
        }
    }
}

/// The norm of each px's channels (see [`RmsNorm`](super::RmsNorm)), with SiLU after it when asked.
///
/// # Shapes
/// `[b, c, t, h, w]` and `[c]`, to `[b, c, t, h, w]`.
pub(super) fn rms_norm(x: Tensor<5>, gamma: Tensor<1>, then_silu: bool) -> Tensor<5> {
    /// Px whose lengths one task takes.
    const STRETCH: usize = 1024;
    let [_, channels, frames, height, width] = x.dims();
    let pixels = frames * height * width;
    let gamma = gamma.into_data().convert::<f32>();
    let gamma = gamma.as_slice::<f32>().expect("converted to f32");
    let root = (channels as f32).sqrt();
    in_place(x, |values| {
        for item in values.chunks_mut((channels * pixels).max(1)) {
            let mut inverse = vec![0.0_f32; pixels];
            let lengths = inverse[..].par_chunks_mut(STRETCH).enumerate();
            let read = &*item;
            lengths.for_each(|(stretch, inverse)| {
                let start = stretch * STRETCH;
                pulp::Arch::new().dispatch(Lengths { planes: read, pixels, start, inverse });
            });
            let inverse = &inverse;
            item.par_chunks_mut(pixels).zip(gamma.into_par_iter()).for_each(|(plane, &gamma)| {
                let scale = root * gamma;
                pulp::Arch::new().dispatch(Scaled { plane, inverse, scale, then_silu });
            });
        }
    })
}

/// The inverse lengths of some px's channels.
struct Lengths<'a> {
    planes: &'a [f32],
    pixels: usize,
    start: usize,
    inverse: &'a mut [f32],
}

impl WithSimd for Lengths<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for plane in self.planes.chunks(self.pixels) {
            for (sum, &value) in self.inverse.iter_mut().zip(&plane[self.start..]) {
                *sum += value * value;
            }
        }
        for sum in self.inverse {
            *sum = 1.0 / sum.sqrt().max(LEAST_LENGTH as f32);
        }
    }
}

/// One channel, scaled.
struct Scaled<'a> {
    plane: &'a mut [f32],
    inverse: &'a [f32],
    scale: f32,
    then_silu: bool,
}

impl WithSimd for Scaled<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let Self { plane, inverse, scale, then_silu } = self;
        if then_silu {
            for (value, &inverse) in plane.iter_mut().zip(inverse) {
                *value = silu(*value * inverse * scale);
            }
        } else {
            for (value, &inverse) in plane.iter_mut().zip(inverse) {
                *value = *value * inverse * scale;
            }
        }
    }
}

/// Changes the values of a contiguous f32 tensor: where they lie when nobody else holds them, else in a copy.
fn in_place<const D: usize>(x: Tensor<D>, change: impl FnOnce(&mut [f32])) -> Tensor<D> {
    let shape = x.dims();
    let mut x: FlexTensor = x.try_into_primitive::<Flex>().expect("a tensor on the CPU backend");
    if !(x.is_contiguous() && x.layout().start_offset() == 0) {
        x = x.to_contiguous();
    }
    if let Some(values) = x.try_storage_mut::<f32>() {
        change(values);
        return Tensor::from_primitive::<Flex>(x);
    }
    let mut values = x.as_slice::<f32>().expect("contiguous f32").to_vec();
    drop(x);
    change(&mut values);
    Tensor::from_primitive::<Flex>(FlexTensor::new(Bytes::from_elems(values), Layout::contiguous(shape.into()), DType::F32))
}

/// The sum of `f` over all values: in f32 over short stretches, whose sums are added in f64.
#[inline(always)]
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
    const LANES: usize = 32;
    const STRETCH: usize = 64 * LANES;
    let stretch = |part: &[f32]| {
        let mut lanes = [0.0_f32; LANES];
        let (whole, rest) = part.as_chunks::<LANES>();
        for chunk in whole {
            for (lane, &value) in lanes.iter_mut().zip(chunk) {
                *lane += f(value);
            }
        }
        for (lane, &value) in lanes.iter_mut().zip(rest) {
            *lane += f(value);
        }
        lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>()
    };
    values.chunks(STRETCH).map(stretch).sum()
}

/// `x / (1 + exp(-x))`.
#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The exponential to a relative error of 2e-7, without branches, so that it becomes vector code. Below -87 and above 88 it stays at its end values.
///
/// Source: the polynomial of `expf` in the Cephes library (S. Moshier).
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the constants are written as in their source")]
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN_2_HIGH: f32 = 0.693_359_375;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 * 2^23 rounds to a whole number.
    const ROUND: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let whole = (x * LOG2_E + ROUND) - ROUND;
    let r = (x - whole * LN_2_HIGH) - whole * LN_2_LOW;
    let p = 1.987_569_15e-4;
    let p = p * r + 1.398_199_950_7e-3;
    let p = p * r + 8.333_451_907_3e-3;
    let p = p * r + 4.166_579_589_4e-2;
    let p = p * r + 1.666_666_545_9e-1;
    let p = p * r + 5.000_000_120_1e-1;
    let fraction = p * r * r + r + 1.0;
    // SAFE: `whole` is between -126 and 127, so the exponent's bits are those of a normal number.
    fraction * f32::from_bits(((whole as i32 + 127) << 23) as u32)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::super::norm::{group_norm_by_operators, rms_norm_by_operators};
    use super::*;

    #[test]
    fn exponentials_are_accurate() {
        for i in -86_000..=87_000_i32 {
            let x = i as f32 / 1000.0;
            let expected = f64::from(x).exp();
            assert!((f64::from(exp(x)) / expected - 1.0).abs() < 3e-7, "exp({x})");
        }
        assert_eq!((silu(-1e30), silu(1e30)), (-1e30 / (1.0 + exp(88.0)), 1e30));
        assert!(silu(f32::NAN).is_nan());
    }

    #[test]
    fn sums_of_any_length() {
        for length in [0, 1, 31, 32, 33, 2047, 2048, 5000] {
            let values: Vec<f32> = (0..length).map(|i| i as f32).collect();
            assert_eq!(sum(&values, |value| 2.0 * value), f64::from(length) * f64::from(length - 1));
        }
    }

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
                let rule = GroupRule { groups, epsilon: 1e-6, then_silu };
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
