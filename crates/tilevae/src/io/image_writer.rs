use std::io::Write;
use std::path::{Path, PathBuf};

use image::{ExtendedColorType, ImageError};
use tiling::{BoxError, HostTensor, Sink};
use vae_core::to_eight_bits;

use super::{IoError, Target, Writer, write_atomically};

/// An 8-bit image.
pub struct Pixels8<'a> {
    /// Interleaved channels, row by row.
    pub bytes: &'a [u8],
    /// Height and width, in px.
    pub size: [u32; 2],
    /// Grey, RGB or RGBA.
    pub color: ExtendedColorType,
}

/// Encodes an image to the bytes of a file.
type Encode = Box<dyn Fn(&Pixels8<'_>) -> Result<Vec<u8>, ImageError> + Send>;

/// A [`Writer`] of an 8-bit image: collects its px and encodes them when all are there.
pub struct ImageWriter {
    path: PathBuf,
    encode: Encode,
    pixels: Vec<u8>,
    channels: usize,
    /// Height and width.
    size: [usize; 2],
}

impl ImageWriter {
    /// An image that `encode` makes the bytes of.
    pub fn new(target: &Target<'_>, encode: impl Fn(&Pixels8<'_>) -> Result<Vec<u8>, ImageError> + Send + 'static) -> Self {
        let [_, channels, _, height, width] = target.shape;
        Self { path: target.path.to_owned(), encode: Box::new(encode), pixels: Vec::new(), channels, size: [height, width] }
    }
}

impl Sink for ImageWriter {
    fn take(&mut self, [_, top, left]: [usize; 3], _: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        let [_, channels, _, rows, columns] = piece.shape();
        let [height, width] = self.size;
        let shown = columns.min(width.saturating_sub(left));
        self.pixels.resize(height * width * channels, 0);
        for y in 0..rows.min(height.saturating_sub(top)) {
            let start = ((top + y) * width + left.min(width)) * channels;
            let line = &mut self.pixels[start..start + shown * channels];
            for channel in 0..channels {
                let values = &piece.row(channel, y)[..shown];
                for (place, &value) in line.iter_mut().skip(channel).step_by(channels).zip(values) {
                    *place = to_eight_bits(value);
                }
            }
        }
        Ok(())
    }

    fn rounds_to_eight_bits(&self) -> bool {
        true
    }
}

impl Writer for ImageWriter {
    fn finish(self: Box<Self>) -> Result<(), IoError> {
        let color = match self.channels {
            1 => ExtendedColorType::L8,
            4 => ExtendedColorType::Rgba8,
            _ => ExtendedColorType::Rgb8,
        };
        let pixels = Pixels8 { bytes: &self.pixels, size: self.size.map(|side| side as u32), color };
        write_atomically(&self.path, |writer| {
            // TIFF is written back and forth, so a file is encoded in memory first; it is small against the samples.
            let encoded = (self.encode)(&pixels).map_err(|error| not_encoded(&self.path, error))?;
            writer.write_all(&encoded).map_err(|source| IoError::Write { path: self.path.clone(), source })
        })
    }
}

/// The error of an encoder.
pub(super) fn not_encoded(path: &Path, error: ImageError) -> IoError {
    let path = path.to_owned();
    match error {
        ImageError::IoError(source) => IoError::Write { path, source },
        source => IoError::Encode { path, source },
    }
}
