use crate::{Axis, Panicked, ScratchError, SettingsError, Span};

/// The error of an operation, a source or a sink that this crate knows nothing about.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A grid that cannot be laid, found before any weight is read.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum GridError {
    /// Settings that the grid cannot be built from.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The input has no room for a single output px.
    #[error("the input is {length} px on the {axis} axis, at least {minimum} are needed")]
    InputTooSmall {
        /// The axis.
        axis: Axis,
        /// Input px.
        length: usize,
        /// The fewest input px.
        minimum: usize,
    },
    /// An input that is too large to be counted.
    #[error("the input is {size:?} (frames, height, width); at most {most_frames} frames of at most {most_px} px a side can be planned")]
    InputTooLarge {
        /// Frames, height and width.
        size: [usize; 3],
        /// The most frames.
        most_frames: usize,
        /// The longest side.
        most_px: usize,
    },
    /// More tiles than can be planned.
    #[error("the grid has {} tiles, at most {most} can be planned; larger tiles (tile_px) or a smaller overlap make fewer", tiles.map(|count| count.to_string()).join(" x "))]
    TooManyTiles {
        /// Rows and columns.
        tiles: [usize; 2],
        /// The most tiles.
        most: usize,
    },
    /// A tile that is not a whole number of latent px.
    #[error("tile_px is {tile_px} on the {axis} axis, which is not a multiple of {ratio} (at least {ratio}); the nearest legal value is {nearest}")]
    TileUnaligned {
        /// The axis.
        axis: Axis,
        /// Px asked for.
        tile_px: usize,
        /// Px in a latent px.
        ratio: usize,
        /// The nearest size that works.
        nearest: usize,
    },
    /// A stride that is not a whole number of latent px, is zero, or leaves gaps between tiles.
    #[error(
        "stride_px is {stride_px} on the {axis} axis; it must be a multiple of {ratio} from {ratio} to the tile's {tile_px} px; the nearest legal value is {nearest}"
    )]
    StrideIllegal {
        /// The axis.
        axis: Axis,
        /// Px asked for.
        stride_px: usize,
        /// Px in a latent px.
        ratio: usize,
        /// Px of the tile.
        tile_px: usize,
        /// The nearest stride that works.
        nearest: usize,
    },
    /// A share at which the stride in latent px and the crop in px are not the same distance, so that the image would grow or shrink.
    #[error(
        "overlap is {overlap} on the {axis} axis: with tiles of {tile_px} px that is a stride of {stride_px} px against a crop of {crop_px} px; the nearest legal value is {nearest}, or stride_px = {nearest_stride_px}"
    )]
    OverlapUnaligned {
        /// The axis.
        axis: Axis,
        /// The share asked for.
        overlap: f64,
        /// Px of the tile.
        tile_px: usize,
        /// Px from tile to tile.
        stride_px: usize,
        /// Px that are kept of each tile.
        crop_px: usize,
        /// The nearest share that works.
        nearest: f64,
        /// Its stride.
        nearest_stride_px: usize,
    },
    /// An overlap outside `0 <= overlap < 1`.
    #[error("overlap is {overlap} on the {axis} axis; it is a share of the tile, from 0 to below 1; the nearest legal value is {nearest}")]
    OverlapOutOfRange {
        /// The axis.
        axis: Axis,
        /// The share asked for.
        overlap: f64,
        /// The nearest share that works.
        nearest: f64,
    },
    /// More tiles on an axis than it has latent px, or none.
    #[error("{splits} tiles on the {axis} axis do not fit: it has {latent_px} latent px, so 1 to {latent_px} tiles do")]
    SplitsIllegal {
        /// The axis.
        axis: Axis,
        /// Tiles asked for.
        splits: usize,
        /// Latent px of the axis.
        latent_px: usize,
    },
    /// Two keys that say the same thing in two ways.
    #[error("`{first}` and `{second}` exclude each other; give one of them")]
    Conflict {
        /// A key.
        first: &'static str,
        /// The other key.
        second: &'static str,
    },
    /// A grid that needs one key of several.
    #[error("kind = \"uniform\" needs `tile_px` or `splits`")]
    UniformNeedsSize,
    /// An input without frames.
    #[error("the input has no frames")]
    NoFrames,
    /// A geometry that counts something in units of nothing.
    #[error("the operation's {what} is 0, at least 1 is needed")]
    Geometry {
        /// `ratio of px`, `ratio of frames` or `blend_unit`.
        what: &'static str,
    },
    /// An axis for which a grid gives no spans.
    #[error("the grid gives no spans on the {axis} axis")]
    NoSpans {
        /// The axis.
        axis: Axis,
    },
    /// A span that does not follow the one before it, or that reaches out of the input.
    #[error("the grid's span {index} on the {axis} axis (px {} to {}) {problem}", span.start, span.start.saturating_add(span.length))]
    BadSpan {
        /// The axis.
        axis: Axis,
        /// Its place among the spans of the axis.
        index: usize,
        /// The span.
        span: Span,
        /// What is wrong with it.
        problem: String,
    },
    /// A grid of the caller's own panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
}

/// A tile that could not be composed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompositeError {
    /// The output of a tile has another size than the plan says.
    #[error("tile {tile} came back as {got:?} (frames, height, width), the plan says {expected:?}")]
    TileShape {
        /// The tile's index.
        tile: usize,
        /// Frames, height and width that came.
        got: [usize; 3],
        /// Frames, height and width by the plan.
        expected: [usize; 3],
    },
    /// Batch or channels differ from the tiles before.
    #[error("tile {tile} has {got:?} batch items and channels, the tiles before it had {expected:?}")]
    TileChannels {
        /// The tile's index.
        tile: usize,
        /// Batch and channels that came.
        got: [usize; 2],
        /// Batch and channels so far.
        expected: [usize; 2],
    },
    /// An index that the plan does not have, or that came before.
    #[error("tile {tile} is not a tile of the plan, or is complete already")]
    UnexpectedTile {
        /// The index.
        tile: usize,
    },
    /// The run ended before all tiles came.
    #[error("{missing} of {total} tiles are missing")]
    Unfinished {
        /// Tiles that did not come.
        missing: usize,
        /// Tiles of the plan.
        total: usize,
    },
    /// A blend policy gave a weight that is none.
    #[error("the blend policy gives the later tile a share of {got} at px {offset} of an overlap of {extent} px; it must be from 0 to 1")]
    Weight {
        /// The px, counted from the beginning of the overlap.
        offset: usize,
        /// Px of the overlap.
        extent: usize,
        /// The share.
        got: f64,
    },
    /// The sink or the blend policy panicked.
    #[error(transparent)]
    Panicked(#[from] Panicked),
    /// The sink did not take what is finished.
    #[error("the finished part could not be written")]
    Sink(#[source] BoxError),
    /// The file that keeps strips and early tiles failed.
    #[error(transparent)]
    Scratch(#[from] ScratchError),
}
