use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use image::codecs::png::PngDecoder;
use image::{AnimationDecoder, Delay, DynamicImage, ImageDecoder, ImageFormat, Limits as DecoderLimits};

use super::super::{Format, FormatKind, ImageWriter, IoError, Reader, Target, Writer};
use super::{Fault, Header, Image, READ_LIMIT, SMALL, begins_as, encoded, one_frame, open_file, opened, plausible};

/// PNG, animated ones (APNG) among them.
pub(super) struct Png;

impl Format for Png {
    fn name(&self) -> &'static str {
        "png"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["png"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Image
    }

    fn matches(&self, head: &[u8]) -> bool {
        begins_as(head, ImageFormat::Png)
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        opened(path, || {
            let (mut file, length) = open_file(path)?;
            let Checked { delays, memory } = check(&mut file, length)?;
            let header = Header::of(&mut decoder(path, memory)?)?;
            plausible(header.decoded, 0, length)?;
            let (owned, is_animated) = (path.to_owned(), delays.len() > 1);
            Ok(Image::new(path, &header, &delays, move || {
                let decoder = decoder(&owned, memory)?;
                if !is_animated {
                    return one_frame(decoder);
                }
                if decoder.color_type().bytes_per_pixel() > decoder.color_type().channel_count() {
                    return Err(Fault::unsupported("an animation of 16 bits a channel"));
                }
                let frames = decoder.apng()?.into_frames();
                Ok(Box::new(frames.map(|frame| Ok(DynamicImage::ImageRgba8(frame?.into_buffer())))))
            }))
        })
    }

    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        Ok(Box::new(ImageWriter::new(target, |pixels| encoded(pixels, ImageFormat::Png))))
    }
}

fn decoder(path: &Path, memory: u64) -> Result<PngDecoder<BufReader<File>>, Fault> {
    let mut limits = DecoderLimits::no_limits();
    limits.max_alloc = Some(memory);
    let mut decoder = PngDecoder::with_limits(open_file(path)?.0, limits.clone())?;
    // This one is for the px of animations.
    limits.max_alloc = Some(READ_LIMIT);
    decoder.set_limits(limits)?;
    Ok(decoder)
}

/// What is known of a PNG file before it is decoded.
struct Checked {
    /// How long each frame of an animation is shown; nothing for an image.
    delays: Vec<Delay>,
    /// Memory limit of the decoder for rows and metadata: a compressed colour profile can expand without bound.
    memory: u64,
}

/// Checks that all chunks of a PNG file of `length` bytes are there and can hold the image.
fn check(file: &mut (impl Read + Seek), length: u64) -> Result<Checked, Fault> {
    let (mut at, mut declared, mut delays, mut data) = (8, 0, Vec::new(), 0);
    // Bytes of the decoded image, and of its rows.
    let mut sizes = [0; 2];
    let mut width = 0;
    loop {
        let mut head = [0; 8];
        read(file, at, &mut head, "it ends before its end chunk")?;
        let [l0, l1, l2, l3, kind @ ..] = head;
        let size = u32::from_be_bytes([l0, l1, l2, l3]);
        let name = kind.escape_ascii();
        let end = at + 12 + u64::from(size);
        if size > i32::MAX as u32 || !kind.iter().all(u8::is_ascii_alphabetic) {
            return Err(Fault::Damaged(format!("a chunk `{name}` of {size} bytes begins at byte {at}")));
        }
        if end > length {
            let there = length - at - 8;
            return Err(Fault::Incomplete(if there < u64::from(size) {
                format!("its chunk `{name}` at byte {at} has {there} of {size} bytes")
            } else {
                format!("its chunk `{name}` at byte {at} lacks its checksum")
            }));
        }
        match &kind {
            b"IHDR" => {
                let mut header = [0; 10];
                read(file, at + 8, &mut header, "its header is cut off")?;
                let [w0, w1, w2, w3, h0, h1, h2, h3, depth, color] = header;
                let height;
                [width, height] = [[w0, w1, w2, w3], [h0, h1, h2, h3]].map(|side| u64::from(u32::from_be_bytes(side)));
                let channels = [1, 1, 3, 1, 2, 1, 4][usize::from(color.min(6))];
                let row = 1 + (width * channels * u64::from(depth)).div_ceil(8);
                sizes = [width.saturating_mul(height).saturating_mul(8), row.saturating_mul(height)];
            }
            b"acTL" => {
                let mut count = [0; 4];
                read(file, at + 8, &mut count, "its animation header is cut off")?;
                declared = u32::from_be_bytes(count) as usize;
            }
            b"fcTL" => {
                let mut delay = [0; 4];
                read(file, at + 8 + 20, &mut delay, "its frame header is cut off")?;
                let [n0, n1, d0, d1] = delay;
                let [numerator, denominator] = [[n0, n1], [d0, d1]].map(|number| u32::from(u16::from_be_bytes(number)));
                delays.push(Delay::from_numer_denom_ms(1000 * numerator, if denominator == 0 { 100 } else { denominator }));
            }
            b"IDAT" => data += u64::from(size),
            b"IEND" => break,
            _ => {}
        }
        at = end;
    }
    plausible(sizes[0], sizes[1].div_ceil(1032), data)?;
    if delays.len() < declared {
        return Err(Fault::Incomplete(format!("it holds {} of {declared} frames", delays.len())));
    }
    delays.truncate(declared);
    // Each frame asks for a row.
    let rows = (8 * width).saturating_mul(delays.len() as u64 + 1);
    Ok(Checked { delays, memory: (SMALL + 4 * length).saturating_add(rows) })
}

fn read(file: &mut (impl Read + Seek), at: u64, bytes: &mut [u8], missing: &str) -> Result<(), Fault> {
    file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(bytes)).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => Fault::incomplete(missing),
        _ => Fault::Read(error),
    })
}
