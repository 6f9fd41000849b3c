use std::any::Any;
use std::fmt;
use std::ops::Range;

use crate::{BoxError, Geometry, HostTensor, Region, Stop};

/// The operation that runs on each tile. Executors and the compositor know nothing else of a model.
///
/// A tile passes in pieces of whole frames, and each piece in stages: [`upload`](Self::upload) to the device, a call of the [`TileRun`], and
/// [`download`](Self::download) of the output. Executors may run the stages of different pieces at once, on different threads. An operation keeps no
/// state between tiles: the output of a tile depends on that tile alone.
pub trait TileOp: Send + Sync {
    /// How an input region maps to an output region.
    fn geometry(&self) -> Geometry;

    /// The pieces in which a tile of `frames` is processed, in order from the first frame on. Frames at the end that give no output frame may be left out.
    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        std::iter::once(0..frames).collect()
    }

    /// Copies a piece of a tile to the device. By default it stays a [`HostTensor`] in host memory.
    ///
    /// # Errors
    /// When the copy fails.
    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        Ok(DevicePiece::new(piece))
    }

    /// Begins a tile, or several of one shape that are stacked along the batch: `tiles` are their indices in the plan. Once `stop` is stopped, the output is not
    /// needed any more: long computations should check it and fail.
    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_>;

    /// Copies a piece of an output back. By default it is a [`HostTensor`] already. Every piece has the batch items of the tile; together the pieces have the
    /// frames, height and width of [`geometry`](Self::geometry).
    ///
    /// # Errors
    /// When the copy fails.
    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        answer.take()
    }

    /// Checks, after a failure, that the device still works.
    ///
    /// # Errors
    /// When the device is lost.
    fn check(&self) -> Result<(), BoxError> {
        Ok(())
    }

    /// The whole output for a whole tile.
    ///
    /// # Errors
    /// When any stage fails.
    fn apply(&self, tile: &HostTensor) -> Result<HostTensor, BoxError> {
        let mut run = self.begin(&[0], &Stop::default());
        let pieces = self.chunks(tile.shape()[2]).into_iter().map(|frames| {
            let piece = tile.frames(frames.start, frames.len());
            self.download(run(self.upload(piece)?)?)
        });
        Ok(HostTensor::join_frames(pieces.collect::<Result<_, _>>()?))
    }
}

/// The work on one tile: called with its pieces in order, returns a piece of the output for each. It owns what it remembers of earlier pieces.
pub type TileRun<'a> = Box<dyn FnMut(DevicePiece) -> Result<DevicePiece, BoxError> + Send + 'a>;

/// A piece of a tile or of an output in the form that an operation works on, for instance a tensor of a device.
pub struct DevicePiece {
    value: Box<dyn Any + Send>,
    bytes: Option<usize>,
}

impl DevicePiece {
    /// Wraps a value.
    pub fn new<T: Any + Send>(value: T) -> Self {
        Self { value: Box::new(value), bytes: None }
    }

    /// Wraps a value of which `bytes` bytes are to be copied back.
    pub fn of_bytes<T: Any + Send>(value: T, bytes: usize) -> Self {
        Self { bytes: Some(bytes), ..Self::new(value) }
    }

    /// The bytes that are copied back, where these are not those of the resulting [`HostTensor`].
    pub fn bytes(&self) -> Option<usize> {
        self.bytes
    }

    /// Unwraps the value.
    ///
    /// # Errors
    /// When it is of another type: it was made by another operation.
    pub fn take<T: Any>(self) -> Result<T, BoxError> {
        self.value.downcast().map(|value| *value).map_err(|_| "the piece was made by another operation".into())
    }
}

impl fmt::Debug for DevicePiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DevicePiece")
    }
}

/// The input that tiles are read from.
pub trait TileSource: Sync {
    /// `[batch, channels, frames, height, width]` of the whole input.
    fn shape(&self) -> [usize; 5];

    /// The region of every batch item and channel: `[batch, channels]` of [`shape`](Self::shape), and the region's frames, height and width.
    ///
    /// # Errors
    /// When the input cannot be read.
    fn read(&self, region: &Region) -> Result<HostTensor, BoxError>;

    /// Whether all of it is in memory, so that scanning it is cheap.
    fn is_in_memory(&self) -> bool {
        false
    }
}

impl TileSource for HostTensor {
    fn shape(&self) -> [usize; 5] {
        HostTensor::shape(self)
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        Ok(self.region(region))
    }

    fn is_in_memory(&self) -> bool {
        true
    }
}

/// Receives the finished output, each px once. A tile's part is handed over when the tile is blended: the parts of one frame in raster order, and the frames
/// of one part in order.
pub trait Sink: Send {
    /// Takes `piece` (`[batch, channels, frames, rows, columns]`), whose first frame, row and column are `start` in an output of `extent`.
    ///
    /// # Errors
    /// When the piece cannot be stored. The run then ends, as it does after a panic, and nothing more is handed over.
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError>;

    /// Whether the sink rounds values from -1 to 1 to the nearest of 256 levels. Parts that need no blending may then be rounded before.
    fn rounds_to_eight_bits(&self) -> bool {
        false
    }
}
