//! Files in and out: raw tensors (`.safetensors`, `.npy`, and read what other programs save), pictures (png, jpeg, webp, tiff) and clips (folders of frames, y4m, gif, and what an installed
//! ffmpeg knows). Outputs are written beside their place and renamed.

mod background;
mod clips;
mod formats;
mod hash;
mod limits;
mod media;
mod pending;
mod pictures;
mod scratch;
mod space;
mod tensors;

pub use background::Background;
pub use clips::{Clip, ClipInfo, ClipKind, ClipSink, Fps};
pub use hash::{HashingSink, sha256};
pub use limits::check_output;
pub use media::Media;
pub use pending::{Spooled, is_standard_output, is_stream, remove_pending, written_file};
pub use pictures::{PictureSink, Pictures, numbered, picture_size};
pub use scratch::SampleFile;
pub(crate) use scratch::scratch_file;
pub use space::check_space;
pub use tensors::{Axes, Origin, Tensor, TensorInput, TensorSink, Tensors, write_tensors, write_tensors_of_kind};

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use image::ImageFormat;
use pending::{PendingFile, PendingFolder, linked_file};

use crate::NonFinite;

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IoError {
    /// A name that ends in none of the known ways.
    #[error("{} is not a kind of file that can be used here; kinds are {kinds}", path.display())]
    UnknownKind {
        /// The file.
        path: PathBuf,
        /// File name endings.
        kinds: &'static str,
    },
    /// A file that cannot be opened, or not to its end.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file that cannot be written.
    #[error("{} cannot be written", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A tensor file that is damaged.
    #[error("{} is damaged or not what its name says: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        message: String,
    },
    /// A file that is sound and not one that can be read.
    #[error("{} cannot be used here: {message}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What it is, and the way out.
        message: String,
    },
    /// A tensor file that lacks the tensor.
    #[error(
        "{} holds no tensor named `{wanted}`; {}",
        path.display(),
        if found.is_empty() { "it holds none".to_owned() } else { format!("it holds: {}; io.tensor names another", found.join(", ")) }
    )]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The name that was looked for.
        wanted: String,
        /// The names that are there.
        found: Vec<String>,
    },
    /// A file with several tensors that may be meant.
    #[error("{} holds several tensors that may be the latents: {}; set io.tensor to the name of one", path.display(), found.join(", "))]
    SeveralTensors {
        /// The file.
        path: PathBuf,
        /// Their names.
        found: Vec<String>,
    },
    /// A tensor whose axes can be taken for several.
    #[error("`{name}` in {} has the shape {shape:?}: {message}", path.display())]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What it could be, and how to say what it is.
        message: String,
    },
    /// A tensor that cannot be what the model takes.
    #[error("`{name}` in {} has the shape {shape:?}: {message}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
        /// What is expected.
        message: String,
    },
    /// Values that are NaN or infinite.
    #[error("of the {what} in {}, {found}; io.on_non_finite = \"allow\" takes them as they are", path.display())]
    NonFinite {
        /// The file.
        path: PathBuf,
        /// `latents` or `samples`.
        what: &'static str,
        /// How many, and where.
        found: NonFinite,
    },
    /// A disk without room.
    #[error("{} has room for {}, {} are needed", folder.display(), bytes(*free), bytes(*needed))]
    NoSpace {
        /// Where it would have to be.
        folder: PathBuf,
        /// Bytes that are needed.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// A tensor that is no picture and no clip.
    #[error("`{name}` in {} has the shape {shape:?}; expected [batch, channels, height, width] or [batch, channels, frames, height, width]", path.display())]
    Rank {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Values that are no floats.
    #[error("`{name}` in {} holds {dtype}; expected f64, f32, f16, bf16 or f8", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it holds.
        dtype: String,
    },
    /// A file that lacks a part.
    #[error("{} is incomplete: {missing}", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is missing.
        missing: String,
    },
    /// Several frames where one is taken.
    #[error("{} has {frames} frames, and one is taken here: models of pictures and batches take single pictures; give it alone to a model of video, or save a frame of it as a picture", path.display())]
    Animated {
        /// The file.
        path: PathBuf,
        /// Its frames.
        frames: usize,
    },
    /// A file that is no picture, among several.
    #[error("{} is no picture: several inputs must all be pictures of one batch; the frames of a clip lie in a folder, and raw samples come as one file", path.display())]
    NotOneBatch {
        /// The file.
        path: PathBuf,
    },
    /// More px than a kind of file can hold.
    #[error("{} cannot have {} x {} px (height, width): such files end at {limit} px a side; write {}", path.display(), size[0], size[1], if size.iter().all(|&side| side < i32::MAX as usize) { "a .png, .tif, .safetensors or .npy file" } else { "a .safetensors or .npy file" })]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Height and width.
        size: [usize; 2],
        /// The largest side.
        limit: usize,
    },
    /// More bytes than a kind of file can hold.
    #[error("{} cannot have {bytes} bytes of px: such files end at 4 GiB; write a .png, .safetensors or .npy file", path.display())]
    TooManyBytes {
        /// The file.
        path: PathBuf,
        /// What is asked for.
        bytes: u64,
    },
    /// A picture that cannot be encoded.
    #[error("{} cannot be encoded", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// Why.
        source: image::ImageError,
    },
    /// A picture that cannot be decoded.
    #[error("{} cannot be decoded", path.display())]
    Picture {
        /// The file.
        path: PathBuf,
        /// Why.
        source: image::ImageError,
    },
    /// Pictures of several sizes in one batch.
    #[error("{} is {got:?} px (height, width), the pictures before it are {expected:?}", path.display())]
    PictureSize {
        /// The file.
        path: PathBuf,
        /// Its size.
        got: [usize; 2],
        /// The size of the first.
        expected: [usize; 2],
    },
    /// A number of channels or frames that a kind of picture cannot show.
    #[error(
        "{} cannot show {channels} channels and {frames} frames; pictures show one frame, clips three channels: write {} instead",
        path.display(), if *frames > 1 && *channels <= 3 { "a folder (a name without ending), a .y4m, .gif or .mp4 file" } else { "a .safetensors or .npy file" }
    )]
    NotAPicture {
        /// The file.
        path: PathBuf,
        /// Channels of the samples.
        channels: usize,
        /// Frames of the samples.
        frames: usize,
    },
    /// A clip without a frame.
    #[error("{} holds no frames", path.display())]
    NoFrames {
        /// The clip.
        path: PathBuf,
    },
    /// A clip that ends early, or of which some frames are damaged.
    #[error(
        "{} is cut off or damaged: {frames}{} frames can be read; {message}",
        path.display(), expected.map(|all| format!(" of {all}")).unwrap_or_default()
    )]
    IncompleteClip {
        /// The clip.
        path: PathBuf,
        /// Frames that came.
        frames: usize,
        /// Frames that there should be, when the clip says it.
        expected: Option<usize>,
        /// What the reader found.
        message: String,
    },
    /// A rate that a kind of clip cannot have.
    #[error("{} cannot have {fps} frames a second: {limits}; another rate is given with --fps", path.display())]
    Rate {
        /// The clip.
        path: PathBuf,
        /// The rate.
        fps: Fps,
        /// What it can have.
        limits: &'static str,
    },
    /// A folder for frames that holds other things.
    #[error("{} is a folder with something in it; frames are written to a new or empty one", path.display())]
    FolderInUse {
        /// The folder.
        path: PathBuf,
    },
    /// Video without the program that reads and writes it.
    #[error("{} is {verb} through ffmpeg, which is not installed or not in the PATH; without it, use a folder of frames, .y4m or .gif", path.display())]
    NoFfmpeg {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
    },
    /// Video that ffmpeg could not read or write.
    #[error("ffmpeg failed on {}: {message}", path.display())]
    Ffmpeg {
        /// The file.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// No room for what has to wait.
    #[error("the scratch file in {} failed; the variable TMPDIR names another folder", folder.display())]
    Scratch {
        /// Where it lies.
        folder: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A pipe whose name does not say what it holds, nor its content.
    #[error("{} holds nothing that can be told by its first bytes: tensors (safetensors, npy), pictures and clips can", path.display())]
    UnknownContent {
        /// The pipe.
        path: PathBuf,
    },
    /// Bytes that would come from or go to a terminal.
    #[error("{} is a terminal; use a pipe, or give the name of a file", path.display())]
    Terminal {
        /// The input or output.
        path: PathBuf,
    },
    /// A format that holds one tensor, asked to hold more.
    #[error("{} can hold one tensor; write a .safetensors file for latents, mean and logvar", path.display())]
    OneTensor {
        /// The file.
        path: PathBuf,
    },
}

impl IoError {
    /// Whether something was asked for that no file could give, as against a file that failed.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::Animated { .. }
                | Self::NotOneBatch { .. }
                | Self::TooLarge { .. }
                | Self::TooManyBytes { .. }
                | Self::UnknownKind { .. }
                | Self::NotAPicture { .. }
                | Self::OneTensor { .. }
                | Self::UnknownContent { .. }
                | Self::Terminal { .. }
                | Self::FolderInUse { .. }
                | Self::NoFfmpeg { .. }
                | Self::Rate { .. }
                | Self::SeveralTensors { .. }
                | Self::Ambiguous { .. }
        )
    }
}

