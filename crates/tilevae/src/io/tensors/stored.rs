//! Tensors as files hold them: what headers say, and how values are read.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::rc::Rc;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use vae_core::WeightError;
use vae_core::tensor_file::{StoredDtype, StoredTensor, read_tensors};

/// What is read at places.
pub(super) trait ReadSeek: Read + Seek {}

impl<T: Read + Seek> ReadSeek for T {}

/// A tensor of which the header is read.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// What its values are, or the name of a dtype that is not a float's.
    pub(super) dtype: Result<Number, String>,
    /// Whether the first axis is the fastest.
    pub(super) is_fortran: bool,
    pub(super) place: Place,
}

/// The tensors of a file, and its metadata.
pub(super) type Opened = (Vec<Stored>, HashMap<String, String>);

/// Where the values of a tensor lie.
#[derive(Debug)]
pub(super) enum Place {
    /// From a byte of the file on.
    Bytes(u64),
    /// In a member of an archive, from a byte of it on.
    Member { index: usize, skip: u64 },
    /// Where the reader of checkpoints finds them.
    Checkpoint(StoredTensor),
}

/// A kind of float and the order of its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) float: Float,
    pub(super) is_big_endian: bool,
}

/// A kind of float.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Float {
    F64,
    F32,
    F16,
    Bf16,
    F8E4M3,
    F8E5M2,
}

impl Float {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::F8E4M3 | Self::F8E5M2 => 1,
        }
    }

    /// The conversion of whole values, little-endian.
    fn convert(self) -> fn(&[u8], &mut Vec<f32>) {
        match self {
            Self::F64 => |bytes, values| values.extend(bytes.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32)),
            Self::F32 => |bytes, values| values.extend(bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes))),
            Self::F16 => |bytes, values| values.extend(bytes.as_chunks().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32())),
            Self::Bf16 => |bytes, values| values.extend(bytes.as_chunks().0.iter().map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32())),
            Self::F8E4M3 => |bytes, values| values.extend(bytes.iter().map(|&byte| float8::F8E4M3::from_bits(byte).to_f32())),
            Self::F8E5M2 => |bytes, values| values.extend(bytes.iter().map(|&byte| float8::F8E5M2::from_bits(byte).to_f32())),
        }
    }
}

impl Number {
    pub(super) fn little(float: Float) -> Self {
        Self { float, is_big_endian: false }
    }

    /// Reads `count` values in f32. The caller has seen to it that there may be so many.
    pub(super) fn read(self, reader: &mut dyn Read, count: usize) -> io::Result<Vec<f32>> {
        let (width, convert) = (self.float.bytes(), self.float.convert());
        let mut values = Vec::with_capacity(count);
        let mut left = count * width;
        // A multiple of the width of every type, so that no value is cut.
        let mut buffer = vec![0; left.min(1 << 20)];
        while left > 0 {
            let part = left.min(buffer.len());
            reader.read_exact(&mut buffer[..part])?;
            if self.is_big_endian {
                buffer[..part].chunks_exact_mut(width).for_each(<[u8]>::reverse);
            }
            convert(&buffer[..part], &mut values);
            left -= part;
        }
        Ok(values)
    }
}

/// What keeps a file from being opened: a failed read, what is wrong with it, or what it is.
#[derive(Debug)]
pub(super) enum Fault {
    Read(io::Error),
    Damaged(String),
    Unsupported(String),
}

impl From<WeightError> for Fault {
    fn from(error: WeightError) -> Self {
        match error {
            WeightError::Io { source, .. } => Self::Read(source),
            WeightError::Damaged { message, .. } => Self::Damaged(message),
            WeightError::Unsupported { message, .. } => Self::Unsupported(message),
            WeightError::NotWeights { what, hint, .. } => Self::Unsupported(format!("it is {what}; {hint}")),
            other => Self::Unsupported(other.to_string()),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Damaged("it is cut off".to_owned()),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Self::Damaged(error.to_string()),
            _ => Self::Read(error),
        }
    }
}

fn damaged<T>(message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(message.into()))
}

/// The most bytes that the header of a `.safetensors` file may take, as in the crate of that name.
const HEADER_LIMIT: u64 = 100_000_000;

