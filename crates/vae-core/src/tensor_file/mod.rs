//! Tensors in files, recognised by content and not by name: safetensors, and files of `torch.save`.
//!
//! [`read_tensors`] reads names, shapes and types; values are read one tensor at a time, when they are asked for. Nothing in a pickle is executed. What a
//! reader holds stays below four times the file and 64 MiB, for any content.

mod content;
mod pickle;
mod safetensors;
mod torch;

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use float8::{F8E4M3, F8E5M2};
use half::{bf16, f16};

use crate::WeightError;
pub(crate) use content::{Content, content};

/// Axes that a tensor can have, as in PyTorch.
const MAX_AXES: usize = 64;
/// What a view that repeats values may become, if its file holds less.
const MAX_REPEATED_BYTES: u64 = 16 << 20;
/// Bytes that are read and converted at once.
const CHUNK: usize = 1 << 20;

/// The content of a file: its tensors, in no particular order, and the metadata texts of safetensors files.
#[derive(Debug, Clone)]
pub struct TensorFile {
    /// The tensors, whose values are not read yet.
    pub tensors: Vec<StoredTensor>,
    /// The entries of `__metadata__`; none of other files.
    pub metadata: HashMap<String, String>,
}

/// The tensors of a file, without its metadata (see [`open`]).
///
/// # Errors
/// Those of [`open`].
pub fn read_tensors(path: &Path) -> Result<Vec<StoredTensor>, WeightError> {
    Ok(open(path)?.tensors)
}

/// Opens a safetensors file, or a file that `torch.save` has written (`.pt`, `.pth`, `.ckpt`, `.bin`).
///
/// Of a pickle, dictionaries in dictionaries become names with dots (`state_dict.encoder.conv_in.weight`), entries of lists are counted, and a tensor that
/// was saved by itself has the name `""`; other values are skipped.
///
/// # Errors
/// [`WeightError::Io`]; [`WeightError::Damaged`] for what is cut or contradicts itself; [`WeightError::NotWeights`] and [`WeightError::Unsupported`] for
/// sound files that hold something else.
pub fn open(path: &Path) -> Result<TensorFile, WeightError> {
    let file = Arc::new(Source::open(path)?);
    let read = match content(&file)? {
        Content::Safetensors => safetensors::open(&file),
        Content::TorchZip => torch::zip_tensors(&file).map(TensorFile::without_metadata),
        Content::Pickle => torch::legacy_tensors(&file).map(TensorFile::without_metadata),
        Content::Json => Err(Fault::NotWeights("a JSON file".to_owned(), "the tensors lie in other files")),
    };
    read.map_err(|fault| fault.at(path))
}

impl TensorFile {
    fn without_metadata(tensors: Vec<StoredTensor>) -> Self {
        Self { tensors, metadata: HashMap::new() }
    }
}

/// How values are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names say it all")]
pub enum StoredDtype {
    F64,
    F32,
    F16,
    Bf16,
    /// Four bits of exponent and three of mantissa, without infinities (`float8_e4m3fn`).
    F8E4m3,
    /// Five bits of exponent and two of mantissa.
    F8E5m2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    /// What cannot be read, by the name that the file gives it.
    Other(Box<str>),
}

