use std::path::PathBuf;

use parallel::ExecError;
use vae_core::{DeviceName, RegistryError, VaeError, WeightError};

use crate::NonFinite;

/// Why a run is refused or fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A configuration that is not valid TOML.
    #[error("{} is not valid TOML", origin)]
    TomlSyntax {
        /// The file or other source.
        origin: String,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// An unknown key or a wrong value.
    #[error("the configuration is wrong at `{key}`: {message}")]
    ConfigValue {
        /// The section or key.
        key: String,
        /// What was found, and what is expected.
        message: String,
    },
    /// An error of a configuration, with its origin.
    #[error("{origin}: {error}")]
    ConfigSource {
        /// The file, or the override.
        origin: String,
        /// What is wrong.
        error: Box<Error>,
    },
    /// Seamless tiles of a model whose layers are not known.
    #[error("models of the family {family} cannot run in seamless tiles; tiling.kind = \"diffusers\" or \"uniform\" can")]
    NotSeamless {
        /// The family.
        family: String,
    },
    /// A memory budget that no division of the run meets.
    #[error("the run takes at least {least_mib} MiB, and tiling.memory_mib is {budget_mib}")]
    Budget {
        /// The budget.
        budget_mib: u64,
        /// The least that can be met.
        least_mib: u64,
    },
    /// A `--set` without a key, or without `=`.
    #[error("`{given}` does not set a key; write section.key=value")]
    Override {
        /// What was given.
        given: String,
    },
    /// A file that cannot be opened, read or written.
    #[error("{} cannot be {verb}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// `read` or `written`.
        verb: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A clip with a remainder of frames.
    #[error(
        "a clip of {got} frames does not fill its last latent frame (this model takes 1 + {ratio}k); set io.frames to \"drop\" for the first {fewer} frames, or to \"pad\" to repeat the last one up to {more} and cut them off again on the way back"
    )]
    Frames {
        /// Frames of the clip.
        got: usize,
        /// Sample frames in a latent frame.
        ratio: usize,
        /// The nearest smaller number without a remainder.
        fewer: usize,
        /// The nearest larger number.
        more: usize,
    },
    /// More values than can be addressed.
    #[error("{} (batch, channels, frames, height, width) are too many values for one run; use a smaller size", shape.map(|side| side.to_string()).join("x"))]
    TooLarge {
        /// `[batch, channels, frames, height, width]`.
        shape: [usize; 5],
    },
    /// A plan that was made for an input of another shape.
    #[error("the plan is for {what} of {planned:?} (batch, channels, frames, height, width), these have {got:?}")]
    PlanInput {
        /// `latents` or `samples`.
        what: &'static str,
        /// The shape that the plan was made for.
        planned: [usize; 5],
        /// The shape of the source.
        got: [usize; 5],
    },
    /// A plan that was made for another model.
    #[error("the plan is for another model: {}", if planned == got { format!("another configuration of the family {got}") } else { format!("the family {planned}, not {got}") })]
    PlanModel {
        /// The family that the plan was made for.
        planned: String,
        /// The family of the pipeline.
        got: String,
    },
    /// An input that is not finite.
    #[error("of the {what}, {found}; io.on_non_finite = \"allow\" takes them as they are")]
    NonFinite {
        /// `latents` or `samples`.
        what: &'static str,
        /// How many, and where.
        found: NonFinite,
    },
    /// An input that could not be read for the check of its values.
    #[error("the {what} cannot be read")]
    Source {
        /// `latents` or `samples`.
        what: &'static str,
        /// Why.
        source: tiling::BoxError,
    },
    /// A device that this program was not built for.
    #[error("{device} needs the Cargo feature `{feature}`, which this program was built without; it has: {available}")]
    DeviceNotBuilt {
        /// The device.
        device: DeviceName,
        /// The feature.
        feature: &'static str,
        /// The available devices.
        available: String,
    },
    /// A missing device.
    #[error("there is no {device} on this machine; there are: {available}")]
    DeviceAbsent {
        /// The device.
        device: DeviceName,
        /// The available devices.
        available: String,
    },
    /// A device that exists but cannot be opened, or a remote one that does not answer or refuses the connection.
    #[error("{device} cannot be used: {message}")]
    DeviceUnusable {
        /// The device.
        device: DeviceName,
        /// Why.
        message: String,
    },
    /// Devices that cannot be served to other machines.
    #[error("the devices cannot be served: {message}")]
    Server {
        /// Why.
        message: String,
    },
    /// Threads that cannot be started.
    #[error("{threads} threads cannot be started: {message}")]
    Threads {
        /// The number of threads.
        threads: usize,
        /// Why.
        message: String,
    },
    /// Family or checkpoint.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Shapes, configuration or weights of the model.
    #[error(transparent)]
    Vae(#[from] VaeError),
    /// The weights.
    #[error(transparent)]
    Weights(#[from] WeightError),
    /// A grid that cannot be laid.
    #[error(transparent)]
    Grid(#[from] tiling::GridError),
    /// The run.
    #[error(transparent)]
    Run(#[from] ExecError),
    /// An input or output that cannot be used.
    #[error(transparent)]
    Io(#[from] crate::io::IoError),
}

impl Error {
    /// The error of a run that a [`Stop`](crate::Stop) ended.
    pub fn stopped() -> Self {
        Self::Run(ExecError::Stopped)
    }

    /// The subject of the error, for programs: `configuration`, `input`, `device`, `model`, `grid`, `file`, `interrupted` or `run`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TomlSyntax { .. }
            | Self::ConfigValue { .. }
            | Self::ConfigSource { .. }
            | Self::Override { .. }
            | Self::Run(ExecError::TooManyDevices { .. } | ExecError::NoDevice) => "configuration",
            Self::DeviceNotBuilt { .. } | Self::DeviceAbsent { .. } | Self::DeviceUnusable { .. } | Self::Server { .. } | Self::Threads { .. } => {
                "device"
            }
            Self::Registry(_) | Self::Vae(_) | Self::Weights(_) => "model",
            Self::Grid(_) => "grid",
            Self::Io(error) => error.kind(),
            Self::File { .. } => "file",
            Self::Run(ExecError::Stopped) => "interrupted",
            Self::Run(_) => "run",
            _ => "input",
        }
    }

    /// Whether a [`Stop`](crate::Stop) ended the run.
    pub fn is_stop(&self) -> bool {
        matches!(self, Self::Run(ExecError::Stopped))
    }

    /// Whether arguments or configuration are wrong, which is found before any tile runs. False for a run that failed.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::TomlSyntax { .. }
            | Self::ConfigValue { .. }
            | Self::ConfigSource { .. }
            | Self::Override { .. }
            | Self::Frames { .. }
            | Self::NotSeamless { .. }
            | Self::Budget { .. }
            | Self::TooLarge { .. }
            | Self::PlanInput { .. }
            | Self::PlanModel { .. }
            | Self::DeviceNotBuilt { .. }
            | Self::DeviceAbsent { .. }
            | Self::DeviceUnusable { .. }
            | Self::Server { .. }
            | Self::Grid(_)
            | Self::Registry(RegistryError::Unknown { .. })
            | Self::Run(ExecError::TooManyDevices { .. } | ExecError::NoDevice) => true,
            Self::Io(error) => error.is_usage(),
            _ => false,
        }
    }
}