/// Whether a file that begins so and has so many bytes can be safetensors.
pub(super) fn is_safetensors(head: &[u8], length: u64) -> bool {
    let size = head.first_chunk().map(|&bytes| u64::from_le_bytes(bytes));
    size.is_some_and(|size| size <= length) && head.get(8) == Some(&b'{')
}

/// Tensors and metadata of a `.safetensors` file.
pub(super) fn open_safetensors(reader: &mut dyn ReadSeek, length: u64) -> Result<Opened, Fault> {
    let mut header = Vec::new();
    reader.take(8).read_to_end(&mut header)?;
    let size = header.first_chunk().map(|&bytes| u64::from_le_bytes(bytes));
    let Some(size) = size.filter(|&size| size <= HEADER_LIMIT && length.checked_sub(8).is_some_and(|rest| size <= rest)) else {
        return damaged("its header is cut off");
    };
    header.clear();
    reader.take(size).read_to_end(&mut header)?;
    let header: Header = match serde_json::from_slice(&header) {
        Ok(header) => header,
        Err(error) => return damaged(error.to_string()),
    };
    let mut names = HashSet::new();
    if let Some((twice, _)) = header.tensors.iter().find(|(name, _)| !names.insert(name)) {
        return damaged(format!("its header names `{twice}` twice"));
    }
    let mut tensors = header.tensors;
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let stored = tensors.iter().map(|(name, info)| Stored {
        name: name.clone(),
        shape: info.shape.clone(),
        dtype: match info.dtype {
            Dtype::F64 => Ok(Number::little(Float::F64)),
            Dtype::F32 => Ok(Number::little(Float::F32)),
            Dtype::F16 => Ok(Number::little(Float::F16)),
            Dtype::BF16 => Ok(Number::little(Float::Bf16)),
            Dtype::F8_E4M3 => Ok(Number::little(Float::F8E4M3)),
            Dtype::F8_E5M2 => Ok(Number::little(Float::F8E5M2)),
            other => Err(format!("{other:?}").to_lowercase()),
        },
        is_fortran: false,
        // What the header says is checked below.
        place: Place::Bytes((8 + size).saturating_add(info.data_offsets.0 as u64)),
    });
    let stored = stored.collect();
    // Offsets that overlap or leave gaps, and shapes that are not those of the bytes.
    let checked = match Metadata::new(None, tensors) {
        Ok(checked) => checked,
        Err(error) => return damaged(error.to_string()),
    };
    match (8 + size).checked_add(checked.data_len() as u64) {
        Some(end) if end == length => Ok((stored, header.metadata)),
        Some(end) => damaged(format!("it has {length} bytes, its header speaks of {end}")),
        None => damaged("its header speaks of more bytes than any file has"),
    }
}

/// The header of a `.safetensors` file, with every key that it names.
struct Header {
    metadata: HashMap<String, String>,
    tensors: Vec<(String, TensorInfo)>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the names of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut metadata, mut tensors) = (None, Vec::new());
                while let Some(key) = map.next_key::<String>()? {
                    if key != "__metadata__" {
                        tensors.push((key, map.next_value()?));
                    } else if metadata.replace(map.next_value()?).is_some() {
                        return Err(de::Error::custom("`__metadata__` comes twice"));
                    }
                }
                Ok(Header { metadata: metadata.unwrap_or_default(), tensors })
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// How a `.npy` file begins.
pub(super) const NPY_MAGIC: &[u8] = b"\x93NUMPY";

/// The most bytes of a header of a `.npy` file, as in NumPy.
const NPY_HEADER_LIMIT: usize = 10_000;

/// The header of a `.npy` file, its length, and the bytes of all its values where they are floats.
struct NpyHeader {
    shape: Vec<usize>,
    dtype: Result<Number, String>,
    is_fortran: bool,
    length: u64,
    values: Option<u64>,
}

