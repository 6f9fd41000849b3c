//! What runs of a coder hold, in values: channels count in whole blocks.

use super::plan::StagedPlan;
use super::spec::CoderSpec;
use super::stage::{Area, Stage, StageAreas};
use super::step::{Flow, FrameChange, Step, Support};
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

/// Most values of transformed weights that the CPU kernels hold at once (64 MiB), and what each thread holds besides.
const MOST_KERNEL_VALUES: u64 = 16 << 20;
const THREAD_VALUES: u64 = 5 << 19;

impl CoderSpec {
    /// Values of the weights.
    pub fn weight_values(&self) -> u64 {
        let of_step = |step: &Step| match &step.flow {
            Flow::Add(Some(shortcut)) => step.weights + shortcut.weights,
            _ => step.weights,
        };
        self.steps.iter().map(of_step).sum()
    }

    /// Values that the CPU kernels hold for themselves, with so many threads: transformed weights, and buffers of threads.
    pub fn kernel_values(&self, threads: usize) -> u64 {
        // Winograd's F(4x4, 3x3) has 36 positions in place of 9 weights.
        let transformed = self.steps.iter().map(|step| 4 * step.weights).max().unwrap_or(0);
        transformed.min(MOST_KERNEL_VALUES) + threads as u64 * THREAD_VALUES
    }

    /// Values that a stage holds at its peak for one tile besides those that it keeps of earlier frames. Each value has as many frames as `frames` says.
    fn peak_of_stage(&self, stage: &Stage, areas: &StageAreas, frames: &[u64]) -> u64 {
        let channels = self.channels();
        let values =
            |area: Area, channels: usize, frames: u64| (area[0].length * area[1].length * channels.next_multiple_of(CHANNEL_BLOCK)) as u64 * frames;
        let start = stage.steps.start;
        let mut x = values(areas.wanted[0], channels[start], frames[start]);
        let inputs = stage.inputs.iter().zip(&areas.inputs).skip(1);
        let mut kept: Vec<u64> = inputs.map(|(&value, &area)| values(area, channels[value], frames[value])).collect();
        let mut peak = x + kept.iter().sum::<u64>();
        // Whether a branch holds the same memory as `x`.
        let mut is_shared = false;
        for at in stage.steps.clone() {
            let (step, area) = (&self.steps[at], areas.wanted[at + 1 - start]);
            let output = values(area, step.channels, frames[at + 1]);
            let others: u64 = kept.iter().sum();
            let own = if is_shared { 0 } else { x };
            match &step.flow {
                Flow::Branch => {
                    kept.push(x);
                    is_shared = true;
                }
                Flow::Add(_) => {
                    // The sum is computed onto what the branch kept, or onto a copy of its part.
                    peak = peak.max(others + own + output);
                    kept.pop();
                    (x, is_shared) = (output, false);
                }
                // Norms wait until the next layer reads, except for those of one channel block that are changed by a tensor.
                Flow::GroupNorm(_) => {}
                Flow::Straight if step.multiply_adds_per_pair > 0 => {
                    peak = peak.max(others + own + 4 * x);
                    (x, is_shared) = (output, false);
                }
                Flow::Straight if step.support == Support::Same && step.multiply_adds == 0 => {}
                // So does upsampling; its output is never in memory.
                Flow::Straight
                    if step.weights == 0 && matches!(step.support, Support::Blocks(tiling::Scale::Up(_))) && step.channels == channels[at] => {}
                Flow::Straight => {
                    peak = peak.max(others + own + output);
                    (x, is_shared) = (output, false);
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
    pub fn memory(&self, batch: usize, per_chunk: usize) -> StagedMemory {
        let (spec, channels) = (self.spec(), self.spec().channels());
        let steps = spec.steps.len();
        // Frames of the input in a chunk: those that become `per_chunk` frames of latents.
        let shrinks = spec.steps.iter().filter(|step| step.frames == FrameChange::Halve).count();
        let chunk = if self.frames(0) == 1 { 1 } else { per_chunk << shrinks };
        let at_once = if self.frames(0) == 1 { vec![1; steps + 1] } else { spec.frames_at_once(chunk) };
        let stored = |value: usize| {
            let [height, width] = self.size(value);
            (height * width * channels[value].next_multiple_of(CHANNEL_BLOCK) * self.frames(value)) as u64
        };
        let mut memory = StagedMemory::default();
        let mut held: Vec<usize> = Vec::new();
        for (at, stage) in self.stages().iter().enumerate() {
            let is_last = at + 1 == self.stages().len();
            held.extend(stage.outputs.iter().filter(|_| !is_last));
            memory.stored = memory.stored.max(held.iter().map(|&value| stored(value)).sum::<u64>());
            let finished = self.finished_after(at);
            held.retain(|value| !finished.contains(value));
            let has_chunks = self.frames(0) > 1;
            let of_tile = |tile: usize| {
                let areas = self.areas(at, tile);
                let cached = |step: usize| {
                    let (step_spec, area) = (&spec.steps[step], areas.wanted[step - stage.steps.start]);
                    step_spec.kept_frames * channels[step].next_multiple_of(CHANNEL_BLOCK) * area[0].length * area[1].length
                };
                let cache: usize = if has_chunks { stage.steps.clone().map(cached).sum() } else { 0 };
                spec.peak_of_stage(stage, &areas, &at_once) + cache as u64
            };
            if let Some(crops) = self.crops(at) {
                let (all, areas) = self.as_crop(at, &crops);
                memory.whole = memory.whole.max(crops.count() as u64 * spec.peak_of_stage(&all, &areas, &at_once));
            }
            let largest = self.largest_tiles(at).into_iter().map(of_tile).max().unwrap_or(0);
            let kind = if stage.is_whole { &mut memory.whole } else { &mut memory.tile };
            *kind = (*kind).max(largest);
        }
        let batch = batch as u64;
        StagedMemory { stored: memory.stored * batch, tile: memory.tile * batch, whole: memory.whole * batch }
    }

    /// Values that a run of all steps on the whole holds at its peak.
    pub fn whole_values(spec: &CoderSpec, [frames, height, width]: [usize; 3], batch: usize, per_chunk: usize) -> u64 {
        let cell = |length: usize| vec![tiling::Span { start: 0, length }];
        let Some(plan) = Self::of_whole(spec, [frames, height, width], [cell(height), cell(width)]) else { return u64::MAX };
        let memory = plan.memory(batch, per_chunk);
        memory.whole.max(memory.tile)
    }
}
