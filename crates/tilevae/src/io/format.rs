use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use image::DynamicImage;
use tiling::Sink;

use super::{Fps, IoError, Origin};

/// The kind of content of a format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FormatKind {
    /// Raw tensors: latents or samples as floats.
    Tensors,
    /// An image, or an animated one.
    Image,
    /// A clip: several frames.
    Clip,
}

/// What a format can hold; larger outputs are refused before the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Numbers of channels; none of formats that hold any.
    pub channels: &'static [usize],
    /// The most px of a side.
    pub side_px: usize,
    /// The most bytes of 8-bit px.
    pub bytes: u64,
    /// The most tensors in one file.
    pub tensors: usize,
    /// Whether size and rate of the samples are stored with latents (see [`Origin`]).
    pub metadata: bool,
}

impl Limits {
    /// No limits, as for tensors.
    pub const NONE: Self = Self { channels: &[], side_px: usize::MAX, bytes: u64::MAX, tensors: usize::MAX, metadata: true };
    /// The limits of images: grey, RGB or RGBA, and sides of 31 bits.
    pub const IMAGE: Self = Self { channels: &[1, 3, 4], side_px: i32::MAX as usize, ..Self::NONE };
    /// The limits of clips: grey or RGB.
    pub const CLIP: Self = Self { channels: &[1, 3], ..Self::IMAGE };
}

/// A kind of file: how it is named, recognised, read and written. [`register_format!`](crate::register_format) makes one known to everything that reads or
/// writes files.
///
/// Every method but `name`, `endings` and `kind` has a default; a format that is only written leaves out [`open`](Self::open), one that is only read
/// [`create`](Self::create) and says so in [`is_written`](Self::is_written).
pub trait Format: Sync {
    /// The name. If it is also an ending, files can be written under any name, and `--output-format` accepts it.
    fn name(&self) -> &'static str;

    /// Endings of file names, lower-case, without the dot; the first is used for inputs without a name, which are recognised by content.
    fn endings(&self) -> &'static [&'static str];

    /// The kind of content.
    fn kind(&self) -> FormatKind;

    /// Whether a file is of this format, by its first bytes, of which 64 are given unless the file is shorter.
    fn matches(&self, _head: &[u8]) -> bool {
        false
    }

    /// Whether it is a folder of files rather than one file. A folder, or a name without an ending, is of the first such format.
    fn is_folder(&self) -> bool {
        false
    }

    /// Whether a file with one frame is an image, as for formats of animations too.
    fn is_image(&self) -> bool {
        self.kind() == FormatKind::Image
    }

    /// Whether files can be written.
    fn is_written(&self) -> bool {
        true
    }

    /// What can be written.
    fn limits(&self) -> Limits {
        match self.kind() {
            FormatKind::Tensors => Limits::NONE,
            FormatKind::Image => Limits::IMAGE,
            FormatKind::Clip => Limits::CLIP,
        }
    }

    /// Opens a file: headers are read and checked, values and px not.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or is of a kind that is not supported.
    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        Err(IoError::UnknownKind { path: path.to_owned(), kinds: endings(|_| true) })
    }

    /// Begins a file. Nothing is at its place until [`Writer::finish`].
    ///
    /// # Errors
    /// When it cannot be created, or cannot hold the target.
    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        Err(IoError::UnknownKind { path: target.path.to_owned(), kinds: endings(Format::is_written) })
    }
}

impl fmt::Debug for dyn Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PartialEq for dyn Format {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

/// An opened file.
pub enum Reader {
    /// Named tensors.
    Tensors(Box<dyn TensorReader>),
    /// The frames of an image, an animation or a clip.
    Frames(Box<dyn FrameReader>),
}

impl Reader {
    /// The frames, if that is what the file holds.
    pub fn into_frames(self) -> Option<Box<dyn FrameReader>> {
        match self {
            Self::Frames(reader) => Some(reader),
            Self::Tensors(_) => None,
        }
    }
}

/// The header of a stored tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorHeader {
    /// Its name.
    pub name: String,
    /// Its shape, as stored.
    pub shape: Vec<usize>,
    /// The name of its dtype when values of it are not read: floats are, of 8 to 64 bits.
    pub unsupported: Option<String>,
    /// Whether the first axis is the fastest, not the last.
    pub is_fortran: bool,
}

/// The tensors of a file whose headers are read.
pub trait TensorReader: fmt::Debug + Send + Sync {
    /// Their headers.
    fn headers(&self) -> &[TensorHeader];

    /// Texts of the file's metadata, by key.
    fn metadata(&self) -> HashMap<String, String> {
        HashMap::new()
    }

    /// The values of the tensor at `index` among the headers, in f32 and in the order in which they are stored.
    ///
    /// # Errors
    /// When they cannot be read or are damaged.
    fn read(&self, index: usize) -> Result<Vec<f32>, IoError>;
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

/// The frames of a clip, in order. An error is the last item.
pub type Frames = Box<dyn Iterator<Item = Result<DynamicImage, IoError>>>;

/// An image or clip whose structure has been read.
pub trait FrameReader: Send {
    /// Size, number of frames and rate.
    fn info(&self) -> ClipInfo;

