use std::ops::Range;
use std::sync::Arc;

use parallel::Executor;
use serde::{Deserialize, Serialize};
use tiling::{BlendPolicy, Geometry, Grid, GridConfig, GridContext, GridError, GridKind, Off, SeamlessKind, TilePlan};
use vae_core::coder::{CoderSpec, Reading, Stage, StagedPlan};
use vae_core::{Posterior, PosteriorKind, Tiling, VaeSpec};

use crate::memory_plan::{Division, Holding, MemoryPlan, MemoryPlanner, waits_in_scratch};
use crate::workers::{check_devices, count_workers};
use crate::{Config, Error, LatentSpace, OnNonFiniteInput};

const F32: usize = size_of::<f32>();

/// The most bytes that an input or an output may have: 64 PiB, more than there is room for anywhere.
const MOST_BYTES: usize = 1 << 56;

/// The most frames of an input: of a clip of days.
const MOST_FRAMES: usize = 1 << 21;

/// The product, or the largest number where it overflows.
fn product(factors: &[usize]) -> usize {
    if factors.contains(&0) { 0 } else { factors.iter().fold(1, |product: usize, &factor| product.saturating_mul(factor)) }
}

/// Which way a run goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Latents to samples.
    Decode,
    /// Samples to latents.
    Encode,
}

impl Direction {
    /// How input maps to output.
    pub fn geometry(self, spec: &VaeSpec) -> Geometry {
        match self {
            Self::Decode => spec.decode_geometry(),
            Self::Encode => spec.encode_geometry(),
        }
    }

    /// What the input is called in messages: `latents` or `samples`.
    pub(crate) fn input_name(self) -> &'static str {
        match self {
            Self::Decode => "latents",
            Self::Encode => "samples",
        }
    }

    /// The configured grid. As in diffusers, a model that folds patches into channels counts the tiles of an encode in patches.
    ///
    /// A model whose family does not list its layers keeps the family's own grid where seamless tiles are configured.
    ///
    /// # Errors
    /// When keys of the configuration exclude each other, none of them sets a size, or settings of seamless tiles are given for such a model.
    pub fn grid(self, config: &Config, spec: &VaeSpec) -> Result<Box<dyn Grid>, Error> {
        let unit_px = match self {
            Self::Decode => 1,
            Self::Encode => spec.patch,
        };
        let family = self.family_tiling(spec).map(|tiling| &tiling.grid);
        let context = GridContext { scale: self.geometry(spec).scale, defaults: &spec.grid, unit_px, family };
        if config.tiling.kind() == SeamlessKind::NAME && self.coder(spec).is_none() {
            return Ok(without_layers(&config.tiling)?.build(&context)?);
        }
        Ok(config.tiling.build(&context)?)
    }

    /// The layers that run, if the family lists them.
    pub(crate) fn coder(self, spec: &VaeSpec) -> Option<&CoderSpec> {
        match self {
            Self::Decode => spec.decoder.as_ref(),
            Self::Encode => spec.encoder.as_ref(),
        }
    }

    /// The configured blend policy.
    ///
    /// # Errors
    /// When its settings cannot be used.
    pub fn blend(self, config: &Config, spec: &VaeSpec) -> Result<Box<dyn BlendPolicy>, Error> {
        Ok(config.blend.build(self.family_tiling(spec).map(|tiling| &tiling.blend)).map_err(GridError::from)?)
    }

    fn family_tiling(self, spec: &VaeSpec) -> Option<&Tiling> {
        match self {
            Self::Decode => spec.tiling.decode.as_ref(),
            Self::Encode => spec.tiling.encode.as_ref(),
        }
    }
}

/// The grid of the model's family with the size of seamless tiles.
fn without_layers(seamless: &GridConfig) -> Result<GridConfig, Error> {
    let mut settings = seamless.settings().as_object().cloned().unwrap_or_default();
    let tile_px = settings.remove_entry("tile_px");
    if let Some(key) = settings.keys().next() {
        let message = "the model's family does not list its layers, so its tiles overlap and are not chosen by memory".to_owned();
        return Err(Error::ConfigValue { key: format!("tiling.{key}"), message });
    }
    let named = GridConfig::named("family", tile_px.into_iter().collect());
    named.map_err(|error| Error::ConfigValue { key: "tiling.tile_px".to_owned(), message: error.to_string() })
}

