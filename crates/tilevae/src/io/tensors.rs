mod axes;
mod stored;

use std::collections::HashMap;
use std::fs::File;
use std::io::{Cursor, Read, Write};
use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use tempfile::NamedTempFile;
use tiling::{BoxError, HostTensor, Sink};
use vae_core::VaeSpec;

pub use axes::Axes;
use axes::{Reading, Unread, resolve};
use stored::{Fault, NPY_MAGIC, Opened, ReadSeek, Stored, ZIP_MAGIC, is_safetensors, open_npy, open_npz, open_safetensors, open_torch, read_values};

use super::pending::PendingFile;
use super::scratch::{SampleFile, bytes_of, scratch_file};
use super::space::reserve;
use super::{FileKind, Fps, IoError, write_atomically};
use crate::{Direction, IoConfig, LatentSpace, NonFinite, OnNonFiniteInput};

/// What a file of latents says of the samples that they come from, in its metadata (`tilevae.height` and so on).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Origin {
    /// Height and width of the picture, in px.
    pub size: Option<[usize; 2]>,
    /// Frames of the clip.
    pub frames: Option<usize>,
    /// Frames a second.
    pub fps: Option<Fps>,
}

impl Origin {
    fn read(text: &HashMap<String, String>) -> Self {
        let number = |key: &str| text.get(key)?.parse::<usize>().ok().filter(|&number| number > 0);
        Self {
            size: number("tilevae.height").zip(number("tilevae.width")).map(|(height, width)| [height, width]),
            frames: number("tilevae.frames"),
            fps: text.get("tilevae.fps").and_then(|fps| fps.parse().ok()),
        }
    }

    fn to_metadata(self) -> HashMap<String, String> {
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

/// The raw tensors of a file: safetensors, also ComfyUI's `.latent`; `.npy`; `.npz`; what `torch.save` writes. What a file is is told by its content.
/// Headers are read when it is opened, values when they are asked for.
#[derive(Debug)]
pub struct Tensors {
    path: PathBuf,
    source: Source,
    stored: Vec<Stored>,
    metadata: HashMap<String, String>,
}

/// Where the bytes are.
#[derive(Debug)]
enum Source {
    /// A file that others can open by its name.
    Named(File),
    Scratch(File),
    Bytes(Vec<u8>),
}

impl Source {
    /// From the first byte on.
    fn reader(&self) -> std::io::Result<Box<dyn ReadSeek + '_>> {
        Ok(match self {
            Self::Named(file) | Self::Scratch(file) => {
                let mut file = file;
                std::io::Seek::rewind(&mut file)?;
                Box::new(std::io::BufReader::new(file))
            }
            Self::Bytes(bytes) => Box::new(Cursor::new(bytes)),
        })
    }

    fn length(&self) -> std::io::Result<u64> {
        match self {
            Self::Named(file) | Self::Scratch(file) => Ok(file.metadata()?.len()),
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
        }
    }

    /// Tensors and metadata, by what the bytes are; `path` is asked where they are nothing that is known.
    fn open(&self, path: &Path) -> Result<Result<Opened, Fault>, IoError> {
        let read = |source| IoError::Read { path: path.to_owned(), source };
        let length = self.length().map_err(read)?;
        let mut head = Vec::new();
        self.reader().map_err(read)?.take(64).read_to_end(&mut head).map_err(read)?;
        let mut reader = self.reader().map_err(read)?;
        let of_arrays = |stored| (stored, HashMap::new());
        if is_safetensors(&head, length) {
            return Ok(open_safetensors(&mut reader, length));
        }
        if head.starts_with(NPY_MAGIC) {
            return Ok(open_npy(&mut reader, length).map(|stored| of_arrays(vec![stored])));
        }
        if length <= 8 {
            return Ok(Err(Fault::Damaged(format!("it has {length} bytes"))));
        }
        if head.starts_with(ZIP_MAGIC) {
            match open_npz(reader, length) {
                Ok(Some(stored)) => return Ok(Ok(of_arrays(stored))),
                Ok(None) => {}
                Err(fault) => return Ok(Err(fault)),
            }
        } else if !matches!(head[..], [0x80, 2..=5, ..]) && !FileKind::of(path).is_ok_and(FileKind::is_tensors) {
            return Err(IoError::UnknownKind { path: path.to_owned(), kinds: FileKind::TENSORS });
        }
        if matches!(self, Self::Named(_)) {
            return Ok(open_torch(path).map(of_arrays));
        }
        // That reader opens files by their names, when it looks what they are.
        let mut named = NamedTempFile::new().map_err(read)?;
        std::io::copy(&mut self.reader().map_err(read)?, &mut named).map_err(read)?;
        Ok(open_torch(named.path()).map(of_arrays))
    }
}

/// One raw tensor, as rank 5.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// `[batch, channels, frames, height, width]`.
    pub block: HostTensor,
    /// 4 or 5: whether it was stored with an axis of frames.
    pub rank: usize,
    /// What the file says of the samples that latents come from.
    pub origin: Origin,
}

impl Tensors {
    /// Opens a file.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is of another kind.
    pub fn read(path: &Path) -> Result<Self, IoError> {
        let read = |source| IoError::Read { path: path.to_owned(), source };
        if path.is_dir() {
            return Err(IoError::UnknownKind { path: path.to_owned(), kinds: FileKind::TENSORS });
        }
        let file = File::open(path).map_err(read)?;
        if file.metadata().map_err(read)?.is_file() { Self::open(path, Source::Named(file)) } else { Self::from_reader(path, file) }
    }

