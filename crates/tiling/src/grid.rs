use std::fmt;

use serde::Serialize;

use crate::plan::check_count;
use crate::{GridError, Scale};

/// An axis that is cut into tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Axis {
    /// Rows.
    Height,
    /// Columns.
    Width,
}

impl Axis {
    /// Height, then width.
    pub const BOTH: [Self; 2] = [Self::Height, Self::Width];
}

impl fmt::Display for Axis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Height => "height",
            Self::Width => "width",
        })
    }
}

/// The part of one axis that a row or a column of tiles covers, in px.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    /// First px.
    pub start: usize,
    /// Number of px.
    pub length: usize,
}

impl Span {
    /// The px after the last one.
    pub fn end(&self) -> usize {
        self.start + self.length
    }
}

/// Where tiles lie. Downstream crates may bring their own.
pub trait Grid: fmt::Debug + Send + Sync {
    /// The rows and the columns of tiles of an input of `input` px (height, width), in input px.
    ///
    /// Spans start at whole latent px of `scale`, begin at 0 and end at the input's end (but for a remainder that is no latent px), their starts rise and no px lies
    /// between two of them. [`TilePlan::new`](crate::TilePlan::new) refuses others.
    ///
    /// # Errors
    /// When the grid cannot be laid, with the nearest one that can.
    fn spans(&self, scale: Scale, input: [usize; 2]) -> Result<[Vec<Span>; 2], GridError>;

    /// The input px that two neighbours of full size have in common, on each axis, for blend policies whose weights depend on it. By default the most px
    /// that two neighbours of this plan have in common.
    fn nominal_overlap(&self, scale: Scale) -> Option<[usize; 2]> {
        let _ = scale;
        None
    }

    /// Whether the spans are those of the output alone: what a tile reads besides is up to the operation.
    fn is_seamless(&self) -> bool {
        false
    }
}

/// No cuts: one tile.
#[derive(Debug, Clone, Copy, Default)]
pub struct Off;

impl Grid for Off {
    fn spans(&self, _: Scale, input: [usize; 2]) -> Result<[Vec<Span>; 2], GridError> {
        Ok(input.map(|length| vec![Span { start: 0, length }]))
    }
}

/// How far neighbouring tiles reach into each other, for height and width.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// As a share of the tile.
    Share([f64; 2]),
    /// By the distance from tile to tile, in px of the finer side.
    StridePx([usize; 2]),
}

/// The default tiles of a VAE family.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct GridDefaults {
    /// Height and width of a tile, in px of the finer side (sample px for a VAE).
    pub tile_px: [usize; 2],
    /// How far tiles overlap.
    pub overlap: Overlap,
}

impl GridDefaults {
    /// The overlap as a share of the tile.
    pub fn share(&self) -> [f64; 2] {
        match self.overlap {
            Overlap::Share(share) => share,
            Overlap::StridePx(stride) => [0, 1].map(|i| 1.0 - stride[i] as f64 / self.tile_px[i] as f64),
        }
    }
}

/// The grid of diffusers: tiles start at every multiple of the stride while they start inside the input, the last ones are cut short.
///
/// Nothing is cut unless the input is larger than a tile on one axis. With overlap shares, sizes and crops are truncated as in
/// `AutoencoderKL.tiled_decode` and `_tiled_encode`, and refused where those truncations disagree.
#[derive(Debug, Clone, Copy)]
pub struct DiffusersGrid {
    /// Height and width of a tile, in px of the finer side.
    pub tile_px: [usize; 2],
    /// How far tiles overlap.
    pub overlap: Overlap,
    /// Leave out tail tiles that lie wholly inside the tile before them.
    pub skip_redundant: bool,
    /// Px in the units that tiles are counted in, 1 unless a family folds patches of px into channels first: then tile and stride are so many times
    /// as large, but still an input larger than `tile_px` px is cut.
    pub unit_px: usize,
}

