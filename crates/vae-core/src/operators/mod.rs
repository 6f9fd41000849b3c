//! The operations that the layers of a VAE consist of, and their implementations.
//!
//! [`Operators`] has a method for each operation. By default each goes through Burn's own operators on a tensor ([`Plain`]), which are the reference for tests;
//! implementations override what they do better, and choose how they store features:
//!
//! * `cpu`: the workspace's kernels, in f32 on Burn's CPU backend. Norms, activations and upsampling wait until a convolution reads them.
//! * `cube`: kernels for GPUs, through CubeCL.
//! * `remote`: ships whole operations to the process that serves a device.
//!
//! [`Features`](crate::layers::Features) selects an implementation once, by the [backend](crate::backends) and dtype of its tensor.

mod activation;
mod convolution;
#[cfg(feature = "flex")]
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
pub(crate) mod erased;
mod group_norm;
mod interface;
mod plain;
#[cfg(feature = "remote")]
pub(crate) mod remote;
#[cfg(all(test, feature = "testing", feature = "flex"))]
mod tests;

pub use activation::{Activation, UnknownActivation};
pub use convolution::{Convolution, Padding, TemporalWindow};
pub use group_norm::{GroupMoments, GroupNormParameters, TensorMoments};
pub use interface::{Operators, Plain};