    /// The same of a stream, which is kept in a scratch file; `name` stands for it in messages.
    ///
    /// # Errors
    /// When it cannot be read, is damaged, or is of another kind.
    pub fn from_reader(name: &Path, mut reader: impl Read) -> Result<Self, IoError> {
        let mut file = scratch_file()?;
        std::io::copy(&mut reader, &mut file).map_err(|source| IoError::Read { path: name.to_owned(), source })?;
        Self::open(name, Source::Scratch(file))
    }

    /// The same of bytes in memory.
    ///
    /// # Errors
    /// When they are damaged or of another kind.
    pub fn from_bytes(name: &Path, bytes: Vec<u8>) -> Result<Self, IoError> {
        Self::open(name, Source::Bytes(bytes))
    }

    fn open(path: &Path, source: Source) -> Result<Self, IoError> {
        let (stored, metadata) = source.open(path)?.map_err(|fault| of_fault(path, fault))?;
        Ok(Self { path: path.to_owned(), source, stored, metadata })
    }

    /// The tensor `latents`, or the only one, as this program writes it: `[b, c, h, w]` or `[b, c, t, h, w]`, as stored. Files of other programs are
    /// read by [`input`](Self::input).
    ///
    /// # Errors
    /// When there is none, or it is not of rank 4 or 5, or no float's.
    pub fn latents(self) -> Result<Tensor, IoError> {
        self.own("latents")
    }

    /// The tensor `samples`, or the only one, as this program writes it: `[b, c, h, w]` or `[b, c, t, h, w]`, as stored.
    ///
    /// # Errors
    /// When there is none, or it is not of rank 4 or 5, or no float's.
    pub fn samples(self) -> Result<Tensor, IoError> {
        self.own("samples")
    }

    fn own(self, wanted: &str) -> Result<Tensor, IoError> {
        let chosen = self.find(wanted).or_else(|| (self.stored.len() == 1).then_some(0)).ok_or_else(|| self.lacks(wanted))?;
        let Stored { name, shape, .. } = &self.stored[chosen];
        let reading = match shape.len() {
            4 => Reading::of_axes(Axes::BCHW, shape),
            5 => Reading::of_axes(Axes::BCTHW, shape),
            _ => None,
        };
        let Some(reading) = reading else {
            return Err(IoError::Rank { path: self.path, name: name.clone(), shape: shape.clone() });
        };
        self.values(chosen, reading)
    }

    /// What a run of this direction takes: the latents of a decode, the samples of an encode. Reads no values.
    ///
    /// The tensor is the one that `io.tensor` names, else the one that has a name that programs give it. Which axis is which is told by `io.axes`, else
    /// by the file or the model, where only one way fits.
    ///
    /// # Errors
    /// When there is no such tensor or several, it has no floats, or it can be read in no way or in several.
    pub fn input(self, direction: Direction, spec: &VaeSpec, io: &IoConfig) -> Result<TensorInput, IoError> {
        let chosen = self.choose(direction, io)?;
        let Stored { name, shape, dtype, .. } = &self.stored[chosen];
        if let Err(dtype) = dtype {
            return Err(IoError::Dtype { path: self.path, name: name.clone(), dtype: dtype.clone() });
        }
        let is_own = self.metadata.keys().any(|key| key.starts_with("tilevae."));
        let hint = match (is_own, sides_in_name(name), shape.len()) {
            (true, ..) if shape.len() == 4 => Some(Axes::BCHW),
            (_, Some(3), 4) => Some(Axes::CTHW),
            (_, Some(2), 3) => Some(Axes::CHW),
            _ => None,
        };
        let reading = resolve(shape, direction, spec, io, hint).map_err(|unread| {
            let (path, name, shape) = (self.path.clone(), name.clone(), shape.clone());
            match unread {
                Unread::Ambiguous(message) => IoError::Ambiguous { path, name, shape, message },
                Unread::Unfit(message) => IoError::Shape { path, name, shape, message },
            }
        })?;
        let is_comfy = direction == Direction::Decode && name == COMFY;
        // Before there was that mark, latents were stored as Stable Diffusion 1's, scaled; ComfyUI divides all by the same number.
        let factor = (is_comfy && self.find("latent_format_version_0").is_none()).then_some((1.0 / 0.18215_f64) as f32);
        let norm = &spec.latent_norm;
        if direction == Direction::Decode && io.latent_space == LatentSpace::Diffusion && self.is_kohya() && *norm != vae_core::LatentNorm::identity()
        {
            tracing::warn!(
                "{} looks like a cache of kohya's scripts, which for most models is of the VAE's own latents; io.latent_space = \"vae\" reads them as such",
                self.path.display()
            );
        }
        let to_diffusion = (is_comfy && io.latent_space == LatentSpace::Diffusion).then(|| norm.clone());
        let what = if direction == Direction::Decode { "latents" } else { "samples" };
        Ok(TensorInput { chosen, reading, factor, to_diffusion, on_non_finite: io.on_non_finite, what, tensors: self })
    }

    fn find(&self, wanted: &str) -> Option<usize> {
        self.stored.iter().position(|stored| stored.name == wanted)
    }

    /// Beside the latents of a picture lies where it was cut out.
    fn is_kohya(&self) -> bool {
        self.stored.iter().any(|stored| stored.name.starts_with("crop_ltrb"))
    }

