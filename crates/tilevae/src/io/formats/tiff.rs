use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, GrayAlphaImage, GrayImage, ImageBuffer, ImageFormat, RgbImage, RgbaImage};
use tiff::decoder::{Decoder, DecodingResult, Limits as DecoderLimits};
use tiff::tags::Tag;
use tiff::{ColorType, TiffError};

use super::super::delays::Delays;
use super::super::{Format, FormatKind, ImageWriter, IoError, Limits, Reader, Target, Writer};
use super::{Fault, Image, READ_LIMIT, SMALL, begins_as, encoded, jpeg, open_file, opened, plausible};

/// TIFF and BigTIFF of one or more pages.
pub(super) struct Tiff;

impl Format for Tiff {
    fn name(&self) -> &'static str {
        "tiff"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["tif", "tiff"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Image
    }

    fn matches(&self, head: &[u8]) -> bool {
        begins_as(head, ImageFormat::Tiff) || matches!(head.first_chunk(), Some(b"II+\0" | b"MM\0+"))
    }

    fn limits(&self) -> Limits {
        // Places in a file are numbers of 32 bits. The headers of its strips are small against the rest.
        Limits { bytes: u64::from(u32::MAX / 64 * 63), ..Limits::IMAGE }
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        opened(path, || {
            let (file, length) = open_file(path)?;
            let pages = Pages::open(file, length)?;
            Ok(Image {
                path: path.to_owned(),
                size: pages.size,
                orientation: pages.orientation,
                frames: pages.places.len(),
                delays: Delays::default(),
                decode: Box::new(move || Ok(Box::new(pages.read()))),
            })
        })
    }

    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        Ok(Box::new(ImageWriter::new(target, |pixels| encoded(pixels, ImageFormat::Tiff))))
    }
}

impl From<TiffError> for Fault {
    fn from(error: TiffError) -> Self {
        match error {
            TiffError::IoError(error) => Self::from(image::ImageError::IoError(error)),
            TiffError::UnsupportedError(error) => Self::Unsupported(format!("a TIFF image of a kind that is not known here ({error})")),
            error => Self::Damaged(error.to_string()),
        }
    }
}

/// The pages of a TIFF file; thumbnails and masks are none.
#[derive(Debug)]
struct Pages {
    decoder: Decoder<BufReader<File>>,
    /// Bytes of the file.
    length: u64,
    /// Their places among the directories of the file.
    places: Vec<usize>,
    size: [usize; 2],
    orientation: Orientation,
}

impl Pages {
    /// Finds the pages of a file of `length` bytes.
    fn open(mut file: BufReader<File>, length: u64) -> Result<Self, Fault> {
        check_directories(&mut file, length)?;
        Fault::reading(file.rewind())?;
        let mut limits = DecoderLimits::default();
        limits.decoding_buffer_size = usize::try_from(READ_LIMIT).unwrap_or(usize::MAX);
        limits.intermediate_buffer_size = limits.decoding_buffer_size;
        let mut decoder = Decoder::new(file)?.with_limits(limits);
        let (width, height) = decoder.dimensions()?;
        let orientation = decoder.find_tag_unsigned(Tag::Orientation)?.and_then(Orientation::from_exif).unwrap_or(Orientation::NoTransforms);
        let mut pages = Vec::new();
        for index in 0.. {
            // Bit 0: a smaller version of another page; bit 2: a mask for one.
            if decoder.find_tag_unsigned(Tag::NewSubfileType)?.unwrap_or(0_u32) & 5 == 0 {
                pages.push(index);
            }
            if !decoder.more_images() {
                break;
            }
            decoder.next_image()?;
        }
        if pages.is_empty() {
            pages.push(0);
        }
        Ok(Self { decoder, length, places: pages, size: [height, width].map(|side| side as usize), orientation })
    }

    fn read(mut self) -> impl Iterator<Item = Result<DynamicImage, Fault>> {
        std::mem::take(&mut self.places).into_iter().map(move |index| {
            self.decoder.seek_to_image(index)?;
            page(&mut self.decoder, self.length)
        })
    }
}

