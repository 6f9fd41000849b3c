use std::path::Path;

use image::ImageFormat;
use image::codecs::pnm::PnmDecoder;

use super::super::{Format, FormatKind, IoError, Reader};
use super::{Header, Image, begins_as, one_frame, open_file, opened, plausible};

/// Portable anymaps (netpbm), read under the names of other images.
pub(super) struct Pnm;

impl Format for Pnm {
    fn name(&self) -> &'static str {
        "pnm"
    }

    fn endings(&self) -> &'static [&'static str] {
        &[]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Image
    }

    fn matches(&self, head: &[u8]) -> bool {
        begins_as(head, ImageFormat::Pnm)
    }

    fn is_written(&self) -> bool {
        false
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        opened(path, || {
            let (file, length) = open_file(path)?;
            let header = Header::of(&mut PnmDecoder::new(file)?)?;
            plausible(header.decoded, header.px / 8, length)?;
            let owned = path.to_owned();
            Ok(Image::new(path, &header, &[], move || one_frame(PnmDecoder::new(open_file(&owned)?.0)?)))
        })
    }
}