    fn choose(&self, direction: Direction, io: &IoConfig) -> Result<usize, IoError> {
        if let Some(wanted) = &io.tensor {
            return self.find(wanted).ok_or_else(|| self.lacks(wanted));
        }
        let names: &[&str] = match direction {
            Direction::Decode => &["latents", COMFY, "latent"],
            Direction::Encode => &["samples"],
        };
        // A dictionary may lie in another.
        let nested = |name: &str| {
            let mut found =
                (0..self.stored.len()).filter(|&index| self.stored[index].name.strip_suffix(name).is_some_and(|outer| outer.ends_with('.')));
            found.next().filter(|_| found.next().is_none())
        };
        if let Some(chosen) = names.iter().find_map(|name| self.find(name)).or_else(|| names.iter().find_map(|name| nested(name))) {
            return Ok(chosen);
        }
        let of_sizes: Vec<usize> =
            (0..self.stored.len()).filter(|&index| direction == Direction::Decode && sides_in_name(&self.stored[index].name).is_some()).collect();
        match of_sizes[..] {
            [chosen] => return Ok(chosen),
            [_, _, ..] => {
                let found = of_sizes.iter().map(|&index| self.stored[index].name.clone()).collect();
                return Err(IoError::SeveralTensors { path: self.path.clone(), found: some_of(found) });
            }
            [] => {}
        }
        // A node of ComfyUI hands latents around under this name.
        let samples = (direction == Direction::Decode).then(|| self.find("samples").or_else(|| nested("samples"))).flatten();
        samples.or_else(|| (self.stored.len() == 1).then_some(0)).ok_or_else(|| self.lacks(names[0]))
    }

    fn lacks(&self, wanted: &str) -> IoError {
        let mut found: Vec<String> = self.stored.iter().map(|stored| stored.name.clone()).collect();
        found.sort();
        IoError::NoTensor { path: self.path.clone(), wanted: wanted.to_owned(), found: some_of(found) }
    }

    fn values(&self, chosen: usize, reading: Reading) -> Result<Tensor, IoError> {
        let stored = &self.stored[chosen];
        let number =
            stored.dtype.as_ref().map_err(|dtype| IoError::Dtype { path: self.path.clone(), name: stored.name.clone(), dtype: dtype.clone() })?;
        let read = |source| IoError::Read { path: self.path.clone(), source };
        let reader = self.source.reader().map_err(read)?;
        let values = read_values(stored, *number, reader, self.source.length().map_err(read)?).map_err(|fault| of_fault(&self.path, fault))?;
        let block = HostTensor::new(reading.sides, reading.arrange(values, stored.is_fortran));
        let block = block.ok_or_else(|| of_fault(&self.path, Fault::Damaged("a tensor has not as many values as its shape says".to_owned())))?;
        Ok(Tensor { block, rank: reading.rank(), origin: Origin::read(&self.metadata) })
    }
}

/// The name that ComfyUI gives latents.
const COMFY: &str = "latent_tensor";

/// How many sides a name like `latents_64x64` (of kohya's scripts) or `latents_1x64x64_bfloat16` (of musubi-tuner) tells.
fn sides_in_name(name: &str) -> Option<usize> {
    let mut parts = name.strip_prefix("latents_")?.splitn(2, '_');
    let sides: Vec<&str> = parts.next()?.split('x').collect();
    let is_size = matches!(sides.len(), 2 | 3) && sides.iter().all(|side| !side.is_empty() && side.bytes().all(|byte| byte.is_ascii_digit()));
    is_size.then_some(sides.len())
}

/// As many names as a message can hold.
fn some_of(mut names: Vec<String>) -> Vec<String> {
    let more = names.len().saturating_sub(12);
    if more > 0 {
        names.truncate(12);
        names.push(format!("and {more} more"));
    }
    names
}

fn of_fault(path: &Path, fault: Fault) -> IoError {
    match fault {
        Fault::Read(source) => IoError::Read { path: path.to_owned(), source },
        Fault::Damaged(message) => IoError::Damaged { path: path.to_owned(), message },
        Fault::Unsupported(message) => IoError::Unsupported { path: path.to_owned(), message },
    }
}

/// The tensor of a file that a run takes. Its values are not read yet.
#[derive(Debug)]
pub struct TensorInput {
    tensors: Tensors,
    chosen: usize,
    reading: Reading,
    /// What the file's values are to be multiplied by.
    factor: Option<f32>,
    /// Of latents that are the VAE's own where a pipeline's are configured.
    to_diffusion: Option<vae_core::LatentNorm>,
    on_non_finite: OnNonFiniteInput,
    what: &'static str,
}

impl TensorInput {
    /// `[batch, channels, frames, height, width]`.
    pub fn shape(&self) -> [usize; 5] {
        self.reading.sides
    }

    /// 4, or 5 where it is stored with an axis of frames.
    pub fn rank(&self) -> usize {
        self.reading.rank()
    }

    /// What the file says of the samples that latents come from.
    pub fn origin(&self) -> Origin {
        Origin::read(&self.tensors.metadata)
    }

