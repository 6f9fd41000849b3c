//! The sections `[tiling]` and `[blend]` of a configuration: grids and blend policies by name, those of other crates among them.

use std::fmt::Debug;
use std::num::NonZeroUsize;

use serde::de::{DeserializeOwned, Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;

use crate::choice::{Choice, Kind, SettingsError, check, read};
use crate::grid::UniformSize;
use crate::{BlendPolicy, Cascade, DiffusersGrid, Feather, Grid, GridDefaults, GridError, Off, Overlap, PerAxis, Scale, Seamless, Uniform};

/// The section `[tiling]` of a configuration: the kind of a grid, and its settings.
pub type GridConfig = Choice<GridEntry>;

/// The section `[blend]` of a configuration: the kind of a blend policy, and its settings.
pub type BlendConfig = Choice<BlendEntry>;

/// What a grid is built for.
#[derive(Debug, Clone, Copy)]
pub struct GridContext<'a> {
    /// The direction: up in a decode, down in an encode.
    pub scale: Scale,
    /// The tiles of the model's family, for settings that are left open.
    pub defaults: &'a GridDefaults,
    /// Px in the units that tiles are counted in (see [`DiffusersGrid::unit_px`]).
    pub unit_px: usize,
    /// The grid that the model's family brings for this direction, which the kind `family` selects.
    pub family: Option<&'a GridConfig>,
}

impl<'a> GridContext<'a> {
    /// The context of a family that brings no grid of its own and counts tiles in px.
    pub fn new(scale: Scale, defaults: &'a GridDefaults) -> Self {
        Self { scale, defaults, unit_px: 1, family: None }
    }
}

/// The settings of a kind of grid. [`register_grid!`](crate::register_grid) lets configurations name it.
///
/// A type with `#[serde(deny_unknown_fields)]` refuses keys that it does not have, with the nearest one that it has.
pub trait GridKind: Serialize + DeserializeOwned {
    /// The `kind` in configurations, in kebab-case.
    const NAME: &'static str;

    /// The grid.
    ///
    /// # Errors
    /// When settings exclude each other or are missing.
    fn build(&self, context: &GridContext<'_>) -> Result<Box<dyn Grid>, GridError>;
}

/// The settings of a kind of blend policy. [`register_blend!`](crate::register_blend) lets configurations name it.
pub trait BlendKind: Serialize + DeserializeOwned {
    /// The `kind` in configurations, in kebab-case.
    const NAME: &'static str;

    /// The policy.
    fn build(&self) -> Box<dyn BlendPolicy>;
}

/// A [`GridKind`], with its type erased.
#[derive(Debug)]
pub struct GridEntry {
    name: &'static str,
    origin: &'static str,
    check: fn(Value) -> serde_json::Result<Value>,
    build: BuildGrid,
}

/// A [`BlendKind`], with its type erased.
#[derive(Debug)]
pub struct BlendEntry {
    name: &'static str,
    origin: &'static str,
    check: fn(Value) -> serde_json::Result<Value>,
    build: BuildBlend,
}

type BuildGrid = fn(&Value, &GridContext<'_>) -> Result<Box<dyn Grid>, GridError>;
type BuildBlend = fn(&Value, Option<&BlendConfig>) -> Result<Box<dyn BlendPolicy>, SettingsError>;

inventory::collect!(GridEntry);
inventory::collect!(BlendEntry);

/// Lets the configurations of every program that links the crate name a [`GridKind`].
#[macro_export]
macro_rules! register_grid {
    ($kind:ty) => {
        $crate::inventory::submit! { $crate::GridEntry::of::<$kind>(env!("CARGO_PKG_NAME")) }
    };
}

/// Lets the configurations of every program that links the crate name a [`BlendKind`].
#[macro_export]
macro_rules! register_blend {
    ($kind:ty) => {
        $crate::inventory::submit! { $crate::BlendEntry::of::<$kind>(env!("CARGO_PKG_NAME")) }
    };
}

impl GridEntry {
    /// The entry of a kind that the crate `origin` brings.
    pub const fn of<K: GridKind>(origin: &'static str) -> Self {
        Self { name: K::NAME, origin, check: check::<K>, build: |settings, context| read::<K>(K::NAME, settings)?.build(context) }
    }
}

impl BlendEntry {
    /// The entry of a kind that the crate `origin` brings.
    pub const fn of<K: BlendKind>(origin: &'static str) -> Self {
        Self { name: K::NAME, origin, check: check::<K>, build: |settings, _| Ok(read::<K>(K::NAME, settings)?.build()) }
    }
}

impl Kind for GridEntry {
    fn name(&self) -> &'static str {
        self.name
    }

    fn origin(&self) -> &'static str {
        self.origin
    }

