use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use gif::{DecodeOptions, DecodingError, EncodingError, Frame, Repeat};
use image::codecs::gif::GifDecoder;
use image::{AnimationDecoder, Delay, DynamicImage, ImageDecoder, ImageError, ImageFormat, Limits as DecoderLimits};

use super::super::delays::Delays;
use super::super::pending::PendingFile;
use super::super::{
    ClipInfo, ClipWriter, Format, FormatKind, Fps, FrameReader, FrameWriter, Frames, IoError, Limits, Reader, Target, Writer, until_error,
};
use super::{Fault, READ_LIMIT, SMALL, begins_as, open_file, plausible};

/// GIF, animated or not.
pub(super) struct Gif;

impl Format for Gif {
    fn name(&self) -> &'static str {
        "gif"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["gif"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Clip
    }

    fn matches(&self, head: &[u8]) -> bool {
        begins_as(head, ImageFormat::Gif)
    }

    fn is_image(&self) -> bool {
        true
    }

    fn limits(&self) -> Limits {
        Limits { side_px: 65_535, ..Limits::CLIP }
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        Ok(Reader::Frames(Box::new(Animation::open(path)?)))
    }

    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        Ok(Box::new(ClipWriter::new(target, FileWriter::new(target)?)))
    }
}

/// Delays of a GIF are in hundredths of a second.
const TICKS_PER_SECOND: u64 = 100;

/// A file whose block structure has been read.
struct Animation {
    path: PathBuf,
    size: [usize; 2],
    frames: usize,
    delays: Delays,
}

impl Animation {
    /// Reads the block structure without decoding px.
    fn open(path: &Path) -> Result<Self, IoError> {
        let file = File::open(path).map_err(|source| IoError::Read { path: path.to_owned(), source })?;
        let mut options = DecodeOptions::new();
        options.skip_frame_decoding(true);
        let mut decoder = options.read_info(BufReader::new(file)).map_err(|error| failed(path, 0, &error))?;
        let size = [decoder.height(), decoder.width()].map(usize::from);
        let (mut frames, mut delays) = (0, Delays::default());
        while let Some(frame) = decoder.next_frame_info().map_err(|error| failed(path, frames, &error))? {
            delays.add(Delay::from_numer_denom_ms(10 * u32::from(frame.delay), 1));
            frames += 1;
        }
        if frames == 0 {
            return Err(IoError::NoFrames { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), size, frames, delays })
    }
}

impl FrameReader for Animation {
    fn info(&self) -> ClipInfo {
        ClipInfo { size: self.size, frames: self.frames, fps: self.delays.fps() }
    }

    fn frames(self: Box<Self>) -> Result<Frames, IoError> {
        let Self { path, size, frames: expected, delays } = *self;
        check_px(&path, size).map_err(|fault| fault.of(&path))?;
        delays.warn(&path);
        let file = File::open(&path).map_err(|source| IoError::Read { path: path.clone(), source })?;
        let image = |source| IoError::Image { path: path.clone(), source };
        let mut decoder = GifDecoder::new(BufReader::new(file)).map_err(image)?;
        let mut limits = DecoderLimits::no_limits();
        limits.max_alloc = Some(READ_LIMIT);
        decoder.set_limits(limits).map_err(image)?;
        let mut images = decoder.into_frames().enumerate();
        Ok(until_error(move || match images.next() {
            None => Ok(None),
            Some((_, Ok(frame))) => Ok(Some(DynamicImage::ImageRgba8(frame.into_buffer()))),
            Some((frames, Err(error))) => {
                Err(IoError::IncompleteClip { path: path.clone(), frames, expected: Some(expected), message: error.to_string() })
            }
        }))
    }
}

