use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use parallel::{Count, ExecutorConfig};
use serde::{Deserialize, Serialize};
use tiling::{BlendConfig, GridConfig, PerAxis};
use toml::{Table, Value};
use vae_core::layers::Precision;
use vae_core::{DeviceName, Posterior};

use crate::Error;
use crate::io::{Axes, Background};

/// The embedded configuration that holds every default.
const DEFAULT: &str = include_str!("default.toml");

/// Keys that have another name now: their section, and their names then and now.
const RENAMED: [(&str, &str, &str); 1] = [("model", "on_nan", "on_non_finite")];

/// What a run is made of. Layers: the defaults, a file, single keys; later ones win.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which model.
    pub model: ModelConfig,
    /// Where it runs.
    pub devices: DevicesConfig,
    /// How it is cut.
    pub tiling: GridConfig,
    /// How tiles meet.
    pub blend: BlendConfig,
    /// In which order tiles run.
    pub executor: ExecutorConfig,
    /// What goes in and out.
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
    /// What is computed with.
    pub dtype: DtypeConfig,
    /// A `config.json` in place of the checkpoint's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<PathBuf>,
    /// How near to direct products f32 is computed on the CPU.
    pub precision: Precision,
    /// What becomes of a tile whose answer in 16 bits is not finite.
    pub on_non_finite: OnNonFinite,
    /// Latent frames of a clip that run at once, after the first.
    pub frames_per_chunk: NonZeroUsize,
}

/// The dtype of weights and compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DtypeConfig {
    /// As the checkpoint stores it; on processors f32.
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, five of them exponent. Computed in f32 where the model asks for it (`force_upcast`).
    F16,
    /// 16 bits, eight of them exponent.
    Bf16,
}

/// What becomes of a tile whose answer in 16 bits is not finite, though its input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFinite {
    /// It is run again in f32, with weights that are loaded then.
    Upcast,
    /// It is a failure.
    Fail,
}

/// The section `[devices]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicesConfig {
    /// Names of devices.
    #[serde(rename = "use")]
    pub names: Vec<DeviceName>,
    /// What becomes of a run when one of them is not there.
    pub on_missing: OnMissing,
    /// Whether tensor cores may round f32 to TF32.
    pub tf32: bool,
    /// The dtype of single devices, in place of the model's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dtype: BTreeMap<DeviceName, DtypeConfig>,
    /// How the device `cpu` is shared out.
    pub cpu: CpuConfig,
}

/// What becomes of a run when a device is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnMissing {
    /// It is an error.
    Fail,
    /// The others do the work.
    Skip,
}

/// The section `[devices.cpu]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuConfig {
    /// Workers, each of which runs one tile at a time.
    pub workers: Count,
    /// Threads of each.
    pub threads_per_worker: Count,
}

/// The section `[io]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoConfig {
    /// Which latents go in and out.
    pub latent_space: LatentSpace,
    /// What an encode takes from the posterior.
    pub posterior: Posterior,
    /// The seed of a draw.
    pub seed: u64,
    /// What becomes of sample frames that do not fill a latent frame.
    pub frames: FrameRemainder,
    /// What becomes of latents and raw samples that are NaN or infinite.
    pub on_non_finite: OnNonFiniteInput,
    /// The tensor to read of a file that holds several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tensor: Option<String>,
    /// The axes of a tensor that is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub axes: Option<Axes>,
    /// Height and width of the picture whose latents are read as packed patches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packed_size_px: Option<PerAxis<usize>>,
    /// What transparent px are laid over.
    pub background: Background,
    /// The quality of JPEG files.
    pub jpeg_quality: u8,
}

/// What becomes of latents and raw samples that are NaN or infinite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnNonFiniteInput {
    /// They are an error.
    Refuse,
    /// They are run as they are.
    Allow,
}

/// What becomes of sample frames that do not fill a latent frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FrameRemainder {
    /// Such a clip is an error.
    Refuse,
    /// They are left out.
    Drop,
    /// The last frame is repeated until a latent frame is full; a decode of latents whose file says so cuts the repetitions off.
    Pad,
}

/// Which latents go in and out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LatentSpace {
    /// What pipelines hand around: scaled and shifted.
    Diffusion,
    /// The model's own.
    Vae,
}

impl Config {
    /// The defaults, overlaid by TOML text.
    ///
    /// # Errors
    /// When the text is not TOML or has keys or values that do not exist.
    pub fn from_toml(text: &str) -> Result<Self, Error> {
        Self::from_layers([parse(text, "the given configuration")?])
    }

