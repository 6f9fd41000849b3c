use std::fmt::{self, Debug};

use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

/// Kinds of one sort that configurations name: the built-in ones, and those that linked crates register.
pub trait Kind: Debug + Sync + 'static {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// The crate that registers it.
    fn origin(&self) -> &'static str;

    /// Reads settings and writes them again, defaults included.
    ///
    /// # Errors
    /// When a key or a value does not exist.
    fn check(&self, settings: Value) -> serde_json::Result<Value>;

    /// All kinds.
    fn all() -> Vec<&'static Self>;
}

/// A kind and its settings, as a section of a configuration names them: `kind` and the kind's own keys.
pub struct Choice<K: 'static> {
    pub(crate) kind: &'static K,
    pub(crate) settings: Value,
}

/// Settings that a kind cannot be built from.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("the settings of `{kind}` cannot be used: {message}")]
pub struct SettingsError {
    /// The kind.
    pub kind: &'static str,
    /// What is wrong.
    pub message: String,
}

impl<K: Kind> Choice<K> {
    /// The kind of a name, with settings.
    ///
    /// # Errors
    /// When no linked crate, or more than one, brings a kind of that name, and when a key or a value does not exist. The words are those of serde.
    pub fn named(name: &str, settings: Map<String, Value>) -> serde_json::Result<Self> {
        // What JSON makes of them.
        if let Some((key, _)) = settings.iter().find(|(_, value)| value.is_null()) {
            return Err(de::Error::custom(format!("`{key}` is not a finite number")));
        }
        let all = K::all();
        let found: Vec<_> = all.iter().filter(|kind| kind.name() == name).collect();
        match found[..] {
            [kind] => {
                let checked = kind.check(Value::Object(settings.clone()));
                let settings = checked.map_err(|error| error_with_kinds(error, kind.name(), &settings, &all))?;
                Ok(Self { kind, settings })
            }
            [] => {
                let known = all.iter().map(|kind| format!("`{}`", kind.name())).collect::<Vec<_>>().join(", ");
                Err(de::Error::custom(format!("unknown variant `{name}`, expected one of {known}")))
            }
            [first, second, ..] => {
                Err(de::Error::custom(format!("the kind `{name}` is claimed twice, by the crates {} and {}", first.origin(), second.origin())))
            }
        }
    }

    /// The same kind with the keys of `settings` in place of its own.
    pub(crate) fn with(&self, settings: &Value) -> Result<Self, SettingsError> {
        let mut merged = self.settings.clone();
        if let (Value::Object(merged), Value::Object(settings)) = (&mut merged, settings) {
            merged.extend(settings.iter().map(|(key, value)| (key.clone(), value.clone())));
        }
        let settings = self.kind.check(merged).map_err(|error| SettingsError { kind: self.kind(), message: error.to_string() })?;
        Ok(Self { kind: self.kind, settings })
    }

    /// The kind's name.
    pub fn kind(&self) -> &'static str {
        self.kind.name()
    }

    /// The kind's own keys.
    pub fn settings(&self) -> &Value {
        &self.settings
    }
}

/// The error of `kind`'s settings; of a key that only others have, with their names.
fn error_with_kinds<K: Kind>(error: serde_json::Error, kind: &str, settings: &Map<String, Value>, all: &[&'static K]) -> serde_json::Error {
    let message = error.to_string();
    let unknown = |key: &str| format!("unknown field `{key}`");
    let Some((key, value)) = settings.iter().find(|(key, _)| message.starts_with(&unknown(key))) else { return error };
    let alone = || Value::Object(Map::from_iter([(key.clone(), value.clone())]));
    let has_key = |other: &&&'static K| match other.check(alone()) {
        Ok(checked) => checked.get(key).is_some(),
        Err(error) => !error.to_string().starts_with(&unknown(key)),
    };
    let others: Vec<&str> = all.iter().filter(has_key).map(|other| other.name()).collect();
    if others.is_empty() { error } else { de::Error::custom(format!("{message}; {kind} has no such key, but {} has", others.join(", "))) }
}

/// The settings as the kind's own type.
pub(crate) fn read<T: DeserializeOwned>(kind: &'static str, settings: &Value) -> Result<T, SettingsError> {
    T::deserialize(settings).map_err(|error| SettingsError { kind, message: error.to_string() })
}

/// Reads settings as a type and writes them again.
pub(crate) fn check<T: Serialize + DeserializeOwned>(settings: Value) -> serde_json::Result<Value> {
    serde_json::to_value(T::deserialize(settings)?)
}

impl<K> Clone for Choice<K> {
    fn clone(&self) -> Self {
        Self { kind: self.kind, settings: self.settings.clone() }
    }
}

impl<K: Kind> PartialEq for Choice<K> {
    fn eq(&self, other: &Self) -> bool {
        (self.kind.name(), &self.settings) == (other.kind.name(), &other.settings)
    }
}

impl<K: Kind> Debug for Choice<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.name(), self.settings)
    }
}

impl<K: Kind> Serialize for Choice<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("kind", self.kind.name())?;
        for (key, value) in self.settings.as_object().into_iter().flatten() {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de, K: Kind> Deserialize<'de> for Choice<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Section<K: 'static>(std::marker::PhantomData<K>);

        impl<'de, K: Kind> Visitor<'de> for Section<K> {
            type Value = Choice<K>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table with a `kind`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Choice<K>, A::Error> {
                let (mut kind, mut settings) = (None::<String>, Map::new());
                while let Some(key) = map.next_key::<String>()? {
                    if key == "kind" {
                        kind = Some(map.next_value()?);
                    } else {
                        settings.insert(key, map.next_value()?);
                    }
                }
                let kind = kind.ok_or_else(|| de::Error::missing_field("kind"))?;
                Choice::named(&kind, settings).map_err(de::Error::custom)
            }
        }

        deserializer.deserialize_map(Section(std::marker::PhantomData))
    }
}
