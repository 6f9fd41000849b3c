use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use tiling::{BoxError, HostTensor, ScratchError, ScratchFile, Sink};

use super::pending::PendingFile;
use super::sample_file::{SampleFile, bytes_of};
use super::space::reserve;
use super::{FormatKind, Fps, IoError, Target, Writer, output_format_of};

/// What a file of latents says of the samples that they come from, in its metadata (`tilevae.height` and so on).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    /// Height and width of the image, in px.
    pub size: Option<[usize; 2]>,
    /// Frames of the clip.
    pub frames: Option<usize>,
    /// Frames a second.
    pub fps: Option<Fps>,
}

impl Origin {
    pub(super) fn read(text: &HashMap<String, String>) -> Self {
        let number = |key: &str| text.get(key)?.parse::<usize>().ok().filter(|&number| number > 0);
        Self {
            size: number("tilevae.height").zip(number("tilevae.width")).map(|(height, width)| [height, width]),
            frames: number("tilevae.frames"),
            fps: text.get("tilevae.fps").and_then(|fps| fps.parse().ok()),
        }
    }

    pub(super) fn to_metadata(self) -> HashMap<String, String> {
        let [height, width] = [0, 1].map(|axis| self.size.map(|size| size[axis].to_string()));
        let fields = [
            ("tilevae.height", height),
            ("tilevae.width", width),
            ("tilevae.frames", self.frames.map(|frames| frames.to_string())),
            ("tilevae.fps", self.fps.map(|fps| fps.to_string())),
        ];
        fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
    }
}

/// Writes named tensors of one shape in f32, as rank 4 (without frames) or 5. A `.npy` file takes one of them and says nothing of their origin.
///
/// # Errors
/// When the file cannot be written or cannot hold them.
pub fn write_tensors(path: &Path, tensors: &[(&str, &HostTensor)], rank: usize, origin: Origin) -> Result<(), IoError> {
    let format = output_format_of(path)?;
    let Some((_, first)) = tensors.first() else { return Ok(()) };
    let names: Vec<&str> = tensors.iter().map(|(name, _)| *name).collect();
    let target = Target { tensors: &names, rank, origin, ..Target::new(path, first.shape()) };
    if format.kind() != FormatKind::Tensors {
        let kinds = super::endings(|format| format.is_written() && format.kind() == FormatKind::Tensors);
        return Err(IoError::UnknownKind { path: path.to_owned(), kinds });
    }
    let mut writer = format.create(&target)?;
    let joined = HostTensor::join_batch(tensors.iter().map(|(_, tensor)| (*tensor).clone()).collect());
    let extent = joined.extent();
    writer.take([0; 3], extent, joined).map_err(|source| of_sink(path, source))?;
    writer.finish()
}

/// The error of a writer that was given values outside a run.
pub(super) fn of_sink(path: &Path, error: BoxError) -> IoError {
    match error.downcast::<IoError>() {
        Ok(error) => *error,
        Err(error) => IoError::Write { path: path.to_owned(), source: std::io::Error::other(error) },
    }
}

/// The shape to write: without frames when there is one and `rank` is 4.
fn written_shape([b, c, t, h, w]: [usize; 5], rank: usize) -> Vec<usize> {
    if rank == 4 && t == 1 { vec![b, c, h, w] } else { vec![b, c, t, h, w] }
}

/// A [`Writer`] of tensors whose f32 values follow a header. Values are written to their place in the file as they come, and none are kept in memory.
#[derive(Debug)]
pub struct TensorWriter {
    path: PathBuf,
    pending: PendingFile,
    samples: SampleFile,
}

impl TensorWriter {
    /// `header` makes what precedes the values from the shape in which each tensor is written.
    ///
    /// # Errors
    /// When the disk has no room for all of them, or the file cannot be begun.
    pub fn new(target: &Target<'_>, header: impl FnOnce(&[usize]) -> std::io::Result<Vec<u8>>) -> Result<Self, IoError> {
        let path = target.path.to_owned();
        let error = |source| IoError::Write { path: path.clone(), source };
        let [batch, c, t, h, w] = target.shape;
        let shape = [batch.saturating_mul(target.tensors.len()), c, t, h, w];
        let pending = PendingFile::new(&path)?;
        // Sizes that overflow the header's integers.
        reserve(pending.file(), &pending.lies_in(), bytes_of(shape))?;
        let header = header(&written_shape(target.shape, target.rank)).map_err(error)?;
        reserve(pending.file(), &pending.lies_in(), bytes_of(shape).saturating_add(header.len() as u64))?;
        pending.file().write_all(&header).map_err(error)?;
        let file = ScratchFile::from_file(pending.file().try_clone().map_err(error)?, pending.lies_in());
        Ok(Self { samples: SampleFile::in_file(file, header.len() as u64, shape), pending, path })
    }
}

impl Sink for TensorWriter {
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        self.samples.take(start, extent, piece).map_err(|error| match error.downcast::<ScratchError>() {
            Ok(error) => IoError::Write { path: self.path.clone(), source: error.source }.into(),
            Err(error) => error,
        })
    }
}

impl Writer for TensorWriter {
    fn finish(self: Box<Self>) -> Result<(), IoError> {
        self.pending.publish()
    }
}
