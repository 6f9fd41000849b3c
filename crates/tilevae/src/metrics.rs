//! How near two images are.

use std::collections::BTreeSet;

use tiling::HostTensor;

/// How near two clips are, frame by frame or all at once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Comparison {
    squares: f64,
    values: usize,
    similarity: f64,
    planes: usize,
}

impl Comparison {
    /// Compares some frames of both.
    ///
    /// # Panics
    /// When the shapes differ.
    pub fn add(&mut self, a: &HostTensor, b: &HostTensor) {
        assert_eq!(a.shape(), b.shape(), "compared samples have one shape");
        let [_, _, _, height, width] = a.shape();
        self.squares += a.data().iter().zip(b.data()).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        self.values += a.data().len();
        let pixels = (height * width).max(1);
        let planes = a.data().chunks(pixels).zip(b.data().chunks(pixels));
        self.similarity += planes.map(|(a, b)| plane_ssim(a, b, [height, width])).sum::<f64>();
        self.planes += a.planes();
    }

    /// See [`psnr`].
    pub fn psnr(&self) -> f64 {
        let mean = self.squares / self.values.max(1) as f64;
        if mean == 0.0 { f64::INFINITY } else { 10.0 * (4.0 / mean).log10() }
    }

    /// See [`ssim`].
    pub fn ssim(&self) -> f64 {
        self.similarity / self.planes.max(1) as f64
    }
}

fn compared(a: &HostTensor, b: &HostTensor) -> Comparison {
    let mut comparison = Comparison::default();
    comparison.add(a, b);
    comparison
}

/// Peak signal-to-noise ratio in dB of samples from -1 to 1; infinite for equal ones.
///
/// # Panics
/// When the shapes differ.
pub fn psnr(a: &HostTensor, b: &HostTensor) -> f64 {
    compared(a, b).psnr()
}

/// Structural similarity of samples from -1 to 1, the mean over all planes: 1 for equal ones.
///
/// A Gaussian window of 11 px and deviation 1.5, `K1 = 0.01`, `K2 = 0.03` (Wang, Bovik, Sheikh and Simoncelli, 2004), where it lies wholly inside the
/// image; images smaller than the window are compared with what of it fits.
///
/// # Panics
/// When the shapes differ.
pub fn ssim(a: &HostTensor, b: &HostTensor) -> f64 {
    compared(a, b).ssim()
}

/// The jump of a difference of two images across borders, between the px before each and the px at it, over its jump elsewhere: 1 where borders do not show.
/// `borders` are rows and columns. `None` without borders, or where nothing jumps elsewhere.
pub fn seam(difference: &HostTensor, borders: &[BTreeSet<usize>; 2]) -> Option<f64> {
    let [_, _, _, height, width] = difference.shape();
    // Sum and number of jumps, at borders and elsewhere.
    let mut jumps = [[0.0_f64; 2]; 2];
    for plane in 0..difference.planes() {
        for y in 0..height {
            let row = difference.row(plane, y);
            for x in 1..width {
                let jump = &mut jumps[usize::from(!borders[1].contains(&x))];
                *jump = [jump[0] + f64::from((row[x] - row[x - 1]).abs()), jump[1] + 1.0];
            }
            if y > 0 {
                let above = difference.row(plane, y - 1);
                let jump = &mut jumps[usize::from(!borders[0].contains(&y))];
                *jump = [jump[0] + row.iter().zip(above).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>(), jump[1] + width as f64];
            }
        }
    }
    let [at_borders, elsewhere] = jumps.map(|[sum, count]| if count > 0.0 { sum / count } else { f64::NAN });
    let ratio = at_borders / elsewhere;
    ratio.is_finite().then_some(ratio)
}

fn plane_ssim(a: &[f32], b: &[f32], size: [usize; 2]) -> f64 {
    const RANGE: f64 = 2.0;
    let (c1, c2) = ((0.01 * RANGE).powi(2), (0.03 * RANGE).powi(2));
    let smooth = |f: &dyn Fn(f64, f64) -> f64| {
        let values: Vec<f64> = a.iter().zip(b).map(|(&a, &b)| f(f64::from(a), f64::from(b))).collect();
        blurred(&values, size)
    };
    let [mean_a, mean_b] = [smooth(&|a, _| a), smooth(&|_, b| b)];
    let [square_a, square_b, product] = [smooth(&|a, _| a * a), smooth(&|_, b| b * b), smooth(&|a, b| a * b)];
    let at = |i: usize| {
        let (ma, mb) = (mean_a[i], mean_b[i]);
        let (va, vb, cov) = (square_a[i] - ma * ma, square_b[i] - mb * mb, product[i] - ma * mb);
        ((2.0 * ma * mb + c1) * (2.0 * cov + c2)) / ((ma * ma + mb * mb + c1) * (va + vb + c2))
    };
    (0..mean_a.len()).map(at).sum::<f64>() / mean_a.len().max(1) as f64
}

/// The window's mean wherever it lies wholly inside.
fn blurred(values: &[f64], [height, width]: [usize; 2]) -> Vec<f64> {
    let (rows, columns) = (window(height), window(width));
    let wide = width + 1 - columns.len();
    let mut across = Vec::with_capacity(height * wide);
    for row in values.chunks(width) {
        across.extend(row.windows(columns.len()).map(|part| part.iter().zip(&columns).map(|(value, weight)| value * weight).sum::<f64>()));
    }
    let tall = height + 1 - rows.len();
    let down = |y: usize, x: usize| rows.iter().enumerate().map(|(i, weight)| across[(y + i) * wide + x] * weight).sum::<f64>();
    (0..tall).flat_map(|y| (0..wide).map(move |x| (y, x))).map(|(y, x)| down(y, x)).collect()
}

