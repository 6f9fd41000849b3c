use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use burn::module::Module;
use burn::store::burn_pack::{Error as PackError, Tensor};
use burn::store::{ApplyError, FloatCastAdapter, ModuleSnapshot};
use burn::tensor::{BoolStore, Bytes, DType};
use half::{bf16, slice::HalfFloatSliceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tiling::Stop;

use crate::VaeError;
use crate::tensor_file::{Content, Source, StoredDtype, StoredTensor, content, read_tensors};

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
    /// The name of a model on a hub, or its address, where a folder or file should be.
    #[error("there is no `{name}` here, and nothing is downloaded: {way_out}")]
    NotLocal {
        /// What was given.
        name: String,
        /// How to have it here.
        way_out: String,
    },
    /// A file that is sound and no checkpoint.
    #[error("{} is {what}, no checkpoint; {hint}", path.display())]
    NotWeights {
        /// The file.
        path: PathBuf,
        /// What it is.
        what: String,
        /// What to do.
        hint: &'static str,
    },
    /// A checkpoint that is sound, of a kind that is not implemented.
    #[error("{} cannot be read: {message}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Of what kind it is, and the way out.
        message: String,
    },
    /// A file that is cut or contradicts itself.
    #[error("{} is damaged: {message}", path.display())]
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

/// How the weight files of a folder of diffusers begin.
const WEIGHTS: &str = "diffusion_pytorch_model";
const FOLDER_FILES: &str = "diffusion_pytorch_model[.VARIANT].safetensors, its .index[.VARIANT].json, or diffusion_pytorch_model.bin";

/// What a `config.json` and an index may have in bytes: JSON takes many times its length in memory.
const MAX_CONFIG: u64 = 1 << 18;
const MAX_INDEX: u64 = 1 << 23;

/// A checkpoint on disk: a diffusers folder, a whole pipeline's folder (its `vae` is taken), or a single file.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    config: Option<(PathBuf, Value)>,
    neighbour: Option<Neighbour>,
}

/// The `config.json` that lies beside a single file, whose it need not be.
#[derive(Debug, Clone)]
pub(crate) struct Neighbour {
    pub(crate) path: PathBuf,
    /// Its fields, or why they cannot be read.
    pub(crate) config: Result<Value, String>,
    /// Another file of weights, whose it may be.
    pub(crate) rival: Option<String>,
}

impl Checkpoint {
    /// Reads what stands beside the weights; `config` takes the place of the checkpoint's own `config.json`.
    ///
    /// # Errors
    /// When `path` does not exist or a configuration cannot be read.
    pub fn open(path: &Path, config: Option<&Path>) -> Result<Self, WeightError> {
        let meta = fs::metadata(path).map_err(|source| missing(path, source))?;
        let path = if meta.is_dir() && path.join("vae/config.json").is_file() { path.join("vae") } else { path.to_owned() };
        let beside = if meta.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_own = meta.is_dir() || name.starts_with(WEIGHTS);
        let own = config.map(Path::to_owned).or_else(|| Some(beside.clone()).filter(|beside| is_own && beside.is_file()));
        let neighbour = (config.is_none() && !is_own && beside.is_file()).then(|| Neighbour {
            config: read_config(&beside).map_err(|error| error.to_string()),
            rival: rival(&path, name),
            path: beside,
        });
        let config = own.map(|own| read_config(&own).map(|config| (own, config))).transpose()?;
        Ok(Self { path, config, neighbour })
    }

    /// The fields of the configuration: the one given, that of the folder, or that beside a `diffusion_pytorch_model*`. Whether a `config.json` beside another single file is
    /// the file's own is for [`Model::open`](crate::Model::open) to judge.
    pub fn config(&self) -> Option<&Value> {
        self.config.as_ref().map(|(_, config)| config)
    }

