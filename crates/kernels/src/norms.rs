use pulp::Simd;
use rayon::iter::ParallelIterator;
use rayon::slice::ParallelSliceMut;

use crate::activation::Activation;
use crate::group_moments::GroupMoments;
use crate::image::BlockedImage;
use crate::lanes::{LANES, Lanes, padded};
use crate::statistics::{self, Collected};

/// The smallest L2 norm of a px that an RMS norm divides by, as in PyTorch's `normalize`.
const EPS: f32 = 1e-12;

/// A norm of one image, ready to be applied to its values while they are read.
#[derive(Debug, Clone)]
pub struct Norm(pub(crate) Factors);

#[derive(Debug, Clone)]
pub(crate) enum Factors {
    /// A factor and an offset for each channel.
    PerChannel { scale: Vec<Lanes>, shift: Vec<Lanes> },
    /// A factor for each px and one for each channel.
    PerPx { inverse: Vec<f32>, gain: Vec<Lanes> },
}

impl Norm {
    /// A group norm: `(x - mean) / sqrt(variance + epsilon) * weight + bias` with the mean and variance of the channel's group. `moments` are those of the
    /// image, or of all tiles of it, which then have the same norm.
    ///
    /// # Panics
    /// When weight and bias differ in length, or cannot be divided into as many groups as there are moments.
    #[must_use]
    pub fn group_norm(moments: &GroupMoments, weight: &[f32], bias: &[f32], epsilon: f64) -> Self {
        let groups = moments.groups();
        assert!(weight.len() == bias.len() && weight.len().is_multiple_of(groups.len()), "{} channels in {} groups", weight.len(), groups.len());
        let (mut scale, mut shift) = (Vec::new(), Vec::new());
        let channels_per_group = weight.len() / groups.len().max(1);
        for (group, moments) in groups.iter().enumerate() {
            let inverse = 1.0 / (moments.variance() + epsilon).sqrt();
            for channel in group * channels_per_group..(group + 1) * channels_per_group {
                scale.push((f64::from(weight[channel]) * inverse) as f32);
                shift.push((f64::from(bias[channel]) - moments.mean * f64::from(weight[channel]) * inverse) as f32);
            }
        }
        Self(Factors::PerChannel { scale: padded(&scale), shift: padded(&shift) })
    }

    /// An RMS norm over the channels of each px of `image`: `x / max(|x|, 1e-12) * sqrt(channels) * gamma` with the L2 norm `|x|`. Statistics that a
    /// convolution collected are used if the image has them.
    #[must_use]
    pub fn rms_norm(image: &BlockedImage, gamma: &[f32]) -> Self {
        /// Px of one task.
        const CHUNK_PX: usize = 512;
        let mut inverse = match image.statistics() {
            Some(Collected::SquaredNorms(squares)) => squares.clone(),
            _ => statistics::squared_norms(image.lanes(), image.area()),
        };
        inverse.par_chunks_mut(CHUNK_PX).for_each(|inverse| {
            for value in inverse {
                *value = 1.0 / value.sqrt().max(EPS);
            }
        });
        let root = (gamma.len() as f32).sqrt();
        let gain: Vec<f32> = gamma.iter().map(|gamma| root * gamma).collect();
        Self(Factors::PerPx { inverse, gain: padded(&gain) })
    }

    /// Normalises px of a block of channels, then applies the activation. `position` maps an index of `px` to its index in the image.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(&self, _: S, activation: Activation, block: usize, px: &mut [Lanes], position: impl Fn(usize) -> usize) {
        match &self.0 {
            Factors::PerChannel { scale, shift } => {
                let (scale, shift) = (scale[block], shift[block]);
                for px in px {
                    for lane in 0..LANES {
                        px.0[lane] = px.0[lane] * scale.0[lane] + shift.0[lane];
                    }
                    activation.apply(px);
                }
            }
            Factors::PerPx { inverse, gain } => {
                let gain = gain[block];
                for (at, px) in px.iter_mut().enumerate() {
                    let inverse = inverse[position(at)];
                    for lane in 0..LANES {
                        px.0[lane] = px.0[lane] * inverse * gain.0[lane];
                    }
                    activation.apply(px);
                }
            }
        }
    }
}
