use std::io::Write;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ExtendedColorType, ImageError, ImageFormat};
use tiling::{BoxError, HostTensor, Region, Sink, TileSource};
use vae_core::{from_eight_bits, to_eight_bits};

use super::background::{is_transparent, laid_over};
use super::formats::PictureFile;
use super::limits::check_output_of_kind;
use super::{Background, FileKind, IoError, write_atomically};

/// Pictures of one size, as a source of samples from -1 to 1. They stay in 8 or 16 bits; a tile is made into floats when it is read.
///
/// Where a side is not a multiple of what the model takes, the last row and column are repeated.
#[derive(Debug)]
pub struct Pictures {
    pixels: Vec<Pixels>,
    channels: usize,
    /// Height and width of the files.
    size: [usize; 2],
    /// Height and width with repeated rows and columns.
    padded: [usize; 2],
}

/// Interleaved channels, row by row.
#[derive(Debug)]
pub(super) enum Pixels {
    Eight(Vec<u8>),
    Sixteen(Vec<u16>),
}

impl Pictures {
    /// Reads pictures with `channels` channels (1: grey, 3: colour, 4: colour and alpha), to be padded to multiples of `ratio` px.
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
        let mut pixels = Vec::with_capacity(paths.len());
        let mut common = None;
        let mut unshown = UnshownAlpha::default();
        for path in paths {
            let picture = read_picture(path)?;
            let got = [picture.height() as usize, picture.width() as usize];
            let expected = *common.get_or_insert(got);
            if got != expected {
                return Err(IoError::PictureSize { path: path.clone(), got, expected });
            }
            pixels.push(interleaved(picture, channels, background, || unshown.add(path)).ok_or_else(|| IoError::NotAPicture {
                path: path.clone(),
                channels,
                frames: 1,
            })?);
        }
        unshown.warn();
        let size = common.unwrap_or_default();
        Ok(Self { pixels, channels, size, padded: size.map(|side| side.next_multiple_of(ratio)) })
    }

    /// Height and width of the files, in px.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }
}

/// Height and width of a picture, in px, from its structure.
///
/// # Errors
/// When it cannot be read.
pub fn picture_size(path: &Path) -> Result<[usize; 2], IoError> {
    PictureFile::open(path).map(|picture| picture.size())
}

/// A picture that has one frame.
pub(super) fn read_picture(path: &Path) -> Result<DynamicImage, IoError> {
    PictureFile::open(path)?.read()
}

/// Pictures whose alpha has no place in the samples, to be told once.
#[derive(Debug, Default)]
pub(super) struct UnshownAlpha {
    first: Option<PathBuf>,
    count: usize,
}

impl UnshownAlpha {
    pub(super) fn add(&mut self, path: &Path) {
        self.first.get_or_insert_with(|| path.to_owned());
        self.count += 1;
    }

    pub(super) fn warn(&self) {
        let Some(first) = &self.first else { return };
        let others = if self.count > 1 { format!(" (and {} more)", self.count - 1) } else { String::new() };
        tracing::warn!(
            "{}{others} has transparent px: their alpha is dropped and their colours are taken as stored, as diffusers does; io.background = \"white\", \"black\" or \"#rrggbb\" lays them over a colour",
            first.display()
        );
    }
}

/// The values of a picture with `channels` channels, if there is a way to show it so. `unshown` hears of alpha that is dropped.
pub(super) fn interleaved(mut picture: DynamicImage, channels: usize, background: Background, unshown: impl FnOnce()) -> Option<Pixels> {
    if channels < 4 && is_transparent(&picture) {
        match background {
            Background::None => unshown(),
            Background::Color(color) => picture = laid_over(picture, color),
        }
    }
    let sixteen = picture.color().bytes_per_pixel() / picture.color().channel_count() > 1;
    Some(match (channels, sixteen) {
        (1, false) => Pixels::Eight(picture.into_luma8().into_raw()),
        (3, false) => Pixels::Eight(picture.into_rgb8().into_raw()),
        (4, false) => Pixels::Eight(picture.into_rgba8().into_raw()),
        (1, true) => Pixels::Sixteen(picture.into_luma16().into_raw()),
        (3, true) => Pixels::Sixteen(picture.into_rgb16().into_raw()),
        (4, true) => Pixels::Sixteen(picture.into_rgba16().into_raw()),
        _ => return None,
    })
}

