use std::borrow::Cow;

use tiling::{BoxError, HostTensor, Region, ScratchError, ScratchFile, Sink, TileSource};

use super::IoError;
use super::pixels::Pixels;
use super::space::reserve;

impl From<ScratchError> for IoError {
    fn from(ScratchError { folder, source }: ScratchError) -> Self {
        Self::Scratch { folder, source }
    }
}

/// Bytes of samples of a shape, in f32.
pub(super) fn bytes_of(shape: [usize; 5]) -> u64 {
    shape.iter().fold(size_of::<f32>() as u64, |bytes, &side| bytes.saturating_mul(side as u64))
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

/// Frames of one size in a scratch file: interleaved channels, row by row.
#[derive(Debug)]
pub(super) struct FrameStore {
    file: ScratchFile,
    size: [usize; 2],
    channels: usize,
    depth: Depth,
    frames: usize,
}

impl FrameStore {
    pub(super) fn new(size: [usize; 2], channels: usize, depth: Depth) -> Result<Self, IoError> {
        Ok(Self { file: ScratchFile::new()?, size, channels, depth, frames: 0 })
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
        let offset = self.offset(self.frames, [0, 0]);
        match (pixels, self.depth) {
            (Pixels::Eight(values), Depth::Eight) => self.file.write_at(offset, &values)?,
            (Pixels::Sixteen(values), Depth::Eight) => {
                let values: Vec<u8> = values.into_iter().map(|value| ((u32::from(value) + 128) / 257) as u8).collect();
                self.file.write_at(offset, &values)?;
            }
            (Pixels::Eight(values), Depth::Sixteen) => {
                let values: Vec<u16> = values.into_iter().map(|value| u16::from(value) * 257).collect();
                self.file.write_at(offset, &values)?;
            }
            (Pixels::Sixteen(values), Depth::Sixteen) => self.file.write_at(offset, &values)?,
        }
        self.frames += 1;
        Ok(())
    }

    /// Writes 8-bit rows of `width` px to a part of a frame.
    pub(super) fn write(&mut self, frame: usize, [top, left]: [usize; 2], width: usize, pixels: &[u8]) -> Result<(), IoError> {
        if width == self.size[1] {
            self.file.write_at(self.offset(frame, [top, 0]), pixels)?;
        } else {
            for (y, row) in pixels.chunks(width.max(1) * self.channels).enumerate() {
                self.file.write_at(self.offset(frame, [top + y, left]), row)?;
            }
        }
        self.frames = self.frames.max(frame + 1);
        Ok(())
    }

    /// The rows from `rows[0]` on and before `rows[1]`, over the whole width.
    pub(super) fn rows(&self, frame: usize, rows: [usize; 2]) -> Result<Pixels, IoError> {
        let count = (rows[1] - rows[0]) * self.size[1] * self.channels;
        let offset = self.offset(frame, [rows[0], 0]);
        Ok(match self.depth {
            Depth::Eight => {
                let mut values = vec![0; count];
                self.file.read_at(offset, &mut values)?;
                Pixels::Eight(values)
            }
            Depth::Sixteen => {
                let mut values = vec![0; count];
                self.file.read_at(offset, &mut values)?;
                Pixels::Sixteen(values)
            }
        })
    }
}

/// Values as they lie in files: little-endian.
pub(super) fn little_endian(values: &[f32]) -> Cow<'_, [u32]> {
    if cfg!(target_endian = "little") {
        Cow::Borrowed(bytemuck::cast_slice(values))
    } else {
        Cow::Owned(values.iter().map(|value| value.to_bits().to_le()).collect())
    }
}

/// Samples in a file, little-endian f32, row-major: a sink, and a source of what came.
#[derive(Debug)]
pub struct SampleFile {
    file: ScratchFile,
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
        let file = ScratchFile::new()?;
        reserve(file.file(), file.folder(), bytes_of(shape))?;
        Ok(Self { file, header: 0, shape })
    }

    /// Samples of a shape, from byte `header` of a file on.
    pub(super) fn in_file(file: ScratchFile, header: u64, shape: [usize; 5]) -> Self {
        Self { file, header, shape }
    }

    /// Hands on the bytes of all values, a part at a time.
    pub(super) fn for_each_part(&self, mut take: impl FnMut(&[u8])) -> Result<(), IoError> {
        let mut bytes = vec![0; (1 << 20).min(bytes_of(self.shape) as usize)];
        let (mut offset, mut left) = (self.header, bytes_of(self.shape) as usize);
        while left > 0 {
            let part = left.min(bytes.len());
            self.file.read_at(offset, &mut bytes[..part])?;
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
        // Rows over the whole width lie one after the other.
        let at_once = if [left, columns] == [0, width] { shown_rows.max(1) } else { 1 };
        for plane in 0..b * c {
            for frame in 0..frames.min(all_frames.saturating_sub(first)) {
                for y in (0..shown_rows).step_by(at_once) {
                    let from = ((plane * frames + frame) * rows + y) * columns;
                    let values = &piece.data()[from..from + (at_once - 1) * columns + shown_columns];
                    self.file.write_at(self.offset(plane, [first + frame, top + y, left]), &little_endian(values))?;
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
        let mut tensor = HostTensor::zeros([b, c, frames, height, width]);
        let at_once = if width == self.shape[4] { height.max(1) } else { 1 };
        for plane in 0..b * c {
            for frame in 0..frames {
                for y in (0..height).step_by(at_once) {
                    let from = ((plane * frames + frame) * height + y) * width;
                    let values = &mut tensor.data_mut()[from..from + at_once * width];
                    self.file.read_at(self.offset(plane, [first + frame, top + y, left]), values)?;
                    if cfg!(target_endian = "big") {
                        for value in values {
                            *value = f32::from_bits(u32::from_le(value.to_bits()));
                        }
                    }
                }
            }
        }
        Ok(tensor)
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
        // A file of fewer frames and a smaller image keeps what it has room for.
        let mut small = SampleFile::scratch([2, 3, 2, 4, 5]).unwrap();
        small.take([0; 3], all, samples.clone()).unwrap();
        let region = Region { start: [0; 3], size: [2, 4, 5] };
        assert_eq!(small.read(&region).unwrap(), samples.region(&region));
    }
}
