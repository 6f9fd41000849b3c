//! Runs in stages: one job of the executor after the other, with features in a store between them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use parallel::{Done, Event, ExecError, Executor, Job, Progress, RunStats, Stop, Trace, Worker, WorkerStats};
use tiling::{
    BoxError, Canvas, Cascade, Compositor, Geometry, HostTensor, Party, Region, Scale, ScratchFile, Sink, Span, TileOp, TilePlan, TileSource, guard,
};
use vae_core::coder::{Crops, StagedPlan};
use vae_core::operators::GroupMoments;
use vae_core::staged::{FeatureStore, MomentsSink, SampleOp, SampleShared, StageOp, StageShared, StoredBytes};
use vae_core::{Context, MathMode, Vae, is_in_host_memory};

use super::replicas::Replica;
use crate::workers::{LazyOp, WorkerSlot};
use crate::{Direction, Error, RunPlan, io};

/// What stages leave for later ones.
struct State {
    store: Arc<FeatureStore>,
    /// Memory is reused from stage to stage, by any worker.
    context: Context,
    crew: Crew,
    /// Whether all features so far are finite, as far as is known.
    is_finite: bool,
}

/// A run of a plan in stages.
pub(super) struct StagedRun<'a> {
    pub(super) plan: &'a RunPlan,
    pub(super) staged: &'a Arc<StagedPlan>,
    pub(super) executor: &'a dyn Executor,
    pub(super) replicas: &'a [Arc<Replica>],
    pub(super) worker_slots: &'a [WorkerSlot],
    pub(super) math_mode: MathMode,
    pub(super) eight_bits: bool,
    pub(super) stop: &'a Stop,
}

