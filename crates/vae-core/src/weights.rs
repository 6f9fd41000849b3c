use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Component, Path, PathBuf};

use burn::module::Module;
use burn::store::bridge::deferred;
use burn::store::burn_pack::{Error as PackError, Tensor};
use burn::store::{ApplyError, FloatCastAdapter, ModuleAdapter, ModuleContext, ModuleSnapshot, ModuleStore, PytorchStore, SafetensorsStore};
use burn::tensor::DType;
use serde_json::Value;

use crate::layers::{check_stop, is_stopped};

/// What can be wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// A file that cannot be opened or read.
    #[error("{} cannot be read", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A JSON file that is none.
    #[error("{} is not valid JSON of the expected form", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A folder without weights.
    #[error("{} holds no weights; looked for {looked_for}", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// File names.
        looked_for: &'static str,
    },
    /// A file whose name ends in none of the known ways.
    #[error("{} is not a kind of checkpoint that can be read; kinds are {kinds}", path.display())]
    UnknownKind {
        /// The file.
        path: PathBuf,
        /// File name endings.
        kinds: &'static str,
    },
    /// A weight file that is damaged or not what its name says.
    #[error("{} is damaged or not a checkpoint: {message}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the reader found.
        message: String,
    },
    /// An index that names a file outside its folder.
    #[error("{} names the shard `{shard}`, which is not a file beside it", path.display())]
    ShardPath {
        /// The index.
        path: PathBuf,
        /// The name in it.
        shard: String,
    },
    /// Tensors that do not fit the model.
    #[error("{} does not fit the model:{mismatch}", path.display())]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit.
        mismatch: Mismatch,
    },
}

/// The tensors of a checkpoint that do not fit a model.
#[derive(Debug, Default)]
pub struct Mismatch {
    /// Names that the model has and the checkpoint lacks.
    pub missing: Vec<String>,
    /// Names that the checkpoint has and the model lacks.
    pub unexpected: Vec<String>,
    /// Tensors with another shape or kind of value, or that cannot be read.
    pub wrong: Vec<String>,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 8;
        for (title, names) in [("missing", &self.missing), ("unexpected", &self.unexpected), ("wrong", &self.wrong)] {
            if !names.is_empty() {
                write!(f, "\n  {title} ({}): {}", names.len(), names[..names.len().min(SHOWN)].join(", "))?;
                if names.len() > SHOWN {
                    write!(f, ", and {} more", names.len() - SHOWN)?;
                }
            }
        }
        Ok(())
    }
}

const FOLDER_FILES: &str = "diffusion_pytorch_model[.VARIANT].safetensors, its .index[.VARIANT].json, or diffusion_pytorch_model.bin";
const KINDS: &str = ".safetensors, .safetensors.index.json, .pth, .pt, .bin, .ckpt";

/// A checkpoint on disk: a diffusers folder, a whole pipeline's folder (its `vae` is taken), or a single file.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    config: Option<Value>,
}

impl Checkpoint {
    /// Reads what stands beside the weights; `config` takes the place of the checkpoint's own `config.json`.
    ///
    /// # Errors
    /// When `path` does not exist or a configuration cannot be read.
    pub fn open(path: &Path, config: Option<&Path>) -> Result<Self, WeightError> {
        let meta = fs::metadata(path).map_err(|source| WeightError::Io { path: path.to_owned(), source })?;
        let path = if meta.is_dir() && path.join("vae/config.json").is_file() { path.join("vae") } else { path.to_owned() };
        let beside = if meta.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") };
        // A file in a folder of other things: the configuration there is its own only if it says what it is.
        let own = |config: &Value| meta.is_dir() || config.get("_class_name").is_some();
        let config = match config {
            Some(given) => Some(read_json(given)?),
            None if beside.is_file() => Some(read_json(&beside)?).filter(own),
            None => None,
        };
        Ok(Self { path, config })
    }

    /// The fields of the configuration.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref()
    }

    /// The class that the configuration names.
    pub fn class_name(&self) -> Option<&str> {
        self.config.as_ref()?.get("_class_name")?.as_str()
    }

    /// The names, shapes and dtypes of all tensors. Values are read when they are applied.
    ///
    /// # Errors
    /// When there is no weight file, or one is damaged.
    pub fn weights(&self) -> Result<Weights, WeightError> {
        let file = if self.path.is_dir() { weight_file(&self.path)? } else { self.path.clone() };
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let files = if is_index(name) { shards(&file)? } else { vec![file] };
        let mut tensors = BTreeMap::new();
        for file in files {
            tensors.extend(read_tensors(&file)?.into_iter().map(|tensor| (tensor.name.clone(), tensor)));
        }
        Ok(Weights { path: self.path.clone(), tensors, halves: Halves::Both })
    }
}

