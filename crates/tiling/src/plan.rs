use serde::Serialize;

use crate::{Axis, FrameScale, Geometry, Grid, GridError, Party, Region, Scale, Span, guard};

/// One tile of a plan.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tile {
    /// Its place in raster order.
    pub index: usize,
    /// Its row and column in the grid.
    pub grid_position: [usize; 2],
    /// The input region that it reads.
    pub input: Region,
    /// The output region, before blending and cropping.
    pub output: Region,
    /// Rows shared with the tile above and columns shared with the tile to the left, in output px.
    pub overlap: [usize; 2],
    /// Whether it lies wholly inside the tile above or to the left.
    pub redundant: bool,
}

/// The tiles of an input: integers alone, made without weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TilePlan {
    /// How input maps to output.
    pub geometry: Geometry,
    /// Frames, height and width of the input.
    pub input: [usize; 3],
    /// Frames, height and width of the output.
    pub output: [usize; 3],
    /// The rows of the grid, in output px.
    pub rows: Vec<Span>,
    /// The columns of the grid, in output px.
    pub columns: Vec<Span>,
    /// Tiles in raster order.
    pub tiles: Vec<Tile>,
    /// Output px that two neighbours of full size have in common, on each axis.
    #[serde(skip)]
    pub(crate) nominal_overlap: [usize; 2],
}

/// The most tiles of a plan.
pub(crate) const MOST_TILES: usize = 1 << 18;

/// The longest side of an input or output, in px, and the most frames.
const MOST_PX: usize = 1 << 31;
const MOST_FRAMES: usize = 1 << 22;

/// Refuses more tiles than can be planned.
pub(crate) fn check_count(tiles: [usize; 2]) -> Result<(), GridError> {
    if tiles[0].saturating_mul(tiles[1]) > MOST_TILES { Err(GridError::TooManyTiles { tiles, most: MOST_TILES }) } else { Ok(()) }
}

impl TilePlan {
    /// Lays `grid` over an input of `[frames, height, width]`.
    ///
    /// # Errors
    /// When the grid cannot be laid, or not as [`Grid::spans`] says, or the input is too small for a single output px or too large to be counted.
    pub fn new(grid: &dyn Grid, geometry: Geometry, input: [usize; 3]) -> Result<Self, GridError> {
        check_geometry(geometry)?;
        let scale = geometry.scale;
        if input[0] == 0 {
            return Err(GridError::NoFrames);
        }
        let sides = [1, 2].map(|axis| input[axis].saturating_mul(if matches!(scale, Scale::Up(_)) { scale.ratio() } else { 1 }));
        if input[0] > MOST_FRAMES || sides.iter().any(|&side| side > MOST_PX) {
            return Err(GridError::InputTooLarge { size: input, most_frames: MOST_FRAMES, most_px: MOST_PX });
        }
        for (axis, length) in Axis::BOTH.into_iter().zip([input[1], input[2]]) {
            if scale.latent_px(length) == 0 {
                return Err(GridError::InputTooSmall { axis, length, minimum: scale.input(1) });
            }
        }
        let inputs = guard(Party::Grid, || grid.spans(scale, [input[1], input[2]]))??;
        check_count(inputs.each_ref().map(Vec::len))?;
        for ((axis, spans), length) in Axis::BOTH.into_iter().zip(&inputs).zip([input[1], input[2]]) {
            check_spans(axis, spans, scale, length)?;
        }
        let outputs = inputs.each_ref().map(|spans| spans.iter().map(|span| output_span(geometry, span)).collect::<Vec<_>>());
        let output = geometry.output(input);
        let mut tiles = Vec::with_capacity(inputs[0].len() * inputs[1].len());
        for (row, tall) in inputs[0].iter().enumerate() {
            for (column, wide) in inputs[1].iter().enumerate() {
                let (y, x) = (&outputs[0], &outputs[1]);
                tiles.push(Tile {
                    index: tiles.len(),
                    grid_position: [row, column],
                    input: Region { start: [0, tall.start, wide.start], size: [input[0], tall.length, wide.length] },
                    output: Region { start: [0, y[row].start, x[column].start], size: [output[0], y[row].length, x[column].length] },
                    overlap: [shared(y, row), shared(x, column)],
                    redundant: (row > 0 && shared(y, row) == y[row].length) || (column > 0 && shared(x, column) == x[column].length),
                });
            }
        }
        let of_grid = guard(Party::Grid, || grid.nominal_overlap(scale))?;
        let most_shared = |axis: usize| (0..outputs[axis].len()).map(|i| shared(&outputs[axis], i)).max().unwrap_or(0);
        let nominal_overlap = [0, 1].map(|axis| of_grid.map_or_else(|| most_shared(axis), |px| scale.output(scale.latent_px(px[axis]))));
        let [rows, columns] = outputs;
        Ok(Self { geometry, input, output, rows, columns, tiles, nominal_overlap })
    }

    /// Tiles that read `regions` of an input of `[frames, height, width]`, and whose outputs are the cells of `rows` and `columns`, which do not overlap; both in
    /// raster order.
    ///
    /// # Panics
    /// When there are not as many regions as cells.
    pub fn of_cells(geometry: Geometry, input: [usize; 3], regions: Vec<Region>, frames: usize, rows: Vec<Span>, columns: Vec<Span>) -> Self {
        assert_eq!(regions.len(), rows.len() * columns.len(), "regions");
        let tile = |(index, input): (usize, Region)| {
            let grid_position = [index / columns.len(), index % columns.len()];
            let (tall, wide) = (rows[grid_position[0]], columns[grid_position[1]]);
            let output = Region { start: [0, tall.start, wide.start], size: [frames, tall.length, wide.length] };
            Tile { index, grid_position, input, output, overlap: [0, 0], redundant: false }
        };
        let tiles = regions.into_iter().enumerate().map(tile).collect();
        let end = |spans: &[Span]| spans.last().map_or(0, Span::end);
        Self { geometry, input, output: [frames, end(&rows), end(&columns)], rows, columns, tiles, nominal_overlap: [0, 0] }
    }

