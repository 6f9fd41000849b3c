//! Encoded pictures, told by what they hold. A picture is read whole or not at all: what decoders pass over without a word (a file that was cut off, frames after
//! the first, a header that promises more px than its data can make) is looked for here.

mod jpeg;
mod png;
#[cfg(test)]
mod tests;
mod tiff;
mod webp;

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::path::{Path, PathBuf};

use image::codecs::gif::GifDecoder;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::png::PngDecoder;
use image::codecs::pnm::PnmDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{AnimationDecoder, Delay, DynamicImage, ImageDecoder, ImageError, ImageFormat, Limits};

use super::IoError;

/// The most memory that one picture may take to read.
const READ_LIMIT: u64 = 8 << 30;

/// Pictures of so many bytes are decoded whatever the size of their files.
const SMALL: u64 = 16 << 20;

/// What is wrong with an encoded picture.
#[derive(Debug)]
enum Fault {
    /// What is missing.
    Incomplete(String),
    /// What is wrong.
    Damaged(String),
    /// What is sound, and not known here.
    Unsupported(String),
    /// What a decoder says.
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
            Self::Decoder(source) => IoError::Picture { path, source },
            Self::Read(source) => IoError::Read { path, source },
        }
    }
}

impl From<ImageError> for Fault {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::IoError(source) if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                Self::incomplete("its data ends before the picture does")
            }
            // What the system did not say is what a decoder found.
            ImageError::IoError(source) if source.raw_os_error().is_none() => Self::Damaged(source.to_string()),
            ImageError::IoError(source) => Self::Read(source),
            source => Self::Decoder(source),
        }
    }
}

/// Refuses a picture of `decoded` bytes that takes `needed` bytes of data at least, and has `data`.
fn plausible(decoded: u64, needed: u64, data: u64) -> Result<(), Fault> {
    if decoded > SMALL && needed > data {
        return Err(Fault::Damaged(format!("its header promises more px than {data} bytes of data can hold")));
    }
    if decoded > READ_LIMIT {
        return Err(Fault::unsupported("a picture of more than 8 GiB"));
    }
    Ok(())
}

fn open(path: &Path) -> Result<BufReader<File>, Fault> {
    File::open(path).map(BufReader::new).map_err(Fault::Read)
}

/// A frame of an animation, and how long it is shown. Pages of a TIFF file do not say.
pub(super) type TimedFrame = Result<(DynamicImage, Option<Delay>), IoError>;

/// Refuses a GIF file whose canvas is larger than its frames can fill.
pub(super) fn check_gif(path: &Path, size: [usize; 2]) -> Result<(), IoError> {
    plausible_gif(path, size).map_err(|fault| fault.of(path))
}

/// A code of 12 bits can stand for 4096 px, so that the size of a file says little: what is large is gone through before memory is taken for it.
fn plausible_gif(path: &Path, size: [usize; 2]) -> Result<(), Fault> {
    let [height, width] = size.map(|side| side as u64);
    if height * width == 0 {
        return Err(Fault::Damaged(format!("its header says {height}x{width} px")));
    }
    let px = |frame: &gif::Frame| u64::from(frame.width) * u64::from(frame.height);
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let mut decoder = options.read_info(open(path)?).map_err(of_gif)?;
    let mut largest = height * width;
    while let Some(frame) = decoder.next_frame_info().map_err(of_gif)? {
        largest = largest.max(px(frame));
    }
    // Two canvases of 4 bytes a px are kept, and a frame.
    if 12 * largest <= SMALL {
        return Ok(());
    }
    let mut decoder = gif::Decoder::new(open(path)?).map_err(of_gif)?;
    let mut largest = 0;
    while let Some(frame) = decoder.next_frame_info().map_err(of_gif)? {
        let px = px(frame);
        let mut left = px;
        let mut indices = [0; 1 << 14];
        while left > 0 {
            let part = left.min(indices.len() as u64);
            if !decoder.fill_buffer(&mut indices[..part as usize]).map_err(of_gif)? {
                return Err(Fault::incomplete("its data ends before the picture does"));
            }
            left -= part;
        }
        largest = largest.max(px);
    }
    if largest < height * width / 16 {
        return Err(Fault::unsupported("an animation whose frames cover only a small part of its canvas"));
    }
    plausible(8 * height * width, 0, 0)
}

fn of_gif(error: gif::DecodingError) -> Fault {
    match error {
        gif::DecodingError::UnexpectedEof => Fault::incomplete("its data ends before the picture does"),
        gif::DecodingError::Io(error) => Fault::from(ImageError::IoError(error)),
        other => Fault::Damaged(other.to_string()),
    }
}

