use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use parallel::ExecutorConfig;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};
use tiling::{BlendConfig, GridConfig, PerAxis};
use toml::{Table, Value};
use vae_core::Precision;
use vae_core::{DeviceName, Posterior};

use crate::io::{Axes, Background};
use crate::{Count, Error};

/// The embedded configuration that holds every default.
const DEFAULT: &str = include_str!("default.toml");

/// Renamed keys: section, old name, new name.
const RENAMED: [(&str, &str, &str); 1] = [("model", "on_nan", "on_non_finite")];

/// The configuration of a run. Its layers are the defaults, a file and single keys; later ones override earlier ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The model.
    pub model: ModelConfig,
    /// The devices that run it.
    pub devices: DevicesConfig,
    /// The grid of tiles.
    pub tiling: GridConfig,
    /// The blend policy of overlaps.
    pub blend: BlendConfig,
    /// The executor that runs the tiles.
    pub executor: ExecutorConfig,
    /// Input and output.
    pub io: IoConfig,
}

/// The section `[model]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// A folder or file.
    pub path: PathBuf,
    /// `auto`, or a family's name.
    pub family: String,
    /// The dtype of weights and compute.
    pub dtype: DtypeConfig,
    /// A `config.json` that replaces the checkpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
    /// The algorithm of f32 convolutions on the CPU.
    pub precision: Precision,
    /// What to do with a tile whose 16-bit output is not finite.
    pub on_non_finite: OnNonFinite,
    /// Latent frames of a clip that run at once after the first.
    pub frames_per_chunk: NonZeroUsize,
}

/// The dtype of weights and compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeConfig {
    /// That of the checkpoint; f32 on CPUs.
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, five of them exponent. Computed in f32 where the model asks for it (`force_upcast`).
    F16,
    /// 16 bits, eight of them exponent.
    Bf16,
}

/// What to do with a tile whose 16-bit output is not finite although its input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// Run it again in f32; the f32 weights are loaded when first needed.
    Upcast,
    /// Treat it as a failure.
    Fail,
}

/// The section `[devices]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicesConfig {
    /// Names of devices.
    #[serde(rename = "use")]
    pub names: Vec<DeviceName>,
    /// What to do when a device is missing.
    pub on_missing: OnMissing,
    /// Whether tensor cores may round f32 to TF32.
    pub tf32: bool,
    /// The dtype of single devices, overriding that of the model.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dtype: BTreeMap<DeviceName, DtypeConfig>,
    /// The workers of the device `cpu`.
    pub cpu: CpuConfig,
}

/// What to do when a device is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMissing {
    /// Return an error.
    Fail,
    /// Continue with the other devices.
    Skip,
}

/// The section `[devices.cpu]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// Workers, each of which runs one tile at a time.
    pub workers: Count,
    /// Threads of each worker.
    pub threads_per_worker: Count,
}

/// The section `[io]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoConfig {
    /// The space of input and output latents.
    pub latent_space: LatentSpace,
    /// What an encode returns of the posterior.
    pub posterior: Posterior,
    /// The seed of [`Posterior::Sample`].
    pub seed: u64,
    /// What to do with sample frames that do not fill a latent frame.
    pub frames: FrameRemainder,
    /// What to do with NaN and infinite input values.
    pub on_non_finite: OnNonFiniteInput,
    /// The tensor to read from a file with several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// The axes of the input tensor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axes: Option<Axes>,
    /// Height and width of the image whose latents are read as packed patches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed_size_px: Option<PerAxis<usize>>,
    /// The colour behind transparent px.
    pub background: Background,
    /// The quality of JPEG files, 1 to 100.
    #[serde(deserialize_with = "jpeg_quality")]
    pub jpeg_quality: u8,
}

fn jpeg_quality<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u8, D::Error> {
    let value = i64::deserialize(deserializer)?;
    let quality = u8::try_from(value).ok().filter(|quality| (1..=100).contains(quality));
    quality.ok_or_else(|| de::Error::invalid_value(de::Unexpected::Signed(value), &"a whole number from 1 to 100"))
}

/// What to do with NaN and infinite input values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFiniteInput {
    /// Return an error.
    Refuse,
    /// Run them unchanged.
    Allow,
}

/// What to do with sample frames that do not fill a latent frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrameRemainder {
    /// Refuse the clip.
    Refuse,
    /// Drop them.
    Drop,
    /// Repeat the last frame until a latent frame is full. The latents file records the number, and a decode removes the copies.
    Pad,
}

