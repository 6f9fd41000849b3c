//! Uncompressed video with a header of one line (`YUV4MPEG2`, of mjpegtools; as ffmpeg extends it).

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use image::{DynamicImage, ImageBuffer};
use yuv::{YuvChromaSubsampling, YuvConversionMode, YuvPlanarImage, YuvPlanarImageMut, YuvRange, YuvStandardMatrix, i416_to_rgb16, rgb_to_yuv444};

use super::super::pending::PendingFile;
use super::super::space::reserve;
use super::super::{ClipInfo, ClipWriter, Format, FormatKind, Fps, FrameReader, FrameWriter, Frames, IoError, Reader, Target, Writer, until_error};
use super::video::Matrix;

/// Uncompressed video; written as 4:4:4 of 8 bits.
pub(super) struct Y4m;

impl Format for Y4m {
    fn name(&self) -> &'static str {
        "y4m"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["y4m"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Clip
    }

    fn matches(&self, head: &[u8]) -> bool {
        head.starts_with(b"YUV4MPEG2")
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        Ok(Reader::Frames(Box::new(Video::open(path)?)))
    }

    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        Ok(Box::new(ClipWriter::new(target, FileWriter::new(target)?)))
    }
}

/// The longest line of a header.
const LONGEST_LINE: u64 = 4096;

/// Where values of colour lie along an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Siting {
    /// Px of luma for each value of colour.
    px: usize,
    /// Whether a value lies in the middle of its px, not on the first.
    is_centred: bool,
}

impl Siting {
    const EACH: Self = Self { px: 1, is_centred: false };

    /// The values of colour on both sides of a px, and the share of the second in units of `1 / (2 * px)`.
    fn around(self, place: usize, values: usize) -> ([usize; 2], u32) {
        let unit = 2 * self.px;
        // From a value before the first; half a px of colour earlier when values lie in the middle.
        let from = 2 * place + unit - if self.is_centred { self.px - 1 } else { 0 };
        let next = from / unit;
        ([next.saturating_sub(1), next].map(|index| index.min(values - 1)), (from % unit) as u32)
    }
}

/// What the header says.
#[derive(Debug, Clone)]
struct Header {
    width: usize,
    height: usize,
    fps: Option<Fps>,
    depth: u32,
    has_colour: bool,
    has_alpha: bool,
    /// Along the height and the width.
    siting: [Siting; 2],
    is_full_range: bool,
    /// What is ignored, in words.
    ignored: Vec<String>,
}