impl StagedRun<'_> {
    /// Runs all stages. Where a device is lost with features that it kept, they run once more without keeping any on devices.
    pub(super) fn run(&self, source: &dyn TileSource, sink: &mut dyn Sink, progress: &mut dyn Progress) -> Result<RunStats, Error> {
        let names = self.worker_slots.iter().map(|slot| slot.name().to_owned()).collect();
        let mut progress = StagedProgress::new(self.staged, names, progress);
        let mut sink = Resumed { sink, taken: 0, to_skip: 0 };
        let store = Arc::new(self.store(true));
        match self.run_stages(store.clone(), source, &mut sink, &mut progress) {
            Err(error) if store.has_lost() && !self.stop.is_stopped() => {
                tracing::warn!("{error}; the run begins again, and keeps nothing on devices");
                progress.begin_again();
                sink.begin_again();
                self.run_stages(Arc::new(self.store(false)), source, &mut sink, &mut progress)
            }
            outcome => outcome,
        }
    }

    /// A store for the features of a run; on devices with memory of their own only if they are to be kept there.
    fn store(&self, keeps_on_devices: bool) -> FeatureStore {
        let memory = self.plan.memory.filter(|_| keeps_on_devices);
        let devices: BTreeSet<usize> = self.worker_slots.iter().map(|slot| slot.device).collect();
        let room = |device: usize| {
            let device = self.replicas[device].vae.device();
            let room = memory.map_or(0, |memory| memory.room_on(&device));
            (device, room)
        };
        let rooms = devices.into_iter().map(room).filter(|(device, _)| !is_in_host_memory(device));
        FeatureStore::new(self.plan.memory.map_or(u64::MAX, |memory| memory.host_limit()), rooms)
    }

    fn run_stages(
        &self,
        store: Arc<FeatureStore>,
        source: &dyn TileSource,
        sink: &mut dyn Sink,
        progress: &mut StagedProgress<'_>,
    ) -> Result<RunStats, Error> {
        let mut state = State { store, context: Context::new(self.math_mode, self.stop), crew: Crew::default(), is_finite: true };
        let stages = self.staged.stages();
        let (mut moments, mut all) = (BTreeMap::new(), Vec::new());
        for (stage, description) in stages.iter().enumerate() {
            if let Some(crops) = self.staged.crops(stage) {
                let (sampled, stats) = self.sample(stage, crops, source, &state)?;
                moments.extend(sampled);
                state.crew.learn(&stats);
                // Crops are no tiles.
                let workers = stats.workers.into_iter().map(|worker| WorkerStats { tiles: 0, work: 0.0, ..worker }).collect();
                all.push(RunStats { tiles: 0, stages: 0, upcast_tiles: 0, workers, trace: Trace::default(), ..stats });
            }
            let is_last = stage + 1 == stages.len();
            let shared = Arc::new(StageShared {
                plan: self.staged.clone(),
                stage,
                store: state.store.clone(),
                epoch: state.store.begin_stage(),
                moments: std::mem::take(&mut moments),
                is_decoder: self.plan.direction == Direction::Decode,
                frames_per_chunk: self.plan.frames_per_chunk,
                is_single_chunk: self.plan.chunks == 1,
                eight_bits: self.eight_bits,
            });
            let tiles = tiles_of(self.staged, stage);
            let workers = state.crew.of(self.workers(&shared, &state.context));
            let filled = Filled { shape: tiles_shape(&tiles, self.plan.input_shape[0]), value: if state.is_finite { 0.0 } else { f32::NAN } };
            let source = if stage == 0 { source } else { &filled };
            let mut merged = MomentsSink::new(description.moments);
            let target: &mut dyn Sink = if is_last { &mut *sink } else { &mut merged };
            let mut compositor = Compositor::new(&tiles, &Cascade, target);
            if is_last && self.plan.uses_scratch() {
                compositor = compositor.with_scratch(ScratchFile::new().map_err(io::IoError::from)?);
            }
            let stats = self.executor.run(Job { plan: &tiles, source, workers: &workers, compositor, stop: self.stop }, progress)?;
            progress.next_stage();
            state.crew.learn(&stats);
            all.push(stats);
            let (of_whole, finite) = merged.finish();
            state.is_finite &= finite;
            let norm = description.steps.end + self.staged.spec().branches_at(description.steps.end);
            moments.extend(of_whole.map(|moments| (norm, moments)));
            state.store.remove(&self.staged.finished_after(stage));
            if self.plan.memory.is_some_and(|memory| memory.budget.is_some()) {
                state.context.return_free_memory();
            }
        }
        state.store.begin_stage();
        let StoredBytes { devices, host, scratch, .. } = state.store.peak_bytes();
        tracing::debug!("features between stages took {devices} bytes of devices, {host} of memory and {scratch} of a scratch file");
        Ok(RunStats::of_parts(all))
    }

    /// The moments of a stage's norms, estimated from crops by one worker with all threads.
    fn sample(&self, stage: usize, crops: Crops, source: &dyn TileSource, state: &State) -> Result<(BTreeMap<usize, GroupMoments>, RunStats), Error> {
        let read = |region: &Region| match guard(Party::Source, || source.read(region)).map_err(ExecError::from)? {
            Ok(piece) => Ok(piece),
            Err(source) => Err(Error::Source { what: self.plan.direction.input_name(), source }),
        };
        let input = (stage == 0).then(|| self.staged.crop_regions(&crops).iter().map(read).collect::<Result<Vec<_>, Error>>()).transpose()?;
        let is_finite = state.is_finite && input.iter().flatten().flat_map(HostTensor::data).all(|value| value.is_finite());
        let shared = Arc::new(SampleShared {
            plan: self.staged.clone(),
            stage,
            store: state.store.clone(),
            crops,
            input,
            is_decoder: self.plan.direction == Direction::Decode,
            moments: Mutex::default(),
        });
        let worker = |slot: &WorkerSlot| {
            let replica = &self.replicas[slot.device];
            let op = {
                let (shared, context) = (shared.clone(), state.context.clone());
                move |vae: Arc<dyn Vae>| -> Arc<dyn TileOp> { Arc::new(SampleOp::new(vae, shared.clone(), context.clone())) }
            };
            let upcast = self.upcast(replica, Geometry::image(Scale::Up(1)), op.clone());
            slot.worker_with_all_threads(op(replica.vae.clone()), upcast)
        };
        let workers = state.crew.of(self.worker_slots.iter().map(worker).collect());
        let px = vec![Span { start: 0, length: 1 }];
        let region = Region { start: [0; 3], size: [1; 3] };
        let tiles = TilePlan::of_cells(Geometry::image(Scale::Up(1)), [1; 3], vec![region], 1, px.clone(), px);
        let filled = Filled { shape: tiles_shape(&tiles, self.plan.input_shape[0]), value: if is_finite { 0.0 } else { f32::NAN } };
        let mut canvas = Canvas::default();
        let compositor = Compositor::new(&tiles, &Cascade, &mut canvas);
        let stats = self.executor.run(Job { plan: &tiles, source: &filled, workers: &workers, compositor, stop: self.stop }, &mut ())?;
        let moments = std::mem::take(&mut *shared.moments.lock().unwrap_or_else(PoisonError::into_inner));
        Ok((moments, stats))
    }

    /// The workers with the operation of a stage.
    fn workers(&self, shared: &Arc<StageShared>, context: &Context) -> Vec<Worker> {
        let worker = |slot: &WorkerSlot| {
            let replica = &self.replicas[slot.device];
            let op = {
                let (shared, context) = (shared.clone(), context.clone());
                move |vae: Arc<dyn Vae>| -> Arc<dyn TileOp> { Arc::new(StageOp::new(vae, shared.clone(), context.clone())) }
            };
            let geometry = Geometry { frames: shared.plan.frame_scale(shared.stage), ..Geometry::image(Scale::Up(1)) };
            let upcast = self.upcast(replica, geometry, op.clone());
            let op = op(replica.vae.clone());
            let description = &shared.plan.stages()[shared.stage];
            let worker = if description.is_whole { slot.worker_with_all_threads(op, upcast) } else { slot.worker(op, upcast) };
            let input = description.inputs.iter().find(|&&value| value != 0);
            Worker { near_tiles: input.map_or_else(Vec::new, |&value| shared.store.tiles_on(&replica.vae.device(), value)), ..worker }
        };
        self.worker_slots.iter().map(worker).collect()
    }

    /// The operation in a wider dtype, where the replica's may overflow.
    fn upcast<F>(&self, replica: &Replica, geometry: Geometry, op: F) -> Option<Arc<dyn TileOp>>
    where
        F: Fn(Arc<dyn Vae>) -> Arc<dyn TileOp> + Send + Sync + 'static,
    {
        replica.wide.clone().map(|wide| {
            let (device, stop) = (replica.vae.device(), self.stop.clone());
            let make = move || Ok(op(wide.on(&device, &stop)?));
            Arc::new(LazyOp { geometry, frames_per_chunk: self.plan.frames_per_chunk, make, op: OnceLock::new() }) as Arc<dyn TileOp>
        })
    }
}