impl StoredDtype {
    /// Bytes of a value, when values can be read.
    pub fn size(&self) -> Option<usize> {
        Some(match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => 2,
            Self::F8E4m3 | Self::F8E5m2 | Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Other(_) => return None,
        })
    }

    /// Whether values are floats that can be read.
    pub fn is_float(&self) -> bool {
        matches!(self, Self::F64 | Self::F32 | Self::F16 | Self::Bf16 | Self::F8E4m3 | Self::F8E5m2)
    }

    /// Appends `bytes`, whole little-endian values, as f32. Nothing is appended of a type that cannot be read.
    pub fn append_f32(&self, bytes: &[u8], values: &mut Vec<f32>) {
        fn each<const N: usize>(bytes: &[u8], values: &mut Vec<f32>, value: impl Fn([u8; N]) -> f32) {
            values.extend(bytes.as_chunks::<N>().0.iter().map(|&bytes| value(bytes)));
        }
        match self {
            Self::F64 => each(bytes, values, |bytes| f64::from_le_bytes(bytes) as f32),
            Self::F32 => each(bytes, values, f32::from_le_bytes),
            Self::F16 => each(bytes, values, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Self::Bf16 => each(bytes, values, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            Self::F8E4m3 => each(bytes, values, |[byte]| F8E4M3::from_bits(byte).to_f32()),
            Self::F8E5m2 => each(bytes, values, |[byte]| F8E5M2::from_bits(byte).to_f32()),
            Self::I64 => each(bytes, values, |bytes| i64::from_le_bytes(bytes) as f32),
            Self::I32 => each(bytes, values, |bytes| i32::from_le_bytes(bytes) as f32),
            Self::I16 => each(bytes, values, |bytes| f32::from(i16::from_le_bytes(bytes))),
            Self::I8 => each(bytes, values, |bytes| f32::from(i8::from_le_bytes(bytes))),
            Self::U64 => each(bytes, values, |bytes| u64::from_le_bytes(bytes) as f32),
            Self::U32 => each(bytes, values, |bytes| u32::from_le_bytes(bytes) as f32),
            Self::U16 => each(bytes, values, |bytes| f32::from(u16::from_le_bytes(bytes))),
            Self::U8 => each(bytes, values, |[byte]| f32::from(byte)),
            Self::Bool => each(bytes, values, |[byte]| f32::from(u8::from(byte != 0))),
            Self::Other(_) => {}
        }
    }
}

impl fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::F8E4m3 => f.write_str("F8_E4M3"),
            Self::F8E5m2 => f.write_str("F8_E5M2"),
            Self::Other(name) => f.write_str(name),
            known => write!(f, "{}", format!("{known:?}").to_uppercase()),
        }
    }
}

/// A tensor in a file or in memory, whose values are not read yet.
#[derive(Debug, Clone)]
pub struct StoredTensor {
    name: String,
    dtype: StoredDtype,
    shape: Vec<usize>,
    /// In values; none of values that lie in order.
    strides: Option<Vec<usize>>,
    file: Arc<Source>,
    /// Where the bytes of the values lie in the file.
    start: u64,
    len: u64,
    /// CRC-32 of these bytes.
    checksum: Option<u32>,
}