impl Grid for DiffusersGrid {
    fn spans(&self, scale: Scale, input: [usize; 2]) -> Result<[Vec<Span>; 2], GridError> {
        let mut steps = [[0; 2]; 2];
        for (i, axis) in Axis::BOTH.into_iter().enumerate() {
            let tile_px = self.tile_px[i];
            check_tile(axis, tile_px, scale.ratio())?;
            let stride_px = match self.overlap {
                Overlap::Share(share) => stride_of_share(axis, scale, tile_px, share[i])?,
                Overlap::StridePx(stride) => check_stride(axis, scale.ratio(), tile_px, stride[i])?,
            };
            let unit_px = self.unit_px.max(1);
            steps[i] = [tile_px, stride_px].map(|px| scale.input(px.saturating_mul(unit_px) / scale.ratio()));
        }
        if (0..2).all(|i| input[i] <= scale.input(self.tile_px[i] / scale.ratio())) {
            return Off.spans(scale, input);
        }
        check_count([0, 1].map(|i| input[i].div_ceil(steps[i][1])))?;
        Ok([0, 1].map(|i| {
            let [tile, stride] = steps[i];
            let mut spans: Vec<Span> = Vec::new();
            for start in (0..input[i]).step_by(stride) {
                let span = Span { start, length: tile.min(input[i] - start) };
                let redundant = spans.last().is_some_and(|last| last.end() >= span.end());
                if scale.latent_px(span.length) == 0 || (self.skip_redundant && redundant) {
                    break;
                }
                spans.push(span);
            }
            spans
        }))
    }
}

fn check_tile(axis: Axis, tile_px: usize, ratio: usize) -> Result<(), GridError> {
    if tile_px == 0 || !tile_px.is_multiple_of(ratio) {
        let nearest = (tile_px.saturating_add(ratio / 2) / ratio).max(1) * ratio;
        return Err(GridError::TileUnaligned { axis, tile_px, ratio, nearest });
    }
    Ok(())
}

fn check_stride(axis: Axis, ratio: usize, tile_px: usize, stride_px: usize) -> Result<usize, GridError> {
    if stride_px == 0 || stride_px > tile_px || !stride_px.is_multiple_of(ratio) {
        let nearest = ((stride_px.min(tile_px).saturating_add(ratio / 2) / ratio).max(1) * ratio).min(tile_px);
        return Err(GridError::StrideIllegal { axis, stride_px, ratio, tile_px, nearest });
    }
    Ok(stride_px)
}

/// The stride and the crop in px of the finer side, truncated on the sides where diffusers truncates them.
fn stride_and_crop(scale: Scale, tile_px: usize, share: f64) -> [usize; 2] {
    let ratio = scale.ratio();
    let (stepped, cropped, to_px) = match scale {
        Scale::Up(_) => (tile_px / ratio, tile_px, [ratio, 1]),
        Scale::Down(_) => (tile_px, tile_px / ratio, [1, ratio]),
    };
    let stride = (stepped as f64 * (1.0 - share)) as usize;
    let crop = cropped - (cropped as f64 * share) as usize;
    [stride * to_px[0], crop * to_px[1]]
}

/// How many strides on either side are tried for one that is legal.
const SEARCHED: usize = 1 << 12;

fn stride_of_share(axis: Axis, scale: Scale, tile_px: usize, share: f64) -> Result<usize, GridError> {
    let aligned = |share| {
        let [stride, crop] = stride_and_crop(scale, tile_px, share);
        stride == crop && stride > 0
    };
    let nearest = || {
        let latent_px = tile_px / scale.ratio();
        // Around the stride that was asked for: strides much further away are no nearer.
        let asked = ((latent_px as f64 * (1.0 - share)) as usize).clamp(1, latent_px.max(1));
        let strides = asked.saturating_sub(SEARCHED).max(1)..=asked.saturating_add(SEARCHED).min(latent_px);
        let shares = strides.map(|stride| 1.0 - stride as f64 / latent_px as f64).filter(|&share| aligned(share));
        shares.min_by(|a, b| (a - share).abs().total_cmp(&(b - share).abs())).unwrap_or(0.0)
    };
    if !(0.0..1.0).contains(&share) {
        return Err(GridError::OverlapOutOfRange { axis, overlap: share, nearest: nearest() });
    }
    let [stride_px, crop_px] = stride_and_crop(scale, tile_px, share);
    if !aligned(share) {
        let nearest = nearest();
        let [nearest_stride_px, _] = stride_and_crop(scale, tile_px, nearest);
        return Err(GridError::OverlapUnaligned { axis, overlap: share, tile_px, stride_px, crop_px, nearest, nearest_stride_px });
    }
    Ok(stride_px)
}

/// Tiles that share no px: on each axis the fewest of at most this size, all about as large. Each reads what its px depend on, so that together they are the
/// output of the whole.
#[derive(Debug, Clone, Copy)]
pub struct Seamless {
    /// The largest height and width of a tile, in px of the finer side.
    pub tile_px: [usize; 2],
}

