use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::module::Module;
use burn::store::burn_pack::{Error as PackError, Tensor};
use burn::store::{ApplyError, FloatCastAdapter, ModuleSnapshot};
use burn::tensor::{BoolStore, Bytes, DType};
use half::{bf16, slice::HalfFloatSliceExt};
use tiling::Stop;

use crate::VaeError;
use crate::tensor_file::{StoredDtype, StoredTensor};
use crate::weight_error::{Mismatch, WeightError};

/// Which components of a VAE are loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Components {
    /// Encoder and decoder.
    #[default]
    Both,
    /// Only the encoder.
    Encoder,
    /// Only the decoder.
    Decoder,
}

impl Components {
    /// The result of `make`, if the encoder is loaded.
    pub fn encoder<T>(self, make: impl FnOnce() -> T) -> Option<T> {
        (self != Self::Decoder).then(make)
    }

    /// The result of `make`, if the decoder is loaded.
    pub fn decoder<T>(self, make: impl FnOnce() -> T) -> Option<T> {
        (self != Self::Encoder).then(make)
    }
}

/// The tensors of a checkpoint, by name.
#[derive(Debug, Clone)]
pub struct Weights {
    pub(crate) path: PathBuf,
    pub(crate) tensors: BTreeMap<String, StoredTensor>,
    /// Names of the file's tensors that are not the model's.
    pub(crate) other_names: Vec<String>,
    pub(crate) components: Components,
    pub(crate) stop: Stop,
}

/// Words of which prefixes of tensor names consist, those that stand for a VAE first. In a file with a VAE, tensors under other such prefixes belong to
/// another model.
const PREFIXES: [&str; 16] = [
    "vae",
    "first_stage_model",
    "autoencoder",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "_orig_mod",
    "net",
    "params",
    "ema",
    "model_ema",
    "ema_model",
    "ema_state_dict",
    "state_dict_ema",
    "params_ema",
];
const VAE_PREFIXES: usize = 3;

/// Other components of pipelines and training states that may share the prefix of a VAE.
const OTHER_PARTS: [&str; 10] = [
    "diffusion_model",
    "cond_stage_model",
    "conditioner",
    "text_encoders",
    "text_encoder",
    "text_encoder_2",
    "unet",
    "transformer",
    "loss",
    "scheduler",
];

/// The order of preference among prefixes that hold the same tensors: a VAE's before others, plain weights before averages, then the shortest.
fn rank(prefix: &str) -> Option<(bool, bool, Vec<usize>)> {
    let words = prefix.split_terminator('.').map(|word| PREFIXES.iter().position(|known| *known == word)).collect::<Option<Vec<usize>>>()?;
    let is_average = words.iter().any(|&word| PREFIXES[word].contains("ema"));
    Some((!words.iter().any(|&word| word < VAE_PREFIXES), is_average, words))
}

impl Weights {
    /// Which components of the model are to be loaded. A family may load both nevertheless.
    pub fn components(&self) -> Components {
        self.components
    }

    pub(crate) fn only(self, components: Components) -> Self {
        Self { components, ..self }
    }

    /// The same tensors; `stop` cancels their loading.
    #[must_use]
    pub fn with_stop(self, stop: &Stop) -> Self {
        Self { stop: stop.clone(), ..self }
    }

    /// Leaves out the tensors of the component that is not to be loaded: those whose names begin with one of `encoder`, or one of `decoder`.
    #[must_use]
    pub fn of_components(mut self, encoder: &[&str], decoder: &[&str]) -> Self {
        let left_out = match self.components {
            Components::Both => &[],
            Components::Encoder => decoder,
            Components::Decoder => encoder,
        };
        self.tensors.retain(|name, _| !left_out.iter().any(|prefix| name.starts_with(prefix)));
        self
    }

