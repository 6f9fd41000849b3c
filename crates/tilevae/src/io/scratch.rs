//! Scratch files: they have no name and are gone when the program ends.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::sync::{Mutex, PoisonError};

use tiling::{BoxError, HostTensor, Region, Sink, TileSource};

use super::IoError;
use super::pictures::Pixels;
use super::space::reserve;

/// A new scratch file, in the folder for temporary files (`TMPDIR`).
pub(crate) fn scratch_file() -> Result<File, IoError> {
    tempfile::tempfile().map_err(scratch)
}

fn scratch(source: std::io::Error) -> IoError {
    IoError::Scratch { folder: std::env::temp_dir(), source }
}

/// Bytes of samples of a shape, in f32.
pub(super) fn bytes_of(shape: [usize; 5]) -> u64 {
    shape.iter().fold(size_of::<f32>() as u64, |bytes, &side| bytes.saturating_mul(side as u64))
}

/// A file that is read and written at places.
#[derive(Debug)]
pub(super) struct Places(Mutex<File>);

impl Places {
    pub(super) fn new(file: File) -> Self {
        Self(Mutex::new(file))
    }

    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(bytes)
    }

    pub(super) fn write(&self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }
}

/// Bytes of a value of a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    Eight,
    Sixteen,
}

impl Depth {
    pub(super) fn of(pixels: &Pixels) -> Self {
        match pixels {
            Pixels::Eight(_) => Self::Eight,
            Pixels::Sixteen(_) => Self::Sixteen,
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::Eight => 1,
            Self::Sixteen => 2,
        }
    }
}

/// Frames of one size, interleaved channels, row by row.
#[derive(Debug)]
pub(super) struct FrameStore {
    places: Places,
    size: [usize; 2],
    channels: usize,
    depth: Depth,
    frames: usize,
}

impl FrameStore {
    pub(super) fn new(size: [usize; 2], channels: usize, depth: Depth) -> Result<Self, IoError> {
        Ok(Self { places: Places::new(scratch_file()?), size, channels, depth, frames: 0 })
    }

    /// Height and width.
    pub(super) fn size(&self) -> [usize; 2] {
        self.size
    }

    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    fn offset(&self, frame: usize, [y, x]: [usize; 2]) -> u64 {
        (((frame * self.size[0] + y) * self.size[1] + x) * self.channels * self.depth.bytes()) as u64
    }

    /// Adds a whole frame, brought to the depth of the first.
    pub(super) fn push(&mut self, pixels: Pixels) -> Result<(), IoError> {
        let bytes: Vec<u8> = match (pixels, self.depth) {
            (Pixels::Eight(values), Depth::Eight) => values,
            (Pixels::Sixteen(values), Depth::Eight) => values.into_iter().map(|value| ((u32::from(value) + 128) / 257) as u8).collect(),
            (Pixels::Eight(values), Depth::Sixteen) => values.into_iter().flat_map(|value| (u16::from(value) * 257).to_le_bytes()).collect(),
            (Pixels::Sixteen(values), Depth::Sixteen) => values.into_iter().flat_map(u16::to_le_bytes).collect(),
        };
        self.places.write(self.offset(self.frames, [0, 0]), &bytes).map_err(scratch)?;
        self.frames += 1;
        Ok(())
    }

    /// Writes 8-bit rows of `width` px to a part of a frame.
    pub(super) fn write(&mut self, frame: usize, [top, left]: [usize; 2], width: usize, pixels: &[u8]) -> Result<(), IoError> {
        for (y, row) in pixels.chunks(width.max(1) * self.channels).enumerate() {
            self.places.write(self.offset(frame, [top + y, left]), row).map_err(scratch)?;
        }
        self.frames = self.frames.max(frame + 1);
        Ok(())
    }

    /// The rows from `rows[0]` on and before `rows[1]`, over the whole width.
    pub(super) fn rows(&self, frame: usize, rows: [usize; 2]) -> Result<Pixels, IoError> {
        let mut bytes = vec![0; (rows[1] - rows[0]) * self.size[1] * self.channels * self.depth.bytes()];
        self.places.read(self.offset(frame, [rows[0], 0]), &mut bytes).map_err(scratch)?;
        Ok(match self.depth {
            Depth::Eight => Pixels::Eight(bytes),
            Depth::Sixteen => Pixels::Sixteen(bytes.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes)).collect()),
        })
    }
}

/// Samples in a file, f32, row-major: a sink, and a source of what came.
#[derive(Debug)]
pub struct SampleFile {
    places: Places,
    /// Bytes before the first value.
    header: u64,
    shape: [usize; 5],
}

