//! The formats of this crate, one a file.
//!
//! An image is read completely or refused: what decoders ignore silently (a truncated file, frames after the first, a header with more px than the data can
//! hold) is checked here.

mod folder;
mod gif;
mod jpeg;
mod latent;
mod npy;
mod npz;
mod png;
mod pnm;
mod safetensors;
#[cfg(test)]
mod tests;
mod tiff;
mod torch;
mod video;
mod webp;
mod y4m;

use std::fs::File;
use std::io::{BufReader, Cursor};
use std::path::{Path, PathBuf};

use image::metadata::Orientation;
use image::{Delay, DynamicImage, ImageDecoder, ImageError, ImageFormat};

pub(super) use latent::{COMFYUI_SCALE, COMFYUI_TENSOR, COMFYUI_UNSCALED};

use super::delays::Delays;
use super::{ClipInfo, FrameReader, Frames, IoError, Pixels8, Reader, until_error};

// In the order in which messages list them.
crate::register_format!(safetensors::Safetensors);
crate::register_format!(npy::Npy);
crate::register_format!(npz::Npz);
crate::register_format!(torch::Torch);
crate::register_format!(latent::Latent);
crate::register_format!(png::Png);
crate::register_format!(jpeg::Jpeg);
crate::register_format!(webp::WebP);
crate::register_format!(tiff::Tiff);
crate::register_format!(pnm::Pnm);
crate::register_format!(y4m::Y4m);
crate::register_format!(gif::Gif);
crate::register_format!(video::Video);
crate::register_format!(folder::Folder);

/// The most memory that one image may take to read.
const READ_LIMIT: u64 = 8 << 30;

/// Images up to this number of bytes are decoded, independent of the file size.
const SMALL: u64 = 16 << 20;

/// What is wrong with a file, before its name is added.
#[derive(Debug)]
enum Fault {
    /// What is missing.
    Incomplete(String),
    /// What is wrong.
    Damaged(String),
    /// What the file is: sound, and not supported.
    Unsupported(String),
    /// The same as a whole sentence.
    NotSupported(String),
    /// The error of a decoder.
    Decoder(ImageError),
    Read(std::io::Error),
}

impl Fault {
    fn incomplete(text: &str) -> Self {
        Self::Incomplete(text.to_owned())
    }

    fn damaged(text: &str) -> Self {
        Self::Damaged(text.to_owned())
    }

    fn unsupported(text: &str) -> Self {
        Self::Unsupported(text.to_owned())
    }

    fn reading<T>(result: std::io::Result<T>) -> Result<T, Self> {
        result.map_err(|error| Self::from(ImageError::IoError(error)))
    }

    fn of(self, path: &Path) -> IoError {
        let path = path.to_owned();
        match self {
            Self::Incomplete(missing) => IoError::Truncated { path, missing },
            Self::Damaged(message) => IoError::Damaged { path, message },
            Self::Unsupported(what) => IoError::Unsupported { path, message: format!("it is {what}") },
            Self::NotSupported(message) => IoError::Unsupported { path, message },
            Self::Decoder(source) => IoError::Image { path, source },
            Self::Read(source) => IoError::Read { path, source },
        }
    }
}

impl From<ImageError> for Fault {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::IoError(source) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                Self::incomplete("its data ends before the image does")
            }
            // An error without an OS code comes from a decoder.
            ImageError::IoError(source) if source.raw_os_error().is_none() => Self::Damaged(source.to_string()),
            ImageError::IoError(source) => Self::Read(source),
            source => Self::Decoder(source),
        }
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::UnexpectedEof => Self::Damaged("it is cut off".to_owned()),
            ErrorKind::InvalidData | ErrorKind::InvalidInput => Self::Damaged(error.to_string()),
            _ => Self::Read(error),
        }
    }
}

/// Refuses an image of `decoded` bytes that takes `needed` bytes of data at least, and has `data`.
fn plausible(decoded: u64, needed: u64, data: u64) -> Result<(), Fault> {
    if decoded > SMALL && needed > data {
        return Err(Fault::Damaged(format!("its header promises more px than {data} bytes of data can hold")));
    }
    if decoded > READ_LIMIT {
        return Err(Fault::unsupported("an image of more than 8 GiB"));
    }
    Ok(())
}

