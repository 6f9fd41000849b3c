use serde::Serialize;

use super::step::{Flow, Step, Support};
use crate::CHANNEL_BLOCK;

/// A [`Coder`](super::Coder) without weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CoderSpec {
    /// Channels of the input.
    pub channels: usize,
    /// The side of the blocks of px of which the input has to have a whole number. Other rows below and columns to the right are left out.
    pub whole_px: usize,
    /// The steps, in order.
    pub steps: Vec<Step>,
}

impl CoderSpec {
    /// The channels of a [value](super::Stage).
    pub fn value_channels(&self, value: usize) -> usize {
        let place = self.place(value);
        match (&self.steps.get(place).map(|step| &step.flow), value > self.steps.len()) {
            (Some(Flow::Branch(Some(step))), true) => step.channels,
            _ if place == 0 => self.channels,
            _ => self.steps[place - 1].channels,
        }
    }

    /// The value that a branch keeps.
    pub(super) fn kept_value(&self, branch: usize) -> usize {
        match self.steps[branch].flow {
            Flow::Branch(Some(_)) => self.steps.len() + 1 + branch,
            _ => branch,
        }
    }

    /// The step whose input has the px and frames of a value; for the output the number of steps.
    pub fn place(&self, value: usize) -> usize {
        if value > self.steps.len() { value - self.steps.len() - 1 } else { value }
    }

    /// Channels before each step and after the last.
    pub fn channels(&self) -> Vec<usize> {
        std::iter::once(self.channels).chain(self.steps.iter().map(|step| step.channels)).collect()
    }

    /// Height and width before each step and after the last, for a picture of `size`.
    pub fn sizes(&self, size: [usize; 2]) -> Vec<[usize; 2]> {
        self.sizes_from(0, size.map(|side| side / self.whole_px * self.whole_px))
    }

    /// Height and width before a step, and after it and each later one, for a value of `size` before it.
    pub(super) fn sizes_from(&self, step: usize, size: [usize; 2]) -> Vec<[usize; 2]> {
        let next = |size: &mut [usize; 2], step: &Step| {
            *size = step.support.output(*size);
            Some(*size)
        };
        std::iter::once(size).chain(self.steps[step..].iter().scan(size, next)).collect()
    }

    /// Frames before each step and after the last, for a clip of `frames`.
    pub fn frames(&self, frames: usize) -> Vec<usize> {
        let next = |frames: &mut usize, step: &Step| {
            *frames = step.frames.output(*frames);
            Some(*frames)
        };
        std::iter::once(frames).chain(self.steps.iter().scan(frames, next)).collect()
    }

    /// Whether the px of the input are the coarser ones: a decoder.
    pub(super) fn grows(&self) -> bool {
        self.steps.iter().any(|step| matches!(step.support, Support::Blocks(tiling::Scale::Up(_))))
    }

    /// Multiply-adds of a run over the whole.
    pub fn multiply_adds(&self, [frames, height, width]: [usize; 3]) -> f64 {
        let (sizes, frames) = (self.sizes([height, width]), self.frames(frames));
        let of_step = |(at, step): (usize, &Step)| step.total_multiply_adds(sizes[at + 1], sizes[at + 1], frames[at + 1]);
        self.steps.iter().enumerate().map(of_step).sum()
    }

    /// Values of earlier frames that a run keeps between chunks of frames, in a picture of `size`. Channels count in whole blocks.
    pub fn cached_values(&self, size: [usize; 2]) -> usize {
        let (sizes, channels) = (self.sizes(size), self.channels());
        let values = |(at, step): (usize, &Step)| step.kept_frames * channels[at].next_multiple_of(CHANNEL_BLOCK) * sizes[at][0] * sizes[at][1];
        self.steps.iter().enumerate().map(values).sum()
    }
}