impl Header {
    fn parse(path: &Path, line: &[u8]) -> Result<Self, IoError> {
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

    fn value_bytes(&self) -> usize {
        if self.depth > 8 { 2 } else { 1 }
    }

    /// Height and width of a plane of colour.
    fn colour_size(&self) -> [usize; 2] {
        [self.height.div_ceil(self.siting[0].px), self.width.div_ceil(self.siting[1].px)]
    }

    /// Bytes of luma, of a plane of colour, and of alpha.
    fn plane_bytes(&self) -> Option<[usize; 3]> {
        let bytes = |[height, width]: [usize; 2]| height.checked_mul(width)?.checked_mul(self.value_bytes());
        let luma = bytes([self.height, self.width])?;
        Some([luma, if self.has_colour { bytes(self.colour_size())? } else { 0 }, if self.has_alpha { luma } else { 0 }])
    }

    fn frame_bytes(&self) -> Option<usize> {
        let [luma, colour, alpha] = self.plane_bytes()?;
        colour.checked_mul(2)?.checked_add(luma)?.checked_add(alpha)
    }

    /// A row of a plane, its values brought to 16 bits.
    fn row(&self, plane: &[u8], y: usize, width: usize, is_colour: bool, row: &mut Vec<u16>) {
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

/// A file whose header is read.
struct Source {
    path: PathBuf,
    file: BufReader<File>,
    header: Header,
    /// Whole frames that were read.
    frames: usize,
}

impl Source {
    fn new(path: &Path) -> Result<Self, IoError> {
        let file = File::open(path).map_err(|source| IoError::Read { path: path.to_owned(), source })?;
        let mut file = BufReader::with_capacity(1 << 16, file);
        let line = line(&mut file).map_err(|source| IoError::Read { path: path.to_owned(), source })?.unwrap_or_default();
        let Some(line) = line.strip_suffix(b"\n") else {
            return Err(IoError::Damaged { path: path.to_owned(), message: "it has no line that begins with `YUV4MPEG2`".to_owned() });
        };
        let header = Header::parse(path, line)?;
        Ok(Self { path: path.to_owned(), file, header, frames: 0 })
    }

    /// Whether a frame follows. Its header is passed over.
    fn frame_follows(&mut self) -> Result<bool, IoError> {
        let read = |source| IoError::Read { path: self.path.clone(), source };
        let Some(line) = line(&mut self.file).map_err(read)? else { return Ok(false) };
        let (line, is_ended) = match line.strip_suffix(b"\n") {
            Some(line) => (line, true),
            None => (&line[..], false),
        };
        let is_frame = line == b"FRAME" || line.starts_with(b"FRAME ");
        match is_ended {
            true if is_frame => Ok(true),
            false if is_frame || b"FRAME".starts_with(line) => Err(self.ends_early(0)),
            _ => Err(IoError::Damaged {
                path: self.path.clone(),
                message: format!("what follows {} whole frames does not begin with `FRAME`", self.frames),
            }),
        }
    }

    fn ends_early(&self, got: u64) -> IoError {
        let bytes = self.header.frame_bytes().unwrap_or_default();
        IoError::IncompleteClip {
            path: self.path.clone(),
            frames: self.frames,
            expected: None,
            message: format!("it ends within the next one, after {got} of {bytes} bytes"),
        }
    }
}

/// The next line with its end, if it has one; none when the file is over.
fn line(file: &mut impl BufRead) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    file.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)?;
    Ok(Some(line).filter(|line| !line.is_empty()))
}

/// A file whose frames are counted.
struct Video {
    source: Source,
    info: ClipInfo,
}

impl Video {
    /// Reads the headers of the frames and passes over the rest.
    fn open(path: &Path) -> Result<Self, IoError> {
        let mut source = Source::new(path)?;
        let read = |source| IoError::Read { path: path.to_owned(), source };
        let bytes = source.header.frame_bytes().unwrap_or_default() as u64;
        let length = source.file.get_ref().metadata().map_err(read)?.len();
        while source.frame_follows()? {
            let left = length.saturating_sub(source.file.stream_position().map_err(read)?);
            if left < bytes {
                return Err(source.ends_early(left));
            }
            source.file.seek_relative(i64::try_from(bytes).unwrap_or(i64::MAX)).map_err(read)?;
            source.frames += 1;
        }
        if source.frames == 0 {
            return Err(IoError::NoFrames { path: path.to_owned() });
        }
        let info = ClipInfo { size: [source.header.height, source.header.width], frames: source.frames, fps: source.header.fps };
        Ok(Self { source: Source::new(path)?, info })
    }
}

impl FrameReader for Video {
    fn info(&self) -> ClipInfo {
        self.info
    }

