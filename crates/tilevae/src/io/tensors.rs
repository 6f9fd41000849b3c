use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use tiling::{Block, BoxError, Sink};

use super::pending::PendingFile;
use super::scratch::SampleFile;
use super::{FileKind, Fps, IoError, write_atomically};

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
    fn read(metadata: &Metadata) -> Self {
        let Some(text) = metadata.metadata() else { return Self::default() };
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

/// The raw tensors of a file. One is read when it is asked for.
#[derive(Debug)]
pub struct Tensors {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Safetensors {
        /// Where the values begin.
        start: u64,
        metadata: Metadata,
    },
    Npy,
}

/// One raw tensor, as rank 5.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// `[batch, channels, frames, height, width]`.
    pub block: Block,
    /// 4 or 5: how it was stored.
    pub rank: usize,
    /// What the file says of the samples that latents come from.
    pub origin: Origin,
}

/// The most bytes that the header of a `.safetensors` file may take, as in the crate of that name.
const HEADER_LIMIT: u64 = 100_000_000;

impl Tensors {
    /// Opens a `.safetensors` or `.npy` file.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is of another kind.
    pub fn read(path: &Path) -> Result<Self, IoError> {
        let content = match FileKind::of(path)? {
            FileKind::Safetensors => open_safetensors(path)?,
            FileKind::Npy => Content::Npy,
            FileKind::Picture(_) | FileKind::Clip(_) => return Err(IoError::UnknownKind { path: path.to_owned(), kinds: FileKind::TENSORS }),
        };
        Ok(Self { path: path.to_owned(), content })
    }

    /// The tensor `latents`, or the only one. Floats of any width become f32.
    ///
    /// # Errors
    /// When there is none, or it is not of rank 4 or 5.
    pub fn latents(self) -> Result<Tensor, IoError> {
        self.take("latents")
    }

    /// The tensor `samples`, or the only one. Floats of any width become f32.
    ///
    /// # Errors
    /// When there is none, or it is not of rank 4 or 5.
    pub fn samples(self) -> Result<Tensor, IoError> {
        self.take("samples")
    }

    fn take(self, wanted: &'static str) -> Result<Tensor, IoError> {
        let path = self.path;
        let damaged = |message: &str| IoError::Damaged { path: path.clone(), message: message.to_owned() };
        let (name, shape, values, origin) = match self.content {
            Content::Npy => {
                let (shape, values) = read_npy(&path)?;
                ("array".to_owned(), shape, values, Origin::default())
            }
            Content::Safetensors { start, metadata } => {
                let tensors = metadata.tensors();
                let only = (tensors.len() == 1).then(|| tensors.keys().next().cloned()).flatten();
                let name = if tensors.contains_key(wanted) { Some(wanted.to_owned()) } else { only };
                let Some((name, info)) = name.and_then(|name| Some((name.clone(), *tensors.get(&name)?))) else {
                    let mut found: Vec<String> = tensors.into_keys().collect();
                    found.sort();
                    return Err(IoError::NoTensor { path, wanted, found });
                };
                let values = read_floats(&path, start, info).map_err(|source| IoError::Read { path: path.clone(), source })?;
                (name, info.shape.clone(), values, Origin::read(&metadata))
            }
        };
        let rank = shape.len();
        let sides = match shape[..] {
            [b, c, h, w] => [b, c, 1, h, w],
            [b, c, t, h, w] => [b, c, t, h, w],
            _ => return Err(IoError::Rank { path, name, shape }),
        };
        let values = values.map_err(|dtype| IoError::Dtype { path: path.clone(), name, dtype })?;
        let block = Block::new(sides, values).ok_or_else(|| damaged("a tensor has not as many values as its shape says"))?;
        Ok(Tensor { block, rank, origin })
    }
}

/// Reads the header and leaves the values where they are.
fn open_safetensors(path: &Path) -> Result<Content, IoError> {
    let read = |source| IoError::Read { path: path.to_owned(), source };
    let damaged = |message: String| IoError::Damaged { path: path.to_owned(), message };
    let mut file = File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let mut header = Vec::new();
    (&mut file).take(8).read_to_end(&mut header).map_err(read)?;
    let size = header.first_chunk().map(|&bytes| u64::from_le_bytes(bytes));
    let Some(size) = size.filter(|&size| size <= HEADER_LIMIT.min(length - 8)) else {
        return Err(damaged("its header is cut off".to_owned()));
    };
    header.clear();
    (&mut file).take(size).read_to_end(&mut header).map_err(read)?;
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| damaged(error.to_string()))?;
    let end = 8 + size + metadata.data_len() as u64;
    if end != length {
        return Err(damaged(format!("it has {length} bytes, its header speaks of {end}")));
    }
    Ok(Content::Safetensors { start: 8 + size, metadata })
}

/// Values in f32, or the name of a dtype that is not a float's.
type Values = Result<Vec<f32>, String>;