    /// Decodes the frames.
    ///
    /// # Errors
    /// When decoding cannot begin.
    fn frames(self: Box<Self>) -> Result<Frames, IoError>;
}

/// Frames until `next` has no more, or fails for the first time.
pub fn until_error(mut next: impl FnMut() -> Result<Option<DynamicImage>, IoError> + 'static) -> Frames {
    let mut is_over = false;
    Box::new(std::iter::from_fn(move || {
        if is_over {
            return None;
        }
        let frame = next().transpose();
        is_over = !matches!(frame, Some(Ok(_)));
        frame
    }))
}

/// The file to write.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The path.
    pub path: &'a Path,
    /// `[batch, channels, frames, height, width]` of each tensor, or of the samples; of images and clips, `batch` is 1.
    pub shape: [usize; 5],
    /// The names of the tensors, all of that shape. A sink takes them joined along the batch axis.
    pub tensors: &'a [&'a str],
    /// 4 (without frames) or 5: the rank in which tensors are written.
    pub rank: usize,
    /// Metadata about the samples that latents were encoded from.
    pub origin: Origin,
    /// Frames a second of a clip.
    pub fps: Fps,
    /// From 1 to 100.
    pub jpeg_quality: u8,
}

impl<'a> Target<'a> {
    /// Samples of `shape` (`[batch, channels, frames, height, width]`) at `path`, with the usual settings.
    pub fn new(path: &'a Path, shape: [usize; 5]) -> Self {
        Self { path, shape, tensors: &["samples"], rank: 5, origin: Origin::default(), fps: Fps::DEFAULT, jpeg_quality: 95 }
    }
}

/// A file that is being written: a sink of values from -1 to 1, cropped at the right, the bottom and the end to the target's shape where more comes.
pub trait Writer: Sink + Send {
    /// Publishes the file.
    ///
    /// # Errors
    /// When it cannot be written to its end.
    fn finish(self: Box<Self>) -> Result<(), IoError>;
}

/// A registered format, and the crate that brings it.
pub struct FormatEntry {
    format: &'static dyn Format,
    origin: &'static str,
    line: u32,
}

impl FormatEntry {
    /// The entry of a format that the crate `origin` brings; `line` orders those of one crate.
    pub const fn new(format: &'static dyn Format, origin: &'static str, line: u32) -> Self {
        Self { format, origin, line }
    }
}

vae_core::inventory::collect!(FormatEntry);

/// Registers a [`Format`](crate::io::Format), a `static` or a unit struct, for every program that links the crate.
#[macro_export]
macro_rules! register_format {
    ($format:expr) => {
        $crate::vae_core::inventory::submit! { $crate::io::FormatEntry::new(&$format, env!("CARGO_PKG_NAME"), line!()) }
    };
}

/// All formats of the program: tensors, images and clips, those of this crate before others. Where several claim one ending, the first has it.
pub fn formats() -> &'static [&'static dyn Format] {
    static FORMATS: OnceLock<Vec<&'static dyn Format>> = OnceLock::new();
    FORMATS.get_or_init(|| {
        let mut entries: Vec<&FormatEntry> = vae_core::inventory::iter::<FormatEntry>.into_iter().collect();
        entries.sort_by_key(|entry| (entry.format.kind(), entry.origin != env!("CARGO_PKG_NAME"), entry.origin, entry.line));
        entries.into_iter().map(|entry| entry.format).collect()
    })
}

/// The format of a name or ending, ignoring case.
pub fn format_named(name: &str) -> Option<&'static dyn Format> {
    let name = name.to_ascii_lowercase();
    formats().iter().copied().find(|format| format.name() == name || format.endings().contains(&&*name))
}

/// The format of a file, by its name. A folder, or a name without an ending, is a folder of frames.
///
/// # Errors
/// [`IoError::UnknownKind`].
pub fn format_of(path: &Path) -> Result<&'static dyn Format, IoError> {
    let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
    let is_folder = path.is_dir() || (path.extension().is_none() && path.file_name().is_some());
    let mut all = formats().iter().copied();
    let found = if is_folder { all.find(|format| format.is_folder()) } else { all.find(|format| format.endings().contains(&&*ending)) };
    found.ok_or_else(|| IoError::UnknownKind { path: path.to_owned(), kinds: endings(Format::is_written) })
}

/// The same for a file that will be written.
///
/// # Errors
/// [`IoError::UnknownKind`].
pub fn output_format_of(path: &Path) -> Result<&'static dyn Format, IoError> {
    let format = format_of(path)?;
    if format.is_written() {
        return Ok(format);
    }
    let kinds = endings(|other| other.is_written() && other.kind() == format.kind());
    Err(IoError::UnknownKind { path: path.to_owned(), kinds })
}

