use std::collections::VecDeque;
use std::collections::btree_map::{BTreeMap, Entry};

use crate::plan::shared;
use crate::spill_store::{Kept, SpillStore};
use crate::{Axis, BlendPolicy, BoxError, CompositeError, Corner, HostTensor, Party, ScratchFile, Seam, Sink, TilePlan, guard};

/// Blends tiles and hands finished parts to a sink.
///
/// Tiles may come in any order, each in pieces of whole frames. They are blended in raster order, so that the output is the same bytes for any order.
/// It holds the strips that later tiles blend with, and the tiles that came early.
pub struct Compositor<'a> {
    plan: &'a TilePlan,
    policy: &'a dyn BlendPolicy,
    /// The values of the policy, once computed.
    blend: Option<Blend>,
    sink: &'a mut dyn Sink,
    /// Frames of each tile that have come.
    received: Vec<usize>,
    /// Pieces of tiles that come later in raster order.
    early: BTreeMap<usize, Vec<Kept>>,
    /// The tile that is blended next, and its frames that are blended.
    next: usize,
    placed: usize,
    /// Batch and channels, known from the first piece on.
    channels: Option<[usize; 2]>,
    spill_store: SpillStore,
    /// Strips of the tiles above and to the left, one for each frame, that later tiles blend with.
    above: Vec<VecDeque<Kept>>,
    below: Vec<VecDeque<Kept>>,
    left: VecDeque<Kept>,
    right: VecDeque<Kept>,
}

/// The values of a blend policy.
struct Blend {
    corner: Corner,
    /// The weights of the earlier and the later tile for each px of an overlap, by axis and length of the overlap.
    ramps: [BTreeMap<usize, Vec<[f32; 2]>>; 2],
}

impl<'a> Compositor<'a> {
    /// A compositor that waits for the tiles of `plan`.
    pub fn new(plan: &'a TilePlan, policy: &'a dyn BlendPolicy, sink: &'a mut dyn Sink) -> Self {
        let strips = || plan.columns.iter().map(|_| VecDeque::new()).collect();
        Self {
            plan,
            policy,
            blend: None,
            sink,
            received: vec![0; plan.tiles.len()],
            early: BTreeMap::new(),
            next: 0,
            placed: 0,
            channels: None,
            spill_store: SpillStore::default(),
            above: strips(),
            below: strips(),
            left: VecDeque::new(),
            right: VecDeque::new(),
        }
    }

    /// Keeps the strips that later tiles blend with, and tiles that come early, in a file, so that memory does not grow with the number of frames.
    #[must_use]
    pub fn with_scratch(self, file: ScratchFile) -> Self {
        Self { spill_store: SpillStore::in_file(file), ..self }
    }

    /// Computes the blend policy's weights, unless that is done. [`push`](Self::push) does it, too, but only after the first tile was run.
    ///
    /// # Errors
    /// When a weight is not from 0 to 1, or the policy panics.
    pub fn prepare(&mut self) -> Result<(), CompositeError> {
        if self.blend.is_some() {
            return Ok(());
        }
        let (plan, policy) = (self.plan, self.policy);
        let mut blend = Blend { corner: guard(Party::Blend, || policy.corner())?, ramps: Default::default() };
        for (i, (axis, spans)) in Axis::BOTH.into_iter().zip([&plan.rows, &plan.columns]).enumerate() {
            for px in (0..spans.len()).map(|span| shared(spans, span)) {
                if let Entry::Vacant(ramp) = blend.ramps[i].entry(px) {
                    let unit = plan.geometry.blend_unit;
                    let [extent, nominal] = [px, plan.nominal_overlap[i]].map(|px| px.div_ceil(unit));
                    let seam = Seam { scale: plan.geometry.scale, axis, extent, nominal };
                    ramp.insert(guard(Party::Blend, || ramp_of(policy, unit, px, &seam))??);
                }
            }
        }
        self.blend = Some(blend);
        Ok(())
    }

    /// Takes the next frames of the output of the tile `index`. A piece that is refused changes nothing. After a failure of the sink no more may be pushed.
    ///
    /// # Errors
    /// When the tile is complete already, or has another shape than the plan says, when the sink fails or panics, or as [`prepare`](Self::prepare).
    pub fn push(&mut self, index: usize, piece: HostTensor) -> Result<(), CompositeError> {
        self.prepare()?;
        let frames = self.plan.output[0];
        let tile = self.plan.tiles.get(index).filter(|_| self.received[index] < frames);
        let tile = tile.ok_or(CompositeError::UnexpectedTile { tile: index })?;
        let [count, height, width] = piece.extent();
        let whole = [self.received[index] + count, height, width];
        if count == 0 || whole[0] > frames || whole[1..] != tile.output.size[1..] {
            return Err(CompositeError::TileShape { tile: index, got: whole, expected: tile.output.size });
        }
        let got = [piece.shape()[0], piece.shape()[1]];
        let expected = *self.channels.get_or_insert(got);
        if got != expected {
            return Err(CompositeError::TileChannels { tile: index, got, expected });
        }
        self.received[index] += count;
        if index != self.next {
            let piece = self.spill_store.put(piece)?;
            self.early.entry(index).or_default().push(piece);
            return Ok(());
        }
        self.place(piece)?;
        while self.placed == frames {
            self.advance();
            for piece in self.early.remove(&self.next).into_iter().flatten() {
                let piece = self.spill_store.take(piece)?;
                self.place(piece)?;
            }
        }
        Ok(())
    }

