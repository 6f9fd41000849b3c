//! What runs of a coder hold, in values: channels count in whole blocks.

use super::plan::StagedPlan;
use super::spec::CoderSpec;
use super::stage::{Area, Stage, StageAreas};
use super::step::{Flow, FrameChange, Step};
use crate::CHANNEL_BLOCK;

/// What a run in stages holds at its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StagedMemory {
    /// Values in the store, during the stage in which they are the most.
    pub stored: u64,
    /// Values of the largest tile of a worker.
    pub tile: u64,
    /// Values of the largest stage that runs on the whole picture.
    pub whole: u64,
}

/// How layers read what norms and upsampling change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reading {
    /// They apply it while they read, as the CPU kernels do.
    Fused,
    /// It is in memory, too.
    Apart,
}

/// Most values of transformed weights that the CPU kernels hold at once (64 MiB), and what each thread holds besides.
const MOST_KERNEL_VALUES: u64 = 16 << 20;
const THREAD_VALUES: u64 = 5 << 19;

/// Queries whose scores are in memory at once, but for the CPU kernels.
const MOST_QUERIES: u64 = 1024;

/// The product, or the largest number where it overflows.
fn product(factors: &[usize]) -> u64 {
    if factors.contains(&0) { 0 } else { factors.iter().fold(1, |product: u64, &factor| product.saturating_mul(factor as u64)) }
}

/// The sum, or the largest number where it overflows.
fn sum(values: impl IntoIterator<Item = u64>) -> u64 {
    values.into_iter().fold(0, u64::saturating_add)
}

impl CoderSpec {
    /// Values of the weights.
    pub fn weight_values(&self) -> u64 {
        self.steps.iter().map(|step| step.weights + step.aside().map_or(0, |step| step.weights)).sum()
    }

    /// Values that the CPU kernels hold for themselves, with so many threads: transformed weights, and buffers of threads.
    pub fn kernel_values(&self, threads: usize) -> u64 {
        // Winograd's F(4x4, 3x3) has 36 positions in place of 9 weights.
        let transformed = self.steps.iter().map(|step| 4 * step.weights).max().unwrap_or(0);
        transformed.min(MOST_KERNEL_VALUES) + threads as u64 * THREAD_VALUES
    }

    /// Values that a stage holds at its peak for one tile besides those that it keeps of earlier frames. Each value has as many frames as `frames` says.
    fn peak_of_stage(&self, stage: &Stage, areas: &StageAreas, frames: &[u64], reading: Reading) -> u64 {
        let channels = self.channels();
        let values = |area: Area, channels: usize, frames: u64| {
            product(&[area[0].length, area[1].length, channels.next_multiple_of(CHANNEL_BLOCK)]).saturating_mul(frames)
        };
        let start = stage.steps.start;
        let mut x = values(areas.wanted[0], channels[start], frames[start]);
        let inputs = stage.inputs.iter().zip(&areas.inputs).skip(1);
        let mut kept: Vec<u64> = inputs.map(|(&value, &area)| values(area, self.value_channels(value), frames[self.place(value)])).collect();
        let inputs_kept = kept.len();
        let mut peak = x.saturating_add(sum(kept.iter().copied()));
        // Whether a branch holds the same memory as `x`.
        let mut is_shared = false;
        // What a norm or an upsampling gives where that is not computed by the layer that reads it.
        let mut changed = 0;
        for at in stage.steps.clone() {
            let (step, area) = (&self.steps[at], areas.wanted[at + 1 - start]);
            let output = values(area, step.channels, frames[at + 1]);
            let others = sum(kept.iter().copied());
            let own = if is_shared { 0 } else { x };
            match &step.flow {
                Flow::Branch(None) => {
                    kept.push(x);
                    is_shared = true;
                }
                Flow::Branch(Some(step)) => {
                    let given = values(area, step.channels, frames[at]);
                    peak = peak.max(sum([others, own, changed, given]));
                    kept.push(given);
                }
                Flow::Attend => {
                    peak = peak.max(sum([others, own, output]));
                    if at > start || stage.attends_to.is_none() {
                        kept.truncate(kept.len().saturating_sub(2));
                    }
                    (x, is_shared, changed) = (output, false, 0);
                }
                Flow::Add(_) => {
                    let is_in_place = reading == Reading::Fused && kept.last() == Some(&output);
                    peak = peak.max(sum([others, own, changed, if is_in_place { 0 } else { output }]));
                    kept.pop();
                    (x, is_shared, changed) = (output, false, 0);
                }
                // Norms and upsampling have no weights that are multiplied, and keep the channels.
                _ if step.multiply_adds == 0 && step.channels == channels[at] => {
                    if reading == Reading::Apart {
                        changed = output;
                        peak = peak.max(sum([others, own, changed]));
                    }
                }
                _ => {
                    let is_added = matches!(self.steps.get(at + 1).map(|step| &step.flow), Some(Flow::Add(None))) && at + 1 < stage.steps.end;
                    // Fused, a sum is computed onto what a branch of the stage kept, if that has its size.
                    let is_in_place = reading == Reading::Fused && is_added && kept.len() > inputs_kept && kept.last() == Some(&output);
                    let given = if is_in_place { 0 } else { output };
                    peak = peak.max(sum([others, own, changed, given]));
                    (x, is_shared, changed) = (output, false, 0);
                }
            }
        }
        peak
    }

