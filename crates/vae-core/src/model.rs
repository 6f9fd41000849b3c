use std::path::{Display, Path};

use burn::tensor::{DType, Device};
use serde_json::Value;
use tiling::Stop;

use crate::checkpoint::{Checkpoint, SiblingConfig};
use crate::family::VaeEntry;
use crate::tensor_file::StoredTensor;
use crate::{Components, Registry, RegistryError, Vae, VaeError, VaeSpec, WeightError, Weights};

/// A checkpoint whose family and configuration are known, and whose weights are not loaded.
#[derive(Debug, Clone)]
pub struct Model {
    /// The family.
    pub entry: &'static VaeEntry,
    /// The fields of its configuration.
    pub config: Value,
    /// What planning needs.
    pub spec: VaeSpec,
    checkpoint: Checkpoint,
    components: Components,
}

impl Model {
    /// Finds family and configuration of the checkpoint at `path`, a folder or a file.
    ///
    /// The family is `family`, or with `auto` the one that claims the `_class_name` of the configuration, or else the one that recognises the names of the
    /// weights. The configuration is the file `config` if given, else the checkpoint's own, else inferred from the shapes of the weights. A single file owns
    /// the `config.json` of its folder if the file is named `diffusion_pytorch_model*`, or if the tensors fit the configuration and neither another weight file
    /// nor other tensors of the file indicate another scaling of latents. The choice is logged, as a warning when it is a guess.
    ///
    /// # Errors
    /// When the checkpoint cannot be read or no family claims it.
    pub fn open(registry: &Registry, path: &Path, family: &str, config: Option<&Path>) -> Result<Self, RegistryError> {
        let named = if family == "auto" { None } else { Some(registry.get(family)?) };
        let checkpoint = Checkpoint::open(path, config)?;
        let is_single_file = config.is_none() && !checkpoint.path().is_dir();
        let mut not_used = None;
        if let (Some(config), Some(config_path)) = (checkpoint.config(), checkpoint.config_path()) {
            let entry = match (named, checkpoint.class_name()) {
                (Some(entry), _) => Some(entry),
                (None, Some(class)) => match registry.get(class) {
                    Ok(entry) => Some(entry),
                    // A VAE whose folder has the configuration of another component of the pipeline.
                    Err(unknown) if is_single_file && !is_vae(class) => {
                        not_used = Some((format!("{} is for {class}, which is not a VAE", config_path.display()), Some(unknown)));
                        None
                    }
                    Err(unknown) => return Err(unknown),
                },
                (None, None) => None,
            };
            if let Some(entry) = entry {
                let config = config.clone();
                return Self::configured(entry, config, checkpoint, |model, at, scaling| {
                    tracing::info!("{at} is a model of the family {} with {scaling}, according to {}", model.entry.name, model.config_file());
                });
            }
        }
        let weights = checkpoint.weights()?;
        let found = match named {
            Some(entry) => entry.infer(&weights).map(|config| (entry, config)),
            None => registry.entries().find_map(|entry| entry.infer(&weights).map(|config| (entry, config))),
        };
        let sibling = checkpoint.sibling().map(|sibling| check_sibling(sibling, registry, named, &weights, found.as_ref()));
        if let Some(Ok((entry, config))) = sibling {
            let is_sure = found.is_some_and(|(entry, inferred)| entry.scaling(&inferred) == entry.scaling(&config));
            return Self::configured(entry, config, checkpoint, |model, at, scaling| {
                let (family, config) = (model.entry.name, model.config_file());
                if is_sure {
                    tracing::info!("{at} is a model of the family {family} with {scaling}, according to its tensors and {config}");
                } else {
                    tracing::warn!(
                        "{at} is assumed to be a model of the family {family} with {scaling}, according to {config}; if that belongs to another model, set `model.config`"
                    );
                }
            });
        }
        let (not_used, unknown) =
            not_used.or_else(|| sibling?.err().map(|why| (why, None))).map_or((None, None), |(why, unknown)| (Some(why), unknown));
        let Some((entry, inferred)) = found else {
            return Err(unknown.unwrap_or_else(|| RegistryError::Unrecognised { path: path.to_owned(), family: family.to_owned(), not_used }));
        };
        let determines_scaling = (entry.determines_scaling)(&entry.own(weights));
        // A configuration without a class, of the family that the tensors show.
        let own = checkpoint.config().filter(|_| unknown.is_none()).cloned();
        let is_own = own.is_some();
        Self::configured(entry, own.unwrap_or(inferred), checkpoint, |model, at, scaling| {
            let family = model.entry.name;
            let has_none = not_used.map_or_else(|| format!("{at} has no config.json"), |why| format!("{why}, so it is not used"));
            if is_own {
                tracing::info!("{at} is a model of the family {family} with {scaling}, according to its tensors and {}", model.config_file());
            } else if determines_scaling {
                tracing::info!("{has_none}: according to its tensors, {at} is a model of the family {family} with {scaling}");
            } else {
                // Shapes do not show the scaling: an SDXL VAE has those of SD 1.x.
                tracing::warn!(
                    "{has_none}: {at} is assumed to be a model of the family {family} with {scaling}; if that is wrong, set `model.config`"
                );
            }
        })
    }

