use tiling::{BoxError, CompositeError, ReadError};

use crate::executor::Ended;

/// A run that could not be finished.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// More devices than the executor can use.
    #[error("the {executor} executor runs on one device, {got} are named")]
    TooManyDevices {
        /// The executor.
        executor: &'static str,
        /// Devices that were given.
        got: usize,
    },
    /// No device was given.
    #[error("no device is named")]
    NoDevice,
    /// The input of a tile could not be read.
    #[error("the input of tile {tile} could not be read")]
    Source {
        /// The tile's index.
        tile: usize,
        /// Why.
        source: BoxError,
    },
    /// The operation failed on a tile.
    #[error("tile {tile} failed")]
    Tile {
        /// The tile's index.
        tile: usize,
        /// Why.
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
    /// A finished tile could not be composed or its rows not be written.
    #[error("tile {tile} could not be placed")]
    Composite {
        /// The tile's index.
        tile: usize,
        /// Why.
        source: CompositeError,
    },
    /// Somebody threw the switch.
    #[error("the run was stopped")]
    Stopped,
    /// The run ended before all tiles came.
    #[error(transparent)]
    Unfinished(CompositeError),
}

impl ExecError {
    /// What kept `tile` from being finished: its operation, the source it reads, or whoever takes its answer.
    pub(crate) fn of_tile(tile: usize, error: BoxError) -> Self {
        let error = match error.downcast::<ReadError>() {
            Ok(read) => return Self::Source { tile, source: read.0 },
            Err(error) => error,
        };
        if error.is::<Ended>() {
            return Self::Stopped;
        }
        match error.downcast::<CompositeError>() {
            Ok(source) => Self::Composite { tile, source: *source },
            Err(source) => Self::Tile { tile, source },
        }
    }
}