impl Grid for Seamless {
    fn spans(&self, scale: Scale, input: [usize; 2]) -> Result<[Vec<Span>; 2], GridError> {
        let mut counts = [0; 2];
        for (i, axis) in Axis::BOTH.into_iter().enumerate() {
            check_tile(axis, self.tile_px[i], scale.ratio())?;
            counts[i] = scale.latent_px(input[i]).div_ceil(self.tile_px[i] / scale.ratio());
        }
        check_count(counts)?;
        Ok([0, 1].map(|i| {
            let (latent_px, count) = (scale.latent_px(input[i]), counts[i]);
            let start = |n: usize| if n == count { input[i] } else { scale.input(n * latent_px / count) };
            (0..count).map(|n| Span { start: start(n), length: start(n + 1) - start(n) }).collect()
        }))
    }

    fn is_seamless(&self) -> bool {
        true
    }
}

/// A balanced grid: on each axis the fewest tiles that do, all of one size, spread evenly, with at least the overlap asked for.
#[derive(Debug, Clone, Copy)]
pub struct Uniform {
    /// What sets the number of tiles.
    pub size: UniformSize,
    /// The least overlap of neighbours, as a share of the tile, for height and width.
    pub overlap: [f64; 2],
}

/// What sets the number of tiles of a [`Uniform`] grid.
#[derive(Debug, Clone, Copy)]
pub enum UniformSize {
    /// Tiles of at most this height and width, in px of the finer side.
    TilePx([usize; 2]),
    /// This many rows and columns.
    Splits([usize; 2]),
}

impl Uniform {
    /// Tiles of at most `tile_px` that overlap by at least `overlap_px` (height, width; px of the finer side).
    pub fn with_tile(tile_px: [usize; 2], overlap_px: [usize; 2]) -> Self {
        let overlap = [0, 1].map(|i| overlap_px[i] as f64 / tile_px[i] as f64);
        Self { size: UniformSize::TilePx(tile_px), overlap }
    }

    /// The number of tiles on an axis of `latent_px` latent_px, and the size of each in latent px.
    fn count_and_size(&self, i: usize, latent_px: usize, ratio: usize) -> Result<(usize, usize), GridError> {
        let (axis, share) = (Axis::BOTH[i], self.overlap[i]);
        let overlap_of = |tile: usize| (tile as f64 * share - 1e-9).ceil() as usize;
        if !(0.0..1.0).contains(&share) {
            return Err(GridError::OverlapOutOfRange { axis, overlap: share, nearest: if share < 0.0 { 0.0 } else { 0.5 } });
        }
        match self.size {
            UniformSize::TilePx(tile_px) => {
                check_tile(axis, tile_px[i], ratio)?;
                let tile = tile_px[i] / ratio;
                if latent_px <= tile {
                    return Ok((1, latent_px));
                }
                let overlap = overlap_of(tile);
                if overlap >= tile {
                    return Err(GridError::OverlapOutOfRange { axis, overlap: share, nearest: (tile - 1) as f64 / tile as f64 });
                }
                let count = (latent_px - overlap).div_ceil(tile - overlap);
                check_count([count, 1])?;
                Ok((count, (latent_px + (count - 1) * overlap).div_ceil(count)))
            }
            UniformSize::Splits(splits) => {
                let count = splits[i];
                if count == 0 || count > latent_px {
                    return Err(GridError::SplitsIllegal { axis, splits: count, latent_px });
                }
                check_count([count, 1])?;
                // Each latent px more of a tile covers more of the axis, as the overlap grows more slowly.
                let fits = |tile: usize| count * tile >= latent_px + (count - 1) * overlap_of(tile);
                let [mut least, mut most] = [latent_px.div_ceil(count), latent_px];
                while least < most {
                    let middle = usize::midpoint(least, most);
                    [least, most] = if fits(middle) { [least, middle] } else { [middle + 1, most] };
                }
                Ok((count, least))
            }
        }
    }
}

impl Grid for Uniform {
    fn spans(&self, scale: Scale, input: [usize; 2]) -> Result<[Vec<Span>; 2], GridError> {
        let latent_px = input.map(|length| scale.latent_px(length));
        let sizes = [self.count_and_size(0, latent_px[0], scale.ratio())?, self.count_and_size(1, latent_px[1], scale.ratio())?];
        check_count(sizes.map(|(count, _)| count))?;
        let mut axes = [Vec::new(), Vec::new()];
        for (i, spans) in axes.iter_mut().enumerate() {
            let (latent_px, (count, tile)) = (latent_px[i], sizes[i]);
            let mut starts: Vec<usize> = (0..count).map(|n| n * (latent_px - tile) / (count - 1).max(1)).collect();
            starts.dedup();
            spans.extend(starts.into_iter().map(|start| {
                let end = if start + tile == latent_px { input[i] } else { scale.input(start + tile) };
                Span { start: scale.input(start), length: end - scale.input(start) }
            }));
        }
        Ok(axes)
    }
}
