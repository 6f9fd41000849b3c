use std::error::Error;
use std::ops::Range;

use tiling::{BoxError, CompositeError, Panicked, catch};

/// How CUDA, wgpu, Vulkan and CubeCL's memory management report exhausted memory, in lower case.
const OUT_OF_MEMORY: [&str; 9] = [
    "out of memory",
    "out-of-memory",
    "out_of_memory",
    "outofmemory",
    "out of device memory",
    "out of host memory",
    "not enough memory",
    "can't allocate",
    "memory exhausted",
];

/// A run that could not be finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// More devices than the executor can use.
    #[error(
        "executor.kind = \"{executor}\" runs on one device with one worker, {got} are configured (devices.use, devices.cpu.workers); \
         executor.kind = \"multi-device\" or \"pipelined\" uses all"
    )]
    TooManyDevices {
        /// The executor.
        executor: &'static str,
        /// Devices, or workers, that were given.
        got: usize,
    },
    /// No device was given.
    #[error("no device is configured; list devices in devices.use, as in devices.use = [\"cpu\"]")]
    NoDevice,
    /// An input that is not the one that was planned for.
    #[error("the input is {got:?} (batch, channels, frames, height, width); none may be 0, and the plan is for {expected:?} (frames, height, width)")]
    InputShape {
        /// The shape of the source.
        got: [usize; 5],
        /// Frames, height and width of the plan.
        expected: [usize; 3],
    },
    /// The input of a tile could not be read.
    #[error("the input of tile {tile} could not be read")]
    Source {
        /// The tile's index.
        tile: usize,
        /// The cause.
        source: BoxError,
    },
    /// The operation failed on a tile.
    #[error("tile {tile} failed")]
    Tile {
        /// The tile's index.
        tile: usize,
        /// The cause.
        source: BoxError,
    },
    /// The operation panicked on a tile.
    #[error("tile {tile} failed: {message}")]
    Panicked {
        /// The tile's index.
        tile: usize,
        /// What the panic said.
        message: String,
    },
    /// The output of a tile has values that are not finite, though its input has none.
    #[error("tile {tile} failed: the output for a finite input is not finite")]
    NotFinite {
        /// The tile's index.
        tile: usize,
    },
    /// The operation takes a tile in pieces that do not follow each other, or leave out frames that the output needs.
    #[error("tile {tile} failed: the operation divides its {frames} frames into the pieces {got:?}")]
    Chunks {
        /// The tile's index.
        tile: usize,
        /// Frames of the tile.
        frames: usize,
        /// The pieces, or the first of them.
        got: Vec<Range<usize>>,
    },
    /// The output of a tile has another shape than the operation's geometry says, or other batch items than the input.
    #[error("tile {tile} failed: the output is {got:?} (batch, channels, frames, height, width), expected {expected:?} (frames, height, width)")]
    AnswerShape {
        /// The tile's index.
        tile: usize,
        /// What came, with the frames that came before.
        got: [usize; 5],
        /// Frames, height and width by the plan.
        expected: [usize; 3],
    },
    /// A worker did not finish a tile in time.
    #[error("tile {tile} failed: {worker} did not finish it in time")]
    Stalled {
        /// The tile's index.
        tile: usize,
        /// The worker's name.
        worker: String,
    },
    /// A worker is still at a tile that an earlier run has given up.
    #[error("tile {tile} failed: {worker} still hangs on a tile of another run")]
    WorkerHung {
        /// The tile's index.
        tile: usize,
        /// The worker's name.
        worker: String,
    },
    /// Every worker has failed.
    #[error("no worker is left: {}", causes.join("; "))]
    NoWorkerLeft {
        /// A cause for each, with its name.
        causes: Vec<String>,
    },
    /// The system has no more threads.
    #[error("the thread of a worker cannot be started")]
    Thread(#[source] std::io::Error),
    /// A finished tile could not be composed or its rows not be written.
    #[error("tile {tile} could not be placed")]
    Composite {
        /// The tile's index.
        tile: usize,
        /// The cause.
        source: CompositeError,
    },
    /// The sink, the progress listener, the source, the blend policy or the engine panicked.
    #[error(transparent)]
    PartyPanicked(#[from] Panicked),
    /// The run was stopped from outside.
    #[error("the run was stopped")]
    Stopped,
    /// The run ended before all tiles came.
    #[error(transparent)]
    Unfinished(CompositeError),
}

impl ExecError {
    /// The error with what caused it, in one line.
    pub(crate) fn in_one_line(&self) -> String {
        let mut line = self.to_string();
        let mut source = self.source();
        while let Some(error) = source {
            line += &format!(": {error}");
            source = error.source();
        }
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Whether a device's memory was too small. Backends say so in words only.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        let line = self.in_one_line().to_lowercase();
        OUT_OF_MEMORY.iter().any(|words| line.contains(words))
    }
}

/// Calls an operation. A panic, which is how Burn reports most errors, becomes an error.
pub(crate) fn guarded<T>(tile: usize, call: impl FnOnce() -> Result<T, BoxError>) -> Result<T, ExecError> {
    match catch(call) {
        Ok(answer) => answer.map_err(|source| ExecError::Tile { tile, source: shortened(source) }),
        Err(message) => Err(ExecError::Panicked { tile, message: essence(&message) }),
    }
}

/// Drops something that an operation made. A panic becomes an error.
pub(crate) fn guarded_drop<T>(tile: usize, value: T) -> Result<(), ExecError> {
    guarded(tile, || {
        drop(value);
        Ok(())
    })
}

/// The error itself where it has one line, else its [`essence`].
fn shortened(error: BoxError) -> BoxError {
    let text = error.to_string();
    if text.lines().count() > 1 { essence(&text).into() } else { error }
}

/// A backend's message of many lines in one, without headings, backtraces, skipped kernels and the source of a kernel.
fn essence(text: &str) -> String {
    let says_nothing = |line: &&str| line.is_empty() || line.ends_with(':') || line.starts_with("skipped `") || line.starts_with("No backtrace");
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("[Source]"));
    let lines: Vec<&str> = lines.filter(|line| !says_nothing(line)).collect();
    if lines.is_empty() { text.trim().to_owned() } else { lines.join(": ") }
}

/// Drops something that an operation made, where nothing is to be done about a panic.
pub(crate) fn discard<T>(value: T) {
    if let Err(message) = catch(|| drop(value)) {
        tracing::warn!("the operation panicked when its work was dropped: {message}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_backends_become_one_line() {
        let said = "An error happened during execution\nCaused by:\n  Several failures at once\nCaused by:\n  The bytes were never written (failure #983)\n  \
                    skipped `KernelBinop`: it needed memory\nCaused by:\n  An IO error happened\nCaused by:\n  can't allocate buffer of size: 276480000\n\
                    No backtrace available\nAsked at:\nNo backtrace available";
        let error = guarded::<()>(3, || Err(said.into())).unwrap_err();
        let line = "An error happened during execution: Several failures at once: The bytes were never written (failure #983): An IO error happened: \
                    can't allocate buffer of size: 276480000";
        assert_eq!(error.in_one_line(), format!("tile 3 failed: {line}"));
        assert!(error.is_out_of_memory());
        let panicked = guarded::<()>(3, || panic!("{said}")).unwrap_err();
        assert_eq!(panicked.in_one_line(), format!("tile 3 failed: {line}"));
        assert!(panicked.is_out_of_memory());
        assert!(!guarded::<()>(3, || Err("the shape is wrong".into())).unwrap_err().is_out_of_memory());
        assert_eq!(essence("Caused by:\n"), "Caused by:");
    }
}