impl TileSource for Pictures {
    fn shape(&self) -> [usize; 5] {
        [self.pixels.len(), self.channels, 1, self.padded[0], self.padded[1]]
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        let [_, height, width] = region.size;
        let [last_y, last_x] = self.size.map(|side| side - 1);
        Ok(HostTensor::from_fn([self.pixels.len(), self.channels, 1, height, width], |[b, c, _, y, x]| {
            let [y, x] = [(region.start[1] + y).min(last_y), (region.start[2] + x).min(last_x)];
            let place = (y * self.size[1] + x) * self.channels + c;
            match &self.pixels[b] {
                Pixels::Eight(values) => from_eight_bits(values[place]),
                Pixels::Sixteen(values) => f32::from(values[place]) / 32767.5 - 1.0,
            }
        }))
    }
}

/// A sink that makes 8-bit pictures of samples from -1 to 1, one a batch item, as its parts come.
#[derive(Debug)]
pub struct PictureSink {
    path: PathBuf,
    format: ImageFormat,
    jpeg_quality: u8,
    pixels: Vec<Vec<u8>>,
    channels: usize,
    /// Height and width.
    size: [usize; 2],
}

impl PictureSink {
    /// Pictures to be written at `path` of samples of `shape` (`[batch, channels, frames, height, width]`), cropped at the right and bottom to that shape where
    /// more comes.
    ///
    /// # Errors
    /// When the name is not a picture's, or such samples cannot be shown in it.
    pub fn new(path: &Path, shape: [usize; 5], jpeg_quality: u8) -> Result<Self, IoError> {
        Self::of_kind(path, FileKind::of(path)?, shape, jpeg_quality)
    }

    /// The same of a kind that the name need not say.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn of_kind(path: &Path, kind: FileKind, shape: [usize; 5], jpeg_quality: u8) -> Result<Self, IoError> {
        let FileKind::Picture(format) = kind else {
            return Err(IoError::UnknownKind { path: path.to_owned(), kinds: FileKind::PICTURES });
        };
        check_output_of_kind(path, kind, shape)?;
        let [batch, channels, _, height, width] = shape;
        let pixels = vec![Vec::new(); batch];
        Ok(Self { path: path.to_owned(), format, jpeg_quality: jpeg_quality.clamp(1, 100), pixels, channels, size: [height, width] })
    }

    /// Writes what came, and gives the names of the files: `path`, or `NAME-0.EXT`, `NAME-1.EXT`, … for a batch.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(self) -> Result<Vec<PathBuf>, IoError> {
        let paths: Vec<PathBuf> = match self.pixels.len() {
            1 => vec![self.path.clone()],
            count => (0..count).map(|item| numbered(&self.path, item)).collect(),
        };
        for (path, pixels) in paths.iter().zip(&self.pixels) {
            self.write_one(path, pixels)?;
        }
        Ok(paths)
    }

    fn write_one(&self, path: &Path, pixels: &[u8]) -> Result<(), IoError> {
        let [height, width] = self.size.map(|side| side as u32);
        let color = match self.channels {
            1 => ExtendedColorType::L8,
            4 => ExtendedColorType::Rgba8,
            _ => ExtendedColorType::Rgb8,
        };
        write_atomically(path, |writer| {
            // TIFF is written back and forth, so a file is encoded in memory first; it is small against the samples.
            let mut encoded = std::io::Cursor::new(Vec::new());
            match self.format {
                ImageFormat::Jpeg => JpegEncoder::new_with_quality(&mut encoded, self.jpeg_quality).encode(pixels, width, height, color),
                format => image::write_buffer_with_format(&mut encoded, pixels, width, height, color, format),
            }
            .map_err(|error| not_encoded(path, error))?;
            writer.write_all(encoded.get_ref()).map_err(|source| IoError::Write { path: path.to_owned(), source })
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

/// The name of an item of a batch: `NAME-0.EXT`, `NAME-1.EXT`, …
pub fn numbered(path: &Path, item: usize) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{item}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

impl Sink for PictureSink {
    fn take(&mut self, [_, top, left]: [usize; 3], _: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        let [_, channels, _, rows, columns] = piece.shape();
        let [height, width] = self.size;
        let shown = columns.min(width.saturating_sub(left));
        for (item, pixels) in self.pixels.iter_mut().enumerate() {
            pixels.resize(height * width * channels, 0);
            for y in 0..rows.min(height.saturating_sub(top)) {
                let start = ((top + y) * width + left.min(width)) * channels;
                let line = &mut pixels[start..start + shown * channels];
                for channel in 0..channels {
                    let values = &piece.row(item * channels + channel, y)[..shown];
                    for (place, &value) in line.iter_mut().skip(channel).step_by(channels).zip(values) {
                        *place = to_eight_bits(value);
                    }
                }
            }
        }
        Ok(())
    }

    fn rounds_to_eight_bits(&self) -> bool {
        true
    }
}