    fn check(&self, settings: Value) -> serde_json::Result<Value> {
        (self.check)(settings)
    }

    fn all() -> Vec<&'static Self> {
        GRIDS.iter().chain(inventory::iter::<Self>).collect()
    }
}

impl Kind for BlendEntry {
    fn name(&self) -> &'static str {
        self.name
    }

    fn origin(&self) -> &'static str {
        self.origin
    }

    fn check(&self, settings: Value) -> serde_json::Result<Value> {
        (self.check)(settings)
    }

    fn all() -> Vec<&'static Self> {
        BLENDS.iter().chain(inventory::iter::<Self>).collect()
    }
}

/// A type whose entry has a place of its own.
struct Static<K>(std::marker::PhantomData<K>);

impl<K: GridKind> Static<K> {
    const GRID: &'static GridEntry = &GridEntry::of::<K>("");
}

impl<K: BlendKind> Static<K> {
    const BLEND: &'static BlendEntry = &BlendEntry::of::<K>("");
}

impl GridConfig {
    /// A kind with settings. It need not be registered.
    ///
    /// # Errors
    /// When the settings cannot be serialised to JSON.
    pub fn of<K: GridKind>(settings: &K) -> serde_json::Result<Self> {
        Ok(Self { kind: Static::<K>::GRID, settings: serde_json::to_value(settings)? })
    }

    /// The grid.
    ///
    /// # Errors
    /// When settings exclude each other or none of them sets a size.
    pub fn build(&self, context: &GridContext<'_>) -> Result<Box<dyn Grid>, GridError> {
        (self.kind.build)(&self.settings, context)
    }
}

impl BlendConfig {
    /// A kind with settings. It need not be registered.
    ///
    /// # Errors
    /// When the settings cannot be serialised to JSON.
    pub fn of<K: BlendKind>(settings: &K) -> serde_json::Result<Self> {
        Ok(Self { kind: Static::<K>::BLEND, settings: serde_json::to_value(settings)? })
    }

    /// The policy. The kind `family` selects `family`, the policy of the model's family, and `cascade` where there is none.
    ///
    /// # Errors
    /// When the settings cannot be read.
    pub fn build(&self, family: Option<&Self>) -> Result<Box<dyn BlendPolicy>, SettingsError> {
        (self.kind.build)(&self.settings, family)
    }
}

/// The grids of this crate.
static GRIDS: [GridEntry; 5] = [
    GridEntry::of::<SeamlessKind>(ORIGIN),
    GridEntry::of::<DiffusersKind>(ORIGIN),
    GridEntry::of::<UniformKind>(ORIGIN),
    GridEntry { name: "off", origin: ORIGIN, check: check::<NoSettings>, build: |_, _| Ok(Box::new(Off)) },
    GridEntry {
        name: "family",
        origin: ORIGIN,
        check: check::<DiffusersKind>,
        build: |settings, context| match context.family {
            Some(own) => own.with(settings)?.build(&GridContext { family: None, ..*context }),
            None => read::<DiffusersKind>("family", settings)?.build(context),
        },
    },
];

/// The blend policies of this crate.
static BLENDS: [BlendEntry; 3] = [
    BlendEntry { name: "cascade", origin: ORIGIN, check: check::<NoSettings>, build: |_, _| Ok(Box::new(Cascade)) },
    BlendEntry { name: "feather", origin: ORIGIN, check: check::<NoSettings>, build: |_, _| Ok(Box::new(Feather)) },
    BlendEntry {
        name: "family",
        origin: ORIGIN,
        check: check::<NoSettings>,
        build: |_, family| family.map_or_else(|| Ok(Box::new(Cascade) as _), |own| own.build(None)),
    },
];

const ORIGIN: &str = env!("CARGO_PKG_NAME");

/// The settings of a kind that has none.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

