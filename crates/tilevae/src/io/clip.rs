use std::path::Path;

use tiling::{BoxError, HostTensor, Region, TileSource};

use super::images::open_image;
use super::pixels::{DroppedAlpha, Pixels};
use super::sample_file::{Depth, FrameStore};
use super::{Background, ClipInfo, FormatKind, Fps, FrameReader, IoError, endings, format_of};

/// A clip as a source of samples from -1 to 1. Its frames are streamed to a scratch file; a tile is converted to floats when it is read.
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
    /// Reads a clip, or an image of one or more frames, with `channels` channels (1: grey, 3: colour, 4: colour and alpha), to be padded to multiples of
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
        Self::from_reader(path, open_clip(path)?, channels, ratio, background)
    }

    /// Reads the frames of an opened clip; `path` is named in messages.
    pub(super) fn from_reader(
        path: &Path,
        reader: Box<dyn FrameReader>,
        channels: usize,
        ratio: usize,
        background: Background,
    ) -> Result<Self, IoError> {
        let fps = reader.info().fps;
        let mut dropped = DroppedAlpha::default();
        let mut store: Option<FrameStore> = None;
        for frame in reader.frames()? {
            let frame = frame?;
            let got = [frame.height() as usize, frame.width() as usize];
            let pixels = Pixels::new(frame, channels, background, || dropped.add(path)).ok_or_else(|| IoError::NotAImage {
                path: path.to_owned(),
                channels,
                frames: 1,
            })?;
            let store = match &mut store {
                Some(store) => store,
                None => store.insert(FrameStore::new(got, channels, Depth::of(&pixels))?),
            };
            if got != store.size() {
                return Err(IoError::ImageSize { path: path.to_owned(), got, expected: store.size() });
            }
            store.push(pixels)?;
        }
        dropped.warn();
        let store = store.ok_or_else(|| IoError::NoFrames { path: path.to_owned() })?;
        let padded = store.size().map(|side| side.next_multiple_of(ratio));
        Ok(Self { store, channels, fps, padded })
    }

    /// Size, number of frames and rate of a clip or image. Frames are counted but not decoded: damage within them is found when they are read.
    ///
    /// # Errors
    /// When it cannot be read, is incomplete, or has no frames.
    pub fn probe(path: &Path) -> Result<ClipInfo, IoError> {
        Ok(open_clip(path)?.info())
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
        let mut tensor = HostTensor::zeros([1, self.channels, frames, height, width]);
        for frame in 0..frames {
            let pixels = self.store.rows(first + frame, rows)?;
            for channel in 0..self.channels {
                for y in 0..height {
                    let row = tensor.row_mut(channel * frames + frame, y);
                    pixels.samples([last[1] + 1, self.channels], (top + y).min(last[0]) - rows[0], channel, left, row);
                }
            }
        }
        Ok(tensor)
    }
}

/// Opens a clip, or an image of one or more frames. Images are recognised by content.
pub(super) fn open_clip(path: &Path) -> Result<Box<dyn FrameReader>, IoError> {
    let format = format_of(path)?;
    let reader = match format.kind() {
        FormatKind::Image => return open_image(path),
        FormatKind::Clip => format.open(path)?.into_frames(),
        FormatKind::Tensors => None,
    };
    reader.ok_or_else(|| IoError::UnknownKind { path: path.to_owned(), kinds: endings(|format| format.kind() == FormatKind::Clip) })
}

#[cfg(test)]
mod tests {
    use super::super::{Target, Writer};
    use super::*;

    /// Frames of a moving ramp.
    fn clip(shape: [usize; 5]) -> HostTensor {
        HostTensor::from_fn(shape, |[b, c, t, y, x]| ((y + 2 * x + 5 * t + 3 * b) as f32 / 20.0 + c as f32).sin() * 0.8)
    }

    fn create(path: &Path, shape: [usize; 5], fps: Fps) -> Box<dyn Writer> {
        format_of(path).unwrap().create(&Target { fps, ..Target::new(path, shape) }).unwrap()
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
            let mut sink = create(&path, samples.shape(), Fps::new(25, 2).unwrap());
            sink.take([0, 0, 0], [4, 10, 14], samples.frames(0, 1)).unwrap();
            sink.take([1, 0, 0], [4, 10, 14], samples.frames(1, 3)).unwrap();
            sink.finish().unwrap();
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
    fn parts_of_frames_are_put_together() {
        let folder = tempfile::tempdir().unwrap();
        let (samples, extent, path) = (clip([1, 1, 3, 8, 9]), [4, 8, 10], folder.path().join("c"));
        // Two columns of tiles, the second of which reaches past what is shown, and a frame too many.
        let mut sink = create(&path, samples.shape(), Fps::DEFAULT);
        let column =
            |left: usize, width: usize| HostTensor::from_fn([1, 1, 4, 8, width], |[_, _, t, y, x]| samples.row(t.min(2), y)[(left + x).min(8)]);
        sink.take([0, 0, 0], extent, column(0, 6)).unwrap();
        sink.take([0, 0, 6], extent, column(6, 4)).unwrap();
        sink.finish().unwrap();
        let read = Clip::read(&path, 1, 1).unwrap().read(&Region { start: [0; 3], size: [3, 8, 9] }).unwrap();
        assert!(worst(&read, &samples) <= 0.012);
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
        assert!(matches!(&other, IoError::ImageSize { path, .. } if path.ends_with("f11.png")), "{other}");
        // An image that is not part of the animation is reported.
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
            let mut sink = create(&path, [1, 3, 3, 20, 30], Fps::DEFAULT);
            sink.take([0; 3], [3, 20, 30], clip([1, 3, 3, 20, 30])).unwrap();
            sink.finish().unwrap();
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
