use burn::tensor::{DType, Device};
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::{Serialize, forward_to_deserialize_any};
use serde_json::Value;

use crate::{Vae, VaeError, VaeSpec, Weights};

/// A family of VAEs. [`register_vae!`](crate::register_vae) adds it to the registry.
pub trait VaeFamily: 'static {
    /// The name in configurations, in kebab-case.
    const NAME: &'static str;
    /// Other names: upstream class names, which select the family for a `config.json`, and former names.
    const ALIASES: &'static [&'static str] = &[];
    /// One line for `tilevae models`.
    const SUMMARY: &'static str;
    /// Names of tensors, of which every checkpoint of the family has at least one, in each of its layouts. Where it is found below a prefix such as `vae.` or
    /// `module.first_stage_model.`, `infer`, `fits` and `load` see the tensors below that prefix, without it, and no others.
    const MARKERS: &'static [&'static str] = &[];
    /// The fields of `config.json`. Fields that begin with `_` and fields that the struct lacks are removed before it is deserialised, the latter with a warning.
    type Config: Serialize + DeserializeOwned;

    /// What planning needs.
    ///
    /// # Errors
    /// When a field holds a value that the family does not implement, or contradicts another.
    fn spec(config: &Self::Config) -> Result<VaeSpec, VaeError>;

    /// The configuration that follows from the names and shapes of `weights`, or `None` when they are not this family's.
    fn infer(_weights: &Weights) -> Option<Self::Config> {
        None
    }

    /// Whether the other tensors of the file determine the scaling of latents, which `infer` cannot read from shapes.
    fn determines_scaling(_weights: &Weights) -> bool {
        false
    }

    /// Whether `weights` can belong to a model of this configuration. The `config.json` in the folder of a single file is used only then.
    fn fits(_config: &Self::Config, _weights: &Weights) -> bool {
        true
    }

    /// How pipelines scale latents, in the terms of `config.json`: `scaling_factor 0.18215`.
    fn scaling(_config: &Self::Config) -> Option<String> {
        None
    }

    /// The model on `device`, computing in `dtype`.
    ///
    /// # Errors
    /// When the configuration is refused or the weights do not fit it.
    fn load(config: &Self::Config, weights: Weights, device: &Device, dtype: DType) -> Result<Box<dyn Vae>, VaeError>;
}

/// A family in the registry, with its type erased.
#[derive(Debug)]
pub struct VaeEntry {
    /// The name in configurations.
    pub name: &'static str,
    /// Other names (see [`VaeFamily::ALIASES`]).
    pub aliases: &'static [&'static str],
    /// One line for `tilevae models`.
    pub summary: &'static str,
    /// The crate that brings it.
    pub origin: &'static str,
    spec: fn(&Value) -> Result<VaeSpec, VaeError>,
    fields: fn() -> Option<&'static [&'static str]>,
    markers: &'static [&'static str],
    infer: fn(&Weights) -> Option<Value>,
    pub(crate) determines_scaling: fn(&Weights) -> bool,
    pub(crate) fits: fn(&Value, &Weights) -> bool,
    scaling: fn(&Value) -> Option<String>,
    load: LoadFn,
}

type LoadFn = fn(&Value, Weights, &Device, DType) -> Result<Box<dyn Vae>, VaeError>;

inventory::collect!(VaeEntry);

/// Adds a [`VaeFamily`] to the registry of every program that links the crate.
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
            determines_scaling: F::determines_scaling,
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

    /// The configuration that follows from the weights, when they are this family's.
    pub fn infer(&self, weights: &Weights) -> Option<Value> {
        (self.infer)(&self.own(weights.clone()))
    }

    /// How pipelines scale latents, in the terms of `config.json`.
    pub fn scaling(&self, config: &Value) -> String {
        let unnamed = || self.spec(config).map_or_else(|_| "unknown scaling".to_owned(), |spec| spec.latent_norm.to_string());
        (self.scaling)(config).unwrap_or_else(unnamed)
    }

    /// The family's tensors among those of a file.
    pub(crate) fn own(&self, weights: Weights) -> Weights {
        weights.of_model(self.markers)
    }

    /// The fields of `config` that the family does not have.
    pub(crate) fn unknown_fields(&self, config: &Value) -> Vec<String> {
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

/// The names of the fields of a struct; `None` for other types.
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
