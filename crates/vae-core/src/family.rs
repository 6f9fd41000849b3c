use std::path::{Display, Path};

use burn::tensor::{DType, Device};
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::{Serialize, forward_to_deserialize_any};
use serde_json::Value;
use tiling::Stop;

use crate::weights::Neighbour;
use crate::{Checkpoint, Components, Registry, RegistryError, Vae, VaeError, VaeSpec, WeightError, Weights};

/// A kind of VAE, as its author writes it. [`register_vae!`](crate::register_vae) puts it into the registry.
pub trait VaeFamily: 'static {
    /// The name in configurations, in kebab-case.
    const NAME: &'static str;
    /// Other names: upstream class names, which pick the family for a `config.json`, and names from before a rename.
    const ALIASES: &'static [&'static str] = &[];
    /// One line for `tilevae models`.
    const SUMMARY: &'static str;
    /// Names of tensors of which every checkpoint of the family has one, in each of its layouts. Where it lies below a nest of words such as `vae.` or
    /// `module.first_stage_model.`, `infer`, `fits` and `load` see the tensors without it, and none of those that lie elsewhere.
    const MARKERS: &'static [&'static str] = &[];
    /// The fields of `config.json`. Fields that begin with `_`, and those that a struct does not have, are taken away before it is read, the latter with a warning.
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

    /// Whether what lies beside `weights` in their file tells what `infer` cannot see in shapes, such as how latents are scaled.
    fn is_told(_weights: &Weights) -> bool {
        false
    }

    /// Whether `weights` can be those of a model of this configuration. A `config.json` beside a single file counts only then.
    fn fits(_config: &Self::Config, _weights: &Weights) -> bool {
        true
    }

    /// How pipelines scale latents, in words that users know from `config.json`: `scaling_factor 0.18215`.
    fn scaling(_config: &Self::Config) -> Option<String> {
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
    fields: fn() -> Option<&'static [&'static str]>,
    markers: &'static [&'static str],
    infer: fn(&Weights) -> Option<Value>,
    is_told: fn(&Weights) -> bool,
    fits: fn(&Value, &Weights) -> bool,
    scaling: fn(&Value) -> Option<String>,
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
            spec: |config| F::spec(&read_config::<F>(config)?)?.checked(),
            fields: fields_of::<F::Config>,
            markers: F::MARKERS,
            is_told: F::is_told,
            fits: |config, weights| read_config::<F>(config).is_ok_and(|config| F::fits(&config, weights)),
            scaling: |config| read_config::<F>(config).ok().and_then(|config| F::scaling(&config)),
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
        (self.infer)(&self.own(weights.clone()))
    }

    /// How pipelines scale latents, in words that users know from `config.json`.
    pub fn scaling(&self, config: &Value) -> String {
        let unnamed = || self.spec(config).map_or_else(|_| "unknown scaling".to_owned(), |spec| spec.latent_norm.to_string());
        (self.scaling)(config).unwrap_or_else(unnamed)
    }

    /// The family's tensors among those of a file.
    fn own(&self, weights: Weights) -> Weights {
        weights.of_model(self.markers)
    }

    /// The fields of `config` that the family does not have.
    fn unknown_fields(&self, config: &Value) -> Vec<String> {
        let (Some(fields), Some(config)) = ((self.fields)(), config.as_object()) else { return Vec::new() };
        config.keys().filter(|name| !name.starts_with('_') && !fields.contains(&name.as_str())).cloned().collect()
    }

    /// The model on `device`, computing in `dtype`.
    ///
    /// # Errors
    /// When the family refuses the configuration or the weights.
    pub fn load(&self, config: &Value, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError> {
        (self.load)(config, self.own(weights), device, dtype)
    }
}

fn read_config<F: VaeFamily>(config: &Value) -> Result<F::Config, VaeError> {
    let mut config = config.clone();
    if let Some(own) = config.as_object_mut() {
        let fields = fields_of::<F::Config>();
        own.retain(|name, _| !name.starts_with('_') && fields.is_none_or(|fields| fields.contains(&name.as_str())));
    }
    serde_path_to_error::deserialize(config).map_err(|error| {
        let field = error.path().to_string();
        let error = error.into_inner();
        VaeError::Config(if field == "." { error } else { serde_json::Error::custom(format!("`{field}`: {error}")) })
    })
}

