use std::sync::Arc;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::memory::{Buffer, Workspace};
use crate::norms::Statistics;
use crate::{LANES, Lanes};

/// A picture whose channels lie in blocks: block by block, row by row, and in each px the 16 channels of the block side by side. The last block is filled up
/// with channels of zeros. Clones share their memory.
#[derive(Debug, Clone)]
pub struct BlockedImage {
    px: Arc<Buffer>,
    channels: usize,
    size: [usize; 2],
    statistics: Option<Arc<Statistics>>,
}

impl BlockedImage {
    /// From channels of `size` (height and width) that lie `stride` values apart.
    ///
    /// # Panics
    /// When there are too few values.
    #[must_use]
    pub fn from_planes(values: &[f32], stride: usize, channels: usize, size: [usize; 2], workspace: &Workspace) -> Self {
        let area = size[0] * size[1];
        if area * channels == 0 {
            return Self::filled(Vec::new(), channels, size, workspace);
        }
        let planes = &values[..(channels - 1) * stride + area];
        let mut px = workspace.room(channels.div_ceil(LANES) * area);
        px.resize(channels.div_ceil(LANES) * area, Lanes::ZERO);
        px.par_chunks_mut(area).zip(planes.par_chunks(LANES * stride)).for_each(|(block, planes)| {
            for (lane, plane) in planes.chunks(stride).enumerate() {
                for (px, &value) in block.iter_mut().zip(plane) {
                    px.0[lane] = value;
                }
            }
        });
        Self::filled(px, channels, size, workspace)
    }

    /// Writes channels that lie `stride` values apart.
    ///
    /// # Panics
    /// When there is too little room.
    pub fn to_planes(&self, values: &mut [f32], stride: usize) {
        let area = self.area();
        if area * self.channels == 0 {
            return;
        }
        let planes = &mut values[..(self.channels - 1) * stride + area];
        planes.par_chunks_mut(LANES * stride).zip(self.px.par_chunks(area)).for_each(|(planes, block)| {
            for (lane, plane) in planes.chunks_mut(stride).enumerate() {
                for (value, px) in plane.iter_mut().zip(block) {
                    *value = px.0[lane];
                }
            }
        });
    }

    /// Zeros.
    #[must_use]
    pub fn zeros(channels: usize, size: [usize; 2], workspace: &Workspace) -> Self {
        let count = channels.div_ceil(LANES) * size[0] * size[1];
        let mut px = workspace.room(count);
        px.resize(count, Lanes::ZERO);
        Self::filled(px, channels, size, workspace)
    }

    /// Each px four times.
    #[must_use]
    pub fn upsampled(&self) -> Self {
        let [height, width] = self.size;
        let mut px = self.workspace().room(4 * self.px.len());
        px.resize(4 * self.px.len(), Lanes::ZERO);
        px.par_chunks_mut((2 * width).max(1)).enumerate().for_each(|(row, line)| {
            let (block, row) = (row / (2 * height), row % (2 * height) / 2);
            for (at, px) in line.iter_mut().enumerate() {
                *px = self.block(block)[row * width + at / 2];
            }
        });
        Self::filled(px, self.channels, [2 * height, 2 * width], self.workspace())
    }

    /// The sum of both.
    ///
    /// # Panics
    /// When they differ in size or channels.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        /// Lanes that one task takes.
        const STRETCH: usize = 4096;
        let (channels, size, workspace) = (self.channels, self.size, self.workspace().clone());
        assert!(other.channels == channels && other.size == size, "sizes");
        let mut px = self.into_px();
        px.par_chunks_mut(STRETCH).zip(other.px.par_chunks(STRETCH)).for_each(|(px, other)| {
            for (px, other) in px.iter_mut().zip(other) {
                for (value, other) in px.0.iter_mut().zip(other.0) {
                    *value += other;
                }
            }
        });
        Self::filled(px, channels, size, &workspace)
    }

    pub(crate) fn filled(px: Vec<Lanes>, channels: usize, size: [usize; 2], workspace: &Workspace) -> Self {
        Self { px: Arc::new(Buffer::new(px, workspace.clone())), channels, size, statistics: None }
    }

    /// Where it was made.
    #[must_use]
    pub fn workspace(&self) -> &Workspace {
        self.px.workspace()
    }

    /// With what is known of its values.
    pub(crate) fn with(self, statistics: Statistics) -> Self {
        Self { statistics: Some(Arc::new(statistics)), ..self }
    }

    pub(crate) fn statistics(&self) -> Option<&Statistics> {
        self.statistics.as_deref()
    }

    /// How many channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Height and width.
    #[must_use]
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    pub(crate) fn area(&self) -> usize {
        self.size[0] * self.size[1]
    }

    pub(crate) fn blocks(&self) -> usize {
        self.channels.div_ceil(LANES)
    }

    /// All blocks.
    #[cfg(test)]
    pub(crate) fn px(&self) -> &[Lanes] {
        &self.px
    }

    pub(crate) fn block(&self, block: usize) -> &[Lanes] {
        &self.px[block * self.area()..][..self.area()]
    }

    /// Memory that nobody else holds: its own, or a copy.
    pub(crate) fn into_px(self) -> Vec<Lanes> {
        match Arc::try_unwrap(self.px) {
            Ok(own) => own.into_px(),
            Err(shared) => {
                let mut px = shared.workspace().room(shared.len());
                px.extend_from_slice(&shared);
                px
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_survive_the_way_there_and_back() {
        for channels in [1, 3, 16, 17, 40] {
            let (size, stride) = ([3, 5], 23);
            let values: Vec<f32> = (0..channels * stride).map(|at| at as f32 + 1.0).collect();
            let image = BlockedImage::from_planes(&values, stride, channels, size, &Workspace::default());
            assert_eq!(image.px().len(), channels.div_ceil(16) * 15);
            assert_eq!(image.px().iter().flat_map(|px| px.0).filter(|&value| value == 0.0).count(), (channels.next_multiple_of(16) - channels) * 15);
            let mut back = vec![0.0; values.len()];
            image.to_planes(&mut back, stride);
            for (at, (&back, &value)) in back.iter().zip(&values).enumerate() {
                assert_eq!(back, if at % stride < 15 { value } else { 0.0 }, "{at}");
            }
        }
    }
}