/// Gaussian weights that sum to 1, at most 11 and at most `length`, an odd number.
fn window(length: usize) -> Vec<f64> {
    let size = length.min(11);
    let size = if size.is_multiple_of(2) { size.saturating_sub(1).max(1) } else { size };
    let middle = (size / 2) as f64;
    let weights: Vec<f64> = (0..size).map(|i| (-(i as f64 - middle).powi(2) / (2.0 * 1.5 * 1.5)).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(shift: f32) -> HostTensor {
        HostTensor::from_fn([1, 1, 1, 20, 30], |[.., y, x]| ((x as f32 + shift) * 0.4).sin() * 0.5 + y as f32 * 0.01)
    }

    #[test]
    fn equal_images() {
        assert_eq!((psnr(&wave(0.0), &wave(0.0)), ssim(&wave(0.0), &wave(0.0))), (f64::INFINITY, 1.0));
    }

    #[test]
    fn a_step_at_a_border_shows() {
        let borders = [BTreeSet::from([10]), BTreeSet::from([15])];
        let noise = |x: usize, y: usize| ((x * 7 + y * 13) % 5) as f32 * 0.01;
        let even = HostTensor::from_fn([1, 1, 1, 20, 30], |[.., y, x]| noise(x, y));
        assert!((0.8..1.2).contains(&seam(&even, &borders).unwrap()));
        let step = HostTensor::from_fn([1, 1, 1, 20, 30], |[.., y, x]| noise(x, y) + if x >= 15 { 0.5 } else { 0.0 });
        assert!(seam(&step, &borders).unwrap() > 5.0);
        assert_eq!(seam(&HostTensor::zeros([1, 1, 1, 4, 4]), &borders), None);
        assert_eq!(seam(&even, &Default::default()), None);
    }

    #[test]
    fn known_values() {
        let brighter = HostTensor::from_fn([1, 1, 1, 20, 30], |[b, c, t, y, x]| {
            wave(0.0).region(&tiling::Region { start: [t, y, x], size: [1, 1, 1] }).data()[b + c] + 0.2
        });
        assert!((psnr(&wave(0.0), &brighter) - 20.0).abs() < 1e-3);
        // A constant against another: variances vanish, only the means count.
        let flat = |value: f32| HostTensor::from_fn([1, 1, 1, 12, 12], |_| value);
        let expected = (2.0 * 0.5 * 0.25 + 0.0004) / (0.25 + 0.0625 + 0.0004);
        assert!((ssim(&flat(0.5), &flat(0.25)) - expected).abs() < 1e-9);
    }

    /// `structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2.0)` and
    /// `peak_signal_noise_ratio(a, b, data_range=2.0)` of scikit-image 0.26, in f64. All values of the images are multiples of 1/32.
    #[test]
    fn values_are_those_of_scikit_image() {
        type Px<'a> = &'a dyn Fn(usize, usize) -> f32;
        let a = |y: usize, x: usize| ((7 * x + 13 * y) % 32) as f32 / 16.0 - 1.0;
        let other_steps = |y: usize, x: usize| ((7 * x + 13 * y + x * y % 5) % 32) as f32 / 16.0 - 1.0;
        let less_contrast = |y: usize, x: usize| 0.5 * a(y, x) + 0.25;
        let noisy = |y: usize, x: usize| a(y, x) + ((x * x + 3 * y) % 4) as f32 / 32.0;
        let cases: [(&str, Px, [[f64; 2]; 2]); 3] = [
            ("other steps", &other_steps, [[0.150_986_600_769_766, 13.956_839_283_678_1], [-0.311_825_939_854_728, 13.205_379_540_906_1]]),
            ("less contrast", &less_contrast, [[-0.230_796_085_469_017, 14.176_976_289_189_5], [0.263_532_673_711_076, 14.046_295_662_446_5]]),
            ("noisy", &noisy, [[0.530_159_735_916_297, 30.682_919_036_174_9], [0.794_201_615_459_778, 30.558_887_563_916_4]]),
        ];
        for (name, b, expected) in cases {
            for ([height, width], [similarity, ratio]) in [[20, 30], [11, 13]].into_iter().zip(expected) {
                let [a, b] = [&a as Px, b].map(|f| HostTensor::from_fn([1, 1, 1, height, width], |[.., y, x]| f(y, x)));
                let (got_similarity, got_ratio) = (ssim(&a, &b), psnr(&a, &b));
                assert!((got_similarity - similarity).abs() < 1e-9, "{name}, {height} x {width} px: {got_similarity}, not {similarity}");
                assert!((got_ratio - ratio).abs() < 1e-9, "{name}, {height} x {width} px: {got_ratio}, not {ratio}");
            }
        }
    }

    #[test]
    fn frame_by_frame_is_all_at_once() {
        let clip =
            |shift: f32| HostTensor::from_fn([1, 2, 3, 14, 13], |[_, c, t, y, x]| ((x + y + t) as f32 * 0.3 + c as f32 + shift * t as f32).sin());
        let (a, b) = (clip(0.0), clip(0.1));
        let mut comparison = Comparison::default();
        (0..3).for_each(|frame| comparison.add(&a.frames(frame, 1), &b.frames(frame, 1)));
        assert!((comparison.psnr() - psnr(&a, &b)).abs() < 1e-9 && (comparison.ssim() - ssim(&a, &b)).abs() < 1e-9);
    }

    #[test]
    fn small_images_have_a_value() {
        let dot = HostTensor::from_fn([1, 3, 1, 1, 2], |[_, c, ..]| c as f32 * 0.1);
        assert_eq!(ssim(&dot, &dot), 1.0);
    }
}