/// The space of latents.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentSpace {
    /// Latents as pipelines return them: scaled and shifted.
    Diffusion,
    /// The VAE's own.
    Vae,
}

impl Config {
    /// The defaults, overridden by TOML text.
    ///
    /// # Errors
    /// When the text is not TOML or has keys or values that do not exist.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        Self::from_layers([parse(text, "the given configuration")?])
    }

    /// The defaults, overridden by a file, if given, and then by single keys (see [`parse_override`]). Relative paths of a file start at its folder.
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or a layer has keys or values that do not exist.
    pub fn from_sources(file: Option<&Path>, overrides: &[Table]) -> Result<Self, Error> {
        let mut layers = Vec::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), verb: "read", source })?;
            layers.push((path.display().to_string(), parse(&text, &path.display().to_string())?));
        }
        layers.extend(overrides.iter().map(|table| (format!("--set {}", override_text(table)), table.clone())));
        let mut config = Self::from_layers(layers.iter().map(|(_, layer)| layer.clone())).map_err(|error| with_origin(error, &layers))?;
        if let (Some(path), Some((_, layer))) = (file, layers.first()) {
            let folder = path.parent().unwrap_or(Path::new(""));
            let sets = |layer: &Table, key: &str| layer.get("model").is_some_and(|model| model.get(key).is_some());
            let is_of_file = |key: &str| sets(layer, key) && !overrides.iter().any(|layer| sets(layer, key));
            // Joined as paths: the folder's name need not be Unicode.
            if is_of_file("path") {
                config.model.path = folder.join(&config.model.path);
            }
            if is_of_file("config") {
                config.model.config = config.model.config.map(|path| folder.join(path));
            }
        }
        Ok(config)
    }

    fn from_layers(layers: impl IntoIterator<Item = Table>) -> Result<Self, Error> {
        let mut merged = parse(DEFAULT, "the default configuration")?;
        for layer in layers {
            merge(&mut merged, layer);
        }
        for (section, old, new) in RENAMED {
            if merged.get(section).is_some_and(|section| section.get(old).is_some()) {
                let message = format!("the key is now called `{section}.{new}`");
                return Err(Error::ConfigValue { key: format!("{section}.{old}"), message });
            }
        }
        serde_path_to_error::deserialize(merged.clone()).map_err(|error| {
            let (key, message) = wrong_key(&merged, &error.path().to_string(), error.inner().message());
            let message = explain(&message, ["tiling.", "blend.", "executor."].iter().any(|section| key.starts_with(section)));
            Error::ConfigValue { key, message }
        })
    }

    /// The embedded file that holds every default, with comments.
    pub fn default_toml() -> &'static str {
        DEFAULT
    }

    /// This configuration as TOML.
    ///
    /// # Errors
    /// When a path is not Unicode, which TOML requires.
    pub fn to_toml(&self) -> Result<String, Error> {
        for (key, path) in [("model.path", Some(&self.model.path)), ("model.config", self.model.config.as_ref())] {
            if let Some(path) = path.filter(|path| path.to_str().is_none()) {
                return Err(Error::ConfigValue { key: key.to_owned(), message: format!("{} is not Unicode, as TOML has to be", path.display()) });
            }
        }
        toml::to_string(self).map_err(|error| Error::ConfigValue { key: String::new(), message: error.to_string() })
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::from_layers([]).expect("the embedded defaults are valid")
    }
}

fn parse(text: &str, origin: &str) -> Result<Table, Error> {
    text.parse().map_err(|source| Error::TomlSyntax { origin: origin.to_owned(), source: Box::new(source) })
}

/// Merges `upper` into `lower`. A section whose `kind` changes loses the keys of the other kind.
fn merge(lower: &mut Table, upper: Table) {
    for (key, value) in upper {
        match (lower.get_mut(&key), value) {
            (Some(Value::Table(section)), Value::Table(fresh)) => {
                if fresh.get("kind").is_some_and(|kind| section.get("kind") != Some(kind)) {
                    section.clear();
                }
                merge(section, fresh);
            }
            (_, value) => {
                lower.insert(key, value);
            }
        }
    }
}

/// Adds to `error` the first layer that causes it.
fn with_origin(error: Error, layers: &[(String, Table)]) -> Error {
    let causes_it = |count: &usize| {
        let so_far = layers[..*count].iter().map(|(_, layer)| layer.clone());
        Config::from_layers(so_far).is_err_and(|other| other.to_string() == error.to_string())
    };
    match (1..=layers.len()).find(causes_it) {
        Some(count) => Error::ConfigSource { origin: layers[count - 1].0.clone(), error: Box::new(error) },
        None => error,
    }
}

