use std::fmt;
use std::marker::PhantomData;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize as DeriveDeserialize, Serialize};

use crate::grid::UniformSize;
use crate::{BlendPolicy, Cascade, DiffusersGrid, Feather, Grid, GridDefaults, GridError, Off, Overlap, Uniform};

/// A value for both axes: one number, or `[height, width]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PerAxis<T>(pub [T; 2]);

impl<'de, T: Deserialize<'de> + Copy + FromNumber> Deserialize<'de> for PerAxis<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PerAxisVisitor(PhantomData))
    }
}

/// A number that a [`PerAxis`] can hold.
pub trait FromNumber: Sized {
    /// What is expected, for messages.
    const WHAT: &'static str;
    /// From an integer, when it fits.
    fn from_integer(value: i64) -> Option<Self>;
    /// From a fraction, when it fits.
    fn from_fraction(value: f64) -> Option<Self>;
    /// Whether it is neither NaN nor infinite.
    fn is_finite(&self) -> bool;
}

impl FromNumber for usize {
    const WHAT: &'static str = "a whole number of px";
    fn from_integer(value: i64) -> Option<Self> {
        value.try_into().ok()
    }
    fn from_fraction(_: f64) -> Option<Self> {
        None
    }
    fn is_finite(&self) -> bool {
        true
    }
}

impl FromNumber for f64 {
    const WHAT: &'static str = "a finite number";
    fn from_integer(value: i64) -> Option<Self> {
        Some(value as Self)
    }
    fn from_fraction(value: f64) -> Option<Self> {
        Some(value)
    }
    fn is_finite(&self) -> bool {
        Self::is_finite(*self)
    }
}

struct PerAxisVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de> + Copy + FromNumber> Visitor<'de> for PerAxisVisitor<T> {
    type Value = PerAxis<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, or [height, width]", T::WHAT)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
        T::from_integer(value).map(|value| PerAxis([value; 2])).ok_or_else(|| E::invalid_value(de::Unexpected::Signed(value), &self))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
        self.visit_i64(i64::try_from(value).unwrap_or(i64::MAX))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Self::Value, E> {
        let number = T::from_fraction(value).filter(T::is_finite);
        number.map(|value| PerAxis([value; 2])).ok_or_else(|| E::invalid_value(de::Unexpected::Float(value), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let (Some(height), Some(width)) = (items.next_element::<T>()?, items.next_element::<T>()?) else {
            return Err(de::Error::invalid_length(0, &self));
        };
        if !(height.is_finite() && width.is_finite()) {
            return Err(de::Error::invalid_value(de::Unexpected::Other("a number that is not finite"), &self));
        }
        match items.next_element::<de::IgnoredAny>()? {
            None => Ok(PerAxis([height, width])),
            Some(_) => Err(de::Error::invalid_length(3, &self)),
        }
    }
}

/// The section `[tiling]` of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, DeriveDeserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum GridConfig {
    /// See [`DiffusersGrid`].
    Diffusers {
        /// Height and width of a tile, in sample px (see [`DiffusersGrid::unit_px`]); the family's own when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tile_px: Option<PerAxis<usize>>,
        /// Share of a tile that it has in common with its neighbour; the family's own when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        overlap: Option<PerAxis<f64>>,
        /// Distance from tile to tile, in sample px, in place of `overlap`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stride_px: Option<PerAxis<usize>>,
        /// Leave out tail tiles that lie wholly inside the tile before them.
        #[serde(default)]
        skip_redundant: bool,
    },
    /// See [`Uniform`].
    Uniform {
        /// The largest height and width of a tile, in sample px.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tile_px: Option<PerAxis<usize>>,
        /// The number of rows and columns, in place of `tile_px`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        splits: Option<PerAxis<usize>>,
        /// The least share of a tile that it has in common with its neighbour; the family's own when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        overlap: Option<PerAxis<f64>>,
    },
    /// See [`Off`].
    Off {},
}

impl GridConfig {
    /// The grid, with the family's `defaults` for what the configuration leaves open. `unit_px` is of [`DiffusersGrid`].
    ///
    /// # Errors
    /// When keys exclude each other or none of them sets a size.
    pub fn build(&self, defaults: &GridDefaults, unit_px: usize) -> Result<Box<dyn Grid>, GridError> {
        match *self {
            Self::Off {} => Ok(Box::new(Off)),
            Self::Diffusers { overlap: Some(_), stride_px: Some(_), .. } => Err(GridError::Conflict { first: "overlap", second: "stride_px" }),
            Self::Diffusers { tile_px, overlap, stride_px, skip_redundant } => {
                let overlap = match (overlap, stride_px, tile_px) {
                    (Some(share), ..) => Overlap::Share(share.0),
                    (None, Some(stride), _) => Overlap::StridePx(stride.0),
                    (None, None, Some(_)) => Overlap::Share(defaults.share()),
                    (None, None, None) => defaults.overlap,
                };
                Ok(Box::new(DiffusersGrid { tile_px: tile_px.map_or(defaults.tile_px, |tile| tile.0), overlap, skip_redundant, unit_px }))
            }
            Self::Uniform { tile_px, splits, overlap } => {
                let size = match (tile_px, splits) {
                    (Some(_), Some(_)) => return Err(GridError::Conflict { first: "tile_px", second: "splits" }),
                    (None, None) => return Err(GridError::UniformNeedsSize),
                    (Some(tile), None) => UniformSize::TilePx(tile.0),
                    (None, Some(splits)) => UniformSize::Splits(splits.0),
                };
                Ok(Box::new(Uniform { size, overlap: overlap.map_or(defaults.share(), |share| share.0) }))
            }
        }
    }
}

/// The section `[blend]` of a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, DeriveDeserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BlendConfig {
    /// See [`Cascade`].
    Cascade {},
    /// See [`Feather`].
    Feather {},
}

impl BlendConfig {
    /// The policy.
    pub fn build(&self) -> Box<dyn BlendPolicy> {
        match self {
            Self::Cascade {} => Box::new(Cascade),
            Self::Feather {} => Box::new(Feather),
        }
    }
}