/// The sink of a run that may begin again: what it has taken comes a second time, in the same pieces.
struct Resumed<'a> {
    sink: &'a mut dyn Sink,
    taken: usize,
    to_skip: usize,
}

impl Resumed<'_> {
    fn begin_again(&mut self) {
        (self.taken, self.to_skip) = (0, self.taken);
    }
}

impl Sink for Resumed<'_> {
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        self.taken += 1;
        if self.taken <= self.to_skip { Ok(()) } else { self.sink.take(start, extent, piece) }
    }
}

/// The least speed that is expected of a worker.
const LEAST_SPEED: f64 = 0.1;

/// What stages tell of the workers for later ones, by their names.
#[derive(Default)]
struct Crew {
    retired: BTreeSet<String>,
    /// Of those that were measured, beside the first to be the fastest.
    speeds: BTreeMap<String, f64>,
}

impl Crew {
    fn learn(&mut self, stats: &RunStats) {
        let retired = stats.workers.iter().filter(|worker| worker.retired.is_some() && !worker.is_limited);
        self.retired.extend(retired.map(|worker| worker.name.clone()));
        let measured: Vec<(&str, f64)> = stats
            .workers
            .iter()
            .filter(|worker| worker.tiles > 0 && !worker.busy.is_zero())
            .map(|worker| (worker.name.as_str(), worker.work / worker.busy.as_secs_f64()))
            .collect();
        let Some(&(fastest, most)) = measured.iter().max_by(|(_, a), (_, b)| a.total_cmp(b)) else { return };
        let unit = self.speed(fastest) / most;
        for (name, speed) in measured {
            // A device that was slow once, since it compiled its kernels, is tried again.
            self.speeds.insert(name.to_owned(), (speed * unit).max(LEAST_SPEED));
        }
    }

    /// The speed of a worker; of one that was not measured that of the first to be.
    fn speed(&self, name: &str) -> f64 {
        self.speeds.get(name).copied().unwrap_or(1.0)
    }

    /// The workers that are left, with their speeds.
    fn of(&self, workers: Vec<Worker>) -> Vec<Worker> {
        let all = workers.into_iter().map(|worker| Worker { speed: self.speed(&worker.name), ..worker });
        let (left, retired): (Vec<Worker>, Vec<Worker>) = all.partition(|worker| !self.retired.contains(&worker.name));
        if left.is_empty() { retired } else { left }
    }
}

/// The tiles of a stage as an executor runs them. The first stage reads its regions of the input; later ones read the store, and have the cells in latent px as
/// their regions. The last gives the output, the others one px of moments for each tile.
fn tiles_of(staged: &StagedPlan, stage: usize) -> TilePlan {
    let (steps, [rows, columns]) = (staged.stages()[stage].steps.clone(), staged.cells(stage));
    let frames = staged.frames(steps.start);
    let count = rows.len() * columns.len();
    let (input, regions) = if stage == 0 {
        (staged.input(), (0..count).map(|tile| staged.input_region(tile)).collect())
    } else {
        let [tall, wide] = staged.latent_cells(stage);
        let end = |spans: &[Span]| spans.last().map_or(0, Span::end);
        let region = |(row, column): (Span, Span)| Region { start: [0, row.start, column.start], size: [frames, row.length, column.length] };
        let cells = tall.iter().flat_map(|&row| wide.iter().map(move |&column| (row, column)));
        ([frames, end(&tall), end(&wide)], cells.map(region).collect())
    };
    if stage + 1 == staged.stages().len() {
        let geometry = Geometry { frames: staged.frame_scale(stage), ..Geometry::image(Scale::Up(1)) };
        return TilePlan::of_cells(geometry, input, regions, staged.frames(steps.end), rows, columns);
    }
    let px = |spans: &[Span]| (0..spans.len()).map(|start| Span { start, length: 1 }).collect();
    TilePlan::of_cells(Geometry::image(Scale::Up(1)), input, regions, frames, px(&rows), px(&columns))
}