    /// The number of tiles that are blended and handed on, in raster order.
    pub fn placed_tiles(&self) -> usize {
        self.next
    }

    /// Output frames that are handed on from edge to edge. In a tiled output this stays 0 until the last tile.
    pub fn finished_frames(&self) -> usize {
        match self.plan.tiles.len() - self.next {
            0 => self.plan.output[0],
            1 => self.placed,
            _ => 0,
        }
    }

    /// Ends the run.
    ///
    /// # Errors
    /// When tiles are missing.
    pub fn finish(self) -> Result<(), CompositeError> {
        let total = self.plan.tiles.len();
        let missing = self.received.iter().filter(|&&frames| frames < self.plan.output[0]).count();
        if missing > 0 { Err(CompositeError::Unfinished { missing, total }) } else { Ok(()) }
    }

    fn advance(&mut self) {
        self.next += 1;
        self.placed = 0;
        self.left = std::mem::take(&mut self.right);
        if self.next.is_multiple_of(self.plan.columns.len()) {
            std::mem::swap(&mut self.above, &mut self.below);
        }
    }

    fn place(&mut self, piece: HostTensor) -> Result<(), CompositeError> {
        let count = piece.shape()[2];
        if !self.plan.is_tiled() {
            self.hand_on([self.placed, 0, 0], piece)?;
        } else if count == 1 {
            self.place_frame(self.placed, piece)?;
        } else {
            for frame in 0..count {
                self.place_frame(self.placed + frame, piece.frames(frame, 1))?;
            }
        }
        self.placed += count;
        Ok(())
    }

    /// Blends one frame with the strips of its neighbours, keeps its own, and hands on the rest.
    fn place_frame(&mut self, frame: usize, mut tile: HostTensor) -> Result<(), CompositeError> {
        let [row, column] = self.plan.tiles[self.next].grid_position;
        let (rows, columns) = (&self.plan.rows, &self.plan.columns);
        let is_mask = self.blend.as_ref().is_some_and(|blend| blend.corner == Corner::Mask);
        let finished_above = if is_mask && row > 0 { Some(self.finished_above(frame, shared(rows, row))?) } else { None };
        let [kept_height, kept_width] = [kept(rows, row), kept(columns, column)];
        let [.., height, width] = tile.shape();
        let Some(Blend { corner, ramps }) = &self.blend else { unreachable!("prepared when the piece came") };
        let ramps = [&ramps[0][&shared(rows, row)], &ramps[1][&shared(columns, column)]];
        let above = self.above[column].pop_front().map(|strip| self.spill_store.take(strip)).transpose()?;
        let left = self.left.pop_front().map(|strip| self.spill_store.take(strip)).transpose()?;
        let mut keep = |strips: &mut VecDeque<Kept>, strip: HostTensor| -> Result<(), CompositeError> {
            strips.push_back(self.spill_store.put(strip)?);
            Ok(())
        };
        let [has_below, has_right] = [row + 1 < rows.len(), column + 1 < columns.len()];
        match corner {
            Corner::Cascade => {
                blend_rows(above.as_ref(), &mut tile, ramps[0]);
                blend_columns(left.as_ref(), &mut tile, ramps[1]);
                if has_below {
                    keep(&mut self.below[column], tile.window([kept_height, 0], [height - kept_height, width]))?;
                }
                if has_right {
                    keep(&mut self.right, tile.window([0, kept_width], [height, width - kept_width]))?;
                }
            }
            Corner::Separable => {
                blend_columns(left.as_ref(), &mut tile, ramps[1]);
                if has_right {
                    keep(&mut self.right, tile.window([0, kept_width], [height, width - kept_width]))?;
                    tile = tile.cropped([height, kept_width]);
                }
                blend_rows(above.as_ref(), &mut tile, ramps[0]);
                if has_below {
                    keep(&mut self.below[column], tile.window([kept_height, 0], [height - kept_height, kept_width]))?;
                }
            }
            Corner::Mask => {
                blend_mask(finished_above.as_ref(), left.as_ref(), &mut tile, ramps);
                if has_right {
                    keep(&mut self.right, tile.window([0, kept_width], [height, width - kept_width]))?;
                }
                if has_below {
                    keep(&mut self.below[column], tile.window([kept_height, 0], [height - kept_height, kept_width]))?;
                }
            }
        }
        if tile.extent() != [1, kept_height, kept_width] {
            tile = tile.cropped([kept_height, kept_width]);
        }
        self.hand_on([frame, rows[row].start, columns[column].start], tile)
    }

