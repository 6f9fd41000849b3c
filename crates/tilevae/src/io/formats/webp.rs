use std::io::{Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use image::codecs::webp::WebPDecoder;
use image::{Delay, DynamicImage, ImageDecoder, ImageFormat, RgbaImage, imageops};

use super::super::{Format, FormatKind, ImageWriter, IoError, Limits, Reader, Target, Writer};
use super::{Fault, Header, Image, begins_as, content_of, encoded, one_frame, opened};

/// WebP, animated ones among them; written without loss.
pub(super) struct WebP;

impl Format for WebP {
    fn name(&self) -> &'static str {
        "webp"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["webp"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Image
    }

    fn matches(&self, head: &[u8]) -> bool {
        begins_as(head, ImageFormat::WebP)
    }

    fn limits(&self) -> Limits {
        Limits { side_px: 16_383, ..Limits::IMAGE }
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        opened(path, || {
            let mut content = content_of(path)?;
            let animation = Animation::find(&mut content)?;
            let header = Header::of(&mut WebPDecoder::new(Cursor::new(&content))?)?;
            check_px(header.px, animation.is_some(), content.len() as u64)?;
            let delays = animation.as_ref().map(Animation::delays).unwrap_or_default();
            Ok(Image::new(path, &header, &delays, move || match animation {
                Some(animation) => Ok(Box::new(animation.read(Cursor::new(content)))),
                None => one_frame(WebPDecoder::new(Cursor::new(content))?),
            }))
        })
    }

    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        Ok(Box::new(ImageWriter::new(target, |pixels| encoded(pixels, ImageFormat::WebP))))
    }
}

/// The animation in a WebP file. Decoders leave out frames that are not there, and one does not clear what a frame asks to be cleared: so each frame is
/// decoded as an image of its own, and put on the canvas here.
#[derive(Debug)]
struct Animation {
    /// Width and height.
    canvas: [u32; 2],
    has_alpha: bool,
    frames: Vec<Frame>,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Left and top.
    place: [u32; 2],
    /// Width and height.
    size: [u32; 2],
    milliseconds: u32,
    /// Whether it is blended with what is there, or replaces it.
    is_blended: bool,
    /// Whether its place is cleared after it.
    is_cleared: bool,
    /// Where its data begin, and their bytes.
    data: (u64, u64),
}

/// Refuses an image of `px` px in `length` bytes. One of one colour takes next to nothing, and the decoder takes memory for all px at once: nothing tells one
/// from a file that is made to exhaust it.
fn check_px(px: u64, is_animated: bool, length: u64) -> Result<(), Fault> {
    let often = if is_animated { 2 } else { 1 };
    if px * often > (1 << 22) + 1024 * length {
        return Err(Fault::Unsupported(format!("a WebP image of {px} px in {length} bytes, which might be made to exhaust memory (save it as PNG)")));
    }
    Ok(())
}

/// Width and height of a lossy image, from the first ten bytes of its chunk.
fn lossy_size(bytes: &[u8]) -> [u32; 2] {
    [[bytes[6], bytes[7]], [bytes[8], bytes[9]]].map(|side| u32::from(u16::from_le_bytes(side) & 0x3FFF))
}

/// Three bytes, the lowest first.
fn number(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], 0])
}

