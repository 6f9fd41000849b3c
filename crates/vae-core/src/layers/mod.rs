//! Layers that VAE families share. Field names are those of diffusers, so that a checkpoint's names need no mapping.
//!
//! Layers hold parameters; what they compute is up to the [operators](crate::operators) of the [`Features`] that they are given.

mod conv;
mod features;
mod norm;

pub use conv::{Conv1d, Conv2d, Conv2dOptions, Conv3d, Conv3dOptions, Linear};
pub use features::Features;
pub use norm::{GroupNorm, RmsNorm};

pub use crate::parameter::parameter;