/// The fields of a struct that is read by their names; none of other types.
fn fields_of<T: DeserializeOwned>() -> Option<&'static [&'static str]> {
    struct Probe<'a>(&'a mut Option<&'static [&'static str]>);

    impl<'de> Deserializer<'de> for Probe<'_> {
        type Error = serde::de::value::Error;

        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(Self::Error::custom("nothing is read"))
        }

        fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Self::Error> {
            *self.0 = Some(fields);
            self.deserialize_any(visitor)
        }

        fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
            visitor.visit_newtype_struct(self)
        }

        forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple tuple_struct map enum
            identifier ignored_any
        }
    }

    let mut fields = None;
    T::deserialize(Probe(&mut fields)).ok();
    fields
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
    components: Components,
}

impl Model {
    /// Finds family and configuration of the checkpoint at `path`, a folder or a file.
    ///
    /// The family is `family`, or with `auto` the one that claims the `_class_name` of the configuration, or else the one that knows the weights' names.
    /// The configuration is the file `config` when given, else the checkpoint's own, else what the weights' shapes tell. The `config.json` beside a single file is its own when
    /// the file is called `diffusion_pytorch_model*`, or when the tensors agree with it and neither another weight file beside it nor what else lies in the file speaks for
    /// another scaling of latents. Which one is used is logged, as a warning when it is a guess.
    ///
    /// # Errors
    /// When the checkpoint cannot be read or no family claims it.
    pub fn open(registry: &Registry, path: &Path, family: &str, config: Option<&Path>) -> Result<Self, RegistryError> {
        let named = if family == "auto" { None } else { Some(registry.get(family)?) };
        let checkpoint = Checkpoint::open(path, config)?;
        let is_beside = config.is_none() && !checkpoint.path().is_dir();
        let mut not_used = None;
        if let (Some(config), Some(config_path)) = (checkpoint.config(), checkpoint.config_path()) {
            let entry = match (named, checkpoint.class_name()) {
                (Some(entry), _) => Some(entry),
                (None, Some(class)) => match registry.get(class) {
                    Ok(entry) => Some(entry),
                    // The tensors of a VAE beside the configuration of another part of a pipeline.
                    Err(unknown) if is_beside && !is_vae(class) => {
                        not_used = Some((format!("{} is that of {class}, no VAE", config_path.display()), Some(unknown)));
                        None
                    }
                    Err(unknown) => return Err(unknown),
                },
                (None, None) => None,
            };
            if let Some(entry) = entry {
                let config = config.clone();
                return Self::configured(entry, config, checkpoint, |model, at, scaling| {
                    tracing::info!("{at} is a model of the family {} with {scaling}, as {} says", model.entry.name, model.config_file());
                });
            }
        }
        let weights = checkpoint.weights()?;
        let found = match named {
            Some(entry) => entry.infer(&weights).map(|config| (entry, config)),
            None => registry.entries().find_map(|entry| entry.infer(&weights).map(|config| (entry, config))),
        };
        let neighbour = checkpoint.neighbour().map(|neighbour| judge(neighbour, registry, named, &weights, found.as_ref()));
        if let Some(Ok((entry, config))) = neighbour {
            let is_sure = found.is_some_and(|(entry, inferred)| entry.scaling(&inferred) == entry.scaling(&config));
            return Self::configured(entry, config, checkpoint, |model, at, scaling| {
                let (family, beside) = (model.entry.name, model.config_file());
                if is_sure {
                    tracing::info!("{at} is a model of the family {family} with {scaling}, as its tensors and {beside} say");
                } else {
                    tracing::warn!(
                        "{at} is taken for a model of the family {family} with {scaling}, as {beside} says; if that is another model's, `model.config` names the right one"
                    );
                }
            });
        }
        let (not_used, unknown) =
            not_used.or_else(|| neighbour?.err().map(|why| (why, None))).map_or((None, None), |(why, unknown)| (Some(why), unknown));
        let Some((entry, inferred)) = found else {
            return Err(unknown.unwrap_or_else(|| RegistryError::Unrecognised { path: path.to_owned(), family: family.to_owned(), not_used }));
        };
        let is_told = (entry.is_told)(&entry.own(weights));
        // A configuration without a class, of a family that the tensors tell.
        let own = checkpoint.config().filter(|_| unknown.is_none()).cloned();
        let is_own = own.is_some();
        Self::configured(entry, own.unwrap_or(inferred), checkpoint, |model, at, scaling| {
            let family = model.entry.name;
            let has_none = not_used.map_or_else(|| format!("{at} has no config.json"), |why| format!("{why}, and not used"));
            if is_own {
                tracing::info!("{at} is a model of the family {family} with {scaling}, as its tensors and {} say", model.config_file());
            } else if is_told {
                tracing::info!("{has_none}: by its tensors {at} is a model of the family {family} with {scaling}");
            } else {
                // Shapes do not tell this: an SDXL VAE looks like one of SD 1.x.
                tracing::warn!(
                    "{has_none}: {at} is taken for a model of the family {family} with {scaling}; if that is wrong, `model.config` names the right one"
                );
            }
        })
    }