/// What a file holds, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Named raw tensors.
    Safetensors,
    /// One raw tensor.
    Npy,
    /// Raw tensors as other programs save them; they are not written so.
    Foreign,
    /// A picture.
    Picture(ImageFormat),
    /// A clip.
    Clip(ClipKind),
}

impl FileKind {
    const TENSORS: &'static str = ".safetensors, .npy, .latent, .npz, .pt, .pth";
    /// Endings of files that raw tensors are written to.
    pub const WRITTEN_TENSORS: &'static str = ".safetensors, .npy";
    const PICTURES: &'static str = ".png, .jpg, .jpeg, .webp, .tif, .tiff";
    const CLIPS: &'static str = "a folder of frames, .y4m, .gif, .mp4, .webm, .mkv, .mov, .m4v, .avi";
    /// Endings of files that are written.
    pub const ALL: &'static str =
        ".safetensors, .npy, .png, .jpg, .jpeg, .webp, .tif, .tiff, .y4m, .gif, .mp4, .webm, .mkv, .mov, .m4v, .avi, or a folder of frames";

    /// The kind of a file. A folder, or a name without an ending, is a folder of frames.
    ///
    /// # Errors
    /// [`IoError::UnknownKind`].
    pub fn of(path: &Path) -> Result<Self, IoError> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase();
        if path.is_dir() || (path.extension().is_none() && path.file_name().is_some()) {
            return Ok(Self::Clip(ClipKind::Folder));
        }
        Ok(match extension.as_str() {
            "safetensors" | "sft" => Self::Safetensors,
            "npy" => Self::Npy,
            "latent" | "npz" | "pt" | "pth" => Self::Foreign,
            "png" => Self::Picture(ImageFormat::Png),
            "jpg" | "jpeg" => Self::Picture(ImageFormat::Jpeg),
            "webp" => Self::Picture(ImageFormat::WebP),
            "tif" | "tiff" => Self::Picture(ImageFormat::Tiff),
            "y4m" => Self::Clip(ClipKind::Y4m),
            "gif" => Self::Clip(ClipKind::Gif),
            "mp4" | "webm" | "mkv" | "mov" | "m4v" | "avi" => Self::Clip(ClipKind::Video),
            _ => return Err(IoError::UnknownKind { path: path.to_owned(), kinds: Self::ALL }),
        })
    }

    /// The same of a file that is to be written.
    ///
    /// # Errors
    /// [`IoError::UnknownKind`].
    pub fn of_output(path: &Path) -> Result<Self, IoError> {
        match Self::of(path)? {
            Self::Foreign => Err(IoError::UnknownKind { path: path.to_owned(), kinds: Self::WRITTEN_TENSORS }),
            kind => Ok(kind),
        }
    }

    /// Whether it holds raw tensors.
    pub fn is_tensors(self) -> bool {
        matches!(self, Self::Safetensors | Self::Npy | Self::Foreign)
    }

    /// Whether it is a picture.
    pub fn is_picture(self) -> bool {
        matches!(self, Self::Picture(_))
    }

    /// Whether it is a clip.
    pub fn is_clip(self) -> bool {
        matches!(self, Self::Clip(_))
    }
}