impl NpyHeader {
    fn read(reader: &mut dyn Read) -> Result<Self, Fault> {
        let mut bytes = vec![0; 10];
        reader.read_exact(&mut bytes)?;
        if !bytes.starts_with(NPY_MAGIC) {
            return damaged("it does not begin as .npy does");
        }
        let length = if bytes[6] == 1 {
            usize::from(u16::from_le_bytes([bytes[8], bytes[9]]))
        } else {
            let mut more = [0; 2];
            reader.read_exact(&mut more)?;
            bytes.extend(more);
            u32::from_le_bytes([bytes[8], bytes[9], more[0], more[1]]) as usize
        };
        if length > NPY_HEADER_LIMIT {
            return damaged(format!("its header takes {length} bytes"));
        }
        let start = bytes.len();
        bytes.resize(start + length, 0);
        reader.read_exact(&mut bytes[start..])?;
        // The parser goes back and forth more the deeper the brackets are; those of an array are two deep, those of records four.
        let (mut depth, mut deepest) = (0_usize, 0);
        for byte in &bytes[start..] {
            match byte {
                b'(' | b'[' | b'{' => depth += 1,
                b')' | b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            deepest = deepest.max(depth);
        }
        if deepest > 6 {
            return damaged("its header is no description of an array");
        }
        let text = String::from_utf8_lossy(&bytes[start..]);
        let Ok(py_literal::Value::Dict(entries)) = text.trim_end().parse() else {
            return damaged("its header is no description of an array");
        };
        let entry = |wanted: &str| entries.iter().find(|(key, _)| key.as_string().is_some_and(|key| key == wanted)).map(|(_, value)| value);
        let shape = entry("shape").and_then(|shape| {
            let sides = shape.as_tuple().or_else(|| shape.as_list())?;
            sides.iter().map(|side| usize::try_from(side.as_integer()?.clone()).ok()).collect::<Option<Vec<usize>>>()
        });
        let is_fortran = entry("fortran_order").and_then(py_literal::Value::as_boolean);
        let (Some(shape), Some(is_fortran), Some(dtype)) = (shape, is_fortran, entry("descr")) else {
            return damaged("its header does not tell shape, order and type of an array");
        };
        let dtype = npy_number(dtype);
        let width = dtype.as_ref().map_or(0, |number| number.float.bytes());
        let Some(values) = shape.iter().try_fold(width as u64, |count, &side| count.checked_mul(side as u64)) else {
            return damaged(format!("the shape {shape:?} holds more values than any file"));
        };
        Ok(Self { values: dtype.is_ok().then_some(values), shape, dtype, is_fortran, length: bytes.len() as u64 })
    }

    fn into_stored(self, name: String, place: Place) -> Stored {
        Stored { name, shape: self.shape, dtype: self.dtype, is_fortran: self.is_fortran, place }
    }
}

fn npy_number(dtype: &py_literal::Value) -> Result<Number, String> {
    let Some(text) = dtype.as_string() else { return Err("records".to_owned()) };
    let float = match text.get(1..) {
        Some("f8") => Float::F64,
        Some("f4") => Float::F32,
        Some("f2") => Float::F16,
        // NumPy has no name for bfloat16 and writes it as two bytes of anything.
        Some("V2") => return Err("values of two bytes without a type (bfloat16 loses its name in NumPy)".to_owned()),
        Some("O") => return Err("pickled Python objects".to_owned()),
        _ => return Err(format!("values of NumPy's type {text:?}")),
    };
    Ok(Number { float, is_big_endian: text.starts_with('>') })
}

/// The array of a `.npy` file.
pub(super) fn open_npy(reader: &mut dyn ReadSeek, length: u64) -> Result<Stored, Fault> {
    let header = NpyHeader::read(reader)?;
    if let Some(values) = header.values
        && header.length.checked_add(values) != Some(length)
    {
        let rest = length.saturating_sub(header.length);
        return damaged(format!("the shape {:?} takes {values} bytes, after the header there are {rest}", header.shape));
    }
    let place = Place::Bytes(header.length);
    Ok(header.into_stored("array".to_owned(), place))
}

/// How a zip archive (`.npz`, `.pt`) begins.
pub(super) const ZIP_MAGIC: &[u8] = b"PK";

/// A reader that gives a number of bytes and then an error.
struct Limited<R> {
    reader: R,
    left: Rc<Cell<u64>>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(bytes)?;
        self.left.set(self.left.get().checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?);
        Ok(read)
    }
}

impl<R: Seek> Seek for Limited<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.reader.seek(to)
    }
}

type Archive<'a> = zip::ZipArchive<Limited<Box<dyn ReadSeek + 'a>>>;