/// Refuses a file whose canvas is larger than its frames can fill.
///
/// A code of 12 bits can expand to 4096 px, so the file size bounds little: large images are scanned once before memory is allocated.
fn check_px(path: &Path, size: [usize; 2]) -> Result<(), Fault> {
    let [height, width] = size.map(|side| side as u64);
    if height * width == 0 {
        return Err(Fault::Damaged(format!("its header says {height}x{width} px")));
    }
    let px = |frame: &gif::Frame| u64::from(frame.width) * u64::from(frame.height);
    let mut options = gif::DecodeOptions::new();
    options.skip_frame_decoding(true);
    let mut decoder = options.read_info(open_file(path)?.0).map_err(of_gif)?;
    let mut largest = height * width;
    while let Some(frame) = decoder.next_frame_info().map_err(of_gif)? {
        largest = largest.max(px(frame));
    }
    // Two canvases of 4 bytes a px are kept, and a frame.
    if 12 * largest <= SMALL {
        return Ok(());
    }
    let mut decoder = gif::Decoder::new(open_file(path)?.0).map_err(of_gif)?;
    let mut largest = 0;
    while let Some(frame) = decoder.next_frame_info().map_err(of_gif)? {
        let px = px(frame);
        let mut left = px;
        let mut indices = [0; 1 << 14];
        while left > 0 {
            let part = left.min(indices.len() as u64);
            if !decoder.fill_buffer(&mut indices[..part as usize]).map_err(of_gif)? {
                return Err(Fault::incomplete("its data ends before the image does"));
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
        gif::DecodingError::UnexpectedEof => Fault::incomplete("its data ends before the image does"),
        gif::DecodingError::Io(error) => Fault::from(ImageError::IoError(error)),
        other => Fault::Damaged(other.to_string()),
    }
}

fn failed(path: &Path, frames: usize, error: &DecodingError) -> IoError {
    let is_cut = match error {
        DecodingError::UnexpectedEof => true,
        DecodingError::Io(error) => error.kind() == std::io::ErrorKind::UnexpectedEof,
        _ => false,
    };
    if is_cut && frames > 0 {
        return IoError::IncompleteClip { path: path.to_owned(), frames, expected: None, message: "it has no end".to_owned() };
    }
    IoError::Damaged {
        path: path.to_owned(),
        message: if is_cut { "it ends within its header or first frame".to_owned() } else { error.to_string() },
    }
}

/// The rate at which a GIF can have frames that are to be shown at `fps`: 100 a second at most, with a warning. A frame that would last too long is refused.
pub(super) fn rate(path: &Path, fps: Fps) -> Result<Fps, IoError> {
    let [frames, seconds] = [fps.numerator, fps.denominator].map(u64::from);
    if seconds * TICKS_PER_SECOND > frames * u64::from(u16::MAX) {
        return Err(IoError::Rate { path: path.to_owned(), fps, limits: "a frame lasts at most 65535 hundredths of a second in a GIF" });
    }
    if frames > seconds * TICKS_PER_SECOND {
        tracing::warn!(
            "{}: a GIF has at most 100 frames a second; frames at {fps} are written at 100, so the clip lasts longer, and players show it slower still",
            path.display()
        );
        return Ok(Fps { numerator: TICKS_PER_SECOND as u32, denominator: 1 });
    }
    if 2 * frames > seconds * TICKS_PER_SECOND {
        tracing::warn!(
            "{}: players show frames of a GIF that last less than 1/50 s for 1/10 s; {fps} frames a second will look slow",
            path.display()
        );
    }
    Ok(fps)
}

/// Writes an animation that repeats for ever. Each frame has 256 colours of its own.
struct FileWriter {
    path: PathBuf,
    pending: PendingFile,
    encoder: Encoder<BufWriter<File>>,
}

impl FileWriter {
    fn new(target: &Target<'_>) -> Result<Self, IoError> {
        let path = target.path.to_owned();
        let [.., height, width] = target.shape;
        let fps = rate(&path, target.fps)?;
        let error = |source| IoError::Write { path: path.clone(), source };
        let pending = PendingFile::new(&path)?;
        let file = pending.file().try_clone().map_err(error)?;
        let encoder = Encoder::new(BufWriter::with_capacity(1 << 20, file), [height, width], fps).map_err(error)?;
        Ok(Self { path, pending, encoder })
    }
}

impl FrameWriter for FileWriter {
    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError> {
        self.encoder.write(pixels).map_err(|source| IoError::Write { path: self.path.clone(), source })
    }

    fn finish(self: Box<Self>) -> Result<(), IoError> {
        let Self { path, pending, encoder } = *self;
        encoder.finish().map_err(|source| IoError::Write { path, source })?;
        pending.publish()
    }
}

struct Encoder<W: Write> {
    to: gif::Encoder<W>,
    size: [u16; 2],
    fps: Fps,
    frames: u64,
}

/// 1 is the slowest and best choice of colours, 30 the fastest.
const SPEED: i32 = 10;

impl<W: Write> Encoder<W> {
    fn new(to: W, size: [usize; 2], fps: Fps) -> std::io::Result<Self> {
        let [height, width] = size.map(|side| side.min(usize::from(u16::MAX)) as u16);
        let mut to = gif::Encoder::new(to, width, height, &[]).map_err(of_io)?;
        to.set_repeat(Repeat::Infinite).map_err(of_io)?;
        Ok(Self { to, size: [height, width], fps, frames: 0 })
    }

    /// The tick at which a frame begins: the nearest, so that delays are a tick too long or too short in turn and the whole lasts as long as it should.
    fn begin(&self, frame: u64) -> u64 {
        let [numerator, denominator] = [self.fps.numerator, self.fps.denominator].map(u128::from);
        let ticks = (2 * u128::from(frame) * u128::from(TICKS_PER_SECOND) * denominator + numerator) / (2 * numerator);
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    fn write(&mut self, pixels: &[u8]) -> std::io::Result<()> {
        let [height, width] = self.size;
        let mut frame = Frame::from_rgb_speed(width, height, pixels, SPEED);
        let ticks = self.begin(self.frames + 1) - self.begin(self.frames);
        frame.delay = u16::try_from(ticks).unwrap_or(u16::MAX);
        self.frames += 1;
        self.to.write_frame(&frame).map_err(of_io)
    }

    /// Writes the trailer, too: dropping an encoder reports no error.
    fn finish(self) -> std::io::Result<W> {
        let mut to = self.to.into_inner().map_err(of_io)?;
        to.flush()?;
        Ok(to)
    }
}

fn of_io(error: EncodingError) -> std::io::Error {
    match error {
        EncodingError::Io(error) => error,
        other => std::io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::Clip;
    use super::super::super::clip_writer::testing::{CANVAS, Limited, levels};
    use super::*;

    fn write(path: &Path, delays: &[u16]) {
        let mut encoder = gif::Encoder::new(File::create(path).unwrap(), CANVAS as u16, CANVAS as u16, &[]).unwrap();
        for (index, &delay) in delays.iter().enumerate() {
            let mut frame = Frame::from_rgb_speed(CANVAS as u16, CANVAS as u16, &levels(index as u8), SPEED);
            frame.delay = delay;
            encoder.write_frame(&frame).unwrap();
        }
    }

    fn probe(path: &Path) -> Result<ClipInfo, IoError> {
        Animation::open(path).map(|animation| animation.info())
    }

    fn frames(path: &Path) -> Result<usize, IoError> {
        Box::new(Animation::open(path)?).frames()?.try_fold(0, |count, frame| frame.map(|_| count + 1))
    }

    fn delays(bytes: &[u8]) -> Vec<u16> {
        let mut decoder = DecodeOptions::new().read_info(bytes).unwrap();
        std::iter::from_fn(|| decoder.next_frame_info().unwrap().map(|frame| frame.delay)).collect()
    }

    #[test]
    fn clips_last_as_long_as_they_did() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.gif");
        for (read, fps, written) in [
            (&[200, 4, 4, 4, 4][..], Fps::new(125, 54), &[43, 43, 44, 43, 43][..]),
            (&[4, 4, 4, 4], Fps::new(25, 1), &[4, 4, 4, 4]),
            (&[3, 4, 3], Fps::new(30, 1), &[3, 4, 3]),
            (&[65_535, 65_535], Fps::new(20, 13_107), &[65_535, 65_535]),
            // As players do: these are shown for a tenth of a second.
            (&[0, 0, 0], Fps::new(10, 1), &[10, 10, 10]),
            (&[1, 5], Fps::new(40, 3), &[8, 7]),
        ] {
            write(&path, read);
            let info = probe(&path).unwrap();
            assert_eq!((info.size, info.frames, info.fps), ([CANVAS; 2], read.len(), fps), "{read:?}");
            let clip = Clip::read(&path, 3, 1).unwrap();
            assert_eq!((clip.frames(), clip.fps()), (read.len(), fps));
            let mut encoder = Encoder::new(Vec::new(), info.size, fps.unwrap()).unwrap();
            for _ in read {
                encoder.write(&levels(0)).unwrap();
            }
            assert_eq!(delays(&encoder.finish().unwrap()), written, "{read:?}");
        }
    }

    #[test]
    fn delays_that_are_no_ticks_are_rounded_in_turn() {
        for (fps, count) in [("30", 300), ("24000/1001", 240), ("16", 17), ("29.97", 1000), ("0.3", 7), ("60", 60)] {
            let fps: Fps = fps.parse().unwrap();
            let mut encoder = Encoder::new(Vec::new(), [CANVAS; 2], fps).unwrap();
            for _ in 0..count {
                encoder.write(&levels(9)).unwrap();
            }
            let (delays, exact) = (delays(&encoder.finish().unwrap()), 100.0 / fps.value());
            let all: f64 = delays.iter().map(|&delay| f64::from(delay)).sum();
            assert!((all - exact * f64::from(count)).abs() <= 0.5, "{fps}: {all}");
            assert!(delays.iter().all(|&delay| (f64::from(delay) - exact).abs() < 1.0), "{fps}: {delays:?}");
        }
    }

    #[test]
    fn rates_that_a_gif_cannot_hold_are_lowered_or_refused() {
        let held = |fps: &str| rate(Path::new("a.gif"), fps.parse().unwrap()).map_err(|error| (error.is_usage(), error.to_string()));
        for fps in ["100", "60", "0.01", "100/65535"] {
            assert_eq!(held(fps), Ok(fps.parse().unwrap()), "{fps}");
        }
        for fps in ["101", "120", "100001/1000"] {
            assert_eq!(held(fps), Ok("100".parse().unwrap()), "{fps}");
        }
        for fps in ["0.001", "100/65536"] {
            let (is_usage, message) = held(fps).unwrap_err();
            assert!(is_usage && message.contains("--fps") && message.contains("a.gif"), "{message}");
        }
    }

    #[test]
    fn what_is_cut_off_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.gif");
        write(&path, &[5, 5, 5]);
        let whole = std::fs::read(&path).unwrap();
        let mut most = 0;
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let errors = [frames(&path).err(), probe(&path).err()];
            for error in errors {
                match error.unwrap_or_else(|| panic!("{length} of {} bytes were read", whole.len())) {
                    IoError::IncompleteClip { frames, .. } => most = most.max(frames),
                    IoError::Damaged { .. } => {}
                    other => panic!("{length}: {other}"),
                }
            }
        }
        assert_eq!(most, 3);
        // What follows the end is ignored.
        std::fs::write(&path, [&whole[..], b"trailing"].concat()).unwrap();
        assert_eq!(frames(&path).unwrap(), 3);
    }

    #[test]
    fn frames_are_counted_without_being_decoded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.gif");
        write(&path, &[5, 5, 5]);
        let mut bytes = std::fs::read(&path).unwrap();
        // The data of the last frame, which ends with an empty block and the end of the file.
        let end = bytes.len() - 2;
        bytes[end - 12..end].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(probe(&path).unwrap().frames, 3);
        let error = frames(&path).unwrap_err();
        assert!(matches!(error, IoError::IncompleteClip { frames: 2, expected: Some(3), .. }), "{error:?}");
    }

    /// A canvas that its frame cannot fill is refused when it is decoded; its blocks are read all the same.
    #[test]
    fn opening_decodes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.gif");
        write(&path, &[5, 5]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[6..10].fill(0xff);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(probe(&path).unwrap().size, [65_535; 2]);
        let error = frames(&path).unwrap_err();
        assert!(matches!(error, IoError::Unsupported { .. }), "{error:?}");
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let write = |limit: Option<usize>| {
            let mut encoder = Encoder::new(BufWriter::new(Limited(limit.unwrap_or(usize::MAX))), [CANVAS; 2], Fps::DEFAULT)?;
            (0..2).try_for_each(|level| encoder.write(&levels(level)))?;
            encoder.finish().map(|_| ())
        };
        let mut encoder = Encoder::new(Vec::new(), [CANVAS; 2], Fps::DEFAULT).unwrap();
        for level in 0..2 {
            encoder.write(&levels(level)).unwrap();
        }
        let whole = encoder.finish().unwrap().len();
        assert!((0..whole).all(|limit| write(Some(limit)).is_err()) && write(Some(whole)).is_ok());
    }
}
