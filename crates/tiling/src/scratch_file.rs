use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use bytemuck::Pod;

/// An unnamed temporary file, read and written at byte offsets. It disappears when it is dropped or the program ends in any way.
///
/// Reads and writes go to their own place and move no shared position, so that many threads may use one file at once without a lock. Values are stored
/// in the machine's own byte order.
///
/// ```
/// # use tiling::ScratchFile;
/// let file = ScratchFile::new()?;
/// file.write_at(8, &[1.0_f32, 2.0, 3.0])?;
/// let mut row = [0.0_f32; 2];
/// file.read_at(12, &mut row)?;
/// assert_eq!(row, [2.0, 3.0]);
/// # Ok::<(), tiling::ScratchError>(())
/// ```
#[derive(Debug)]
pub struct ScratchFile {
    file: File,
    folder: PathBuf,
}

/// A scratch file that cannot be made, read or written: a full disk, for instance.
#[derive(Debug, thiserror::Error)]
#[error("the scratch file in {} failed; the variable TMPDIR names another folder", folder.display())]
pub struct ScratchError {
    /// The folder of the file.
    pub folder: PathBuf,
    /// What the system reports.
    pub source: io::Error,
}

impl ScratchFile {
    /// A new, empty file in the system's folder for temporary files (`TMPDIR`).
    pub fn new() -> Result<Self, ScratchError> {
        Self::in_folder(&std::env::temp_dir())
    }

    /// A new, empty file in a folder.
    pub fn in_folder(folder: &Path) -> Result<Self, ScratchError> {
        let file = tempfile::tempfile_in(folder).map_err(|source| ScratchError { folder: folder.to_owned(), source })?;
        Ok(Self::from_file(file, folder))
    }

    /// Reads and writes a file that is open already, for reading and writing; `folder` is named in errors.
    pub fn from_file(file: File, folder: impl Into<PathBuf>) -> Self {
        Self { file, folder: folder.into() }
    }

    /// The file itself, to take room for it or to read it as a stream.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// The folder that errors name.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Fills `values` with what lies from byte `offset` on. It is an error when the file ends before.
    pub fn read_at<T: Pod>(&self, offset: u64, values: &mut [T]) -> Result<(), ScratchError> {
        read_exact_at(&self.file, bytemuck::cast_slice_mut(values), offset).map_err(|source| self.error(source))
    }

    /// Writes `values` from byte `offset` on. The file grows where it is shorter; a gap reads as zeros.
    pub fn write_at<T: Pod>(&self, offset: u64, values: &[T]) -> Result<(), ScratchError> {
        write_all_at(&self.file, bytemuck::cast_slice(values), offset).map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> ScratchError {
        ScratchError { folder: self.folder.clone(), source }
    }
}

#[cfg(unix)]
use std::os::unix::fs::FileExt;

#[cfg(unix)]
fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(bytes, offset)
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}

#[cfg(windows)]
use std::os::windows::fs::FileExt;

#[cfg(windows)]
fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.seek_read(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                bytes = &mut bytes[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.seek_write(bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_back_from_their_places() {
        let file = ScratchFile::new().unwrap();
        file.write_at(100, &[1.5_f32, -2.5]).unwrap();
        file.write_at(0, &[7_u16; 8]).unwrap();
        file.write_at(104, &[3.5_f32]).unwrap();
        let (mut floats, mut shorts, mut gap) = ([0.0_f32; 2], [0_u16; 8], [1_u8; 84]);
        file.read_at(100, &mut floats).unwrap();
        file.read_at(0, &mut shorts).unwrap();
        file.read_at(16, &mut gap).unwrap();
        assert_eq!((floats, shorts, gap), ([1.5, 3.5], [7; 8], [0; 84]));
        let error = file.read_at(104, &mut floats).unwrap_err();
        assert_eq!((error.source.kind(), error.folder), (io::ErrorKind::UnexpectedEof, std::env::temp_dir()));
    }

    #[test]
    fn threads_read_and_write_at_once() {
        let file = ScratchFile::new().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let file = &file;
                scope.spawn(move || {
                    for round in 0..200 {
                        let (offset, mut back) = (8 * (4 * round + thread), [0]);
                        file.write_at(offset, &[1000 * thread + round]).unwrap();
                        file.read_at(offset, &mut back).unwrap();
                        assert_eq!(back, [1000 * thread + round]);
                    }
                });
            }
        });
    }

    #[test]
    fn errors_name_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let error = ScratchFile::in_folder(&missing).unwrap_err();
        assert!(error.to_string().contains(&missing.display().to_string()), "{error}");
    }
}
