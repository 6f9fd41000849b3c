use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use image::{DynamicImage, RgbImage};
use y4m::{Colorspace, Decoder, Encoder, Error, Frame, Ratio};

use super::super::IoError;
use super::super::pending::PendingFile;
use super::{ClipFormat, Fps, FrameWriter, Frames};

pub(super) fn open(path: &Path) -> Result<(Frames, Option<Fps>), IoError> {
    let file = File::open(path).map_err(|source| IoError::Read { path: path.to_owned(), source })?;
    let taken = Rc::new(Cell::new(0));
    let decoder = y4m::decode(Counted { file: BufReader::new(file), taken: taken.clone() }).map_err(|error| damaged(path, &error))?;
    let rate = decoder.get_framerate();
    let fps = u32::try_from(rate.num).ok().zip(u32::try_from(rate.den).ok()).and_then(|(num, den)| Fps::new(num, den));
    if decoder.get_width() == 0 || decoder.get_height() == 0 {
        return Err(damaged(path, &Error::BadInput));
    }
    Ok((Box::new(Reader { path: path.to_owned(), decoder, taken, is_over: false }), fps))
}

fn damaged(path: &Path, error: &Error) -> IoError {
    IoError::Damaged { path: path.to_owned(), message: error.to_string() }
}

/// Counts what is read: the decoder calls a file that ends within a frame over, too.
struct Counted {
    file: BufReader<File>,
    taken: Rc<Cell<u64>>,
}

impl Read for Counted {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(bytes)?;
        self.taken.set(self.taken.get() + count as u64);
        Ok(count)
    }
}

struct Reader {
    path: PathBuf,
    decoder: Decoder<Counted>,
    taken: Rc<Cell<u64>>,
    is_over: bool,
}

impl Iterator for Reader {
    type Item = Result<DynamicImage, IoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let [width, height] = [self.decoder.get_width(), self.decoder.get_height()];
        let colorspace = self.decoder.get_colorspace();
        let bytes = colorspace.get_bytes_per_sample();
        let scale = f32::from(1_u16 << (colorspace.get_bit_depth() - 8));
        let full_range = self.decoder.get_raw_params().windows(15).any(|part| part == b"COLORRANGE=FULL");
        let before = self.taken.get();
        let frame = match self.decoder.read_frame() {
            Ok(frame) => frame,
            Err(Error::EOF) if self.taken.get() == before => return None,
            Err(error) => {
                self.is_over = true;
                return Some(Err(damaged(&self.path, &error)));
            }
        };
        // How many px share a value of colour.
        let shared = match colorspace {
            Colorspace::C420 | Colorspace::C420p10 | Colorspace::C420p12 | Colorspace::C420jpeg | Colorspace::C420paldv | Colorspace::C420mpeg2 => {
                [2, 2]
            }
            Colorspace::C422 | Colorspace::C422p10 | Colorspace::C422p12 => [1, 2],
            _ => [1, 1],
        };
        let value = |plane: &[u8], place: usize| match bytes {
            1 => f32::from(plane[place]),
            _ => f32::from(u16::from_le_bytes([plane[2 * place], plane[2 * place + 1]])) / scale,
        };
        let (luma, colour) = (frame.get_y_plane(), [frame.get_u_plane(), frame.get_v_plane()]);
        let colour_width = width.div_ceil(shared[1]);
        let image = RgbImage::from_fn(width as u32, height as u32, |x, y| {
            let (x, y) = (x as usize, y as usize);
            let place = y / shared[0] * colour_width + x / shared[1];
            let [u, v] = colour.map(|plane| if plane.is_empty() { 128.0 } else { value(plane, place) });
            image::Rgb(to_rgb([value(luma, y * width + x), u, v], full_range))
        });
        Some(Ok(DynamicImage::ImageRgb8(image)))
    }
}

/// From 8-bit Y'CbCr (ITU-R BT.601), from 16 to 235 and 240 unless it has the full range.
fn to_rgb([y, u, v]: [f32; 3], full_range: bool) -> [u8; 3] {
    let [y, u, v] = if full_range {
        [y, u - 128.0, v - 128.0]
    } else {
        [(y - 16.0) * (255.0 / 219.0), (u - 128.0) * (255.0 / 224.0), (v - 128.0) * (255.0 / 224.0)]
    };
    [y + 1.402 * v, y - 0.344_136 * u - 0.714_136 * v, y + 1.772 * u].map(|value| value.round().clamp(0.0, 255.0) as u8)
}

