use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

/// A value for both axes: one number, or `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PerAxis<T>(pub [T; 2]);

impl<T: Serialize + PartialEq> Serialize for PerAxis<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let [height, width] = &self.0;
        if height == width { height.serialize(serializer) } else { self.0.serialize(serializer) }
    }
}

/// A number that a [`PerAxis`] can hold.
pub trait AxisNumber: Copy {
    /// The numbers that are possible, for messages.
    const EXPECTED: &'static str;

    /// Whether this one is possible.
    fn is_possible(self) -> bool;
}

impl AxisNumber for usize {
    const EXPECTED: &'static str = "a whole number of px";

    fn is_possible(self) -> bool {
        true
    }
}

impl AxisNumber for f64 {
    const EXPECTED: &'static str = "a finite number";

    fn is_possible(self) -> bool {
        self.is_finite()
    }
}

impl<'de, T: AxisNumber + Deserialize<'de>> Deserialize<'de> for PerAxis<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Numbers<T> {
            One(T),
            Two([T; 2]),
        }

        let sides = match Numbers::deserialize(deserializer) {
            Ok(Numbers::One(side)) => Some([side; 2]),
            Ok(Numbers::Two(sides)) => Some(sides),
            Err(_) => None,
        };
        let sides = sides.filter(|sides: &[T; 2]| sides.iter().all(|side| side.is_possible()));
        sides.map(Self).ok_or_else(|| de::Error::custom(format!("expected {}, or [height, width]", T::EXPECTED)))
    }
}