    fn frames(self: Box<Self>) -> Result<Frames, IoError> {
        let mut source = self.source;
        for what in &source.header.ignored {
            tracing::warn!("{}: {what}, which is ignored", source.path.display());
        }
        Ok(until_error(move || source.next_frame()))
    }
}

impl Source {
    fn next_frame(&mut self) -> Result<Option<DynamicImage>, IoError> {
        if !self.frame_follows()? {
            return Ok(None);
        }
        let bytes = self.header.frame_bytes().unwrap_or_default() as u64;
        // A header that is wrong costs no more memory than the file has bytes.
        let mut frame = Vec::new();
        match self.file.by_ref().take(bytes).read_to_end(&mut frame) {
            Ok(got) if got as u64 == bytes => {}
            Ok(got) => return Err(self.ends_early(got as u64)),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Err(self.ends_early(0)),
            Err(error) => return Err(IoError::Read { path: self.path.clone(), source: error }),
        }
        self.frames += 1;
        picture(&self.header, &frame).map(Some).ok_or_else(|| IoError::Unsupported {
            path: self.path.clone(),
            message: format!("it has frames of {}x{} px (height, width)", self.header.height, self.header.width),
        })
    }
}

fn standard(matrix: Matrix) -> YuvStandardMatrix {
    match matrix {
        Matrix::Bt601 => YuvStandardMatrix::Bt601,
        Matrix::Bt709 => YuvStandardMatrix::Bt709,
    }
}

/// A frame in RGB: grey where it has no colour, with alpha where it has that, in 16 bits where it has more than 8.
fn picture(header: &Header, frame: &[u8]) -> Option<DynamicImage> {
    let (width, height) = (header.width, header.height);
    let [luma_bytes, colour_bytes, alpha_bytes] = header.plane_bytes()?;
    let (luma, rest) = frame.split_at_checked(luma_bytes)?;
    let (u, rest) = rest.split_at_checked(colour_bytes)?;
    let (v, rest) = rest.split_at_checked(colour_bytes)?;
    let alpha = rest.get(..alpha_bytes)?;
    let range = if header.is_full_range { YuvRange::Full } else { YuvRange::Limited };
    let matrix = standard(Matrix::of([height, width]));
    let channels = match (header.has_colour, header.has_alpha) {
        (false, _) => 1,
        (true, false) => 3,
        (true, true) => 4,
    };
    let is_deep = header.depth > 8;
    let (mut eight, mut sixteen) = (Vec::new(), Vec::new());
    let values = width.checked_mul(height)?.checked_mul(channels)?;
    if is_deep {
        sixteen.reserve_exact(values);
    } else {
        eight.reserve_exact(values);
    }
    let neutral = vec![0x8000; if header.has_colour { 0 } else { width }];
    let mut rows = Rows::new(header, [u, v]);
    let (mut y_row, mut rgb) = (Vec::with_capacity(width), vec![0_u16; 3 * width]);
    for y in 0..height {
        header.row(luma, y, width, false, &mut y_row);
        let [u_row, v_row] = if header.has_colour { rows.at(y) } else { [&neutral[..]; 2] };
        let stride = width as u32;
        let planes = YuvPlanarImage {
            y_plane: &y_row,
            y_stride: stride,
            u_plane: u_row,
            u_stride: stride,
            v_plane: v_row,
            v_stride: stride,
            width: stride,
            height: 1,
        };
        i416_to_rgb16(&planes, &mut rgb, 3 * stride, range, matrix).ok()?;
        let row_alpha = alpha.get(y * width..(y + 1) * width);
        for (x, pixel) in rgb.as_chunks::<3>().0.iter().enumerate() {
            let shown = &pixel[..channels.min(3)];
            if is_deep {
                sixteen.extend_from_slice(shown);
            } else {
                eight.extend(shown.iter().map(|&value| ((u32::from(value) * 255 + 32_767) / 65_535) as u8));
                eight.extend(row_alpha.map(|row| row[x]));
            }
        }
    }
    let [w, h] = [width, height].map(|side| u32::try_from(side).ok());
    let (w, h) = (w?, h?);
    Some(match (channels, is_deep) {
        (1, false) => DynamicImage::ImageLuma8(ImageBuffer::from_raw(w, h, eight)?),
        (1, true) => DynamicImage::ImageLuma16(ImageBuffer::from_raw(w, h, sixteen)?),
        (3, false) => DynamicImage::ImageRgb8(ImageBuffer::from_raw(w, h, eight)?),
        (3, true) => DynamicImage::ImageRgb16(ImageBuffer::from_raw(w, h, sixteen)?),
        _ => DynamicImage::ImageRgba8(ImageBuffer::from_raw(w, h, eight)?),
    })
}

/// Planes of colour, interpolated to a value for each px, row by row.
struct Rows<'a> {
    header: &'a Header,
    planes: [&'a [u8]; 2],
    /// For each px of a row, the values on both sides and the share of the second.
    columns: Vec<([usize; 2], u32)>,
    around: [Vec<u16>; 2],
    interpolated: [Vec<u16>; 2],
}

impl<'a> Rows<'a> {
    fn new(header: &'a Header, planes: [&'a [u8]; 2]) -> Self {
        let [_, width] = header.colour_size();
        let columns = (0..if header.has_colour { header.width } else { 0 }).map(|x| header.siting[1].around(x, width)).collect();
        Self { header, planes, columns, around: [const { Vec::new() }; 2], interpolated: [const { Vec::new() }; 2] }
    }

