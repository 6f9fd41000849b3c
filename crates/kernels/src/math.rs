//! Functions of single values that become vector code.

/// The sum of `f` over all values: in f32 over short stretches, whose sums are added in f64.
#[inline(always)]
pub(crate) fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f64 {
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
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The exponential to a relative error of 2e-7, without branches, so that it becomes vector code. Below -87 and above 88 it stays at its end values.
///
/// Source: the polynomial of `expf` in the Cephes library (S. Moshier).
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the constants are written as in their source")]
pub(crate) fn exp(x: f32) -> f32 {
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
}
