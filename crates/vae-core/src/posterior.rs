use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use tiling::HostTensor;

/// What an encode takes from the posterior. An encoder without a posterior gives latents, which [`Mode`](Self::Mode) takes as they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Posterior {
    /// The mean.
    #[default]
    Mode,
    /// One random sample.
    Sample,
    /// The mean, and mean and log-variance as tensors of their own.
    Moments,
}

/// Bounds of the log-variance (diffusers, `DiagonalGaussianDistribution`).
const LOG_VARIANCE: (f32, f32) = (-30.0, 20.0);

impl Posterior {
    /// Splits the moments of a Gaussian posterior into mean and log-variance, the latter clamped to -30..20.
    ///
    /// # Shapes
    /// `[b, 2 * c, t, h, w]` to twice `[b, c, t, h, w]`.
    pub fn split(moments: &HostTensor) -> [HostTensor; 2] {
        let [b, c, t, h, w] = moments.shape();
        let half = (c / 2) * t * h * w;
        let mut parts = [HostTensor::zeros([b, c / 2, t, h, w]), HostTensor::zeros([b, c / 2, t, h, w])];
        for item in 0..b {
            for (which, part) in parts.iter_mut().enumerate() {
                let start = (2 * item + which) * half;
                part.data_mut()[item * half..(item + 1) * half].copy_from_slice(&moments.data()[start..start + half]);
            }
        }
        for value in parts[1].data_mut() {
            *value = value.clamp(LOG_VARIANCE.0, LOG_VARIANCE.1);
        }
        parts
    }

    /// The latents that this choice takes from a Gaussian posterior, or from a part of it whose first frame, row and column are `start` in latents of
    /// `extent` (frames, height, width).
    ///
    /// The noise of a value depends on the seed and the value's position alone, so it depends neither on the tiles nor on the parts.
    #[must_use]
    pub fn draw(self, mut mean: HostTensor, log_variance: &HostTensor, seed: u64, start: [usize; 3], extent: [usize; 3]) -> HostTensor {
        if self == Self::Sample {
            let [.., frames, height, _] = mean.shape();
            for (plane, y) in (0..mean.planes()).flat_map(|plane| (0..height).map(move |y| (plane, y))) {
                let whole_plane = plane / frames * extent[0] + start[0] + plane % frames;
                let noise = normal_noise(seed, (whole_plane * extent[1] + start[1] + y) as u64).skip(start[2]);
                let deviations = log_variance.row(plane, y);
                for ((value, log_variance), noise) in mean.row_mut(plane, y).iter_mut().zip(deviations).zip(noise) {
                    *value += (0.5 * log_variance).exp() * noise;
                }
            }
        }
        mean
    }
}

/// Standard normal noise for row `row` (counted over all planes) of a tensor: the same for the same seed and row.
pub fn normal_noise(seed: u64, row: u64) -> impl Iterator<Item = f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(row);
    std::iter::repeat_with(move || StandardNormal.sample(&mut rng))
}

#[cfg(test)]
mod tests {
    use tiling::Region;

    use super::*;

    fn moments() -> HostTensor {
        HostTensor::from_fn([2, 4, 1, 3, 5], |[b, c, _, y, x]| if c < 2 { (b + c + y + x) as f32 } else { 40.0 * (x as f32 - 2.0) })
    }

    #[test]
    fn moments_are_split_and_log_variance_is_clamped() {
        let [mean, log_variance] = Posterior::split(&moments());
        assert_eq!((mean.shape(), log_variance.shape()), ([2, 2, 1, 3, 5], [2, 2, 1, 3, 5]));
        assert_eq!(mean.row(3, 1), [3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(log_variance.row(0, 0), [-30.0, -30.0, 0.0, 20.0, 20.0]);
    }

    #[test]
    fn a_sample_depends_on_seed_and_position_only() {
        let [mean, log_variance] = Posterior::split(&moments());
        let draw = |seed| Posterior::Sample.draw(mean.clone(), &log_variance, seed, [0; 3], mean.extent());
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let noise: Vec<f32> = normal_noise(1, 4).take(5).collect();
        assert_eq!(draw(1).row(1, 1)[2], mean.row(1, 1)[2] + noise[2]);
        assert_eq!(Posterior::Mode.draw(mean.clone(), &log_variance, 1, [0; 3], mean.extent()), mean);
    }

    #[test]
    fn parts_are_drawn_as_in_the_whole() {
        let moments = HostTensor::from_fn([2, 4, 3, 4, 5], |[b, c, t, y, x]| (b + 2 * c + t + y + x) as f32 / 9.0);
        let [mean, log_variance] = Posterior::split(&moments);
        let whole = Posterior::Sample.draw(mean.clone(), &log_variance, 7, [0; 3], [3, 4, 5]);
        for (start, size) in [([0, 0, 2], [3, 4, 3]), ([1, 2, 0], [2, 1, 5]), ([2, 3, 4], [1, 1, 1])] {
            let part = Region { start, size };
            let drawn = Posterior::Sample.draw(mean.region(&part), &log_variance.region(&part), 7, start, [3, 4, 5]);
            assert_eq!(drawn, whole.region(&part));
        }
    }

    #[test]
    fn noise_is_standard_normal() {
        let values: Vec<f64> = (0..50).flat_map(|row| normal_noise(3, row).take(1000)).map(f64::from).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
