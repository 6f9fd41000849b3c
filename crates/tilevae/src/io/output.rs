use std::path::{Path, PathBuf};

use tiling::{BoxError, HostTensor, Sink};
use vae_core::Posterior;

use super::files::Files;
use super::format::batch_paths;
use super::{Format, FormatKind, Fps, IoError, Target, Writer, check_output, check_writable, endings, is_stream, output_format_of};
use crate::IoConfig;

/// Where samples or latents go, and in which format. What can be checked without an input is checked when it is made.
#[derive(Debug, Clone)]
pub struct Output {
    path: PathBuf,
    format: &'static dyn Format,
    fps: Option<Fps>,
}

impl Output {
    /// Samples at `path`, in the format that its name says or, where it says none, as `-` for standard output, in `format`.
    ///
    /// # Errors
    /// When no format is known or several are, or the file cannot be written.
    pub fn samples(path: impl Into<PathBuf>, format: Option<&'static dyn Format>) -> Result<Self, IoError> {
        Self::new(path.into(), format, |_| true)
    }

    /// Latents at `path`: the same, of the formats of tensors.
    ///
    /// # Errors
    /// When no format is known or several are, the format is not one of tensors, or the file cannot be written.
    pub fn latents(path: impl Into<PathBuf>, format: Option<&'static dyn Format>) -> Result<Self, IoError> {
        let output = Self::new(path.into(), format, |format| format.kind() == FormatKind::Tensors)?;
        match output.format.kind() {
            FormatKind::Tensors => Ok(output),
            kind => Err(IoError::NotLatents { path: output.path, kind }),
        }
    }

    /// `listed`: the formats that the message about an unknown one lists.
    fn new(path: PathBuf, given: Option<&'static dyn Format>, listed: impl Fn(&'static dyn Format) -> bool) -> Result<Self, IoError> {
        let has_ending = path.extension().is_some();
        let format = match (given, output_format_of(&path)) {
            (Some(given), Ok(named)) if has_ending && given != named => return Err(IoError::OtherFormat { path }),
            (Some(given), _) => given,
            (None, _) if !has_ending && is_stream(&path) => return Err(IoError::UnnamedFormat { path }),
            (None, Err(IoError::UnknownKind { path, .. })) => {
                return Err(IoError::UnknownKind { path, kinds: endings(|format| format.is_written() && listed(format)) });
            }
            (None, named) => named?,
        };
        check_writable(&path, Some(format))?;
        Ok(Self { path, format, fps: None })
    }

    /// The same output at a rate. Only clips have one, and latents, that remember it for clips.
    ///
    /// # Errors
    /// When the format has no rate.
    pub fn with_fps(self, fps: Option<Fps>) -> Result<Self, IoError> {
        let written_as = match self.format.kind() {
            _ if fps.is_none() => return Ok(self),
            FormatKind::Clip if self.format.is_folder() => "frames, each an image",
            FormatKind::Clip => return Ok(Self { fps, ..self }),
            FormatKind::Image => "an image",
            FormatKind::Tensors => "raw samples",
        };
        Err(IoError::NotAClip { path: self.path, written_as })
    }

    /// The same output of latents, that remember a rate.
    ///
    /// # Errors
    /// When the format has no room for it.
    pub fn remembering_fps(self, fps: Option<Fps>) -> Result<Self, IoError> {
        if fps.is_some() && !self.format.limits().metadata {
            return Err(IoError::NoMetadata { path: self.path });
        }
        Ok(Self { fps, ..self })
    }

    /// Where it is written; a batch of images or clips gets numbers.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The format.
    pub fn format(&self) -> &'static dyn Format {
        self.format
    }

    /// The rate that was asked for.
    pub fn fps(&self) -> Option<Fps> {
        self.fps
    }

    /// The names of the tensors that an encode writes.
    ///
    /// # Errors
    /// When the format cannot hold them.
    pub fn latent_tensors(&self, io: &IoConfig) -> Result<&'static [&'static str], IoError> {
        let tensors: &[&str] = if io.posterior == Posterior::Moments { &["latents", "mean", "logvar"] } else { &["latents"] };
        let fits = tensors.len() <= self.format.limits().tensors;
        if fits { Ok(tensors) } else { Err(IoError::OneTensor { path: self.path.clone() }) }
    }

    /// Begins the file, or those of a batch, of samples of `shape`. `rank` is that of raw samples.
    pub(super) fn begin_samples(&self, shape: [usize; 5], rank: usize, fps: Fps, io: &IoConfig, files: &mut Files) -> Result<OpenOutput, IoError> {
        let is_raw = self.format.kind() == FormatKind::Tensors;
        let items = if is_raw { 1 } else { shape[0] };
        let paths = batch_paths(&self.path, items);
        if items > 1 {
            if is_stream(&self.path) {
                return Err(IoError::BatchToStream { path: self.path.clone(), items });
            }
            for path in &paths {
                files.write("-o", path)?;
                check_writable(path, Some(self.format))?;
            }
        }
        check_output(self.format, &self.path, shape)?;
        let [batch, channels, frames, height, width] = shape;
        let shape = [if is_raw { batch } else { 1 }, channels, frames, height, width];
        let begin = |path: &PathBuf| self.format.create(&Target { rank, fps, jpeg_quality: io.jpeg_quality, ..Target::new(path, shape) });
        Ok(OpenOutput { writers: paths.iter().map(begin).collect::<Result<_, _>>()?, paths, channels })
    }
}

/// A file that is being written, or those of a batch.
pub(super) struct OpenOutput {
    /// One for each item of a batch, or one for all.
    writers: Vec<Box<dyn Writer>>,
    paths: Vec<PathBuf>,
    channels: usize,
}

impl OpenOutput {
    /// Channels of what is written.
    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    /// Puts the files in their places, and gives their names.
    pub(super) fn finish(self) -> Result<Vec<PathBuf>, IoError> {
        self.writers.into_iter().try_for_each(Writer::finish)?;
        Ok(self.paths)
    }
}

impl Sink for OpenOutput {
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        let items = piece.split_batch(self.writers.len());
        self.writers.iter_mut().zip(items).try_for_each(|(writer, item)| writer.take(start, extent, item))
    }

    fn rounds_to_eight_bits(&self) -> bool {
        self.writers.iter().all(|writer| writer.rounds_to_eight_bits())
    }
}
