use std::ops::Range;

use tiling::{FrameScale, Region, Scale, Span};

use super::crops::Crops;
use super::spec::CoderSpec;
use super::stage::{Area, Stage, StageAreas};
use super::step::{Flow, FrameChange, Step, Support};

/// Most keys to which a query attends where moments are sampled: those of a picture of 1024x1024 px.
const MOST_SAMPLED_KEYS: usize = 128 * 128;

/// The stages of a run over one picture or clip, in tiles: integers alone, made without weights.
#[derive(Debug, Clone, PartialEq)]
pub struct StagedPlan {
    spec: CoderSpec,
    stages: Vec<Stage>,
    /// Frames, height and width of the input.
    input: [usize; 3],
    /// Height and width of each value.
    sizes: Vec<[usize; 2]>,
    /// Px of each value in a latent px.
    scales: Vec<usize>,
    /// Frames of each value.
    frames: Vec<usize>,
    /// The rows and columns of tiles, in latent px.
    cells: [Vec<Span>; 2],
    /// Whether moments and attention are those of a sample.
    is_sampled: bool,
}

impl StagedPlan {
    /// The stages over an input of `[frames, height, width]`, in tiles whose rows and columns are `cells`, in latent px. `None` where the coder cannot be cut: it
    /// has no stages, or a later one reads the input.
    pub fn new(spec: &CoderSpec, input: [usize; 3], cells: [Vec<Span>; 2]) -> Option<Self> {
        let [frames, height, width] = input;
        let stages = spec.stages(false);
        if stages.iter().skip(1).any(|stage| stage.inputs.contains(&0)) {
            return None;
        }
        let scale_of = |step: &Step| match step.support {
            Support::Window { stride, .. } => (stride[0] == stride[1]).then_some(Scale::Down(stride[0])),
            Support::Blocks(scale) => Some(scale),
            Support::Same => Some(Scale::Down(1)),
        };
        let scales = spec.steps.iter().map(scale_of).collect::<Option<Vec<_>>>()?;
        // From the end where latents are.
        let mut px = vec![1; scales.len() + 1];
        if spec.grows() {
            for (at, scale) in scales.iter().enumerate() {
                px[at + 1] = px[at] * if let Scale::Up(ratio) = scale { *ratio } else { 1 };
            }
        } else {
            for (at, scale) in scales.iter().enumerate().rev() {
                px[at] = px[at + 1] * if let Scale::Down(ratio) = scale { *ratio } else { 1 };
            }
        }
        Some(Self {
            spec: spec.clone(),
            stages,
            input,
            sizes: spec.sizes([height, width]),
            scales: px,
            frames: spec.frames(frames),
            cells,
            is_sampled: false,
        })
    }

    /// The same with moments of norms from [`Crops`]: stages only begin and end at attention and at what runs on the whole picture.
    #[must_use]
    pub fn sampled(self) -> Self {
        Self { stages: self.spec.stages(true), is_sampled: true, ..self }
    }

    /// Whether the moments of group norms are estimated from crops.
    pub fn is_sampled(&self) -> bool {
        self.is_sampled
    }

    /// The crops from which the moments of a stage's norms are estimated, where it has norms that are not those of the whole.
    pub fn crops(&self, stage: usize) -> Option<Crops> {
        let Stage { steps, is_whole, .. } = &self.stages[stage];
        let has_norms = self.spec.steps[steps.clone()].iter().any(|step| matches!(step.flow, Flow::GroupNorm(_)));
        let is_given = stage > 0 && self.stages[stage - 1].moments.is_some();
        let latents = self.cells.each_ref().map(|cells| cells.last().map_or(0, Span::end));
        (has_norms && !is_whole && !is_given).then(|| Crops::new(latents))
    }

    /// The regions of the input that the crops of the first stage read.
    pub fn crop_regions(&self, crops: &Crops) -> Vec<Region> {
        let scale = self.scale(0);
        let region = |&[rows, columns]: &Area| Region {
            start: [0, rows.start * scale, columns.start * scale],
            size: [self.frames(0), rows.length * scale, columns.length * scale],
        };
        crops.windows.iter().map(region).collect()
    }

    /// Rows and columns from one px of keys to the next, on which attention rests: all px, or an even grid of a few in a large picture of sampled moments.
    pub(crate) fn key_stride(&self, value: usize) -> usize {
        let [height, width] = self.size(value);
        let count = |stride: usize| height.div_ceil(stride) * width.div_ceil(stride);
        if self.is_sampled { (1..=height.max(width)).find(|&stride| count(stride) <= MOST_SAMPLED_KEYS).unwrap_or(1) } else { 1 }
    }

