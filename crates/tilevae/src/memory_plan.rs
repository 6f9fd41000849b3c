//! The choice of seamless tiles for a memory budget.

use std::sync::Arc;

use burn::tensor::Device;
use parallel::Executor;
use serde::{Deserialize, Serialize};
use tiling::{FrameScale, Grid, GridError, MemoryBudget, NormMoments, Off, Seamless, SeamlessKind, Span, TilePlan};
use vae_core::coder::{CoderSpec, Reading, StagedPlan};
use vae_core::{DeviceName, VaeSpec, free_memory as free_memory_of};

use crate::workers::{count_workers, threads_of};
use crate::{Config, Direction, DtypeConfig, Error, io};

const F32: u64 = size_of::<f32>() as u64;

const MIB: u64 = 1 << 20;

/// Bytes of a process besides weights and what grows with its input.
const PROCESS_BYTES: u64 = 40 * MIB;

/// The share of the free memory that `auto` takes.
const AUTO_SHARE: f64 = 0.8;

/// Bytes of features that a device keeps whose free memory is not known.
const ROOM_OF_UNKNOWN: u64 = 1 << 30;

/// How much more than the arithmetic says is held: what is freed is not at once used again.
const MARGIN: f64 = 1.08;

/// Bytes of memory that so many bytes of features take.
fn with_margin(bytes: u64) -> u64 {
    (bytes as f64 * MARGIN) as u64
}

/// Most of the memory that is free on the machine, and to the process's control group where that has a limit.
fn free_memory() -> u64 {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    // What a group has of the disk's cache is free for it.
    let limits = system.cgroup_limits().filter(|limits| limits.total_memory < system.total_memory());
    let of_group = limits.map_or(u64::MAX, |limits| limits.total_memory.saturating_sub(limits.rss));
    (system.available_memory().min(of_group) as f64 * AUTO_SHARE) as u64
}

/// What a process holds besides what a run takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holding {
    /// Whether the weights of the other direction are loaded, too.
    pub(crate) both_components: bool,
    /// Bytes in which each value of a decode's output is held: one by writers of images.
    pub(crate) output_value_bytes: u64,
    /// Bytes that the program holds in host memory for purposes of its own.
    pub(crate) others: u64,
}

impl Holding {
    /// One direction, whose output becomes an image.
    pub(crate) const IMAGE: Self = Self { both_components: false, output_value_bytes: 1, others: 0 };
}

/// Sides of tiles that are tried, in latent px.
const SIDES: [usize; 14] = [256, 192, 128, 112, 96, 80, 64, 56, 48, 40, 32, 24, 16, 8];

/// Multiply-adds of a core, and bytes of a scratch file, in a second: they weigh a larger halo against a larger file. Measured on a machine with two cores.
const MULTIPLY_ADDS_PER_SECOND: f64 = 4e10;
const SCRATCH_BYTES_PER_SECOND: f64 = 1e9;

/// Multiply-adds of a GPU, and bytes that it exchanges with the host, in a second. Figures of data sheets, rounded down.
const GPU_MULTIPLY_ADDS_PER_SECOND: f64 = 1e13;
const EXCHANGED_BYTES_PER_SECOND: f64 = 1e10;

/// How a seamless run is divided.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Division {
    pub(crate) tiles: TilePlan,
    /// The stages, in several tiles.
    pub(crate) staged: Option<Arc<StagedPlan>>,
    pub(crate) memory: MemoryPlan,
}

/// What a seamless run holds at its peak: on a CPU the whole process, on other devices each device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct MemoryPlan {
    /// The budget, if there is one.
    pub budget: Option<u64>,
    /// The predicted peak.
    pub peak: u64,
    /// What is held besides features between stages.
    pub running: u64,
    /// Features between stages that stay on devices with memory of their own. Without a budget they keep what they have room for, which is not predicted.
    pub kept: u64,
    /// Features between stages that are kept in host memory.
    pub stored: u64,
    /// Features between stages in a scratch file.
    pub scratch: u64,
    /// The next larger budget that would take less time, if there is one.
    pub next: Option<NextBudget>,
}

/// What a larger budget would buy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct NextBudget {
    /// The budget.
    pub bytes: u64,
    /// Height and width of the largest tile, in latent px: of the whole where it would not be tiled.
    pub tile: [usize; 2],
    /// Bytes of a scratch file.
    pub scratch: u64,
}

/// What a division is made for.
pub(crate) struct MemoryPlanner<'a> {
    pub(crate) config: &'a Config,
    pub(crate) family: &'a str,
    pub(crate) spec: &'a VaeSpec,
    pub(crate) executor: &'a dyn Executor,
    pub(crate) direction: Direction,
    pub(crate) input_shape: [usize; 5],
    pub(crate) holding: Holding,
}

