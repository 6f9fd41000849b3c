use std::fmt::{self, Debug};
use std::sync::Arc;
use std::time::Duration;

use serde::{Serialize, Serializer};
use tiling::{Compositor, Stop, TileOp, TilePlan, TileSource};

use crate::{ExecError, Trace};

/// What is to be run.
pub struct Job<'a> {
    /// The tiles.
    pub plan: &'a TilePlan,
    /// Where they are read from.
    pub source: &'a dyn TileSource,
    /// Who runs them.
    pub workers: &'a [Worker],
    /// Where their answers go.
    pub compositor: Compositor<'a>,
    /// Whether to go on.
    pub stop: &'a Stop,
}

/// A device that runs tiles, or a share of one.
#[derive(Clone)]
pub struct Worker {
    /// What people call it.
    pub name: String,
    /// The operation, with what it needs on that device.
    pub op: Arc<dyn TileOp>,
    /// The same operation in a wider dtype, for tiles whose answer is not finite otherwise.
    pub upcast: Option<Arc<dyn TileOp>>,
    /// A number that it has in common with the other workers of its device, where there may be any: none of them steps in when another is silent.
    pub device: Option<usize>,
}

impl Worker {
    /// A worker that has no wider dtype, on a device of its own.
    pub fn new(name: impl Into<String>, op: Arc<dyn TileOp>) -> Self {
        Self { name: name.into(), op, upcast: None, device: None }
    }

    /// The operation, in a wider dtype where asked for and possible.
    pub(crate) fn op(&self, is_upcast: bool) -> &dyn TileOp {
        self.upcast.as_ref().filter(|_| is_upcast).unwrap_or(&self.op).as_ref()
    }
}

impl Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").field("name", &self.name).field("upcast", &self.upcast.is_some()).finish_non_exhaustive()
    }
}

/// Runs the tiles of a plan and feeds the compositor.
pub trait Executor: Debug + Send + Sync {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// Whether the executor can use this many workers.
    ///
    /// # Errors
    /// [`ExecError::NoDevice`] or [`ExecError::TooManyDevices`].
    fn check_workers(&self, count: usize) -> Result<(), ExecError>;

    /// Tiles that are begun and not yet blended, at most: those that lie in memory.
    fn held_tiles(&self, plan: &TilePlan, workers: usize) -> usize;

    /// Runs every tile. The compositor and `progress` are called on the calling thread.
    ///
    /// # Errors
    /// What the run could not get over; no tile is started after it. A panic of whatever is called becomes an error, too.
    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError>;
}

/// Hears what happens in a run.
pub trait Progress: Send {
    /// Something has happened.
    fn on_event(&mut self, event: &Event);
}

/// Nobody listens.
impl Progress for () {
    fn on_event(&mut self, _: &Event) {}
}

/// What happens in a run. Workers are counted as they are named at the start.
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
    /// A worker has finished a tile.
    TileFinished {
        /// The worker.
        worker: usize,
        /// The tile.
        tile: usize,
        /// How far the run is.
        #[serde(flatten)]
        done: Done,
    },
    /// A worker has failed on a tile, which is run again.
    TileFailed {
        /// The worker.
        worker: usize,
        /// The tile.
        tile: usize,
        /// Why.
        message: String,
    },
    /// The answer for a tile is not finite; it is run again in a wider dtype.
    TileUpcast {
        /// The worker.
        worker: usize,
        /// The tile.
        tile: usize,
    },
    /// A worker gets no more tiles, or none so large.
    WorkerRetired {
        /// The worker.
        worker: usize,
        /// Why.
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
    /// Output frames that are finished, from edge to edge. Where the output is tiled, none is before the last tile comes.
    #[serde(rename = "frames")]
    pub output_frames: usize,
    /// All output frames.
    #[serde(rename = "of_frames")]
    pub of_output_frames: usize,
    /// Output frames that came, counted in each tile: how much of the work is done.
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

/// What a run took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunStats {
    /// Tiles that were run.
    pub tiles: usize,
    /// Frames of the output.
    pub frames: usize,
    /// Tiles that were run again in a wider dtype.
    pub upcast_tiles: usize,
    /// From the first read to the last piece written.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// What each worker did.
    pub workers: Vec<WorkerStats>,
    /// Every stage of every piece.
    #[serde(skip)]
    pub trace: Trace,
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    duration.as_secs_f64().serialize(serializer)
}

impl RunStats {
    /// The length of the run against that of one in which every worker is busy to the end at the speed that it showed: 1 is the best.
    pub fn schedule_loss(&self) -> f64 {
        let speeds: f64 =
            self.workers.iter().filter(|worker| worker.busy > Duration::ZERO).map(|worker| worker.work / worker.busy.as_secs_f64()).sum();
        let work: f64 = self.workers.iter().map(|worker| worker.work).sum();
        self.elapsed.as_secs_f64() * speeds / work
    }

    /// The share of all workers' time in which they were busy.
    pub fn busy_share(&self) -> f64 {
        let busy: f64 = self.workers.iter().map(|worker| worker.busy.as_secs_f64()).sum();
        busy / (self.elapsed.as_secs_f64() * self.workers.len() as f64)
    }
}

/// What a worker did in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerStats {
    /// Its name.
    pub name: String,
    /// Tiles that it finished.
    pub tiles: usize,
    /// The input px of those tiles, over all their frames.
    pub work: f64,
    /// The time in which its device had something to do.
    #[serde(rename = "busy_seconds", serialize_with = "seconds")]
    pub busy: Duration,
    /// Bytes that were brought to the device.
    pub uploaded_bytes: u64,
    /// Bytes that were brought back.
    pub downloaded_bytes: u64,
    /// Tiles that it failed on.
    pub faults: usize,
    /// Why it got no more tiles, or none so large, if so.
    pub retired: Option<String>,
}

impl WorkerStats {
    pub(crate) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), tiles: 0, work: 0.0, busy: Duration::ZERO, uploaded_bytes: 0, downloaded_bytes: 0, faults: 0, retired: None }
    }
}
