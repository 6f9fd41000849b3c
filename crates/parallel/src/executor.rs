use std::fmt::{self, Debug};
use std::sync::Arc;

use tiling::{Compositor, Stop, TileOp, TilePlan, TileSource};

use crate::output::RunOutput;
use crate::runner::TileRunner;
use crate::{ExecError, Progress, RunStats, WorkerLock};

/// Runs the tiles of a plan and feeds the compositor.
///
/// One executor in full, which divides the tiles evenly among the workers:
///
/// ```
/// use std::sync::mpsc::sync_channel;
/// use std::thread;
///
/// use parallel::{ExecError, Executor, Job, Progress, RunStats};
/// use tiling::TilePlan;
///
/// #[derive(Debug, Clone, Copy)]
/// struct RoundRobin;
///
/// impl Executor for RoundRobin {
///     fn name(&self) -> &'static str {
///         "round-robin"
///     }
///
///     fn check_workers(&self, count: usize) -> Result<(), ExecError> {
///         if count == 0 { Err(ExecError::NoDevice) } else { Ok(()) }
///     }
///
///     fn held_tiles(&self, plan: &TilePlan, _: usize) -> usize {
///         plan.tiles.len()
///     }
///
///     fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
///         self.check_workers(job.workers.len())?;
///         let (runner, mut output) = job.begin(progress)?;
///         let (tiles, workers) = (runner.plan().tiles.len(), runner.workers().len());
///         thread::scope(|scope| {
///             let (sender, updates) = sync_channel(workers);
///             for worker in 0..workers {
///                 let (sender, runner) = (sender.clone(), runner.clone());
///                 scope.spawn(move || {
///                     for tile in (worker..tiles).step_by(workers) {
///                         // A channel that is closed means that the run has ended.
///                         let send = |update| sender.send(Ok(update)).map_err(|_| ExecError::Stopped);
///                         if let Err(error) = runner.run_tile(worker, tile, send) {
///                             return drop(sender.send(Err(error)));
///                         }
///                     }
///                 });
///             }
///             drop(sender);
///             // The first error drops `updates` and `output`, and that stops the workers.
///             for update in updates {
///                 output.update(update?)?;
///             }
///             output.finish()
///         })
///     }
/// }
/// ```
pub trait Executor: Debug + Send + Sync {
    /// The name in configurations.
    fn name(&self) -> &'static str;

    /// Whether the executor can use this many workers.
    ///
    /// # Errors
    /// [`ExecError::NoDevice`] or [`ExecError::TooManyDevices`].
    fn check_workers(&self, count: usize) -> Result<(), ExecError>;

    /// The most tiles that are begun and not yet blended: those that lie in memory.
    fn held_tiles(&self, plan: &TilePlan, workers: usize) -> usize;

    /// Runs every tile. The compositor and `progress` are called on the calling thread.
    ///
    /// # Errors
    /// What the run could not recover from; no tile is started after it. A panic of the operation, the source, the sink, the blend policy or the listener
    /// is an error, too.
    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError>;
}

/// What is to be run.
///
/// Several runs may use the same workers at once, from several threads; they then take turns on each worker, tile by tile (see [`WorkerLock`]). So the
/// source, the sink and the listener of a run must not wait for another run on the same workers.
pub struct Job<'a> {
    /// The tiles.
    pub plan: &'a TilePlan,
    /// Where they are read from.
    pub source: &'a dyn TileSource,
    /// What runs them.
    pub workers: &'a [Worker],
    /// Where their answers go.
    pub compositor: Compositor<'a>,
    /// Ends the run early. It ends this run alone.
    pub stop: &'a Stop,
}

impl<'a> Job<'a> {
    /// Begins a run: checks the input's shape and the blend policy's weights, and reports [`Event::Started`](crate::Event::Started).
    ///
    /// # Errors
    /// When the input is not the one that was planned for, a weight is not from 0 to 1, or the source, the policy or the listener panics.
    pub fn begin<'p>(self, progress: &'p mut dyn Progress) -> Result<(TileRunner<'a>, RunOutput<'a, 'p>), ExecError> {
        let runner = TileRunner::new(self.plan, self.source, self.workers, self.stop)?;
        let output = RunOutput::start(&runner, self.compositor, progress)?;
        Ok((runner, output))
    }
}

/// A device that runs tiles, or a share of one.
#[derive(Clone)]
pub struct Worker {
    /// The name in messages and statistics.
    pub name: String,
    /// The operation, with its weights on that device.
    pub op: Arc<dyn TileOp>,
    /// The same operation in a wider dtype, for tiles whose answer is not finite otherwise.
    pub upcast: Option<Arc<dyn TileOp>>,
    /// A number that all workers of one device share. None of them runs a tile besides another of its device that is silent.
    pub device: Option<usize>,
    /// How fast it is, as far as is known, in a unit that all workers share. It counts until a tile was measured.
    pub speed: f64,
    /// Tiles whose input lies in the memory of its device: it runs them before others.
    pub near_tiles: Vec<usize>,
    /// Held while a tile is computed. Workers that stand for the same hardware, in several runs or with several operations, share it.
    pub lock: WorkerLock,
}

impl Worker {
    /// A worker without a wider dtype, on a device of its own, of unknown speed.
    pub fn new(name: impl Into<String>, op: Arc<dyn TileOp>) -> Self {
        Self { name: name.into(), op, upcast: None, device: None, speed: 1.0, near_tiles: Vec::new(), lock: WorkerLock::default() }
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
