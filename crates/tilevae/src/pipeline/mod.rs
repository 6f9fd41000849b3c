mod adapters;
mod replicas;
mod staged;
#[cfg(all(test, feature = "flex", feature = "kl"))]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use adapters::{LatentSink, SampleSink, VaeLatents};
use parallel::{ExecError, Executor, Job, RunStats, Stop, Worker};
use replicas::{Replica, load_replicas};
use staged::StagedRun;
use tiling::{BlendPolicy, Canvas, Compositor, Grid, HostTensor, Party, ScratchFile, Sink, TileOp, TileSource, guard};
use vae_core::{MathMode, Model, Posterior, Registry, Vae, VaeOp, VaeSpec};

use crate::finite::FiniteSource;
use crate::memory_plan::Holding;
use crate::plan::Planner;
use crate::warming;
use crate::workers::{LazyOp, WorkerSlot, check_devices, run_zeros, worker_slots};
use crate::{Config, Direction, Error, FittedFrames, NonFinite, OnNonFiniteInput, OpenDevice, RunOptions, RunPlan, io, open_devices};

/// Bytes of a value of a tensor in host memory.
const F32: u64 = size_of::<f32>() as u64;

/// Finds the model that a configuration names. No weights are loaded.
///
/// # Errors
/// When the checkpoint cannot be read or no family claims it.
pub fn open_model(config: &Config) -> Result<Model, Error> {
    let model = &config.model;
    Ok(Model::open(&Registry::linked()?, &model.path, &model.family, model.config.as_deref())?)
}

/// A model with its weights on the configured devices.
///
/// A pipeline holds no state of a run: many threads may run it at once. A worker runs one tile at a time, and runs that share a worker alternate tile by tile.
/// Runs that are called on threads of a rayon pool do not wait for other runs, because the pool may need these threads to finish the others: their tiles share
/// the worker.
#[derive(Debug)]
pub struct Pipeline {
    config: Config,
    family: &'static str,
    devices: Vec<OpenDevice>,
    /// One for each device.
    replicas: Vec<Arc<Replica>>,
    worker_slots: Vec<WorkerSlot>,
    executor: Box<dyn Executor>,
    math_mode: MathMode,
    grids: PerDirection<Arc<dyn Grid>>,
    blends: PerDirection<Arc<dyn BlendPolicy>>,
    /// Bytes of the program's own that a memory budget counts.
    held_bytes: u64,
}

/// A value for decode and one for encode.
#[derive(Debug)]
struct PerDirection<T> {
    decode: T,
    encode: T,
}

impl<T> PerDirection<T> {
    fn new<E>(mut make: impl FnMut(Direction) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self { decode: make(Direction::Decode)?, encode: make(Direction::Encode)? })
    }

    fn get(&self, direction: Direction) -> &T {
        match direction {
            Direction::Decode => &self.decode,
            Direction::Encode => &self.encode,
        }
    }

    fn with(self, direction: Direction, value: T) -> Self {
        match direction {
            Direction::Decode => Self { decode: value, ..self },
            Direction::Encode => Self { encode: value, ..self },
        }
    }
}

/// What an encode gives.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// `[b, latent_channels, t, h, w]`, in the configured latent space.
    pub latents: HostTensor,
    /// Mean and log-variance in the VAE's own latent space, each in the shape of the latents, when the configuration asks for moments.
    pub moments: Option<[HostTensor; 2]>,
    /// Times and counts of the run.
    pub stats: RunStats,
}

impl Pipeline {
    /// Opens and loads the configured model on the configured devices.
    ///
    /// # Errors
    /// When the model cannot be opened, a device is missing, or the weights cannot be loaded.
    pub fn load(config: &Config) -> Result<Self, Error> {
        Self::load_model(config, &open_model(config)?)
    }

