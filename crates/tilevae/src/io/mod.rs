//! Files in and out: raw tensors (`.safetensors`, `.npy`) and pictures (png, jpeg, webp, tiff). Outputs are written beside their place and renamed.

mod pictures;
mod tensors;

pub use pictures::{PictureSink, Pictures, picture_size};
pub use tensors::{Tensor, Tensors, write_tensors};

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use image::ImageFormat;

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
    /// A tensor file that lacks the tensor.
    #[error("{} holds no tensor named `{wanted}`; it holds: {}", path.display(), found.join(", "))]
    NoTensor {
        /// The file.
        path: PathBuf,
        /// The name that was looked for.
        wanted: &'static str,
        /// The names that are there.
        found: Vec<String>,
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
    #[error("`{name}` in {} holds {dtype}; expected f64, f32, f16 or bf16", path.display())]
    Dtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What it holds.
        dtype: String,
    },
    /// A picture that cannot be read or written.
    #[error("{} is not a picture that can be used", path.display())]
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
    #[error("{} cannot show {channels} channels and {frames} frames; write a .safetensors or .npy file instead", path.display())]
    NotAPicture {
        /// The file.
        path: PathBuf,
        /// Channels of the samples.
        channels: usize,
        /// Frames of the samples.
        frames: usize,
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
        matches!(self, Self::UnknownKind { .. } | Self::NotAPicture { .. } | Self::OneTensor { .. })
    }
}

/// What a file holds, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Named raw tensors.
    Safetensors,
    /// One raw tensor.
    Npy,
    /// A picture.
    Picture(ImageFormat),
}

impl FileKind {
    /// The kind of a file.
    ///
    /// # Errors
    /// [`IoError::UnknownKind`].
    pub fn of(path: &Path) -> Result<Self, IoError> {
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default().to_ascii_lowercase();
        Ok(match extension.as_str() {
            "safetensors" => Self::Safetensors,
            "npy" => Self::Npy,
            "png" => Self::Picture(ImageFormat::Png),
            "jpg" | "jpeg" => Self::Picture(ImageFormat::Jpeg),
            "webp" => Self::Picture(ImageFormat::WebP),
            "tif" | "tiff" => Self::Picture(ImageFormat::Tiff),
            _ => return Err(IoError::UnknownKind { path: path.to_owned(), kinds: ".safetensors, .npy, .png, .jpg, .jpeg, .webp, .tif, .tiff" }),
        })
    }

    /// Whether it is a picture.
    pub fn is_picture(self) -> bool {
        matches!(self, Self::Picture(_))
    }
}

/// Checks that a file can be written at `path`, before work is spent on it.
///
/// # Errors
/// When its folder is not there or the path is a folder.
pub fn check_writable(path: &Path) -> Result<(), IoError> {
    let error = |kind, text: String| Err(IoError::Write { path: path.to_owned(), source: std::io::Error::new(kind, text) });
    if path.is_dir() {
        return error(std::io::ErrorKind::IsADirectory, "it is a folder".to_owned());
    }
    if !folder(path).is_dir() {
        return error(std::io::ErrorKind::NotFound, format!("there is no folder {}", folder(path).display()));
    }
    Ok(())
}

/// Writes a file under a temporary name in its own folder and renames it when all is written.
///
/// # Errors
/// When that fails; the file that was there before, if any, is then as it was.
pub fn write_atomically(path: &Path, write: impl FnOnce(&mut BufWriter<&File>) -> Result<(), IoError>) -> Result<(), IoError> {
    let error = |source| IoError::Write { path: path.to_owned(), source };
    let mut builder = tempfile::Builder::new();
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.prefix(".tilevae-").tempfile_in(folder(path)).map_err(error)?;
    let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file());
    write(&mut writer)?;
    writer.flush().map_err(error)?;
    drop(writer);
    temporary.persist(path).map_err(|failed| error(failed.error))?;
    Ok(())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
