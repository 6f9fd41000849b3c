use std::path::Path;

use crate::io::{Fps, IoError};

/// Where values of colour lie along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Siting {
    /// Px of luma for each value of colour.
    pub(super) px: usize,
    /// Whether a value lies in the middle of its px, not on the first.
    is_centred: bool,
}

impl Siting {
    const EACH: Self = Self { px: 1, is_centred: false };

    /// The values of colour on both sides of a px, and the share of the second in units of `1 / (2 * px)`.
    pub(super) fn around(self, place: usize, values: usize) -> ([usize; 2], u32) {
        let unit = 2 * self.px;
        // From a value before the first; half a px of colour earlier when values lie in the middle.
        let from = 2 * place + unit - if self.is_centred { self.px - 1 } else { 0 };
        let next = from / unit;
        ([next.saturating_sub(1), next].map(|index| index.min(values - 1)), (from % unit) as u32)
    }
}

/// What the header says.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) fps: Option<Fps>,
    pub(super) depth: u32,
    pub(super) has_colour: bool,
    pub(super) has_alpha: bool,
    /// Along the height and the width.
    pub(super) siting: [Siting; 2],
    pub(super) is_full_range: bool,
    /// What is ignored, in words.
    pub(super) ignored: Vec<String>,
}

impl Header {
    pub(super) fn parse(path: &Path, line: &[u8]) -> Result<Self, IoError> {
        let text = String::from_utf8_lossy(line);
        let damaged = |message: String| IoError::Damaged { path: path.to_owned(), message };
        let Some(parameters) = text.strip_prefix("YUV4MPEG2").filter(|rest| rest.is_empty() || rest.starts_with(' ')) else {
            return Err(damaged("it does not begin with `YUV4MPEG2`".to_owned()));
        };
        let mut header = Self {
            width: 0,
            height: 0,
            fps: None,
            depth: 8,
            has_colour: true,
            has_alpha: false,
            siting: [Siting { px: 2, is_centred: true }; 2],
            is_full_range: false,
            ignored: Vec::new(),
        };
        let (mut kind, mut other_kind) = (None, None);
        for parameter in parameters.split(' ').filter(|parameter| !parameter.is_empty()) {
            let mut characters = parameter.chars();
            let (name, value) = (characters.next(), characters.as_str());
            let wrong = || damaged(format!("`{parameter}` in its header says nothing"));
            let ratio = || value.split_once(':').and_then(|(a, b)| Some([a.parse::<u32>().ok()?, b.parse::<u32>().ok()?])).ok_or_else(wrong);
            match name {
                Some('W') => header.width = value.parse().map_err(|_| wrong())?,
                Some('H') => header.height = value.parse().map_err(|_| wrong())?,
                Some('F') => header.fps = ratio().map(|[numerator, denominator]| Fps::new(numerator, denominator))?,
                Some('A') => {
                    let [a, b] = ratio()?;
                    if a != b {
                        header.ignored.push(format!("its px are not square ({value})"));
                    }
                }
                Some('I') => match value {
                    "t" | "b" => header.ignored.push("its frames are interlaced".to_owned()),
                    "m" => header.ignored.push("some of its frames are interlaced".to_owned()),
                    _ => {}
                },
                Some('C') => kind = Some(value.to_ascii_lowercase()),
                Some('X') => match value.split_once('=') {
                    Some(("COLORRANGE", range)) => header.is_full_range = range.eq_ignore_ascii_case("full"),
                    Some(("YSCSS", kind)) => other_kind = Some(kind.to_ascii_lowercase()),
                    _ => {}
                },
                _ => {}
            }
        }
        if let Some(kind) = kind.or(other_kind) {
            header.take_kind(path, &kind)?;
        }
        if header.width == 0 || header.height == 0 {
            return Err(damaged(format!("its header gives it {}x{} px (height, width)", header.height, header.width)));
        }
        if header.frame_bytes().is_none_or(|bytes| isize::try_from(bytes).is_err()) || header.width.max(header.height) > 1 << 24 {
            return Err(damaged(format!("its header gives it {}x{} px (height, width), more than any video has", header.height, header.width)));
        }
        Ok(header)
    }

