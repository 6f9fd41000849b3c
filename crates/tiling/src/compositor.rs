use std::collections::BTreeMap;

use crate::plan::shared;
use crate::{BlendPolicy, Block, BoxError, CompositeError, Corner, RowSink, TilePlan};

/// Blends tiles and hands finished rows to a sink.
///
/// Tiles may come in any order; they are blended in raster order, so the answer is the same bytes whatever the order. What is held is one band of
/// tiles, the strips that the next band blends with, and the tiles that came early.
pub struct Compositor<'a> {
    plan: &'a TilePlan,
    policy: &'a dyn BlendPolicy,
    sink: &'a mut dyn RowSink,
    early: BTreeMap<usize, Block>,
    next: usize,
    /// Batch and channels, known from the first tile on.
    channels: Option<[usize; 2]>,
    /// The rows being put together, over the whole width.
    band: Option<Block>,
    /// What the band above left for this one: a strip a tile (cascade), or one over the whole width (separable).
    above: Vec<Block>,
    below: Vec<Block>,
    /// The trailing columns of the tile to the left (cascade).
    left: Option<Block>,
}

impl<'a> Compositor<'a> {
    /// A compositor that waits for the tiles of `plan`.
    pub fn new(plan: &'a TilePlan, policy: &'a dyn BlendPolicy, sink: &'a mut dyn RowSink) -> Self {
        Self { plan, policy, sink, early: BTreeMap::new(), next: 0, channels: None, band: None, above: Vec::new(), below: Vec::new(), left: None }
    }

    /// Takes the answer for the tile `index`.
    ///
    /// # Errors
    /// When the tile is not waited for or has not the planned shape, or when the sink fails.
    pub fn push(&mut self, index: usize, answer: Block) -> Result<(), CompositeError> {
        let tile = self.plan.tiles.get(index).filter(|_| index >= self.next && !self.early.contains_key(&index));
        let tile = tile.ok_or(CompositeError::UnexpectedTile { tile: index })?;
        if answer.extent() != tile.output.size {
            return Err(CompositeError::TileShape { tile: index, got: answer.extent(), expected: tile.output.size });
        }
        let got = [answer.shape()[0], answer.shape()[1]];
        let expected = *self.channels.get_or_insert(got);
        if got != expected {
            return Err(CompositeError::TileChannels { tile: index, got, expected });
        }
        self.early.insert(index, answer);
        while let Some(answer) = self.early.remove(&self.next) {
            self.place(self.next, answer)?;
            self.next += 1;
        }
        Ok(())
    }

    /// Ends the run.
    ///
    /// # Errors
    /// When tiles are missing.
    pub fn finish(self) -> Result<(), CompositeError> {
        let total = self.plan.tiles.len();
        let missing = total - self.next - self.early.len();
        if self.next < total { Err(CompositeError::Unfinished { missing, total }) } else { Ok(()) }
    }

    fn place(&mut self, index: usize, tile: Block) -> Result<(), CompositeError> {
        let [row, column] = self.plan.tiles[index].cell;
        let kept = kept(&self.plan.rows, row);
        let [b, c, t, height, _] = tile.shape();
        let band_height = match self.policy.corner() {
            Corner::Cascade => kept,
            Corner::Separable => height,
        };
        let mut band = self.band.take().unwrap_or_else(|| Block::zeros([b, c, t, band_height, self.plan.output[2]]));
        match self.policy.corner() {
            Corner::Cascade => self.place_cascade(&mut band, tile, [row, column]),
            Corner::Separable => self.place_separable(&mut band, &tile, column),
        }
        if column + 1 < self.plan.columns.len() {
            self.band = Some(band);
            return Ok(());
        }
        if self.policy.corner() == Corner::Separable {
            if let Some(above) = self.above.first() {
                blend_rows(above, &mut band, &self.ramp(shared(&self.plan.rows, row)));
            }
            self.below.push(band.window([kept, 0], [height - kept, self.plan.output[2]]));
            band = band.window([0, 0], [kept, self.plan.output[2]]);
        }
        self.above = std::mem::take(&mut self.below);
        self.left = None;
        self.sink.rows(self.plan.rows[row].start, self.plan.output, band).map_err(CompositeError::Sink)
    }

