use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};

use npyz::WriterBuilder;
use safetensors::tensor::{Metadata, TensorInfo, TensorView};
use safetensors::{Dtype, SafeTensors};
use tiling::Block;

use super::{FileKind, IoError, write_atomically};

/// Where a file says how large the picture was that its latents come from: `height` and `width` in px.
const SIZE_KEYS: [&str; 2] = ["tilevae.height", "tilevae.width"];

/// The raw tensors of a file.
#[derive(Debug)]
pub struct Tensors {
    path: PathBuf,
    by_name: BTreeMap<String, RawTensor>,
    picture_size: Option<[usize; 2]>,
}

#[derive(Debug)]
struct RawTensor {
    shape: Vec<usize>,
    values: Result<Vec<f32>, String>,
}

/// One raw tensor, as rank 5.
#[derive(Debug, Clone)]
pub struct Tensor {
    /// `[batch, channels, frames, height, width]`.
    pub block: Block,
    /// 4 or 5: how it was stored.
    pub rank: usize,
    /// Height and width of the picture that latents come from, in px, when the file says so.
    pub picture_size: Option<[usize; 2]>,
}

impl Tensors {
    /// Reads a `.safetensors` or `.npy` file. Floats of any width become f32.
    ///
    /// # Errors
    /// When the file cannot be read, is damaged, or is of another kind.
    pub fn read(path: &Path) -> Result<Self, IoError> {
        match FileKind::of(path)? {
            FileKind::Safetensors => read_safetensors(path),
            FileKind::Npy => read_npy(path),
            FileKind::Picture(_) => Err(IoError::UnknownKind { path: path.to_owned(), kinds: ".safetensors, .npy" }),
        }
    }

    /// The tensor `latents`, or the only one.
    ///
    /// # Errors
    /// When there is none, or it is not of rank 4 or 5.
    pub fn latents(self) -> Result<Tensor, IoError> {
        self.take("latents")
    }

    /// The tensor `samples`, or the only one.
    ///
    /// # Errors
    /// When there is none, or it is not of rank 4 or 5.
    pub fn samples(self) -> Result<Tensor, IoError> {
        self.take("samples")
    }

    fn take(mut self, wanted: &'static str) -> Result<Tensor, IoError> {
        let only = (self.by_name.len() == 1).then(|| self.by_name.keys().next().cloned()).flatten();
        let name = if self.by_name.contains_key(wanted) { Some(wanted.to_owned()) } else { only };
        let Some((name, raw)) = name.and_then(|name| self.by_name.remove_entry(&name)) else {
            return Err(IoError::NoTensor { path: self.path, wanted, found: self.by_name.into_keys().collect() });
        };
        let shape = match raw.shape[..] {
            [b, c, h, w] => [b, c, 1, h, w],
            [b, c, t, h, w] => [b, c, t, h, w],
            _ => return Err(IoError::Rank { path: self.path, name, shape: raw.shape }),
        };
        let values = raw.values.map_err(|dtype| IoError::Dtype { path: self.path.clone(), name, dtype })?;
        let damaged = IoError::Damaged { path: self.path, message: "a tensor has not as many values as its shape says".to_owned() };
        let block = Block::new(shape, values).ok_or(damaged)?;
        Ok(Tensor { block, rank: raw.shape.len(), picture_size: self.picture_size })
    }
}

fn read_safetensors(path: &Path) -> Result<Tensors, IoError> {
    let bytes = std::fs::read(path).map_err(|source| IoError::Read { path: path.to_owned(), source })?;
    let damaged = |error: safetensors::SafeTensorError| IoError::Damaged { path: path.to_owned(), message: error.to_string() };
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(damaged)?;
    let file = SafeTensors::deserialize(&bytes).map_err(damaged)?;
    let tensors = file.iter().map(|(name, view)| (name.to_owned(), RawTensor { shape: view.shape().to_vec(), values: floats(&view) }));
    Ok(Tensors { path: path.to_owned(), by_name: tensors.collect(), picture_size: picture_size(&metadata) })
}

fn picture_size(metadata: &Metadata) -> Option<[usize; 2]> {
    let text = metadata.metadata().as_ref()?;
    let [height, width] = SIZE_KEYS.map(|key| text.get(key)?.parse().ok());
    Some([height?, width?])
}

