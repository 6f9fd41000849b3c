//! The library as programs embed it, and files that were damaged on purpose, which need a process of its own.

mod hostile;
#[cfg(all(feature = "flex", feature = "kl"))]
mod jobs;