/// A division with what it needs.
struct Candidate {
    tiles: TilePlan,
    staged: Option<Arc<StagedPlan>>,
    /// Bytes that are held in any case.
    needed: u64,
    /// Bytes of features between stages.
    stored: u64,
    multiply_adds: f64,
}

/// Where features are kept with a budget.
#[derive(Clone, Copy)]
enum Memories {
    /// In the memory of the process, which the budget is for.
    Process,
    /// On devices that each have the budget, and in so many free bytes of the host's.
    Devices { count: u64, host: u64 },
}

/// Bytes of features by where they are kept.
struct Places {
    kept: u64,
    host: u64,
    scratch: u64,
}

impl Candidate {
    fn places(&self, budget: u64, memories: Memories) -> Places {
        let left = budget.saturating_sub(self.needed);
        let (kept, free) = match memories {
            Memories::Process => (0, left),
            Memories::Devices { count, host } => (self.stored.min(left.saturating_mul(count)), host),
        };
        let host = (self.stored - kept).min(free);
        Places { kept, host, scratch: self.stored - kept - host }
    }

    /// Seconds, about, with a budget.
    fn seconds(&self, budget: u64, memories: Memories, workers: usize) -> f64 {
        let Places { host, scratch, .. } = self.places(budget, memories);
        let (speed, exchanged) = match memories {
            Memories::Process => (MULTIPLY_ADDS_PER_SECOND, 0),
            Memories::Devices { .. } => (GPU_MULTIPLY_ADDS_PER_SECOND, host + scratch),
        };
        self.multiply_adds / (speed * workers as f64)
            + 2.0 * (exchanged as f64 / EXCHANGED_BYTES_PER_SECOND + scratch as f64 / SCRATCH_BYTES_PER_SECOND)
    }
}

impl MemoryPlan {
    /// Bytes of features that the store may keep in host memory.
    pub(crate) fn host_limit(&self) -> u64 {
        if self.scratch > 0 { (self.stored as f64 / MARGIN) as u64 } else { u64::MAX }
    }

    /// Bytes of features that a device with memory of its own may keep: what its budget leaves, or else most of what it has free.
    pub(crate) fn room_on(&self, device: &Device) -> u64 {
        let free = || free_memory_of(device).map(|free| (free as f64 * AUTO_SHARE) as u64);
        let room = self.budget.or_else(free).map(|budget| (budget.saturating_sub(self.running) as f64 / MARGIN) as u64);
        room.unwrap_or(ROOM_OF_UNKNOWN)
    }
}