impl StoredTensor {
    /// A tensor in memory: little-endian values, the last axis fastest.
    ///
    /// # Errors
    /// When there are more or fewer bytes than the shape says.
    pub fn in_memory(name: String, dtype: StoredDtype, shape: Vec<usize>, bytes: SharedBytes) -> Result<Self, WeightError> {
        let len = (*bytes).as_ref().len() as u64;
        let file = Source { path: PathBuf::from(IN_MEMORY), file: Mutex::new(Box::new(io::Cursor::new(SharedSlice(bytes)))), len };
        let expected = shape.iter().chain(&dtype.size()).try_fold(1_usize, |product, &side| product.checked_mul(side));
        if dtype.size().is_some() && expected.map(|bytes| bytes as u64) != Some(len) {
            return Err(Fault::Damaged(format!("`{name}` has {len} bytes, which is not a tensor of {shape:?} in {dtype}")).at(&file.path));
        }
        Ok(Self { name, dtype, shape, strides: None, file: Arc::new(file), start: 0, len, checksum: None })
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How values are stored.
    pub fn dtype(&self) -> &StoredDtype {
        &self.dtype
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values as they are stored, little-endian, the last axis fastest.
    ///
    /// # Errors
    /// When values of this type cannot be read, the file cannot be read or is damaged, or a view repeats more values than there is reason for.
    pub fn read_bytes(&self) -> Result<Vec<u8>, WeightError> {
        let size = self.value_size()?;
        if self.strides.is_none() {
            return self.read_raw();
        }
        let raw = self.read_raw()?;
        let mut bytes = Vec::with_capacity(self.values() * size);
        self.gather(size, |at| bytes.extend_from_slice(&raw[at..at + size]));
        Ok(bytes)
    }

    /// The values as f32, the last axis fastest. Those of narrower floats are exact, others are rounded to the nearest.
    ///
    /// # Errors
    /// As [`StoredTensor::read_bytes`].
    pub fn read_f32(&self) -> Result<Vec<f32>, WeightError> {
        let size = self.value_size()?;
        let mut values = Vec::with_capacity(self.values());
        if self.strides.is_some() {
            let raw = self.read_raw()?;
            self.gather(size, |at| self.dtype.append_f32(&raw[at..at + size], &mut values));
            return Ok(values);
        }
        let mut checksum = crc32fast::Hasher::new();
        let mut chunk = Vec::new();
        for start in (0..self.len).step_by(CHUNK) {
            self.file.read_into(self.start + start, (self.len - start).min(CHUNK as u64), &mut chunk)?;
            checksum.update(&chunk);
            self.dtype.append_f32(&chunk, &mut values);
        }
        self.check(checksum)?;
        Ok(values)
    }

    pub(crate) fn rename(&mut self, name: String) {
        self.name = name;
    }

    /// With the same number of values.
    pub(crate) fn reshape(&mut self, shape: Vec<usize>) {
        if self.strides.is_none() {
            self.shape = shape;
        } else if let Some(strides) = strides_of_view(&self.shape, self.strides.as_deref().unwrap_or_default(), &shape) {
            (self.shape, self.strides) = (shape, Some(strides));
        }
    }

    /// The number of values; what does not fit a usize was refused when the file was opened.
    pub(crate) fn values(&self) -> usize {
        self.shape.iter().product()
    }

    fn value_size(&self) -> Result<usize, WeightError> {
        let unsupported = |message| Fault::Unsupported(message).at(&self.file.path);
        let name = &self.name;
        let size = self.dtype.size().ok_or_else(|| unsupported(format!("`{name}` is stored as {}, which is not implemented", self.dtype)))?;
        let bytes = self.values() as u64 * size as u64;
        if bytes > self.len.max(MAX_REPEATED_BYTES) {
            return Err(unsupported(format!("`{name}` is a view of {} bytes that repeats them to {bytes}; save its `.contiguous()`", self.len)));
        }
        Ok(size)
    }

    fn read_raw(&self) -> Result<Vec<u8>, WeightError> {
        let mut bytes = Vec::new();
        self.file.read_into(self.start, self.len, &mut bytes)?;
        if self.checksum.is_some() {
            let mut checksum = crc32fast::Hasher::new();
            checksum.update(&bytes);
            self.check(checksum)?;
        }
        Ok(bytes)
    }

    fn check(&self, found: crc32fast::Hasher) -> Result<(), WeightError> {
        if self.checksum.is_some_and(|checksum| checksum != found.finalize()) {
            return Err(Fault::Damaged(format!("the values of `{}` do not match their checksum", self.name)).at(&self.file.path));
        }
        Ok(())
    }

    /// Where each value lies in the raw bytes, the last axis fastest.
    fn gather(&self, size: usize, mut take: impl FnMut(usize)) {
        let strides = self.strides.as_deref().unwrap_or_default();
        let mut index = vec![0; self.shape.len()];
        let mut at = 0;
        for _ in 0..self.values() {
            take(at * size);
            for axis in (0..self.shape.len()).rev() {
                index[axis] += 1;
                at += strides[axis];
                if index[axis] < self.shape[axis] {
                    break;
                }
                at -= strides[axis] * self.shape[axis];
                index[axis] = 0;
            }
        }
    }
}

/// The strides that let a strided tensor be seen in `fresh`, where that only adds or takes away axes of one value.
fn strides_of_view(shape: &[usize], strides: &[usize], fresh: &[usize]) -> Option<Vec<usize>> {
    let mut sides = shape.iter().zip(strides).filter(|(side, _)| **side != 1);
    let strides =
        fresh.iter().map(|&side| if side == 1 { Some(0) } else { sides.next().filter(|(old, _)| **old == side).map(|(_, &stride)| stride) });
    strides.collect::<Option<Vec<usize>>>().filter(|_| sides.next().is_none())
}

/// Bytes that are shared with their owner.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// The name of what is in memory, in messages.
const IN_MEMORY: &str = "the tensors in memory";

/// [`SharedBytes`] to read from.
struct SharedSlice(SharedBytes);

impl AsRef<[u8]> for SharedSlice {
    fn as_ref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

/// What is read at places.
trait ReadAt: Read + Seek + Send {}

impl<T: Read + Seek + Send> ReadAt for T {}

/// A file, or bytes in memory, that is read at places. A map of a file would count its pages as the program's memory.
pub(crate) struct Source {
    path: PathBuf,
    file: Mutex<Box<dyn ReadAt>>,
    len: u64,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("path", &self.path).field("len", &self.len).finish_non_exhaustive()
    }
}

impl Source {
    pub(crate) fn open(path: &Path) -> Result<Self, WeightError> {
        let io = |source| WeightError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let meta = file.metadata().map_err(io)?;
        if !meta.is_file() {
            return Err(io(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file")));
        }
        Ok(Self { path: path.to_owned(), file: Mutex::new(Box::new(file)), len: meta.len() })
    }

    /// Replaces `bytes` by `len` bytes from `start`, which lie in the file.
    fn read_into(&self, start: u64, len: u64, bytes: &mut Vec<u8>) -> Result<(), WeightError> {
        bytes.clear();
        let Ok(wanted) = usize::try_from(len) else {
            return Err(Fault::Unsupported(format!("{len} bytes do not fit this machine's memory")).at(&self.path));
        };
        bytes.reserve_exact(wanted);
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let read = file.seek(SeekFrom::Start(start)).and_then(|_| Read::take(&mut *file, len).read_to_end(bytes));
        match read {
            Ok(read) if read == wanted => Ok(()),
            Ok(_) => Err(Fault::Damaged("it has become shorter while it was read".to_owned()).at(&self.path)),
            Err(source) => Err(WeightError::Io { path: self.path.clone(), source }),
        }
    }

    /// The first `len` bytes, or all if there are fewer.
    fn head(&self, len: u64) -> Result<Vec<u8>, WeightError> {
        let mut bytes = Vec::new();
        self.read_into(0, len.min(self.len), &mut bytes)?;
        Ok(bytes)
    }

    /// A handle with a position of its own.
    fn reopen(&self) -> Result<File, WeightError> {
        File::open(&self.path).map_err(|source| WeightError::Io { path: self.path.clone(), source })
    }
}

/// What is wrong with a file, before its name is added.
#[derive(Debug)]
pub(crate) enum Fault {
    Damaged(String),
    Unsupported(String),
    NotWeights(String, &'static str),
    Io(io::Error),
    Named(WeightError),
}

impl Fault {
    pub(crate) fn at(self, path: &Path) -> WeightError {
        let path = path.to_owned();
        match self {
            Self::Damaged(message) => WeightError::Damaged { path, message },
            Self::Unsupported(message) => WeightError::Unsupported { path, message },
            Self::NotWeights(what, hint) => WeightError::NotWeights { path, what, hint },
            Self::Io(source) if source.kind() == io::ErrorKind::UnexpectedEof => {
                WeightError::Damaged { path, message: "it ends too early".to_owned() }
            }
            Self::Io(source) => WeightError::Io { path, source },
            Self::Named(error) => error,
        }
    }
}

impl From<io::Error> for Fault {
    fn from(source: io::Error) -> Self {
        Self::Io(source)
    }
}

impl From<WeightError> for Fault {
    fn from(error: WeightError) -> Self {
        Self::Named(error)
    }
}

#[cfg(test)]
mod tests;
