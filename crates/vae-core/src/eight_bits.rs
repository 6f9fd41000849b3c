use burn::tensor::{FloatDType, Tensor};
use tiling::HostTensor;

/// Values in a packed one: integers of 24 bits are exact in f32.
const PACKED: usize = 3;
const CODES: u32 = 256;

/// -1 to 1 as 0 to 255, rounded to the nearest.
pub fn to_eight_bits(value: f32) -> u8 {
    ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0 + 0.5).floor() as u8
}

/// 0 to 255 as -1 to 1: [`to_eight_bits`] gives the same again.
pub fn from_eight_bits(code: u8) -> f32 {
    f32::from(code) / 127.5 - 1.0
}

/// Rounds to eight bits where the tensor is, three channels to an f32: a third of the bytes to bring back. What is not finite becomes NaN.
///
/// # Shapes
/// `[b, c, t, h, w]` to `[b, ceil(c / 3), t, h, w]`.
pub(crate) fn pack(x: Tensor<5>) -> Tensor<5> {
    let channels = x.dims()[1];
    let x = x.cast(FloatDType::F32);
    let is_fault = x.clone().abs().lower_equal_elem(f32::MAX).bool_not();
    let codes = ((x * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0 + 0.5).floor().mask_fill(is_fault, f32::NAN);
    let packed = (0..channels).step_by(PACKED).map(|first| {
        let channel = |at: usize| codes.clone().narrow(1, first + at, 1) * CODES.pow(at as u32);
        (1..PACKED.min(channels - first)).fold(channel(0), |sum, at| sum + channel(at))
    });
    Tensor::cat(packed.collect(), 1)
}

/// The samples whose codes were packed.
///
/// # Shapes
/// `[b, ceil(c / 3), t, h, w]` to `[b, channels, t, h, w]`.
pub(crate) fn unpack(packed: &HostTensor, channels: usize) -> HostTensor {
    let [b, groups, t, h, w] = packed.shape();
    let volume = t * h * w;
    let mut samples = Vec::with_capacity(b * channels * volume);
    for plane in 0..b * channels {
        let (item, channel) = (plane / channels, plane % channels);
        let first = (item * groups + channel / PACKED) * volume;
        let shift = 8 * (channel % PACKED) as u32;
        let codes = packed.data()[first..first + volume].iter();
        samples.extend(codes.map(|&codes| if codes.is_finite() { from_eight_bits((codes as u32 >> shift) as u8) } else { f32::NAN }));
    }
    HostTensor::new([b, channels, t, h, w], samples).expect("as many samples as the shape says")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back() {
        for code in 0..=u8::MAX {
            assert_eq!(to_eight_bits(from_eight_bits(code)), code);
        }
        assert_eq!([-7.0, -1.0, 0.0, 1.0, 2.0, f32::INFINITY, f32::NAN].map(to_eight_bits), [0, 0, 128, 255, 255, 255, 0]);
    }

    #[cfg(all(feature = "testing", feature = "flex"))]
    #[test]
    fn what_a_gpu_or_cpu_packs_is_what_would_be_rounded_here() {
        use burn::tensor::TensorData;
        for channels in 1..=7 {
            let shape = [2, channels, 2, 3, 50];
            let count = shape.iter().product();
            let mut values: Vec<f32> = (0..count).map(|at: usize| (at as f32 * 0.61).sin() * 1.2).collect();
            values[7] = 0.5 / 127.5 - 1.0;
            let expected: Vec<u8> = values.iter().map(|&value| to_eight_bits(value)).collect();
            values[..3].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
            let packed = pack(Tensor::from_data(TensorData::new(values, shape), &crate::testing::device()));
            assert_eq!(packed.dims(), [2, channels.div_ceil(3), 2, 3, 50]);
            let packed = HostTensor::new(packed.dims(), packed.into_data().try_into_vec().unwrap()).unwrap();
            let got = unpack(&packed, channels);
            assert!(got.data()[..3].iter().all(|value| value.is_nan()), "{:?}", &got.data()[..3]);
            // Three channels share the fault.
            let beside = |at: usize| at < 3 || (at / 300 < 3.min(channels) && at % 300 < 3);
            let differing = (0..count).filter(|&at| !beside(at) && to_eight_bits(got.data()[at]) != expected[at]).count();
            assert_eq!(differing, 0, "{channels} channels");
        }
    }
}