    /// Frames of each value while a chunk of frames runs: `frames` of the input.
    fn frames_at_once(&self, frames: usize) -> Vec<u64> {
        let next = |frames: &mut f64, step: &Step| {
            *frames *= match step.frames {
                FrameChange::Same => 1.0,
                FrameChange::Double => 2.0,
                FrameChange::Halve => 0.5,
            };
            Some(*frames)
        };
        let all = std::iter::once(frames as f64).chain(self.steps.iter().scan(frames as f64, next));
        all.map(|frames| frames.max(1.0) as u64).collect()
    }
}

impl StagedPlan {
    /// What a run holds, with `batch` items and chunks of `per_chunk` latent frames after the first.
    pub fn memory(&self, batch: usize, per_chunk: usize, reading: Reading) -> StagedMemory {
        let (spec, channels) = (self.spec(), self.spec().channels());
        let steps = spec.steps.len();
        // Frames of the input in a chunk: those that become `per_chunk` frames of latents.
        let shrinks = spec.steps.iter().filter(|step| step.frames == FrameChange::Halve).count();
        let chunk = if self.frames(0) == 1 { 1 } else { per_chunk.saturating_mul(1 << shrinks).min(self.frames(0) - 1) };
        let at_once = if self.frames(0) == 1 { vec![1; steps + 1] } else { spec.frames_at_once(chunk) };
        let stored = |value: usize| {
            let [height, width] = self.size(value);
            product(&[height, width, spec.value_channels(value).next_multiple_of(CHANNEL_BLOCK), self.frames(value)])
        };
        let mut memory = StagedMemory::default();
        let mut held: Vec<usize> = Vec::new();
        for (at, stage) in self.stages().iter().enumerate() {
            let is_last = at + 1 == self.stages().len();
            held.extend(stage.outputs.iter().filter(|_| !is_last));
            memory.stored = memory.stored.max(sum(held.iter().map(|&value| stored(value))));
            let finished = self.finished_after(at);
            held.retain(|value| !finished.contains(value));
            let has_chunks = self.frames(0) > 1;
            // Keys and values: a tile of them at a time, or all, which are copied once; then the scores of some queries, before and after their softmax.
            let attended = stage.attends_to.map_or(0, |values| {
                let stride = self.key_stride(values[0]);
                let all = product(&self.size(values[0]).map(|side| side.div_ceil(stride)));
                let is_by_tile = reading == Reading::Fused && stride == 1;
                let of_px = |value: usize| spec.value_channels(value).next_multiple_of(CHANNEL_BLOCK) as u64;
                let area = if is_by_tile { self.largest_cell(values[0]) } else { all.saturating_mul(2) };
                let scores = if reading == Reading::Fused { 0 } else { all.saturating_mul(2 * MOST_QUERIES) };
                sum(values.map(|value| area.saturating_mul(of_px(value)))).saturating_add(scores)
            });
            let of_tile = |tile: usize| {
                let areas = self.areas(at, tile);
                let cached = |step: usize| {
                    let (step_spec, area) = (&spec.steps[step], areas.wanted[step - stage.steps.start]);
                    product(&[step_spec.kept_frames, channels[step].next_multiple_of(CHANNEL_BLOCK), area[0].length, area[1].length])
                };
                let cache = if has_chunks { sum(stage.steps.clone().map(cached)) } else { 0 };
                spec.peak_of_stage(stage, &areas, &at_once, reading).saturating_add(cache).saturating_add(attended)
            };
            if let Some(crops) = self.crops(at) {
                let (all, areas) = self.as_crop(at, &crops);
                memory.whole = memory.whole.max((crops.count() as u64).saturating_mul(spec.peak_of_stage(&all, &areas, &at_once, reading)));
            }
            let largest = self.largest_tiles(at).into_iter().map(of_tile).max().unwrap_or(0);
            let kind = if stage.is_whole { &mut memory.whole } else { &mut memory.tile };
            *kind = (*kind).max(largest);
        }
        let batch = batch as u64;
        let of_all = |values: u64| values.saturating_mul(batch);
        StagedMemory { stored: of_all(memory.stored), tile: of_all(memory.tile), whole: of_all(memory.whole) }
    }

    /// Values that a run of all steps on the whole holds at its peak.
    pub fn whole_values(spec: &CoderSpec, [frames, height, width]: [usize; 3], batch: usize, per_chunk: usize, reading: Reading) -> u64 {
        let memory = Self::of_whole(spec, [frames, height, width]).memory(batch, per_chunk, reading);
        memory.whole.max(memory.tile)
    }
}