    /// The model of tensors in memory, whose family is the one that claims the `_class_name` of `config` (the fields of a `config.json`). The tensors have the
    /// names that diffusers gives them.
    ///
    /// # Errors
    /// When no family claims the class, or the configuration is not one of its own.
    pub fn in_memory(registry: &Registry, config: Value, tensors: Vec<StoredTensor>) -> Result<Self, RegistryError> {
        let entry = registry.get(config.get("_class_name").and_then(Value::as_str).unwrap_or_default())?;
        Self::configured(entry, config.clone(), Checkpoint::in_memory(config, tensors), |model, at, scaling| {
            tracing::info!("{at} is of the family {} with {scaling}", model.entry.name);
        })
    }

    fn configured(
        entry: &'static VaeEntry,
        config: Value,
        checkpoint: Checkpoint,
        log: impl FnOnce(&Self, Display<'_>, &str),
    ) -> Result<Self, RegistryError> {
        let spec = entry.spec(&config)?;
        let model = Self { entry, config, spec, checkpoint, components: Components::Both };
        let unknown = entry.unknown_fields(&model.config);
        if !unknown.is_empty() {
            tracing::warn!(
                "{} has fields that the family {} does not have; they are ignored: {}",
                model.config_file(),
                entry.name,
                unknown.join(", ")
            );
        }
        log(&model, model.checkpoint.path().display(), &entry.scaling(&model.config));
        Ok(model)
    }

    /// The file of the configuration, for messages.
    fn config_file(&self) -> String {
        let file = self.checkpoint.config_path().or_else(|| self.checkpoint.sibling().map(|sibling| sibling.path.as_path()));
        file.map_or_else(|| "the configuration".to_owned(), |file| file.display().to_string())
    }

    /// The dtype of most of the model's values in the checkpoint.
    ///
    /// # Errors
    /// When the weights cannot be read.
    pub fn stored_dtype(&self) -> Result<DType, WeightError> {
        Ok(self.entry.own(self.checkpoint.weights()?).dtype())
    }

    /// The same model; [`load`](Self::load) loads only these components.
    #[must_use]
    pub fn only(self, components: Components) -> Self {
        Self { components, ..self }
    }

    /// Loads the weights to `device`, to compute in `dtype`.
    ///
    /// # Errors
    /// When the weights cannot be read or do not fit the configuration.
    pub fn load(&self, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        self.load_until(device, dtype, &Stop::default())
    }

    /// The same; `stop` cancels the loading.
    ///
    /// # Errors
    /// Those of [`load`](Self::load), and [`VaeError::Stopped`].
    pub fn load_until(&self, device: &Device, dtype: DType, stop: &Stop) -> Result<Box<dyn Vae>, VaeError> {
        let weights = self.checkpoint.weights()?.only(self.components).with_stop(stop);
        self.entry.load(&self.config, weights, device, dtype)
    }
}

/// Whether the name of an unknown class is that of a VAE.
fn is_vae(class: &str) -> bool {
    let class = class.to_ascii_lowercase();
    ["autoencoder", "vae", "vq"].iter().any(|part| class.contains(part))
}

/// Family and configuration of the `config.json` in the folder of a single file, or why it is not used.
fn check_sibling(
    SiblingConfig { path, config, other_weights }: &SiblingConfig,
    registry: &Registry,
    named: Option<&'static VaeEntry>,
    weights: &Weights,
    found: Option<&(&'static VaeEntry, Value)>,
) -> Result<(&'static VaeEntry, Value), String> {
    let file = path.display();
    let config = config.clone()?;
    let Some(class) = config.get("_class_name").and_then(Value::as_str) else { return Err(format!("{file} does not name its class")) };
    let Ok(entry) = registry.get(class) else {
        return Err(if is_vae(class) {
            format!("{file} is for {class}, which is not implemented")
        } else {
            format!("{file} is for {class}, which is not a VAE")
        });
    };
    if named.is_some_and(|named| !std::ptr::eq(named, entry)) {
        return Err(format!("{file} is for {class}"));
    }
    entry.spec(&config).map_err(|error| format!("{file} is refused ({error})"))?;
    let own = entry.own(weights.clone());
    if !(entry.fits)(&config, &own) {
        return Err(format!("{file} does not fit the tensors"));
    }
    // An SDXL VAE has the shapes of one of SD 1.x: either configuration fits.
    if let Some((family, inferred)) = found
        && family.scaling(inferred) != entry.scaling(&config)
    {
        if (family.determines_scaling)(&family.own(weights.clone())) {
            return Err(format!("{file} ({}) contradicts the other components in the file", entry.scaling(&config)));
        }
        if let Some(other_weights) = other_weights {
            return Err(format!("{file} ({}) may belong to {other_weights} in the same folder", entry.scaling(&config)));
        }
    }
    Ok((entry, config))
}