    fn configured(
        entry: &'static VaeEntry,
        config: Value,
        checkpoint: Checkpoint,
        say: impl FnOnce(&Self, Display<'_>, &str),
    ) -> Result<Self, RegistryError> {
        let spec = entry.spec(&config)?;
        let model = Self { entry, config, spec, checkpoint, components: Components::Both };
        let unknown = entry.unknown_fields(&model.config);
        if !unknown.is_empty() {
            tracing::warn!(
                "{} has fields that the family {} does not know, and they are passed over: {}",
                model.config_file(),
                entry.name,
                unknown.join(", ")
            );
        }
        say(&model, model.checkpoint.path().display(), &entry.scaling(&model.config));
        Ok(model)
    }

    /// Where the configuration comes from, for messages.
    fn config_file(&self) -> String {
        let file = self.checkpoint.config_path().or_else(|| self.checkpoint.neighbour().map(|neighbour| neighbour.path.as_path()));
        file.map_or_else(|| "the configuration".to_owned(), |file| file.display().to_string())
    }

    /// The dtype of most of the model's values in the checkpoint.
    ///
    /// # Errors
    /// When the weights cannot be read.
    pub fn stored_dtype(&self) -> Result<DType, WeightError> {
        Ok(self.entry.own(self.checkpoint.weights()?).dtype())
    }

    /// The same model, of which only some components will be loaded.
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

    /// The same with a switch that ends the loading.
    ///
    /// # Errors
    /// Those of [`load`](Self::load), and [`VaeError::Stopped`] once the switch is thrown.
    pub fn load_until(&self, device: &Device, dtype: DType, stop: &Stop) -> Result<Box<dyn Vae>, VaeError> {
        let weights = self.checkpoint.weights()?.only(self.components).with_stop(stop);
        self.entry.load(&self.config, weights, device, dtype)
    }
}

/// Whether a class that no family claims is a VAE all the same.
fn is_vae(class: &str) -> bool {
    let class = class.to_ascii_lowercase();
    ["autoencoder", "vae", "vq"].iter().any(|part| class.contains(part))
}

/// Family and configuration of a `config.json` beside a single file, or why it is not the file's own.
fn judge(
    Neighbour { path, config, rival }: &Neighbour,
    registry: &Registry,
    named: Option<&'static VaeEntry>,
    weights: &Weights,
    found: Option<&(&'static VaeEntry, Value)>,
) -> Result<(&'static VaeEntry, Value), String> {
    let file = path.display();
    let config = config.clone()?;
    let Some(class) = config.get("_class_name").and_then(Value::as_str) else { return Err(format!("{file} does not say of what class it is")) };
    let Ok(entry) = registry.get(class) else {
        return Err(if is_vae(class) {
            format!("{file} is that of {class}, which is not implemented")
        } else {
            format!("{file} is that of {class}, no VAE")
        });
    };
    if named.is_some_and(|named| !std::ptr::eq(named, entry)) {
        return Err(format!("{file} is that of {class}"));
    }
    entry.spec(&config).map_err(|error| format!("{file} is refused ({error})"))?;
    let own = entry.own(weights.clone());
    if !(entry.fits)(&config, &own) {
        return Err(format!("{file} does not agree with the tensors"));
    }
    // An SDXL VAE looks like one of SD 1.x: shapes agree with the configuration of either.
    if let Some((told, inferred)) = found
        && told.scaling(inferred) != entry.scaling(&config)
    {
        if (told.is_told)(&told.own(weights.clone())) {
            return Err(format!("{file} ({}) is not that of the model whose other parts lie in the file", entry.scaling(&config)));
        }
        if let Some(rival) = rival {
            return Err(format!("{file} ({}) may be that of {rival} beside it", entry.scaling(&config)));
        }
    }
    Ok((entry, config))
}
