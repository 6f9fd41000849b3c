use std::io::BufReader;
use std::path::{Path, PathBuf};

use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ExtendedColorType, ImageDecoder, ImageFormat, ImageReader, Limits};
use tiling::{Block, BoxError, Region, Sink, TileSource};
use vae_core::{from_eight_bits, to_eight_bits};

use super::{FileKind, IoError, write_atomically};

/// The most memory that one picture may take to read.
const READ_LIMIT: u64 = 8 << 30;

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
    /// When one cannot be read, or their sizes differ.
    pub fn read(paths: &[PathBuf], channels: usize, ratio: usize) -> Result<Self, IoError> {
        let mut pixels = Vec::with_capacity(paths.len());
        let mut common = None;
        for path in paths {
            let picture = read_picture(path)?;
            let got = [picture.height() as usize, picture.width() as usize];
            let expected = *common.get_or_insert(got);
            if got != expected {
                return Err(IoError::PictureSize { path: path.clone(), got, expected });
            }
            pixels.push(interleaved(&picture, channels).ok_or_else(|| IoError::NotAPicture { path: path.clone(), channels, frames: 1 })?);
        }
        let size = common.unwrap_or_default();
        Ok(Self { pixels, channels, size, padded: size.map(|side| side.next_multiple_of(ratio)) })
    }

    /// Height and width of the files, in px.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }
}

/// Height and width of a picture, in px, from its header.
///
/// # Errors
/// When it cannot be read.
pub fn picture_size(path: &Path) -> Result<[usize; 2], IoError> {
    let mut decoder = open_picture(path)?;
    let (width, height) = decoder.dimensions();
    let turned = decoder.orientation().map_err(|source| IoError::Picture { path: path.to_owned(), source })?.to_exif() >= 5;
    let size = [height as usize, width as usize];
    Ok(if turned { [size[1], size[0]] } else { size })
}

fn open_picture(path: &Path) -> Result<impl ImageDecoder + use<>, IoError> {
    let read = |source| IoError::Read { path: path.to_owned(), source };
    let file = BufReader::new(std::fs::File::open(path).map_err(read)?);
    let mut reader = ImageReader::new(file).with_guessed_format().map_err(read)?;
    let mut limits = Limits::default();
    limits.max_alloc = Some(READ_LIMIT);
    reader.limits(limits);
    reader.into_decoder().map_err(|source| IoError::Picture { path: path.to_owned(), source })
}

pub(super) fn read_picture(path: &Path) -> Result<DynamicImage, IoError> {
    let picture = |source| IoError::Picture { path: path.to_owned(), source };
    let mut decoder = open_picture(path)?;
    let orientation = decoder.orientation().map_err(picture)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(picture)?;
    image.apply_orientation(orientation);
    Ok(image)
}

pub(super) fn interleaved(picture: &DynamicImage, channels: usize) -> Option<Pixels> {
    let sixteen = picture.color().bytes_per_pixel() / picture.color().channel_count() > 1;
    Some(match (channels, sixteen) {
        (1, false) => Pixels::Eight(picture.to_luma8().into_raw()),
        (3, false) => Pixels::Eight(picture.to_rgb8().into_raw()),
        (4, false) => Pixels::Eight(picture.to_rgba8().into_raw()),
        (1, true) => Pixels::Sixteen(picture.to_luma16().into_raw()),
        (3, true) => Pixels::Sixteen(picture.to_rgb16().into_raw()),
        (4, true) => Pixels::Sixteen(picture.to_rgba16().into_raw()),
        _ => return None,
    })
}

impl TileSource for Pictures {
    fn shape(&self) -> [usize; 5] {
        [self.pixels.len(), self.channels, 1, self.padded[0], self.padded[1]]
    }

    fn read(&self, region: &Region) -> Result<Block, BoxError> {
        let [_, height, width] = region.size;
        let [last_y, last_x] = self.size.map(|side| side - 1);
        Ok(Block::from_fn([self.pixels.len(), self.channels, 1, height, width], |[b, c, _, y, x]| {
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
    crop: Option<[usize; 2]>,
    pixels: Vec<Vec<u8>>,
    channels: usize,
    size: [usize; 2],
}

impl PictureSink {
    /// Pictures to be written at `path`, cropped at the right and bottom to `crop` px (height, width) when given.
    ///
    /// # Errors
    /// When the name is not a picture's, or samples of `channels` channels and `frames` frames cannot be shown in it.
    pub fn new(path: &Path, [channels, frames]: [usize; 2], crop: Option<[usize; 2]>, jpeg_quality: u8) -> Result<Self, IoError> {
        let FileKind::Picture(format) = FileKind::of(path)? else {
            return Err(IoError::UnknownKind { path: path.to_owned(), kinds: FileKind::PICTURES });
        };
        let shown = frames == 1 && (matches!(channels, 1 | 3) || (channels == 4 && format != ImageFormat::Jpeg));
        if !shown {
            return Err(IoError::NotAPicture { path: path.to_owned(), channels, frames });
        }
        let jpeg_quality = jpeg_quality.clamp(1, 100);
        Ok(Self { path: path.to_owned(), format, jpeg_quality, crop, pixels: Vec::new(), channels, size: [0, 0] })
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
            .map_err(|source| IoError::Picture { path: path.to_owned(), source })?;
            std::io::Write::write_all(writer, encoded.get_ref()).map_err(|source| IoError::Write { path: path.to_owned(), source })
        })
    }
}

pub(super) fn numbered(path: &Path, item: usize) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().map(|extension| format!(".{}", extension.to_string_lossy())).unwrap_or_default();
    path.with_file_name(format!("{stem}-{item}{ending}"))
}

impl Sink for PictureSink {
    fn take(&mut self, [_, top, left]: [usize; 3], [_, height, width]: [usize; 3], piece: Block) -> Result<(), BoxError> {
        let [batch, channels, _, rows, columns] = piece.shape();
        if self.pixels.is_empty() {
            let [crop_height, crop_width] = self.crop.unwrap_or([height, width]);
            self.size = [height.min(crop_height), width.min(crop_width)];
            self.pixels = vec![vec![0; self.size[0] * self.size[1] * channels]; batch];
        }
        let [height, width] = self.size;
        let shown = columns.min(width.saturating_sub(left));
        for (item, pixels) in self.pixels.iter_mut().enumerate() {
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