    /// The sizes of values as attention reads them.
    fn key_sizes(&self) -> Vec<[usize; 2]> {
        (0..self.sizes.len()).map(|value| self.sizes[value].map(|side| side.div_ceil(self.key_stride(value)))).collect()
    }

    /// Px of a value in a latent px.
    pub(crate) fn scale(&self, value: usize) -> usize {
        self.scales[self.spec.place(value)]
    }

    /// Multiply-adds of the crops of a stage.
    fn crop_multiply_adds(&self, stage: usize) -> f64 {
        let Some(crops) = self.crops(stage) else { return 0.0 };
        let (all, areas) = self.as_crop(stage, &crops);
        let sizes = self.crop_sizes(all.steps.start, &crops);
        let all_sizes: Vec<_> = std::iter::repeat_n([0; 2], all.steps.start).chain(sizes).collect();
        crops.count() as f64 * self.spec.stage_multiply_adds(&all, &areas, &all_sizes, self.frames[0])
    }

    /// A stage on one crop, as a picture of its own.
    pub(crate) fn as_crop(&self, stage: usize, crops: &Crops) -> (Stage, StageAreas) {
        let steps = self.stages[stage].steps.clone();
        let sizes = self.crop_sizes(steps.start, crops);
        let whole = |value: usize| sizes[value - steps.start].map(|length| Span { start: 0, length });
        let all =
            Stage { steps: steps.clone(), is_whole: true, inputs: vec![steps.start], attends_to: None, outputs: vec![steps.end], moments: None };
        let areas = self.spec.areas_from(&all, steps.start, &sizes, whole);
        (all, areas)
    }

    /// Height and width of a crop before a step, and after it and each later one.
    fn crop_sizes(&self, step: usize, crops: &Crops) -> Vec<[usize; 2]> {
        self.spec.sizes_from(step, crops.size().map(|side| side * self.scales[step]))
    }

    /// All steps as one stage on the whole.
    pub(super) fn of_whole(spec: &CoderSpec, input: [usize; 3]) -> Self {
        let [frames, height, width] = input;
        let sizes = spec.sizes([height, width]);
        Self {
            spec: spec.clone(),
            stages: vec![spec.all_steps()],
            input,
            scales: vec![1; sizes.len()],
            sizes,
            frames: spec.frames(frames),
            cells: [height, width].map(|length| vec![Span { start: 0, length }]),
            is_sampled: false,
        }
    }

    /// Frames, height and width of the input.
    pub fn input(&self) -> [usize; 3] {
        self.input
    }

    /// The stages.
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// The coder without weights.
    pub fn spec(&self) -> &CoderSpec {
        &self.spec
    }

    /// The number of tiles in which a stage runs.
    pub fn tiles(&self, stage: usize) -> usize {
        if self.stages[stage].is_whole { 1 } else { self.cells[0].len() * self.cells[1].len() }
    }

    /// The rows and columns of the cells of a stage, in px of the value after it.
    pub fn cells(&self, stage: usize) -> [Vec<Span>; 2] {
        let value = self.stages[stage].outputs[0];
        if self.stages[stage].is_whole {
            return self.sizes[value].map(|length| vec![Span { start: 0, length }]);
        }
        [0, 1].map(|axis| self.cells[axis].iter().map(|&cell| self.in_px(cell, axis, value)).collect())
    }

    /// The rows and columns of the cells of a stage, in latent px.
    pub fn latent_cells(&self, stage: usize) -> [Vec<Span>; 2] {
        if self.stages[stage].is_whole {
            return [0, 1].map(|axis| vec![Span { start: 0, length: self.cells[axis].last().map_or(0, Span::end) }]);
        }
        self.cells.clone()
    }

    /// A tile's own area of a value.
    fn core(&self, stage: &Stage, tile: usize, value: usize) -> Area {
        if stage.is_whole {
            return self.sizes[value].map(|length| Span { start: 0, length });
        }
        let columns = self.cells[1].len();
        let cell = [self.cells[0][tile / columns], self.cells[1][tile % columns]];
        [0, 1].map(|axis| self.in_px(cell[axis], axis, value))
    }

    /// A cell in px of a value. The last reaches to the end, with px that fill no latent px.
    fn in_px(&self, cell: Span, axis: usize, value: usize) -> Span {
        let last = self.cells[axis].last().map_or(0, Span::end);
        let start = cell.start * self.scales[value];
        let end = if cell.end() == last { self.sizes[value][axis] } else { cell.end() * self.scales[value] };
        Span { start, length: end - start }
    }

    /// The areas that a stage works on for one of its tiles.
    pub fn areas(&self, stage: usize, tile: usize) -> StageAreas {
        let stage = &self.stages[stage];
        self.spec.areas(stage, &self.sizes, |value| self.core(stage, tile, value))
    }