    /// The defaults, overlaid by a file (whose relative paths start at its folder) when given, then by single keys (see [`parse_override`]).
    ///
    /// # Errors
    /// When the file cannot be read, is not TOML, or a layer has keys or values that do not exist.
    pub fn from_sources(file: Option<&Path>, overrides: &[Table]) -> Result<Self, Error> {
        let mut layers = Vec::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|source| Error::File { path: path.to_owned(), verb: "read", source })?;
            let mut table = parse(&text, &path.display().to_string())?;
            rebase(&mut table, path.parent().unwrap_or(Path::new("")));
            layers.push(table);
        }
        layers.extend(overrides.iter().cloned());
        Self::from_layers(layers)
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
        serde_path_to_error::deserialize(merged)
            .map_err(|error| Error::ConfigValue { key: error.path().to_string(), message: error.inner().message().to_owned() })
    }

    /// The embedded file that holds every default, with comments.
    pub fn default_toml() -> &'static str {
        DEFAULT
    }

    /// This configuration as TOML.
    ///
    /// # Panics
    /// Never: every configuration can be written.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration is a table of tables")
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

/// Lays `upper` over `lower`. A section whose `kind` changes starts afresh: the other kind's keys mean nothing to it.
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

fn rebase(table: &mut Table, folder: &Path) {
    let Some(Value::Table(model)) = table.get_mut("model") else { return };
    for key in ["path", "config"] {
        if let Some(Value::String(path)) = model.get_mut(key) {
            *path = folder.join(&*path).to_string_lossy().into_owned();
        }
    }
}

/// One layer from `section.key=value`. The value is TOML; what is not valid TOML is taken as a string, so `io.posterior=sample` needs no quotes.
///
/// # Errors
/// When there is no `=` or no key.
pub fn parse_override(given: &str) -> Result<Table, Error> {
    let error = || Error::Override { given: given.to_owned() };
    let (key, value) = given.split_once('=').ok_or_else(error)?;
    let keys: Vec<&str> = key.trim().split('.').map(str::trim).collect();
    if keys.iter().any(|key| key.is_empty()) {
        return Err(error());
    }
    let parsed = format!("value = {value}").parse::<Table>().ok().and_then(|mut table| table.remove("value"));
    let mut value = parsed.unwrap_or_else(|| Value::String(value.trim().to_owned()));
    for key in keys.into_iter().rev() {
        value = Value::Table(Table::from_iter([(key.to_owned(), value)]));
    }
    match value {
        Value::Table(table) => Ok(table),
        _ => Err(error()),
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
        assert_eq!(Config::from_toml(&config.to_toml()).unwrap(), config);
    }

    #[test]
    fn overrides_need_no_quotes() {
        let config = with(&["io.posterior=sample", "tiling.tile_px = [256, 512]", "model.dtype=\"bf16\"", "io.seed=7"]).unwrap();
        assert_eq!((config.io.posterior, config.io.seed, config.model.dtype), (Posterior::Sample, 7, DtypeConfig::Bf16));
        let GridConfig::Diffusers { tile_px: Some(tile), .. } = config.tiling else { panic!() };
        assert_eq!(tile.0, [256, 512]);
    }

    #[test]
    fn another_kind_starts_afresh() {
        let config = with(&["tiling.tile_px=256", "tiling.kind=off"]).unwrap();
        assert_eq!(config.tiling, GridConfig::Off {});
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
            ("tile.kind=off", ["tile", "tiling"]),
            ("model.on_nan=fail", ["`model.on_nan`", "`model.on_non_finite`"]),
            ("model.on_nan=upcast", ["`model.on_nan`", "`model.on_non_finite`"]),
            ("io.on_non_finite=upcast", ["`io.on_non_finite`", "refuse"]),
            ("io.axes=bcthwx", ["`io.axes`", "cthw"]),
            ("io.packed_size_px=[1,2,3]", ["`io.packed_size_px`", "[height, width]"]),
        ] {
            let error = with(&[given]).unwrap_err();
            assert!(fragments.iter().all(|fragment| error.contains(fragment)), "{given}: {error}");
        }
        assert!(parse_override("tiling").is_err());
        assert!(parse_override(".a=1").is_err());
    }

    #[test]
    fn paths_in_a_file_start_at_its_folder() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("run.toml");
        std::fs::write(&file, "[model]\npath = \"weights\"\n").unwrap();
        let config = Config::from_sources(Some(&file), &[]).unwrap();
        assert_eq!(config.model.path, folder.path().join("weights"));
    }
}