/// A run before it begins: the tiles, and everything else about it that can be known without weights.
///
/// [`Pipeline::run`](crate::Pipeline::run) takes it as it is; nothing in it is computed again.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RunPlan {
    /// Decode or encode.
    pub direction: Direction,
    /// The name of the model's family.
    pub family: String,
    /// `[batch, channels, frames, height, width]` of the input.
    pub input_shape: [usize; 5],
    /// `[batch, channels, frames, height, width]` of what the model gives: samples, or the moments of an encode (latents, where the encoder gives no
    /// moments).
    pub output_shape: [usize; 5],
    /// Input px of all tiles divided by those of the input: 1 without overlaps. Of seamless tiles, the multiply-adds of all stages, crops included, divided by those
    /// of the whole.
    pub work_ratio: f64,
    /// Tiles that lie wholly inside a neighbour.
    pub redundant_tiles: usize,
    /// Different tile shapes: a GPU compiles and tunes its kernels for each of them.
    pub tile_shapes: usize,
    /// The chunks of frames in which each tile runs.
    pub chunks: usize,
    /// Latent frames in a chunk after the first.
    pub frames_per_chunk: usize,
    /// Workers that run tiles at once.
    pub workers: usize,
    /// Tiles that are started and not yet blended, at most.
    pub held_tiles: usize,
    /// Bytes on the host and on the device.
    pub bytes: PlanBytes,
    /// The tiles: of a seamless run, the parts of the output.
    pub tiles: TilePlan,
    /// The stages of a seamless run in several tiles.
    #[serde(skip)]
    pub(crate) staged: Option<Arc<StagedPlan>>,
    /// What a seamless run holds at its peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryPlan>,
    /// The predicted peak of a seamless run, in bytes: on a CPU of the process, on other devices of each device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<u64>,
    /// The stages of a seamless run in several tiles.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageSummary>,
    /// What the run takes from the model and the configuration besides.
    #[serde(skip)]
    pub(crate) settings: RunSettings,
}

/// A stage of a seamless run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StageSummary {
    /// Layers.
    pub layers: usize,
    /// Tiles: 1 where it runs on the whole picture.
    pub tiles: usize,
    /// Multiply-adds of all tiles.
    pub multiply_adds: u64,
}

/// What a run takes from the model and the configuration besides its tiles.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RunSettings {
    spec: VaeSpec,
    pub(crate) latent_space: LatentSpace,
    pub(crate) posterior: Posterior,
    pub(crate) seed: u64,
    pub(crate) on_non_finite: OnNonFiniteInput,
}

/// Bytes of a run, in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct PlanBytes {
    /// The input.
    pub input: usize,
    /// The output.
    pub output: usize,
    /// The strips that tiles blend with: in memory, of clips in a scratch file.
    pub strips: usize,
    /// Answers of tiles that wait to be blended, at most: in memory, of clips in a scratch file.
    pub waiting: usize,
    /// What the largest tile keeps of earlier frames.
    pub cache: usize,
    /// What a worker's device holds at the peak of the largest tile, its cache included: an upper bound for the CPU kernels, which take at least half of
    /// it. Weights, and what does not grow with the tile (the transformed weights of one layer, buffers of threads), are not part of it.
    pub largest_tile: usize,
    /// The same estimate for the whole input in one tile.
    pub untiled: usize,
}

impl RunPlan {
    /// Plans a run without weights, over an input of `[batch, channels, frames, height, width]`.
    ///
    /// # Errors
    /// When the model does not take such an input, it has no posterior that the configuration asks for, or the grid cannot be laid.
    pub fn new(config: &Config, family: &str, spec: &VaeSpec, direction: Direction, input_shape: [usize; 5]) -> Result<Self, Error> {
        let (grid, executor) = (direction.grid(config, spec)?, config.executor.build());
        Planner { config, family, spec, grid: grid.as_ref(), executor: executor.as_ref(), holding: Holding::IMAGE }.plan(direction, input_shape)
    }

