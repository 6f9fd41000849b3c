use std::num::NonZeroUsize;

use serde::de::{Deserializer, Error};
use serde::{Deserialize, Serialize};

use crate::{Executor, MultiDevice, Sequential};

/// The section `[executor]` of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ExecutorConfig {
    /// See [`Sequential`].
    Sequential {},
    /// See [`MultiDevice`]; `in_flight` is not a key of it.
    MultiDevice(#[serde(deserialize_with = "one_at_a_time")] MultiDevice),
    /// See [`MultiDevice::pipelined`].
    Pipelined(#[serde(deserialize_with = "overlapping")] MultiDevice),
}

impl ExecutorConfig {
    /// The executor.
    pub fn build(&self) -> Box<dyn Executor> {
        match *self {
            Self::Sequential {} => Box::new(Sequential),
            Self::MultiDevice(executor) => Box::new(MultiDevice { in_flight: None, ..executor }),
            Self::Pipelined(executor) => Box::new(MultiDevice { in_flight: executor.in_flight.or(MultiDevice::pipelined().in_flight), ..executor }),
        }
    }
}

fn one_at_a_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MultiDevice, D::Error> {
    match MultiDevice::deserialize(deserializer)? {
        MultiDevice { in_flight: Some(_), .. } => Err(D::Error::unknown_field("in_flight", &["retries", "batch_tiles", "tile_timeout_s"])),
        executor => Ok(executor),
    }
}

fn overlapping<'de, D: Deserializer<'de>>(deserializer: D) -> Result<MultiDevice, D::Error> {
    let executor = MultiDevice::deserialize(deserializer)?;
    Ok(MultiDevice { in_flight: executor.in_flight.or(MultiDevice::pipelined().in_flight), ..executor })
}

/// A limit of time in whole seconds.
pub(crate) mod whole_seconds {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    use super::{Deserialize, NonZeroUsize};

    #[expect(clippy::ref_option, reason = "serde passes it so")]
    pub(crate) fn serialize<S: Serializer>(limit: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match limit {
            Some(limit) => serializer.serialize_u64(limit.as_secs()),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let seconds: NonZeroUsize = Deserialize::deserialize(deserializer)?;
        Ok(Some(Duration::from_secs(seconds.get() as u64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelined_alone_has_tiles_in_flight() {
        let read = |text: &str| serde_json::from_str::<ExecutorConfig>(text).map_err(|error| error.to_string());
        let multi = read(r#"{"kind": "multi-device", "retries": 5, "tile_timeout_s": 3}"#).unwrap();
        let expected = MultiDevice { retries: 5, tile_timeout: Some(std::time::Duration::from_secs(3)), ..MultiDevice::default() };
        assert_eq!(multi, ExecutorConfig::MultiDevice(expected));
        assert_eq!(read(&serde_json::to_string(&multi).unwrap()).unwrap(), multi);
        assert_eq!(read(r#"{"kind": "pipelined"}"#).unwrap(), ExecutorConfig::Pipelined(MultiDevice::pipelined()));
        assert_eq!(read(r#"{"kind": "pipelined", "in_flight": 2}"#).unwrap().build().name(), "pipelined");
        let error = read(r#"{"kind": "multi-device", "in_flight": 2}"#).unwrap_err();
        assert!(error.contains("unknown field `in_flight`, expected one of `retries`, `batch_tiles`, `tile_timeout_s`"), "{error}");
        for wrong in
            [r#"{"kind": "pipelined", "tile_timeout_s": 0}"#, r#"{"kind": "pipelined", "batch_tiles": 0}"#, r#"{"kind": "sequential", "retries": 1}"#]
        {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
