use std::fmt::Debug;

use crate::{Axis, Scale};

/// How overlapping tiles become one image. Downstream crates may bring their own.
///
/// At each px of an overlap the later tile (below, or to the right) gets [`weight`](Self::weight) and the earlier one the rest, so that the weights of a px
/// sum to 1 for every policy.
pub trait BlendPolicy: Debug + Send + Sync {
    /// The share of the later tile, 0 to 1, at px `offset` of an overlap, counted from the later tile's first px. Anything else ends the run with an error.
    fn weight(&self, offset: usize, seam: &Seam) -> f64;

    /// How the two axes are combined.
    fn corner(&self) -> Corner {
        Corner::Separable
    }
}

/// Where two neighbouring tiles overlap. Lengths are in output px; where the model puts patches together last, in patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seam {
    /// Up in a decode, down in an encode.
    pub scale: Scale,
    /// The axis on which the tiles are neighbours.
    pub axis: Axis,
    /// The length that the tiles have in common.
    pub extent: usize,
    /// The length that two tiles of full size have in common (see [`Grid::nominal_overlap`](crate::Grid::nominal_overlap)).
    pub nominal: usize,
}

/// How the weights of the two axes are combined, which shows only where four tiles meet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Corner {
    /// Columns first, then whole bands: the weight of a tile is the product of its weights on the two axes.
    Separable,
    /// Each tile with the finished tile above, then with the finished tile to the left, as in `AutoencoderKL` of diffusers.
    Cascade,
    /// Each tile over what earlier tiles have left there, with the product of its weights on the two axes as its mask, as in `AutoencoderTiny` of
    /// diffusers.
    Mask,
}

/// The blend of diffusers (`blend_v`, then `blend_h`): a ramp from 0 to `(extent - 1) / extent`, in a cascade.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cascade;

impl BlendPolicy for Cascade {
    fn weight(&self, offset: usize, seam: &Seam) -> f64 {
        offset as f64 / seam.extent as f64
    }

    fn corner(&self) -> Corner {
        Corner::Cascade
    }
}

/// A symmetric linear ramp on each axis; the mask of a tile is the product of its ramps.
#[derive(Debug, Clone, Copy, Default)]
pub struct Feather;

impl BlendPolicy for Feather {
    fn weight(&self, offset: usize, seam: &Seam) -> f64 {
        (offset as f64 + 0.5) / seam.extent as f64
    }
}
