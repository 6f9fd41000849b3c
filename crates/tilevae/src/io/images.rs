use std::path::{Path, PathBuf};

use image::DynamicImage;
use tiling::{BoxError, HostTensor, Region, TileSource};

use super::format::{format_by_content, head_of};
use super::pixels::{DroppedAlpha, Pixels};
use super::{Background, Format, FrameReader, IoError};

/// Images of one size, as a source of samples from -1 to 1. They stay in 8 or 16 bits; a tile is made into floats when it is read.
///
/// Where a side is not a multiple of what the model takes, the last row and column are repeated.
#[derive(Debug)]
pub struct Images {
    pixels: Vec<Pixels>,
    channels: usize,
    /// Height and width of the files.
    size: [usize; 2],
    /// Height and width with repeated rows and columns.
    padded: [usize; 2],
}

impl Images {
    /// Reads images with `channels` channels (1: grey, 3: colour, 4: colour and alpha), to be padded to multiples of `ratio` px.
    ///
    /// # Errors
    /// When one cannot be read to its end or is animated, or their sizes differ.
    pub fn read(paths: &[PathBuf], channels: usize, ratio: usize) -> Result<Self, IoError> {
        Self::read_over(paths, channels, ratio, Background::None)
    }

    /// As [`read`](Self::read), laid over `background` where the channels have no alpha.
    ///
    /// # Errors
    /// As those of [`read`](Self::read).
    pub fn read_over(paths: &[PathBuf], channels: usize, ratio: usize, background: Background) -> Result<Self, IoError> {
        Self::from_readers(paths.iter().map(|path| Ok((path.clone(), open_image(path)?))), channels, ratio, background)
    }

    /// Reads opened images, each with its name.
    pub(super) fn from_readers(
        images: impl Iterator<Item = Result<(PathBuf, Box<dyn FrameReader>), IoError>>,
        channels: usize,
        ratio: usize,
        background: Background,
    ) -> Result<Self, IoError> {
        let mut pixels = Vec::new();
        let mut common = None;
        let mut dropped = DroppedAlpha::default();
        for image in images {
            let (path, reader) = image?;
            let image = only_frame(&path, reader)?;
            let got = [image.height() as usize, image.width() as usize];
            let expected = *common.get_or_insert(got);
            if got != expected {
                return Err(IoError::ImageSize { path, got, expected });
            }
            let not_shown = IoError::NotAImage { path: path.clone(), channels, frames: 1 };
            pixels.push(Pixels::new(image, channels, background, || dropped.add(&path)).ok_or(not_shown)?);
        }
        dropped.warn();
        let size = common.unwrap_or_default();
        Ok(Self { pixels, channels, size, padded: size.map(|side| side.next_multiple_of(ratio)) })
    }

    /// Height and width of the files, in px.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }
}

/// Height and width of an image, in px, from its structure.
///
/// # Errors
/// When it cannot be read.
pub fn image_size(path: &Path) -> Result<[usize; 2], IoError> {
    open_image(path).map(|image| image.info().size)
}

/// Opens an image or an animation, recognised by content.
pub(super) fn open_image(path: &Path) -> Result<Box<dyn FrameReader>, IoError> {
    let head = head_of(path)?;
    let format = format_by_content(&head, Format::is_image).ok_or_else(|| unknown_image(path, &head))?;
    format.open(path)?.into_frames().ok_or_else(|| unknown_image(path, &head))
}

/// The error for a file that no image format recognises.
fn unknown_image(path: &Path, head: &[u8]) -> IoError {
    let path = path.to_owned();
    match image::guess_format(head) {
        _ if head.is_empty() => IoError::Truncated { path, missing: "it is empty".to_owned() },
        Ok(other) => IoError::Unsupported { path, message: format!("it is a {other:?} image (save it as PNG)") },
        Err(_) => IoError::Damaged { path, message: "its first bytes are those of no known image format".to_owned() },
    }
}

/// The only frame of an image.
pub(super) fn read_image(path: &Path) -> Result<DynamicImage, IoError> {
    only_frame(path, open_image(path)?)
}

fn only_frame(path: &Path, image: Box<dyn FrameReader>) -> Result<DynamicImage, IoError> {
    let frames = image.info().frames;
    if frames > 1 {
        return Err(IoError::Animated { path: path.to_owned(), frames });
    }
    image.frames()?.next().unwrap_or_else(|| Err(IoError::NoFrames { path: path.to_owned() }))
}

impl TileSource for Images {
    fn shape(&self) -> [usize; 5] {
        [self.pixels.len(), self.channels, 1, self.padded[0], self.padded[1]]
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        let ([_, top, left], [_, height, width]) = (region.start, region.size);
        let mut tensor = HostTensor::zeros([self.pixels.len(), self.channels, 1, height, width]);
        for (item, pixels) in self.pixels.iter().enumerate() {
            for channel in 0..self.channels {
                for y in 0..height {
                    let row = tensor.row_mut(item * self.channels + channel, y);
                    pixels.samples([self.size[1], self.channels], (top + y).min(self.size[0] - 1), channel, left, row);
                }
            }
        }
        Ok(tensor)
    }
}
