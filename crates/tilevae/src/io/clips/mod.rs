//! Clips in and out: folders of numbered frames, `.y4m` and animated `.gif` by crates, other video by an installed ffmpeg.

mod animation;
mod delays;
mod ffmpeg;
mod folder;
mod gif;
mod y4m;

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use tiling::{BoxError, HostTensor, Region, Sink, TileSource};
use vae_core::{from_eight_bits, to_eight_bits};

use self::delays::Delays;
use super::formats::TimedFrame;
use super::limits::check_output_of_kind;
use super::pictures::{Pixels, UnshownAlpha, interleaved, numbered};
use super::scratch::{Depth, FrameStore};
use super::{Background, FileKind, IoError};

/// What a clip is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClipKind {
    /// A folder of pictures, numbered by their names.
    Folder,
    /// Uncompressed video.
    Y4m,
    /// An animated picture.
    Gif,
    /// What ffmpeg reads and writes.
    Video,
}

/// Frames a second, as a fraction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fps {
    numerator: u32,
    denominator: u32,
}

impl Fps {
    /// The rate of Wan, which is that of a clip whose rate is not known.
    pub const DEFAULT: Self = Self { numerator: 16, denominator: 1 };

    /// `numerator / denominator` frames a second, when that is a rate.
    pub fn new(numerator: u32, denominator: u32) -> Option<Self> {
        (numerator > 0 && denominator > 0).then_some(Self { numerator, denominator })
    }

    /// `numerator / denominator` in the smallest numbers, or near it.
    fn of(numerator: u128, denominator: u128) -> Option<Self> {
        let (mut a, mut b) = (numerator, denominator);
        while b > 0 {
            (a, b) = (b, a % b);
        }
        let (numerator, denominator) = (numerator.checked_div(a)?, denominator.checked_div(a)?);
        match (u32::try_from(numerator), u32::try_from(denominator)) {
            (Ok(numerator), Ok(denominator)) => Self::new(numerator, denominator),
            _ => Self::of(numerator / 2, denominator / 2),
        }
    }

    fn value(self) -> f64 {
        f64::from(self.numerator) / f64::from(self.denominator)
    }
}

impl FromStr for Fps {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("`{text}` is not a number of frames a second: write 16, 23.976 or 24000/1001");
        if let Some((numerator, denominator)) = text.split_once('/') {
            let [numerator, denominator] = [numerator, denominator].map(|part| part.trim().parse().ok());
            return numerator.zip(denominator).and_then(|(numerator, denominator)| Self::new(numerator, denominator)).ok_or_else(wrong);
        }
        let value: f64 = text.parse().map_err(|_| wrong())?;
        if !(0.001..=100_000.0).contains(&value) {
            return Err(wrong());
        }
        Self::of((value * 1000.0).round() as u128, 1000).ok_or_else(wrong)
    }
}

impl fmt::Display for Fps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.denominator == 1 { write!(f, "{}", self.numerator) } else { write!(f, "{}/{}", self.numerator, self.denominator) }
    }
}

/// How RGB becomes luma and colour, where nothing says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Matrix {
    /// ITU-R BT.601.
    Bt601,
    /// ITU-R BT.709.
    Bt709,
}

impl Matrix {
    /// That of HD for what is larger than PAL, as players take it.
    fn of([height, width]: [usize; 2]) -> Self {
        if width >= 1280 || height > 576 { Self::Bt709 } else { Self::Bt601 }
    }
}

/// What is known of a clip without decoding it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClipInfo {
    /// Height and width of the frames, in px.
    pub size: [usize; 2],
    /// Their number.
    pub frames: usize,
    /// Frames a second, when the clip says it.
    pub fps: Option<Fps>,
}

/// The frames of a clip, one after the other.
type Frames = Box<dyn Iterator<Item = TimedFrame>>;

/// Frames and their rate, when the clip says it and they do not.
fn open(path: &Path, kind: ClipKind) -> Result<(Frames, Option<Fps>), IoError> {
    match kind {
        ClipKind::Folder => folder::open(path),
        ClipKind::Y4m => y4m::open(path),
        ClipKind::Gif => gif::open(path),
        ClipKind::Video => ffmpeg::open(path),
    }
}

/// A clip as a source of samples from -1 to 1. Its frames are read as a stream and lie in a scratch file; a tile is made into floats when it is read.
///
/// Where a side is not a multiple of what the model takes, the last row and column are repeated.
#[derive(Debug)]
pub struct Clip {
    store: FrameStore,
    channels: usize,
    fps: Option<Fps>,
    /// Height and width with repeated rows and columns.
    padded: [usize; 2],
}

