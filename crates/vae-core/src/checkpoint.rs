use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tiling::Stop;

use crate::tensor_file::{Content, Source, StoredTensor, content, read_tensors};
use crate::weight_error::WeightError;
use crate::weights::{Components, Weights};

/// The prefix of the weight files in a diffusers folder.
const WEIGHTS: &str = "diffusion_pytorch_model";
const FOLDER_FILES: &str = "diffusion_pytorch_model[.VARIANT].safetensors, its .index[.VARIANT].json, or diffusion_pytorch_model.bin";

/// Size limits of a `config.json` and an index, in bytes: parsed JSON takes many times its length in memory.
const MAX_CONFIG: u64 = 1 << 18;
const MAX_INDEX: u64 = 1 << 23;

/// A checkpoint on disk: a diffusers folder, the folder of a whole pipeline (of which `vae` is used), or a single file.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    path: PathBuf,
    config: Option<(PathBuf, Value)>,
    sibling: Option<SiblingConfig>,
    /// Those of a checkpoint in memory.
    tensors: Option<Vec<StoredTensor>>,
}

/// The `config.json` in the folder of a single file, which may belong to another model.
#[derive(Debug, Clone)]
pub(crate) struct SiblingConfig {
    pub(crate) path: PathBuf,
    /// Its fields, or why they cannot be read.
    pub(crate) config: Result<Value, String>,
    /// Another weight file of the folder, to which the configuration may belong.
    pub(crate) other_weights: Option<String>,
}

impl Checkpoint {
    /// Reads the configuration, not the weights; `config` replaces the checkpoint's own `config.json`.
    ///
    /// # Errors
    /// When `path` does not exist or a configuration cannot be read.
    pub fn open(path: &Path, config: Option<&Path>) -> Result<Self, WeightError> {
        let meta = fs::metadata(path).map_err(|source| missing(path, source))?;
        let path = if meta.is_dir() && path.join("vae/config.json").is_file() { path.join("vae") } else { path.to_owned() };
        let config_path = if meta.is_dir() { path.join("config.json") } else { path.with_file_name("config.json") };
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_own = meta.is_dir() || name.starts_with(WEIGHTS);
        let own = config.map(Path::to_owned).or_else(|| Some(config_path.clone()).filter(|path| is_own && path.is_file()));
        let sibling = (config.is_none() && !is_own && config_path.is_file()).then(|| SiblingConfig {
            config: read_config(&config_path).map_err(|error| error.to_string()),
            other_weights: other_weights(&path, name),
            path: config_path,
        });
        let config = own.map(|own| read_config(&own).map(|config| (own, config))).transpose()?;
        Ok(Self { path, config, sibling, tensors: None })
    }

    /// A checkpoint in memory.
    pub(crate) fn in_memory(config: Value, tensors: Vec<StoredTensor>) -> Self {
        let path = PathBuf::from("the model in memory");
        Self { config: Some((path.clone(), config)), path, sibling: None, tensors: Some(tensors) }
    }

    /// The fields of the configuration: the given one, that of the folder, or that in the folder of a file named `diffusion_pytorch_model*`. For other single
    /// files [`Model::open`](crate::Model::open) decides whether the `config.json` of their folder is theirs.
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

    pub(crate) fn sibling(&self) -> Option<&SiblingConfig> {
        self.sibling.as_ref()
    }

    /// All files that the checkpoint consists of, as far as they can be found.
    pub fn files(&self) -> Vec<PathBuf> {
        let (file, parts) = self.weight_files().unwrap_or_else(|_| (self.path.clone(), Vec::new()));
        let configs = self.config_path().into_iter().chain(self.sibling().map(|sibling| sibling.path.as_path()));
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
        if let Some(own) = &self.tensors {
            tensors.extend(own.iter().map(|tensor| (tensor.name().to_owned(), tensor.clone())));
            return Ok(Weights { path: self.path.clone(), tensors, other_names: Vec::new(), components: Components::Both, stop: Stop::default() });
        }
        for file in self.weight_files()?.1 {
            tensors.extend(read_tensors(&file)?.into_iter().map(|tensor| (tensor.name().to_owned(), tensor)));
        }
        Ok(Weights { path: self.path.clone(), tensors, other_names: Vec::new(), components: Components::Both, stop: Stop::default() })
    }
}

/// The error for a `path` that does not exist.
fn missing(path: &Path, source: io::Error) -> WeightError {
    let not_found = matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let Some(given) = path.to_str().filter(|_| not_found) else { return WeightError::Io { path: path.to_owned(), source } };
    if let Some((_, address)) = given.split_once("https:/").or_else(|| given.split_once("http:/")) {
        let way_out = "download the file and give its path".to_owned();
        return WeightError::NotLocal { name: format!("https://{}", address.trim_start_matches('/')), way_out };
    }
    // `organisation/model`, relative to the working folder or to that of a configuration.
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
    // serde would accept a list as a struct whose fields all have defaults.
    Err(WeightError::Unsupported { path: path.to_owned(), message: "it is not a JSON object, as the configuration of a model must be".to_owned() })
}

fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<T, WeightError> {
    let io = |source| WeightError::Io { path: path.to_owned(), source };
    let mut text = Vec::new();
    fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut text)).map_err(io)?;
    if text.len() as u64 > limit {
        return Err(WeightError::Unsupported {
            path: path.to_owned(),
            message: format!("it has more than {limit} bytes, the limit for such a file"),
        });
    }
    serde_json::from_slice(&text).map_err(|source| WeightError::Json { path: path.to_owned(), source })
}

/// Endings of weight files, in lower case.
const ENDINGS: [&str; 6] = [".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt"];

/// The name of a weight file of another model in the folder of `path`; a file in the naming of diffusers comes first.
fn other_weights(path: &Path, name: &str) -> Option<String> {
    // Formats, shards and variants of one name are one model.
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
    let in_folder = |name: String| match Path::new(&name).components().collect::<Vec<_>>()[..] {
        [Component::Normal(_)] => Ok(index.with_file_name(&name)),
        _ => Err(WeightError::ShardPath { path: index.to_owned(), shard: name }),
    };
    names.into_iter().map(in_folder).collect()
}