/// Checks that the values of no tag are more than the file has bytes: memory is taken for them at once.
fn check_directories(file: &mut (impl Read + Seek), length: u64) -> Result<(), Fault> {
    let mut read = |at: u64, bytes: &mut [u8]| Fault::reading(file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(bytes)));
    let mut header = [0; 16];
    read(0, &mut header[..8])?;
    let is_big_endian = header[0] == b'M';
    let number = |bytes: &[u8]| {
        let digit = |all, &byte: &u8| all << 8 | u64::from(byte);
        if is_big_endian { bytes.iter().fold(0, digit) } else { bytes.iter().rev().fold(0, digit) }
    };
    let is_big = number(&header[2..4]) == 43;
    // Bytes of a place, and of the number of entries.
    let [wide, of_count] = if is_big { [8, 8] } else { [4, 2] };
    if is_big {
        read(8, &mut header[8..])?;
    }
    let mut next = number(if is_big { &header[8..] } else { &header[4..8] });
    let mut seen = HashSet::new();
    let mut of_entries = 0_u64;
    while next > 0 && seen.insert(next) {
        let mut bytes = [0; 8];
        read(next, &mut bytes[..of_count])?;
        let (entries, begin) = (number(&bytes[..of_count]), next.saturating_add(of_count as u64));
        let size = 4 + 2 * wide as u64;
        // Directories that share their entries would take hours to go through.
        of_entries = of_entries.saturating_add(entries.saturating_mul(size));
        if of_entries > length {
            return Err(Fault::damaged("its directories are said to have more entries than the file holds"));
        }
        for entry in 0..entries {
            let mut bytes = [0; 12];
            let bytes = &mut bytes[..4 + wide];
            read(begin.saturating_add(entry * size), bytes)?;
            let width = match number(&bytes[2..4]) {
                3 | 8 => 2,
                4 | 9 | 11 | 13 => 4,
                5 | 10 | 12 | 16..=18 => 8,
                _ => 1,
            };
            let count = number(&bytes[4..]);
            if count.saturating_mul(width) > length {
                let tag = number(&bytes[..2]);
                return Err(Fault::Damaged(format!("its tag {tag} is said to have {count} values, which are more than the file holds")));
            }
        }
        let mut place = [0; 8];
        read(begin.saturating_add(entries.saturating_mul(size)), &mut place[..wide])?;
        next = number(&place[..wide]);
    }
    Ok(())
}

/// The values of samples that are no more than 16 bits.
enum Values {
    Eight(Vec<u8>),
    Sixteen(Vec<u16>),
}