/// A picture or an animation whose structure has been found sound.
#[derive(Debug)]
pub(super) struct PictureFile {
    path: PathBuf,
    kind: Kind,
    /// Height and width as they are stored.
    size: [usize; 2],
    orientation: Orientation,
    frames: usize,
    /// Of frames; none of pages and pictures.
    delays: Vec<Delay>,
}

#[derive(Debug)]
enum Kind {
    /// The content of the file.
    Jpeg(Vec<u8>),
    Png {
        /// That the decoder may take beside that of px.
        memory: u64,
    },
    /// The content of the file, and the animation in it.
    WebP(Vec<u8>, Option<webp::Animation>),
    Tiff(Box<tiff::Pages>),
    Gif,
    Pnm,
}

impl PictureFile {
    /// Opens a picture, whatever kind its name says.
    pub(super) fn open(path: &Path) -> Result<Self, IoError> {
        Self::open_file(path).map_err(|fault| fault.of(path))
    }

    fn open_file(path: &Path) -> Result<Self, Fault> {
        let mut file = open(path)?;
        let length = file.get_ref().metadata().map_err(Fault::Read)?.len();
        let begin = file.fill_buf().map_err(Fault::Read)?;
        if begin.is_empty() {
            return Err(Fault::incomplete("it is empty"));
        }
        let format = match begin.first_chunk() {
            // BigTIFF.
            Some(b"II+\0" | b"MM\0+") => Some(ImageFormat::Tiff),
            _ => image::guess_format(begin).ok(),
        };
        let mut delays = Vec::new();
        let kind = match format {
            Some(ImageFormat::Jpeg) => {
                let mut content = Vec::new();
                Fault::reading(file.read_to_end(&mut content))?;
                jpeg::check(&content)?;
                Kind::Jpeg(content)
            }
            Some(ImageFormat::Png) => {
                let checked = png::check(&mut file, length)?;
                delays = checked.delays;
                Kind::Png { memory: checked.memory }
            }
            Some(ImageFormat::WebP) => {
                let mut content = Vec::new();
                Fault::reading(file.read_to_end(&mut content))?;
                let animation = webp::Animation::find(&mut content)?;
                delays = animation.as_ref().map(webp::Animation::delays).unwrap_or_default();
                Kind::WebP(content, animation)
            }
            Some(ImageFormat::Tiff) => {
                let pages = tiff::Pages::open(file, length)?;
                let (size, orientation, frames) = (pages.size(), pages.orientation(), pages.count());
                return Ok(Self { path: path.to_owned(), kind: Kind::Tiff(Box::new(pages)), size, orientation, frames, delays });
            }
            Some(ImageFormat::Gif) => {
                delays = gif_delays(&mut file)?;
                Kind::Gif
            }
            Some(ImageFormat::Pnm) => Kind::Pnm,
            Some(other) => return Err(Fault::Unsupported(format!("a {other:?} picture (save it as PNG)"))),
            None => return Err(Fault::damaged("it begins like no kind of picture that is known here")),
        };
        let frames = delays.len().max(1);
        let mut picture = Self { path: path.to_owned(), kind, size: [0; 2], orientation: Orientation::NoTransforms, frames, delays };
        let mut decoder = picture.decoder()?;
        let (width, height) = decoder.dimensions();
        let (px, decoded) = (u64::from(height) * u64::from(width), decoder.total_bytes());
        if px == 0 {
            return Err(Fault::Damaged(format!("its header says {height}x{width} px")));
        }
        let orientation = decoder.orientation()?;
        drop(decoder);
        match &picture.kind {
            Kind::Gif => plausible_gif(path, [height, width].map(|side| side as usize))?,
            Kind::Pnm => plausible(decoded, px / 8, length)?,
            // What is not gone through is left to the decoder; every block of 64 px takes a bit at least.
            Kind::Jpeg(_) => plausible(decoded, px / 512, length)?,
            Kind::WebP(content, animation) => webp::check_px(px, animation.is_some(), content.len() as u64)?,
            // Found sound before.
            Kind::Png { .. } | Kind::Tiff(_) => plausible(decoded, 0, length)?,
        }
        (picture.size, picture.orientation) = ([height, width].map(|side| side as usize), orientation);
        Ok(picture)
    }

