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
mod part;
mod plain;
#[cfg(feature = "remote")]
pub(crate) mod remote;
#[cfg(all(test, feature = "testing", feature = "flex"))]
mod tests;

pub use activation::{Activation, UnknownActivation};
pub use convolution::{Convolution, Padding, TemporalWindow};
pub use group_norm::{GroupMoments, GroupNormParameters, TensorMoments};
pub use interface::{Operators, Plain};
pub use part::Part;

use burn::tensor::Tensor;

/// Five axes for a weight, in the memory that it has: `axes` names the axis of the weight that each of them is, and those of length 1 that are added.
pub(crate) fn with_five_axes<const D: usize>(weight: Tensor<D>, axes: [Option<usize>; 5]) -> Tensor<5> {
    #[cfg(feature = "cube")]
    if matches!(weight.device().as_dispatch(), burn::backend::DispatchDevice::Cube(_)) {
        return cube::with_five_axes(weight, axes);
    }
    let dims = weight.dims();
    weight.reshape(axes.map(|axis| axis.map_or(1, |axis| dims[axis])))
}