fn page(decoder: &mut Decoder<BufReader<File>>, length: u64) -> Result<DynamicImage, Fault> {
    let (width, height) = decoder.dimensions()?;
    let tags = [Tag::SampleFormat, Tag::PhotometricInterpretation, Tag::Compression, Tag::Predictor, Tag::PlanarConfiguration];
    let [format, interpretation, compression, predictor, planes] = tags.map(|tag| {
        let values: Vec<u16> = decoder.find_tag_unsigned_vec(tag).ok().flatten().unwrap_or_default();
        values.first().copied().unwrap_or(1)
    });
    let kind = match interpretation {
        3 => Some("palette colours"),
        4 => Some("a mask"),
        6 => Some("YCbCr colours"),
        8..=10 => Some("CIE L*a*b* colours"),
        _ => None,
    };
    if let Some(kind) = kind {
        return Err(Fault::Unsupported(format!("a TIFF image of {kind} (save it as grey or RGB)")));
    }
    let color = decoder.colortype()?;
    let bits = color.bit_depth();
    let number = match format {
        1 | 4 => "unsigned integers",
        2 => "signed integers",
        3 => "floats",
        _ => "numbers of an unknown kind",
    };
    if number != "unsigned integers" || !matches!(bits, 1 | 2 | 4 | 8 | 16) {
        return Err(Fault::Unsupported(format!(
            "a TIFF image of {bits}-bit {number} (save it with 8 or 16 bits, unsigned, or its samples from -1 to 1 as .npy or .safetensors)"
        )));
    }
    let extra: Vec<u16> = decoder.find_tag_unsigned_vec(Tag::ExtraSamples)?.unwrap_or_default();
    let channels = match color {
        _ if compression == 7 && !matches!(color, ColorType::Gray(8) | ColorType::RGB(8) | ColorType::RGBA(8)) => {
            return Err(Fault::unsupported("a TIFF image with JPEG data of other than grey and RGB (save it without JPEG)"));
        }
        ColorType::Gray(_) => 1,
        ColorType::Multiband { num_samples: 2, .. } if matches!(extra[..], [1 | 2]) => 2,
        ColorType::RGB(8 | 16) => 3,
        ColorType::RGBA(8 | 16) | ColorType::CMYK(8 | 16) => 4,
        _ => {
            return Err(Fault::Unsupported(format!(
                "a TIFF image of {} channels of {bits} bits (save it as grey, RGB or RGBA)",
                color.num_samples()
            )));
        }
    };
    let samples = u64::from(decoder.find_tag_unsigned(Tag::SamplesPerPixel)?.unwrap_or(1_u16));
    // Channels beyond those of colours are left out, where the decoder can.
    if samples != channels && ([predictor, planes] != [1, 1] || samples < channels) {
        return Err(Fault::Unsupported(format!(
            "a TIFF image of {samples} channels, of which {channels} are colours (save it as grey, RGB or RGBA)"
        )));
    }
    check_data(decoder, length, compression, u64::from(bits) * samples)?;

    let mut result = DecodingResult::U8(Vec::new());
    let layout = decoder.read_image_to_buffer(&mut result)?;
    let mut values = match result {
        DecodingResult::U8(values) => Values::Eight(values),
        DecodingResult::U16(values) => Values::Sixteen(values),
        _ => return Err(Fault::Unsupported(format!("a TIFF image of {bits}-bit {number}"))),
    };
    if let Values::Eight(packed) = &mut values
        && bits < 8
    {
        *packed = unpacked(packed, width as usize * channels as usize, bits);
    }
    if layout.planes > 1 {
        match &mut values {
            Values::Eight(planes) => *planes = interleaved(planes, channels as usize),
            Values::Sixteen(planes) => *planes = interleaved(planes, channels as usize),
        }
    }
    let count = width as usize * height as usize * channels as usize;
    match &mut values {
        Values::Eight(values) => values.truncate(count),
        Values::Sixteen(values) => values.truncate(count),
    }
    let colours = match color {
        ColorType::CMYK(_) => Colours::Ink,
        _ if extra.first() == Some(&1) => Colours::TimesAlpha,
        _ => Colours::Plain,
    };
    let image = match (values, channels) {
        (Values::Eight(values), 1) => GrayImage::from_raw(width, height, values).map(DynamicImage::ImageLuma8),
        (Values::Sixteen(values), 1) => ImageBuffer::from_raw(width, height, values).map(DynamicImage::ImageLuma16),
        (Values::Eight(values), 2) => {
            GrayAlphaImage::from_raw(width, height, colours.plain(values, 2, u8::MAX.into())).map(DynamicImage::ImageLumaA8)
        }
        (Values::Sixteen(values), 2) => {
            ImageBuffer::from_raw(width, height, colours.plain(values, 2, u16::MAX.into())).map(DynamicImage::ImageLumaA16)
        }
        (Values::Eight(values), 4) if colours != Colours::Ink => {
            RgbaImage::from_raw(width, height, colours.plain(values, 4, u8::MAX.into())).map(DynamicImage::ImageRgba8)
        }
        (Values::Sixteen(values), 4) if colours != Colours::Ink => {
            ImageBuffer::from_raw(width, height, colours.plain(values, 4, u16::MAX.into())).map(DynamicImage::ImageRgba16)
        }
        (Values::Eight(values), _) => RgbImage::from_raw(width, height, colours.plain(values, 3, u8::MAX.into())).map(DynamicImage::ImageRgb8),
        (Values::Sixteen(values), _) => ImageBuffer::from_raw(width, height, colours.plain(values, 3, u16::MAX.into())).map(DynamicImage::ImageRgb16),
    };
    image.ok_or_else(|| Fault::incomplete("its data ends before the image does"))
}

/// What the values of a px are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colours {
    /// Grey or RGB, and alpha.
    Plain,
    /// The same, multiplied with alpha.
    TimesAlpha,
    /// CMYK.
    Ink,
}

impl Colours {
    /// Grey or RGB, and alpha. `channels`: of colours with alpha.
    fn plain<T: Copy + Into<u32> + TryFrom<u32> + Default>(self, mut values: Vec<T>, channels: usize, largest: u32) -> Vec<T> {
        match self {
            Self::Plain => {}
            Self::TimesAlpha => divide_by_alpha(&mut values, channels, largest),
            Self::Ink => return rgb_of_cmyk(&values, largest),
        }
        values
    }
}