fn read_json(path: &Path) -> Result<Value, WeightError> {
    let text = fs::read_to_string(path).map_err(|source| WeightError::Io { path: path.to_owned(), source })?;
    serde_json::from_str(&text).map_err(|source| WeightError::Json { path: path.to_owned(), source })
}

/// `NAME.safetensors.index.json`, and with a variant `NAME.safetensors.index.fp16.json`.
fn is_index(name: &str) -> bool {
    name.contains(".index.") && Path::new(name).extension().is_some_and(|extension| extension == "json")
}

fn weight_file(folder: &Path) -> Result<PathBuf, WeightError> {
    let entries = fs::read_dir(folder).map_err(|source| WeightError::Io { path: folder.to_owned(), source })?;
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let is = |name: &str, end: &str| name.starts_with("diffusion_pytorch_model.") && name.ends_with(end);
    // The plain file first, then its index, then variants (`.fp16.`) and theirs, then pickles.
    let orders: [&dyn Fn(&str) -> bool; 5] = [
        &|name| name == "diffusion_pytorch_model.safetensors",
        &|name| name == "diffusion_pytorch_model.safetensors.index.json",
        &|name| is(name, ".safetensors") && !name.contains("-of-"),
        &is_index,
        &|name| is(name, ".bin"),
    ];
    let found = orders.iter().find_map(|fits| names.iter().find(|name| fits(name)));
    found.map(|name| folder.join(name)).ok_or_else(|| WeightError::NoWeights { path: folder.to_owned(), looked_for: FOLDER_FILES })
}

fn shards(index: &Path) -> Result<Vec<PathBuf>, WeightError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index = serde_json::from_value(read_json(index)?).map_err(|source| WeightError::Json { path: index.to_owned(), source })?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let beside = |name: String| match Path::new(&name).components().collect::<Vec<_>>()[..] {
        [Component::Normal(_)] => Ok(index.with_file_name(&name)),
        _ => Err(WeightError::ShardPath { path: index.to_owned(), shard: name }),
    };
    names.into_iter().map(beside).collect()
}

fn read_tensors(path: &Path) -> Result<Vec<Tensor>, WeightError> {
    fs::File::open(path).map_err(|source| WeightError::Io { path: path.to_owned(), source })?;
    let damaged = |message: String| WeightError::Damaged { path: path.to_owned(), message };
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    // The pickle reader meets arbitrary bytes: a panic of its own is one more way of saying that the file is damaged.
    let read = catch_unwind(AssertUnwindSafe(|| match extension {
        "safetensors" => Ok(tensors_of(SafetensorsStore::from_file(path))),
        "pth" | "pt" | "bin" | "ckpt" => {
            let store = || PytorchStore::from_file(path).map_indices_contiguous(false);
            let nested = tensors_of(store().with_top_level_key("state_dict")).ok().filter(|tensors| !tensors.is_empty());
            Ok(nested.map_or_else(|| tensors_of(store()), Ok))
        }
        _ => Err(WeightError::UnknownKind { path: path.to_owned(), kinds: KINDS }),
    }));
    match read {
        Ok(Ok(tensors)) => tensors.map_err(damaged),
        Ok(Err(unknown)) => Err(unknown),
        Err(_) => Err(damaged("the reader could not make sense of it".to_owned())),
    }
}

fn tensors_of(mut store: impl ModuleStore) -> Result<Vec<Tensor>, String> {
    store.get_all_tensors().map(|tensors| tensors.values().cloned().collect()).map_err(|error| error.to_string())
}

/// Which halves of a VAE run, and so are loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Halves {
    /// Encoder and decoder.
    #[default]
    Both,
    /// Only the encoder.
    Encoder,
    /// Only the decoder.
    Decoder,
}

impl Halves {
    /// What `make` gives, when the encoder runs.
    pub fn encoder<T>(self, make: impl FnOnce() -> T) -> Option<T> {
        (self != Self::Decoder).then(make)
    }

    /// What `make` gives, when the decoder runs.
    pub fn decoder<T>(self, make: impl FnOnce() -> T) -> Option<T> {
        (self != Self::Encoder).then(make)
    }
}

/// The tensors of a checkpoint, by name.
#[derive(Debug, Clone)]
pub struct Weights {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    halves: Halves,
}

impl Weights {
    /// Which halves of the model are to be loaded. A family may load both all the same.
    pub fn halves(&self) -> Halves {
        self.halves
    }

    pub(crate) fn only(self, halves: Halves) -> Self {
        Self { halves, ..self }
    }

