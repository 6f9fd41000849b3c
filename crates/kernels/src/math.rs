//! Functions of single values, written so that the compiler vectorises loops over them.

/// `x / (1 + exp(-x))`.
#[inline(always)]
pub(crate) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// The exponential with a relative error of at most 3e-7, without branches so that loops over it are vectorised. The argument is clamped to -87..=88.
///
/// Source: the polynomial of `expf` in the Cephes library (S. Moshier).
#[inline(always)]
#[expect(clippy::excessive_precision, reason = "the constants are written as in their source")]
pub(crate) fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    const LN_2_HIGH: f32 = 0.693_359_375;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to an integer. With the exponent's bias of 127 added it stands in the lowest bits; a shift by 23 makes it an exponent.
    const ROUND: f32 = 12_582_912.0 + 127.0;
    // Comparisons with NaN are false, so that NaN is not clamped.
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x.mul_add(LOG2_E, ROUND);
    let whole = shifted - ROUND;
    let r = whole.mul_add(-LN_2_LOW, whole.mul_add(-LN_2_HIGH, x));
    let p = 1.987_569_15e-4_f32;
    let p = p.mul_add(r, 1.398_199_950_7e-3);
    let p = p.mul_add(r, 8.333_451_907_3e-3);
    let p = p.mul_add(r, 4.166_579_589_4e-2);
    let p = p.mul_add(r, 1.666_666_545_9e-1);
    let p = p.mul_add(r, 5.000_000_120_1e-1);
    p.mul_add(r * r, r + 1.0) * f32::from_bits(shifted.to_bits() << 23)
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
}
