use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::ParallelSliceMut;

use crate::math::silu;
use crate::vectors::dispatch;
use crate::{Image, LANES, Px, padded};

/// The least length of a px's channels that is divided by.
const LEAST_LENGTH: f32 = 1e-12;

/// How values are normalised.
#[derive(Debug, Clone)]
pub enum Norm {
    /// Values are taken as they are.
    None,
    /// Each channel is scaled and shifted.
    Channels(Channels),
    /// Each px is multiplied by one number for it and one for its channel.
    Pixels(Pixels),
}

/// See [`Norm::Channels`].
#[derive(Debug, Clone)]
pub struct Channels {
    pub(crate) scale: Vec<Px>,
    pub(crate) shift: Vec<Px>,
    pub(crate) silu: bool,
}

/// See [`Norm::Pixels`].
#[derive(Debug, Clone)]
pub struct Pixels {
    pub(crate) inverse: Vec<f32>,
    pub(crate) gain: Vec<Px>,
    pub(crate) silu: bool,
}

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

impl Norm {
    /// Normalises an image in groups of channels, each with its own weight and bias.
    #[must_use]
    pub fn in_groups(image: &Image, weight: &[f32], bias: &[f32], rule: GroupRule) -> Self {
        let area = image.area();
        let moments: Vec<[f64; 2]> = (0..image.blocks() * STRETCHES)
            .into_par_iter()
            .flat_map_iter(|part| {
                let block = image.block(part / STRETCHES);
                let stretch = part % STRETCHES;
                let px = &block[area * stretch / STRETCHES..area * (stretch + 1) / STRETCHES];
                dispatch(Moments(px)).into_iter()
            })
            .collect();
        let per_group = image.channels() / rule.groups;
        let (mut scale, mut shift) = (Vec::new(), Vec::new());
        for group in 0..rule.groups {
            let channels = group * per_group..(group + 1) * per_group;
            let count = (per_group * area) as f64;
            let stretches = || {
                channels.clone().flat_map(|channel| {
                    let moments = &moments;
                    (0..STRETCHES).map(move |stretch| {
                        let px = area * (stretch + 1) / STRETCHES - area * stretch / STRETCHES;
                        (px as f64, moments[(channel / LANES * STRETCHES + stretch) * LANES + channel % LANES])
                    })
                })
            };
            let mean = stretches().map(|(px, [mean, _])| px * mean).sum::<f64>() / count;
            let variance = stretches().map(|(px, [at, squares])| squares + px * (at - mean) * (at - mean)).sum::<f64>() / count;
            let inverse = 1.0 / (variance + rule.epsilon).sqrt();
            for channel in channels {
                scale.push((f64::from(weight[channel]) * inverse) as f32);
                shift.push((f64::from(bias[channel]) - mean * f64::from(weight[channel]) * inverse) as f32);
            }
        }
        Self::Channels(Channels { scale: padded(&scale), shift: padded(&shift), silu: rule.then_silu })
    }

    /// Divides each px by the length of its vector of channels, and scales it by the root of their number and by `gamma`.
    #[must_use]
    pub fn of_pixels(image: &Image, gamma: &[f32], then_silu: bool) -> Self {
        /// Px that one task takes.
        const STRETCH: usize = 512;
        let mut inverse = vec![0.0_f32; image.area()];
        inverse.par_chunks_mut(STRETCH).enumerate().for_each(|(stretch, inverse)| {
            dispatch(Lengths { image, start: stretch * STRETCH, inverse });
        });
        let root = (gamma.len() as f32).sqrt();
        let gain: Vec<f32> = gamma.iter().map(|gamma| root * gamma).collect();
        Self::Pixels(Pixels { inverse, gain: padded(&gain), silu: then_silu })
    }

    /// The whole image, normalised.
    #[must_use]
    pub fn applied(&self, image: Image) -> Image {
        /// Px that one task takes.
        const STRETCH: usize = 512;
        let (channels, size, area) = (image.channels(), image.size(), image.area());
        if matches!(self, Self::None) || area == 0 {
            return image;
        }
        let mut px = image.into_px();
        px.par_chunks_mut(area).enumerate().for_each(|(block, px)| {
            px.par_chunks_mut(STRETCH).enumerate().for_each(|(stretch, px)| dispatch(Applied { norm: self, block, start: stretch * STRETCH, px }));
        });
        Image::filled(px, channels, size)
    }

    /// Normalises px of a block; `place` is where each lies in its picture.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(&self, _: S, block: usize, line: &mut [Px], place: impl Fn(usize) -> usize) {
        match self {
            Self::None => {}
            Self::Channels(Channels { scale, shift, silu: activate }) => {
                let (scale, shift) = (scale[block], shift[block]);
                for px in line {
                    for lane in 0..LANES {
                        px.0[lane] = px.0[lane] * scale.0[lane] + shift.0[lane];
                    }
                    if *activate {
                        for value in &mut px.0 {
                            *value = silu(*value);
                        }
                    }
                }
            }
            Self::Pixels(Pixels { inverse, gain, silu: activate }) => {
                let gain = gain[block];
                for (at, px) in line.iter_mut().enumerate() {
                    let inverse = inverse[place(at)];
                    for lane in 0..LANES {
                        px.0[lane] = px.0[lane] * inverse * gain.0[lane];
                    }
                    if *activate {
                        for value in &mut px.0 {
                            *value = silu(*value);
                        }
                    }
                }
            }
        }
    }
}

/// Parts of a channel whose moments are taken apart.
const STRETCHES: usize = 16;

/// The mean of each channel, and the sum of the squares of what differs from it.
struct Moments<'a>(&'a [Px]);