    /// Leaves out the tensors of the half that is not to be loaded: those whose names begin with one of `encoder`, or one of `decoder`.
    #[must_use]
    pub fn of_halves(mut self, encoder: &[&str], decoder: &[&str]) -> Self {
        let left_out = match self.halves {
            Halves::Both => &[],
            Halves::Encoder => decoder,
            Halves::Decoder => encoder,
        };
        self.tensors.retain(|name, _| !left_out.iter().any(|prefix| name.starts_with(prefix)));
        self
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, when there is one of that name.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|tensor| tensor.shape.to_vec())
    }

    /// The dtype of most of the values.
    pub fn dtype(&self) -> DType {
        let mut bytes: Vec<(DType, usize)> = Vec::new();
        for tensor in self.tensors.values().filter(|tensor| tensor.dtype.is_float()) {
            match bytes.iter_mut().find(|(dtype, _)| *dtype == tensor.dtype) {
                Some((_, sum)) => *sum += tensor.byte_len(),
                None => bytes.push((tensor.dtype, tensor.byte_len())),
            }
        }
        bytes.into_iter().max_by_key(|&(_, sum)| sum).map_or(DType::F32, |(dtype, _)| dtype)
    }

    /// Renames every tensor; those for which `rename` gives `None` are left out.
    #[must_use]
    pub fn renamed(self, rename: impl Fn(&str) -> Option<String>) -> Self {
        let tensors = self.tensors.into_iter().filter_map(|(name, mut tensor)| {
            tensor.name = rename(&name)?;
            Some((tensor.name.clone(), tensor))
        });
        Self { tensors: tensors.collect(), path: self.path, halves: self.halves }
    }

    /// Gives every tensor the shape that `shape` makes of its name and shape; where the number of values would change, it stays as it is.
    #[must_use]
    pub fn reshaped(mut self, shape: impl Fn(&str, &[usize]) -> Option<Vec<usize>>) -> Self {
        for tensor in self.tensors.values_mut() {
            let fresh = shape(&tensor.name, &tensor.shape).filter(|fresh| fresh.iter().product::<usize>() == tensor.shape.iter().product::<usize>());
            if let Some(fresh) = fresh {
                tensor.shape = fresh.into();
            }
        }
        self
    }

    /// Puts every tensor into the field of `module` that has its name, cast to `dtype`.
    ///
    /// # Errors
    /// When names are missing or left over, shapes differ, or values cannot be read: all of it in one error.
    pub fn apply<M: Module>(self, mut module: M, dtype: DType) -> Result<M, WeightError> {
        let path = self.path;
        let result = module.apply(self.tensors.into_values().collect(), None, Some(Box::new(Watchful.chain(FloatCastAdapter::to(dtype)))), true);
        check_stop();
        let mut wrong: Vec<String> = result.errors.iter().map(describe).collect();
        wrong.sort();
        let named_wrong = |name: &str| wrong.iter().any(|text| text.starts_with(&format!("{name} ")));
        let mut missing: Vec<String> = result.missing.into_iter().map(|(name, _)| name).filter(|name| !named_wrong(name)).collect();
        let mut unexpected: Vec<String> = result.unused.into_iter().filter(|name| !named_wrong(name)).collect();
        missing.sort();
        unexpected.sort();
        if missing.is_empty() && unexpected.is_empty() && wrong.is_empty() {
            return Ok(module);
        }
        Err(WeightError::Mismatch { path, mismatch: Mismatch { missing, unexpected, wrong } })
    }
}

/// Has nothing more read once the run that loads is stopped. Burn does not let a panic out of here.
#[derive(Debug, Clone)]
struct Watchful;

impl ModuleAdapter for Watchful {
    fn adapt(&self, tensor: Tensor, _: ModuleContext<'_>) -> Tensor {
        if !is_stopped() {
            return tensor;
        }
        let Tensor { name, dtype, shape, .. } = tensor;
        deferred(name, dtype, shape, None, || Err(PackError::ValidationError(String::new())))
    }

    fn clone_box(&self) -> Box<dyn ModuleAdapter> {
        Box::new(self.clone())
    }
}

fn describe(error: &ApplyError) -> String {
    match error {
        ApplyError::ShapeMismatch { path, expected, found } => {
            format!("{path} has the shape {:?}, expected {:?}", found.to_vec(), expected.to_vec())
        }
        ApplyError::DTypeMismatch { path, expected, found } => format!("{path} holds {found:?}, expected {expected:?}"),
        ApplyError::AdapterError { path, message } | ApplyError::LoadError { path, message } => format!("{path} cannot be read: {message}"),
    }
}
