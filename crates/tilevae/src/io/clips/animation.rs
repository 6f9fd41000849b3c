use std::path::Path;

use super::super::IoError;
use super::super::formats::PictureFile;
use super::delays::Delays;
use super::{ClipInfo, Fps, Frames, gif};

pub(super) fn probe(path: &Path) -> Result<ClipInfo, IoError> {
    let picture = PictureFile::open(path)?;
    let mut delays = Delays::default();
    picture.delays().for_each(|delay| delays.add(delay));
    Ok(ClipInfo { size: picture.size(), frames: picture.frames(), fps: delays.fps() })
}

/// The frames of an animated picture or the pages of a TIFF file. Their delays make the rate.
pub(super) fn open(path: &Path) -> Result<(Frames, Option<Fps>), IoError> {
    let picture = PictureFile::open(path)?;
    if picture.is_gif() && picture.frames() > 1 {
        return gif::open(path);
    }
    Ok((picture.into_frames()?, None))
}
