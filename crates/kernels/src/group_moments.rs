use rayon::iter::ParallelIterator;
use rayon::slice::ParallelSlice;

use crate::groups::tile_groups;
use crate::image::BlockedImage;
use crate::lanes::LANES;
use crate::statistics::{self, Collected};

/// Count, mean and squared deviations of a set of values.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Moments {
    /// Number of values.
    pub count: f64,
    /// Their mean.
    pub mean: f64,
    /// The sum of the squares of their differences from the mean.
    pub squared_deviations: f64,
}

impl Moments {
    /// The moments of the union of two disjoint sets.
    ///
    /// Source: T. Chan, G. Golub and R. LeVeque, "Algorithms for Computing the Sample Variance: Analysis and Recommendations", The American Statistician 37
    /// (1983), equations 2.1.
    #[must_use]
    pub fn merge(self, other: Self) -> Self {
        if self.count == 0.0 {
            return other;
        }
        if other.count == 0.0 {
            return self;
        }
        let count = self.count + other.count;
        let delta = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + delta * (other.count / count),
            squared_deviations: self.squared_deviations + other.squared_deviations + delta * delta * (self.count * other.count / count),
        }
    }

    /// The population variance, 0 for an empty set.
    #[must_use]
    pub fn variance(self) -> f64 {
        self.squared_deviations / self.count.max(1.0)
    }
}

/// The moments of each group of channels of an image, or of several tiles of it.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupMoments {
    groups: Vec<Moments>,
}

impl From<Vec<Moments>> for GroupMoments {
    /// Moments of consecutive groups of equally many channels.
    fn from(groups: Vec<Moments>) -> Self {
        Self { groups }
    }
}

impl GroupMoments {
    /// Computes the moments of `groups` groups of consecutive channels. Statistics that a convolution collected are used if the image has them.
    ///
    /// # Panics
    /// When the channels cannot be divided into that many equal groups.
    #[must_use]
    pub fn of_image(image: &BlockedImage, groups: usize) -> Self {
        assert!(groups > 0 && image.channels().is_multiple_of(groups), "{} channels in {groups} groups", image.channels());
        let channels_per_group = image.channels() / groups;
        let count = channels_per_group as f64 * image.area() as f64;
        if count == 0.0 {
            return Self { groups: vec![Moments::default(); groups] };
        }
        let computed;
        let moments = if let Some(Collected::Moments(moments)) = image.statistics() {
            moments
        } else {
            computed = statistics::moments(image.lanes(), image.size());
            &computed
        };
        let counts: Vec<f64> = tile_groups::<4>(image.size(), true).iter().map(|group| group.px(image.size()) as f64).collect();
        let totals: Vec<[[f64; LANES]; 2]> =
            moments.par_chunks(2 * counts.len()).map(|moments| statistics::total_moments(moments, &counts)).collect();
        let area = image.area() as f64;
        let moments = |group: usize| {
            let channels = (group * channels_per_group..(group + 1) * channels_per_group)
                .map(|channel| [0, 1].map(|moment| totals[channel / LANES][moment][channel % LANES]));
            let mean = channels.clone().map(|[sum, _]| sum).sum::<f64>() / count;
            let squared_deviations = channels.map(|[sum, squares]| squares + area * (sum / area - mean).powi(2)).sum();
            Moments { count, mean, squared_deviations }
        };
        Self { groups: (0..groups).map(moments).collect() }
    }

    /// Adds the moments of another tile of the same image. The result depends on the order of merging in its last bits: merge tiles in a fixed order.
    ///
    /// # Panics
    /// When the numbers of groups differ.
    pub fn merge(&mut self, other: &Self) {
        assert_eq!(self.groups.len(), other.groups.len(), "groups");
        for (moments, &other) in self.groups.iter_mut().zip(&other.groups) {
            *moments = moments.merge(other);
        }
    }

    /// The moments of each group, in the order of channels.
    #[must_use]
    pub fn groups(&self) -> &[Moments] {
        &self.groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Workspace;

    /// A crop of planes of a height and width.
    fn crop(values: &[f32], [height, width]: [usize; 2], [top, left]: [usize; 2], size: [usize; 2]) -> BlockedImage {
        let planes =
            values.chunks(height * width).flat_map(|plane| plane.chunks(width).skip(top).take(size[0]).flat_map(|row| &row[left..left + size[1]]));
        let planes: Vec<f32> = planes.copied().collect();
        BlockedImage::from_planes(&planes, size[0] * size[1], values.len() / (height * width), size, &Workspace::default())
    }

    #[test]
    fn moments_of_tiles_merge_to_those_of_the_image() {
        for (channels, groups, size, tile, offset) in
            [(6, 3, [13, 9], [5, 4], 0.5_f64), (4, 4, [1, 1], [1, 1], -2.0), (40, 8, if cfg!(miri) { [3, 5] } else { [37, 50] }, [16, 7], 1000.0)]
        {
            let [height, width] = size;
            // Tiles have different means, so that the term between tiles counts.
            let values: Vec<f32> =
                (0..channels * height * width).map(|at| (offset + (at as f64 * 0.37).sin() + (at % width) as f64) as f32).collect();
            let mut merged = GroupMoments::of_image(&crop(&values, size, [0, 0], [0, 0]), groups);
            assert_eq!(merged.groups(), vec![Moments::default(); groups]);
            for top in (0..height).step_by(tile[0]) {
                for left in (0..width).step_by(tile[1]) {
                    let size_of_tile = [tile[0].min(height - top), tile[1].min(width - left)];
                    merged.merge(&GroupMoments::of_image(&crop(&values, size, [top, left], size_of_tile), groups));
                }
            }
            let whole = GroupMoments::of_image(&crop(&values, size, [0, 0], size), groups);
            for (group, values) in values.chunks(values.len() / groups).enumerate() {
                let count = values.len() as f64;
                let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
                let largest = values.iter().fold(0.0, |largest: f64, &value| largest.max(f64::from(value.abs())));
                let squares = values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>();
                for moments in [merged.groups()[group], whole.groups()[group]] {
                    assert_eq!(moments.count, count);
                    // Moments of groups of tiles are rounded to f32.
                    assert!((moments.mean - mean).abs() <= f64::from(f32::EPSILON) * largest, "{moments:?} {mean}");
                    assert!((moments.squared_deviations - squares).abs() <= 1e-6 * squares * (1.0 + 0.01 * offset.abs()), "{moments:?} {squares}");
                }
            }
        }
    }
}
