//! Executors: they run the tiles of a plan on workers and feed the compositor. `[executor] kind` in a configuration picks one.
//!
//! Every executor gives the same bytes as [`Sequential`], which is the definition of the right answer.
//!
//! An executor of another crate implements [`Executor`]. [`Job::begin`] splits a run into a [`TileRunner`], which runs single tiles on any thread with all
//! calls guarded against panics and all answers checked, and a [`RunOutput`], which blends, counts and reports on the calling thread. The module
//! `testing` (feature `testing`) holds the tests that every executor has to pass.

mod checked;
mod config;
mod engine;
mod error;
mod events;
mod executor;
mod multi_device;
mod output;
mod runner;
mod scheduler;
mod sequential;
mod stats;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod trace;
mod worker_lock;

pub use config::ExecutorConfig;
pub use error::ExecError;
pub use events::{Done, Event, Progress};
pub use executor::{Executor, Job, Worker};
pub use multi_device::MultiDevice;
pub use output::RunOutput;
pub use runner::{TileRunner, TileUpdate};
pub use sequential::Sequential;
pub use stats::{RunStats, WorkerStats};
pub use tiling::Stop;
pub use trace::{Span, Stage, Trace};
pub use worker_lock::WorkerLock;

#[cfg(test)]
mod tests;