/// The inverse of [`to_rgb`], from 16 to 235 and 240.
fn to_yuv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let [r, g, b] = [r, g, b].map(f32::from);
    let y = 0.299 * r + 0.587 * g + 0.114 * b;
    let [u, v] = [(b - y) / 1.772, (r - y) / 1.402].map(|value| 128.0 + value * (224.0 / 255.0));
    [16.0 + y * (219.0 / 255.0), u, v].map(|value| value.round().clamp(0.0, 255.0) as u8)
}

/// Writes 4:4:4 video.
pub(super) struct Writer {
    path: PathBuf,
    pending: PendingFile,
    encoder: Encoder<BufWriter<File>>,
}

impl Writer {
    pub(super) fn new(format: &ClipFormat) -> Result<Self, IoError> {
        let path = format.path.to_owned();
        let pending = PendingFile::new(&path)?;
        let file = pending.file().try_clone().map_err(|source| IoError::Write { path: path.clone(), source })?;
        let [height, width] = format.size;
        let rate = Ratio::new(format.fps.numerator as usize, format.fps.denominator as usize);
        let header = y4m::encode(width, height, rate).with_colorspace(Colorspace::C444);
        let encoder = header.write_header(BufWriter::new(file)).map_err(|error| written(&path, error))?;
        Ok(Self { path, pending, encoder })
    }
}

fn written(path: &Path, error: Error) -> IoError {
    let source = match error {
        Error::IoError(source) => source,
        other => std::io::Error::other(other.to_string()),
    };
    IoError::Write { path: path.to_owned(), source }
}

impl FrameWriter for Writer {
    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError> {
        let mut planes = [(); 3].map(|()| Vec::with_capacity(pixels.len() / 3));
        for &pixel in pixels.as_chunks::<3>().0 {
            for (plane, value) in planes.iter_mut().zip(to_yuv(pixel)) {
                plane.push(value);
            }
        }
        self.encoder.write_frame(&Frame::new(planes.each_ref().map(Vec::as_slice), None)).map_err(|error| written(&self.path, error))
    }

    fn finish(self: Box<Self>) -> Result<(), IoError> {
        let Self { path, pending, encoder } = *self;
        // The encoder keeps its writer to itself: what is still buffered is written when it is dropped, and checked against the disk here.
        drop(encoder);
        pending.file().sync_all().map_err(|source| IoError::Write { path: path.clone(), source })?;
        pending.publish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_survive_both_ways() {
        for rgb in [[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [13, 200, 77]] {
            let back = to_rgb(to_yuv(rgb).map(f32::from), false);
            assert!(rgb.iter().zip(back).all(|(a, b)| a.abs_diff(b) <= 2), "{rgb:?} {back:?}");
        }
        assert_eq!([to_yuv([0, 0, 0]), to_yuv([255, 255, 255])], [[16, 128, 128], [235, 128, 128]]);
        assert_eq!(to_rgb([255.0, 128.0, 128.0], true), [255; 3]);
    }

    #[test]
    fn other_samplings_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.y4m");
        for (tag, colour, expected) in [("420jpeg", 4, 130), ("422", 6, 130), ("mono", 0, 130), ("444p10", 0, 130)] {
            let mut bytes = format!("YUV4MPEG2 W3 H3 F5:1 C{tag}\nFRAME\n").into_bytes();
            if tag == "444p10" {
                bytes.extend([512_u16; 27].iter().flat_map(|value| value.to_le_bytes()));
            } else {
                bytes.extend(vec![128; 9 + 2 * colour]);
            }
            std::fs::write(&path, bytes).unwrap();
            let (mut frames, fps) = open(&path).unwrap();
            let frame = frames.next().unwrap().unwrap().to_rgb8();
            assert_eq!((frame.dimensions(), fps), ((3, 3), Fps::new(5, 1)));
            assert!(frame.pixels().all(|pixel| pixel.0 == [expected; 3]), "{tag}");
            assert!(frames.next().is_none());
        }
    }
}
