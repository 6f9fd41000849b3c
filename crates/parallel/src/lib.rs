//! Executors: they run the tiles of a plan and feed the compositor. Chosen by `[executor] kind` in a configuration.
//!
//! Every executor gives the same bytes as [`Sequential`], which is the definition of the right answer.

mod config;
mod engine;
mod error;
mod executor;
mod multi_device;
mod pipelined;
mod schedule;
mod seam;
mod sequential;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod trace;
mod worker_pipeline;

pub use config::{Count, ExecutorConfig};
pub use error::ExecError;
pub use executor::{Done, Event, Executor, Job, Progress, RunStats, Worker, WorkerStats};
pub use multi_device::MultiDevice;
pub use pipelined::Pipelined;
pub use sequential::Sequential;
pub use tiling::Stop;
pub use trace::{Span, Stage, Trace};

#[cfg(test)]
mod tests;
