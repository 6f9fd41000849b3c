//! Uncompressed video with a header of one line (`YUV4MPEG2`, of mjpegtools; as ffmpeg extends it).

mod header;
mod planes;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use image::DynamicImage;
use yuv::{YuvChromaSubsampling, YuvConversionMode, YuvPlanarImageMut, YuvRange, rgb_to_yuv444};

use self::header::Header;
use self::planes::{image, standard};
use super::video::Matrix;
use crate::io::pending::PendingFile;
use crate::io::space::reserve;
use crate::io::{ClipInfo, ClipWriter, Format, FormatKind, Fps, FrameReader, FrameWriter, Frames, IoError, Reader, Target, Writer, until_error};

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

    /// Whether a frame follows. Its header is skipped.
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
        image(&self.header, &frame).map(Some).ok_or_else(|| IoError::Unsupported {
            path: self.path.clone(),
            message: format!("it has frames of {}x{} px (height, width)", self.header.height, self.header.width),
        })
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

    /// Writes what is still buffered: dropping a buffer reports no error.
    fn finish(mut self) -> std::io::Result<W> {
        self.to.flush()?;
        Ok(self.to)
    }
}