    /// Whether strips and waiting tiles are kept in a scratch file, so that memory does not grow with the number of frames.
    pub(crate) fn uses_scratch(&self) -> bool {
        waits_in_scratch(&self.tiles)
    }

    /// Bytes that the scratch file of a run takes at least, in the folder for temporary files.
    pub fn scratch_bytes(&self) -> u64 {
        match self.memory {
            Some(memory) if self.uses_scratch() => memory.scratch + self.bytes.waiting as u64,
            Some(memory) => memory.scratch,
            None if self.uses_scratch() => self.bytes.strips as u64,
            None => 0,
        }
    }

    /// Checks that the plan was made for a model.
    ///
    /// # Errors
    /// [`Error::PlanModel`].
    pub(crate) fn check_model(&self, family: &str, spec: &VaeSpec) -> Result<(), Error> {
        if self.family == family && self.settings.spec == *spec {
            return Ok(());
        }
        Err(Error::PlanModel { planned: self.family.clone(), got: family.to_owned() })
    }

    /// Checks that the plan was made for an input of this shape.
    ///
    /// # Errors
    /// [`Error::PlanInput`].
    pub(crate) fn check_input(&self, got: [usize; 5]) -> Result<(), Error> {
        let planned = self.input_shape;
        if got == planned { Ok(()) } else { Err(Error::PlanInput { what: self.direction.input_name(), planned, got }) }
    }
}

/// What a plan is made from.
pub(crate) struct Planner<'a> {
    pub(crate) config: &'a Config,
    pub(crate) family: &'a str,
    pub(crate) spec: &'a VaeSpec,
    pub(crate) grid: &'a dyn Grid,
    pub(crate) executor: &'a dyn Executor,
    pub(crate) holding: Holding,
}