    /// Reads the values. Floats of any width become f32. Latents come in the configured latent space, also where the file says that they are in
    /// another (ComfyUI's are the VAE's own).
    ///
    /// # Errors
    /// When they cannot be read, or some are not finite in f32 and the configuration refuses such.
    pub fn read(self) -> Result<Tensor, IoError> {
        let Self { tensors, chosen, reading, factor, to_diffusion, on_non_finite, what } = self;
        let mut tensor = tensors.values(chosen, reading)?;
        if let Some(factor) = factor {
            tensor.block.data_mut().iter_mut().for_each(|value| *value *= factor);
        }
        if let Some(norm) = to_diffusion {
            norm.to_diffusion(&mut tensor.block);
        }
        match NonFinite::in_block(&tensor.block).filter(|_| on_non_finite == OnNonFiniteInput::Refuse) {
            Some(found) => Err(IoError::NonFinite { path: tensors.path, what, found }),
            None => Ok(tensor),
        }
    }
}

/// The shape to write: without frames when there is one and `rank` is 4.
fn written_shape([b, c, t, h, w]: [usize; 5], rank: usize) -> Vec<usize> {
    if rank == 4 && t == 1 { vec![b, c, h, w] } else { vec![b, c, t, h, w] }
}

/// The start of a `.safetensors` file that holds f32 tensors, one after the other.
fn safetensors_header(tensors: &[(&str, Vec<usize>)], origin: Origin) -> std::io::Result<Vec<u8>> {
    let mut infos = Vec::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<usize>() * size_of::<f32>();
        infos.push(((*name).to_owned(), TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (start, end) }));
    }
    let mut metadata = origin.to_metadata();
    if tensors.iter().any(|(_, shape)| shape.len() == 4 && shape[0] > 1) {
        // A video model could take the batch for frames.
        metadata.insert("tilevae.axes".to_owned(), Axes::BCHW.to_string());
    }
    let metadata = Some(metadata).filter(|metadata| !metadata.is_empty());
    let header = Metadata::new(metadata, infos).map_err(std::io::Error::other)?;
    // A hash map has another order each time; a file has the same bytes.
    let mut header = serde_json::to_value(&header)?;
    if let Some(serde_json::Value::Object(metadata)) = header.get_mut("__metadata__") {
        metadata.sort_keys();
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}

/// The start of a `.npy` file that holds an f32 array.
fn npy_header(shape: &[usize]) -> std::io::Result<Vec<u8>> {
    let shape: Vec<u64> = shape.iter().map(|&side| side as u64).collect();
    let mut header = Vec::new();
    // The values come later: what is wanted is what the crate writes before the first.
    drop(npyz::WriteOptions::<f32>::new().default_dtype().shape(&shape).writer(&mut header).begin_nd()?);
    Ok(header)
}

/// The start of a file of a kind, and whether it is one that is written.
fn header_of(path: &Path, kind: FileKind, tensors: &[(&str, Vec<usize>)], origin: Origin) -> Result<Vec<u8>, IoError> {
    let header = match (kind, tensors) {
        (FileKind::Safetensors, _) => safetensors_header(tensors, origin),
        (FileKind::Npy, [(_, shape)]) => npy_header(shape),
        (FileKind::Npy, _) => return Err(IoError::OneTensor { path: path.to_owned() }),
        (FileKind::Foreign | FileKind::Picture(_) | FileKind::Clip(_), _) => {
            return Err(IoError::UnknownKind { path: path.to_owned(), kinds: FileKind::WRITTEN_TENSORS });
        }
    };
    header.map_err(|source| IoError::Write { path: path.to_owned(), source })
}

/// Writes named tensors in f32, as rank 4 (without frames) or 5. A `.npy` file takes one of them and says nothing of their origin.
///
/// # Errors
/// When the file cannot be written or cannot hold them.
pub fn write_tensors(path: &Path, tensors: &[(&str, &HostTensor)], rank: usize, origin: Origin) -> Result<(), IoError> {
    write_tensors_of_kind(path, FileKind::of(path)?, tensors, rank, origin)
}

/// The same of a kind that the name need not say.
///
/// # Errors
/// Those of [`write_tensors`].
pub fn write_tensors_of_kind(path: &Path, kind: FileKind, tensors: &[(&str, &HostTensor)], rank: usize, origin: Origin) -> Result<(), IoError> {
    let error = |source| IoError::Write { path: path.to_owned(), source };
    let shapes: Vec<(&str, Vec<usize>)> = tensors.iter().map(|(name, block)| (*name, written_shape(block.shape(), rank))).collect();
    let header = header_of(path, kind, &shapes, origin)?;
    write_atomically(path, |writer| {
        writer.write_all(&header).map_err(error)?;
        let mut values = tensors.iter().flat_map(|(_, block)| block.data());
        values.try_for_each(|value| writer.write_all(&value.to_le_bytes())).map_err(error)
    })
}

/// A sink that writes samples to a raw tensor file as they come, and keeps none in memory.
#[derive(Debug)]
pub struct TensorSink {
    path: PathBuf,
    pending: PendingFile,
    samples: SampleFile,
}

impl TensorSink {
    /// Samples of `shape` (`[batch, channels, frames, height, width]`) to be written at `path`, as rank 4 (without frames) or 5.
    ///
    /// # Errors
    /// When the name is not a tensor file's, the disk has no room for all of them, or the file cannot be begun.
    pub fn new(path: &Path, shape: [usize; 5], rank: usize) -> Result<Self, IoError> {
        Self::of_kind(path, FileKind::of(path)?, shape, rank)
    }

