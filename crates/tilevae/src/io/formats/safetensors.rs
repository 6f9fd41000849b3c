use std::io;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::super::axes::Axes;
use super::super::tensor_writer::TensorWriter;
use super::super::{Format, FormatKind, IoError, Reader, Target, Writer};

/// Named tensors and metadata texts.
pub(super) struct Safetensors;

impl Format for Safetensors {
    fn name(&self) -> &'static str {
        "safetensors"
    }

    fn endings(&self) -> &'static [&'static str] {
        &["safetensors", "sft"]
    }

    fn kind(&self) -> FormatKind {
        FormatKind::Tensors
    }

    /// The length of a header below 16 TiB, and its first byte.
    fn matches(&self, head: &[u8]) -> bool {
        matches!(head, [_, _, _, _, _, 0, 0, 0, b'{', ..])
    }

    fn open(&self, path: &Path) -> Result<Reader, IoError> {
        super::torch::open(path)
    }

    fn create(&self, target: &Target<'_>) -> Result<Box<dyn Writer>, IoError> {
        Ok(Box::new(TensorWriter::new(target, |shape| header(target, shape))?))
    }
}

/// What precedes the values: f32 tensors of one shape, one after the other.
fn header(target: &Target<'_>, shape: &[usize]) -> io::Result<Vec<u8>> {
    let bytes = shape.iter().product::<usize>() * size_of::<f32>();
    let info = |(index, name): (usize, &&str)| {
        let info = TensorInfo { dtype: Dtype::F32, shape: shape.to_vec(), data_offsets: (index * bytes, (index + 1) * bytes) };
        ((*name).to_owned(), info)
    };
    let mut metadata = target.origin.to_metadata();
    if shape.len() == 4 && shape[0] > 1 {
        // A video model could take the batch for frames.
        metadata.insert("tilevae.axes".to_owned(), Axes::BCHW.to_string());
    }
    let metadata = Some(metadata).filter(|metadata| !metadata.is_empty());
    let header = Metadata::new(metadata, target.tensors.iter().enumerate().map(info).collect()).map_err(io::Error::other)?;
    // A hash map has another order each time; a file has the same bytes.
    let mut header = serde_json::to_value(&header)?;
    if let Some(serde_json::Value::Object(metadata)) = header.get_mut("__metadata__") {
        metadata.sort_keys();
    }
    let mut header = serde_json::to_vec(&header)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    Ok([&(header.len() as u64).to_le_bytes()[..], &header].concat())
}