/// Checks that the strips or tiles of a page are there, and can hold it. `bits`: of a px.
fn check_data(decoder: &mut Decoder<BufReader<File>>, length: u64, compression: u16, bits: u64) -> Result<(), Fault> {
    let (width, height) = decoder.dimensions()?;
    let (width, height) = (u64::from(width), u64::from(height));
    let tiles = decoder.find_tag_unsigned::<u64>(Tag::TileWidth)?;
    let [offsets, counts] = if tiles.is_some() { [Tag::TileOffsets, Tag::TileByteCounts] } else { [Tag::StripOffsets, Tag::StripByteCounts] };
    let [offsets, counts] = [decoder.get_tag_u64_vec(offsets)?, decoder.get_tag_u64_vec(counts)?];
    let what = if tiles.is_some() { "tile" } else { "strip" };
    if tiles.is_some_and(|side| side > width.saturating_mul(2).max(SMALL / 64)) {
        return Err(Fault::damaged("its tiles are far larger than the image"));
    }
    let mut data = 0_u64;
    for (place, (&offset, &count)) in offsets.iter().zip(&counts).enumerate() {
        data = data.saturating_add(count);
        // Uncompressed strips have a known length; this field is ignored.
        if compression != 1 && offset.saturating_add(count) > length {
            return Err(Fault::Incomplete(format!("its {what} {} of {} reaches past the end of the file", place + 1, offsets.len())));
        }
    }
    let rows = (width.saturating_mul(bits)).div_ceil(8).saturating_mul(height);
    let (needed, data) = match compression {
        1 => (rows, length),
        // The longest that a code of each can stand for: PackBits, LZW, deflate.
        32773 => (rows / 64, data),
        5 => (rows / 2731, data),
        8 | 32946 => (rows / 1032, data),
        // Progressive: a bit for 64 px.
        7 => (width * height / 512, data),
        // Fax: a bit for a row.
        _ => (height / 8, data),
    };
    plausible(width.saturating_mul(height).saturating_mul(bits.div_ceil(8).max(1)), needed, data.min(length))?;
    if compression == 7 {
        let tables = decoder.find_tag(Tag::JPEGTables)?.map(tiff::decoder::ifd::Value::into_u8_vec).transpose()?.unwrap_or_default();
        for (&offset, &count) in offsets.iter().zip(&counts) {
            let file = decoder.inner();
            let mut image = Vec::new();
            Fault::reading(file.seek(SeekFrom::Start(offset)).and_then(|_| file.take(count).read_to_end(&mut image)))?;
            // Tables are a JPEG file without an image, and the image one without tables.
            if let Some(tables) = tables.len().checked_sub(2).and_then(|end| tables.get(..end)) {
                image.splice(..image.len().min(2), tables.iter().copied());
            }
            jpeg::check(&image)?;
        }
    }
    Ok(())
}

/// Rows of values of `bits` bits, each of which begins with a byte, as values of 8 bits.
pub(super) fn unpacked(packed: &[u8], row: usize, bits: u8) -> Vec<u8> {
    let largest = u8::MAX >> (8 - bits);
    let bytes = (row * usize::from(bits)).div_ceil(8).max(1);
    let value = |line: &[u8], x: usize| {
        let bit = x * usize::from(bits);
        line[bit / 8] >> (8 - usize::from(bits) - bit % 8) & largest
    };
    packed.chunks_exact(bytes).flat_map(|line| (0..row).map(move |x| value(line, x) * (u8::MAX / largest))).collect()
}

pub(super) fn interleaved<T: Copy>(planes: &[T], channels: usize) -> Vec<T> {
    let plane = planes.len() / channels;
    (0..plane).flat_map(|place| (0..channels).map(move |channel| planes[channel * plane + place])).collect()
}

/// As PIL does: ink lets through what it does not cover.
fn rgb_of_cmyk<T: Copy + Into<u32> + TryFrom<u32> + Default>(values: &[T], largest: u32) -> Vec<T> {
    let pixels = values.as_chunks::<4>().0.iter();
    let through = |ink: T| largest - ink.into();
    let product = |a: u32, b: u32| ((u64::from(a) * u64::from(b) + u64::from(largest) / 2) / u64::from(largest)) as u32;
    pixels.flat_map(|&[c, m, y, k]| [c, m, y].map(|ink| T::try_from(product(through(ink), through(k))).unwrap_or_default())).collect()
}

/// Colours that were multiplied with their alpha become what they were.
pub(super) fn divide_by_alpha<T: Copy + Into<u32> + TryFrom<u32> + Default>(values: &mut [T], channels: usize, largest: u32) {
    for pixel in values.chunks_exact_mut(channels) {
        let Some((alpha, colours)) = pixel.split_last_mut() else { return };
        let alpha: u32 = (*alpha).into();
        for colour in colours.iter_mut().filter(|_| alpha > 0) {
            let value: u32 = (*colour).into();
            *colour = T::try_from(((u64::from(value) * u64::from(largest) / u64::from(alpha)) as u32).min(largest)).unwrap_or_default();
        }
    }
}
