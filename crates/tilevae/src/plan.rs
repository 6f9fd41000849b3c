use serde::{Deserialize, Serialize};
use tiling::{FrameScale, Geometry, Grid, TilePlan};
use vae_core::VaeSpec;

use crate::workers::{check_devices, count_workers};
use crate::{Config, Error};

const F32: usize = size_of::<f32>();

/// The most bytes that an input or an output may have: 64 PiB, more than there is room for anywhere.
const MOST_BYTES: usize = 1 << 56;

/// The most frames of an input: of a clip of days.
const MOST_FRAMES: usize = 1 << 21;

/// As large as a number can be, where the product is larger.
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

    /// The configured grid. As in diffusers, a model that folds patches into channels counts the tiles of an encode in patches.
    ///
    /// # Errors
    /// When keys of the configuration exclude each other or none of them sets a size.
    pub fn grid(self, config: &Config, spec: &VaeSpec) -> Result<Box<dyn Grid>, Error> {
        let unit_px = match self {
            Self::Decode => 1,
            Self::Encode => spec.patch,
        };
        Ok(config.tiling.build(&spec.grid, unit_px)?)
    }
}

/// Everything about a run that can be known without weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunPlan {
    /// Which way.
    pub direction: Direction,
    /// The family.
    pub family: String,
    /// `[batch, channels, frames, height, width]` of the input.
    pub input_shape: [usize; 5],
    /// `[batch, channels, frames, height, width]` of the output (of an encode: the moments).
    pub output_shape: [usize; 5],
    /// Input px of all tiles against those of the whole.
    pub work_ratio: f64,
    /// Tiles that lie wholly inside a neighbour.
    pub redundant_tiles: usize,
    /// Tile shapes that differ: for each of them a GPU compiles and tunes what it runs.
    pub tile_shapes: usize,
    /// The pieces of frames in which each tile runs.
    pub chunks: usize,
    /// Latent frames in a chunk after the first.
    pub frames_per_chunk: usize,
    /// Workers that run tiles at once.
    pub workers: usize,
    /// Tiles that are begun and not yet blended, at most.
    pub held_tiles: usize,
    /// Bytes on the host and on the device.
    pub bytes: PlanBytes,
    /// The tiles.
    pub tiles: TilePlan,
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
    /// The answers that wait for their turn to be blended, at most: in memory, of clips in a scratch file.
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
    /// Lays the configured grid over an input.
    ///
    /// # Errors
    /// When the model does not take such an input, or the grid cannot be laid.
    pub fn new(config: &Config, family: &str, spec: &VaeSpec, direction: Direction, input_shape: [usize; 5]) -> Result<Self, Error> {
        Self::with_grid(direction.grid(config, spec)?.as_ref(), config, family, spec, direction, input_shape)
    }

    /// Bytes that the scratch file of a clip's run takes at least, in the folder for temporary files.
    pub fn scratch_bytes(&self) -> u64 {
        let is_in_file = self.tiles.is_tiled() && self.tiles.geometry.frames != FrameScale::Same;
        if is_in_file { self.bytes.strips as u64 } else { 0 }
    }

    /// Lays a grid over an input, in place of the configured one.
    ///
    /// # Errors
    /// When the model does not take such an input, or the grid cannot be laid.
    pub fn with_grid(
        grid: &dyn Grid,
        config: &Config,
        family: &str,
        spec: &VaeSpec,
        direction: Direction,
        input_shape: [usize; 5],
    ) -> Result<Self, Error> {
        match direction {
            Direction::Decode => spec.check_latents(input_shape)?,
            Direction::Encode => spec.check_samples(input_shape)?,
        }
        let executor = config.executor.build();
        check_devices(&config.devices, executor.as_ref())?;
        let workers = count_workers(&config.devices, executor.as_ref());
        executor.check_workers(workers)?;
        let [batch, _, frames, height, width] = input_shape;
        let tiles = TilePlan::new(grid, direction.geometry(spec), [frames, height, width])?;
        let channels = match direction {
            Direction::Decode => spec.output_channels,
            Direction::Encode => 2 * spec.latent_channels,
        };
        let output_shape = [batch, channels, tiles.output[0], tiles.output[1], tiles.output[2]];
        for shape in [input_shape, output_shape] {
            if product(&shape) > MOST_BYTES / F32 || frames > MOST_FRAMES {
                return Err(Error::TooLarge { shape });
            }
        }
        let frames_per_chunk = config.model.frames_per_chunk.get();
        let chunks = tiles.geometry.frames.chunks(frames, frames_per_chunk);
        let workers = workers.min(tiles.tiles.len());
        let held_tiles = executor.held_tiles(&tiles, workers);
        let largest_answer = tiles.tiles.iter().map(|tile| tile.output.volume()).max().unwrap_or(0);
        let largest_answer = product(&[largest_answer, batch, channels, F32]);
        // Sample frames that run at once.
        let at_once = match direction {
            Direction::Decode => chunks.iter().map(|chunk| if chunk.start == 0 { 1 } else { chunk.len() * spec.frames.ratio() }).max().unwrap_or(1),
            Direction::Encode => chunks.iter().map(ExactSizeIterator::len).max().unwrap_or(1),
        };
        let latent_px = |size: [usize; 2]| product(&size.map(|side| tiles.geometry.scale.latent_px(side)));
        let [decode_cache, encode_cache] = spec.cache_values_per_latent_px;
        let [decode_peak, encode_peak] = spec.peak_values_per_px;
        let (cache_per_latent_px, peak_per_px) =
            if direction == Direction::Decode { (decode_cache, decode_peak) } else { (encode_cache, encode_peak) };
        // A single frame leaves one frame where there is room for two.
        let cache_per_latent_px = if chunks.len() > 1 { cache_per_latent_px } else { cache_per_latent_px.div_ceil(2) };
        let cache = |size| product(&[batch, latent_px(size), cache_per_latent_px, F32]);
        let peak = |size| {
            let values = product(&[batch, latent_px(size), spec.spatial_ratio, spec.spatial_ratio, peak_per_px, at_once]);
            product(&[values, F32]).saturating_add(cache(size))
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
        Ok(Self {
            direction,
            family: family.to_owned(),
            input_shape,
            output_shape,
            work_ratio: tiles.work_ratio(),
            redundant_tiles: tiles.redundant_tiles(),
            tile_shapes: tiles.shapes().len(),
            chunks: chunks.len(),
            frames_per_chunk,
            workers,
            held_tiles,
            bytes,
            tiles,
        })
    }
}
