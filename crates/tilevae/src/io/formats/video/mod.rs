//! Video of any kind, through an installed ffmpeg.

mod process;
mod said;

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout};

use image::DynamicImage;
use image::codecs::pnm::PnmDecoder;

use self::process::{Process, Program, Waiting};
use self::said::{About, Said, VideoStream};
use super::super::pending::PendingFile;
use super::super::{ClipInfo, ClipWriter, Format, FormatKind, Fps, FrameReader, FrameWriter, Frames, IoError, Reader, Target, Writer, until_error};

/// Video that ffmpeg reads and writes.
pub(super) struct Video;

impl Format for Video {
    fn name(&self) -> &'static str {
        "video"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["mp4", "webm", "mkv", "mov", "m4v", "avi"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Clip
    }

    /// ISO media files, and Matroska.
    fn matches(&self, head: &[u8]) -> bool {
        matches!(head, [_, _, _, _, b'f', b't', b'y', b'p', ..] | [0x1a, 0x45, 0xdf, 0xa3, ..])
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        Ok(Reader::Frames(Box::new(Stream::open(Program::installed(), path)?)))
    }

    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        Ok(Box::new(ClipWriter::new(target, FileWriter::new(&Program::installed(), target)?)))
    }
}

/// How RGB becomes luma and colour, where nothing says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Matrix {
    /// ITU-R BT.601.
    Bt601,
    /// ITU-R BT.709.
    Bt709,
}

impl Matrix {
    /// That of HD for what is larger than PAL, as players take it.
    pub(super) fn of([height, width]: [usize; 2]) -> Self {
        if width >= 1280 || height > 576 { Self::Bt709 } else { Self::Bt601 }
    }
}

/// Interpolates colour between px, and rounds to the nearest value.
const SCALE: &str = "scale=flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp";

/// A relative name that begins with `-` would be taken for an option, and one with a colon for a protocol.
fn argument(path: &Path) -> PathBuf {
    if path.is_relative() { Path::new(".").join(path) } else { path.to_owned() }
}

/// The first stream of video that is no image on the cover.
const STREAM: [&str; 2] = ["-map", "0:V:0"];

/// Arguments that read a file, and say at which level each message is.
fn reading<'a>(level: &'a str, file: &'a Path) -> Vec<&'a OsStr> {
    let mut arguments: Vec<&OsStr> = ["-nostdin", "-hide_banner", "-nostats", "-v", level, "-i"].map(OsStr::new).to_vec();
    arguments.push(file.as_os_str());
    arguments.extend(STREAM.map(OsStr::new));
    arguments
}

/// What is known of a video without decoding it: its packets, and what ffmpeg says of it.
struct Overview {
    /// Frames that are shown.
    frames: usize,
    /// The rate by the times of the first and the last frame.
    mean: Option<Fps>,
    is_even: bool,
    said: Said,
    is_whole: bool,
}

