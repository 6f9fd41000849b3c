use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use vae_core::tensor_file::StoredDtype;

use super::super::format::head_of;
use super::super::tensor_writer::TensorWriter;
use super::super::{Format, FormatKind, IoError, Limits, Reader, Target, TensorHeader, TensorReader, Writer};
use super::{Fault, torch};

/// One array, as NumPy's `save` writes it.
pub(super) struct Npy;

impl Format for Npy {
    fn name(&self) -> &'static str {
        "npy"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["npy"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Tensors
    }

    fn matches(&self, head: &[u8]) -> bool {
        head.starts_with(MAGIC)
    }

    fn limits(&self) -> Limits {
        Limits { tensors: 1, metadata: false, ..Limits::NONE }
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        if !self.matches(&head_of(path)?) {
            // The reader of checkpoints says what it is.
            return torch::open(path);
        }
        let open = || {
            let file = File::open(path).map_err(Fault::Read)?;
            let length = file.metadata().map_err(Fault::Read)?.len();
            let header = NpyHeader::read(&mut BufReader::new(file))?;
            header.check(length)?;
            Ok(Array { path: path.to_owned(), headers: [header.header("array")], header })
        };
        open().map(|array| Reader::Tensors(Box::new(array))).map_err(|fault: Fault| fault.of(path))
    }

    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        if target.tensors.len() != 1 {
            return Err(IoError::OneTensor { path: target.path.to_owned() });
        }
        Ok(Box::new(TensorWriter::new(target, header)?))
    }
}

/// What precedes the values of an f32 array.
fn header(shape: &[usize]) -> io::Result<Vec<u8>> {
    let shape: Vec<u64> = shape.iter().map(|&side| side as u64).collect();
    let mut header = Vec::new();
    // The values come later: what is wanted is what the crate writes before the first.
    drop(npyz::WriteOptions::<f32>::new().default_dtype().shape(&shape).writer(&mut header).begin_nd()?);
    Ok(header)
}

#[derive(Debug)]
struct Array {
    path: PathBuf,
    headers: [TensorHeader; 1],
    header: NpyHeader,
}

impl TensorReader for Array {
    fn headers(&self) -> &[TensorHeader] {
        &self.headers
    }

    fn read(&self, _: usize) -> Result<Vec<f32>, IoError> {
        let read = || {
            let mut file = File::open(&self.path).map_err(Fault::Read)?;
            file.seek(SeekFrom::Start(self.header.length)).map_err(Fault::Read)?;
            self.header.read_values(&mut BufReader::new(file))
        };
        read().map_err(|fault: Fault| fault.of(&self.path))
    }
}

fn damaged<T>(message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Damaged(message.into()))
}

/// How a `.npy` file begins.
pub(super) const MAGIC: &[u8] = b"\x93NUMPY";

/// The most bytes of a header of a `.npy` file, as in NumPy.
const HEADER_LIMIT: usize = 10_000;

/// The header of a `.npy` file, its length, and the bytes of all its values where they are floats.
#[derive(Debug)]
pub(super) struct NpyHeader {
    shape: Vec<usize>,
    dtype: Result<Float, String>,
    is_fortran: bool,
    pub(super) length: u64,
    values: Option<u64>,
}

impl NpyHeader {
    pub(super) fn read(reader: &mut dyn Read) -> Result<Self, Fault> {
        let mut bytes = vec![0; 10];
        reader.read_exact(&mut bytes)?;
        if !bytes.starts_with(MAGIC) {
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
        if length > HEADER_LIMIT {
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
            return damaged("its header does not give shape, order and type of an array");
        };
        let dtype = float(dtype);
        let width = dtype.as_ref().map_or(0, Float::bytes);
        let Some(values) = shape.iter().try_fold(width as u64, |count, &side| count.checked_mul(side as u64)) else {
            return damaged(format!("the shape {shape:?} holds more values than any file"));
        };
        Ok(Self { values: dtype.is_ok().then_some(values), shape, dtype, is_fortran, length: bytes.len() as u64 })
    }

    /// What is wrong where the values take other bytes than the `length` that the array has, header included.
    pub(super) fn check(&self, length: u64) -> Result<(), Fault> {
        let Some(values) = self.values.filter(|&values| self.length.checked_add(values) != Some(length)) else { return Ok(()) };
        let rest = length.saturating_sub(self.length);
        damaged(format!("the shape {:?} takes {values} bytes, after the header there are {rest}", self.shape))
    }

    pub(super) fn header(&self, name: &str) -> TensorHeader {
        let unsupported = self.dtype.as_ref().err().cloned();
        TensorHeader { name: name.to_owned(), shape: self.shape.clone(), unsupported, is_fortran: self.is_fortran }
    }

    /// The number of values; the header has been checked against the bytes that there are.
    pub(super) fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Reads the values from where the header ends.
    pub(super) fn read_values(&self, reader: &mut dyn Read) -> Result<Vec<f32>, Fault> {
        match &self.dtype {
            Ok(float) => Ok(float.read(reader, self.count())?),
            Err(dtype) => Err(Fault::Unsupported(format!("of {dtype}"))),
        }
    }
}

/// A kind of float and the order of its bytes.
#[derive(Debug, Clone)]
struct Float {
    dtype: StoredDtype,
    is_big_endian: bool,
}

impl Float {
    fn bytes(&self) -> usize {
        self.dtype.size().unwrap_or_default()
    }

    /// Reads `count` values in f32. The caller has checked the count.
    fn read(&self, reader: &mut dyn Read, count: usize) -> io::Result<Vec<f32>> {
        let width = self.bytes();
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
            self.dtype.append_f32(&buffer[..part], &mut values);
            left -= part;
        }
        Ok(values)
    }
}

fn float(dtype: &py_literal::Value) -> Result<Float, String> {
    let Some(text) = dtype.as_string() else { return Err("records".to_owned()) };
    let dtype = match text.get(1..) {
        Some("f8") => StoredDtype::F64,
        Some("f4") => StoredDtype::F32,
        Some("f2") => StoredDtype::F16,
        // NumPy has no name for bfloat16 and writes it as two bytes of anything.
        Some("V2") => return Err("values of two bytes without a type (bfloat16 loses its name in NumPy)".to_owned()),
        Some("O") => return Err("pickled Python objects".to_owned()),
        _ => return Err(format!("values of NumPy's type {text:?}")),
    };
    Ok(Float { dtype, is_big_endian: text.starts_with('>') })
}