impl Animation {
    /// Checks that the content of a file is all there, and leaves out what follows its end: decoders read on. Nothing for a single image.
    fn find(content: &mut Vec<u8>) -> Result<Option<Self>, Fault> {
        let length = content.len() as u64;
        let total = content.get(4..).and_then(<[u8]>::first_chunk).map_or(12, |&size| 8 + u64::from(u32::from_le_bytes(size)));
        if length < total {
            return Err(Fault::Incomplete(format!("it has {length} of {total} bytes")));
        }
        content.truncate(total as usize);
        let mut file = Cursor::new(content);
        let mut bytes = [0; 24];
        // Decoders read the first chunk, ignoring the length of the file's header.
        if total < 20 {
            return Err(Fault::Damaged(format!("its header says that it has {total} bytes")));
        }
        let mut at = 12;
        let mut animation: Option<Self> = None;
        let mut has_image = false;
        // px of what is decoded at once.
        let mut px = 0;
        while at + 8 <= total {
            Fault::reading(file.seek(SeekFrom::Start(at)).and_then(|_| file.read_exact(&mut bytes[..8])))?;
            let size = u64::from(u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]));
            let kind = [bytes[0], bytes[1], bytes[2], bytes[3]];
            let begin = at + 8;
            let wrong = || Fault::Damaged(format!("a chunk `{}` of {size} bytes begins at byte {begin}", kind.escape_ascii()));
            at = begin + size.next_multiple_of(2);
            if begin + size > total {
                return Err(wrong());
            }
            match (&kind, &mut animation) {
                (b"VP8X", _) if begin == 20 => {
                    if size < 10 {
                        return Err(wrong());
                    }
                    Fault::reading(file.read_exact(&mut bytes[..10]))?;
                    let canvas = [number(&bytes[4..]) + 1, number(&bytes[7..]) + 1];
                    px = u64::from(canvas[0]) * u64::from(canvas[1]);
                    if bytes[0] & 2 > 0 {
                        animation = Some(Self { canvas, has_alpha: bytes[0] & 16 > 0, frames: Vec::new() });
                    }
                }
                (b"VP8L", None) if size >= 5 => {
                    has_image = true;
                    Fault::reading(file.read_exact(&mut bytes[..5]))?;
                    let sides = u32::from_le_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
                    px = px.max(u64::from((sides & 0x3FFF) + 1) * u64::from((sides >> 14 & 0x3FFF) + 1));
                }
                (b"VP8 ", None) if size >= 10 => {
                    has_image = true;
                    Fault::reading(file.read_exact(&mut bytes[..10]))?;
                    let [width, height] = lossy_size(&bytes).map(u64::from);
                    px = px.max(width * height);
                }
                (b"ANMF", Some(animation)) => {
                    let data = (begin + 16, size.checked_sub(16).ok_or_else(wrong)?);
                    Fault::reading(file.read_exact(&mut bytes[..16]))?;
                    let place = [number(&bytes[0..]) * 2, number(&bytes[3..]) * 2];
                    let size = [number(&bytes[6..]) + 1, number(&bytes[9..]) + 1];
                    if (0..2).any(|axis| place[axis] + size[axis] > animation.canvas[axis]) {
                        return Err(Fault::damaged("a frame reaches past its canvas"));
                    }
                    let milliseconds = number(&bytes[12..]);
                    let (is_blended, is_cleared) = (bytes[15] & 2 == 0, bytes[15] & 1 > 0);
                    animation.frames.push(Frame { place, size, milliseconds, is_blended, is_cleared, data });
                }
                _ => {}
            }
        }
        check_px(px, animation.is_some(), total)?;
        match animation {
            None if !has_image => Err(Fault::incomplete("it holds no image")),
            Some(Self { frames, .. }) if frames.is_empty() => Err(Fault::incomplete("it is an animation without a frame")),
            animation => Ok(animation),
        }
    }

    /// How long each frame is shown.
    fn delays(&self) -> Vec<Delay> {
        self.frames.iter().map(|frame| Delay::from_numer_denom_ms(frame.milliseconds, 1)).collect()
    }

    /// The frames, put on their canvas.
    fn read(self, mut file: impl Read + Seek) -> impl Iterator<Item = Result<DynamicImage, Fault>> {
        let [width, height] = self.canvas;
        let mut canvas = RgbaImage::new(width, height);
        let mut to_clear: Option<Frame> = None;
        self.frames.into_iter().map(move |frame| {
            let [left, top] = frame.place.map(i64::from);
            let image = image(&mut file, &frame)?;
            if let Some(Frame { place, size, .. }) = to_clear {
                imageops::replace(&mut canvas, &RgbaImage::new(size[0], size[1]), place[0].into(), place[1].into());
            }
            if frame.is_blended {
                imageops::overlay(&mut canvas, &image, left, top);
            } else {
                imageops::replace(&mut canvas, &image, left, top);
            }
            to_clear = frame.is_cleared.then_some(frame);
            let whole = DynamicImage::ImageRgba8(canvas.clone());
            Ok(if self.has_alpha { whole } else { DynamicImage::ImageRgb8(whole.into_rgb8()) })
        })
    }
}

/// A frame as an image.
fn image(file: &mut (impl Read + Seek), frame: &Frame) -> Result<RgbaImage, Fault> {
    let wrong_size = || Fault::damaged("a frame has not the size that its header says");
    let (begin, size) = frame.data;
    let mut data = Vec::new();
    Fault::reading(file.seek(SeekFrom::Start(begin)).and_then(|_| file.take(size).read_to_end(&mut data)))?;
    let mut content = b"WEBP".to_vec();
    if data.starts_with(b"ALPH") {
        // Of what follows, decoders look at the size when they have taken memory for it.
        let mut at = 0;
        while let Some(&[k0, k1, k2, k3, s0, s1, s2, s3]) = data.get(at..).and_then(<[u8]>::first_chunk) {
            let begin = at + 8;
            let is_lossy = [k0, k1, k2, k3] == *b"VP8 ";
            if is_lossy && data.get(begin..begin + 10).is_none_or(|header| lossy_size(header) != frame.size) {
                return Err(wrong_size());
            }
            at = begin + (u32::from_le_bytes([s0, s1, s2, s3]) as usize).next_multiple_of(2);
        }
        // Only files with an extended header have a separate alpha chunk.
        content.extend(b"VP8X\x0A\0\0\0\x10\0\0\0");
        for side in frame.size {
            content.extend(&(side - 1).to_le_bytes()[..3]);
        }
    }
    content.extend(data);
    let mut riff = b"RIFF".to_vec();
    riff.extend((content.len() as u32).to_le_bytes());
    riff.extend(content);
    let decoder = WebPDecoder::new(Cursor::new(riff))?;
    if <[u32; 2]>::from(decoder.dimensions()) != frame.size {
        return Err(wrong_size());
    }
    Ok(DynamicImage::from_decoder(decoder)?.into_rgba8())
}