impl MemoryPlanner<'_> {
    /// The division by the configured budget, or in tiles of the configured size where there is none.
    ///
    /// # Errors
    /// When the model does not list its layers, the grid cannot be laid, or the budget is too small.
    pub(crate) fn divide(&self, grid: &dyn Grid) -> Result<Division, Error> {
        let kind = if self.config.tiling.kind() == "seamless" {
            SeamlessKind::deserialize(self.config.tiling.settings()).unwrap_or_default()
        } else {
            SeamlessKind::default()
        };
        let Some(memory) = kind.memory_mib else {
            let candidate = self.candidate(grid, kind.norm == NormMoments::Sampled)?;
            // What does not fit into the free memory goes to the scratch file.
            let free = free_memory();
            let needed = candidate.needed - if self.is_on_cpu() { self.holding.others } else { 0 };
            let stored = candidate.stored.min(if self.is_on_cpu() { free.saturating_sub(needed) } else { free });
            let peak = candidate.needed.saturating_add(if self.is_on_cpu() { stored } else { 0 });
            let scratch = candidate.stored - stored;
            let memory = MemoryPlan { budget: None, peak, running: candidate.needed, kept: 0, stored, scratch, next: None };
            return Ok(Division { tiles: candidate.tiles, staged: candidate.staged, memory });
        };
        let budget = self.budget(memory)?;
        let workers = count_workers(&self.config.devices, self.executor);
        let memories = if self.is_on_cpu() {
            Memories::Process
        } else {
            let count = self.config.devices.names.iter().filter(|name| **name != DeviceName::CPU).count() as u64;
            Memories::Devices { count, host: free_memory() }
        };
        let in_scratch = |candidate: &Candidate| candidate.places(budget, memories).scratch;
        // Of the disk.
        let room = io::free_bytes(&std::env::temp_dir()).unwrap_or(u64::MAX);
        let mut candidates = vec![self.candidate(&Off, false)?];
        let grids: Vec<Box<dyn Grid + '_>> = if kind.tile_px.is_some() {
            vec![Box::new(Seamless { tile_px: kind.tile_px.map_or([0; 2], |side| side.0) })]
        } else {
            SIDES.iter().map(|side| Box::new(Seamless { tile_px: [side.saturating_mul(self.spec.spatial_ratio); 2] }) as _).collect()
        };
        let sources: &[bool] = match kind.norm {
            NormMoments::Auto => &[false, true],
            NormMoments::Exact => &[false],
            NormMoments::Sampled => &[true],
        };
        for &is_sampled in sources {
            // Exact moments are taken as long as there is room for the features of the whole.
            let has_exact = candidates.iter().any(|candidate| candidate.needed <= budget && in_scratch(candidate) <= room);
            if is_sampled && kind.norm == NormMoments::Auto && has_exact {
                break;
            }
            for grid in &grids {
                match self.candidate(grid.as_ref(), is_sampled) {
                    // One tile is the whole.
                    Ok(candidate) if !candidate.tiles.is_tiled() => {}
                    Err(Error::Grid(GridError::TooManyTiles { .. })) => break,
                    candidate => candidates.push(candidate?),
                }
            }
        }
        let least = candidates.iter().map(|candidate| candidate.needed).min().unwrap_or(u64::MAX);
        let within = || candidates.iter().filter(|candidate| candidate.needed <= budget);
        let faster = |a: &&Candidate, b: &&Candidate| a.seconds(budget, memories, workers).total_cmp(&b.seconds(budget, memories, workers));
        let with_disk = within().filter(|candidate| in_scratch(candidate) <= room).min_by(faster);
        // Where the disk is what is missing, the run says so when it begins.
        let Some(chosen) = with_disk.or_else(|| within().min_by_key(|candidate| in_scratch(candidate))) else {
            return Err(Error::Budget { budget_mib: budget / MIB, least_mib: least.div_ceil(MIB) });
        };
        if kind.norm == NormMoments::Auto && chosen.staged.as_ref().is_some_and(|staged| staged.is_sampled()) {
            tracing::warn!(
                "the moments of group norms are estimated (`tiling.norm`), because the budget and the {} MiB free in {} have no room for all features",
                room / MIB,
                std::env::temp_dir().display()
            );
        }
        let Places { kept, host, scratch } = chosen.places(budget, memories);
        let seconds = chosen.seconds(budget, memories, workers);
        let larger =
            candidates.iter().flat_map(|candidate| [(candidate, candidate.needed), (candidate, candidate.needed.saturating_add(candidate.stored))]);
        let next = larger
            .filter(|&(candidate, bytes)| bytes > budget && candidate.seconds(bytes, memories, workers) < seconds * 0.98)
            .min_by_key(|&(_, bytes)| bytes);
        let next = next.map(|(candidate, bytes)| NextBudget {
            bytes,
            tile: candidate.tiles.largest_tile().map(|side| candidate.tiles.geometry.scale.latent_px(side)),
            scratch: candidate.places(bytes, memories).scratch,
        });
        let memory = MemoryPlan {
            budget: Some(budget),
            peak: chosen.needed
                + match memories {
                    Memories::Process => host,
                    Memories::Devices { count, .. } => kept.div_ceil(count.max(1)),
                },
            running: chosen.needed,
            kept,
            stored: host,
            scratch,
            next,
        };
        Ok(Division { tiles: chosen.tiles.clone(), staged: chosen.staged.clone(), memory })
    }

    /// Bytes of a budget.
    fn budget(&self, memory: MemoryBudget) -> Result<u64, Error> {
        match memory {
            MemoryBudget::Mib(mib) => Ok((mib.get() as u64).saturating_mul(MIB)),
            // What is held already is not free.
            MemoryBudget::Auto if self.is_on_cpu() => Ok(free_memory().saturating_add(self.holding.others)),
            MemoryBudget::Auto => {
                let names = self.config.devices.names.iter().filter(|name| **name != DeviceName::CPU);
                let free = names.map(|name| free_memory_of(&name.open().ok()?)).min().flatten();
                let unknown = || Error::ConfigValue {
                    key: "tiling.memory_mib".to_owned(),
                    message: "the free memory of these devices is not known; give a number".to_owned(),
                };
                Ok((free.ok_or_else(unknown)? as f64 * AUTO_SHARE) as u64)
            }
        }
    }

    fn is_on_cpu(&self) -> bool {
        self.config.devices.names.iter().all(|name| *name == DeviceName::CPU)
    }

    /// Whether the CPU computes in f32.
    fn is_f32(&self) -> bool {
        let dtype = self.config.devices.dtype.get(&DeviceName::CPU).unwrap_or(&self.config.model.dtype);
        matches!(dtype, DtypeConfig::Auto | DtypeConfig::F32) || *dtype == DtypeConfig::F16 && self.spec.force_upcast
    }

    fn candidate(&self, grid: &dyn Grid, is_sampled: bool) -> Result<Candidate, Error> {
        let Self { spec, direction, input_shape: [batch, _, frames, height, width], .. } = *self;
        let tiles = TilePlan::new(grid, direction.geometry(spec), [frames, height, width])?;
        let not_seamless = || Error::NotSeamless { family: self.family.to_owned() };
        let coder = direction.coder(spec).ok_or_else(not_seamless)?;
        let per_chunk = self.config.model.frames_per_chunk.get();
        let reading = if self.is_on_cpu() && self.is_f32() { Reading::Fused } else { Reading::Apart };
        if !tiles.is_tiled() {
            let values = StagedPlan::whole_values(coder, [frames, height, width], batch, per_chunk, reading);
            let needed = self.needed(coder, &tiles, values, values, 1);
            return Ok(Candidate { needed, staged: None, stored: 0, multiply_adds: coder.multiply_adds(tiles.input), tiles });
        }
        let staged = StagedPlan::new(coder, tiles.input, cells(&tiles)).ok_or_else(not_seamless)?;
        let staged = if is_sampled { staged.sampled() } else { staged };
        let memory = staged.memory(batch, per_chunk, reading);
        let workers = count_workers(&self.config.devices, self.executor).min(tiles.tiles.len());
        let needed = self.needed(coder, &tiles, memory.tile, memory.whole, workers);
        let multiply_adds = staged.work_ratio() * coder.multiply_adds(tiles.input);
        let stored = with_margin(memory.stored.saturating_mul(F32));
        Ok(Candidate { needed, stored, multiply_adds, staged: Some(Arc::new(staged)), tiles })
    }

    /// Bytes that a run holds besides its store: each worker a tile, or one the whole.
    fn needed(&self, coder: &CoderSpec, tiles: &TilePlan, tile: u64, whole: u64, workers: usize) -> u64 {
        let Holding { both_components, output_value_bytes, others: of_program } = self.holding;
        let other = match self.direction {
            Direction::Decode => &self.spec.encoder,
            Direction::Encode => &self.spec.decoder,
        };
        let others = other.as_ref().filter(|_| both_components).map_or(0, CoderSpec::weight_values);
        let weights = (coder.weight_values() + others) * F32;
        if !self.is_on_cpu() {
            return weights.saturating_add(with_margin(tile.max(whole).saturating_mul(F32)));
        }
        let [batch, channels, ..] = self.input_shape;
        let volume = |size: [usize; 3]| size.iter().fold(1, |volume: u64, &side| volume.saturating_mul(side as u64));
        let channels_out = match self.direction {
            Direction::Decode => self.spec.output_channels,
            Direction::Encode => self.spec.encoder_channels(),
        } as u64;
        let batch = batch as u64;
        let input = volume(tiles.input).saturating_mul(batch * channels as u64 * F32);
        // Answers of tiles wait as f32, those of clips in a scratch file.
        let held = if waits_in_scratch(tiles) { 0 } else { self.executor.held_tiles(tiles, workers) as u64 };
        let answer = tiles.tiles.iter().map(|tile| tile.output.volume() as u64).max().unwrap_or(0);
        let waiting = answer.saturating_mul((held + 1) * F32);
        // Latents are held in f32, with their moments.
        let held = match self.direction {
            Direction::Decode => volume(tiles.output).saturating_mul(output_value_bytes),
            Direction::Encode => volume(tiles.output).saturating_mul(F32 + F32 / 2),
        };
        let output = held.saturating_add(waiting).saturating_mul(batch * channels_out);
        let threads = threads_of(&self.config.devices, self.executor);
        let kernels = coder.kernel_values(threads / workers.max(1)).saturating_mul(workers as u64);
        let running = tile.saturating_mul(workers as u64).max(whole).saturating_add(kernels);
        [PROCESS_BYTES, of_program, weights, input, output, with_margin(running.saturating_mul(F32))].into_iter().fold(0, u64::saturating_add)
    }
}

/// Whether strips and waiting tiles of a run are kept in a scratch file: those of clips.
pub(crate) fn waits_in_scratch(tiles: &TilePlan) -> bool {
    tiles.is_tiled() && tiles.geometry.frames != FrameScale::Same
}

/// Rows and columns of a seamless plan, in latent px.
pub(crate) fn cells(tiles: &TilePlan) -> [Vec<Span>; 2] {
    let scale = tiles.geometry.scale;
    [1, 2].map(|axis| {
        let mut spans: Vec<Span> = tiles.tiles.iter().map(|tile| Span { start: tile.input.start[axis], length: tile.input.size[axis] }).collect();
        spans.sort_unstable_by_key(|span| span.start);
        spans.dedup();
        spans.iter().map(|span| Span { start: scale.latent_px(span.start), length: scale.latent_px(span.length) }).collect()
    })
}
