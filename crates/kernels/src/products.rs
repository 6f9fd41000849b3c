//! Products of matrices: sums over input channels of kernels and values.

use pulp::Simd;

use crate::{CHUNK, OCT, Row};

/// A stretch of input channels: kernels of eight output channels, and the values that they meet.
pub(crate) type Stretch<'a> = (&'a [[f32; OCT]], &'a [Row]);

/// Sums over all channels of all stretches, for the first `chunks` chunks of a row: one row of sums for each of `sums`, at most eight.
#[inline(always)]
pub(crate) fn multiply<S: Simd>(simd: S, stretches: &[Stretch], chunks: usize, sums: &mut [Row]) {
    match S::F32_LANES {
        4 | 8 | 16 => {
            // The sums, one vector of values for each and one kernel fit the registers.
            let step = if S::REGISTER_COUNT >= 32 { OCT } else { OCT / 2 };
            let vectors = chunks * CHUNK / S::F32_LANES;
            for out in (0..sums.len()).step_by(step) {
                let sums = &mut sums[out..];
                let mut first = 0;
                while first < vectors {
                    let count = (vectors - first).min(3);
                    match (count, step) {
                        (3, OCT) => block::<S, 3, OCT>(simd, stretches, out, first, sums),
                        (2, OCT) => block::<S, 2, OCT>(simd, stretches, out, first, sums),
                        (_, OCT) => block::<S, 1, OCT>(simd, stretches, out, first, sums),
                        (3, _) => block::<S, 3, { OCT / 2 }>(simd, stretches, out, first, sums),
                        (2, _) => block::<S, 2, { OCT / 2 }>(simd, stretches, out, first, sums),
                        (_, _) => block::<S, 1, { OCT / 2 }>(simd, stretches, out, first, sums),
                    }
                    first += count;
                }
            }
        }
        _ => multiply_plainly(stretches, chunks, sums),
    }
}

#[inline(always)]
fn block<S: Simd, const VECTORS: usize, const OUTS: usize>(simd: S, stretches: &[Stretch], out: usize, first: usize, answers: &mut [Row]) {
    let mut sums = [[simd.splat_f32s(0.0); VECTORS]; OUTS];
    for (kernels, values) in stretches {
        for (kernels, values) in kernels.iter().zip(*values) {
            let vectors = &S::as_simd_f32s(values.0.as_flattened()).0[first..first + VECTORS];
            let vectors: [S::f32s; VECTORS] = std::array::from_fn(|at| vectors[at]);
            for (sums, &kernel) in sums.iter_mut().zip(&kernels[out..out + OUTS]) {
                let kernel = simd.splat_f32s(kernel);
                for (sum, &vector) in sums.iter_mut().zip(&vectors) {
                    *sum = simd.mul_add_f32s(vector, kernel, *sum);
                }
            }
        }
    }
    for (answer, sums) in answers.iter_mut().zip(sums) {
        S::as_mut_simd_f32s(answer.0.as_flattened_mut()).0[first..first + VECTORS].copy_from_slice(&sums);
    }
}

/// For processors without vectors that fit.
fn multiply_plainly(stretches: &[Stretch], chunks: usize, answers: &mut [Row]) {
    for (out, answer) in answers.iter_mut().enumerate() {
        let answer = &mut answer.0[..chunks];
        answer.fill([0.0; CHUNK]);
        for (kernels, values) in stretches {
            for (kernels, values) in kernels.iter().zip(*values) {
                for (sum, &value) in answer.as_flattened_mut().iter_mut().zip(values.0.as_flattened()) {
                    *sum = value.mul_add(kernels[out], *sum);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, WithSimd};

    use super::*;

    struct Multiply<'a>(&'a [Stretch<'a>], usize, &'a mut [Row]);

    impl WithSimd for Multiply<'_> {
        type Output = ();

        fn with_simd<S: Simd>(self, simd: S) {
            multiply(simd, self.0, self.1, self.2);
        }
    }

    #[test]
    fn vectors_and_plain_code_give_the_same_bits() {
        let kernels: Vec<[f32; OCT]> = (0..11).map(|at| std::array::from_fn(|out| ((at * 8 + out) as f32).sin())).collect();
        let values: Vec<Row> =
            (0..11).map(|at| Row(std::array::from_fn(|c| std::array::from_fn(|l| ((at * 48 + c * 16 + l) as f32).cos())))).collect();
        let stretches = [(&kernels[..7], &values[..7]), (&kernels[7..], &values[7..])];
        for chunks in 1..=3 {
            for outs in [4, 8] {
                let (mut plain, mut chosen) = ([Row::ZERO; OCT], [Row::ZERO; OCT]);
                multiply_plainly(&stretches, chunks, &mut plain[..outs]);
                Arch::new().dispatch(Multiply(&stretches, chunks, &mut chosen[..outs]));
                assert!(plain.iter().zip(&chosen).all(|(a, b)| a.0 == b.0), "{chunks} chunks, {outs} channels");
                assert!(plain[0].0[0][0] != 0.0);
            }
        }
    }
}
