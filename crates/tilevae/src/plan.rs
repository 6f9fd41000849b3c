use serde::{Deserialize, Serialize};
use tiling::{Geometry, Grid, TilePlan};
use vae_core::VaeSpec;

use crate::{Config, Error};

const F32: usize = size_of::<f32>();

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
    /// The output, which the host holds beside the band.
    pub output: usize,
    /// What the compositor holds to blend with: a band of tiles and the strips above it.
    pub band: usize,
    /// What the device holds at the peak of the largest tile, without weights; an estimate.
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
        Self::with_grid(config.tiling.build(&spec.grid)?.as_ref(), family, spec, direction, input_shape)
    }

    /// Lays a grid over an input.
    ///
    /// # Errors
    /// When the model does not take such an input, or the grid cannot be laid.
    pub fn with_grid(grid: &dyn Grid, family: &str, spec: &VaeSpec, direction: Direction, input_shape: [usize; 5]) -> Result<Self, Error> {
        match direction {
            Direction::Decode => spec.check_latents(input_shape)?,
            Direction::Encode => spec.check_samples(input_shape)?,
        }
        let [batch, _, frames, height, width] = input_shape;
        let tiles = TilePlan::new(grid, direction.geometry(spec), [frames, height, width])?;
        let channels = match direction {
            Direction::Decode => spec.output_channels,
            Direction::Encode => 2 * spec.latent_channels,
        };
        let output_shape = [batch, channels, tiles.output[0], tiles.output[1], tiles.output[2]];
        let peak = |[height, width]: [usize; 2]| {
            let cell = match direction {
                Direction::Decode => spec.spatial_ratio,
                Direction::Encode => 1,
            };
            batch * height * cell * width * cell * spec.peak_values_per_px * F32
        };
        let bytes = PlanBytes {
            input: input_shape.iter().product::<usize>() * F32,
            output: output_shape.iter().product::<usize>() * F32,
            band: batch * channels * tiles.band_px() * F32,
            largest_tile: peak(tiles.largest_tile()),
            untiled: peak([height, width]),
        };
        Ok(Self {
            direction,
            family: family.to_owned(),
            input_shape,
            output_shape,
            work_ratio: tiles.work_ratio(),
            redundant_tiles: tiles.redundant_tiles(),
            bytes,
            tiles,
        })
    }
}