/// The values in f32, or the name of a dtype that is not a float's.
fn floats(view: &TensorView) -> Result<Vec<f32>, String> {
    let data = view.data();
    Ok(match view.dtype() {
        Dtype::F32 => data.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect(),
        Dtype::F64 => data.as_chunks().0.iter().map(|&bytes| f64::from_le_bytes(bytes) as f32).collect(),
        Dtype::F16 => data.as_chunks().0.iter().map(|&bytes| half::f16::from_le_bytes(bytes).to_f32()).collect(),
        Dtype::BF16 => data.as_chunks().0.iter().map(|&bytes| half::bf16::from_le_bytes(bytes).to_f32()).collect(),
        other => return Err(format!("{other:?}").to_lowercase()),
    })
}

fn read_npy(path: &Path) -> Result<Tensors, IoError> {
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
    let tensor = RawTensor { shape, values };
    Ok(Tensors { path: path.to_owned(), by_name: BTreeMap::from([("array".to_owned(), tensor)]), picture_size: None })
}

/// The values in f32; `None` for a dtype that is not a float's.
fn read_npy_values(npy: npyz::NpyFile<impl Read>, dtype: &str) -> Option<std::io::Result<Vec<f32>>> {
    match dtype.trim_matches('\'').get(1..)? {
        "f4" => Some(npy.into_vec()),
        "f8" => Some(npy.into_vec::<f64>().map(|values| values.into_iter().map(|value| value as f32).collect())),
        "f2" => Some(npy.into_vec::<half::f16>().map(|values| values.into_iter().map(half::f16::to_f32).collect())),
        _ => None,
    }
}

/// Writes named tensors in f32, as rank 4 (without frames) or 5. A `.npy` file takes one of them.
///
/// # Errors
/// When the file cannot be written or cannot hold them.
pub fn write_tensors(path: &Path, tensors: &[(&str, &Block)], rank: usize, picture_size: Option<[usize; 2]>) -> Result<(), IoError> {
    let error = |source| IoError::Write { path: path.to_owned(), source };
    let shape_of = |block: &Block| {
        let [b, c, t, h, w] = block.shape();
        if rank == 4 && t == 1 { vec![b, c, h, w] } else { vec![b, c, t, h, w] }
    };
    match (FileKind::of(path)?, tensors) {
        (FileKind::Npy, [(_, block)]) => write_atomically(path, |writer| {
            let shape: Vec<u64> = shape_of(block).into_iter().map(|side| side as u64).collect();
            let options = npyz::WriteOptions::new().default_dtype().shape(&shape);
            let mut npy = options.writer(writer).begin_nd().map_err(error)?;
            npy.extend(block.data()).and_then(|()| npy.finish()).map_err(error)
        }),
        (FileKind::Npy, _) => Err(IoError::OneTensor { path: path.to_owned() }),
        (FileKind::Safetensors, _) => write_atomically(path, |writer| {
            let size = picture_size.into_iter().flat_map(|size| SIZE_KEYS.into_iter().zip(size));
            let metadata: HashMap<String, String> = size.map(|(key, px)| (key.to_owned(), px.to_string())).collect();
            let mut infos = Vec::new();
            let mut end = 0;
            for (name, block) in tensors {
                let start = end;
                end += size_of_val(block.data());
                infos.push(((*name).to_owned(), TensorInfo { dtype: Dtype::F32, shape: shape_of(block), data_offsets: (start, end) }));
            }
            let header = Metadata::new((!metadata.is_empty()).then_some(metadata), infos);
            let header = header.map_err(|source| error(std::io::Error::other(source)))?;
            let mut header = serde_json::to_vec(&header).map_err(|source| error(source.into()))?;
            header.resize(header.len().next_multiple_of(8), b' ');
            writer.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| writer.write_all(&header)).map_err(error)?;
            let mut values = tensors.iter().flat_map(|(_, block)| block.data());
            values.try_for_each(|value| writer.write_all(&value.to_le_bytes())).map_err(error)
        }),
        (FileKind::Picture(_), _) => Err(IoError::UnknownKind { path: path.to_owned(), kinds: ".safetensors, .npy" }),
    }
}
