use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use image::codecs::pnm::PnmDecoder;
use image::{DynamicImage, ImageDecoder};

use super::super::IoError;
use super::super::pending::PendingFile;
use super::{ClipFormat, Fps, FrameWriter, Frames};

/// Starts a program of ffmpeg's.
fn start(path: &Path, verb: &'static str, command: &mut Command) -> Result<Child, IoError> {
    command.stderr(Stdio::piped()).spawn().map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => IoError::NoFfmpeg { path: path.to_owned(), verb },
        _ => IoError::Ffmpeg { path: path.to_owned(), message: source.to_string() },
    })
}

/// A relative name that begins with `-` would be taken for an option, and one with a colon for a protocol.
fn argument(path: &Path) -> PathBuf {
    if path.is_relative() { Path::new(".").join(path) } else { path.to_owned() }
}

/// What ffmpeg said before it ended, and whether it ended well.
fn end(path: &Path, child: &mut Child) -> Result<(), IoError> {
    let mut said = String::new();
    if let Some(mut stderr) = child.stderr.take() {
        let _ = stderr.read_to_string(&mut said);
    }
    let failed = |message: String| IoError::Ffmpeg { path: path.to_owned(), message };
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(failed(if said.trim().is_empty() { status.to_string() } else { said.trim().to_owned() })),
        Err(error) => Err(failed(error.to_string())),
    }
}

/// Frames come as PPM pictures, which say their size, turned as the video says.
pub(super) fn open(path: &Path) -> Result<(Frames, Option<Fps>), IoError> {
    // So that a missing file is not one more of ffmpeg's complaints.
    std::fs::File::open(path).map_err(|source| IoError::Read { path: path.to_owned(), source })?;
    let fps = rate(path);
    let mut command = Command::new("ffmpeg");
    command.args(["-nostdin", "-v", "error", "-i"]).arg(argument(path));
    command.args(["-map", "0:v:0", "-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]);
    let mut child = start(path, "read", command.stdin(Stdio::null()).stdout(Stdio::piped()))?;
    let stdout = BufReader::with_capacity(1 << 20, child.stdout.take().expect("it is piped"));
    Ok((Box::new(Reader { path: path.to_owned(), child, stdout, is_over: false }), fps))
}

/// The rate that ffprobe finds, if there is one.
fn rate(path: &Path) -> Option<Fps> {
    let mut command = Command::new("ffprobe");
    command.args(["-v", "error", "-select_streams", "v:0", "-show_entries", "stream=avg_frame_rate", "-of", "csv=p=0"]).arg(argument(path));
    let output = command.output().ok()?;
    String::from_utf8(output.stdout).ok()?.trim().trim_end_matches(',').parse().ok()
}

struct Reader {
    path: PathBuf,
    child: Child,
    stdout: BufReader<ChildStdout>,
    is_over: bool,
}

impl Reader {
    fn read(&mut self) -> Result<Option<DynamicImage>, IoError> {
        use std::io::BufRead;
        let is_empty = self.stdout.fill_buf().map(<[u8]>::is_empty).map_err(|source| IoError::Read { path: self.path.clone(), source })?;
        if is_empty {
            return end(&self.path, &mut self.child).map(|()| None);
        }
        let picture = |source| IoError::Picture { path: self.path.clone(), source };
        let decoder = PnmDecoder::new(&mut self.stdout).map_err(picture)?;
        let (width, height) = decoder.dimensions();
        let mut pixels = vec![0; usize::try_from(decoder.total_bytes()).unwrap_or(usize::MAX)];
        decoder.read_image(&mut pixels).map_err(picture)?;
        Ok(image::RgbImage::from_raw(width, height, pixels).map(DynamicImage::ImageRgb8))
    }
}

impl Iterator for Reader {
    type Item = Result<DynamicImage, IoError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let frame = self.read().transpose();
        self.is_over = !matches!(frame, Some(Ok(_)));
        frame
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // Whoever stops early leaves it writing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Hands raw frames to ffmpeg, which chooses the codec by the file's name.
pub(super) struct Writer {
    path: PathBuf,
    pending: Option<PendingFile>,
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Writer {
    pub(super) fn new(format: &ClipFormat) -> Result<Self, IoError> {
        let path = format.path.to_owned();
        let pending = PendingFile::named(&path)?;
        let [height, width] = format.size;
        let mut command = Command::new("ffmpeg");
        command.args(["-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", &format!("{width}x{height}")]);
        command.args(["-r", &format.fps.to_string(), "-i", "-"]);
        // Most players want colour at half the size, which wants even sides.
        command.args(["-pix_fmt", "yuv420p", "-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2"]).arg(argument(&pending.name().unwrap_or_default()));
        let mut child = start(&path, "written", command.stdin(Stdio::piped()).stdout(Stdio::null()))?;
        let stdin = child.stdin.take();
        Ok(Self { path, pending: Some(pending), child, stdin })
    }
}

impl FrameWriter for Writer {
    fn write(&mut self, pixels: &[u8]) -> Result<(), IoError> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        stdin.write_all(pixels).map_err(|source| {
            // It went away: what it said tells more than the broken pipe.
            self.stdin = None;
            match end(&self.path, &mut self.child) {
                Err(error) => error,
                Ok(()) => IoError::Write { path: self.path.clone(), source },
            }
        })
    }

    fn finish(mut self: Box<Self>) -> Result<(), IoError> {
        self.stdin = None;
        end(&self.path, &mut self.child)?;
        self.pending.take().map_or(Ok(()), PendingFile::publish)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