    /// Loads a model on the configured devices.
    ///
    /// # Errors
    /// When a device is missing, or the weights cannot be loaded.
    pub fn load_model(config: &Config, model: &Model) -> Result<Self, Error> {
        check_devices(&config.devices, config.executor.build().as_ref())?;
        Self::load_on(config, model, &open_devices(&config.devices)?, &Stop::default())
    }

    /// Loads a model on devices that are open already. `stop` cancels the loading.
    ///
    /// # Errors
    /// When the executor cannot use the devices, one does not compute in its dtype, the weights cannot be loaded, and [`Error::stopped`].
    pub fn load_on(config: &Config, model: &Model, devices: &[OpenDevice], stop: &Stop) -> Result<Self, Error> {
        Self::with_weights(config, model.entry.name, &model.spec, devices, || load_replicas(config, model, devices, stop))
    }

    /// A pipeline over the weights that `load` gives, once everything else is there.
    fn with_weights(
        config: &Config,
        family: &'static str,
        spec: &VaeSpec,
        devices: &[OpenDevice],
        load: impl FnOnce() -> Result<Vec<Arc<Replica>>, Error>,
    ) -> Result<Self, Error> {
        let executor = config.executor.build();
        check_devices(&config.devices, executor.as_ref())?;
        let worker_slots = worker_slots(&config.devices, devices, executor.as_ref())?;
        let grids = PerDirection::new(|direction| Ok::<_, Error>(Arc::from(direction.grid(config, spec)?)))?;
        let blends = PerDirection::new(|direction| Ok::<_, Error>(Arc::from(direction.blend(config, spec)?)))?;
        Ok(Self {
            config: config.clone(),
            family,
            devices: devices.to_vec(),
            replicas: load()?,
            worker_slots,
            executor,
            math_mode: MathMode { precision: config.model.precision, tf32: config.devices.tf32 },
            grids,
            blends,
            held_bytes: 0,
        })
    }

    /// A pipeline over the same weights as configured, with workers of its own: its runs do not wait for those of this one.
    ///
    /// # Errors
    /// When the configuration has another model or other devices, its tiles cannot be laid, or its executor cannot use the devices.
    pub fn share(&self, config: &Config) -> Result<Self, Error> {
        for (key, is_same) in [("model", config.model == self.config.model), ("devices", config.devices == self.config.devices)] {
            if !is_same {
                let message = "pipelines that share weights have this section in common".to_owned();
                return Err(Error::ConfigValue { key: key.to_owned(), message });
            }
        }
        let shared = Self::with_weights(config, self.family, self.spec(), &self.devices, || Ok(self.replicas.clone()))?;
        Ok(shared.with_held_bytes(self.held_bytes))
    }

    /// The same pipeline in a program that holds so many bytes of host memory for purposes of its own. On a CPU, budgets and predictions count them.
    #[must_use]
    pub fn with_held_bytes(self, held_bytes: u64) -> Self {
        Self { held_bytes, ..self }
    }

    /// The same pipeline with another grid for one direction, in place of the configured one.
    #[must_use]
    pub fn with_grid(self, direction: Direction, grid: Arc<dyn Grid>) -> Self {
        Self { grids: self.grids.with(direction, grid), ..self }
    }

    /// The same pipeline with another blend policy for one direction, in place of the configured one.
    #[must_use]
    pub fn with_blend(self, direction: Direction, blend: Arc<dyn BlendPolicy>) -> Self {
        Self { blends: self.blends.with(direction, blend), ..self }
    }

