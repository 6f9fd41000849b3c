use std::path::{Path, PathBuf};

use image::{ExtendedColorType, ImageFormat};

use super::super::pending::PendingFolder;
use super::super::pictures::read_picture;
use super::super::{FileKind, IoError};
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
    pending: PendingFolder,
    size: [usize; 2],
    count: usize,
}

impl Writer {
    pub(super) fn new(format: &ClipFormat) -> Result<Self, IoError> {
        let pending = PendingFolder::new(format.path)?;
        Ok(Self { path: format.path.to_owned(), pending, size: format.size, count: 0 })
    }
}

impl FrameWriter for Writer {
    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError> {
        let file = self.pending.folder().join(format!("frame-{:05}.png", self.count));
        self.count += 1;
        let [height, width] = self.size.map(|side| side as u32);
        image::save_buffer_with_format(file, pixels, width, height, ExtendedColorType::Rgb8, ImageFormat::Png)
            .map_err(|source| IoError::Picture { path: self.path.clone(), source })
    }

    fn finish(self: Box<Self>) -> Result<(), IoError> {
        self.pending.publish()
    }
}
