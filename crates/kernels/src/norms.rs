use pulp::{Simd, WithSimd};
use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::convolution::{Group, groups};
use crate::math::silu;
use crate::vectors::dispatch;
use crate::{BlockedImage, LANES, Lanes, TILES, padded};

/// The least length of a px's channels that is divided by.
const EPS: f32 = 1e-12;

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
    pub(crate) scale: Vec<Lanes>,
    pub(crate) shift: Vec<Lanes>,
    pub(crate) silu: bool,
}

/// See [`Norm::Pixels`].
#[derive(Debug, Clone)]
pub struct Pixels {
    pub(crate) inverse: Vec<f32>,
    pub(crate) gain: Vec<Lanes>,
    pub(crate) silu: bool,
}

/// What norms need to know of an image. A convolution gathers it from what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gather {
    /// Nothing.
    Nothing,
    /// For [`Norm::group_norm`].
    Moments,
    /// For [`Norm::rms_norm`].
    Lengths,
}

/// What has been gathered.
#[derive(Debug)]
pub(crate) enum Statistics {
    /// By block and group of tiles of 4x4 px: the mean of each channel, and the sum of the squares of what differs from it.
    Moments(Vec<Lanes>),
    /// The square of the length of each px's channels.
    Lengths(Vec<f32>),
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
    pub fn group_norm(image: &BlockedImage, weight: &[f32], bias: &[f32], rule: GroupRule) -> Self {
        let parts = groups::<4>(image.size(), true);
        let counted;
        let moments = if let Some(Statistics::Moments(moments)) = image.statistics() {
            moments
        } else {
            counted = moments(image, &parts);
            &counted
        };
        let sizes: Vec<f64> = parts.iter().map(|group| group.px(image.size()) as f64).collect();
        // Sums of each channel: of its values, and of the squares of what differs from the mean of a part.
        let sums: Vec<[[f64; LANES]; 2]> = moments.par_chunks(2 * parts.len().max(1)).map(|moments| totals(moments, &sizes)).collect();
        let area = image.area() as f64;
        let per_group = image.channels() / rule.groups;
        let (mut scale, mut shift) = (Vec::new(), Vec::new());
        for group in 0..rule.groups {
            let channels = group * per_group..(group + 1) * per_group;
            let of = |channel: usize| [0, 1].map(|what| sums[channel / LANES][what][channel % LANES]);
            let mean = channels.clone().map(|channel| of(channel)[0]).sum::<f64>() / (per_group as f64 * area);
            let spread = |[sum, squares]: [f64; 2]| squares + area * (sum / area - mean).powi(2);
            let variance = channels.clone().map(|channel| spread(of(channel))).sum::<f64>() / (per_group as f64 * area);
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
    pub fn rms_norm(image: &BlockedImage, gamma: &[f32], then_silu: bool) -> Self {
        /// Lanes that one task takes.
        const STRETCH: usize = 512;
        let mut inverse = vec![0.0_f32; image.area()];
        if let Some(Statistics::Lengths(squares)) = image.statistics() {
            inverse.copy_from_slice(squares);
        } else {
            inverse.par_chunks_mut(STRETCH).enumerate().for_each(|(stretch, squares)| dispatch(Lengths { image, start: stretch * STRETCH, squares }));
        }
        inverse.par_chunks_mut(STRETCH).for_each(|inverse| {
            for value in inverse {
                *value = 1.0 / value.sqrt().max(EPS);
            }
        });
        let root = (gamma.len() as f32).sqrt();
        let gain: Vec<f32> = gamma.iter().map(|gamma| root * gamma).collect();
        Self::Pixels(Pixels { inverse, gain: padded(&gain), silu: then_silu })
    }

    /// The whole image, normalised.
    #[must_use]
    pub fn applied(&self, image: BlockedImage) -> BlockedImage {
        /// Lanes that one task takes.
        const STRETCH: usize = 512;
        let (channels, size, area) = (image.channels(), image.size(), image.area());
        if matches!(self, Self::None) || area == 0 {
            return image;
        }
        let workspace = image.workspace().clone();
        let mut px = image.into_px();
        px.par_chunks_mut(area).enumerate().for_each(|(block, px)| {
            px.par_chunks_mut(STRETCH).enumerate().for_each(|(stretch, px)| dispatch(Applied { norm: self, block, start: stretch * STRETCH, px }));
        });
        BlockedImage::filled(px, channels, size, &workspace)
    }

    /// Normalises px of a block; `place` is where each lies in its picture.
    #[inline(always)]
    pub(crate) fn apply<S: Simd>(&self, _: S, block: usize, line: &mut [Lanes], place: impl Fn(usize) -> usize) {
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

/// The mean of each channel of some px, and the sum of the squares of what differs from it.
#[derive(Clone, Copy)]
pub(crate) struct Moments {
    /// Values are taken as differences from the first, so that little is lost where the mean is large.
    center: Lanes,
    sum: Lanes,
    squares: Lanes,
    count: usize,
}

impl Moments {
    pub(crate) const NONE: Self = Self { center: Lanes::ZERO, sum: Lanes::ZERO, squares: Lanes::ZERO, count: 0 };

    #[inline(always)]
    pub(crate) fn add(&mut self, px: &[Lanes]) {
        if self.count == 0 {
            self.center = px.first().copied().unwrap_or(Lanes::ZERO);
        }
        self.count += px.len();
        for px in px {
            for lane in 0..LANES {
                let value = px.0[lane] - self.center.0[lane];
                self.sum.0[lane] += value;
                self.squares.0[lane] = value.mul_add(value, self.squares.0[lane]);
            }
        }
    }

    #[inline(always)]
    pub(crate) fn finish(&self) -> [Lanes; 2] {
        let share = 1.0 / self.count.max(1) as f32;
        let mean = Lanes(std::array::from_fn(|lane| self.sum.0[lane] * share + self.center.0[lane]));
        let squares = Lanes(std::array::from_fn(|lane| (self.squares.0[lane] - self.sum.0[lane] * (self.sum.0[lane] * share)).max(0.0)));
        [mean, squares]
    }
}

/// Moments of each block in each part of an image, as a convolution gathers them.
fn moments(image: &BlockedImage, parts: &[Group]) -> Vec<Lanes> {
    /// Parts that one task takes.
    const TOGETHER: usize = 64;
    let mut moments = vec![Lanes::ZERO; 2 * image.blocks() * parts.len()];
    moments.par_chunks_mut(2 * parts.len().max(1)).enumerate().for_each(|(block, moments)| {
        moments.par_chunks_mut(2 * TOGETHER).zip(parts.par_chunks(TOGETHER)).for_each(|(moments, parts)| {
            dispatch(PartMoments { px: image.block(block), size: image.size(), parts, moments });
        });
    });
    moments
}

struct PartMoments<'a> {
    px: &'a [Lanes],
    size: [usize; 2],
    parts: &'a [Group],
    moments: &'a mut [Lanes],
}

impl WithSimd for PartMoments<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        let [height, width] = self.size;
        for (group, answer) in self.parts.iter().zip(self.moments.chunks_mut(2)) {
            let mut moments = Moments::NONE;
            for tile in 0..TILES {
                let [top, left] = group.tile(tile).map(|at| 4 * at);
                for row in top..(top + 4).min(height) {
                    if left < width {
                        moments.add(&self.px[row * width + left..row * width + (left + 4).min(width)]);
                    }
                }
            }
            answer.copy_from_slice(&moments.finish());
        }
    }
}

/// Sums of a block's channels from the moments of its parts, in two rounds so that little is lost.
fn totals(moments: &[Lanes], sizes: &[f64]) -> [[f64; LANES]; 2] {
    let (parts, _) = moments.as_chunks::<2>();
    let mut sums = [0.0; LANES];
    for ([mean, _], size) in parts.iter().zip(sizes) {
        for (sum, &mean) in sums.iter_mut().zip(&mean.0) {
            *sum += size * f64::from(mean);
        }
    }
    let area: f64 = sizes.iter().sum();
    let means = sums.map(|sum| sum / area);
    let mut squares = [0.0; LANES];
    for ([mean, spread], size) in parts.iter().zip(sizes) {
        for lane in 0..LANES {
            squares[lane] += f64::from(spread.0[lane]) + size * (f64::from(mean.0[lane]) - means[lane]).powi(2);
        }
    }
    [sums, squares]
}

/// The squares of the lengths of some px's channels.
struct Lengths<'a> {
    image: &'a BlockedImage,
    start: usize,
    squares: &'a mut [f32],
}