    fn at(&mut self, y: usize) -> [&[u16]; 2] {
        let [height, width] = self.header.colour_size();
        let (lines, down) = self.header.siting[0].around(y, height);
        let [down_unit, right_unit] = self.header.siting.map(|siting| 2 * siting.px as u32);
        let unit = down_unit * right_unit;
        for (plane, row) in self.planes.iter().zip(&mut self.interpolated) {
            for (line, values) in lines.into_iter().zip(&mut self.around) {
                self.header.row(plane, line, width, true, values);
            }
            let [above, below] = &self.around;
            let column = |x: usize| u32::from(above[x]) * (down_unit - down) + u32::from(below[x]) * down;
            row.clear();
            row.extend(
                self.columns
                    .iter()
                    .map(|&([left, right], share)| ((column(left) * (right_unit - share) + column(right) * share + unit / 2) / unit) as u16),
            );
        }
        self.interpolated.each_ref().map(Vec::as_slice)
    }
}

/// Writes 4:4:4 video of 8 bits.
struct FileWriter {
    path: PathBuf,
    pending: PendingFile,
    encoder: Encoder<BufWriter<File>>,
}

impl FileWriter {
    fn new(target: &Target<'_>) -> Result<Self, IoError> {
        let path = target.path.to_owned();
        let [_, _, frames, height, width] = target.shape;
        let error = |source| IoError::Write { path: path.clone(), source };
        let pending = PendingFile::new(&path)?;
        reserve(pending.file(), &pending.lies_in(), bytes_of([frames, height, width]))?;
        let file = pending.file().try_clone().map_err(error)?;
        let encoder = Encoder::new(BufWriter::with_capacity(1 << 20, file), [height, width], target.fps).map_err(error)?;
        Ok(Self { path, pending, encoder })
    }
}

/// Of all frames, with what begins each.
fn bytes_of(extent: [usize; 3]) -> u64 {
    let [frames, height, width] = extent.map(|count| count as u64);
    height.saturating_mul(width).saturating_mul(3).saturating_add(FRAME.len() as u64).saturating_mul(frames)
}

impl FrameWriter for FileWriter {
    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError> {
        self.encoder.write(pixels).map_err(|source| IoError::Write { path: self.path.clone(), source })
    }

    fn finish(self: Box<Self>) -> Result<(), IoError> {
        let Self { path, pending, encoder } = *self;
        encoder.finish().map_err(|source| IoError::Write { path, source })?;
        pending.publish()
    }
}

/// What begins a frame.
const FRAME: &[u8] = b"FRAME\n";

struct Encoder<W: Write> {
    to: W,
    size: [usize; 2],
}

impl<W: Write> Encoder<W> {
    fn new(mut to: W, size: [usize; 2], fps: Fps) -> std::io::Result<Self> {
        let [height, width] = size;
        writeln!(to, "YUV4MPEG2 W{width} H{height} F{}:{} Ip A1:1 C444 XCOLORRANGE=LIMITED", fps.numerator, fps.denominator)?;
        Ok(Self { to, size })
    }

    fn write(&mut self, pixels: &[u8]) -> std::io::Result<()> {
        let [height, width] = self.size.map(|side| side as u32);
        let matrix = standard(Matrix::of(self.size));
        let mut planes = YuvPlanarImageMut::<u8>::alloc(width, height, YuvChromaSubsampling::Yuv444);
        rgb_to_yuv444(&mut planes, pixels, 3 * width, YuvRange::Limited, matrix, YuvConversionMode::Professional).map_err(std::io::Error::other)?;
        self.to.write_all(FRAME)?;
        for plane in [&planes.y_plane, &planes.u_plane, &planes.v_plane] {
            self.to.write_all(plane.borrow())?;
        }
        Ok(())
    }

