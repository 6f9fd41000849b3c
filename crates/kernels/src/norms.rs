use pulp::{Arch, Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::math::{silu, sum};

/// The least length of a px's channels that is divided by.
const LEAST_LENGTH: f32 = 1e-12;

/// How channels are normalised in groups.
#[derive(Debug, Clone, Copy)]
pub struct GroupRule {
    /// Of channels that lie side by side.
    pub groups: usize,
    /// What is added to each variance.
    pub epsilon: f64,
    /// Whether SiLU follows.
    pub then_silu: bool,
}

/// Normalises pictures of `area` px in groups of channels, each with its own weight and bias.
pub fn normalise_groups(values: &mut [f32], area: usize, weight: &[f32], bias: &[f32], rule: GroupRule) {
    let per_group = weight.len() / rule.groups;
    values.par_chunks_mut((per_group * area).max(1)).enumerate().for_each(|(index, group)| {
        let first = index % rule.groups * per_group;
        let range = first..first + per_group;
        let (weight, bias) = (&weight[range.clone()], &bias[range]);
        Arch::new().dispatch(GroupPart { rule, group, weight, bias });
    });
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

/// Divides each of a picture's (or clip's) `pixels` px by the length of its vector of channels, and scales it by the root of their number and by `gamma`.
pub fn normalise_pixels(values: &mut [f32], pixels: usize, gamma: &[f32], then_silu: bool) {
    /// Px whose lengths one task takes.
    const STRETCH: usize = 1024;
    let root = (gamma.len() as f32).sqrt();
    for item in values.chunks_mut((gamma.len() * pixels).max(1)) {
        let mut inverse = vec![0.0_f32; pixels];
        let lengths = inverse[..].par_chunks_mut(STRETCH).enumerate();
        let read = &*item;
        lengths.for_each(|(stretch, inverse)| {
            let start = stretch * STRETCH;
            Arch::new().dispatch(Lengths { planes: read, pixels, start, inverse });
        });
        let inverse = &inverse;
        item.par_chunks_mut(pixels).zip(gamma.into_par_iter()).for_each(|(plane, &gamma)| {
            let scale = root * gamma;
            Arch::new().dispatch(Scaled { plane, inverse, scale, then_silu });
        });
    }
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
            *sum = 1.0 / sum.sqrt().max(LEAST_LENGTH);
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
