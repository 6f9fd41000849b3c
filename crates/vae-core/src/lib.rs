//! What VAE families share: the [`Vae`] trait, the [`VaeSpec`] that planning needs, the [registry](Registry) that families join by themselves,
//! [checkpoint reading](Checkpoint), [backends] with their [device names](DeviceName), [layers] and the tests that every family passes.
//!
//! A family is a type that implements [`VaeFamily`] and one line, [`register_vae!`]. Linking its crate is enough for
//! [`Registry::linked`] to find it.

mod answer;
pub mod backends;
mod checkpoint;
pub mod coder;
mod context;
mod eight_bits;
mod error;
mod family;
pub mod layers;
mod loaded;
mod math_mode;
mod model;
pub mod operators;
mod ops;
mod parameter;
mod posterior;
mod registry;
#[cfg(feature = "remote")]
mod remote_server;
mod spec;
pub mod staged;
pub mod tensor_file;
#[cfg(feature = "testing")]
pub mod testing;
mod vae;
mod weight_error;
mod weights;

pub use backends::{Adapter, DeviceName, DeviceNameError, adapter, free_memory, held_memory, is_in_host_memory, keep_kernels};
pub use checkpoint::Checkpoint;
pub use context::Context;
pub use eight_bits::{from_eight_bits, to_eight_bits};
pub use error::VaeError;
pub use family::{VaeEntry, VaeFamily};
pub use loaded::{LoadedVae, VaeModules};
pub use math_mode::{MathMode, Precision};
pub use model::Model;
pub use ops::VaeOp;
pub use posterior::{Posterior, normal_noise};
pub use registry::{Registry, RegistryError};
#[cfg(feature = "remote")]
pub use remote_server::host_remotely;
pub use spec::{CHANNEL_BLOCK, Clamp, FamilyTiling, FrameRule, LatentNorm, PosteriorKind, Tiling, VaeSpec};
pub use vae::{FrameStream, Vae, stream_frames};
pub use weight_error::{Mismatch, WeightError};
pub use weights::{Components, Weights};

#[doc(hidden)]
pub use inventory;
