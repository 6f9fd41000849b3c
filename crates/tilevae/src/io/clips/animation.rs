use std::path::Path;

use super::super::IoError;
use super::super::formats::PictureFile;
use super::{Fps, Frames};

/// The frames of an animated picture or the pages of a TIFF file, and the rate of what says how long its frames are shown.
pub(super) fn open(path: &Path) -> Result<(Frames, Option<Fps>), IoError> {
    let picture = PictureFile::open(path)?;
    let mut frames = picture.into_frames()?.peekable();
    let fps = frames.peek().and_then(|frame| frame.as_ref().ok()).and_then(|(_, delay)| {
        let (numerator, denominator) = (*delay)?.numer_denom_ms();
        Fps::new(denominator.checked_mul(1000)?, numerator).map(Fps::reduced)
    });
    Ok((Box::new(frames.map(|frame| frame.map(|(image, _)| image))), fps))
}
