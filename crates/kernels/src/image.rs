use std::sync::Arc;

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rayon::slice::{ParallelSlice, ParallelSliceMut};

use crate::lanes::{LANES, Lanes};
use crate::memory::{Buffer, SharedBuffers, Workspace};
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

/// Px of an image that become px of another.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The image.
    pub image: &'a BlockedImage,
    /// First row and column in the image.
    pub from: [usize; 2],
    /// First row and column in the other.
    pub to: [usize; 2],
    /// Rows and columns.
    pub size: [usize; 2],
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

    /// An image of parts of others, which cover it and do not overlap. Several threads copy.
    ///
    /// # Panics
    /// When an image has other channels, a part reaches beyond its image or this one, or the parts do not cover it once.
    #[must_use]
    pub fn from_parts(channels: usize, size: [usize; 2], workspace: &Workspace, parts: &[Part]) -> Self {
        let [height, width] = size;
        let mut of_rows: Vec<Vec<&Part>> = vec![Vec::new(); height];
        for part in parts {
            assert!(part.image.channels == channels && part.image.size[1] >= part.from[1] + part.size[1], "part");
            of_rows[part.to[0]..part.to[0] + part.size[0]].iter_mut().for_each(|row| row.push(part));
        }
        for row in &mut of_rows {
            row.sort_unstable_by_key(|part| part.to[1]);
            let end = row.iter().try_fold(0, |end, part| (part.to[1] == end).then_some(end + part.size[1]));
            assert_eq!(end, Some(width), "parts");
        }
        let blocks = channels.div_ceil(LANES);
        let buffers = SharedBuffers::uninitialised(1, blocks * height * width, workspace);
        (0..blocks * height).into_par_iter().for_each(|at| {
            let (block, row) = (at / height, at % height);
            for part in &of_rows[row] {
                let from = (part.from[0] + row - part.to[0]) * part.image.size[1] + part.from[1];
                let px = &part.image.block(block)[from..from + part.size[1]];
                // SAFETY: no other task writes this row of this block.
                #[expect(unsafe_code, reason = "see `SharedBuffers::copy`")]
                unsafe {
                    buffers.copy(0, at * width + part.to[1], px);
                }
            }
        });
        // SAFETY: the parts cover every row.
        #[expect(unsafe_code, reason = "the image is not cleared before it is written")]
        let lanes = unsafe { buffers.into_vecs() }.swap_remove(0);
        Self::from_lanes(lanes, channels, size, workspace)
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
        Self::from_parts(self.channels, size, self.workspace(), &[Part { image: self, from: [top, left], to: [0, 0], size }])
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
    fn parts_become_an_image() {
        let of = |size: [usize; 2], offset: f32| {
            let values: Vec<f32> = (0..20 * size[0] * size[1]).map(|at| at as f32 + offset).collect();
            BlockedImage::from_planes(&values, size[0] * size[1], 20, size, &Workspace::default())
        };
        let [left, right] = [of([3, 4], 0.0), of([2, 5], 1000.0)];
        let parts = [Part { image: &right, from: [0, 1], to: [0, 2], size: [2, 3] }, Part { image: &left, from: [1, 1], to: [0, 0], size: [2, 2] }];
        let image = BlockedImage::from_parts(20, [2, 5], &Workspace::default(), &parts);
        let planes = |image: &BlockedImage| {
            let mut planes = vec![0.0; 20 * image.area()];
            image.to_planes(&mut planes, image.area());
            planes
        };
        let (whole, [left, right]) = (planes(&image), [planes(&left), planes(&right)]);
        for (at, value) in whole.into_iter().enumerate() {
            let (channel, row, column) = (at / 10, at / 5 % 2, at % 5);
            let expected = if column < 2 { left[channel * 12 + (row + 1) * 4 + column + 1] } else { right[channel * 10 + row * 5 + column - 1] };
            assert_eq!(value, expected, "{at}");
        }
        let overlapping = [parts[0], Part { size: [2, 3], ..parts[1] }];
        for wrong in [&parts[..1], &overlapping] {
            let refused = std::panic::AssertUnwindSafe(|| BlockedImage::from_parts(20, [2, 5], &Workspace::default(), wrong));
            assert!(std::panic::catch_unwind(refused).is_err());
        }
    }

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
