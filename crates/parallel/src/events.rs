use serde::Serialize;
use tiling::TilePlan;

/// Receives the events of a run, on the thread that called it.
pub trait Progress: Send {
    /// Called for each event.
    fn on_event(&mut self, event: &Event);
}

/// Ignores all events.
impl Progress for () {
    fn on_event(&mut self, _: &Event) {}
}

/// An event of a run. Workers are numbered in the order in which [`Event::Started`] names them.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The run begins.
    Started {
        /// The workers' names.
        workers: Vec<String>,
        /// How much there is to do.
        #[serde(flatten)]
        done: Done,
    },
    /// A worker has taken a tile.
    TileStarted {
        /// The worker.
        worker: usize,
        /// The tile.
        tile: usize,
    },
    /// A piece of a tile is finished.
    Advanced(Done),
    /// A tile is finished. Where another worker ran it, too, that one has given it up.
    TileFinished {
        /// The worker.
        worker: usize,
        /// The tile.
        tile: usize,
        /// How far the run is.
        #[serde(flatten)]
        done: Done,
    },
    /// A worker has failed on a tile. The tile is run again unless the run ends or another worker has it.
    TileFailed {
        /// The worker.
        worker: usize,
        /// The tile.
        tile: usize,
        /// The cause.
        message: String,
    },
    /// The output of a tile is not finite; the tile is run again in a wider dtype.
    TileUpcast {
        /// The worker.
        worker: usize,
        /// The tile.
        tile: usize,
    },
    /// A worker is retired, or limited to smaller tiles.
    WorkerRetired {
        /// The worker.
        worker: usize,
        /// The cause.
        message: String,
    },
}

/// How far a run is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Tiles that are finished.
    pub tiles: usize,
    /// All tiles.
    pub of_tiles: usize,
    /// Output frames that are finished from edge to edge. In a tiled output this stays 0 until the last tile.
    #[serde(rename = "frames")]
    pub output_frames: usize,
    /// All output frames.
    #[serde(rename = "of_frames")]
    pub of_output_frames: usize,
    /// Finished output frames, counted in each tile: the share of the work that is done.
    pub tile_frames: usize,
    /// The output frames of all tiles.
    pub of_tile_frames: usize,
}

impl Done {
    pub(crate) fn nothing(plan: &TilePlan) -> Self {
        let (tiles, frames) = (plan.tiles.len(), plan.output[0]);
        Self { of_tiles: tiles, of_output_frames: frames, of_tile_frames: tiles * frames, ..Self::default() }
    }
}