impl WithSimd for Moments<'_> {
    type Output = [[f64; 2]; LANES];

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) -> Self::Output {
        /// Px whose sums are taken in f32.
        const SHORT: usize = 64;
        let mut sums = [0.0_f64; LANES];
        // Values are taken as differences from the first, so that little is lost where the mean is large.
        let center = self.0.first().copied().unwrap_or(Px::ZERO);
        let mut squares = [0.0_f64; LANES];
        for px in self.0.chunks(SHORT) {
            let (mut sum, mut square) = ([[0.0_f32; LANES]; 2], [[0.0_f32; LANES]; 2]);
            for (at, px) in px.iter().enumerate() {
                for lane in 0..LANES {
                    let value = px.0[lane] - center.0[lane];
                    sum[at % 2][lane] += value;
                    square[at % 2][lane] += value * value;
                }
            }
            for lane in 0..LANES {
                sums[lane] += f64::from(sum[0][lane] + sum[1][lane]);
                squares[lane] += f64::from(square[0][lane] + square[1][lane]);
            }
        }
        let count = (self.0.len() as f64).max(1.0);
        std::array::from_fn(|lane| {
            let mean = sums[lane] / count;
            [mean + f64::from(center.0[lane]), (squares[lane] - sums[lane] * mean).max(0.0)]
        })
    }
}

/// The inverse lengths of some px's channels.
struct Lengths<'a> {
    image: &'a Image,
    start: usize,
    inverse: &'a mut [f32],
}

impl WithSimd for Lengths<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        /// Px whose sums stay near.
        const TOGETHER: usize = 32;
        for (part, inverse) in self.inverse.chunks_mut(TOGETHER).enumerate() {
            let start = self.start + part * TOGETHER;
            let mut sums = [Px::ZERO; TOGETHER];
            for block in 0..self.image.blocks() {
                for (sum, px) in sums.iter_mut().zip(&self.image.block(block)[start..][..inverse.len()]) {
                    for lane in 0..LANES {
                        sum.0[lane] += px.0[lane] * px.0[lane];
                    }
                }
            }
            for (inverse, sum) in inverse.iter_mut().zip(&sums) {
                *inverse = 1.0 / sum_of(&sum.0).sqrt().max(LEAST_LENGTH);
            }
        }
    }
}

/// Added in pairs, always the same ones.
#[inline(always)]
pub(crate) fn sum_of(values: &[f32; LANES]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|at| values[at] + values[at + 8]);
    let four: [f32; 4] = std::array::from_fn(|at| eight[at] + eight[at + 4]);
    (four[0] + four[2]) + (four[1] + four[3])
}

/// A stretch of a block, normalised.
struct Applied<'a> {
    norm: &'a Norm,
    block: usize,
    start: usize,
    px: &'a mut [Px],
}

impl WithSimd for Applied<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let start = self.start;
        self.norm.apply(simd, self.block, self.px, |at| start + at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, offset: f32) -> Vec<f32> {
        (0..count).map(|at| (at as f32 * 0.37).sin() * 2.0 + offset).collect()
    }

    fn planes(image: &Image) -> Vec<f32> {
        let mut values = vec![0.0; image.channels() * image.area()];
        image.to_planes(&mut values, image.area());
        values
    }

    #[test]
    fn groups_are_normalised_by_their_definition() {
        for (channels, groups, size, offset) in [(6, 3, [5, 7], 0.5), (4, 2, [1, 1], 0.0), (40, 8, [20, 33], 100.0)] {
            let area = size[0] * size[1];
            let (input, weight, bias) = (values(channels * area, offset), values(channels, 0.1), values(channels, 0.7));
            for then_silu in [false, true] {
                let rule = GroupRule { groups, epsilon: 1e-6, then_silu };
                let image = Image::from_planes(&input, area, channels, size);
                let got = planes(&Norm::in_groups(&image, &weight, &bias, rule).applied(image));
                for (group, part) in input.chunks(channels / groups * area).enumerate() {
                    let count = part.len() as f64;
                    let mean = part.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
                    let variance = part.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
                    for (at, &value) in part.iter().enumerate() {
                        let channel = group * (channels / groups) + at / area;
                        let y = (f64::from(value) - mean) / (variance + 1e-6).sqrt() * f64::from(weight[channel]) + f64::from(bias[channel]);
                        let y = if then_silu { y / (1.0 + (-y).exp()) } else { y };
                        let error = (f64::from(got[group * part.len() + at]) - y).abs();
                        assert!(error < 2e-5 + f64::from(offset) * 2e-6, "{channels} {size:?} {then_silu}: {error}");
                    }
                }
            }
        }
    }

    #[test]
    fn px_are_normalised_by_their_definition() {
        for (channels, size) in [(6, [5, 7]), (3, [1, 1]), (40, [20, 33])] {
            let area = size[0] * size[1];
            let (mut input, gamma) = (values(channels * area, 0.5), values(channels, 0.1));
            // A px without length.
            input.iter_mut().step_by(area).for_each(|value| *value = 0.0);
            for then_silu in [false, true] {
                let image = Image::from_planes(&input, area, channels, size);
                let got = planes(&Norm::of_pixels(&image, &gamma, then_silu).applied(image));
                for px in 0..area {
                    let of = |channel: usize| f64::from(input[channel * area + px]);
                    let length = (0..channels).map(|channel| of(channel).powi(2)).sum::<f64>().sqrt().max(1e-12);
                    for channel in 0..channels {
                        let y = of(channel) / length * (channels as f64).sqrt() * f64::from(gamma[channel]);
                        let y = if then_silu { y / (1.0 + (-y).exp()) } else { y };
                        assert!((f64::from(got[channel * area + px]) - y).abs() < 2e-6);
                    }
                }
            }
        }
    }
}