/// The settings of a [`DiffusersGrid`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusersKind {
    /// Height and width of a tile, in sample px (see [`DiffusersGrid::unit_px`]); the family's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile_px: Option<PerAxis<usize>>,
    /// The share of a tile that neighbours have in common; the family's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<PerAxis<f64>>,
    /// Distance from tile to tile, in sample px, in place of `overlap`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stride_px: Option<PerAxis<usize>>,
    /// Leave out tail tiles that lie wholly inside the tile before them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skip_redundant: bool,
}

impl GridKind for DiffusersKind {
    const NAME: &'static str = "diffusers";

    fn build(&self, context: &GridContext<'_>) -> Result<Box<dyn Grid>, GridError> {
        let (Self { tile_px, overlap, stride_px, skip_redundant }, defaults) = (*self, context.defaults);
        let overlap = match (overlap, stride_px, tile_px) {
            (Some(_), Some(_), _) => return Err(GridError::Conflict { first: "overlap", second: "stride_px" }),
            (Some(share), None, _) => Overlap::Share(share.0),
            (None, Some(stride), _) => Overlap::StridePx(stride.0),
            (None, None, Some(_)) => Overlap::Share(defaults.share()),
            (None, None, None) => defaults.overlap,
        };
        let tile_px = tile_px.map_or(defaults.tile_px, |tile| tile.0);
        Ok(Box::new(DiffusersGrid { tile_px, overlap, skip_redundant, unit_px: context.unit_px }))
    }
}

/// The settings of a [`Seamless`] grid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeamlessKind {
    /// The largest height and width of a tile, in sample px; the family's default when absent, or what the budget allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile_px: Option<PerAxis<usize>>,
    /// The memory that a run may take: on a CPU the process, on other devices each device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<MemoryBudget>,
    /// Where the moments of group norms come from, and what attention rests on.
    #[serde(default, skip_serializing_if = "NormMoments::is_auto")]
    pub norm: NormMoments,
}

/// Where the moments of group norms come from in a seamless run, and what attention rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NormMoments {
    /// From the whole picture, unless there is no room to keep its features.
    #[default]
    Auto,
    /// From the whole picture, whose features are kept between stages.
    Exact,
    /// From crops that are spread over the picture. In pictures of more than 128x128 latent px, attention rests on an even grid of px.
    Sampled,
}

impl NormMoments {
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

/// A memory budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryBudget {
    /// Most of what is free.
    Auto,
    /// MiB.
    Mib(NonZeroUsize),
}

impl Serialize for MemoryBudget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("auto"),
            Self::Mib(mib) => serializer.serialize_u64(mib.get() as u64),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryBudget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wrong = |given: &Value| D::Error::custom(format!("{given} is no memory budget; it is \"auto\" or a whole number of MiB of at least 1"));
        match Value::deserialize(deserializer)? {
            Value::String(text) if text == "auto" => Ok(Self::Auto),
            given => given.as_u64().and_then(|mib| NonZeroUsize::new(usize::try_from(mib).ok()?)).map(Self::Mib).ok_or_else(|| wrong(&given)),
        }
    }
}

impl GridKind for SeamlessKind {
    const NAME: &'static str = "seamless";

    fn build(&self, context: &GridContext<'_>) -> Result<Box<dyn Grid>, GridError> {
        let unit_px = context.unit_px.max(1);
        let tile_px = self.tile_px.map_or(context.defaults.tile_px.map(|side| side.saturating_mul(unit_px)), |tile| tile.0);
        Ok(Box::new(Seamless { tile_px }))
    }
}

/// The settings of a [`Uniform`] grid.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UniformKind {
    /// The largest height and width of a tile, in sample px.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tile_px: Option<PerAxis<usize>>,
    /// The number of rows and columns, in place of `tile_px`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub splits: Option<PerAxis<usize>>,
    /// The least share of a tile that neighbours have in common; the family's default when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<PerAxis<f64>>,
}

impl GridKind for UniformKind {
    const NAME: &'static str = "uniform";

    fn build(&self, context: &GridContext<'_>) -> Result<Box<dyn Grid>, GridError> {
        let size = match (self.tile_px, self.splits) {
            (Some(_), Some(_)) => return Err(GridError::Conflict { first: "tile_px", second: "splits" }),
            (None, None) => return Err(GridError::UniformNeedsSize),
            (Some(tile), None) => UniformSize::TilePx(tile.0),
            (None, Some(splits)) => UniformSize::Splits(splits.0),
        };
        Ok(Box::new(Uniform { size, overlap: self.overlap.map_or(context.defaults.share(), |share| share.0) }))
    }
}