    /// The same of a kind that the name need not say.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn of_kind(path: &Path, kind: FileKind, shape: [usize; 5], rank: usize) -> Result<Self, IoError> {
        let error = |source| IoError::Write { path: path.to_owned(), source };
        let pending = PendingFile::new(path)?;
        // More than any disk holds is more than a header can tell.
        reserve(pending.file(), &pending.lies_in(), bytes_of(shape))?;
        let header = header_of(path, kind, &[("samples", written_shape(shape, rank))], Origin::default())?;
        reserve(pending.file(), &pending.lies_in(), bytes_of(shape).saturating_add(header.len() as u64))?;
        pending.file().write_all(&header).map_err(error)?;
        let file = pending.file().try_clone().map_err(error)?;
        Ok(Self { path: path.to_owned(), samples: SampleFile::in_file(file, header.len() as u64, shape), pending })
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// When it cannot get its name.
    pub fn write(self) -> Result<PathBuf, IoError> {
        self.pending.publish()?;
        Ok(self.path)
    }
}

impl Sink for TensorSink {
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        self.samples.take(start, extent, piece)
    }
}

#[cfg(test)]
mod tests {
    use vae_core::{FrameRule, LatentNorm};

    use super::*;
    use crate::Config;

    fn spec() -> VaeSpec {
        VaeSpec { latent_norm: LatentNorm { scale: vec![4.0], shift: vec![0.5] }, ..VaeSpec::image(3, 4, 8) }
    }

    fn values(shape: [usize; 5]) -> HostTensor {
        HostTensor::from_fn(shape, |[b, c, t, y, x]| (b * 100 + c * 20 + t * 7 + y * 3 + x) as f32 / 8.0 - 1.0)
    }

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    /// A `.safetensors` file of tensors, each with its dtype, shape and bytes.
    fn safetensors(tensors: &[(&str, &str, &[usize], Vec<u8>)]) -> Vec<u8> {
        let (mut entries, mut data) = (Vec::new(), Vec::new());
        for (name, dtype, shape, bytes) in tensors {
            let begin = data.len();
            data.extend(bytes);
            entries.push(format!("{name:?}:{{\"dtype\":{dtype:?},\"shape\":{shape:?},\"data_offsets\":[{begin},{}]}}", data.len()));
        }
        of_header(&format!("{{{}}}", entries.join(",")), &data)
    }