    /// What is still buffered is written: whoever drops a buffer hears of no error.
    fn finish(mut self) -> std::io::Result<W> {
        self.to.flush()?;
        Ok(self.to)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::clip_writer::testing::{CANVAS, Limited, levels};
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_disk_without_room_for_all_frames_is_told_before_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clip.y4m");
        let begin = |frames| FileWriter::new(&Target::new(&path, [1, 3, frames, 64, 64]));
        assert!(begin(2).is_ok());
        for frames in [1 << 50, usize::MAX] {
            assert!(matches!(begin(frames), Err(IoError::NoSpace { .. })));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    fn write(folder: &Path, header: &str, frames: &[Vec<u8>]) -> PathBuf {
        let path = folder.join("clip.y4m");
        let mut bytes = format!("YUV4MPEG2 {header}\n").into_bytes();
        for frame in frames {
            bytes.extend_from_slice(b"FRAME\n");
            bytes.extend_from_slice(frame);
        }
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn probe(path: &Path) -> Result<ClipInfo, IoError> {
        Video::open(path).map(|video| video.info())
    }

    /// Frames, without counting them before.
    fn open(path: &Path) -> Result<Frames, IoError> {
        let mut source = Source::new(path)?;
        Ok(until_error(move || source.next_frame()))
    }

    fn first(path: &Path) -> DynamicImage {
        open(path).unwrap().next().unwrap().unwrap()
    }

    fn bytes(values: impl IntoIterator<Item = usize>, depth: u32) -> Vec<u8> {
        values.into_iter().flat_map(|value| (value as u16).to_le_bytes()[..if depth > 8 { 2 } else { 1 }].to_vec()).collect()
    }

    /// RGB of a px of the range from 16 to 235, by the definition of BT.601, from 0 to 1.
    fn defined([y, u, v]: [f64; 3]) -> [f64; 3] {
        let [y, u, v] = [(y - 16.0) / 219.0, (u - 128.0) / 224.0, (v - 128.0) / 224.0];
        let (r, b) = (y + 2.0 * (1.0 - 0.299) * v, y + 2.0 * (1.0 - 0.114) * u);
        [r, (y - 0.299 * r - 0.114 * b) / 0.587, b].map(|value| value.clamp(0.0, 1.0))
    }

    #[test]
    fn colour_is_interpolated_from_where_it_lies() {
        let folder = tempfile::tempdir().unwrap();
        let (width, height) = (16, 12);
        // Colour that grows evenly, taken where each kind has its values.
        let u_at = |x: f64, y: f64| 90.0 + 3.0 * x + 2.0 * y;
        for (kind, [down, right], [from_y, from_x], depth) in [
            ("420jpeg", [2, 2], [0.5, 0.5], 8),
            ("420", [2, 2], [0.5, 0.5], 8),
            ("420mpeg2", [2, 2], [0.5, 0.0], 8),
            ("420paldv", [2, 2], [0.0, 0.0], 8),
            ("422", [1, 2], [0.0, 0.0], 8),
            ("411", [1, 4], [0.0, 0.0], 8),
            ("444", [1, 1], [0.0, 0.0], 8),
            ("420p10", [2, 2], [0.5, 0.0], 10),
            ("422p12", [1, 2], [0.0, 0.0], 12),
            ("420p14", [2, 2], [0.5, 0.0], 14),
            ("444p16", [1, 1], [0.0, 0.0], 16),
        ] {
            let scale = f64::from(1_u32 << (depth - 8));
            let [rows, columns] = [height / down, width / right];
            let u = (0..rows * columns).map(|place| {
                let [y, x] = [place / columns * down, place % columns * right].map(|px| px as f64);
                (u_at(x + from_x, y + from_y) * scale).round() as usize
            });
            let luma = std::iter::repeat_n((120.0 * scale) as usize, width * height);
            let v = std::iter::repeat_n((100.0 * scale) as usize, rows * columns);
            let path = write(folder.path(), &format!("W{width} H{height} F5:1 C{kind}"), &[bytes(luma.chain(u).chain(v), depth)]);
            let image = first(&path);
            assert_eq!(image.color().bytes_per_pixel(), if depth > 8 { 6 } else { 3 }, "{kind}");
            let image = image.to_rgb16();
            // At the border there is nothing to interpolate with.
            for (x, y) in (2..9_u32).flat_map(|x| (2..9_u32).map(move |y| (x, y))) {
                let expected = defined([120.0, u_at(f64::from(x), f64::from(y)), 100.0]);
                let tolerance = if depth > 8 { 0.001 } else { 0.006 };
                for (got, expected) in image.get_pixel(x, y).0.into_iter().zip(expected) {
                    assert!((f64::from(got) / 65_535.0 - expected).abs() < tolerance, "{kind}, {x}, {y}: {got} {expected}");
                }
            }
        }
    }

    #[test]
    fn grey_and_alpha_are_read_in_all_their_bits() {
        let folder = tempfile::tempdir().unwrap();
        for depth in [8, 9, 10, 12, 14, 16] {
            let kind = if depth == 8 { "mono".to_owned() } else { format!("mono{depth}") };
            let scale = 1_usize << (depth - 8);
            // Black, a value that only so many bits have, and white.
            let path = write(folder.path(), &format!("W3 H1 C{kind}"), &[bytes([16 * scale, 100 * scale + scale / 2 + 1, 235 * scale], depth)]);
            let image = first(&path);
            assert!(!image.color().has_color(), "{kind}");
            let got = image.to_luma16().into_raw();
            let expected = ((100 * scale + scale / 2 + 1) as f64 / scale as f64 - 16.0) / 219.0 * 65_535.0;
            assert!(
                got[0] <= 2 && got[2] >= 65_533 && (f64::from(got[1]) - expected).abs() <= if depth > 8 { 3.0 } else { 140.0 },
                "{kind}: {got:?}"
            );
            let path = write(folder.path(), &format!("W3 H1 C{kind} XCOLORRANGE=FULL"), &[bytes([0, 255 * scale, 256 * scale - 1], depth)]);
            let got = first(&path).to_luma16().into_raw();
            assert!(got[0] == 0 && got[2] == 65_535, "{kind}: {got:?}");
        }
        let path = write(folder.path(), "W2 H1 C444alpha", &[vec![235, 16, 128, 128, 128, 128, 77, 255]]);
        assert_eq!(first(&path).as_rgba8().unwrap().as_raw(), &[255, 255, 255, 77, 0, 0, 0, 255]);
    }

    #[test]
    fn odd_sizes_and_headers_of_all_sorts_are_read() {
        let folder = tempfile::tempdir().unwrap();
        for (parameters, colour, fps) in [
            ("F5:1 C420jpeg", 4, Fps::new(5, 1)),
            ("C422 F24000:1001 Ip A1:1 XYSCSS=422", 6, Fps::new(24_000, 1001)),
            ("F0:0 Cmono", 0, None),
            ("A0:0 I? XYSCSS=411 XSOMETHING", 3, None),
            ("F25:1 Ib A4:3 XCOLORRANGE=LIMITED", 4, Fps::new(25, 1)),
        ] {
            let path = write(folder.path(), &format!("W3 H3 {parameters}"), &[vec![128; 9 + 2 * colour], vec![128; 9 + 2 * colour]]);
            let frames = open(&path).unwrap();
            let frames: Vec<_> = frames.map(|frame| frame.unwrap().to_rgb8()).collect();
            assert_eq!(frames.len(), 2, "{parameters}");
            assert!(frames[1].dimensions() == (3, 3) && frames[1].pixels().all(|pixel| pixel.0 == [130; 3]), "{parameters}");
            assert_eq!(probe(&path).unwrap(), ClipInfo { size: [3, 3], frames: 2, fps });
        }
    }

    #[test]
    fn kinds_that_are_not_read_are_named_and_not_called_damaged() {
        let folder = tempfile::tempdir().unwrap();
        for kind in ["440", "444p20", "420p7", "mono32", "rgb", "444alphap10", "p10", "mono-8"] {
            let path = write(folder.path(), &format!("W2 H2 F5:1 C{kind}"), &[vec![128; 64]]);
            for error in [open(&path).err().unwrap(), probe(&path).unwrap_err()] {
                let message = error.to_string();
                assert!(message.contains(&format!("`C{kind}`")) && message.contains("not supported") && !message.contains("damaged"), "{message}");
            }
        }
        for header in ["W0 H2", "H2", "Wx H2", "W2 H2 Fx", "W99999999999999999999 H2", "W4000000000 H4000000000"] {
            let path = write(folder.path(), header, &[vec![128; 64]]);
            assert!(matches!(open(&path), Err(IoError::Damaged { .. })), "{header}");
        }
        // Sizes that no memory holds are found by what is not there.
        let path = write(folder.path(), "W16000000 H16000000 C444p16", &[vec![128; 64]]);
        assert!(matches!(open(&path).unwrap().next(), Some(Err(IoError::IncompleteClip { frames: 0, .. }))));
        assert!(matches!(probe(&path), Err(IoError::IncompleteClip { .. })));
    }

    #[test]
    fn what_is_cut_off_is_an_error_that_says_how_much_came() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "W4 H2 F5:1 C420jpeg", &[vec![90; 12], vec![100; 12], vec![110; 12]]);
        let whole = std::fs::read(&path).unwrap();
        let header = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let (read, probed) = (open(&path).map(Iterator::collect::<Result<Vec<_>, _>>), probe(&path));
            if length < header {
                assert!(matches!((read, probed), (Err(IoError::Damaged { .. }), Err(IoError::Damaged { .. }))), "{length}");
                continue;
            }
            let (whole_frames, rest) = ((length - header) / 18, (length - header) % 18);
            match (read.unwrap(), probed) {
                (Ok(frames), Ok(info)) => assert!(rest == 0 && [frames.len(), info.frames] == [whole_frames; 2], "{length}"),
                (Ok(frames), Err(IoError::NoFrames { .. })) => assert!(rest == 0 && frames.is_empty()),
                (Err(read), Err(probed)) => {
                    assert!(rest > 0 && read.to_string() == probed.to_string(), "{length}: {read} {probed}");
                    assert!(read.to_string().contains(&format!("{whole_frames} frames can be read")), "{read}");
                }
                other => panic!("{length}: {other:?}"),
            }
        }
        std::fs::write(&path, [&whole[..], b"trailing"].concat()).unwrap();
        assert!(matches!(open(&path).unwrap().last(), Some(Err(IoError::Damaged { .. }))));
    }