impl Clip {
    /// Reads a clip, or a picture of one or more frames, with `channels` channels (1: grey, 3: colour, 4: colour and alpha), to be padded to multiples of
    /// `ratio` px.
    ///
    /// # Errors
    /// When it cannot be read to its end, has no frames, or its frames differ in size.
    pub fn read(path: &Path, channels: usize, ratio: usize) -> Result<Self, IoError> {
        Self::read_over(path, channels, ratio, Background::None)
    }

    /// As [`read`](Self::read), laid over `background` where the channels have no alpha.
    ///
    /// # Errors
    /// As those of [`read`](Self::read).
    pub fn read_over(path: &Path, channels: usize, ratio: usize, background: Background) -> Result<Self, IoError> {
        let (frames, fps) = match FileKind::of(path)? {
            FileKind::Clip(kind) => open(path, kind)?,
            FileKind::Picture(_) => animation::open(path)?,
            FileKind::Safetensors | FileKind::Npy | FileKind::Foreign => {
                return Err(IoError::UnknownKind { path: path.to_owned(), kinds: FileKind::CLIPS });
            }
        };
        let (mut unshown, mut delays) = (UnshownAlpha::default(), Delays::default());
        let mut store: Option<FrameStore> = None;
        for frame in frames {
            let (frame, delay) = frame?;
            if let Some(delay) = delay {
                delays.add(delay);
            }
            let got = [frame.height() as usize, frame.width() as usize];
            let pixels = interleaved(frame, channels, background, || unshown.add(path)).ok_or_else(|| IoError::NotAPicture {
                path: path.to_owned(),
                channels,
                frames: 1,
            })?;
            let store = match &mut store {
                Some(store) => store,
                None => store.insert(FrameStore::new(got, channels, Depth::of(&pixels))?),
            };
            if got != store.size() {
                return Err(IoError::PictureSize { path: path.to_owned(), got, expected: store.size() });
            }
            store.push(pixels)?;
        }
        unshown.warn();
        delays.warn(path);
        let store = store.ok_or_else(|| IoError::NoFrames { path: path.to_owned() })?;
        let padded = store.size().map(|side| side.next_multiple_of(ratio));
        Ok(Self { store, channels, fps: fps.or(delays.fps()), padded })
    }

    /// Size, number of frames and rate of a clip or picture. Its frames are counted, and not decoded: what is damaged within them is found when they are read.
    ///
    /// # Errors
    /// When it cannot be read, is cut off, or has no frames.
    pub fn probe(path: &Path) -> Result<ClipInfo, IoError> {
        match FileKind::of(path)? {
            FileKind::Clip(ClipKind::Folder) => folder::probe(path),
            FileKind::Clip(ClipKind::Y4m) => y4m::probe(path),
            FileKind::Clip(ClipKind::Gif) => gif::probe(path),
            FileKind::Clip(ClipKind::Video) => ffmpeg::probe(path),
            FileKind::Picture(_) => animation::probe(path),
            FileKind::Safetensors | FileKind::Npy | FileKind::Foreign => Err(IoError::UnknownKind { path: path.to_owned(), kinds: FileKind::CLIPS }),
        }
    }

    /// Frames of the clip.
    pub fn frames(&self) -> usize {
        self.store.frames()
    }

    /// Height and width of the frames, in px.
    pub fn size(&self) -> [usize; 2] {
        self.store.size()
    }

    /// Frames a second, when the clip says it.
    pub fn fps(&self) -> Option<Fps> {
        self.fps
    }
}

impl TileSource for Clip {
    fn shape(&self) -> [usize; 5] {
        [1, self.channels, self.store.frames(), self.padded[0], self.padded[1]]
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        let ([first, top, left], [frames, height, width]) = (region.start, region.size);
        let last = self.size().map(|side| side - 1);
        let rows = [top.min(last[0]), (top + height - 1).min(last[0]) + 1];
        let mut block = HostTensor::zeros([1, self.channels, frames, height, width]);
        for frame in 0..frames {
            let pixels = self.store.rows(first + frame, rows)?;
            for channel in 0..self.channels {
                for y in 0..height {
                    let line = (top + y).min(last[0]) - rows[0];
                    let place = |x: usize| (line * (last[1] + 1) + (left + x).min(last[1])) * self.channels + channel;
                    let row = block.row_mut(channel * frames + frame, y);
                    match &pixels {
                        Pixels::Eight(values) => row.iter_mut().enumerate().for_each(|(x, value)| *value = from_eight_bits(values[place(x)])),
                        Pixels::Sixteen(values) => {
                            row.iter_mut().enumerate().for_each(|(x, value)| *value = f32::from(values[place(x)]) / 32767.5 - 1.0);
                        }
                    }
                }
            }
        }
        Ok(block)
    }
}