/// The format of a file with these first bytes.
pub(super) fn format_by_content(head: &[u8], mut filter: impl FnMut(&'static dyn Format) -> bool) -> Option<&'static dyn Format> {
    formats().iter().copied().find(|format| filter(*format) && format.matches(head))
}

/// The first bytes of a file, by which its format is recognised.
pub(super) fn head_of(path: &Path) -> Result<Vec<u8>, IoError> {
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(64).read_to_end(&mut head));
    read.map_err(|source| IoError::Read { path: path.to_owned(), source }).map(|_| head)
}

/// The endings of the formats that `filter` takes, for messages.
pub fn endings(filter: impl Fn(&'static dyn Format) -> bool) -> String {
    let chosen = || formats().iter().copied().filter(|&format| filter(format));
    let dotted = chosen().flat_map(Format::endings).map(|ending| format!(".{ending}"));
    let folders = chosen().filter(|format| format.is_folder()).map(|_| "or a folder of frames".to_owned());
    dotted.chain(folders).collect::<Vec<_>>().join(", ")
}

/// Checks that samples of `shape` (`[batch, channels, frames, height, width]`) can be written to a file of a format, before work is spent on them.
///
/// # Errors
/// When the format cannot hold that number of channels, frames or px.
pub fn check_output(format: &dyn Format, path: &Path, shape: [usize; 5]) -> Result<(), IoError> {
    let [_, channels, frames, height, width] = shape;
    let limits = format.limits();
    let has_channels = limits.channels.is_empty() || limits.channels.contains(&channels);
    if !has_channels || (frames != 1 && format.kind() == FormatKind::Image) {
        return Err(IoError::NotAImage { path: path.to_owned(), channels, frames });
    }
    if height.max(width) > limits.side_px {
        return Err(IoError::TooLarge { path: path.to_owned(), size: [height, width], limit: limits.side_px });
    }
    let bytes = height.saturating_mul(width).saturating_mul(channels) as u64;
    if bytes > limits.bytes {
        return Err(IoError::TooManyBytes { path: path.to_owned(), bytes });
    }
    Ok(())
}

/// The paths of a batch: `path`, or `NAME-0.EXT`, `NAME-1.EXT`, … for several items.
pub(super) fn batch_paths(path: &Path, items: usize) -> Vec<PathBuf> {
    if items == 1 { vec![path.to_owned()] } else { (0..items).map(|item| numbered(path, item)).collect() }
}

fn numbered(path: &Path, item: usize) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!("-{item}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ending_belongs_to_one_format() {
        let mut seen = HashMap::new();
        for format in formats() {
            for ending in format.endings() {
                assert_eq!(format_of(format!("a.{}", ending.to_uppercase()).as_ref()).unwrap(), *format);
                assert!(seen.insert(*ending, format.name()).is_none(), "{ending}");
            }
            assert_eq!(format_named(format.name()), Some(*format));
        }
        assert!(format_of("frames".as_ref()).unwrap().is_folder());
        assert!(matches!(output_format_of("a.npz".as_ref()), Err(IoError::UnknownKind { kinds, .. }) if kinds == ".safetensors, .sft, .npy"));
        assert!(matches!(format_of("a.bmp".as_ref()), Err(IoError::UnknownKind { kinds, .. }) if kinds.ends_with(".avi, or a folder of frames")));
    }

    #[test]
    fn after_an_error_comes_no_frame() {
        let mut calls = 0;
        let mut frames = until_error(move || {
            calls += 1;
            match calls {
                1 => Ok(Some(DynamicImage::new_luma8(1, 1))),
                2 => Err(IoError::NoFrames { path: "a.gif".into() }),
                _ => panic!("it was asked again"),
            }
        });
        assert!(frames.next().unwrap().is_ok() && frames.next().unwrap().is_err() && frames.next().is_none());
    }

    #[test]
    fn formats_end_somewhere() {
        let check = |name: &str, channels, frames, height, width| {
            check_output(format_of(name.as_ref()).unwrap(), name.as_ref(), [1, channels, frames, height, width])
        };
        for (name, most) in [("a.webp", 16_383), ("a.jpg", 65_535), ("a.JPEG", 65_535), ("a.gif", 65_535), ("a.png", 2_147_483_647)] {
            for [height, width] in [[most, 1], [1, most]] {
                assert!(check(name, 3, 1, height, width).is_ok(), "{name}");
                let error = check(name, 3, 1, height + height / most, width + width / most).unwrap_err();
                assert!(matches!(error, IoError::TooLarge { limit, .. } if limit == most), "{error}");
                assert!(error.is_usage() && error.to_string().contains(&most.to_string()), "{error}");
            }
        }
        assert!(check("a.tif", 1, 1, 60_000, 60_000).is_ok());
        let error = check("a.tif", 3, 1, 40_000, 40_000).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("4 GiB"), "{error}");
        for name in ["a.npy", "a.safetensors"] {
            assert!(check(name, 7, 9, 1 << 40, 1 << 20).is_ok());
        }
        for (name, channels, frames) in [("a.jpg", 4, 1), ("a.png", 2, 1), ("a.png", 3, 5), ("a.gif", 4, 2), ("frames", 5, 1)] {
            assert!(matches!(check(name, channels, frames, 8, 8), Err(IoError::NotAImage { .. })), "{name}");
        }
        assert!(check("a.png", 4, 1, 8, 8).is_ok() && check("frames", 3, 9, 8, 8).is_ok());
    }
}