impl Overview {
    fn new(program: &Program, path: &Path) -> Result<Self, IoError> {
        let file = argument(path);
        let mut arguments = reading("level+info", &file);
        arguments.extend(["-c", "copy", "-f", "framecrc", "-"].map(OsStr::new));
        let mut process = Process::start(program, path, "read", &arguments, false)?;
        let waiting = process.waiting();
        let mut lines = BufReader::new(process.take_stdout().expect("it is piped"));
        let (mut tick, mut frames, mut times) = ([1_u64, 1], 0, Vec::new());
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = waiting.during(|| lines.by_ref().take(1 << 12).read_until(b'\n', &mut line));
            if read.map_err(|source| IoError::Read { path: path.to_owned(), source })? == 0 {
                break;
            }
            let line = String::from_utf8_lossy(&line);
            if let Some(ratio) = line.strip_prefix("#tb 0: ") {
                let sides = ratio.trim().split_once('/').and_then(|(a, b)| Some([a.parse().ok()?, b.parse().ok()?]));
                tick = sides.unwrap_or(tick);
            } else if !line.starts_with('#') {
                // Stream, time of decoding, time of showing, duration, bytes, checksum, and flags, if any.
                let fields: Vec<&str> = line.split(',').map(str::trim).collect();
                let flags = fields.iter().find_map(|field| u32::from_str_radix(field.strip_prefix("F=0x")?, 16).ok()).unwrap_or_default();
                if flags & DISCARDED == 0 && fields.len() >= 6 {
                    frames += 1;
                    times.extend(fields[2].parse::<i64>().ok().filter(|&time| time != i64::MIN));
                }
            }
        }
        let (status, said) = process.end()?;
        times.sort_unstable();
        let gaps = times.windows(2).map(|pair| pair[1].abs_diff(pair[0]));
        let (least, most) = (gaps.clone().min().unwrap_or(0), gaps.max().unwrap_or(0));
        let mean = match times[..] {
            [first, .., last] if times.len() == frames => {
                let ticks = u128::from(last.abs_diff(first)) * u128::from(tick[0]);
                Fps::of((frames as u128 - 1) * u128::from(tick[1]), ticks)
            }
            _ => None,
        };
        // Times in a container are rounded; some containers have none.
        let is_even = mean.is_none() || most <= least + least / 4 + 1;
        Ok(Self { frames, mean, is_even, said, is_whole: status.success() })
    }

    /// The rate: the nominal one, if frames come at it.
    fn rate(&self, nominal: Option<Fps>) -> Option<Fps> {
        let Some(mean) = self.mean else { return nominal };
        let is_nominal = |nominal: &Fps| {
            let intervals = self.frames as f64 - 1.0;
            (intervals / mean.value() * nominal.value() - intervals).abs() <= 0.5
        };
        nominal.filter(is_nominal).or(Some(mean))
    }

    /// Frames that a file of its duration should have; not known where they come at unequal times, as they do where some were lost.
    fn expected(&self, fps: Option<Fps>) -> Option<usize> {
        Some((self.said.seconds()? * fps?.value()).round() as usize).filter(|_| self.is_even)
    }
}

/// The flag of a packet that is decoded and not shown.
const DISCARDED: u32 = 4;

/// What ffmpeg gives frames with, which other versions do not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timing {
    /// `-fps_mode`, from 5.1 on.
    New,
    /// `-vsync`, until 8.
    Old,
}

impl Timing {
    /// Every frame once, ignoring timestamps.
    fn arguments(self) -> [&'static str; 2] {
        match self {
            Self::New => ["-fps_mode", "passthrough"],
            Self::Old => ["-vsync", "0"],
        }
    }
}

/// Size and rate of what is decoded, from the header that the first frame would get in another format.
struct Decoded {
    size: [usize; 2],
    fps: Option<Fps>,
    timing: Timing,
}

impl Decoded {
    fn new(program: &Program, path: &Path) -> Result<Option<Self>, IoError> {
        let file = argument(path);
        for timing in [Timing::New, Timing::Old] {
            let mut arguments = reading("level+error", &file);
            arguments.extend(timing.arguments().map(OsStr::new));
            arguments.extend(["-frames:v", "1", "-pix_fmt", "yuv420p", "-f", "yuv4mpegpipe", "-"].map(OsStr::new));
            let mut process = Process::start(program, path, "read", &arguments, false)?;
            let mut stdout = process.take_stdout().expect("it is piped");
            let mut bytes = Vec::new();
            let read = process.waiting().during(|| stdout.by_ref().take(256).read_to_end(&mut bytes));
            read.map_err(|source| IoError::Read { path: path.to_owned(), source })?;
            let header = String::from_utf8_lossy(&bytes);
            if let Some(parameters) = header.lines().next().and_then(|line| line.strip_prefix("YUV4MPEG2 ")) {
                let value = |name: char| parameters.split(' ').find_map(|parameter| parameter.strip_prefix(name));
                let side = |name| value(name).and_then(|side| side.parse().ok());
                let fps = value('F').and_then(|rate| rate.split_once(':')).and_then(|(a, b)| Fps::new(a.parse().ok()?, b.parse().ok()?));
                return Ok(side('H').zip(side('W')).map(|(height, width)| Self { size: [height, width], fps, timing }));
            }
            let (_, said) = process.end()?;
            if !said.all().is_some_and(|said| said.contains("fps_mode")) {
                break;
            }
        }
        Ok(None)
    }
}