    /// The class that the configuration names.
    pub fn class_name(&self) -> Option<&str> {
        self.config()?.get("_class_name")?.as_str()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn config_path(&self) -> Option<&Path> {
        self.config.as_ref().map(|(path, _)| path.as_path())
    }

    pub(crate) fn neighbour(&self) -> Option<&Neighbour> {
        self.neighbour.as_ref()
    }

    /// All files that it is read from, as far as they can be found.
    pub fn files(&self) -> Vec<PathBuf> {
        let (file, parts) = self.weight_files().unwrap_or_else(|_| (self.path.clone(), Vec::new()));
        let configs = self.config_path().into_iter().chain(self.neighbour().map(|neighbour| neighbour.path.as_path()));
        [file].into_iter().chain(parts).chain(configs.map(Path::to_owned)).collect()
    }

    /// The file of weights, which may be an index, and the files that hold them.
    fn weight_files(&self) -> Result<(PathBuf, Vec<PathBuf>), WeightError> {
        let file = if self.path.is_dir() { weight_file(&self.path)? } else { self.path.clone() };
        let parts = if content(&Source::open(&file)?)? == Content::Json { shards(&file)? } else { vec![file.clone()] };
        Ok((file, parts))
    }

    /// The names, shapes and dtypes of all tensors. Values are read when they are applied.
    ///
    /// # Errors
    /// When there is no weight file, or one cannot be read.
    pub fn weights(&self) -> Result<Weights, WeightError> {
        let mut tensors = BTreeMap::new();
        for file in self.weight_files()?.1 {
            tensors.extend(read_tensors(&file)?.into_iter().map(|tensor| (tensor.name().to_owned(), tensor)));
        }
        Ok(Weights { path: self.path.clone(), tensors, beside: Vec::new(), components: Components::Both, stop: Stop::default() })
    }
}

/// Why there is nothing at `path`.
fn missing(path: &Path, source: io::Error) -> WeightError {
    let not_found = matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let Some(given) = path.to_str().filter(|_| not_found) else { return WeightError::Io { path: path.to_owned(), source } };
    if let Some((_, address)) = given.split_once("https:/").or_else(|| given.split_once("http:/")) {
        let way_out = "download the file, and give its path".to_owned();
        return WeightError::NotLocal { name: format!("https://{}", address.trim_start_matches('/')), way_out };
    }
    // `organisation/model`, in the working folder or in that of a configuration.
    let words: Vec<&str> = given.rsplit('/').take(2).collect();
    let is_word = |word: &&str| !word.is_empty() && !word.starts_with('.') && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let is_file = ENDINGS.iter().chain(&[".json"]).any(|end| given.to_ascii_lowercase().ends_with(end));
    let above = path.parent().and_then(Path::parent).is_some_and(|above| above.as_os_str().is_empty() || above.is_dir());
    match words[..] {
        [model, organisation] if !is_file && above && !path.parent().is_some_and(Path::exists) && [model, organisation].iter().all(is_word) => {
            let name = format!("{organisation}/{model}");
            let way_out = format!(
                "if it is the name of a model on the Hugging Face Hub, `hf download {name} --local-dir {model}` fetches it, and `{model}` is its path"
            );
            WeightError::NotLocal { name, way_out }
        }
        _ => WeightError::Io { path: path.to_owned(), source },
    }
}

fn read_config(path: &Path) -> Result<Value, WeightError> {
    let config: Value = read_json(path, MAX_CONFIG)?;
    if config.is_object() {
        return Ok(config);
    }
    // A list would pass for fields that all have their defaults.
    Err(WeightError::Unsupported { path: path.to_owned(), message: "it is no JSON object, as the configuration of a model is".to_owned() })
}

fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T, WeightError> {
    let io = |source| WeightError::Io { path: path.to_owned(), source };
    let mut text = Vec::new();
    fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut text)).map_err(io)?;
    if text.len() as u64 > limit {
        return Err(WeightError::Unsupported { path: path.to_owned(), message: format!("it has more than {limit} bytes, which no such file needs") });
    }
    serde_json::from_slice(&text).map_err(|source| WeightError::Json { path: path.to_owned(), source })
}

/// How names of weight files end, in small letters.
const ENDINGS: [&str; 6] = [".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt"];

/// The name of a weight file of another model beside `path`; one of diffusers comes first.
fn rival(path: &Path, name: &str) -> Option<String> {
    // Of one model are the kinds, shards and variants of one name.
    let stem = |name: &str| {
        let lower = name.to_ascii_lowercase();
        let stem =
            lower.split_once(".safetensors.index.").map(|(stem, _)| stem).or_else(|| ENDINGS.iter().find_map(|end| lower.strip_suffix(end)))?;
        let stem = stem.split_once("-of-").map_or(stem, |(shard, _)| shard.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-'));
        Some(["fp16", "bf16", "fp32"].iter().find_map(|variant| stem.strip_suffix(variant)?.strip_suffix(['.', '-', '_'])).unwrap_or(stem).to_owned())
    };
    let own = stem(name).unwrap_or_else(|| name.to_ascii_lowercase());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| stem(name).is_some_and(|stem| stem != own)).min_by_key(|name| (!name.starts_with(WEIGHTS), name.clone()))
}

