use std::path::{Path, PathBuf};

use image::{ExtendedColorType, ImageFormat};
use tempfile::TempDir;

use super::super::pictures::read_picture;
use super::super::{FileKind, IoError, folder_of};
use super::{ClipFormat, Fps, FrameWriter, Frames};

pub(super) fn open(path: &Path) -> Result<(Frames, Option<Fps>), IoError> {
    let mut frames = Vec::new();
    for entry in std::fs::read_dir(path).map_err(|source| IoError::Read { path: path.to_owned(), source })? {
        let frame = entry.map_err(|source| IoError::Read { path: path.to_owned(), source })?.path();
        if frame.is_file() && FileKind::of(&frame).is_ok_and(FileKind::is_picture) {
            frames.push((number(&frame), frame));
        }
    }
    frames.sort();
    Ok((Box::new(frames.into_iter().map(|(_, frame)| read_picture(&frame))), None))
}

/// The last number in a file's name.
fn number(path: &Path) -> Option<u64> {
    let stem = path.file_stem()?.to_str()?;
    let digits = stem.split(|c: char| !c.is_ascii_digit()).rfind(|part| !part.is_empty())?;
    digits.parse().ok()
}

/// Writes `frame-00000.png`, … to a folder that gets its name when all are there.
pub(super) struct Writer {
    path: PathBuf,
    temporary: TempDir,
    size: [usize; 2],
    count: usize,
}

impl Writer {
    pub(super) fn new(format: &ClipFormat) -> Result<Self, IoError> {
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let temporary = builder.prefix(".tilevae-").tempdir_in(folder_of(format.path));
        let temporary = temporary.map_err(|source| IoError::Write { path: format.path.to_owned(), source })?;
        Ok(Self { path: format.path.to_owned(), temporary, size: format.size, count: 0 })
    }
}

impl FrameWriter for Writer {
    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError> {
        let file = self.temporary.path().join(format!("frame-{:05}.png", self.count));
        self.count += 1;
        let [height, width] = self.size.map(|side| side as u32);
        image::save_buffer_with_format(file, pixels, width, height, ExtendedColorType::Rgb8, ImageFormat::Png)
            .map_err(|source| IoError::Picture { path: self.path.clone(), source })
    }

    fn finish(self: Box<Self>) -> Result<(), IoError> {
        let error = |source| IoError::Write { path: self.path.clone(), source };
        if self.path.is_dir() {
            // Only an empty folder can be removed so.
            std::fs::remove_dir(&self.path).map_err(error)?;
        }
        std::fs::rename(self.temporary.path(), &self.path).map_err(error)?;
        let _moved = self.temporary.keep();
        Ok(())
    }
}