/// Takes the frames of a clip, 8-bit RGB, and writes it.
trait FrameWriter: Send {
    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError>;

    /// Puts the clip in its place.
    fn finish(self: Box<Self>) -> Result<(), IoError>;
}

/// What a writer needs to know.
struct ClipFormat<'a> {
    path: &'a Path,
    /// Height and width.
    size: [usize; 2],
    /// Frames that will come.
    frames: usize,
    fps: Fps,
}

/// A sink that writes samples from -1 to 1 as clips, one a batch item. A frame goes out when it is whole; parts of frames wait in a scratch file.
pub struct ClipSink {
    paths: Vec<PathBuf>,
    writers: Vec<Box<dyn FrameWriter>>,
    /// One for each batch item, when frames come in parts.
    stores: Vec<FrameStore>,
    channels: usize,
    frames: usize,
    size: [usize; 2],
}

impl ClipSink {
    /// Clips to be written at `path` (for a batch, `NAME-0.EXT`, `NAME-1.EXT`, …) of samples of `shape` (`[batch, channels, frames, height, width]`),
    /// cut to that shape where more comes.
    ///
    /// # Errors
    /// When the name is not a clip's, the samples cannot be shown in it, or the file cannot be begun. For what ffmpeg writes, it is tried with one frame.
    pub fn new(path: &Path, shape: [usize; 5], fps: Fps) -> Result<Self, IoError> {
        Self::of_kind(path, FileKind::of(path)?, shape, fps)
    }

    /// The same of a kind that the name need not say.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn of_kind(path: &Path, kind: FileKind, shape: [usize; 5], fps: Fps) -> Result<Self, IoError> {
        let FileKind::Clip(kind) = kind else {
            return Err(IoError::UnknownKind { path: path.to_owned(), kinds: FileKind::CLIPS });
        };
        check_output_of_kind(path, FileKind::Clip(kind), shape)?;
        let fps = if kind == ClipKind::Gif { gif::rate(path, fps)? } else { fps };
        let [batch, channels, frames, height, width] = shape;
        let paths: Vec<PathBuf> = if batch == 1 { vec![path.to_owned()] } else { (0..batch).map(|item| numbered(path, item)).collect() };
        let size = [height, width];
        let begin = |path: &PathBuf| -> Result<Box<dyn FrameWriter>, IoError> {
            let format = ClipFormat { path, size, frames, fps };
            Ok(match kind {
                ClipKind::Folder => Box::new(folder::Writer::new(&format)?),
                ClipKind::Y4m => Box::new(y4m::Writer::new(&format)?),
                ClipKind::Gif => Box::new(gif::Writer::new(&format)?),
                ClipKind::Video => Box::new(ffmpeg::Writer::new(&format)?),
            })
        };
        let writers = paths.iter().map(begin).collect::<Result<_, _>>()?;
        Ok(Self { paths, writers, stores: Vec::new(), channels, frames, size })
    }

    /// Puts the clips in their places, and gives their names.
    ///
    /// # Errors
    /// When one cannot be written.
    pub fn write(self) -> Result<Vec<PathBuf>, IoError> {
        for writer in self.writers {
            writer.finish()?;
        }
        Ok(self.paths)
    }

    /// The pixels of one frame of a piece, as interleaved RGB, cut to what is shown.
    fn pixels(&self, piece: &HostTensor, item: usize, frame: usize, [height, width]: [usize; 2]) -> Vec<u8> {
        let frames = piece.shape()[2];
        let mut pixels = vec![0; height * width * 3];
        for channel in 0..3 {
            let plane = (item * self.channels + channel.min(self.channels - 1)) * frames + frame;
            for (y, line) in pixels.chunks_exact_mut(width * 3).enumerate() {
                for (place, &value) in line[channel..].iter_mut().step_by(3).zip(&piece.row(plane, y)[..width]) {
                    *place = to_eight_bits(value);
                }
            }
        }
        pixels
    }
}