    /// The same pipeline with another executor, in place of the configured one.
    ///
    /// # Errors
    /// When the executor cannot use the pipeline's devices.
    pub fn with_executor(self, executor: Box<dyn Executor>) -> Result<Self, Error> {
        check_devices(&self.config.devices, executor.as_ref())?;
        let worker_slots = worker_slots(&self.config.devices, &self.devices, executor.as_ref())?;
        Ok(Self { worker_slots, executor, ..self })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What is known of the model without its weights.
    pub fn spec(&self) -> &VaeSpec {
        self.replicas[0].vae.spec()
    }

    /// Bytes that each GPU holds for this process, weights and memory kept for reuse included, by the name of its worker. After a run, this is about
    /// the run's peak.
    pub fn device_memory(&self) -> BTreeMap<String, u64> {
        let held = |slot: &WorkerSlot| Some((slot.name().to_owned(), vae_core::held_memory(&self.replicas[slot.device].vae.device())?));
        self.worker_slots.iter().filter_map(held).collect()
    }

    /// The plan of a run over an input of `[batch, channels, frames, height, width]`.
    ///
    /// # Errors
    /// When the model does not take such an input, or the grid cannot be laid.
    pub fn plan(&self, direction: Direction, input_shape: [usize; 5]) -> Result<RunPlan, Error> {
        self.plan_for(direction, input_shape, 1)
    }

    /// The plan of a run whose output is held in memory, as [`decode`](Self::decode) and [`encode`](Self::encode) hold it: in f32.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan).
    pub fn plan_in_memory(&self, direction: Direction, input_shape: [usize; 5]) -> Result<RunPlan, Error> {
        self.plan_for(direction, input_shape, F32)
    }

    /// The same for an output that is held with so many bytes a value.
    fn plan_for(&self, direction: Direction, input_shape: [usize; 5], output_value_bytes: u64) -> Result<RunPlan, Error> {
        let vae = &self.replicas[0].vae;
        let both_components = vae.decoder().is_some() && vae.encoder().is_some();
        let planner = Planner {
            config: &self.config,
            family: self.family,
            spec: self.spec(),
            grid: self.grids.get(direction).as_ref(),
            executor: self.executor.as_ref(),
            holding: Holding { both_components, output_value_bytes, others: self.held_bytes },
        };
        planner.plan(direction, input_shape)
    }

    /// Runs zeros through every GPU at once, in a tile of each shape of the plan, so that kernels are compiled and tuned before the run.
    ///
    /// A GPU that fails here also fails in the run, where other workers take over its tiles; so a failure is only logged, and so is a GPU that takes more than
    /// ten minutes. The warm-up does not wait for runs that use the GPUs.
    pub fn warm_up(&self, plan: &RunPlan, stop: &Stop) {
        // The tiles of stages have their own shapes, which the first of them meet.
        if plan.staged.is_some() {
            return;
        }
        let workers = self.workers(plan, false, stop);
        let gpus = self.worker_slots.iter().zip(workers).filter(|(slot, _)| vae_core::adapter(&self.replicas[slot.device].vae.device()).is_some());
        let tasks = gpus.map(|(_, Worker { name, op, .. })| {
            let (stop, shapes, input_shape) = (stop.clone(), plan.tiles.shapes(), plan.input_shape);
            let run = move || {
                let mut shapes = shapes.into_iter().take_while(|_| !stop.is_stopped());
                shapes.try_for_each(|shape| run_zeros(op.as_ref(), &stop, input_shape, shape))
            };
            (name, Box::new(run) as _)
        });
        warming::warm(tasks.collect(), stop, warming::LIMIT);
    }

    /// Runs a plan: reads tiles from `source`, and hands parts of the output to `sink` as they are finished.
    ///
    /// A decode takes latents of the planned latent space and gives samples, about -1 to 1. An encode takes samples, -1 to 1, of as many frames as
    /// planned (see [`FittedFrames`]), and gives latents of the planned latent space: the mean, or a sample where the plan's posterior is
    /// [`Posterior::Sample`].
    ///
    /// # Shapes
    /// The source has the plan's `input_shape`. The sink gets `[b, output_channels, t', h * ratio, w * ratio]` of a decode and
    /// `[b, latent_channels, t, h / ratio, w / ratio]` of an encode.
    ///
    /// # Errors
    /// When the plan is not for this model or this source, values are not finite (unless the plan allows it), a tile fails or the sink does.
    pub fn run(&self, plan: &RunPlan, source: &dyn TileSource, sink: &mut dyn Sink, options: RunOptions<'_>) -> Result<RunStats, Error> {
        match plan.direction {
            Direction::Decode => self.run_decode(plan, source, sink, options),
            Direction::Encode => self.run_encode(plan, source, sink, None, options),
        }
    }

    /// Decodes latents of the configured latent space: a [`plan`](Self::plan) and its [`run`](Self::run), collected in memory.
    ///
    /// # Shapes
    /// `[b, latent_channels, t, h, w]` to `[b, output_channels, t', h * ratio, w * ratio]`, about -1 to 1.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan) and [`run`](Self::run).
    pub fn decode(&self, latents: &dyn TileSource, options: RunOptions<'_>) -> Result<HostTensor, Error> {
        let plan = self.plan_in_memory(Direction::Decode, called(Party::Source, || latents.shape())?)?;
        let mut canvas = Canvas::default();
        self.run(&plan, latents, &mut canvas, options)?;
        Ok(canvas.into_tensor())
    }

    /// Encodes samples: a [`plan`](Self::plan) and its [`run`](Self::run), collected in memory.
    ///
    /// Frames that do not fill a latent frame are refused, dropped or filled up, as the configuration says.
    ///
    /// # Shapes
    /// `[b, input_channels, t', h, w]`, -1 to 1, to `[b, latent_channels, t, h / ratio, w / ratio]`.
    ///
    /// # Errors
    /// Those of [`plan`](Self::plan) and [`run`](Self::run), and [`Error::Frames`].
    pub fn encode(&self, samples: &dyn TileSource, options: RunOptions<'_>) -> Result<Encoded, Error> {
        let samples = called(Party::Source, || FittedFrames::new(samples, self.spec().frames, self.config.io.frames))??;
        let plan = self.plan_in_memory(Direction::Encode, called(Party::Source, || samples.shape())?)?;
        self.encode_planned(&plan, &samples, options)
    }

    /// Runs the plan of an encode and collects the latents in memory, with the moments where the plan's posterior is [`Posterior::Moments`].
    ///
    /// # Errors
    /// Those of [`run`](Self::run).
    pub fn encode_planned(&self, plan: &RunPlan, samples: &dyn TileSource, options: RunOptions<'_>) -> Result<Encoded, Error> {
        let (mut latents, mut moments) = (Canvas::default(), <[Canvas; 2]>::default());
        let has_moments = plan.settings.posterior == Posterior::Moments;
        let stats = self.run_encode(plan, samples, &mut latents, has_moments.then_some(&mut moments), options)?;
        Ok(Encoded { latents: latents.into_tensor(), moments: has_moments.then(|| moments.map(Canvas::into_tensor)), stats })
    }

    fn run_decode(&self, plan: &RunPlan, latents: &dyn TileSource, sink: &mut dyn Sink, options: RunOptions<'_>) -> Result<RunStats, Error> {
        let needs_no_blending = !plan.tiles.is_tiled() || plan.staged.is_some();
        let eight_bits = needs_no_blending && called(Party::Sink, || sink.rounds_to_eight_bits())?;
        let spec = self.spec();
        let latents = VaeLatents { latents, spec, space: plan.settings.latent_space };
        let mut sink = SampleSink { sink, spec, clamp: spec.clamp, is_tiled: plan.tiles.is_tiled() && plan.staged.is_none() };
        self.run_tiles(plan, &latents, &mut sink, eight_bits, options)
    }

    fn run_encode(
        &self,
        plan: &RunPlan,
        samples: &dyn TileSource,
        sink: &mut dyn Sink,
        moments: Option<&mut [Canvas; 2]>,
        options: RunOptions<'_>,
    ) -> Result<RunStats, Error> {
        let settings = &plan.settings;
        let (posterior, seed, space) = (settings.posterior, settings.seed, settings.latent_space);
        let mut sink = LatentSink { sink, spec: self.spec(), posterior, seed, space, moments };
        self.run_tiles(plan, samples, &mut sink, false, options)
    }

    fn run_tiles(
        &self,
        plan: &RunPlan,
        source: &dyn TileSource,
        sink: &mut dyn Sink,
        eight_bits: bool,
        RunOptions { progress, stop }: RunOptions<'_>,
    ) -> Result<RunStats, Error> {
        plan.check_model(self.family, self.spec())?;
        plan.check_input(called(Party::Source, || source.shape())?)?;
        io::check_space(&std::env::temp_dir(), plan.scratch_bytes())?;
        let mut nobody = ();
        let progress = progress.unwrap_or(&mut nobody);
        let mut run = |source: &dyn TileSource| -> Result<RunStats, Error> {
            if let Some(staged) = &plan.staged {
                let run = StagedRun {
                    plan,
                    staged,
                    executor: self.executor.as_ref(),
                    replicas: &self.replicas,
                    worker_slots: &self.worker_slots,
                    math_mode: self.math_mode,
                    eight_bits,
                    stop: &stop,
                };
                return run.run(source, sink, progress);
            }
            let workers = self.workers(plan, eight_bits, &stop);
            let mut compositor = Compositor::new(&plan.tiles, self.blends.get(plan.direction).as_ref(), sink);
            if plan.uses_scratch() {
                compositor = compositor.with_scratch(ScratchFile::new().map_err(io::IoError::from)?);
            }
            Ok(self.executor.run(Job { plan: &plan.tiles, source, workers: &workers, compositor, stop: &stop }, progress)?)
        };
        if plan.settings.on_non_finite == OnNonFiniteInput::Allow {
            return run(source);
        }
        let what = plan.direction.input_name();
        let scan = || match called(Party::Source, || NonFinite::in_source(source))? {
            Ok(None) => Ok(()),
            Ok(Some(found)) => Err(Error::NonFinite { what, found }),
            Err(source) => Err(Error::Source { what, source }),
        };
        if called(Party::Source, || source.is_in_memory())? {
            scan()?;
            return run(source);
        }
        let finite = FiniteSource::new(source);
        let stats = run(&finite);
        // The error of a tile counts the values of one piece; the scan counts all.
        if finite.has_failed() {
            scan()?;
        }
        stats
    }

    /// The workers of a run, each with its operation.
    fn workers(&self, plan: &RunPlan, eight_bits: bool, stop: &Stop) -> Vec<Worker> {
        let (direction, math_mode, frames_per_chunk, is_single_chunk) = (plan.direction, self.math_mode, plan.frames_per_chunk, plan.chunks == 1);
        let op = move |vae: Arc<dyn Vae>| -> Arc<dyn TileOp> {
            let op = match direction {
                Direction::Decode => VaeOp::decode(vae).with_eight_bits(eight_bits),
                Direction::Encode => VaeOp::encode(vae),
            };
            Arc::new(op.with_frames_per_chunk(frames_per_chunk).with_single_chunk(is_single_chunk).with_math_mode(math_mode))
        };
        let worker = |slot: &WorkerSlot| {
            let replica = &self.replicas[slot.device];
            let upcast = replica.wide.clone().map(|wide| {
                let (device, stop) = (replica.vae.device(), stop.clone());
                let make = move || Ok(op(wide.on(&device, &stop)?));
                Arc::new(LazyOp { geometry: plan.tiles.geometry, frames_per_chunk, make, op: OnceLock::new() }) as Arc<dyn TileOp>
            });
            slot.worker(op(replica.vae.clone()), upcast)
        };
        self.worker_slots.iter().map(worker).collect()
    }
}

/// Calls code that the caller of a run brought; a panic of it is an error.
fn called<T>(who: Party, call: impl FnOnce() -> T) -> Result<T, Error> {
    Ok(guard(who, call).map_err(ExecError::from)?)
}