/// Checks that a file, of a kind if one is given, can be written at `path`, before work is spent on it.
///
/// # Errors
/// When its folder is not there or takes no files, or what is there cannot be replaced: a folder (for frames: one that is not empty), a file that is
/// read-only, a terminal.
pub fn check_writable(path: &Path, kind: Option<FileKind>) -> Result<(), IoError> {
    use std::io::{Error, ErrorKind, IsTerminal};
    let error = |source| Err(IoError::Write { path: path.to_owned(), source });
    let refused = |kind, text: String| error(Error::new(kind, text));
    let is_folder = kind == Some(FileKind::Clip(ClipKind::Folder));
    match written_file(path) {
        Ok(None) if is_folder => return refused(ErrorKind::NotADirectory, "it is no folder, as frames are written to".to_owned()),
        Ok(None) if is_standard_output(path) && std::io::stdout().is_terminal() => return Err(IoError::Terminal { path: path.to_owned() }),
        Ok(None) => return Ok(()),
        Err(source) if source.kind() == ErrorKind::NotFound => {
            let file = linked_file(path).unwrap_or_else(|_| path.to_owned());
            return refused(ErrorKind::NotFound, format!("there is no folder {}", folder_of(&file).display()));
        }
        Err(source) => return error(source),
        Ok(Some(_)) => {}
    }
    if is_folder {
        if !path.is_dir() && path.exists() {
            return refused(ErrorKind::NotADirectory, "it is a file; frames are written to a folder".to_owned());
        }
        if std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(IoError::FolderInUse { path: path.to_owned() });
        }
        return PendingFolder::new(path).map(drop);
    }
    if path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return refused(ErrorKind::IsADirectory, "it is a folder".to_owned());
    }
    match File::options().write(true).open(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => error(source),
        _ => PendingFile::new(path).map(drop),
    }
}