/// Takes what ffmpeg complained of as an error, where frames are missing or damaged, or as a warning.
fn judge(path: &Path, said: &Said, is_whole: bool, frames: usize, expected: Option<usize>) -> Result<(), IoError> {
    let says = |text: String| format!("ffmpeg says: {text}");
    let incomplete =
        |text: String| IoError::IncompleteClip { path: path.to_owned(), frames, expected: expected.filter(|&all| all > frames), message: says(text) };
    if !is_whole && frames == 0 {
        let message = said.all().unwrap_or_else(|| "it says nothing".to_owned());
        return Err(IoError::Ffmpeg { path: path.to_owned(), message });
    }
    if let Some(text) = said.about(About::Frames) {
        return Err(incomplete(text));
    }
    let is_all_there = expected.is_some_and(|all| frames >= all);
    match said.about(About::Container) {
        Some(text) if is_all_there => tracing::warn!("{}: all {frames} frames were read; {}", path.display(), says(text)),
        Some(text) => return Err(incomplete(text)),
        None => {}
    }
    if !is_whole {
        return Err(incomplete(said.all().unwrap_or_else(|| "nothing, and fails".to_owned())));
    }
    if let Some(text) = said.about(About::Else) {
        tracing::warn!("{}: {}", path.display(), says(text));
    }
    if let Some(all) = expected.filter(|&all| frames + (all / 20).max(2) < all && !said.may_guess_seconds()) {
        tracing::warn!("{} has {frames} frames, though it lasts as long as {all}", path.display());
    }
    Ok(())
}

/// So that a missing file is not one more of ffmpeg's complaints.
fn check_readable(path: &Path) -> Result<(), IoError> {
    std::fs::File::open(path).map(drop).map_err(|source| IoError::Read { path: path.to_owned(), source })
}

/// A video of which packets are counted and one frame is decoded.
struct Stream {
    program: Program,
    path: PathBuf,
    overview: Overview,
    decoded: Option<Decoded>,
    fps: Option<Fps>,
}

impl Stream {
    /// Opens a file in which all frames seem to be there.
    fn open(program: Program, path: &Path) -> Result<Self, IoError> {
        let stream = Self::probe(program, path)?;
        let Overview { said, is_whole, frames, .. } = &stream.overview;
        judge(path, said, *is_whole, *frames, stream.overview.expected(stream.fps))?;
        if stream.decoded.is_none() || *frames == 0 {
            return Err(IoError::NoFrames { path: path.to_owned() });
        }
        Ok(stream)
    }

    fn probe(program: Program, path: &Path) -> Result<Self, IoError> {
        check_readable(path)?;
        let overview = Overview::new(&program, path)?;
        let decoded = Decoded::new(&program, path)?;
        let fps = overview.rate(decoded.as_ref().and_then(|decoded| decoded.fps));
        Ok(Self { program, path: path.to_owned(), overview, decoded, fps })
    }
}

impl FrameReader for Stream {
    fn info(&self) -> ClipInfo {
        let size = self.decoded.as_ref().map_or([0; 2], |decoded| decoded.size);
        ClipInfo { size, frames: self.overview.frames, fps: self.fps }
    }

