use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use image::codecs::gif::{GifDecoder, GifEncoder, Repeat};
use image::{AnimationDecoder, Delay, DynamicImage, Frame, RgbaImage};

use super::super::IoError;
use super::super::pending::PendingFile;
use super::{ClipFormat, Fps, FrameWriter, Frames};

pub(super) fn open(path: &Path) -> Result<(Frames, Option<Fps>), IoError> {
    let owned = path.to_owned();
    let picture = move |source| IoError::Picture { path: owned.clone(), source };
    let file = File::open(path).map_err(|source| IoError::Read { path: path.to_owned(), source })?;
    let mut frames = GifDecoder::new(BufReader::new(file)).map_err(&picture)?.into_frames().peekable();
    let fps = frames.peek().and_then(|frame| frame.as_ref().ok()).and_then(|frame| {
        let (numerator, denominator) = frame.delay().numer_denom_ms();
        Fps::new(denominator.checked_mul(1000)?, numerator).map(Fps::reduced)
    });
    let images = frames.map(move |frame| frame.map(|frame| DynamicImage::ImageRgba8(frame.into_buffer())).map_err(&picture));
    Ok((Box::new(images), fps))
}

/// Writes an animation that repeats for ever. Each frame has 256 colours of its own.
pub(super) struct Writer {
    path: PathBuf,
    pending: PendingFile,
    encoder: GifEncoder<File>,
    size: [usize; 2],
    delay: Delay,
}

/// 1 is the slowest and best choice of colours, 30 the fastest.
const SPEED: i32 = 10;

impl Writer {
    pub(super) fn new(format: &ClipFormat) -> Result<Self, IoError> {
        let path = format.path.to_owned();
        let picture = |source| IoError::Picture { path: path.clone(), source };
        let pending = PendingFile::new(&path)?;
        let file = pending.file().try_clone().map_err(|source| IoError::Write { path: path.clone(), source })?;
        let mut encoder = GifEncoder::new_with_speed(file, SPEED);
        encoder.set_repeat(Repeat::Infinite).map_err(picture)?;
        let seconds = f64::from(format.fps.denominator) / f64::from(format.fps.numerator);
        let delay = Delay::from_saturating_duration(Duration::from_secs_f64(seconds));
        Ok(Self { path, pending, encoder, size: format.size, delay })
    }
}

impl FrameWriter for Writer {
    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError> {
        let [height, width] = self.size.map(|side| side as u32);
        let opaque = pixels.as_chunks::<3>().0.iter().flat_map(|&[r, g, b]| [r, g, b, u8::MAX]).collect();
        let image = RgbaImage::from_raw(width, height, opaque).expect("as many pixels as the size says");
        let frame = Frame::from_parts(image, 0, 0, self.delay);
        self.encoder.encode_frame(frame).map_err(|source| IoError::Picture { path: self.path.clone(), source })
    }

    fn finish(self: Box<Self>) -> Result<(), IoError> {
        let Self { pending, encoder, .. } = *self;
        // The encoder writes the end of the file when it is dropped.
        drop(encoder);
        pending.publish()
    }
}
