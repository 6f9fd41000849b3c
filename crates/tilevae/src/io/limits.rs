use std::path::Path;

use image::ImageFormat;

use super::{ClipKind, FileKind, IoError};

/// Checks that samples of `shape` (`[batch, channels, frames, height, width]`) can be written to a file of the kind that `path` names, before work is spent on
/// them. Raw tensors hold any.
///
/// # Errors
/// When the kind has no such number of channels or frames, or ends at fewer px.
pub fn check_output(path: &Path, shape: [usize; 5]) -> Result<(), IoError> {
    check_output_of_kind(path, FileKind::of(path)?, shape)
}

/// The same of a kind that the name need not say.
pub(super) fn check_output_of_kind(path: &Path, kind: FileKind, shape: [usize; 5]) -> Result<(), IoError> {
    let [_, channels, frames, height, width] = shape;
    let is_shown = match kind {
        FileKind::Safetensors | FileKind::Npy | FileKind::Foreign => return Ok(()),
        FileKind::Picture(ImageFormat::Jpeg) => frames == 1 && matches!(channels, 1 | 3),
        FileKind::Picture(_) => frames == 1 && matches!(channels, 1 | 3 | 4),
        FileKind::Clip(_) => matches!(channels, 1 | 3),
    };
    if !is_shown {
        return Err(IoError::NotAPicture { path: path.to_owned(), channels, frames });
    }
    let limit = match kind {
        FileKind::Picture(ImageFormat::WebP) => 16_383,
        FileKind::Picture(ImageFormat::Jpeg) | FileKind::Clip(ClipKind::Gif) => 65_535,
        // Sides are numbers of 31 bits, and the sides of frames in memory are.
        _ => i32::MAX as usize,
    };
    if height > limit || width > limit {
        return Err(IoError::TooLarge { path: path.to_owned(), size: [height, width], limit });
    }
    // Places in a TIFF file are numbers of 32 bits. The headers of its strips are small against the rest.
    let bytes = height.saturating_mul(width).saturating_mul(channels);
    if kind == FileKind::Picture(ImageFormat::Tiff) && bytes > u32::MAX as usize / 64 * 63 {
        return Err(IoError::TooManyBytes { path: path.to_owned(), bytes: bytes as u64 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_of_files_end_somewhere() {
        let check = |name: &str, channels, frames, height, width| check_output(name.as_ref(), [1, channels, frames, height, width]);
        for (name, most) in [("a.webp", 16_383), ("a.jpg", 65_535), ("a.JPEG", 65_535), ("a.gif", 65_535), ("a.png", 2_147_483_647)] {
            for [height, width] in [[most, 1], [1, most]] {
                assert!(check(name, 3, 1, height, width).is_ok(), "{name}");
                let error = check(name, 3, 1, height + height / most, width + width / most).unwrap_err();
                assert!(matches!(error, IoError::TooLarge { limit, .. } if limit == most), "{error}");
                assert!(error.is_usage() && error.to_string().contains(&most.to_string()), "{error}");
            }
        }
        assert!(check("a.tif", 1, 1, 60_000, 60_000).is_ok());
        let error = check("a.tif", 3, 1, 40_000, 40_000).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("4 GiB"), "{error}");
        for name in ["a.npy", "a.safetensors"] {
            assert!(check(name, 7, 9, 1 << 40, 1 << 20).is_ok());
        }
        for (name, channels, frames) in [("a.jpg", 4, 1), ("a.png", 2, 1), ("a.png", 3, 5), ("a.gif", 4, 2), ("frames", 5, 1)] {
            assert!(matches!(check(name, channels, frames, 8, 8), Err(IoError::NotAPicture { .. })), "{name}");
        }
        assert!(check("a.png", 4, 1, 8, 8).is_ok() && check("frames", 3, 9, 8, 8).is_ok());
    }
}
