//! Tiled decode and encode through variational autoencoders: the library to embed.
//!
//! A [`Config`] (TOML) and the shape of an input make a [`RunPlan`] of integers, without weights; a [`Pipeline`] with loaded weights runs it, tile by
//! tile and, where the model allows it, chunk by chunk of frames, and hands finished parts to a sink while the rest still runs.
//!
//! ```no_run
//! use tilevae::{Config, Direction, Pipeline, RunOptions, io};
//!
//! let config = Config::from_toml(r#"model.path = "models/demo-kl""#)?;
//! let pipeline = Pipeline::load(&config)?;
//! let latents = io::Tensors::read("latents.safetensors".as_ref())?.input(Direction::Decode, pipeline.spec(), &config.io)?.read()?;
//! let samples = pipeline.decode(&latents.values, RunOptions::default())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod count;
mod devices;
mod dtypes;
mod error;
mod finite;
mod frames;
pub mod io;
mod memory_plan;
pub mod metrics;
mod pipeline;
mod plan;
pub mod remote;
mod run_options;
#[cfg(all(test, feature = "flex", feature = "kl"))]
mod running_tests;
#[cfg(all(test, feature = "flex", feature = "kl", feature = "wan"))]
mod seamless_tests;
mod warming;
mod workers;

pub use config::{
    Config, CpuConfig, DevicesConfig, DtypeConfig, FrameRemainder, IoConfig, LatentSpace, ModelConfig, OnMissing, OnNonFinite, OnNonFiniteInput,
    parse_override,
};
pub use count::Count;
pub use devices::{DeviceInfo, OpenDevice, list_devices, open_device, open_devices};
pub use error::Error;
pub use finite::NonFinite;
pub use frames::FittedFrames;
pub use memory_plan::{MemoryPlan, NextBudget};
pub use parallel::{Done, Event, ExecutorConfig, Progress, RunStats, Span, Stage, Stop, Trace, WorkerStats};
pub use pipeline::{Encoded, Pipeline, open_model};
pub use plan::{Direction, PlanBytes, RunPlan, StageSummary};
pub use run_options::RunOptions;
pub use tiling::{self, BlendConfig, GridConfig, HostTensor, TileSource};
pub use vae_core::{self, DeviceName, Model, Posterior, Registry, VaeSpec};
pub use vae_core::{MathMode, Precision};
pub use workers::MOST_THREADS;

#[cfg(feature = "kl")]
use vae_kl as _;
#[cfg(feature = "wan")]
use vae_wan as _;