impl Sink for ClipSink {
    fn take(&mut self, [first, top, left]: [usize; 3], [_, height, width]: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        let [.., count, rows, columns] = piece.shape();
        let shown = [rows.min(self.size[0].saturating_sub(top)), columns.min(self.size[1].saturating_sub(left))];
        let is_whole = [rows, columns] == [height, width];
        let is_last_part = [top + rows, left + columns] == [height, width];
        for item in 0..self.writers.len() {
            for frame in 0..count.min(self.frames.saturating_sub(first)) {
                let pixels = if shown.contains(&0) { Vec::new() } else { self.pixels(&piece, item, frame, shown) };
                if is_whole {
                    self.writers[item].write(&pixels)?;
                    continue;
                }
                if self.stores.len() == item {
                    self.stores.push(FrameStore::new(self.size, 3, Depth::Eight)?);
                }
                self.stores[item].write(first + frame, [top, left], shown[1], &pixels)?;
                if is_last_part && let Pixels::Eight(whole) = self.stores[item].rows(first + frame, [0, self.size[0]])? {
                    self.writers[item].write(&whole)?;
                }
            }
        }
        Ok(())
    }

    fn rounds_to_eight_bits(&self) -> bool {
        true
    }
}

/// What tests of the writers share.
#[cfg(test)]
mod testing {
    /// Height and width of small frames.
    pub(super) const CANVAS: usize = 8;

    /// A frame of grey levels.
    pub(super) fn levels(level: u8) -> Vec<u8> {
        (0..CANVAS * CANVAS).flat_map(|place| [(3 * place) as u8 ^ level; 3]).collect()
    }

    /// A disk with room for so many bytes.
    pub(super) struct Limited(pub(super) usize);

