use std::fmt::Debug;

/// How overlapping tiles become one picture. Downstream crates may bring their own.
///
/// At each px of an overlap the later tile (below, or to the right) gets [`weight`](Self::weight) and the earlier one the rest, so that the
/// weights of a px sum to 1 whatever the policy.
pub trait BlendPolicy: Debug + Send + Sync {
    /// The share of the later tile, 0 to 1, at px `offset` (from 0) of an overlap of `extent` px. Anything else ends the run with an error.
    fn weight(&self, offset: usize, extent: usize) -> f64;

    /// What happens where four tiles meet.
    fn corner(&self) -> Corner {
        Corner::Separable
    }
}

/// The order in which the two axes are blended, which shows only where four tiles meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Corner {
    /// Columns first, then whole bands: the weight of a tile is the product of its weights on the two axes.
    Separable,
    /// Each tile with the finished tile above, then with the finished tile to the left, as diffusers does in place.
    Cascade,
}

/// The blend of diffusers (`blend_v`, then `blend_h`): a ramp from 0 to `(extent - 1) / extent`, in a cascade.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cascade;

impl BlendPolicy for Cascade {
    fn weight(&self, offset: usize, extent: usize) -> f64 {
        offset as f64 / extent as f64
    }

    fn corner(&self) -> Corner {
        Corner::Cascade
    }
}

/// A symmetric linear ramp on each axis; the mask of a tile is the product of its ramps.
#[derive(Debug, Clone, Copy, Default)]
pub struct Feather;

impl BlendPolicy for Feather {
    fn weight(&self, offset: usize, extent: usize) -> f64 {
        (offset as f64 + 0.5) / extent as f64
    }
}