    fn png(&self, memory: u64) -> Result<PngDecoder<BufReader<File>>, Fault> {
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(memory);
        let mut decoder = PngDecoder::with_limits(open(&self.path)?, limits.clone())?;
        // This one is for the px of animations.
        limits.max_alloc = Some(READ_LIMIT);
        decoder.set_limits(limits)?;
        Ok(decoder)
    }

    /// What decodes the first frame.
    fn decoder(&self) -> Result<Box<dyn ImageDecoder + '_>, Fault> {
        Ok(match &self.kind {
            Kind::Jpeg(content) => Box::new(JpegDecoder::new(Cursor::new(content))?),
            Kind::Png { memory } => Box::new(self.png(*memory)?),
            Kind::WebP(content, _) => Box::new(WebPDecoder::new(Cursor::new(content))?),
            Kind::Gif => Box::new(GifDecoder::new(open(&self.path)?)?),
            Kind::Pnm => Box::new(PnmDecoder::new(open(&self.path)?)?),
            Kind::Tiff(_) => unreachable!("pages are read by `Pages`"),
        })
    }

    /// Height and width of what is shown, in px.
    pub(super) fn size(&self) -> [usize; 2] {
        let [height, width] = self.size;
        if self.orientation.to_exif() >= 5 { [width, height] } else { [height, width] }
    }

    /// 1 for a picture, more for an animation or a file of several pages.
    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    /// How long each frame of an animation is shown; nothing says it for pages.
    pub(super) fn delays(&self) -> impl Iterator<Item = Delay> {
        self.delays.iter().copied()
    }

    /// Whether it is a GIF file.
    pub(super) fn is_gif(&self) -> bool {
        matches!(self.kind, Kind::Gif)
    }

    /// The only frame.
    ///
    /// # Errors
    /// When there are more, or it cannot be decoded.
    pub(super) fn read(self) -> Result<DynamicImage, IoError> {
        if self.frames > 1 {
            return Err(IoError::Animated { path: self.path, frames: self.frames });
        }
        let none = IoError::NoFrames { path: self.path.clone() };
        self.into_frames()?.next().unwrap_or(Err(none)).map(|(image, _)| image)
    }

    /// All frames, one after the other.
    pub(super) fn into_frames(mut self) -> Result<Box<dyn Iterator<Item = TimedFrame>>, IoError> {
        let (path, orientation, delays) = (self.path.clone(), self.orientation, std::mem::take(&mut self.delays));
        let frames = self.decoded_frames().map_err(|fault| fault.of(&path))?;
        let delays = delays.into_iter().map(Some).chain(std::iter::repeat(None));
        Ok(Box::new(frames.zip(delays).map(move |(frame, delay)| {
            let mut image = frame.map_err(|fault| fault.of(&path))?;
            image.apply_orientation(orientation);
            Ok((image, delay))
        })))
    }

    fn decoded_frames(self) -> Result<Box<dyn Iterator<Item = Result<DynamicImage, Fault>>>, Fault> {
        let animated = |frames: image::Frames<'static>| frames.map(|frame| Ok(DynamicImage::ImageRgba8(frame?.into_buffer())));
        Ok(match self.kind {
            Kind::Png { memory } if self.frames > 1 => {
                let decoder = self.png(memory)?;
                if decoder.color_type().bytes_per_pixel() > decoder.color_type().channel_count() {
                    return Err(Fault::unsupported("an animation of 16 bits a channel"));
                }
                Box::new(animated(decoder.apng()?.into_frames()))
            }
            Kind::Gif if self.frames > 1 => Box::new(animated(GifDecoder::new(open(&self.path)?)?.into_frames())),
            Kind::WebP(content, Some(animation)) => Box::new(animation.read(Cursor::new(content))),
            Kind::Tiff(pages) => Box::new(pages.read()),
            _ => {
                let image = DynamicImage::from_decoder(self.decoder()?)?;
                Box::new(std::iter::once(Ok(image)))
            }
        })
    }
}

/// How long each frame of a GIF file is shown, from its blocks alone.
fn gif_delays(file: &mut BufReader<File>) -> Result<Vec<Delay>, Fault> {
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let mut decoder = options.read_info(file).map_err(of_gif)?;
    let mut delays = Vec::new();
    while let Some(frame) = decoder.next_frame_info().map_err(of_gif)? {
        delays.push(Delay::from_numer_denom_ms(10 * u32::from(frame.delay), 1));
    }
    if delays.is_empty() { Err(Fault::incomplete("it holds no frame")) } else { Ok(delays) }
}