/// The `key=value` of an override.
fn override_text(table: &Table) -> String {
    match table.iter().next() {
        Some((key, Value::Table(below))) if table.len() == 1 && below.len() == 1 => format!("{key}.{}", override_text(below)),
        Some((key, value)) if table.len() == 1 => format!("{key}={value}"),
        _ => table.to_string().trim().replace('\n', ", "),
    }
}

/// The wrong key of a section with a `kind`, found by reading each key alone, because the error of the section does not name it.
fn wrong_key(merged: &Table, key: &str, message: &str) -> (String, String) {
    let error_of = |section: Table| {
        let section = Value::Table(section);
        let read = match key {
            "tiling" => GridConfig::deserialize(section).map(drop),
            "blend" => BlendConfig::deserialize(section).map(drop),
            "executor" => ExecutorConfig::deserialize(section).map(drop),
            _ => Ok(()),
        };
        read.err().map(|error| error.message().to_owned())
    };
    let Some(Value::Table(section)) = merged.get(key) else { return (key.to_owned(), message.to_owned()) };
    let alone = |name: &str, value: &Value| {
        let kind = section.get("kind").map(|kind| ("kind".to_owned(), kind.clone()));
        kind.into_iter().chain([(name.to_owned(), value.clone())]).collect::<Table>()
    };
    let found =
        section.iter().filter(|(name, _)| *name != "kind").find_map(|(name, value)| Some((format!("{key}.{name}"), error_of(alone(name, value))?)));
    found.unwrap_or_else(|| (key.to_owned(), message.to_owned()))
}

/// The message of serde in the terms of a configuration, with the nearest known name; `kind` counts as one if `has_kind`.
fn explain(message: &str, has_kind: bool) -> String {
    if message.contains("unit variant") {
        return "expected a string".to_owned();
    }
    let mut words: Vec<&str> = message.split(' ').collect();
    // Rust types mean nothing to users.
    while let Some(at) = words.iter().position(|word| *word == "struct" || *word == "enum") {
        let is_tagged = words[..at].ends_with(&["internally", "tagged"]);
        let start = if is_tagged { at - 2 } else { at };
        words.splice(start..(at + 2).min(words.len()), if is_tagged { ["a table with a `kind`"] } else { ["a table"] });
    }
    let mut text = words.join(" ");
    for (said, meant) in [
        ("unknown field `", "unknown key `"),
        ("unknown variant `", "unknown value `"),
        ("missing field `", "missing key `"),
        ("expected a nonzero usize", "expected a whole number of at least 1"),
        ("expected usize", "expected a whole number"),
        ("expected u64", "expected a whole number of at least 0"),
        ("expected i64", "expected a whole number"),
        ("expected a boolean", "expected true or false"),
        ("expected a sequence", "expected a list"),
        ("expected path string", "expected a path"),
        ("expected variant identifier", "expected the name of one"),
        (", there are no fields", "; this kind takes no keys"),
    ] {
        text = text.replace(said, meant);
    }
    let names: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
    if let ([given, known @ ..], true) = (&names[..], text.starts_with("unknown ")) {
        let known = known.iter().copied().chain((has_kind && text.starts_with("unknown key")).then_some("kind"));
        let nearest = known.map(|name| (strsim::damerau_levenshtein(name, given), name)).min_by_key(|(distance, _)| *distance);
        if let Some((_, name)) = nearest.filter(|(distance, name)| *distance <= (name.len() / 3).max(1)) {
            text = format!("{text}; did you mean `{name}`?");
        }
    }
    text
}

/// A layer from `section.key=value`. The value is TOML, or a string if it is not valid TOML, so `io.posterior=sample` needs no quotes.
///
/// # Errors
/// When there is no `=` or no key.
pub fn parse_override(given: &str) -> Result<Table, Error> {
    let error = || Error::Override { given: given.chars().take(200).collect() };
    let (key, value) = given.split_once('=').ok_or_else(error)?;
    let keys = split_key(key.trim()).ok_or_else(error)?;
    if keys.iter().any(String::is_empty) || keys.len() > DEEPEST {
        return Err(error());
    }
    let parsed = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    let mut value = parsed.unwrap_or_else(|| Value::String(value.trim().to_owned()));
    for key in keys.into_iter().rev() {
        value = Value::Table(Table::from_iter([(key, value)]));
    }
    match value {
        Value::Table(table) => Ok(table),
        _ => Err(error()),
    }
}