    fn of_header(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn npy(version: u8, descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n");
        let length = if version == 1 { (header.len() as u16).to_le_bytes().to_vec() } else { (header.len() as u32).to_le_bytes().to_vec() };
        [NPY_MAGIC, &[version, 0], &length, header.as_bytes(), data].concat()
    }

    fn npz(members: &[(&str, Vec<u8>)], method: zip::CompressionMethod) -> Vec<u8> {
        let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
        for (name, bytes) in members {
            writer.start_file(*name, zip::write::SimpleFileOptions::default().compression_method(method)).unwrap();
            writer.write_all(bytes).unwrap();
        }
        writer.finish().unwrap().into_inner()
    }

    fn input(bytes: Vec<u8>, spec: &VaeSpec, settings: &str) -> Result<HostTensor, String> {
        let config = Config::from_toml(&format!("[io]\n{settings}")).unwrap();
        let read = || {
            let input = Tensors::from_bytes("in.latent".as_ref(), bytes)?.input(Direction::Decode, spec, &config.io)?;
            let shape = input.shape();
            let tensor = input.read()?;
            assert_eq!(tensor.block.shape(), shape);
            Ok(tensor.block)
        };
        read().map_err(|error: IoError| error.to_string())
    }

    #[test]
    fn comfyui_saves_the_vaes_own_latents() {
        let own = values([1, 4, 1, 2, 3]);
        let mark = ("latent_format_version_0", "F32", &[0][..], Vec::new());
        let tensor = |scale: f32| {
            let scaled: Vec<f32> = own.data().iter().map(|value| value * scale).collect();
            ("latent_tensor", "F32", &[1, 4, 2, 3][..], bytes(&scaled))
        };
        let mut passed = own.clone();
        spec().latent_norm.to_diffusion(&mut passed);
        for file in [safetensors(&[tensor(1.0), mark.clone()]), safetensors(&[mark, tensor(1.0)])] {
            assert_eq!(input(file.clone(), &spec(), "latent_space = 'vae'").unwrap(), own);
            assert_eq!(input(file, &spec(), "").unwrap(), passed);
        }
        // Without the mark, as Stable Diffusion 1's were: scaled.
        let old = input(safetensors(&[tensor(0.18215)]), &spec(), "latent_space = 'vae'").unwrap();
        assert!(old.data().iter().zip(own.data()).all(|(a, b)| (a - b).abs() < 1e-5), "{old:?}");
        // What is not ComfyUI's is as the configuration says.
        let named = safetensors(&[("latents", "F32", &[1, 4, 2, 3], bytes(own.data()))]);
        assert_eq!([input(named.clone(), &spec(), "").unwrap(), input(named, &spec(), "latent_space = 'vae'").unwrap()], [own.clone(), own]);
    }

    #[test]
    fn caches_of_trainers_are_read() {
        let latents = values([1, 4, 1, 2, 3]);
        let array = npy(1, "'<f4'", "False", "(4, 2, 3)", &bytes(latents.data()));
        let whole = |descr: &str, count: usize| npy(1, descr, "False", &format!("({count},)"), &vec![0; 8 * count]);
        for method in [zip::CompressionMethod::Stored, zip::CompressionMethod::Deflated] {
            let kohya = [("original_size.npy", whole("'<i8'", 2)), ("crop_ltrb.npy", whole("'<i8'", 4)), ("latents.npy", array.clone())];
            assert_eq!(input(npz(&kohya, method), &spec(), "").unwrap(), latents);
            let sized = [("latents_2x3.npy", array.clone()), ("original_size_2x3.npy", whole("'<i8'", 2))];
            assert_eq!(input(npz(&sized, method), &spec(), "").unwrap(), latents);
        }
        let several = npz(&[("latents_2x3.npy", array.clone()), ("latents_4x6.npy", array.clone())], zip::CompressionMethod::Stored);
        let message = input(several.clone(), &spec(), "").unwrap_err();
        assert!(message.contains("latents_2x3, latents_4x6") && message.contains("io.tensor"), "{message}");
        assert_eq!(input(several, &spec(), "tensor = 'latents_4x6'").unwrap(), latents);

        // musubi-tuner says frames, height and width in the name, so that four channels and four frames are not mixed up.
        let clip = VaeSpec { frames: FrameRule::Causal { ratio: 4 }, ..spec() };
        let latents = values([1, 4, 4, 2, 3]);
        let halves: Vec<u8> = latents.data().iter().flat_map(|&value| half::bf16::from_f32(value).to_le_bytes()).collect();
        let musubi = |name| safetensors(&[(name, "BF16", &[4, 4, 2, 3], halves.clone())]);
        assert_eq!(input(musubi("latents_4x2x3_bfloat16"), &clip, "").unwrap(), latents);
        let message = input(musubi("latents"), &clip, "").unwrap_err();
        assert!(message.contains("[4, 4, 2, 3]") && message.contains("io.axes = \"cthw\""), "{message}");
        assert_eq!(input(musubi("latents"), &clip, "axes = 'cthw'").unwrap(), latents);
    }

    #[test]
    fn arrays_of_every_order_are_read() {
        let latents = values([1, 4, 1, 2, 3]);
        let at = |c: usize, y: usize, x: usize| latents.row(c, y)[x];
        let fortran: Vec<f32> = (0..24).map(|index| at(index % 4, index / 4 % 2, index / 8)).collect();
        let big: Vec<u8> = latents.data().iter().flat_map(|&value| f64::from(value).to_be_bytes()).collect();
        let halves: Vec<u8> = latents.data().iter().flat_map(|&value| half::f16::from_f32(value).to_le_bytes()).collect();
        for file in [
            npy(1, "'<f4'", "False", "(4, 2, 3)", &bytes(latents.data())),
            npy(2, "'<f4'", "False", "(1, 4, 2, 3)", &bytes(latents.data())),
            npy(3, "'<f2'", "False", "(1, 4, 1, 2, 3)", &halves),
            npy(1, "'<f4'", "True", "(4, 2, 3)", &bytes(&fortran)),
            npy(1, "'<f4'", "True", "(1, 4, 1, 2, 3)", &bytes(&fortran)),
            npy(1, "'>f8'", "False", "(4, 2, 3)", &big),
        ] {
            assert_eq!(input(file, &spec(), "").unwrap(), latents);
        }
        // 1.5, -0.0625, NaN; 0.25, -2 and infinity: the two kinds of eight bits.
        let eight = safetensors(&[("latents", "F8_E4M3", &[1, 4, 1, 1], vec![0x3c, 0x98, 0x7f, 0])]);
        let read = input(eight, &spec(), "on_non_finite = 'allow'").unwrap();
        assert!(read.data()[..2] == [1.5, -0.0625] && read.data()[2].is_nan(), "{read:?}");
        let eight = safetensors(&[("latents", "F8_E5M2", &[1, 4, 1, 1], vec![0x34, 0xc0, 0x7c, 1])]);
        assert_eq!(input(eight, &spec(), "on_non_finite = 'allow'").unwrap().data(), [0.25, -2.0, f32::INFINITY, 2.0_f32.powi(-16)]);
    }

    #[test]
    fn what_is_no_float_is_refused_by_name() {
        let zeros = vec![0; 24 * 8];
        for (file, fragments) in [
            (npy(1, "'<i8'", "False", "(4, 2, 3)", &zeros), ["<i8", "expected f64"]),
            (npy(1, "'|b1'", "False", "(4, 2, 3)", &zeros[..24]), ["|b1", "expected f64"]),
            (npy(1, "'<c8'", "False", "(4, 2, 3)", &zeros), ["<c8", "expected f64"]),
            (npy(1, "'<f16'", "False", "(4, 2, 3)", &zeros), ["<f16", "expected f64"]),
            (npy(1, "'|V2'", "False", "(4, 2, 3)", &zeros[..48]), ["bfloat16", "expected f64"]),
            (npy(1, "'|O'", "False", "()", b"\x80\x04N."), ["pickled", "expected f64"]),
            (npy(1, "[('a', '<f4')]", "False", "(4, 2, 3)", &zeros[..96]), ["records", "expected f64"]),
            (npy(1, "'<f4'", "False", "()", &zeros[..4]), ["has the shape []", "expected [batch"]),
            (safetensors(&[("latents", "I64", &[4, 2, 3], zeros.clone())]), ["i64", "expected f64"]),
            (safetensors(&[("latents", "C64", &[4, 2, 3], zeros.clone())]), ["c64", "expected f64"]),
            (safetensors(&[("latents", "F8_E8M0", &[4, 2, 3], zeros[..24].to_vec())]), ["f8_e8m0", "expected f64"]),
            (safetensors(&[("a", "F32", &[1], vec![0; 4]), ("b", "F32", &[1], vec![0; 4])]), ["no tensor named `latents`", "a, b; io.tensor"]),
            (safetensors(&[("latents", "F32", &[1, 4, 0, 3], Vec::new())]), ["[1, 4, 0, 3]", "no values"]),
        ] {
            let message = input(file, &spec(), "").unwrap_err();
            assert!(fragments.iter().all(|fragment| message.contains(fragment)), "{fragments:?}: {message}");
        }
        // By another name, and without a guess where it is not there.
        let named = safetensors(&[("a", "F32", &[1, 4, 1, 1], vec![0; 16]), ("b", "F32", &[1], vec![0; 4])]);
        assert_eq!(input(named.clone(), &spec(), "tensor = 'a'").unwrap().shape(), [1, 4, 1, 1, 1]);
        assert!(input(named, &spec(), "tensor = 'latents'").unwrap_err().contains("holds: a, b"));
    }

    #[test]
    fn damaged_files_are_errors() {
        let four = |name: &str, shape: &str, begin: usize, end: usize| {
            format!("{name:?}:{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[{begin},{end}]}}")
        };
        let entries = |entries: &[String]| format!("{{{}}}", entries.join(","));
        let twice = entries(&[four("a", "[1]", 0, 4), four("a", "[1]", 4, 8)]);
        let same = entries(&[four("a", "[1]", 0, 4), four("a", "[1]", 0, 4)]);
        let overlapping = entries(&[four("a", "[2]", 0, 8), four("b", "[2]", 4, 12)]);
        let gap = entries(&[four("a", "[1]", 0, 4), four("b", "[1]", 8, 12)]);
        let huge = entries(&[four("a", "[4294967296,4294967296,4294967296]", 0, 4)]);
        let wrapped = entries(&[four("a", "[4611686018427387905]", 0, 4)]);
        let mut zeros = vec![0; 12];
        zeros[0] = 1;
        for (file, fragment) in [
            (of_header(&twice, &zeros[..8]), "names `a` twice"),
            (of_header(&same, &zeros[..4]), "names `a` twice"),
            (of_header(&overlapping, &zeros), ""),
            (of_header(&gap, &zeros), ""),
            (of_header(&huge, &zeros[..4]), ""),
            (of_header(&wrapped, &zeros[..4]), ""),
            (of_header(&entries(&[four("a", "[1]", 0, 4)]), &zeros), "its header speaks of"),
            (of_header("{\"__metadata__\":{},\"__metadata__\":{}}", &[]), "twice"),
            (of_header("{\"a\":", &[]), "EOF"),
            (npy(1, "'<f4'", "False", "(1, 4, 999999999, 999999999)", &zeros), "there are 12"),
            (npy(1, "'<f4'", "False", "(99999999999, 99999999999)", &zeros), "more values than any file"),
            (npy(1, "'<f4'", "False", "(1, 4, 1, 1)", &zeros), "takes 16 bytes"),
            (npy(1, "'<f4'", "False", "(1, 2, 1, 1)", &zeros), "takes 8 bytes"),
            (npy(1, "'<f4'", "False", "(-1, 4)", &zeros), "does not tell"),
            (npy(1, "'<f4'", "False", &"(".repeat(5000), &zeros), "no description"),
            ([NPY_MAGIC, &[2, 0, 255, 255, 255, 255]].concat(), "its header takes 4294967295 bytes"),
            (b"\x93NUMPY".to_vec(), "cut off"),
            (Vec::new(), ""),
            (b"PK\x03\x04nonsense".to_vec(), ""),
            (npz(&[("a.npy", vec![1])], zip::CompressionMethod::Stored), "cut off"),
        ] {
            let message = input(file, &spec(), "").unwrap_err();
            assert!(message.contains("is damaged") && message.contains(fragment), "{fragment}: {message}");
        }
        for (file, fragment) in [
            ([&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "header"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0".to_vec(), "git lfs pull"),
            (b"<!DOCTYPE html>".to_vec(), "web page"),
            (npz(&[("a.txt", vec![1])], zip::CompressionMethod::Stored), "zip archive"),
        ] {
            let message = input(file, &spec(), "").unwrap_err();
            assert!(message.contains("in.latent") && message.contains(fragment), "{fragment}: {message}");
        }
        // What unfolds to a thousand times its size is not taken at its word.
        let bomb = npy(1, "'<f4'", "False", "(1, 4, 2000, 3000)", &vec![0; 96_000_000]);
        let bomb = npz(&[("latents.npy", bomb)], zip::CompressionMethod::Deflated);
        assert!(bomb.len() < 1_000_000);
        assert!(input(bomb, &spec(), "").unwrap_err().contains("would unfold to"));
        let mut flipped = npz(&[("latents.npy", npy(1, "'<f4'", "False", "(1, 4, 1, 1)", &bytes(&[1.0; 4])))], zip::CompressionMethod::Stored);
        let place = flipped.windows(4).position(|four| four == 1.0_f32.to_le_bytes()).unwrap();
        flipped[place] ^= 1;
        assert!(input(flipped, &spec(), "").unwrap_err().contains("is damaged"));
    }

    #[test]
    fn what_torch_saves_is_read() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../vae-core/tests/data");
        let config = |settings: &str| Config::from_toml(&format!("[io]\n{settings}")).unwrap().io;
        let expected: Vec<f32> = (0..12).map(|value| value as f32 / 2.0 - 1.0).collect();
        let bare = data.join("bare.pt");
        let two = VaeSpec::image(3, 2, 8);
        let bytes = std::fs::read(&bare).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let renamed = folder.path().join("renamed.safetensors");
        std::fs::write(&renamed, &bytes).unwrap();
        for tensors in [
            Tensors::read(&bare).unwrap(),
            Tensors::read(&renamed).unwrap(),
            Tensors::from_bytes("-".as_ref(), bytes.clone()).unwrap(),
            Tensors::from_reader("-".as_ref(), &bytes[..]).unwrap(),
        ] {
            let tensor = tensors.input(Direction::Decode, &two, &config("")).unwrap().read().unwrap();
            assert_eq!((tensor.block.shape(), tensor.block.data()), ([1, 2, 1, 2, 3], &expected[..]));
        }
        // What nodes of ComfyUI hand around, its rows and columns exchanged in memory.
        let nested = Tensors::read(&data.join("latents.pt")).unwrap().input(Direction::Decode, &two, &config("")).unwrap().read().unwrap();
        assert_eq!(nested.block, HostTensor::from_fn([1, 2, 1, 2, 3], |[_, c, _, y, x]| expected[c * 6 + x * 2 + y]));
        for name in ["kinds.pt", "kinds-4.pt", "kinds-legacy.pt"] {
            let open = |settings: &str| {
                let input = Tensors::read(&data.join(name)).unwrap().input(Direction::Decode, &VaeSpec::image(3, 1, 8), &config(settings))?;
                Ok::<_, IoError>(input.read()?.block)
            };
            let message = open("tensor = 'state_dict.complex64'").unwrap_err().to_string();
            assert!(message.contains("complex64") && message.contains("expected f64"), "{message}");
            let message = open("").unwrap_err().to_string();
            assert!(message.contains("no tensor named `latents`") && message.contains("more; io.tensor"), "{message}");
        }
        for (name, fragment) in [("module.pt", "state_dict"), ("script.pt", "state_dict")] {
            let error = Tensors::read(&data.join(name)).unwrap_err();
            assert!(matches!(&error, IoError::Unsupported { path, .. } if path.ends_with(name)), "{error:?}");
            assert!(error.to_string().contains(fragment), "{error}");
        }
        let error = Tensors::from_bytes("l.pt".as_ref(), bytes[..bytes.len() / 2].to_vec()).unwrap_err();
        assert!(matches!(&error, IoError::Damaged { path, .. } if path.ends_with("l.pt")), "{error:?}");
    }

    #[test]
    fn what_is_not_finite_is_refused_where_it_lies() {
        let mut wrong: Vec<f64> = vec![0.5; 24];
        wrong[7] = 1e300;
        wrong[20] = f64::NAN;
        let data: Vec<u8> = wrong.iter().flat_map(|value| value.to_le_bytes()).collect();
        let file = safetensors(&[("latents", "F64", &[1, 4, 2, 3], data)]);
        let message = input(file.clone(), &spec(), "").unwrap_err();
        assert!(message.contains("in.latent, 2 of 24 values are NaN or infinite") && message.contains("[0, 1, 0, 0, 1]"), "{message}");
        let read = input(file, &spec(), "on_non_finite = 'allow'").unwrap();
        assert!(read.data()[7] == f32::INFINITY && read.data()[20].is_nan());
    }

    #[test]
    fn batches_are_told_from_clips() {
        let folder = tempfile::tempdir().unwrap();
        let samples = values([2, 3, 1, 4, 5]);
        for name in ["s.npy", "s.safetensors"] {
            let path = folder.path().join(name);
            let mut sink = TensorSink::new(&path, samples.shape(), 4).unwrap();
            sink.take([0; 3], [1, 4, 5], samples.clone()).unwrap();
            sink.write().unwrap();
            let written = std::fs::read(&path).unwrap();
            write_tensors(&path, &[("samples", &samples)], 4, Origin::default()).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), written);
            let read = Tensors::from_reader("-".as_ref(), &written[..]).unwrap().samples().unwrap();
            assert_eq!((read.block, read.rank), (samples.clone(), 4));
        }
        // A batch that a video model could take for frames says that it is one.
        let video = VaeSpec { frames: FrameRule::Causal { ratio: 4 }, ..spec() };
        let config = Config::default();
        let shape =
            |name: &str| Tensors::read(&folder.path().join(name)).unwrap().input(Direction::Encode, &video, &config.io).map(|input| input.shape());
        assert_eq!(shape("s.safetensors").unwrap(), [2, 3, 1, 4, 5]);
        let error = shape("s.npy").unwrap_err();
        assert!(matches!(&error, IoError::Ambiguous { .. }) && error.is_usage(), "{error:?}");
        assert!(matches!(TensorSink::new(&folder.path().join("s.pt"), [1; 5], 4), Err(IoError::UnknownKind { .. })));
    }

    #[test]
    fn a_disk_without_room_is_found_before_anything_is_written() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["s.npy", "s.safetensors"] {
            for shape in [[1 << 20, 3, 1, 1 << 15, 1 << 15], [usize::MAX, 3, 1, 8, 8]] {
                let error = TensorSink::new(&folder.path().join(name), shape, 4).unwrap_err();
                assert!(matches!(&error, IoError::NoSpace { needed, free, .. } if needed > free), "{error:?}");
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
