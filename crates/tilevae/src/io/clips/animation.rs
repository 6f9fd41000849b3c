use std::path::Path;

use super::super::IoError;
use super::super::formats::PictureFile;
use super::{Fps, Frames};

/// The frames of an animated picture or the pages of a TIFF file. Their delays make the rate.
pub(super) fn open(path: &Path) -> Result<(Frames, Option<Fps>), IoError> {
    Ok((PictureFile::open(path)?.into_frames()?, None))
}