    /// Frames are netpbm images, which have their size in the header, rotated by the video's metadata.
    fn frames(self: Box<Self>) -> Result<Frames, IoError> {
        let Self { program, path, overview, decoded, fps } = *self;
        let Some(video) = &overview.said.video else {
            judge(&path, &overview.said, overview.is_whole, 0, None)?;
            return Err(IoError::NoFrames { path });
        };
        if !overview.is_even
            && let Some(fps) = fps
        {
            tracing::warn!("the frames of {} do not come at one rate: {fps} a second make it as long", path.display());
        }
        for what in ignored(video) {
            tracing::warn!("{}: {what}, which is ignored", path.display());
        }
        let (codec, pixels) = match (video.has_alpha(), video.is_deep()) {
            (false, false) => ("ppm", "rgb24"),
            (false, true) => ("ppm", "rgb48be"),
            (true, false) => ("pam", "rgba"),
            (true, true) => ("pam", "rgba64be"),
        };
        let is_hd = decoded.as_ref().is_some_and(|decoded| Matrix::of(decoded.size) == Matrix::Bt709);
        let matrix = if is_hd && video.lacks_matrix() { ":in_color_matrix=bt709" } else { "" };
        let filter = format!("{SCALE}{matrix},format={pixels}");
        let timing = decoded.map_or(Timing::New, |decoded| decoded.timing);
        let file = argument(&path);
        let mut arguments = reading("level+info", &file);
        arguments.extend(timing.arguments().map(OsStr::new));
        arguments.extend(["-vf", &filter, "-f", "image2pipe", "-c:v", codec, "-"].map(OsStr::new));
        let mut process = Process::start(&program, &path, "read", &arguments, false)?;
        let stdout = BufReader::with_capacity(1 << 20, process.take_stdout().expect("it is piped"));
        let (waiting, expected) = (process.waiting(), overview.expected(fps));
        let mut decoding = Decoding { path, process, waiting, stdout, frames: 0, expected };
        Ok(until_error(move || decoding.next_frame()))
    }
}

/// What is ignored of a video, in words.
fn ignored(video: &VideoStream) -> Vec<String> {
    let mut ignored = Vec::new();
    if video.is_interlaced {
        ignored.push("its frames are interlaced".to_owned());
    }
    if let Some(aspect) = &video.aspect {
        ignored.push(format!("its px are not square ({aspect})"));
    }
    let [_, primaries, transfer] = &video.colour;
    if matches!(&transfer[..], "smpte2084" | "arib-std-b67") || primaries.starts_with("bt2020") {
        let names = [&primaries[..], transfer].iter().filter(|name| !name.is_empty()).copied().collect::<Vec<_>>().join(", ");
        ignored.push(format!("its colours are those of HDR or of a wide gamut ({names})"));
    }
    ignored
}

/// An ffmpeg that decodes.
struct Decoding {
    path: PathBuf,
    process: Process,
    waiting: Waiting,
    stdout: BufReader<ChildStdout>,
    frames: usize,
    expected: Option<usize>,
}

impl Decoding {
    fn next_frame(&mut self) -> Result<Option<DynamicImage>, IoError> {
        let waiting = self.waiting.clone();
        let is_empty = waiting.during(|| self.stdout.fill_buf().map(<[u8]>::is_empty));
        if is_empty.map_err(|source| IoError::Read { path: self.path.clone(), source })? {
            self.end()?;
            return Ok(None);
        }
        match waiting.during(|| PnmDecoder::new(&mut self.stdout).and_then(DynamicImage::from_decoder)) {
            Ok(frame) => {
                self.frames += 1;
                Ok(Some(frame))
            }
            // ffmpeg ended within a frame: its messages explain more.
            Err(source) => Err(self.end().err().unwrap_or_else(|| IoError::Image { path: self.path.clone(), source })),
        }
    }

    fn end(&mut self) -> Result<(), IoError> {
        let (status, said) = self.process.end()?;
        judge(&self.path, &said, status.success(), self.frames, self.expected)
    }
}

/// Hands raw frames to ffmpeg, which chooses the codec by the file's name.
struct FileWriter {
    pending: PendingFile,
    size: [usize; 2],
    encoding: Encoding,
}

impl FileWriter {
    /// One frame is written first and discarded, so that what the codec or the container refuses (sizes, rates, a missing codec) is known before work
    /// is spent.
    fn new(program: &Program, target: &Target<'_>) -> Result<Self, IoError> {
        let (path, size) = (target.path.to_owned(), size_of(target));
        let pending = PendingFile::named(&path)?;
        let name = pending.name().unwrap_or_else(|| path.clone());
        let mut trial = Encoding::start(program, target, &name, &["-frames:v", "1"])?;
        trial.write_black(size).and_then(|()| trial.end())?;
        let even = even(size);
        if even != size {
            let [from, to] = [size, even].map(|[height, width]| format!("{height}x{width}"));
            tracing::warn!(
                "{}: {from} px (height, width) become {to}, with the last row or column twice: most codecs take even sides only",
                path.display()
            );
        }
        let encoding = Encoding::start(program, target, &name, &[])?;
        Ok(Self { pending, size, encoding })
    }
}

