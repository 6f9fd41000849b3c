use std::path::Path;

use burn::tensor::{DType, Device};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Checkpoint, Halves, Registry, RegistryError, Vae, VaeError, VaeSpec, WeightError, Weights};

/// A kind of VAE, as its author writes it. [`register_vae!`](crate::register_vae) puts it into the registry.
pub trait VaeFamily: 'static {
    /// The name in configurations, in kebab-case.
    const NAME: &'static str;
    /// Other names: upstream class names, which pick the family for a `config.json`, and names from before a rename.
    const ALIASES: &'static [&'static str] = &[];
    /// One line for `tilevae models`.
    const SUMMARY: &'static str;
    /// The fields of `config.json`. Fields that begin with `_` are taken away before it is read; use `deny_unknown_fields` for the others.
    type Config: Serialize + DeserializeOwned;

    /// What planning needs.
    ///
    /// # Errors
    /// When a field holds a value that the family does not implement, or contradicts another.
    fn spec(config: &Self::Config) -> Result<VaeSpec, VaeError>;

    /// The configuration that the names and shapes of `weights` tell, or `None` when they are not this family's.
    fn infer(_weights: &Weights) -> Option<Self::Config> {
        None
    }

    /// The model on `device`, computing in `dtype`.
    ///
    /// # Errors
    /// When the configuration is refused or the weights do not fit it.
    fn load(config: &Self::Config, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError>;
}

/// A family in the registry, with its types erased.
#[derive(Debug)]
pub struct VaeEntry {
    /// The name in configurations.
    pub name: &'static str,
    /// Other names.
    pub aliases: &'static [&'static str],
    /// One line.
    pub summary: &'static str,
    /// The crate that brings it.
    pub origin: &'static str,
    spec: fn(&Value) -> Result<VaeSpec, VaeError>,
    infer: fn(&Weights) -> Option<Value>,
    load: LoadFn,
}

type LoadFn = fn(&Value, Weights, &Device, DType) -> Result<Box<dyn Vae>, VaeError>;

inventory::collect!(VaeEntry);

/// Puts a [`VaeFamily`] into the registry of every program that links the crate.
#[macro_export]
macro_rules! register_vae {
    ($family:ty) => {
        $crate::inventory::submit! { $crate::VaeEntry::of::<$family>(env!("CARGO_PKG_NAME")) }
    };
}

impl VaeEntry {
    /// The entry of a family that the crate `origin` brings.
    pub const fn of<F: VaeFamily>(origin: &'static str) -> Self {
        Self {
            name: F::NAME,
            aliases: F::ALIASES,
            summary: F::SUMMARY,
            origin,
            spec: |config| F::spec(&read_config::<F>(config)?),
            infer: |weights| F::infer(weights).and_then(|config| serde_json::to_value(config).ok()),
            load: |config, weights, device, dtype| F::load(&read_config::<F>(config)?, weights, device, dtype),
        }
    }

    /// What planning needs, from the fields of a `config.json`.
    ///
    /// # Errors
    /// When the family refuses the configuration.
    pub fn spec(&self, config: &Value) -> Result<VaeSpec, VaeError> {
        (self.spec)(config)
    }

    /// The configuration that weights tell, when they are this family's.
    pub fn infer(&self, weights: &Weights) -> Option<Value> {
        (self.infer)(weights)
    }

    /// The model on `device`, computing in `dtype`.
    ///
    /// # Errors
    /// When the family refuses the configuration or the weights.
    pub fn load(&self, config: &Value, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        (self.load)(config, weights, device, dtype)
    }
}

fn read_config<F: VaeFamily>(config: &Value) -> Result<F::Config, VaeError> {
    let mut config = config.clone();
    if let Some(fields) = config.as_object_mut() {
        fields.retain(|name, _| !name.starts_with('_'));
    }
    serde_json::from_value(config).map_err(VaeError::Config)
}

/// A checkpoint whose family and configuration are known, not loaded yet.
#[derive(Debug, Clone)]
pub struct Model {
    /// The family.
    pub entry: &'static VaeEntry,
    /// The fields of its configuration.
    pub config: Value,
    /// What planning needs.
    pub spec: VaeSpec,
    checkpoint: Checkpoint,
    halves: Halves,
}

impl Model {
    /// Finds family and configuration of the checkpoint at `path`, a folder or a file.
    ///
    /// The family is `family`, or with `auto` the one that claims the `_class_name` of the configuration, or else the one that knows the weights' names.
    /// The configuration is the file `config` when given, else the checkpoint's own, else what the weights' shapes tell.
    ///
    /// # Errors
    /// When the checkpoint cannot be read or no family claims it.
    pub fn open(registry: &Registry, path: &Path, family: &str, config: Option<&Path>) -> Result<Self, RegistryError> {
        let named = if family == "auto" { None } else { Some(registry.get(family)?) };
        let checkpoint = Checkpoint::open(path, config)?;
        let class = checkpoint.class_name();
        if let Some(config) = checkpoint.config() {
            let entry = match (named, class) {
                (Some(entry), _) => Some(entry),
                (None, Some(class)) => Some(registry.get(class)?),
                (None, None) => None,
            };
            if let Some(entry) = entry {
                let (config, spec) = (config.clone(), entry.spec(config)?);
                return Ok(Self { entry, config, spec, checkpoint, halves: Halves::Both });
            }
        }
        let weights = checkpoint.weights()?;
        let found = match named {
            Some(entry) => entry.infer(&weights).map(|config| (entry, config)),
            None => registry.entries().find_map(|entry| entry.infer(&weights).map(|config| (entry, config))),
        };
        let (entry, inferred) = found.ok_or_else(|| RegistryError::Unrecognised { path: path.to_owned(), family: family.to_owned() })?;
        let known = checkpoint.config().cloned();
        let is_inferred = known.is_none();
        let config = known.unwrap_or(inferred);
        let spec = entry.spec(&config)?;
        if is_inferred {
            // Shapes do not tell this: an SDXL VAE looks like one of SD 1.x.
            let norm = &spec.latent_norm;
            tracing::warn!(
                "{} has no config.json: latents are taken to be multiplied by {:?} and shifted by {:?}; `model.config` can name the right one",
                path.display(),
                norm.scale,
                norm.shift
            );
        }
        Ok(Self { entry, config, spec, checkpoint, halves: Halves::Both })
    }

    /// The dtype of most of the checkpoint's values.
    ///
    /// # Errors
    /// When the weights cannot be read.
    pub fn stored_dtype(&self) -> Result<DType, WeightError> {
        Ok(self.checkpoint.weights()?.dtype())
    }

    /// The same model, of which only some halves will be loaded.
    #[must_use]
    pub fn only(self, halves: Halves) -> Self {
        Self { halves, ..self }
    }

    /// Loads the weights to `device`, to compute in `dtype`.
    ///
    /// # Errors
    /// When the weights cannot be read or do not fit the configuration.
    pub fn load(&self, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        self.entry.load(&self.config, self.checkpoint.weights()?.only(self.halves), device, dtype)
    }
}