    /// Whether there is more than one tile.
    pub fn is_tiled(&self) -> bool {
        self.tiles.len() > 1
    }

    /// Input px of all tiles over those of the whole input: 1 is untiled, 1.5 is half as much work again.
    pub fn work_ratio(&self) -> f64 {
        let volume = |size: [usize; 3]| size.iter().map(|&side| side as f64).product::<f64>();
        let work: f64 = self.tiles.iter().map(|tile| volume(tile.input.size)).sum();
        work / volume(self.input)
    }

    /// The number of tiles that lie wholly inside a neighbour.
    pub fn redundant_tiles(&self) -> usize {
        self.tiles.iter().filter(|tile| tile.redundant).count()
    }

    /// Frames, height and width of the input tiles: each shape once, in the order in which they occur.
    pub fn shapes(&self) -> Vec<[usize; 3]> {
        let mut shapes: Vec<[usize; 3]> = Vec::new();
        for tile in &self.tiles {
            if !shapes.contains(&tile.input.size) {
                shapes.push(tile.input.size);
            }
        }
        shapes
    }

    /// Height and width of the largest input tile.
    pub fn largest_tile(&self) -> [usize; 2] {
        [1, 2].map(|axis| self.tiles.iter().map(|tile| tile.input.size[axis]).max().unwrap_or(0))
    }

    /// The most tiles that are begun and not yet blended, when `workers` have `at_once` tiles in work each: as many again may wait for an earlier tile, and
    /// two more for each worker. Executors begin no tile beyond that, however slow the sink is.
    pub fn held_tiles(&self, workers: usize, at_once: usize) -> usize {
        self.tiles.len().min(workers.saturating_mul(at_once.saturating_add(1)).saturating_mul(2))
    }

    /// The most output px of the strips that the compositor holds when tiles come in raster order: those below a row of tiles, and one beside a tile.
    pub fn strip_px(&self) -> usize {
        let widest = |spans: &[Span]| (1..spans.len()).map(|i| shared(spans, i)).max().unwrap_or(0);
        let tallest = self.rows.iter().map(|span| span.length).max().unwrap_or(0);
        let width: usize = self.columns.iter().map(|span| span.length).sum();
        let px = widest(&self.rows).saturating_mul(width).saturating_add(tallest.saturating_mul(widest(&self.columns)));
        px.saturating_mul(self.output[0])
    }
}

fn check_geometry(geometry: Geometry) -> Result<(), GridError> {
    let frames = match geometry.frames {
        FrameScale::Same => 1,
        FrameScale::CausalUp(ratio) | FrameScale::CausalDown(ratio) => ratio,
    };
    let units = [("ratio of px", geometry.scale.ratio()), ("ratio of frames", frames), ("blend_unit", geometry.blend_unit)];
    units.into_iter().try_for_each(|(what, unit)| if unit == 0 { Err(GridError::Geometry { what }) } else { Ok(()) })
}

/// Checks that spans are as [`Grid::spans`] demands.
fn check_spans(axis: Axis, spans: &[Span], scale: Scale, length: usize) -> Result<(), GridError> {
    let (Some(_), Some(last)) = (spans.first(), spans.last()) else { return Err(GridError::NoSpans { axis }) };
    let bad = |index: usize, problem: String| Err(GridError::BadSpan { axis, index, span: spans[index], problem });
    let end_of = |span: &Span| scale.latent_px(span.start) + scale.latent_px(span.length);
    for (index, span) in spans.iter().enumerate() {
        let before = index.checked_sub(1).map(|before| spans[before]);
        if span.start.checked_add(span.length).is_none_or(|end| end > length) {
            return bad(index, format!("reaches past the input's {length} px"));
        }
        if scale.latent_px(span.length) == 0 {
            return bad(index, format!("is shorter than the {} px that are needed", scale.input(1)));
        }
        if !span.start.is_multiple_of(scale.input(1)) {
            return bad(index, format!("does not start at a multiple of {} px", scale.input(1)));
        }
        match before {
            None if span.start > 0 => return bad(index, "does not start at 0".to_owned()),
            Some(before) if span.start <= before.start => return bad(index, format!("does not start after the one before it (px {})", before.start)),
            Some(before) if scale.latent_px(span.start) > end_of(&before) => {
                return bad(index, format!("leaves a gap: the one before it ends at px {}", before.end()));
            }
            _ => {}
        }
    }
    if end_of(last) < scale.latent_px(length) {
        return bad(spans.len() - 1, format!("is the last, and the input ends at px {length}"));
    }
    Ok(())
}

fn output_span(geometry: Geometry, input: &Span) -> Span {
    let scale = geometry.scale;
    Span { start: scale.output(scale.latent_px(input.start)), length: scale.output(scale.latent_px(input.length)) }
}

/// Px that span `i` shares with the one before it.
pub(crate) fn shared(spans: &[Span], i: usize) -> usize {
    if i == 0 { 0 } else { spans[i - 1].end().min(spans[i].end()) - spans[i].start }
}