fn read_floats(path: &Path, start: u64, info: &TensorInfo) -> std::io::Result<Values> {
    let convert: fn(&[u8], &mut Vec<f32>) = match info.dtype {
        Dtype::F32 => |bytes, values| values.extend(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes))),
        Dtype::F64 => |bytes, values| values.extend(bytes.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32)),
        Dtype::F16 => |bytes, values| values.extend(bytes.as_chunks().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32())),
        Dtype::BF16 => |bytes, values| values.extend(bytes.as_chunks().0.iter().map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32())),
        other => return Ok(Err(format!("{other:?}").to_lowercase())),
    };
    let (begin, end) = info.data_offsets;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start + begin as u64))?;
    let mut values = Vec::with_capacity(info.shape.iter().product());
    // A multiple of the width of every type, so that no value is cut.
    let mut buffer = vec![0; (end - begin).min(1 << 20)];
    let mut left = end - begin;
    while left > 0 {
        let part = left.min(buffer.len());
        file.read_exact(&mut buffer[..part])?;
        convert(&buffer[..part], &mut values);
        left -= part;
    }
    Ok(Ok(values))
}

/// A shape, and its values.
fn read_npy(path: &Path) -> Result<(Vec<usize>, Values), IoError> {
    let read = |source| IoError::Read { path: path.to_owned(), source };
    let damaged = |error: std::io::Error| IoError::Damaged { path: path.to_owned(), message: error.to_string() };
    let file = File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let npy = npyz::NpyFile::new(BufReader::new(file)).map_err(damaged)?;
    let shape: Vec<usize> = npy.shape().iter().map(|&side| usize::try_from(side).unwrap_or(usize::MAX)).collect();
    let values = shape.iter().try_fold(1_u64, |n, &side| n.checked_mul(side as u64));
    // The header is not trusted with an allocation that the file could not fill.
    if values.is_none_or(|values| values > length) {
        return Err(IoError::Damaged { path: path.to_owned(), message: format!("the shape {shape:?} holds more values than the file") });
    }
    if npy.order() == npyz::Order::Fortran && shape.len() > 1 {
        return Err(IoError::Damaged { path: path.to_owned(), message: "it is in Fortran order; save it with numpy.ascontiguousarray".to_owned() });
    }
    let dtype = npy.dtype().descr();
    let values = read_npy_values(npy, &dtype).transpose().map_err(damaged)?.ok_or(dtype);
    Ok((shape, values))
}

/// `None` for a dtype that is not a float's.
fn read_npy_values(npy: npyz::NpyFile<impl Read>, dtype: &str) -> Option<std::io::Result<Vec<f32>>> {
    match dtype.trim_matches('\'').get(1..)? {
        "f4" => Some(npy.into_vec()),
        "f8" => Some(npy.into_vec::<f64>().map(|values| values.into_iter().map(|value| value as f32).collect())),
        "f2" => Some(npy.into_vec::<half::f16>().map(|values| values.into_iter().map(half::f16::to_f32).collect())),
        _ => None,
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
    let metadata = Some(origin.to_metadata()).filter(|metadata| !metadata.is_empty());
    let header = Metadata::new(metadata, infos).map_err(std::io::Error::other)?;
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

/// Writes named tensors in f32, as rank 4 (without frames) or 5. A `.npy` file takes one of them and says nothing of their origin.
///
/// # Errors
/// When the file cannot be written or cannot hold them.
pub fn write_tensors(path: &Path, tensors: &[(&str, &Block)], rank: usize, origin: Origin) -> Result<(), IoError> {
    let error = |source| IoError::Write { path: path.to_owned(), source };
    let shapes: Vec<(&str, Vec<usize>)> = tensors.iter().map(|(name, block)| (*name, written_shape(block.shape(), rank))).collect();
    let header = match (FileKind::of(path)?, &shapes[..]) {
        (FileKind::Npy, [(_, shape)]) => npy_header(shape),
        (FileKind::Npy, _) => return Err(IoError::OneTensor { path: path.to_owned() }),
        (FileKind::Safetensors, _) => safetensors_header(&shapes, origin),
        (FileKind::Picture(_) | FileKind::Clip(_), _) => {
            return Err(IoError::UnknownKind { path: path.to_owned(), kinds: FileKind::TENSORS });
        }
    };
    let header = header.map_err(error)?;
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
    /// When the name is not a tensor file's or the file cannot be begun.
    pub fn new(path: &Path, shape: [usize; 5], rank: usize) -> Result<Self, IoError> {
        let error = |source| IoError::Write { path: path.to_owned(), source };
        let written = written_shape(shape, rank);
        let header = match FileKind::of(path)? {
            FileKind::Npy => npy_header(&written),
            FileKind::Safetensors => safetensors_header(&[("samples", written)], Origin::default()),
            FileKind::Picture(_) | FileKind::Clip(_) => return Err(IoError::UnknownKind { path: path.to_owned(), kinds: FileKind::TENSORS }),
        };
        let header = header.map_err(error)?;
        let pending = PendingFile::new(path)?;
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
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: Block) -> Result<(), BoxError> {
        self.samples.take(start, extent, piece)
    }
}
