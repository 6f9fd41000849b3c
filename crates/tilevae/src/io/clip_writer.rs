use tiling::{BoxError, HostTensor, Sink};
use vae_core::to_eight_bits;

use super::pixels::Pixels;
use super::sample_file::{Depth, FrameStore};
use super::{IoError, Target, Writer};

/// Takes the frames of a clip, 8-bit RGB, and writes it.
pub trait FrameWriter: Send {
    /// Adds a frame: interleaved RGB, row by row.
    ///
    /// # Errors
    /// When it cannot be written.
    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError>;

    /// Publishes the clip.
    ///
    /// # Errors
    /// When it cannot be written to its end.
    fn finish(self: Box<Self>) -> Result<(), IoError>;
}

/// A [`Writer`] of a clip. A frame goes to its [`FrameWriter`] when it is complete; parts of frames wait in a scratch file.
pub struct ClipWriter {
    writer: Box<dyn FrameWriter>,
    /// Frames that came in parts.
    store: Option<FrameStore>,
    channels: usize,
    frames: usize,
    size: [usize; 2],
}

impl ClipWriter {
    /// A clip whose frames `writer` takes.
    pub fn new(target: &Target<'_>, writer: impl FrameWriter + 'static) -> Self {
        let [_, channels, frames, height, width] = target.shape;
        Self { writer: Box::new(writer), store: None, channels, frames, size: [height, width] }
    }

    /// The pixels of one frame of a piece, as interleaved RGB, cropped to what is shown.
    fn pixels(&self, piece: &HostTensor, frame: usize, [height, width]: [usize; 2]) -> Vec<u8> {
        let frames = piece.shape()[2];
        let mut pixels = vec![0; height * width * 3];
        for channel in 0..3 {
            let plane = channel.min(self.channels - 1) * frames + frame;
            for (y, line) in pixels.chunks_exact_mut(width * 3).enumerate() {
                for (place, &value) in line[channel..].iter_mut().step_by(3).zip(&piece.row(plane, y)[..width]) {
                    *place = to_eight_bits(value);
                }
            }
        }
        pixels
    }
}

impl Sink for ClipWriter {
    fn take(&mut self, [first, top, left]: [usize; 3], [_, height, width]: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        let [.., count, rows, columns] = piece.shape();
        let shown = [rows.min(self.size[0].saturating_sub(top)), columns.min(self.size[1].saturating_sub(left))];
        let is_whole = [rows, columns] == [height, width];
        let is_last_part = [top + rows, left + columns] == [height, width];
        for frame in 0..count.min(self.frames.saturating_sub(first)) {
            let pixels = if shown.contains(&0) { Vec::new() } else { self.pixels(&piece, frame, shown) };
            if is_whole {
                self.writer.write(&pixels)?;
                continue;
            }
            let store = match &mut self.store {
                Some(store) => store,
                None => self.store.insert(FrameStore::new(self.size, 3, Depth::Eight)?),
            };
            store.write(first + frame, [top, left], shown[1], &pixels)?;
            if is_last_part && let Pixels::Eight(whole) = store.rows(first + frame, [0, self.size[0]])? {
                self.writer.write(&whole)?;
            }
        }
        Ok(())
    }

    fn rounds_to_eight_bits(&self) -> bool {
        true
    }
}

impl Writer for ClipWriter {
    fn finish(self: Box<Self>) -> Result<(), IoError> {
        self.writer.finish()
    }
}

/// What tests of the writers share.
#[cfg(test)]
pub(super) mod testing {
    /// Height and width of small frames.
    pub(in crate::io) const CANVAS: usize = 8;

    /// A frame of grey levels.
    pub(in crate::io) fn levels(level: u8) -> Vec<u8> {
        (0..CANVAS * CANVAS).flat_map(|place| [(3 * place) as u8 ^ level; 3]).collect()
    }

    /// A disk with room for this number of bytes.
    pub(in crate::io) struct Limited(pub(in crate::io) usize);

    impl std::io::Write for Limited {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let count = bytes.len().min(self.0);
            if count == 0 && !bytes.is_empty() {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            self.0 -= count;
            Ok(count)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
