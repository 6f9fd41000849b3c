use std::any::Any;
use std::fmt;
use std::ops::Range;

use crate::{BoxError, Geometry, HostTensor, Region, Stop};

/// What is done to one tile. Executors, grids and the compositor see only this.
///
/// A tile goes through it in pieces of whole frames, and each piece in stages: it is brought to the device, worked on, and the answer brought back.
/// Executors may run the stages of different pieces at once, on different threads. An operation holds no state of its own between tiles: the answer
/// for a tile depends on that tile alone.
pub trait TileOp: Send + Sync {
    /// How an input region maps to an output region.
    fn geometry(&self) -> Geometry;

    /// The pieces in which a tile of `frames` is taken, one after the other from the first frame on. Frames may be left out at the end of which no output frame
    /// comes.
    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        std::iter::once(0..frames).collect()
    }

    /// Brings a piece of a tile to the device. By default it stays a [`HostTensor`] in host memory.
    ///
    /// # Errors
    /// Whatever kept it from getting there.
    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        Ok(DevicePiece::new(piece))
    }

    /// Begins a tile. Once `stop` is thrown, nobody waits for the answer any more: whatever takes long had better look at it and fail.
    fn begin(&self, stop: &Stop) -> TileRun<'_>;

    /// Brings a piece of an answer back. By default it is a [`HostTensor`]. All pieces of a tile have its batch items, and together the frames, height and width
    /// that [`geometry`](Self::geometry) says.
    ///
    /// # Errors
    /// Whatever kept it from getting here.
    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        answer.take()
    }

    /// Whether the device still works; asked after a failure.
    ///
    /// # Errors
    /// What became of it.
    fn check(&self) -> Result<(), BoxError> {
        Ok(())
    }

    /// The whole answer for a whole tile.
    ///
    /// # Errors
    /// Whatever the operation cannot take or could not do.
    fn apply(&self, tile: &HostTensor) -> Result<HostTensor, BoxError> {
        let mut run = self.begin(&Stop::default());
        let pieces = self.chunks(tile.shape()[2]).into_iter().map(|frames| {
            let piece = tile.frames(frames.start, frames.len());
            self.download(run(self.upload(piece)?)?)
        });
        Ok(HostTensor::join_frames(pieces.collect::<Result<_, _>>()?))
    }
}

/// The work on one tile: takes its pieces in order and gives a piece of the answer for each. What it remembers of earlier pieces is its own.
pub type TileRun<'a> = Box<dyn FnMut(DevicePiece) -> Result<DevicePiece, BoxError> + Send + 'a>;

/// A piece of a tile, or of an answer, in whatever form an operation works on it.
pub struct DevicePiece {
    value: Box<dyn Any + Send>,
    bytes: Option<usize>,
}

impl DevicePiece {
    /// Wraps a value.
    pub fn new<T: Any + Send>(value: T) -> Self {
        Self { value: Box::new(value), bytes: None }
    }

    /// Wraps a value of which so many bytes are to be brought back.
    pub fn of_bytes<T: Any + Send>(value: T, bytes: usize) -> Self {
        Self { bytes: Some(bytes), ..Self::new(value) }
    }

    /// The bytes to be brought back, where they are not those of the [`HostTensor`] that comes of it.
    pub fn bytes(&self) -> Option<usize> {
        self.bytes
    }

    /// The value again.
    ///
    /// # Errors
    /// When it is of another type: it was made by another operation.
    pub fn take<T: Any>(self) -> Result<T, BoxError> {
        self.value.downcast().map(|value| *value).map_err(|_| "the piece is another operation's".into())
    }
}

impl fmt::Debug for DevicePiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DevicePiece")
    }
}

/// Where tiles are read from.
pub trait TileSource: Sync {
    /// `[batch, channels, frames, height, width]` of the whole input.
    fn shape(&self) -> [usize; 5];

    /// The region of every batch item and channel: `[batch, channels]` of [`shape`](Self::shape), and the region's frames, height and width.
    ///
    /// # Errors
    /// Whatever kept the input from being read.
    fn read(&self, region: &Region) -> Result<HostTensor, BoxError>;

    /// Whether all of it lies in memory, so that looking through it costs next to nothing.
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

/// Where the finished output goes, each px once. A tile's part comes when the tile is blended, so the parts of one frame come in raster order, and
/// the frames of one part in order.
pub trait Sink: Send {
    /// Takes `piece` (`[batch, channels, frames, rows, columns]`), whose first frame, row and column are `start` in an output of `extent`.
    ///
    /// # Errors
    /// Whatever kept the piece from being kept. The run then stops, as it does after a panic, and nothing more comes.
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError>;

    /// Whether all that it keeps of a value from -1 to 1 is the nearest of 256. What needs no blending may then be rounded before it is handed on.
    fn rounds_to_eight_bits(&self) -> bool {
        false
    }
}