impl WithSimd for Lengths<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _: S) {
        for block in 0..self.image.blocks() {
            for (square, px) in self.squares.iter_mut().zip(&self.image.block(block)[self.start..]) {
                *square += square_of(px);
            }
        }
    }
}

/// The sum of the squares of a px's channels.
#[inline(always)]
pub(crate) fn square_of(px: &Lanes) -> f32 {
    sum_of(&px.0.map(|value| value * value))
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
    px: &'a mut [Lanes],
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
impl BlockedImage {
    /// What was gathered is to the bit what is found by looking at the px.
    pub(crate) fn check_statistics(&self) {
        match self.statistics() {
            None => {}
            Some(Statistics::Moments(gathered)) => assert!(*gathered == moments(self, &groups::<4>(self.size(), true))),
            Some(Statistics::Lengths(gathered)) => {
                let mut squares = vec![0.0; self.area()];
                dispatch(Lengths { image: self, start: 0, squares: &mut squares });
                assert!(*gathered == squares);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Workspace;

    fn values(count: usize, offset: f32) -> Vec<f32> {
        (0..count).map(|at| (at as f32 * 0.37).sin() * 2.0 + offset).collect()
    }

    fn planes(image: &BlockedImage) -> Vec<f32> {
        let mut values = vec![0.0; image.channels() * image.area()];
        image.to_planes(&mut values, image.area());
        values
    }

    #[test]
    fn groups_are_normalised_by_their_definition() {
        for (channels, groups, size, offset) in [(6, 3, [5, 7], 0.5), (4, 2, [1, 1], 0.0), (40, 8, if cfg!(miri) { [3, 5] } else { [20, 33] }, 100.0)]
        {
            let area = size[0] * size[1];
            let (input, weight, bias) = (values(channels * area, offset), values(channels, 0.1), values(channels, 0.7));
            for then_silu in [false, true] {
                let rule = GroupRule { groups, epsilon: 1e-6, then_silu };
                let image = BlockedImage::from_planes(&input, area, channels, size, &Workspace::default());
                let got = planes(&Norm::group_norm(&image, &weight, &bias, rule).applied(image));
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
        for (channels, size) in [(6, [5, 7]), (3, [1, 1]), (40, if cfg!(miri) { [3, 5] } else { [20, 33] })] {
            let area = size[0] * size[1];
            let (mut input, gamma) = (values(channels * area, 0.5), values(channels, 0.1));
            // A px without length.
            input.iter_mut().step_by(area).for_each(|value| *value = 0.0);
            for then_silu in [false, true] {
                let image = BlockedImage::from_planes(&input, area, channels, size, &Workspace::default());
                let got = planes(&Norm::rms_norm(&image, &gamma, then_silu).applied(image));
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
