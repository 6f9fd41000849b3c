//! The tiles of `AutoencoderTiny` in diffusers, as a grid and a blend policy that configurations can name.

use serde::{Deserialize, Serialize};
use tiling::{Axis, BlendKind, BlendPolicy, Corner, Grid, GridContext, GridError, GridKind, Scale, Seam, Span};

tiling::register_grid!(TinyGrid);
tiling::register_blend!(TinyBlend);

/// Tiles that start at every multiple of the stride inside the input; the last ones are cut short (diffusers, `_tiled_decode` and `_tiled_encode`).
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TinyGrid {
    /// Height and width of a tile, in sample px.
    pub tile_px: usize,
    /// The share of a tile that it has in common with its neighbour, at most half.
    pub overlap: f64,
}

impl Default for TinyGrid {
    fn default() -> Self {
        Self { tile_px: 512, overlap: 0.125 }
    }
}

impl GridKind for TinyGrid {
    const NAME: &'static str = "tiny";

    fn build(&self, context: &GridContext<'_>) -> Result<Box<dyn Grid>, GridError> {
        let (tile_px, ratio, axis) = (self.tile_px, context.scale.ratio(), Axis::Height);
        if tile_px == 0 || !tile_px.is_multiple_of(ratio) {
            return Err(GridError::TileUnaligned { axis, tile_px, ratio, nearest: tile_px.div_ceil(ratio).max(1) * ratio });
        }
        if !(0.0..=0.5).contains(&self.overlap) {
            return Err(GridError::OverlapOutOfRange { axis, overlap: self.overlap, nearest: if self.overlap > 0.5 { 0.5 } else { 0.0 } });
        }
        Ok(Box::new(*self))
    }
}

impl TinyGrid {
    /// A tile and its overlap, in input px.
    fn tile_and_overlap(&self, scale: Scale) -> [usize; 2] {
        let latent_px = self.tile_px / scale.ratio();
        [latent_px, (latent_px as f64 * self.overlap) as usize].map(|length| scale.input(length))
    }
}

impl Grid for TinyGrid {
    fn spans(&self, scale: Scale, input: [usize; 2]) -> Result<[Vec<Span>; 2], GridError> {
        let [tile, overlap] = self.tile_and_overlap(scale);
        Ok(input.map(|length| {
            let spans = (0..length).step_by(tile - overlap).map(|start| Span { start, length: tile.min(length - start) });
            spans.filter(|span| scale.latent_px(span.length) > 0).collect()
        }))
    }

    fn nominal_overlap(&self, scale: Scale) -> Option<[usize; 2]> {
        Some([self.tile_and_overlap(scale)[1]; 2])
    }
}

/// Each tile over the earlier ones, through a mask that rises from 0 to 1 over the overlap of tiles of full size (diffusers, `blend_masks`).
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TinyBlend {}

impl BlendKind for TinyBlend {
    const NAME: &'static str = "tiny";

    fn build(&self) -> Box<dyn BlendPolicy> {
        Box::new(*self)
    }
}

impl BlendPolicy for TinyBlend {
    fn weight(&self, offset: usize, seam: &Seam) -> f64 {
        (offset as f64 / seam.nominal.saturating_sub(1).max(1) as f64).min(1.0)
    }

    fn corner(&self) -> Corner {
        Corner::Mask
    }
}
