//! Executors: they run the tiles of a plan and feed the compositor. Chosen by `[executor] kind` in a configuration.
//!
//! Every executor gives the same bytes as [`Sequential`], which is the definition of the right answer.

mod config;
mod error;
mod executor;
mod multi_device;
mod schedule;
mod sequential;

pub use config::ExecutorConfig;
pub use error::ExecError;
pub use executor::{Done, Executor, Job, Progress, RunStats, Stop, Worker, WorkerStats};
pub use multi_device::MultiDevice;
pub use sequential::Sequential;

#[cfg(test)]
mod tests;