    fn place_cascade(&mut self, band: &mut Block, mut tile: Block, [row, column]: [usize; 2]) {
        let (rows, columns) = (&self.plan.rows, &self.plan.columns);
        if let Some(above) = self.above.get(column) {
            blend_rows(above, &mut tile, &self.ramp(shared(rows, row)));
        }
        if let Some(left) = &self.left {
            blend_columns(left, &mut tile, &self.ramp(shared(columns, column)));
        }
        let kept = [kept(rows, row), kept(columns, column)];
        let [_, _, _, height, width] = tile.shape();
        if row + 1 < rows.len() {
            self.below.push(tile.window([kept[0], 0], [height - kept[0], width]));
        }
        self.left = (column + 1 < columns.len()).then(|| tile.window([0, kept[1]], [height, width - kept[1]]));
        band.paste(&tile, [0, columns[column].start], kept);
    }

    fn place_separable(&self, band: &mut Block, tile: &Block, column: usize) {
        let start = self.plan.columns[column].start;
        let ramp = self.ramp(shared(&self.plan.columns, column));
        for plane in 0..tile.planes() {
            for y in 0..tile.shape()[3] {
                let (fresh, held) = (tile.row(plane, y), &mut band.row_mut(plane, y)[start..]);
                for ((held, &fresh), &[earlier, later]) in held.iter_mut().zip(fresh).zip(&ramp) {
                    *held = *held * earlier + fresh * later;
                }
                held[ramp.len()..fresh.len()].copy_from_slice(&fresh[ramp.len()..]);
            }
        }
    }

    /// The weights of the earlier and the later tile over an overlap: computed in f64 and rounded once, as diffusers does.
    fn ramp(&self, extent: usize) -> Vec<[f32; 2]> {
        let weights = (0..extent).map(|offset| self.policy.weight(offset, extent));
        weights.map(|later| [(1.0 - later) as f32, later as f32]).collect()
    }
}

/// Px of span `i` that no later span covers.
fn kept(spans: &[crate::Span], i: usize) -> usize {
    spans.get(i + 1).map_or(spans[i].length, |next| next.start - spans[i].start)
}

fn blend_rows(above: &Block, tile: &mut Block, ramp: &[[f32; 2]]) {
    for plane in 0..tile.planes() {
        for (y, &[earlier, later]) in ramp.iter().enumerate() {
            for (value, &other) in tile.row_mut(plane, y).iter_mut().zip(above.row(plane, y)) {
                *value = other * earlier + *value * later;
            }
        }
    }
}

fn blend_columns(left: &Block, tile: &mut Block, ramp: &[[f32; 2]]) {
    for plane in 0..tile.planes() {
        for y in 0..tile.shape()[3] {
            for ((value, &other), &[earlier, later]) in tile.row_mut(plane, y).iter_mut().zip(left.row(plane, y)).zip(ramp) {
                *value = other * earlier + *value * later;
            }
        }
    }
}

/// A sink that keeps the whole output in memory.
#[derive(Debug)]
pub struct Canvas(Block);

impl Default for Canvas {
    fn default() -> Self {
        Self(Block::zeros([0; 5]))
    }
}

impl Canvas {
    /// The output; empty when no rows came.
    pub fn into_block(self) -> Block {
        self.0
    }
}

impl RowSink for Canvas {
    fn rows(&mut self, top: usize, [frames, height, width]: [usize; 3], rows: Block) -> Result<(), BoxError> {
        let [b, c, _, count, _] = rows.shape();
        if count == height {
            self.0 = rows;
            return Ok(());
        }
        if self.0.data().is_empty() {
            self.0 = Block::zeros([b, c, frames, height, width]);
        }
        self.0.paste(&rows, [top, 0], [count, width]);
        Ok(())
    }
}