    /// A kind is `mono`, or a sampling of colour with its siting; each may be followed by its bits (`mono10`, `420p10`).
    fn take_kind(&mut self, path: &Path, kind: &str) -> Result<(), IoError> {
        let unsupported = || IoError::Unsupported { path: path.to_owned(), message: format!("y4m of the kind `C{kind}` is not supported") };
        let (sampling, bits) = match kind.strip_prefix("mono") {
            Some(bits) => ("mono", bits),
            None => match kind.split_once('p') {
                // Of 420jpeg, 420mpeg2 and 420paldv the letter is part of the name.
                Some((sampling, bits)) if !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit()) => (sampling, bits),
                _ => (kind, ""),
            },
        };
        self.depth = if bits.is_empty() { 8 } else { bits.parse().map_err(|_| unsupported())? };
        if !(8..=16).contains(&self.depth) {
            return Err(unsupported());
        }
        let [centred, cosited] = [true, false].map(|is_centred| Siting { px: 2, is_centred });
        self.siting = match sampling {
            // More than 8 bits come from codecs whose colour lies on the first column.
            "420" if self.depth > 8 => [centred, cosited],
            "420" | "420jpeg" => [centred, centred],
            "420mpeg2" => [centred, cosited],
            "420paldv" => [cosited, cosited],
            "422" => [Siting::EACH, cosited],
            "411" => [Siting::EACH, Siting { px: 4, is_centred: false }],
            "mono" | "444" | "444alpha" => [Siting::EACH; 2],
            _ => return Err(unsupported()),
        };
        self.has_colour = sampling != "mono";
        self.has_alpha = sampling == "444alpha";
        Ok(())
    }

    pub(super) fn value_bytes(&self) -> usize {
        if self.depth > 8 { 2 } else { 1 }
    }

    /// Height and width of a plane of colour.
    pub(super) fn colour_size(&self) -> [usize; 2] {
        [self.height.div_ceil(self.siting[0].px), self.width.div_ceil(self.siting[1].px)]
    }

    /// Bytes of luma, of a plane of colour, and of alpha.
    pub(super) fn plane_bytes(&self) -> Option<[usize; 3]> {
        let bytes = |[height, width]: [usize; 2]| height.checked_mul(width)?.checked_mul(self.value_bytes());
        let luma = bytes([self.height, self.width])?;
        Some([luma, if self.has_colour { bytes(self.colour_size())? } else { 0 }, if self.has_alpha { luma } else { 0 }])
    }

    pub(super) fn frame_bytes(&self) -> Option<usize> {
        let [luma, colour, alpha] = self.plane_bytes()?;
        colour.checked_mul(2)?.checked_add(luma)?.checked_add(alpha)
    }

    /// A row of a plane, its values brought to 16 bits.
    pub(super) fn row(&self, plane: &[u8], y: usize, width: usize, is_colour: bool, row: &mut Vec<u16>) {
        let bytes = self.value_bytes();
        let values = &plane[y * width * bytes..(y + 1) * width * bytes];
        let most = (1_u32 << self.depth) - 1;
        let deepened = |value: u32| {
            let value = value.min(most);
            let deep = if !self.is_full_range {
                value << (16 - self.depth)
            } else if is_colour {
                // Zero lies in the middle of an even number of values.
                let from_zero = i64::from(value) - (1_i64 << (self.depth - 1));
                (0x8000 + (from_zero * 0xffff).div_euclid(i64::from(most))).clamp(0, 0xffff) as u32
            } else {
                (value * 0xffff + most / 2) / most
            };
            deep as u16
        };
        row.clear();
        match bytes {
            1 => row.extend(values.iter().map(|&value| deepened(u32::from(value)))),
            _ => row.extend(values.as_chunks::<2>().0.iter().map(|&value| deepened(u32::from(u16::from_le_bytes(value))))),
        }
    }
}
