use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};
use tiling::Block;

/// What is taken from the posterior that an encoder gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Posterior {
    /// Its mean.
    #[default]
    Mode,
    /// One draw.
    Sample,
    /// Its mean, with mean and log-variance besides.
    Moments,
}

/// Bounds of the log-variance (diffusers, `DiagonalGaussianDistribution`).
const LOG_VARIANCE: (f32, f32) = (-30.0, 20.0);

impl Posterior {
    /// Splits moments into mean and log-variance, the latter clamped to -30..20.
    ///
    /// # Shapes
    /// `[b, 2 * c, t, h, w]` to twice `[b, c, t, h, w]`.
    pub fn split(moments: &Block) -> [Block; 2] {
        let [b, c, t, h, w] = moments.shape();
        let half = (c / 2) * t * h * w;
        let mut parts = [Block::zeros([b, c / 2, t, h, w]), Block::zeros([b, c / 2, t, h, w])];
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

    /// The latents that this choice takes from a posterior.
    ///
    /// The noise of a point depends on the seed and the point's place alone, so it is the same whatever the tiles.
    #[must_use]
    pub fn draw(self, mut mean: Block, log_variance: &Block, seed: u64) -> Block {
        if self == Self::Sample {
            let height = mean.shape()[3];
            for (plane, y) in (0..mean.planes()).flat_map(|plane| (0..height).map(move |y| (plane, y))) {
                let noise = normal_noise(seed, (plane * height + y) as u64);
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
