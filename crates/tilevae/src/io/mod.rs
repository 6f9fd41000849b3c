//! Files in and out: raw tensors, images and clips.
//!
//! A [`Format`] knows one kind of file, its endings and limits, how it is recognised, read and written; every linked crate may register more. A [`DecodeJob`]
//! or [`EncodeJob`] takes files to a file: it plans first, so that errors come before weights load. Outputs are written under a temporary name and
//! renamed when they are complete.

mod axes;
mod background;
mod clip;
mod clip_writer;
mod delays;
mod error;
mod files;
mod format;
mod formats;
mod fps;
mod hash;
mod image_writer;
mod images;
mod job;
mod output;
mod pending;
mod pixels;
mod sample_file;
mod samples;
mod space;
mod tensor_writer;
mod tensors;
mod verify;
mod whole_frames;

pub use axes::Axes;
pub use background::Background;
pub use clip::Clip;
pub use clip_writer::{ClipWriter, FrameWriter};
pub use error::IoError;
pub use files::Files;
pub use format::{
    ClipInfo, Format, FormatEntry, FormatKind, FrameReader, Frames, Limits, Reader, Target, TensorHeader, TensorReader, Writer, check_output,
    endings, format_named, format_of, formats, output_format_of, until_error,
};
pub use fps::Fps;
pub use hash::{HashingSink, sha256};
pub use image_writer::{ImageWriter, Pixels8};
pub use images::{Images, image_size};
pub use job::{DecodeJob, Decoded, EncodeJob, EncodedFile, Planning, RoundTrip, RoundTripJob, Written};
pub use output::Output;
pub use pending::{Spooled, is_standard_output, is_stream, remove_pending, written_file};
pub use sample_file::SampleFile;
pub use samples::{Input, Samples, planned_shape};
pub use space::check_space;
pub(crate) use space::free_bytes;
pub use tensor_writer::{Origin, TensorWriter, write_tensors};
pub use tensors::{Tensor, TensorInput, Tensors};
pub use verify::{Verified, VerifyJob};
pub use whole_frames::WholeFrames;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use pending::{PendingFile, PendingFolder, linked_file};

/// Checks that a file, of a format if one is given, can be written at `path`, before work is spent on it.
///
/// # Errors
/// When its folder is not there or takes no files, or what is there cannot be replaced: a folder (for frames: one that is not empty), a file that is
/// read-only, a terminal.
pub fn check_writable(path: &Path, format: Option<&'static dyn Format>) -> Result<(), IoError> {
    use std::io::{Error, ErrorKind, IsTerminal};
    let error = |source| Err(IoError::Write { path: path.to_owned(), source });
    let refused = |kind, text: String| error(Error::new(kind, text));
    let is_folder = format.is_some_and(Format::is_folder);
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
            // No user can write there.
            wrong.extend(["/sys/out.png", "/sys/frames"].map(std::path::PathBuf::from));
        }
        for path in wrong {
            assert!(
                matches!(check_writable(&path, format_of(&path).ok()), Err(IoError::Write { .. } | IoError::FolderInUse { .. })),
                "{}",
                path.display()
            );
        }
        std::fs::create_dir(at("empty")).unwrap();
        for name in ["out.png", "file", "frames", "empty"] {
            check_writable(&at(name), format_of(&at(name)).ok().filter(|_| name != "file")).unwrap();
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_full_disk_is_called_that() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["out.png", "out.jpg", "out.webp", "out.tif"] {
            let path = folder.path().join(name);
            std::os::unix::fs::symlink("/dev/full", &path).unwrap();
            let mut sink = format_of(&path).unwrap().create(&Target::new(&path, [1, 3, 1, 4, 4])).unwrap();
            sink.take([0; 3], [1, 4, 4], tiling::HostTensor::zeros([1, 3, 1, 4, 4])).unwrap();
            let error = sink.finish().unwrap_err();
            assert!(matches!(&error, IoError::Write { source, .. } if source.kind() == std::io::ErrorKind::StorageFull), "{error:?}");
        }
    }
}