fn weight_file(folder: &Path) -> Result<PathBuf, WeightError> {
    let entries = fs::read_dir(folder).map_err(|source| WeightError::Io { path: folder.to_owned(), source })?;
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let is = |name: &str, end: &str| name.starts_with(WEIGHTS) && name.to_ascii_lowercase().ends_with(end);
    // The plain file first, then its index, then variants (`.fp16.`) and theirs, then pickles.
    let orders: [&dyn Fn(&str) -> bool; 6] = [
        &|name| name == "diffusion_pytorch_model.safetensors",
        &|name| name == "diffusion_pytorch_model.safetensors.index.json",
        &|name| is(name, ".safetensors") && !name.contains("-of-"),
        &|name| is(name, ".json") && name.contains(".index."),
        &|name| is(name, ".sft"),
        &|name| ENDINGS.iter().any(|end| is(name, end)) && !name.contains("-of-"),
    ];
    let found = orders.iter().find_map(|fits| names.iter().find(|name| fits(name)));
    found.map(|name| folder.join(name)).ok_or_else(|| WeightError::NoWeights { path: folder.to_owned(), looked_for: FOLDER_FILES })
}

fn shards(index: &Path) -> Result<Vec<PathBuf>, WeightError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let parsed: Index = read_json(index, MAX_INDEX)?;
    let mut names: Vec<String> = parsed.weight_map.into_values().collect();
    names.sort();
    names.dedup();
    let beside = |name: String| match Path::new(&name).components().collect::<Vec<_>>()[..] {
        [Component::Normal(_)] => Ok(index.with_file_name(&name)),
        _ => Err(WeightError::ShardPath { path: index.to_owned(), shard: name }),
    };
    names.into_iter().map(beside).collect()
}

/// Which components of a VAE run, and so are loaded.
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
    tensors: BTreeMap<String, StoredTensor>,
    /// Names of the file that are not the model's.
    beside: Vec<String>,
    components: Components,
    stop: Stop,
}

/// Words that stand before the names of a VAE's tensors, in any nest, those that speak of a VAE first. In one file with a VAE, tensors below other such words are another
/// model's.
const NESTS: [&str; 16] = [
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
const VAE_NESTS: usize = 3;

/// Parts of whole checkpoints and of trainers that may lie in a nest beside a VAE.
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

/// Of nests that hold the same tensors, the one that is taken: a VAE's before others, plain ones before averages, then the shallowest.
fn rank(nest: &str) -> Option<(bool, bool, Vec<usize>)> {
    let words = nest.split_terminator('.').map(|word| NESTS.iter().position(|known| *known == word)).collect::<Option<Vec<usize>>>()?;
    let is_average = words.iter().any(|&word| NESTS[word].contains("ema"));
    Some((!words.iter().any(|&word| word < VAE_NESTS), is_average, words))
}

impl Weights {
    /// Which components of the model are to be loaded. A family may load both all the same.
    pub fn components(&self) -> Components {
        self.components
    }

    pub(crate) fn only(self, components: Components) -> Self {
        Self { components, ..self }
    }

    /// The same tensors, whose loading `stop` ends.
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

    /// The tensors below the nest of known words (`vae.`, `module.first_stage_model.`, …) in which one of `markers` lies, without that nest. Those below other such words or known parts of other models,
    /// or outside the nest, are left out; [`Weights::file_has`] still knows their names. As it is, when there is none.
    #[must_use]
    pub(crate) fn of_model(self, markers: &[&str]) -> Self {
        let nests = self.tensors.keys().filter_map(|name| markers.iter().find_map(|marker| name.strip_suffix(marker)));
        let Some(nest) = nests.filter_map(|nest| Some((rank(nest)?, nest))).min().map(|(_, nest)| nest.to_owned()) else { return self };
        let mut beside = self.beside;
        let mut tensors = BTreeMap::new();
        for (name, mut tensor) in self.tensors {
            match name
                .strip_prefix(&nest)
                .filter(|own| !own.split_once('.').is_some_and(|(word, _)| NESTS.contains(&word) || OTHER_PARTS.contains(&word)))
            {
                Some(own) => {
                    tensor.rename(own.to_owned());
                    tensors.insert(own.to_owned(), tensor);
                }
                None => beside.push(name),
            }
        }
        Self { tensors, beside, ..self }
    }

    /// Whether the file has a tensor whose name contains `part`, of this model or another.
    pub fn file_has(&self, part: &str) -> bool {
        self.names().chain(self.beside.iter().map(String::as_str)).any(|name| name.contains(part))
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, when there is one of that name.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|tensor| tensor.shape().to_vec())
    }

    /// The dtype of most of the values.
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

    /// Gives every tensor the shape that `shape` makes of its name and shape; where the number of values would change, it stays as it is.
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

    /// Puts every tensor into the field of `module` that has its name, cast to `dtype`.
    ///
    /// # Errors
    /// When names are missing or left over, shapes differ, or values cannot be read: all of it in one error. [`VaeError::Stopped`] once loading is stopped.
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

/// A tensor for Burn, read when it is asked for.
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

/// The type in which Burn gets values. It has none of eight bits: bf16 holds all their values.
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
        // What cannot be read says so when it is asked for.
        StoredDtype::F32 | StoredDtype::Other(_) => DType::F32,
    }
}
