use std::collections::HashMap;
use std::path::{Path, PathBuf};

use vae_core::WeightError;
use vae_core::tensor_file::{self, StoredTensor};

use super::super::{Format, FormatKind, IoError, Reader, TensorHeader, TensorReader};
use super::Fault;

/// What `torch.save` writes.
pub(super) struct Torch;

impl Format for Torch {
    fn name(&self) -> &'static str {
        "torch"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["pt", "pth"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Tensors
    }

    /// Pickles; zip archives are looked into by `Npz`.
    fn matches(&self, head: &[u8]) -> bool {
        matches!(head, [0x80, 2..=5, ..])
    }

    fn is_written(&self) -> bool {
        false
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        open(path)
    }
}

/// Opens what the reader of checkpoints opens: safetensors and torch files. Of any other file it says what it is.
pub(super) fn open(path: &Path) -> Result<Reader, IoError> {
    let length = std::fs::metadata(path).map_err(|source| Fault::Read(source).of(path))?.len();
    if length <= 8 {
        return Err(Fault::Damaged(format!("it has {length} bytes")).of(path));
    }
    let file = tensor_file::open(path).map_err(|error| Fault::from(error).of(path))?;
    let mut tensors = file.tensors;
    tensors.sort_by_cached_key(|tensor| tensor.name().to_owned());
    let headers = tensors.iter().map(|tensor| TensorHeader {
        name: if tensor.name().is_empty() { "tensor".to_owned() } else { tensor.name().to_owned() },
        shape: tensor.shape().to_vec(),
        unsupported: (!tensor.dtype().is_float()).then(|| tensor.dtype().to_string().to_lowercase()),
        is_fortran: false,
    });
    Ok(Reader::Tensors(Box::new(Checkpoint { path: path.to_owned(), headers: headers.collect(), tensors, metadata: file.metadata })))
}

#[derive(Debug)]
struct Checkpoint {
    path: PathBuf,
    headers: Vec<TensorHeader>,
    tensors: Vec<StoredTensor>,
    metadata: HashMap<String, String>,
}

impl TensorReader for Checkpoint {
    fn headers(&self) -> &[TensorHeader] {
        &self.headers
    }

    fn metadata(&self) -> HashMap<String, String> {
        self.metadata.clone()
    }

    fn read(&self, index: usize) -> Result<Vec<f32>, IoError> {
        self.tensors[index].read_f32().map_err(|error| Fault::from(error).of(&self.path))
    }
}

impl From<WeightError> for Fault {
    fn from(error: WeightError) -> Self {
        match error {
            WeightError::Io { source, .. } => Self::Read(source),
            WeightError::Damaged { message, .. } => Self::Damaged(message),
            WeightError::Unsupported { message, .. } => Self::NotSupported(message),
            WeightError::NotWeights { what, hint, .. } => Self::NotSupported(format!("it is {what}; {hint}")),
            other => Self::NotSupported(other.to_string()),
        }
    }
}
