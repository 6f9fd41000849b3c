use std::io::Cursor;
use std::path::{Path, PathBuf};

use image::{ExtendedColorType, ImageFormat};

use super::super::image_writer::not_encoded;
use super::super::images::{image_size, read_image};
use super::super::pending::PendingFolder;
use super::super::{
    ClipInfo, ClipWriter, Format, FormatKind, FrameReader, FrameWriter, Frames, IoError, Reader, Target, Writer, endings, format_of, until_error,
};

/// A folder of images, numbered by their names; written as PNG.
pub(super) struct Folder;

impl Format for Folder {
    fn name(&self) -> &'static str {
        "folder"
    }

    fn endings(&self) -> &'static [&'static str] {
        &[]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Clip
    }

    fn is_folder(&self) -> bool {
        true
    }

    /// Reads the header of the first frame only.
    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        let files = list(path)?;
        let first = files.first().ok_or_else(|| IoError::NoFrames { path: path.to_owned() })?;
        Ok(Reader::Frames(Box::new(Images { size: image_size(first)?, files })))
    }

    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        Ok(Box::new(ClipWriter::new(target, FolderWriter::new(target)?)))
    }
}

struct Images {
    size: [usize; 2],
    files: Vec<PathBuf>,
}

impl FrameReader for Images {
    fn info(&self) -> ClipInfo {
        ClipInfo { size: self.size, frames: self.files.len(), fps: None }
    }

    fn frames(self: Box<Self>) -> Result<Frames, IoError> {
        let (expected, mut files) = (self.size, self.files.into_iter());
        Ok(until_error(move || {
            let Some(path) = files.next() else { return Ok(None) };
            let image = read_image(&path)?;
            let got = [image.height() as usize, image.width() as usize];
            if got == expected { Ok(Some(image)) } else { Err(IoError::ImageSize { path, got, expected }) }
        }))
    }
}

/// The frames in a folder, in their order.
fn list(path: &Path) -> Result<Vec<PathBuf>, IoError> {
    let read = |source| IoError::Read { path: path.to_owned(), source };
    let mut frames = Vec::new();
    for entry in std::fs::read_dir(path).map_err(read)? {
        let entry = entry.map_err(read)?;
        let (name, frame) = (entry.file_name().to_string_lossy().into_owned(), entry.path());
        // macOS writes a file `._NAME` for NAME on foreign file systems.
        if name.starts_with('.') || !frame.is_file() {
            continue;
        }
        if format_of(&frame).is_ok_and(|format| format.kind() == FormatKind::Image) {
            frames.push((name, frame));
        } else if ImageFormat::from_path(&frame).is_ok() {
            return Err(IoError::UnknownKind { path: frame, kinds: endings(|format| format.kind() == FormatKind::Image) });
        }
    }
    frames.sort_by(|(a, _), (b, _)| natural(a).cmp(&natural(b)).then_with(|| a.cmp(b)));
    Ok(frames.into_iter().map(|(_, frame)| frame).collect())
}

/// A key for the natural order of names: numbers compare by value.
fn natural(name: &str) -> Vec<(&str, usize, &str)> {
    let mut rest = name;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        let (text, after) = rest.split_at(rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()));
        let (digits, after) = after.split_at(after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len()));
        // Of numbers without leading zeros, the longer is the larger.
        let digits = digits.trim_start_matches('0');
        parts.push((text, digits.len(), digits));
        rest = after;
    }
    parts
}

/// Writes `frame-00000.png`, … to a folder that is renamed when it is complete.
struct FolderWriter {
    path: PathBuf,
    pending: PendingFolder,
    size: [usize; 2],
    count: usize,
}

impl FolderWriter {
    fn new(target: &Target<'_>) -> Result<Self, IoError> {
        let [.., height, width] = target.shape;
        Ok(Self { path: target.path.to_owned(), pending: PendingFolder::new(target.path)?, size: [height, width], count: 0 })
    }
}

impl FrameWriter for FolderWriter {
    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError> {
        let file = self.pending.folder().join(format!("frame-{:05}.png", self.count));
        self.count += 1;
        let [height, width] = self.size.map(|side| side as u32);
        // The encoder does not report a full disk when it writes to a file itself.
        let mut encoded = Cursor::new(Vec::new());
        image::write_buffer_with_format(&mut encoded, pixels, width, height, ExtendedColorType::Rgb8, ImageFormat::Png)
            .map_err(|error| not_encoded(&self.path, error))?;
        std::fs::write(file, encoded.into_inner()).map_err(|source| IoError::Write { path: self.path.clone(), source })
    }

    fn finish(self: Box<Self>) -> Result<(), IoError> {
        self.pending.publish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_a_name_counts() {
        for names in [
            ["f2.png", "f10.png", "f100.png"],
            ["frame2_640x480.png", "frame10_640x480.png", "frame11_640x480.png"],
            ["clip_3_v2.png", "clip_10_v1.png", "clip_10_v2.png"],
            ["a9b2.png", "a10b1.png", "b1.png"],
            ["002.png", "3.png", "0010.png"],
            ["1.png", "1_2.png", "1_10.png"],
            ["99999999999999999999.png", "100000000000000000000.png", "100000000000000000001.png"],
            ["f1.png", "f\u{e9}1.png", "f\u{e9}2.png"],
        ] {
            let mut sorted = names;
            sorted.reverse();
            sorted.sort_by_key(|name| natural(name));
            assert_eq!(sorted, names);
        }
    }
}