    /// Frames of a value.
    pub fn frames(&self, value: usize) -> usize {
        self.frames[self.spec.place(value)]
    }

    /// The chunks of frames in which a stage takes its input (see [`FrameScale::chunks`]).
    pub fn frame_scale(&self, stage: usize) -> FrameScale {
        let from = self.stages[stage].steps.start;
        let ratio = |steps: Range<usize>, change| 1 << self.spec.steps[steps].iter().filter(|step| step.frames == change).count();
        let (steps, count) = (from..self.stages[stage].steps.end, self.spec.steps.len());
        if self.spec.steps.iter().all(|step| step.kept_frames == 0) {
            return FrameScale::Same;
        }
        match ratio(from..count, FrameChange::Halve) {
            1 => FrameScale::CausalUp(ratio(steps, FrameChange::Double)),
            ratio => FrameScale::CausalDown(ratio),
        }
    }

    /// Height and width of a value.
    pub(crate) fn size(&self, value: usize) -> [usize; 2] {
        self.sizes[self.spec.place(value)]
    }

    /// Px of the largest cell of a value.
    pub(super) fn largest_cell(&self, value: usize) -> u64 {
        let side = |axis: usize| self.cells[axis].iter().map(|&cell| self.in_px(cell, axis, self.spec.place(value)).length).max().unwrap_or(0);
        side(0) as u64 * side(1) as u64
    }

    /// Tiles of a stage among which is the largest: those with each size of a cell, at the border and inside.
    pub(super) fn largest_tiles(&self, stage: usize) -> Vec<usize> {
        if self.stages[stage].is_whole {
            return vec![0];
        }
        let [rows, columns] = self.cells.each_ref().map(|cells| {
            let mut picked = vec![0, cells.len() - 1, cells.len() / 2];
            picked.extend((0..cells.len()).max_by_key(|&at| cells[at].length));
            picked.sort_unstable();
            picked.dedup();
            picked
        });
        rows.iter().flat_map(|row| columns.iter().map(move |column| row * self.cells[1].len() + column)).collect()
    }

    /// The region of the input that the first stage reads for a tile.
    pub fn input_region(&self, tile: usize) -> Region {
        let [rows, columns] = self.areas(0, tile).inputs[0];
        Region { start: [0, rows.start, columns.start], size: [self.frames[0], rows.length, columns.length] }
    }

    /// The values that no stage after this one reads.
    pub fn finished_after(&self, stage: usize) -> Vec<usize> {
        let read = |stage: &Stage| stage.inputs.iter().copied().chain(stage.attends_to.into_iter().flatten()).collect::<Vec<_>>();
        let later: Vec<usize> = self.stages[stage + 1..].iter().flat_map(read).collect();
        let all = self.stages[..=stage].iter().flat_map(|stage| read(stage).into_iter().chain(stage.outputs.iter().copied()));
        all.filter(|value| !later.contains(value)).collect()
    }

    /// Multiply-adds of all tiles of a stage.
    pub fn stage_multiply_adds(&self, stage: usize) -> f64 {
        if self.stages[stage].is_whole {
            return self.spec.stage_multiply_adds(&self.stages[stage], &self.areas(stage, 0), &self.key_sizes(), self.frames[0]);
        }
        // The px of all tiles are those of all rows times those of all columns.
        let columns = self.cells[1].len();
        let sums = |axis: usize, tiles: &mut dyn Iterator<Item = usize>| {
            let mut sums = vec![0; self.stages[stage].steps.len() + 1];
            for tile in tiles {
                let areas = self.areas(stage, tile);
                sums.iter_mut().zip(&areas.wanted).for_each(|(sum, area)| *sum += area[axis].length);
            }
            sums
        };
        let rows = sums(0, &mut (0..self.cells[0].len()).map(|row| row * columns));
        let columns = sums(1, &mut (0..columns));
        let all: Vec<Area> = rows.into_iter().zip(columns).map(|lengths| [lengths.0, lengths.1].map(|length| Span { start: 0, length })).collect();
        let areas = StageAreas { wanted: all, inputs: Vec::new(), outputs: Vec::new() };
        self.spec.stage_multiply_adds(&self.stages[stage], &areas, &self.key_sizes(), self.frames[0])
    }

    /// Multiply-adds of the run over those of the whole as one.
    pub fn work_ratio(&self) -> f64 {
        let staged: f64 = (0..self.stages.len()).map(|stage| self.stage_multiply_adds(stage) + self.crop_multiply_adds(stage)).sum();
        staged / self.spec.multiply_adds([self.frames[0], self.sizes[0][0], self.sizes[0][1]]).max(1.0)
    }
}