    /// The tensors under the prefix of known words (`vae.`, `module.first_stage_model.`, …) that leads to one of `markers`, with the prefix removed. Tensors
    /// outside of it, or under another known word or component, are left out; [`Weights::file_has`] still finds their names. Unchanged if there is no marker.
    #[must_use]
    pub(crate) fn of_model(self, markers: &[&str]) -> Self {
        let prefixes = self.tensors.keys().filter_map(|name| markers.iter().find_map(|marker| name.strip_suffix(marker)));
        let Some(prefix) = prefixes.filter_map(|prefix| Some((rank(prefix)?, prefix))).min().map(|(_, prefix)| prefix.to_owned()) else {
            return self;
        };
        let mut other_names = self.other_names;
        let mut tensors = BTreeMap::new();
        for (name, mut tensor) in self.tensors {
            match name
                .strip_prefix(&prefix)
                .filter(|own| !own.split_once('.').is_some_and(|(word, _)| PREFIXES.contains(&word) || OTHER_PARTS.contains(&word)))
            {
                Some(own) => {
                    tensor.rename(own.to_owned());
                    tensors.insert(own.to_owned(), tensor);
                }
                None => other_names.push(name),
            }
        }
        Self { tensors, other_names, ..self }
    }

    /// Whether the file has a tensor whose name contains `part`, of this model or another.
    pub fn file_has(&self, part: &str) -> bool {
        self.names().chain(self.other_names.iter().map(String::as_str)).any(|name| name.contains(part))
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of the tensor `name`, if there is one.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|tensor| tensor.shape().to_vec())
    }

    /// The floating-point dtype with the most bytes.
    pub fn dtype(&self) -> DType {
        let mut bytes: Vec<(DType, usize)> = Vec::new();
        for (dtype, size) in self.tensors.values().map(|tensor| (burn_dtype(tensor.dtype()), tensor.values())).filter(|(dtype, _)| dtype.is_float()) {
            match bytes.iter_mut().find(|(known, _)| *known == dtype) {
                Some((_, sum)) => *sum = sum.saturating_add(size),
                None => bytes.push((dtype, size)),
            }
        }
        bytes.into_iter().max_by_key(|&(dtype, sum)| sum.saturating_mul(dtype.size())).map_or(DType::F32, |(dtype, _)| dtype)
    }

    /// Renames every tensor; those for which `rename` gives `None` are left out.
    #[must_use]
    pub fn renamed(self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let tensors = self.tensors.into_iter().filter_map(|(name, mut tensor)| {
            let name = rename(&name)?;
            tensor.rename(name.clone());
            Some((name, tensor))
        });
        Self { tensors: tensors.collect(), ..self }
    }

    /// Gives every tensor the shape that `shape` returns for its name and shape. A shape with another number of values is ignored.
    #[must_use]
    pub fn reshaped(mut self, shape: impl Fn(&str, &[usize]) -> Option<Vec<usize>>) -> Self {
        for tensor in self.tensors.values_mut() {
            let values = |shape: &[usize]| shape.iter().try_fold(1_usize, |values, &side| values.checked_mul(side));
            let fresh = shape(tensor.name(), tensor.shape()).filter(|fresh| values(fresh) == Some(tensor.values()));
            if let Some(fresh) = fresh {
                tensor.reshape(fresh);
            }
        }
        self
    }

    /// Loads every tensor into the parameter of `module` that has its name, cast to `dtype`. Enum variants do not add to the names.
    ///
    /// # Errors
    /// When names are missing or unexpected, shapes differ, or values cannot be read, all in one error; [`VaeError::Stopped`] when loading was stopped.
    pub fn apply<M: Module>(self, mut module: M, dtype: DType) -> Result<M, VaeError> {
        let (path, stop) = (self.path, self.stop);
        let unread: BTreeMap<String, StoredDtype> = self
            .tensors
            .values()
            .filter(|tensor| tensor.dtype().size().is_none())
            .map(|tensor| (tensor.name().to_owned(), tensor.dtype().clone()))
            .collect();
        let result = module.apply(
            self.tensors.into_values().map(|tensor| deferred(tensor, stop.clone())).collect(),
            None,
            Some(Box::new(FloatCastAdapter::to(dtype))),
            true,
        );
        if stop.is_stopped() {
            return Err(VaeError::Stopped);
        }
        let mut wrong: Vec<String> = result.errors.iter().map(|error| describe(error, &unread)).collect();
        wrong.sort();
        let named_wrong = |name: &str| wrong.iter().any(|text| text.starts_with(&format!("{name} ")));
        let mut missing: Vec<String> = result.missing.into_iter().map(|(name, _)| name).filter(|name| !named_wrong(name)).collect();
        let mut unexpected: Vec<String> = result.unused.into_iter().filter(|name| !named_wrong(name)).collect();
        missing.sort();
        unexpected.sort();
        if missing.is_empty() && unexpected.is_empty() && wrong.is_empty() {
            return Ok(module);
        }
        Err(WeightError::Mismatch { path, mismatch: Mismatch { missing, unexpected, wrong } }.into())
    }
}

