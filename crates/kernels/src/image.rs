use std::sync::Arc;

use rayon::iter::{IndexedParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::lanes::{LANES, Lanes};
use crate::memory::{Buffer, Workspace};
use crate::statistics::Collected;

/// An image in a blocked channels-last layout, `[channels / 16, height, width, 16]`: each px has the 16 channels of a block next to one another. The last
/// block is padded with channels of zeros. Clones share their memory.
#[derive(Debug, Clone)]
pub struct BlockedImage {
    lanes: Arc<Buffer>,
    channels: usize,
    size: [usize; 2],
    statistics: Option<Arc<Collected>>,
}

impl BlockedImage {
    /// Copies planar channels of `size` (height and width in px), which begin `stride` values apart.
    ///
    /// # Shapes
    /// `values`: `[channels, height, width]` with a stride of `stride` between channels.
    ///
    /// # Panics
    /// When there are fewer values.
    #[must_use]
    pub fn from_planes(values: &[f32], stride: usize, channels: usize, size: [usize; 2], workspace: &Workspace) -> Self {
        let area = size[0] * size[1];
        if area * channels == 0 {
            return Self::from_lanes(Vec::new(), channels, size, workspace);
        }
        let planes = &values[..(channels - 1) * stride + area];
        let mut lanes = workspace.allocate(channels.div_ceil(LANES) * area);
        lanes.resize(channels.div_ceil(LANES) * area, Lanes::ZERO);
        lanes.par_chunks_mut(area).zip(planes.par_chunks(LANES * stride)).for_each(|(block, planes)| {
            for (lane, plane) in planes.chunks(stride).enumerate() {
                for (px, &value) in block.iter_mut().zip(plane) {
                    px.0[lane] = value;
                }
            }
        });
        Self::from_lanes(lanes, channels, size, workspace)
    }

    /// Copies the values to planar channels, which begin `stride` values apart.
    ///
    /// # Shapes
    /// `values`: `[channels, height, width]` with a stride of `stride` between channels.
    ///
    /// # Panics
    /// When `values` is shorter.
    pub fn to_planes(&self, values: &mut [f32], stride: usize) {
        let area = self.area();
        if area * self.channels == 0 {
            return;
        }
        let planes = &mut values[..(self.channels - 1) * stride + area];
        planes.par_chunks_mut(LANES * stride).zip(self.lanes.par_chunks(area)).for_each(|(planes, block)| {
            for (lane, plane) in planes.chunks_mut(stride).enumerate() {
                for (value, px) in plane.iter_mut().zip(block) {
                    *value = px.0[lane];
                }
            }
        });
    }

    /// An image of zeros.
    #[must_use]
    pub fn zeros(channels: usize, size: [usize; 2], workspace: &Workspace) -> Self {
        let count = channels.div_ceil(LANES) * size[0] * size[1];
        let mut lanes = workspace.allocate(count);
        lanes.resize(count, Lanes::ZERO);
        Self::from_lanes(lanes, channels, size, workspace)
    }

    /// An image whose rows `fill` writes: it is given a block of channels, a row and the row's px, `[width, 16]`, which are zeros before. Several threads call it
    /// at once.
    ///
    /// # Errors
    /// The first error of `fill`.
    pub fn from_rows<E: Send>(
        channels: usize,
        size: [usize; 2],
        workspace: &Workspace,
        fill: impl Fn(usize, usize, &mut [[f32; LANES]]) -> Result<(), E> + Sync,
    ) -> Result<Self, E> {
        let [height, width] = size;
        let count = channels.div_ceil(LANES) * height * width;
        let mut lanes = workspace.allocate(count);
        lanes.resize(count, Lanes::ZERO);
        if count > 0 {
            let fill = |(at, row): (usize, &mut [Lanes])| fill(at / height, at % height, Lanes::as_arrays_mut(row));
            lanes.par_chunks_mut(width).enumerate().try_for_each(fill)?;
        }
        Ok(Self::from_lanes(lanes, channels, size, workspace))
    }

    /// The px of a row in a block of channels, `[width, 16]`.
    ///
    /// # Panics
    /// When there is no such block or row.
    #[must_use]
    pub fn row(&self, block: usize, row: usize) -> &[[f32; LANES]] {
        let width = self.size[1];
        Lanes::as_arrays(&self.block(block)[row * width..][..width])
    }

    /// All values, `[blocks of channels, height, width, 16]`.
    #[must_use]
    pub fn values(&self) -> &[[f32; LANES]] {
        Lanes::as_arrays(&self.lanes)
    }

    /// The px of `size` (height and width) from row `top` and column `left` on.
    ///
    /// # Panics
    /// When they reach beyond the image.
    #[must_use]
    pub fn cropped(&self, [top, left]: [usize; 2], size: [usize; 2]) -> Self {
        let copy = |block: usize, row: usize, px: &mut [[f32; LANES]]| {
            px.copy_from_slice(&self.row(block, top + row)[left..left + size[1]]);
            Ok::<_, std::convert::Infallible>(())
        };
        match Self::from_rows(self.channels, size, self.workspace(), copy) {
            Ok(image) => image,
        }
    }

    /// The image with height and width doubled by repeating each px (nearest neighbour).
    #[must_use]
    pub fn upsampled(&self) -> Self {
        let [height, width] = self.size;
        let mut lanes = self.workspace().allocate(4 * self.lanes.len());
        lanes.resize(4 * self.lanes.len(), Lanes::ZERO);
        lanes.par_chunks_mut((2 * width).max(1)).enumerate().for_each(|(row, line)| {
            let (block, row) = (row / (2 * height), row % (2 * height) / 2);
            for (at, px) in line.iter_mut().enumerate() {
                *px = self.block(block)[row * width + at / 2];
            }
        });
        Self::from_lanes(lanes, self.channels, [2 * height, 2 * width], self.workspace())
    }

    /// The sum of both images. Memory of `self` is reused if no clone shares it.
    ///
    /// # Panics
    /// When they differ in size or channels.
    #[must_use]
    pub fn plus(self, other: &Self) -> Self {
        /// Px of one task.
        const CHUNK_PX: usize = 4096;
        let (channels, size, workspace) = (self.channels, self.size, self.workspace().clone());
        assert!(other.channels == channels && other.size == size, "sizes");
        let mut lanes = self.into_lanes();
        lanes.par_chunks_mut(CHUNK_PX).zip(other.lanes.par_chunks(CHUNK_PX)).for_each(|(px, other)| {
            for (px, other) in px.iter_mut().zip(other) {
                for (value, other) in px.0.iter_mut().zip(other.0) {
                    *value += other;
                }
            }
        });
        Self::from_lanes(lanes, channels, size, &workspace)
    }

    /// `lanes`: block by block, row by row.
    pub(crate) fn from_lanes(lanes: Vec<Lanes>, channels: usize, size: [usize; 2], workspace: &Workspace) -> Self {
        Self { lanes: Arc::new(Buffer::new(lanes, workspace.clone())), channels, size, statistics: None }
    }

    /// The workspace that its memory belongs to.
    #[must_use]
    pub fn workspace(&self) -> &Workspace {
        self.lanes.workspace()
    }

    /// Attaches statistics of its values.
    pub(crate) fn with_statistics(self, statistics: Collected) -> Self {
        Self { statistics: Some(Arc::new(statistics)), ..self }
    }

    pub(crate) fn statistics(&self) -> Option<&Collected> {
        self.statistics.as_deref()
    }

    /// Number of channels.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Height and width in px.
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

    /// All blocks, one after another.
    pub(crate) fn lanes(&self) -> &[Lanes] {
        &self.lanes
    }

    pub(crate) fn block(&self, block: usize) -> &[Lanes] {
        &self.lanes[block * self.area()..][..self.area()]
    }

    /// Its memory, copied if a clone shares it.
    pub(crate) fn into_lanes(self) -> Vec<Lanes> {
        match Arc::try_unwrap(self.lanes) {
            Ok(own) => own.into_lanes(),
            Err(shared) => {
                let mut lanes = shared.workspace().allocate(shared.len());
                lanes.extend_from_slice(&shared);
                lanes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_survive_a_round_trip() {
        for channels in [1, 3, 16, 17, 40] {
            let (size, stride) = ([3, 5], 23);
            let values: Vec<f32> = (0..channels * stride).map(|at| at as f32 + 1.0).collect();
            let image = BlockedImage::from_planes(&values, stride, channels, size, &Workspace::default());
            assert_eq!(image.lanes().len(), channels.div_ceil(16) * 15);
            assert_eq!(
                image.lanes().iter().flat_map(|px| px.0).filter(|&value| value == 0.0).count(),
                (channels.next_multiple_of(16) - channels) * 15
            );
            let mut back = vec![0.0; values.len()];
            image.to_planes(&mut back, stride);
            for (at, (&back, &value)) in back.iter().zip(&values).enumerate() {
                assert_eq!(back, if at % stride < 15 { value } else { 0.0 }, "{at}");
            }
        }
    }
}