/// The limit of names in a key, more than any section has.
const DEEPEST: usize = 16;

/// The names of a dotted key. Names with dots are quoted, as in TOML; colons and slashes need no quotes.
fn split_key(mut key: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    loop {
        let (name, rest) = match key.chars().next() {
            Some(quote @ ('"' | '\'')) => key[1..].split_once(quote).map(|(name, rest)| (name, rest.trim_start()))?,
            _ => key.split_at(key.find('.').unwrap_or(key.len())),
        };
        names.push(name.trim().to_owned());
        match rest.strip_prefix('.') {
            Some(rest) => key = rest.trim_start(),
            None => return rest.is_empty().then_some(names),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(overrides: &[&str]) -> Result<Config, String> {
        let tables: Vec<Table> = overrides.iter().map(|text| parse_override(text).unwrap()).collect();
        Config::from_sources(None, &tables).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_round_trip() {
        let config = Config::default();
        assert_eq!(Config::from_toml(&config.to_toml().unwrap()).unwrap(), config);
    }

    #[test]
    fn overrides_need_no_quotes() {
        let config = with(&["io.posterior=sample", "tiling.tile_px = [256, 512]", "model.dtype=\"bf16\"", "io.seed=7"]).unwrap();
        assert_eq!((config.io.posterior, config.io.seed, config.model.dtype), (Posterior::Sample, 7, DtypeConfig::Bf16));
        assert_eq!(config.tiling.settings()["tile_px"], serde_json::json!([256, 512]));
    }

    #[test]
    fn another_kind_starts_afresh() {
        let config = with(&["tiling.tile_px=256", "tiling.kind=off"]).unwrap();
        assert_eq!((config.tiling.kind(), config.tiling.settings().as_object().unwrap().len()), ("off", 0));
        assert!(with(&["tiling.kind=off", "tiling.tile_px=256"]).is_err());
    }

    #[test]
    fn typos_are_named() {
        for (given, fragments) in [
            ("tiling.tile_pxx=3", ["`tiling", "tile_pxx"]),
            ("tiling.kind=diffuser", ["`tiling", "diffuser"]),
            ("tiling.tile_px=-8", ["`tiling", "whole number of px"]),
            ("tiling.tile_px=[1,2,3]", ["`tiling", "[height, width]"]),
            ("executor.kind=parallel", ["`executor", "sequential"]),
            ("blend.kind=cascade2", ["`blend", "feather"]),
            ("model.dtype=f64", ["`model.dtype`", "bf16"]),
            ("devices.use=[\"gpu\"]", ["`devices.use[0]`", "vulkan:N"]),
            ("devices.dtype.gpu=f16", ["`devices.dtype", "vulkan:N"]),
            ("io.latent_space=raw", ["`io.latent_space`", "diffusion"]),
            ("tile.kind=off", ["tile", "`tiling`"]),
            ("tilin.kind=off", ["tilin", "did you mean `tiling`?"]),
            ("tiling.tile_pxx=3", ["`tiling.tile_pxx`", "did you mean `tile_px`?"]),
            ("executor.knd=pipelined", ["`executor.knd`", "did you mean `kind`?"]),
            ("executor.kind=sequentiel", ["`executor.kind`", "did you mean `sequential`?"]),
            ("executor={ kind = \"pipelined\", in_flight = 0 }", ["`executor.in_flight`", "at least 1"]),
            ("executor={ kind = \"multi-device\", retries = -1 }", ["`executor.retries`", "-1"]),
            ("executor={ kind = \"multi-device\", tile_timeout_s = 0 }", ["`executor.tile_timeout_s`", "at least 1"]),
            ("executor={ kind = \"multi-device\", batch_tiles = \"many\" }", ["`executor.batch_tiles`", "whole number"]),
            ("tiling=3", ["`tiling`", "a table with a `kind`"]),
            ("tiling.kind=3", ["`tiling", "3"]),
            ("tiling={ kind = \"diffusers\", skip_redundant = \"maybe\" }", ["`tiling.skip_redundant`", "true or false"]),
            ("tiling.overlap=0.5", ["`tiling.overlap`", "seamless has no such key, but diffusers, uniform, family has"]),
            ("tiling={ kind = \"diffusers\", overlap = \"much\" }", ["`tiling.overlap`", "a finite number"]),
            ("io=3", ["`io`", "expected a table"]),
            ("model.frames_per_chunk=0", ["`model.frames_per_chunk`", "at least 1"]),
            ("model.dtype=3", ["`model.dtype`", "3"]),
            ("model.path=3", ["`model.path`", "3"]),
            ("io.seed=-1", ["`io.seed`", "at least 0"]),
            ("io.seed=x", ["`io.seed`", "whole number"]),
            ("io.jpeg_quality=0", ["`io.jpeg_quality`", "1 to 100"]),
            ("io.jpeg_quality=101", ["`io.jpeg_quality`", "1 to 100"]),
            ("io.jpeg_quality=300", ["`io.jpeg_quality`", "1 to 100"]),
            ("io.jpeg_quality=x", ["`io.jpeg_quality`", "whole number"]),
            ("devices.tf32=3", ["`devices.tf32`", "true or false"]),
            ("devices.use=3", ["`devices.use`", "a list"]),
            ("devices.cpu=3", ["`devices.cpu`", "a table"]),
            ("model.on_nan=fail", ["`model.on_nan`", "`model.on_non_finite`"]),
            ("model.on_nan=upcast", ["`model.on_nan`", "`model.on_non_finite`"]),
            ("io.on_non_finite=upcast", ["`io.on_non_finite`", "refuse"]),
            ("io.axes=bcthwx", ["`io.axes`", "cthw"]),
            ("io.packed_size_px=[1,2,3]", ["`io.packed_size_px`", "[height, width]"]),
        ] {
            let error = with(&[given]).unwrap_err();
            assert!(fragments.iter().all(|fragment| error.contains(fragment)), "{given}: {error}");
            // In the terms of a configuration, with the origin.
            assert!(error.starts_with(&format!("--set {}", given.split('=').next().unwrap().trim())), "{given}: {error}");
            let of_rust = ["struct", "enum", "usize", "u64", "u8", "variant", "field"];
            assert!(of_rust.iter().all(|word| !error.contains(word)), "{given}: {error}");
        }
        assert!(parse_override("tiling").is_err());
        assert!(parse_override(".a=1").is_err());
        for wrong in ["a..b=1", "a.=1", "\"a=1", "\"a\"b=1", "=1", &format!("{}a=1", "a.".repeat(100_000))] {
            assert!(matches!(parse_override(wrong), Err(Error::Override { .. })), "{}", &wrong[..wrong.len().min(20)]);
        }
        for key in ["cuda:1", "\"cuda:1\"", "'cuda:1'", " \"cuda:1\" "] {
            let config = with(&["devices.use=[\"cuda:1\"]", &format!("devices.dtype.{key}=bf16")]).unwrap();
            assert_eq!(config.devices.dtype[&"cuda:1".parse().unwrap()], DtypeConfig::Bf16);
        }
        let remote = with(&["devices.dtype.\"remote://a.example:7700/0\"=f16"]).unwrap();
        assert_eq!(remote.devices.dtype.keys().next().unwrap().to_string(), "remote://a.example:7700/0");
    }

    #[test]
    fn a_wrong_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        std::fs::write(&file, "[io]\njpeg_quality = 0\n").unwrap();
        let tile = parse_override("tiling.tile_px=256").unwrap();
        let error = Config::from_sources(Some(&file), &[tile]).unwrap_err();
        assert!(error.is_usage() && error.to_string().starts_with(&format!("{}: ", file.display())), "{error}");
        // A later layer corrects it.
        assert!(Config::from_sources(Some(&file), &[parse_override("io.jpeg_quality=90").unwrap()]).is_ok());
    }

    #[test]
    #[cfg(unix)]
    fn paths_need_not_be_unicode() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join(std::ffi::OsStr::from_bytes(b"caf\xe9"));
        std::fs::create_dir(&own).unwrap();
        let file = own.join("run.toml");
        std::fs::write(&file, "[model]\npath = \"weights\"\nconfig = \"config.json\"\n").unwrap();
        let config = Config::from_sources(Some(&file), &[]).unwrap();
        assert_eq!((config.model.path.clone(), config.model.config.clone()), (own.join("weights"), Some(own.join("config.json"))));
        assert!(config.to_toml().unwrap_err().to_string().contains("`model.path`"));
    }

    #[test]
    fn paths_in_a_file_start_at_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        std::fs::write(&file, "[model]\npath = \"weights\"\n").unwrap();
        let config = Config::from_sources(Some(&file), &[]).unwrap();
        assert_eq!(config.model.path, folder.path().join("weights"));
        let config = Config::from_sources(Some(&file), &[parse_override("model.path=other").unwrap()]).unwrap();
        assert_eq!(config.model.path, Path::new("other"));
    }
}