fn describe(error: &ApplyError, unread: &BTreeMap<String, StoredDtype>) -> String {
    let (ApplyError::ShapeMismatch { path, .. }
    | ApplyError::DTypeMismatch { path, .. }
    | ApplyError::AdapterError { path, .. }
    | ApplyError::LoadError { path, .. }) = error;
    if let Some(dtype) = unread.get(path) {
        return format!("{path} is stored as {dtype}, which is not implemented");
    }
    match error {
        ApplyError::ShapeMismatch { path, expected, found } => {
            format!("{path} has the shape {:?}, expected {:?}", found.to_vec(), expected.to_vec())
        }
        ApplyError::DTypeMismatch { path, expected, found } => format!("{path} holds {found:?}, expected {expected:?}"),
        ApplyError::AdapterError { path, message } | ApplyError::LoadError { path, message } => format!("{path} cannot be read: {message}"),
    }
}

/// A tensor that is read when Burn needs its values.
fn deferred(tensor: StoredTensor, stop: Stop) -> Tensor {
    let dtype = burn_dtype(tensor.dtype());
    let (name, shape) = (tensor.name().to_owned(), tensor.shape().to_vec());
    let bytes = tensor.values().saturating_mul(dtype.size());
    Tensor::deferred(name, dtype, shape, None, bytes, move || {
        if stop.is_stopped() {
            return Err(PackError::ValidationError("the run was stopped".to_owned()));
        }
        let failed = |error: WeightError| PackError::ValidationError(error.to_string());
        if matches!(tensor.dtype(), StoredDtype::F8E4m3 | StoredDtype::F8E5m2) {
            let values = tensor.read_f32().map_err(failed)?;
            let mut narrow = vec![bf16::ZERO; values.len()];
            narrow.convert_from_f32_slice(&values);
            return Ok(Bytes::from_elems(narrow));
        }
        Ok(Bytes::from_bytes_vec(tensor.read_bytes().map_err(failed)?))
    })
}

/// The dtype in which values are handed to Burn, which has no 8-bit floats: bf16 represents all their values.
fn burn_dtype(dtype: &StoredDtype) -> DType {
    match dtype {
        StoredDtype::F64 => DType::F64,
        StoredDtype::F16 => DType::F16,
        StoredDtype::Bf16 | StoredDtype::F8E4m3 | StoredDtype::F8E5m2 => DType::BF16,
        StoredDtype::I64 => DType::I64,
        StoredDtype::I32 => DType::I32,
        StoredDtype::I16 => DType::I16,
        StoredDtype::I8 => DType::I8,
        StoredDtype::U64 => DType::U64,
        StoredDtype::U32 => DType::U32,
        StoredDtype::U16 => DType::U16,
        StoredDtype::U8 => DType::U8,
        StoredDtype::Bool => DType::Bool(BoolStore::Native),
        // A dtype that cannot be read is an error when the tensor is read.
        StoredDtype::F32 | StoredDtype::Other(_) => DType::F32,
    }
}