fn tiles_shape(tiles: &TilePlan, batch: usize) -> [usize; 5] {
    let [frames, height, width] = tiles.input;
    [batch, 1, frames, height, width]
}

/// The input of stages that read the store: one value everywhere, not finite where the input was not.
struct Filled {
    shape: [usize; 5],
    value: f32,
}

impl TileSource for Filled {
    fn shape(&self) -> [usize; 5] {
        self.shape
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        let [frames, height, width] = region.size;
        Ok(HostTensor::from_fn([self.shape[0], 1, frames, height, width], |_| self.value))
    }

    fn is_in_memory(&self) -> bool {
        true
    }
}

/// Work of a whole run, in the units of [`Done::tile_frames`].
const WORK: usize = 1_000_000;

/// Reports the jobs of all stages as one run.
struct StagedProgress<'a> {
    progress: &'a mut dyn Progress,
    /// Tiles and work of each stage.
    stages: Vec<[usize; 2]>,
    stage: usize,
    output_frames: usize,
    /// The names of all workers, and the places among them of those that run the stage.
    names: Vec<String>,
    places: Vec<usize>,
    has_started: bool,
}

impl<'a> StagedProgress<'a> {
    fn new(staged: &StagedPlan, names: Vec<String>, progress: &'a mut dyn Progress) -> Self {
        let work: Vec<f64> = (0..staged.stages().len()).map(|stage| staged.stage_multiply_adds(stage)).collect();
        let all = work.iter().sum::<f64>().max(1.0);
        let stages = work.iter().enumerate().map(|(stage, &work)| [staged.tiles(stage), (work / all * WORK as f64).round() as usize]).collect();
        let output_frames = staged.frames(staged.spec().steps.len());
        Self { progress, stages, stage: 0, output_frames, names, places: Vec::new(), has_started: false }
    }

    fn next_stage(&mut self) {
        self.stage += 1;
    }

    fn begin_again(&mut self) {
        self.stage = 0;
    }

    fn before(&self, which: usize) -> usize {
        self.stages[..self.stage].iter().map(|stage| stage[which]).sum()
    }

    fn done(&self, done: Done) -> Done {
        let sum = |which: usize| self.stages.iter().map(|stage| stage[which]).sum();
        let work = self.stages[self.stage][1] * done.tile_frames / done.of_tile_frames.max(1);
        Done {
            tiles: self.before(0) + done.tiles,
            of_tiles: sum(0),
            output_frames: if self.stage + 1 == self.stages.len() { done.output_frames } else { 0 },
            of_output_frames: self.output_frames,
            tile_frames: self.before(1) + work,
            of_tile_frames: sum(1),
        }
    }
}

impl Progress for StagedProgress<'_> {
    fn on_event(&mut self, event: &Event) {
        let before = self.before(0);
        let of = |worker: usize| self.places.get(worker).copied().unwrap_or(worker);
        let event = match event.clone() {
            Event::Started { workers, done } => {
                let place = |name: &String| self.names.iter().position(|own| own == name).unwrap_or_default();
                self.places = workers.iter().map(place).collect();
                if std::mem::replace(&mut self.has_started, true) {
                    return;
                }
                Event::Started { workers: self.names.clone(), done: self.done(done) }
            }
            Event::TileStarted { worker, tile } => Event::TileStarted { worker: of(worker), tile: before + tile },
            Event::Advanced(done) => Event::Advanced(self.done(done)),
            Event::TileFinished { worker, tile, done } => Event::TileFinished { worker: of(worker), tile: before + tile, done: self.done(done) },
            Event::TileFailed { worker, tile, message } => Event::TileFailed { worker: of(worker), tile: before + tile, message },
            Event::TileUpcast { worker, tile } => Event::TileUpcast { worker: of(worker), tile: before + tile },
            Event::WorkerRetired { worker, message } => Event::WorkerRetired { worker: of(worker), message },
            other => other,
        };
        self.progress.on_event(&event);
    }
}
