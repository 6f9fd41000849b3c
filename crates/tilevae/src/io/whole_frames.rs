use tiling::{BoxError, HostTensor, Region, Sink, TileSource};

use super::SampleFile;

/// A [`Sink`] that hands on whole frames, in order, as soon as they are complete. Parts of frames wait in a scratch file, as f32.
pub struct WholeFrames<F> {
    take: F,
    /// Frames that came in parts.
    parts: Option<SampleFile>,
}

impl<F: FnMut(HostTensor) -> Result<(), BoxError> + Send> WholeFrames<F> {
    /// Hands frames `[batch, channels, frames, height, width]` to `take`.
    pub fn new(take: F) -> Self {
        Self { take, parts: None }
    }
}

impl<F: FnMut(HostTensor) -> Result<(), BoxError> + Send> Sink for WholeFrames<F> {
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        let [[first, top, left], [all, height, width]] = [start, extent];
        let [batch, channels, frames, rows, columns] = piece.shape();
        if [rows, columns] == [height, width] {
            return (self.take)(piece);
        }
        let parts = match &mut self.parts {
            Some(parts) => parts,
            None => self.parts.insert(SampleFile::scratch([batch, channels, all, height, width])?),
        };
        parts.take(start, extent, piece)?;
        // Parts of a frame come in raster order.
        if [top + rows, left + columns] == [height, width] {
            let whole = Region { start: [first, 0, 0], size: [frames, height, width] };
            (self.take)(parts.read(&whole)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_handed_on_when_they_are_complete() {
        let samples = HostTensor::from_fn([2, 3, 5, 4, 6], |[b, c, t, y, x]| (b * 1000 + c * 200 + t * 40 + y * 7 + x) as f32);
        let frames = |first: usize, count: usize| samples.region(&Region { start: [first, 0, 0], size: [count, 4, 6] });
        let mut taken = Vec::new();
        let mut sink = WholeFrames::new(|frames| {
            taken.push(frames);
            Ok(())
        });
        sink.take([0; 3], [5, 4, 6], frames(0, 1)).unwrap();
        // Two columns of tiles, each in two chunks.
        for left in [0, 3] {
            for (first, count) in [(1, 1), (2, 3)] {
                let region = Region { start: [first, 0, left], size: [count, 4, 3] };
                sink.take(region.start, [5, 4, 6], samples.region(&region)).unwrap();
            }
        }
        assert_eq!(taken, [frames(0, 1), frames(1, 1), frames(2, 3)]);
    }
}
