use std::ops::Range;

use crate::{Block, BoxError, Geometry, Region};

/// What is done to one tile. Executors, grids and the compositor see only this.
///
/// An operation holds no state of its own between calls: the answer for a tile depends on that tile alone.
pub trait TileOp: Send + Sync {
    /// How an input region maps to an output region.
    fn geometry(&self) -> Geometry;

    /// Hands the answer for one tile to `emit`, in pieces of whole frames, from the first frame to the last.
    ///
    /// # Errors
    /// Whatever the operation cannot take or could not do, and the errors of reading the tile and of `emit`, unchanged.
    fn run(&self, tile: &TileInput<'_>, emit: &mut Emit<'_>) -> Result<(), BoxError>;

    /// The whole answer for a whole tile.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    fn apply(&self, tile: &Block) -> Result<Block, BoxError> {
        let mut pieces = Vec::new();
        let emit = &mut |piece| {
            pieces.push(piece);
            Ok(())
        };
        self.run(&TileInput::whole(tile), emit)?;
        Ok(Block::join_frames(pieces))
    }
}

/// Takes a piece of an answer.
pub type Emit<'a> = dyn FnMut(Block) -> Result<(), BoxError> + Send + 'a;

/// One tile of a source. Its frames are read as the operation asks for them.
#[derive(Clone, Copy)]
pub struct TileInput<'a> {
    source: &'a dyn TileSource,
    region: Region,
}

impl<'a> TileInput<'a> {
    /// A region of a source.
    pub fn new(source: &'a dyn TileSource, region: Region) -> Self {
        Self { source, region }
    }

    /// All of a source.
    pub fn whole(source: &'a dyn TileSource) -> Self {
        let [.., frames, height, width] = source.shape();
        Self { source, region: Region { start: [0; 3], size: [frames, height, width] } }
    }

    /// `[batch, channels, frames, height, width]`.
    pub fn shape(&self) -> [usize; 5] {
        let ([b, c, ..], [t, h, w]) = (self.source.shape(), self.region.size);
        [b, c, t, h, w]
    }

    /// Some of the tile's frames.
    ///
    /// # Errors
    /// [`ReadError`].
    pub fn frames(&self, range: Range<usize>) -> Result<Block, ReadError> {
        let Region { start: [t, y, x], size: [_, height, width] } = self.region;
        let region = Region { start: [t + range.start, y, x], size: [range.len(), height, width] };
        self.source.read(&region).map_err(ReadError)
    }
}

/// A source that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("the input cannot be read")]
pub struct ReadError(#[source] pub BoxError);

/// Where tiles are read from.
pub trait TileSource: Sync {
    /// `[batch, channels, frames, height, width]` of the whole input.
    fn shape(&self) -> [usize; 5];

    /// The region of every batch item and channel.
    ///
    /// # Errors
    /// Whatever kept the input from being read.
    fn read(&self, region: &Region) -> Result<Block, BoxError>;
}

impl TileSource for Block {
    fn shape(&self) -> [usize; 5] {
        Block::shape(self)
    }

    fn read(&self, region: &Region) -> Result<Block, BoxError> {
        Ok(self.region(region))
    }
}

/// Where the finished output goes, each px once. A tile's part comes when the tile is blended, so the parts of one frame come in raster order, and
/// the frames of one part in order.
pub trait Sink: Send {
    /// Takes `piece` (`[batch, channels, frames, rows, columns]`), whose first frame, row and column are `start` in an output of `extent`.
    ///
    /// # Errors
    /// Whatever kept the piece from being kept; the run then stops.
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: Block) -> Result<(), BoxError>;
}