/// Writes a file that gets its name when all is written. A symbolic link is followed; `-` is standard output.
///
/// # Errors
/// When that fails; the file that was there before, if any, is then as it was.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), IoError>) -> Result<(), IoError> {
    let error = |source| IoError::Write { path: path.to_owned(), source };
    let pending = PendingFile::new(path)?;
    let mut writer = BufWriter::with_capacity(1 << 20, pending.file());
    write(&mut writer)?;
    writer.flush().map_err(error)?;
    drop(writer);
    pending.publish()
}

/// A number of bytes in words.
fn bytes(count: u64) -> String {
    let units = ["bytes", "KiB", "MiB", "GiB"];
    let unit = (0..3).take_while(|&unit| count >> (10 * (unit + 1)) > 0).count();
    if unit == 0 { format!("{count} bytes") } else { format!("{:.1} {}", count as f64 / f64::from(1 << (10 * unit)), units[unit]) }
}

/// The folder that a file is in.
pub fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_found_before_the_work() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "no folder").unwrap();
        let mut wrong = vec![at("file/out.png"), at("none/out.png"), folder.path().to_owned()];
        if cfg!(target_os = "linux") {
            // Nobody can write there, whoever runs this.
            wrong.extend(["/sys/out.png", "/sys/frames"].map(PathBuf::from));
        }
        for path in wrong {
            assert!(
                matches!(check_writable(&path, FileKind::of(&path).ok()), Err(IoError::Write { .. } | IoError::FolderInUse { .. })),
                "{}",
                path.display()
            );
        }
        std::fs::create_dir(at("empty")).unwrap();
        for name in ["out.png", "file", "frames", "empty"] {
            check_writable(&at(name), FileKind::of(&at(name)).ok().filter(|_| name != "file")).unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_called_that() {
        use tiling::Sink;
        let folder = tempfile::tempdir().unwrap();
        for name in ["out.png", "out.jpg", "out.webp", "out.tif"] {
            let path = folder.path().join(name);
            std::os::unix::fs::symlink("/dev/full", &path).unwrap();
            let mut sink = PictureSink::new(&path, [1, 3, 1, 4, 4], 90).unwrap();
            sink.take([0; 3], [1, 4, 4], tiling::HostTensor::zeros([1, 3, 1, 4, 4])).unwrap();
            let error = sink.write().unwrap_err();
            assert!(matches!(&error, IoError::Write { source, .. } if source.kind() == std::io::ErrorKind::StorageFull), "{error:?}");
        }
    }
}