    impl std::io::Write for Limited {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let count = bytes.len().min(self.0);
            if count == 0 && !bytes.is_empty() {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            self.0 -= count;
            Ok(count)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_fractions() {
        let read = |text: &str| text.parse::<Fps>().map(|fps| fps.to_string());
        assert_eq!(["16", "23.976", "24000/1001", "0.5"].map(|text| read(text).unwrap()), ["16", "2997/125", "24000/1001", "1/2"]);
        for wrong in ["0", "-3", "x", "1/0", "1e9", "NaN", ""] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn rates_are_reduced() {
        for (numerator, denominator, expected) in
            [(500, 216, "125/54"), (0, 3, "none"), (3, 0, "none"), (1 << 40, 1 << 36, "16"), ((1 << 40) + 1, 1 << 38, "4")]
        {
            assert_eq!(Fps::of(numerator, denominator).map_or("none".to_owned(), |fps| fps.to_string()), expected);
        }
    }

    /// Frames of a moving ramp.
    fn clip(shape: [usize; 5]) -> HostTensor {
        HostTensor::from_fn(shape, |[b, c, t, y, x]| ((y + 2 * x + 5 * t + 3 * b) as f32 / 20.0 + c as f32).sin() * 0.8)
    }

    fn worst(a: &HostTensor, b: &HostTensor) -> f32 {
        assert_eq!(a.shape(), b.shape());
        a.data().iter().zip(b.data()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn clips_come_back_from_crates() {
        let folder = tempfile::tempdir().unwrap();
        let samples = clip([1, 3, 4, 10, 14]);
        // In steps of 2/255: exact but for the palette of a GIF, and y4m's rounding to YUV and back.
        for (name, tolerance) in [("frames", 0.004), ("clip.y4m", 0.03), ("clip.gif", 0.25)] {
            let path = folder.path().join(name);
            let mut sink = ClipSink::new(&path, samples.shape(), Fps::new(25, 2).unwrap()).unwrap();
            sink.take([0, 0, 0], [4, 10, 14], samples.frames(0, 1)).unwrap();
            sink.take([1, 0, 0], [4, 10, 14], samples.frames(1, 3)).unwrap();
            assert_eq!(sink.write().unwrap(), std::slice::from_ref(&path));
            let back = Clip::read(&path, 3, 8).unwrap();
            assert_eq!((back.shape(), back.size()), ([1, 3, 4, 16, 16], [10, 14]));
            assert_eq!(back.fps(), (name != "frames").then(|| Fps::new(25, 2).unwrap()), "{name}");
            let read = back.read(&Region { start: [0; 3], size: [4, 10, 14] }).unwrap();
            let difference = worst(&read, &samples);
            assert!(difference <= tolerance, "{name}: {difference}");
            // A region, and the repeated border.
            let region = Region { start: [2, 6, 9], size: [2, 10, 7] };
            let expected = HostTensor::from_fn([1, 3, 2, 10, 7], |[_, c, t, y, x]| read.row(c * 4 + 2 + t, (6 + y).min(9))[(9 + x).min(13)]);
            assert_eq!(back.read(&region).unwrap(), expected);
        }
        let names = std::fs::read_dir(folder.path()).unwrap().count();
        assert_eq!(names, 3, "nothing temporary is left");
    }

    #[test]
    fn parts_of_frames_and_batches_are_put_together() {
        let folder = tempfile::tempdir().unwrap();
        let (samples, extent) = (clip([2, 1, 3, 8, 9]), [4, 8, 10]);
        // Two columns of tiles, the second of which reaches past what is shown, and a frame too many.
        let mut sink = ClipSink::new(&folder.path().join("c"), [2, 1, 3, 8, 9], Fps::DEFAULT).unwrap();
        let column = |left: usize, width: usize| {
            HostTensor::from_fn([2, 1, 4, 8, width], |[b, _, t, y, x]| samples.row(b * 3 + t.min(2), y)[(left + x).min(8)])
        };
        sink.take([0, 0, 0], extent, column(0, 6)).unwrap();
        sink.take([0, 0, 6], extent, column(6, 4)).unwrap();
        let paths = sink.write().unwrap();
        assert_eq!(paths, ["c-0", "c-1"].map(|name| folder.path().join(name)));
        for (item, path) in paths.iter().enumerate() {
            let back = Clip::read(path, 1, 1).unwrap();
            let read = back.read(&Region { start: [0; 3], size: [3, 8, 9] }).unwrap();
            let own = HostTensor::from_fn([1, 1, 3, 8, 9], |[_, _, t, y, x]| samples.row(item * 3 + t, y)[x]);
            assert!(worst(&read, &own) <= 0.012);
        }
    }

    #[test]
    fn folders_are_read_in_the_order_of_their_numbers() {
        let folder = tempfile::tempdir().unwrap();
        for (name, value) in [("f10.png", 30_u8), ("f9.png", 20), ("f1.png", 10), ("notes.txt", 0), ("._f1.png", 0), (".hidden.png", 0)] {
            let path = folder.path().join(name);
            if value == 0 {
                std::fs::write(path, "no frame").unwrap();
            } else {
                image::GrayImage::from_pixel(2, 2, image::Luma([value])).save(path).unwrap();
            }
        }
        let clip = Clip::read(folder.path(), 1, 1).unwrap();
        let values: Vec<f32> = clip.read(&Region { start: [0; 3], size: [3, 1, 1] }).unwrap().into_data();
        assert_eq!(values, [10.0, 20.0, 30.0].map(|value: f32| value / 127.5 - 1.0));
        image::GrayImage::from_pixel(3, 2, image::Luma([1])).save(folder.path().join("f11.png")).unwrap();
        let other = Clip::read(folder.path(), 1, 1).err().unwrap();
        assert!(matches!(&other, IoError::PictureSize { path, .. } if path.ends_with("f11.png")), "{other}");
        // A picture that is no frame is not left out without a word.
        for name in ["f11.gif", "f11.bmp"] {
            std::fs::rename(folder.path().join("f11.png"), folder.path().join(name)).unwrap();
            let error = Clip::read(folder.path(), 1, 1).err().unwrap();
            assert!(matches!(&error, IoError::UnknownKind { path, .. } if path.ends_with(name)), "{error}");
            std::fs::rename(folder.path().join(name), folder.path().join("f11.png")).unwrap();
        }
    }

    #[test]
    fn damaged_clips_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["clip.y4m", "clip.gif"] {
            let path = folder.path().join(name);
            let mut sink = ClipSink::new(&path, [1, 3, 3, 20, 30], Fps::DEFAULT).unwrap();
            sink.take([0; 3], [3, 20, 30], clip([1, 3, 3, 20, 30])).unwrap();
            sink.write().unwrap();
            let bytes = std::fs::read(&path).unwrap();
            for content in [Vec::new(), bytes[..20].to_vec(), bytes[..bytes.len() - 40].to_vec(), vec![7; 500]] {
                let length = content.len();
                std::fs::write(&path, content).unwrap();
                let error = Clip::read(&path, 3, 1).err().unwrap_or_else(|| panic!("{name} of {length} bytes was read"));
                assert!(error.to_string().contains(name), "{error}");
            }
        }
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(Clip::read(empty.path(), 3, 1), Err(IoError::NoFrames { .. })));
    }
}