/// A file, and its bytes.
fn open_file(path: &Path) -> Result<(BufReader<File>, u64), Fault> {
    let file = File::open(path).map_err(Fault::Read)?;
    let length = file.metadata().map_err(Fault::Read)?.len();
    Ok((BufReader::new(file), length))
}

/// The whole content of a file.
fn content_of(path: &Path) -> Result<Vec<u8>, Fault> {
    std::fs::read(path).map_err(Fault::Read)
}

/// Decoded frames.
type DecodedFrames = Box<dyn Iterator<Item = Result<DynamicImage, Fault>>>;

/// An image or an animation whose structure has been found sound.
struct Image {
    path: PathBuf,
    /// Height and width as they are stored.
    size: [usize; 2],
    orientation: Orientation,
    frames: usize,
    /// How long each frame is shown; none of pages and images.
    delays: Delays,
    decode: Box<dyn FnOnce() -> Result<DecodedFrames, Fault> + Send>,
}

impl Image {
    /// An image whose frames come from `decode`; with `delays`, an animation.
    fn new(path: &Path, header: &Header, delays: &[Delay], decode: impl FnOnce() -> Result<DecodedFrames, Fault> + Send + 'static) -> Self {
        Self {
            path: path.to_owned(),
            size: header.size,
            orientation: header.orientation,
            frames: delays.len().max(1),
            delays: delays.iter().copied().collect(),
            decode: Box::new(decode),
        }
    }
}

impl FrameReader for Image {
    fn info(&self) -> ClipInfo {
        let [height, width] = self.size;
        let size = if self.orientation.to_exif() >= 5 { [width, height] } else { [height, width] };
        ClipInfo { size, frames: self.frames, fps: self.delays.fps() }
    }

    fn frames(self: Box<Self>) -> Result<Frames, IoError> {
        let Self { path, orientation, delays, decode, .. } = *self;
        delays.warn(&path);
        let mut images = decode().map_err(|fault| fault.of(&path))?;
        Ok(until_error(move || {
            let Some(image) = images.next() else { return Ok(None) };
            let mut image = image.map_err(|fault| fault.of(&path))?;
            image.apply_orientation(orientation);
            Ok(Some(image))
        }))
    }
}

/// What a decoder knows of an image before its px.
struct Header {
    /// Height and width.
    size: [usize; 2],
    px: u64,
    /// Bytes of the decoded px.
    decoded: u64,
    orientation: Orientation,
}

impl Header {
    fn of(decoder: &mut impl ImageDecoder) -> Result<Self, Fault> {
        let (width, height) = decoder.dimensions();
        let px = u64::from(height) * u64::from(width);
        if px == 0 {
            return Err(Fault::Damaged(format!("its header says {height}x{width} px")));
        }
        let size = [height, width].map(|side| side as usize);
        Ok(Self { size, px, decoded: decoder.total_bytes(), orientation: decoder.orientation()? })
    }
}

/// The one frame of a decoder.
fn one_frame(decoder: impl ImageDecoder) -> Result<DecodedFrames, Fault> {
    let image = DynamicImage::from_decoder(decoder)?;
    Ok(Box::new(std::iter::once(Ok(image))))
}

/// What `open` opens, its fault with the name of the file.
fn opened(path: &Path, open: impl FnOnce() -> Result<Image, Fault>) -> Result<Reader, IoError> {
    open().map(|image| Reader::Frames(Box::new(image))).map_err(|fault| fault.of(path))
}

/// Whether a file that begins so is an image of a format.
fn begins_as(head: &[u8], format: ImageFormat) -> bool {
    image::guess_format(head).is_ok_and(|found| found == format)
}

/// Encodes an image in a format of the `image` crate.
fn encoded(pixels: &Pixels8<'_>, format: ImageFormat) -> Result<Vec<u8>, ImageError> {
    let mut encoded = Cursor::new(Vec::new());
    let [height, width] = pixels.size;
    image::write_buffer_with_format(&mut encoded, pixels.bytes, width, height, pixels.color, format)?;
    Ok(encoded.into_inner())
}
