use std::fmt;
use std::num::NonZeroUsize;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use crate::{Executor, MultiDevice, Pipelined, Sequential};

/// The section `[executor]` of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExecutorConfig {
    /// See [`Sequential`].
    Sequential {},
    /// See [`MultiDevice`].
    MultiDevice {
        /// How often a tile may fail before the run does.
        #[serde(default = "default_retries")]
        retries: usize,
        /// Tiles of one shape that run in one stack.
        #[serde(default)]
        batch_tiles: Count,
        /// How long a worker may work on a tile before it is given up, in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tile_timeout_s: Option<NonZeroUsize>,
    },
    /// See [`Pipelined`].
    Pipelined {
        /// Tiles that are in some stage at once on each worker.
        #[serde(default = "default_in_flight")]
        in_flight: NonZeroUsize,
        /// How often a tile may fail before the run does.
        #[serde(default = "default_retries")]
        retries: usize,
        /// Tiles of one shape that run in one stack.
        #[serde(default)]
        batch_tiles: Count,
        /// How long a worker may work on a tile before it is given up, in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tile_timeout_s: Option<NonZeroUsize>,
    },
}

fn default_retries() -> usize {
    MultiDevice::default().retries
}

fn default_in_flight() -> NonZeroUsize {
    Pipelined::default().in_flight
}

impl ExecutorConfig {
    /// The executor.
    pub fn build(&self) -> Box<dyn Executor> {
        let seconds = |count: Option<NonZeroUsize>| count.map(|count| Duration::from_secs(count.get() as u64));
        match *self {
            Self::Sequential {} => Box::new(Sequential),
            Self::MultiDevice { retries, batch_tiles, tile_timeout_s } => {
                Box::new(MultiDevice { retries, batch_tiles, tile_timeout: seconds(tile_timeout_s) })
            }
            Self::Pipelined { in_flight, retries, batch_tiles, tile_timeout_s } => {
                let devices = MultiDevice { retries, batch_tiles, tile_timeout: seconds(tile_timeout_s) };
                Box::new(Pipelined { in_flight, devices })
            }
        }
    }
}

/// A number, or as many as are best.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// As many as are best.
    Auto,
    /// This many.
    Exactly(NonZeroUsize),
}

impl Count {
    /// One.
    pub const ONE: Self = Self::Exactly(NonZeroUsize::MIN);
}

impl Default for Count {
    fn default() -> Self {
        Self::ONE
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Exactly(count) => count.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Clone, Copy)]
        struct CountVisitor;

        impl Visitor<'_> for CountVisitor {
            type Value = Count;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\" or a whole number of at least 1")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Count, E> {
                if text == "auto" { Ok(Count::Auto) } else { Err(E::invalid_value(de::Unexpected::Str(text), &self)) }
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Count, E> {
                let count = usize::try_from(value).ok().and_then(NonZeroUsize::new);
                count.map(Count::Exactly).ok_or_else(|| E::invalid_value(de::Unexpected::Unsigned(value), &self))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Count, E> {
                self.visit_u64(u64::try_from(value).map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))?)
            }
        }

        deserializer.deserialize_any(CountVisitor)
    }
}