impl SampleFile {
    /// A scratch file for samples of a shape, for which room is taken at once. What comes beyond it is left out.
    ///
    /// # Errors
    /// When there is no room for them.
    pub fn scratch(shape: [usize; 5]) -> Result<Self, IoError> {
        let file = scratch_file()?;
        reserve(&file, &std::env::temp_dir(), bytes_of(shape))?;
        Ok(Self::in_file(file, 0, shape))
    }

    pub(super) fn in_file(file: File, header: u64, shape: [usize; 5]) -> Self {
        Self { places: Places::new(file), header, shape }
    }

    /// Hands all bytes of the samples to `take`, in order.
    pub(super) fn for_each_part(&self, mut take: impl FnMut(&[u8])) -> Result<(), IoError> {
        let mut left = self.shape.iter().product::<usize>() * size_of::<f32>();
        let mut bytes = vec![0; left.min(1 << 20)];
        let mut offset = self.header;
        while left > 0 {
            let part = left.min(bytes.len());
            self.places.read(offset, &mut bytes[..part]).map_err(scratch)?;
            take(&bytes[..part]);
            offset += part as u64;
            left -= part;
        }
        Ok(())
    }

    fn offset(&self, plane: usize, [t, y, x]: [usize; 3]) -> u64 {
        let [_, _, frames, height, width] = self.shape;
        self.header + ((((plane * frames + t) * height + y) * width + x) * size_of::<f32>()) as u64
    }
}

impl Sink for SampleFile {
    fn take(&mut self, [first, top, left]: [usize; 3], _: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        let [b, c, frames, rows, columns] = piece.shape();
        let [.., all_frames, height, width] = self.shape;
        let [shown_rows, shown_columns] = [rows.min(height.saturating_sub(top)), columns.min(width.saturating_sub(left))];
        for plane in 0..b * c {
            for frame in 0..frames.min(all_frames.saturating_sub(first)) {
                let own = plane * frames + frame;
                // Rows over the whole width lie one after the other.
                let at_once = if [left, shown_columns, columns] == [0, width, width] { shown_rows } else { 1 };
                for y in (0..shown_rows).step_by(at_once.max(1)) {
                    let values = (0..at_once).flat_map(|row| &piece.row(own, y + row)[..shown_columns]);
                    let bytes: Vec<u8> = values.flat_map(|value| value.to_le_bytes()).collect();
                    self.places.write(self.offset(plane, [first + frame, top + y, left]), &bytes)?;
                }
            }
        }
        Ok(())
    }
}

impl TileSource for SampleFile {
    fn shape(&self) -> [usize; 5] {
        self.shape
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        let ([first, top, left], [frames, height, width]) = (region.start, region.size);
        let [b, c, ..] = self.shape;
        let mut block = HostTensor::zeros([b, c, frames, height, width]);
        let mut bytes = vec![0; width * size_of::<f32>()];
        for plane in 0..b * c {
            for frame in 0..frames {
                for y in 0..height {
                    self.places.read(self.offset(plane, [first + frame, top + y, left]), &mut bytes)?;
                    let values = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes));
                    block.row_mut(plane * frames + frame, y).iter_mut().zip(values).for_each(|(place, value)| *place = value);
                }
            }
        }
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_come_back_in_any_region() {
        let samples = HostTensor::from_fn([2, 3, 4, 5, 6], |[b, c, t, y, x]| (b * 1000 + c * 200 + t * 40 + y * 7 + x) as f32);
        let mut file = SampleFile::scratch(samples.shape()).unwrap();
        let all = [4, 5, 6];
        for (start, size) in [([0, 0, 0], [4, 3, 6]), ([0, 3, 0], [1, 2, 4]), ([0, 3, 4], [1, 2, 2]), ([1, 3, 0], [3, 2, 6])] {
            file.take(start, all, samples.region(&Region { start, size })).unwrap();
        }
        assert!(matches!(SampleFile::scratch([1 << 20, 3, 1 << 10, 1 << 15, 1 << 15]), Err(IoError::NoSpace { .. })));
        for (start, size) in [([0; 3], all), ([1, 2, 3], [2, 3, 2])] {
            let region = Region { start, size };
            assert_eq!(file.read(&region).unwrap(), samples.region(&region));
        }
        // A file of fewer frames and a smaller picture keeps what it has room for.
        let mut small = SampleFile::scratch([2, 3, 2, 4, 5]).unwrap();
        small.take([0; 3], all, samples.clone()).unwrap();
        let region = Region { start: [0; 3], size: [2, 4, 5] };
        assert_eq!(small.read(&region).unwrap(), samples.region(&region));
    }
}