    /// The finished rows above the next tile that it overlaps, over its whole width: of the columns that it keeps and of those that later tiles keep.
    fn finished_above(&mut self, frame: usize, rows: usize) -> Result<HostTensor, CompositeError> {
        let tile = &self.plan.tiles[self.next];
        let ([_, first], [_, left, width]) = (tile.grid_position, [0, tile.output.start[2], tile.output.size[2]]);
        let [batch, channels] = self.channels.unwrap_or_default();
        let mut finished = HostTensor::zeros([batch, channels, 1, rows, width]);
        for column in first..self.plan.columns.len() {
            let start = self.plan.columns[column].start - left;
            if start >= width {
                break;
            }
            // Strips of the tile's own column are taken as frames come; those of later columns are all there still.
            let at = if column == first { 0 } else { frame };
            let strip = std::mem::replace(&mut self.above[column][at], Kept::InMemory(HostTensor::zeros([0; 5])));
            let strip = self.spill_store.take(strip)?;
            let columns = strip.shape()[4].min(width - start);
            finished.paste(&strip.window([0, 0], [rows, columns]), [0, 0, start]);
            self.above[column][at] = self.spill_store.put(strip)?;
        }
        Ok(finished)
    }

    fn hand_on(&mut self, start: [usize; 3], piece: HostTensor) -> Result<(), CompositeError> {
        guard(Party::Sink, || self.sink.take(start, self.plan.output, piece))?.map_err(CompositeError::Sink)
    }
}

/// The weights of the earlier and the later tile over an overlap: computed in f64 and rounded once, as diffusers does.
fn ramp_of(policy: &dyn BlendPolicy, blend_unit: usize, px: usize, seam: &Seam) -> Result<Vec<[f32; 2]>, CompositeError> {
    let weight = |offset| match policy.weight(offset, seam) {
        later if (0.0..=1.0).contains(&later) => Ok([(1.0 - later) as f32, later as f32]),
        got => Err(CompositeError::Weight { offset, extent: seam.extent, got }),
    };
    (0..px).map(|px| weight(px / blend_unit)).collect()
}

/// Px of span `i` that no later span covers.
fn kept(spans: &[crate::Span], i: usize) -> usize {
    spans.get(i + 1).map_or(spans[i].length, |next| next.start - spans[i].start)
}

fn blend_rows(above: Option<&HostTensor>, tile: &mut HostTensor, ramp: &[[f32; 2]]) {
    let Some(above) = above else { return };
    for plane in 0..tile.planes() {
        for (y, &[earlier, later]) in ramp.iter().enumerate() {
            for (value, &other) in tile.row_mut(plane, y).iter_mut().zip(above.row(plane, y)) {
                *value = other * earlier + *value * later;
            }
        }
    }
}

fn blend_columns(left: Option<&HostTensor>, tile: &mut HostTensor, ramp: &[[f32; 2]]) {
    let Some(left) = left else { return };
    for plane in 0..tile.planes() {
        for y in 0..tile.shape()[3] {
            for ((value, &other), &[earlier, later]) in tile.row_mut(plane, y).iter_mut().zip(left.row(plane, y)).zip(ramp) {
                *value = other * earlier + *value * later;
            }
        }
    }
}

/// Lays a tile over what is finished already: above it, and in the columns of the overlap with the tile to the left.
fn blend_mask(above: Option<&HostTensor>, left: Option<&HostTensor>, tile: &mut HostTensor, [rows, columns]: [&Vec<[f32; 2]>; 2]) {
    for plane in 0..tile.planes() {
        for y in 0..tile.shape()[3] {
            let row_weight = rows.get(y).map_or(1.0, |&[_, later]| later);
            let above = above.filter(|_| y < rows.len()).map(|above| above.row(plane, y));
            let left = left.map(|left| left.row(plane, y));
            for (x, value) in tile.row_mut(plane, y).iter_mut().enumerate() {
                let column_weight = columns.get(x).map_or(1.0, |&[_, later]| later);
                let earlier = left.filter(|_| x < columns.len()).or(above).map(|earlier| earlier[x]);
                if let Some(earlier) = earlier {
                    let mask = row_weight * column_weight;
                    *value = mask * *value + (1.0 - mask) * earlier;
                }
            }
        }
    }
}

/// A sink that keeps the whole output in memory.
#[derive(Debug)]
pub struct Canvas(HostTensor);

impl Default for Canvas {
    fn default() -> Self {
        Self(HostTensor::zeros([0; 5]))
    }
}

impl Canvas {
    /// The output; empty when no tile was blended.
    pub fn into_tensor(self) -> HostTensor {
        self.0
    }
}

impl Sink for Canvas {
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        if piece.extent() == extent {
            self.0 = piece;
            return Ok(());
        }
        if self.0.data().is_empty() {
            let [b, c, ..] = piece.shape();
            self.0 = HostTensor::zeros([b, c, extent[0], extent[1], extent[2]]);
        }
        self.0.paste(&piece, start);
        Ok(())
    }
}
