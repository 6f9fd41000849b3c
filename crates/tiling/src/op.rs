use crate::{Block, BoxError, Geometry, Region};

/// What is done to one tile. Executors, grids and the compositor see only this.
///
/// An operation holds no state of its own between calls: the answer for a tile depends on that tile alone.
pub trait TileOp: Send + Sync {
    /// How an input region maps to an output region.
    fn geometry(&self) -> Geometry;

    /// The answer for one tile.
    ///
    /// # Errors
    /// Whatever the operation cannot take or could not do.
    fn run(&self, tile: Block) -> Result<Block, BoxError>;
}

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

/// Where finished rows go: each row of the output once, from the top down, over its whole width.
pub trait RowSink {
    /// Takes `rows` (`[batch, channels, frames, rows, width]`) whose first row is row `top` of an output of `extent` (frames, height, width).
    ///
    /// # Errors
    /// Whatever kept the rows from being kept; the run then stops.
    fn rows(&mut self, top: usize, extent: [usize; 3], rows: Block) -> Result<(), BoxError>;
}