impl Planner<'_> {
    /// Lays the grid over an input.
    ///
    /// # Errors
    /// Those of [`RunPlan::new`].
    pub(crate) fn plan(&self, direction: Direction, input_shape: [usize; 5]) -> Result<RunPlan, Error> {
        let Self { config, family, spec, grid, executor, holding } = *self;
        match direction {
            Direction::Decode => spec.check_latents(input_shape)?,
            Direction::Encode => spec.check_samples(input_shape)?,
        }
        if direction == Direction::Encode && spec.posterior == PosteriorKind::None && config.io.posterior != Posterior::Mode {
            let message = format!("the encoder of {family} gives latents and no posterior; only \"mode\" is possible");
            return Err(Error::ConfigValue { key: "io.posterior".to_owned(), message });
        }
        check_devices(&config.devices, executor)?;
        let workers = count_workers(&config.devices, executor);
        executor.check_workers(workers)?;
        let [batch, _, frames, height, width] = input_shape;
        let channels = match direction {
            Direction::Decode => spec.output_channels,
            Direction::Encode => spec.encoder_channels(),
        };
        let check_size = |shape: [usize; 5]| {
            if product(&shape) > MOST_BYTES / F32 || frames > MOST_FRAMES { Err(Error::TooLarge { shape }) } else { Ok(()) }
        };
        let (tiles, staged, memory) = if grid.is_seamless() {
            let [frames, height, width] = TilePlan::new(&Off, direction.geometry(spec), [frames, height, width])?.output;
            [input_shape, [batch, channels, frames, height, width]].into_iter().try_for_each(check_size)?;
            let Division { tiles, staged, memory } =
                MemoryPlanner { config, family, spec, executor, direction, input_shape, holding }.divide(grid)?;
            (tiles, staged, Some(memory))
        } else {
            (TilePlan::new(grid, direction.geometry(spec), [frames, height, width])?, None, None)
        };
        let stages = staged.iter().flat_map(|staged| {
            let summary = |(at, stage): (usize, &Stage)| StageSummary {
                layers: stage.steps.len(),
                tiles: staged.tiles(at),
                multiply_adds: staged.stage_multiply_adds(at) as u64,
            };
            staged.stages().iter().enumerate().map(summary)
        });
        let stages = stages.collect();
        let output_shape = [batch, channels, tiles.output[0], tiles.output[1], tiles.output[2]];
        [input_shape, output_shape].into_iter().try_for_each(check_size)?;
        let frames_per_chunk = config.model.frames_per_chunk.get();
        let chunks = tiles.geometry.frames.chunks(frames, frames_per_chunk);
        let workers = workers.min(tiles.tiles.len());
        let held_tiles = executor.held_tiles(&tiles, workers);
        let largest_answer = tiles.tiles.iter().map(|tile| tile.output.volume()).max().unwrap_or(0);
        let largest_answer = product(&[largest_answer, batch, channels, F32]);
        let coder = direction.coder(spec);
        let latent_px = |size: [usize; 2]| product(&size.map(|side| tiles.geometry.scale.latent_px(side)));
        let [decode_cache, encode_cache] = spec.cache_values_per_latent_px;
        let cache_per_latent_px = if direction == Direction::Decode { decode_cache } else { encode_cache };
        // Nothing is kept of a single chunk.
        let cache_per_latent_px = if chunks.len() > 1 { cache_per_latent_px } else { 0 };
        let cache = |size| product(&[batch, latent_px(size), cache_per_latent_px, F32]);
        let peak = |size: [usize; 2]| {
            let values = match coder {
                Some(coder) => StagedPlan::whole_values(coder, [frames, size[0], size[1]], batch, frames_per_chunk, Reading::Apart),
                None => return self.peak_without_layers(direction, batch, latent_px(size), &chunks).saturating_add(cache(size)),
            };
            usize::try_from(values).unwrap_or(usize::MAX).saturating_mul(F32)
        };
        let largest = tiles.largest_tile();
        let bytes = PlanBytes {
            input: product(&input_shape) * F32,
            output: product(&output_shape) * F32,
            strips: product(&[batch, channels, tiles.strip_px(), F32]),
            waiting: product(&[held_tiles - 1, largest_answer]),
            cache: cache(largest),
            largest_tile: peak(largest),
            untiled: peak([height, width]),
        };
        Ok(RunPlan {
            direction,
            family: family.to_owned(),
            input_shape,
            output_shape,
            work_ratio: staged.as_ref().map_or_else(|| tiles.work_ratio(), |staged| staged.work_ratio()),
            redundant_tiles: tiles.redundant_tiles(),
            tile_shapes: tiles.shapes().len(),
            chunks: chunks.len(),
            frames_per_chunk,
            workers,
            held_tiles,
            bytes,
            tiles,
            staged,
            memory,
            peak_bytes: memory.map(|memory| memory.peak),
            stages,
            settings: RunSettings {
                spec: spec.clone(),
                latent_space: config.io.latent_space,
                posterior: config.io.posterior,
                seed: config.io.seed,
                on_non_finite: config.io.on_non_finite,
            },
        })
    }

    /// Bytes at the peak of some latent px, for models that do not list their layers.
    fn peak_without_layers(&self, direction: Direction, batch: usize, latent_px: usize, chunks: &[Range<usize>]) -> usize {
        let [decode, encode] = self.spec.peak_values_per_px;
        let ratio = self.spec.spatial_ratio;
        // Sample frames that run at once.
        let (per_px, at_once) = match direction {
            Direction::Decode => {
                let frames = chunks.iter().map(|chunk| if chunk.start == 0 { 1 } else { chunk.len() * self.spec.frames.ratio() });
                (decode, frames.max().unwrap_or(1))
            }
            Direction::Encode => (encode, chunks.iter().map(ExactSizeIterator::len).max().unwrap_or(1)),
        };
        product(&[batch, latent_px, ratio, ratio, per_px, at_once, F32])
    }
}
