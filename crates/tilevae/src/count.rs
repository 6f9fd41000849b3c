use std::fmt;
use std::num::NonZeroUsize;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A number, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// The best number for the machine.
    Auto,
    /// This many.
    Exactly(NonZeroUsize),
}

impl Default for Count {
    fn default() -> Self {
        Self::Exactly(NonZeroUsize::MIN)
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