    #[test]
    fn the_matrix_fits_the_size_both_ways() {
        let folder = tempfile::tempdir().unwrap();
        for (size, green) in [([576, 4], 145), ([577, 4], 173), ([2, 1279], 145), ([2, 1280], 173)] {
            let colours = [[0, 255, 0], [255, 0, 0], [0, 0, 255], [13, 200, 77], [255; 3], [0; 3]];
            let pixels: Vec<u8> = colours.iter().cycle().take(size[0] * size[1]).flatten().copied().collect();
            let mut encoder = Encoder::new(Vec::new(), size, Fps::DEFAULT).unwrap();
            encoder.write(&pixels).unwrap();
            let bytes = encoder.finish().unwrap();
            let luma = bytes.windows(6).position(|part| part == b"FRAME\n").unwrap() + 6;
            assert_eq!([bytes[luma], bytes[luma + 4], bytes[luma + 5]], [green, 235, 16], "{size:?}");
            let path = folder.path().join("clip.y4m");
            std::fs::write(&path, bytes).unwrap();
            let back = first(&path).to_rgb8().into_raw();
            assert!(pixels.iter().zip(&back).all(|(a, b)| a.abs_diff(*b) <= 2), "{size:?}");
        }
    }

    #[test]
    fn a_full_disk_is_heard_of() {
        let write = |limit: usize| {
            let mut encoder = Encoder::new(BufWriter::new(Limited(limit)), [CANVAS; 2], Fps::DEFAULT)?;
            (0..2).try_for_each(|level| encoder.write(&levels(level)))?;
            encoder.finish().map(|_| ())
        };
        let whole = (0..1 << 20).find(|&limit| write(limit).is_ok()).unwrap();
        let header = "YUV4MPEG2 W8 H8 F16:1 Ip A1:1 C444 XCOLORRANGE=LIMITED\n".len();
        assert_eq!(whole, header + 2 * (6 + 3 * CANVAS * CANVAS));
    }
}