fn open_archive(reader: Box<dyn ReadSeek + '_>, length: u64) -> Result<Archive<'_>, Fault> {
    // A directory takes ten times its bytes in memory.
    let left = Rc::new(Cell::new((2 << 20) + length / 8));
    let archive = zip::ZipArchive::new(Limited { reader, left: left.clone() }).map_err(of_zip)?;
    left.set(u64::MAX);
    Ok(archive)
}

fn of_zip(error: zip::result::ZipError) -> Fault {
    match error {
        zip::result::ZipError::Io(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            Fault::Unsupported("its archive has more members than one of arrays".to_owned())
        }
        zip::result::ZipError::Io(error) => error.into(),
        other => Fault::Damaged(other.to_string()),
    }
}

/// The tensors of a file that `torch.save` has written; of any other file, what it is.
pub(super) fn open_torch(path: &Path) -> Result<Vec<Stored>, Fault> {
    let stored = read_tensors(path)?.into_iter().map(|tensor| Stored {
        name: if tensor.name().is_empty() { "tensor".to_owned() } else { tensor.name().to_owned() },
        shape: tensor.shape().to_vec(),
        dtype: match tensor.dtype() {
            StoredDtype::F64 => Ok(Number::little(Float::F64)),
            StoredDtype::F32 => Ok(Number::little(Float::F32)),
            StoredDtype::F16 => Ok(Number::little(Float::F16)),
            StoredDtype::Bf16 => Ok(Number::little(Float::Bf16)),
            StoredDtype::F8E4m3 => Ok(Number::little(Float::F8E4M3)),
            StoredDtype::F8E5m2 => Ok(Number::little(Float::F8E5M2)),
            other => Err(other.to_string().to_lowercase()),
        },
        is_fortran: false,
        place: Place::Checkpoint(tensor),
    });
    Ok(stored.collect())
}

/// The most bytes in f32 that a member of an archive may unfold to: compressed files could hold anything.
fn unfolded_limit(length: u64) -> u64 {
    length.saturating_mul(3).saturating_add(16 << 20)
}

/// The arrays of a `.npz` file; `None` for another kind of archive.
pub(super) fn open_npz(reader: Box<dyn ReadSeek + '_>, length: u64) -> Result<Option<Vec<Stored>>, Fault> {
    let mut archive = open_archive(reader, length)?;
    let mut stored = Vec::new();
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(of_zip)?;
        let Some(name) = member.name().ok().and_then(|name| Some(name.strip_suffix(".npy")?.to_owned())) else { continue };
        let size = member.size();
        let header = match NpyHeader::read(&mut member) {
            Ok(header) => header,
            Err(Fault::Damaged(message)) => return damaged(format!("in `{name}`: {message}")),
            Err(error) => return Err(error),
        };
        if let Some(values) = header.values
            && header.length.checked_add(values) != Some(size)
        {
            return damaged(format!("in `{name}`: the shape {:?} takes {values} bytes, the member has {size}", header.shape));
        }
        let place = Place::Member { index, skip: header.length };
        stored.push(header.into_stored(name, place));
    }
    Ok((!stored.is_empty()).then_some(stored))
}

/// The values of a tensor in f32, as they are stored.
pub(super) fn read_values(stored: &Stored, number: Number, mut reader: Box<dyn ReadSeek + '_>, length: u64) -> Result<Vec<f32>, Fault> {
    // Headers are checked against the bytes that there are when a file is opened.
    let count = stored.shape.iter().product::<usize>();
    match stored.place {
        Place::Checkpoint(ref tensor) => Ok(tensor.read_f32()?),
        Place::Bytes(start) => {
            reader.seek(SeekFrom::Start(start))?;
            Ok(number.read(&mut reader, count)?)
        }
        Place::Member { index, skip } => {
            let mut archive = open_archive(reader, length)?;
            let mut member = archive.by_index(index).map_err(of_zip)?;
            let limit = unfolded_limit(length);
            if count as u64 > limit / 4 {
                return damaged(format!("`{}` would unfold to {count} values from a file of {length} bytes; save it uncompressed", stored.name));
            }
            io::copy(&mut (&mut member).take(skip), &mut io::sink())?;
            let values = number.read(&mut member, count)?;
            // The end is where the archive's checksum is looked at.
            if io::copy(&mut member, &mut io::sink())? > 0 {
                return damaged(format!("`{}` has more bytes than its shape says", stored.name));
            }
            Ok(values)
        }
    }
}