impl FrameWriter for FileWriter {
    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError> {
        if even(self.size) == self.size { self.encoding.write(pixels) } else { self.encoding.write(&repeated(pixels, self.size)) }
    }

    fn finish(self: Box<Self>) -> Result<(), IoError> {
        let Self { pending, mut encoding, .. } = *self;
        encoding.end()?;
        pending.publish()
    }
}

/// Height and width of the frames.
fn size_of(target: &Target<'_>) -> [usize; 2] {
    let [.., height, width] = target.shape;
    [height, width]
}

/// Most players want colour at half the size, which wants even sides.
fn even(size: [usize; 2]) -> [usize; 2] {
    size.map(|side| side.next_multiple_of(2))
}

/// RGB with the last row and column twice, where their number is odd.
fn repeated(pixels: &[u8], size: [usize; 2]) -> Vec<u8> {
    let ([height, width], [even_height, even_width]) = (size, even(size));
    let mut larger = Vec::with_capacity(even_height * even_width * 3);
    for y in 0..even_height {
        let row = &pixels[y.min(height - 1) * width * 3..][..width * 3];
        larger.extend_from_slice(row);
        larger.extend_from_slice(&row[row.len() - 3 * (even_width - width)..]);
    }
    larger
}

/// An ffmpeg that encodes.
struct Encoding {
    path: PathBuf,
    process: Process,
    stdin: Option<ChildStdin>,
}

impl Encoding {
    fn start(program: &Program, target: &Target<'_>, output: &Path, limits: &[&str]) -> Result<Self, IoError> {
        let [height, width] = even(size_of(target));
        let (size, fps) = (format!("{width}x{height}"), target.fps.to_string());
        let matrix = match Matrix::of(size_of(target)) {
            Matrix::Bt601 => "smpte170m",
            Matrix::Bt709 => "bt709",
        };
        let filter = format!(
            "{SCALE}:out_color_matrix={matrix}:out_range=tv,format=yuv420p,setparams=range=tv:colorspace={matrix}:color_primaries=bt709:color_trc=bt709"
        );
        let mut arguments: Vec<OsString> = [
            &["-hide_banner", "-nostats", "-v", "level+warning", "-xerror", "-y"][..],
            &["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", &size, "-r", &fps, "-i", "-", "-vf", &filter],
            &["-colorspace", matrix, "-color_primaries", "bt709", "-color_trc", "bt709", "-color_range", "tv"],
            limits,
        ]
        .concat()
        .into_iter()
        .map(OsString::from)
        .collect();
        arguments.push(argument(output).into());
        let arguments: Vec<&OsStr> = arguments.iter().map(OsString::as_os_str).collect();
        let mut process = Process::start(program, target.path, "written", &arguments, true)?;
        let stdin = process.take_stdin();
        Ok(Self { path: target.path.to_owned(), process, stdin })
    }

    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        self.process.waiting().during(|| stdin.write_all(pixels)).map_err(|source| {
            // ffmpeg ended: its messages explain more than the broken pipe.
            self.end().err().unwrap_or_else(|| IoError::Write { path: self.path.clone(), source })
        })
    }

    fn write_black(&mut self, size: [usize; 2]) -> Result<(), IoError> {
        let [height, width] = even(size);
        let row = vec![0; 3 * width];
        (0..height).try_for_each(|_| self.write(&row))
    }

    /// An ffmpeg that complains of an error has written nothing that could be relied on.
    fn end(&mut self) -> Result<(), IoError> {
        self.stdin = None;
        let (status, said) = self.process.end()?;
        match said.all() {
            None if status.success() => Ok(()),
            text => Err(IoError::Ffmpeg { path: self.path.clone(), message: text.unwrap_or_else(|| status.to_string()) }),
        }
    }
}

#[cfg(test)]
mod tests;
