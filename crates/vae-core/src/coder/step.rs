use serde::Serialize;
use tiling::{Scale, Span};

use crate::operators::Padding;

/// A layer without its weights: what planning needs to know of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Step {
    /// Channels of the output.
    pub channels: usize,
    /// How px of the output depend on px of the input.
    pub support: Support,
    /// How the number of frames changes.
    pub frames: FrameChange,
    /// The last frames of the input that it keeps from one chunk of frames to the next.
    pub kept_frames: usize,
    /// Values of its weights.
    pub weights: u64,
    /// Multiply-adds for each px and frame of the output.
    pub multiply_adds: u64,
    /// Multiply-adds for each pair of px of a frame.
    pub multiply_adds_per_pair: u64,
    /// What it has to do with the flow of data.
    pub flow: Flow,
}

/// What a step does besides computing its output from its input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Flow {
    /// Nothing.
    Straight,
    /// Normalises by the moments of this many groups of channels of the whole picture.
    GroupNorm(usize),
    /// Keeps its input for the [`Add`](Self::Add) or [`Attend`](Self::Attend) that belongs to it, after a step of its own if it has one.
    Branch(Option<Box<Step>>),
    /// Attends to the keys and values that the last two open branches kept, over the whole picture.
    Attend,
    /// Adds what the last open branch kept, after the step of the shortcut if it has one.
    Add(Option<Box<Step>>),
}

/// How px of the output depend on px of the input, on both axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Support {
    /// Each on the same px.
    Same,
    /// On the px below a kernel.
    Window {
        /// Height and width of the kernel.
        kernel: [usize; 2],
        /// Input px from one px of the output to the next.
        stride: [usize; 2],
        /// Zeros around the whole picture.
        padding: Padding,
    },
    /// Blocks of px on one px, or one px on a block.
    Blocks(Scale),
}

/// How the number of frames changes. No frame depends on a later one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum FrameChange {
    /// It stays.
    Same,
    /// Each frame but the first of a clip becomes two.
    Double,
    /// Each two frames but the first of a clip become one.
    Halve,
}

impl Step {
    /// A step that computes each px from the same px and takes no products.
    pub(super) fn plain(channels: usize) -> Self {
        Self {
            channels,
            support: Support::Same,
            frames: FrameChange::Same,
            kept_frames: 0,
            weights: 0,
            multiply_adds: 0,
            multiply_adds_per_pair: 0,
            flow: Flow::Straight,
        }
    }

    /// Multiply-adds for an output of a height, a width and a number of frames, in a picture of `whole`.
    pub(super) fn total_multiply_adds(&self, size: [usize; 2], whole: [usize; 2], frames: usize) -> f64 {
        let px = |[height, width]: [usize; 2]| height as f64 * width as f64;
        let aside = self.aside().map_or(0, |step| step.multiply_adds);
        frames as f64 * px(size) * ((self.multiply_adds + aside) as f64 + px(whole) * self.multiply_adds_per_pair as f64)
    }

    /// The step that is made of what a branch keeps, when it keeps or adds it.
    pub(super) fn aside(&self) -> Option<&Self> {
        match &self.flow {
            Flow::Branch(step) | Flow::Add(step) => step.as_deref(),
            _ => None,
        }
    }
}

impl FrameChange {
    /// Frames of the output for the first `frames` frames of a clip.
    pub fn output(self, frames: usize) -> usize {
        match self {
            Self::Same => frames,
            Self::Double => (2 * frames).saturating_sub(1),
            Self::Halve => frames.div_ceil(2),
        }
    }
}

impl Support {
    /// Height and width of the output for a picture of a height and width.
    pub fn output(self, size: [usize; 2]) -> [usize; 2] {
        match self {
            Self::Same => size,
            Self::Window { kernel, stride, padding } => {
                let sides = [padding.top + padding.bottom, padding.left + padding.right];
                std::array::from_fn(|axis| (size[axis].saturating_add_signed(sides[axis]) + stride[axis]).saturating_sub(kernel[axis]) / stride[axis])
            }
            Self::Blocks(Scale::Up(ratio)) => size.map(|side| side * ratio),
            Self::Blocks(Scale::Down(ratio)) => size.map(|side| side / ratio),
        }
    }

    /// The input that an area of the output depends on, in a picture of `size`.
    pub fn input(self, output: [Span; 2], size: [usize; 2]) -> [Span; 2] {
        std::array::from_fn(|axis| {
            let Span { start, length } = output[axis];
            let (start, end) = match self {
                Self::Same => (start, start + length),
                Self::Window { kernel, stride, .. } => {
                    let first = (start * stride[axis]).cast_signed() - self.before(axis);
                    let end = first + ((length.max(1) - 1) * stride[axis] + kernel[axis]).cast_signed();
                    (first.max(0).unsigned_abs(), end.max(0).unsigned_abs().min(size[axis]))
                }
                Self::Blocks(Scale::Up(ratio)) => (start / ratio, (start + length).div_ceil(ratio)),
                Self::Blocks(Scale::Down(ratio)) => (start * ratio, (start + length) * ratio),
            };
            Span { start, length: end.saturating_sub(start) }
        })
    }

    /// The area of the output that an area of the input gives where nothing outside of it is needed: all but windows.
    pub(super) fn of_area(self, input: [Span; 2]) -> [Span; 2] {
        let scaled =
            |change: &dyn Fn(usize) -> usize| input.map(|span| Span { start: change(span.start), length: change(span.end()) - change(span.start) });
        match self {
            Self::Same | Self::Window { .. } => input,
            Self::Blocks(Scale::Up(ratio)) => scaled(&|px| px * ratio),
            Self::Blocks(Scale::Down(ratio)) => scaled(&|px| px / ratio),
        }
    }

    /// The zeros with which a window computes exactly `output` from the px of `input`, which holds all that it depends on: those of the picture's own border, and
    /// negative where the input reaches further than needed.
    pub(super) fn padding(self, input: [Span; 2], output: [Span; 2]) -> Padding {
        let Self::Window { kernel, stride, .. } = self else { return Padding::NONE };
        let [[top, bottom], [left, right]] = [0, 1].map(|axis| {
            let first = (output[axis].start * stride[axis]).cast_signed() - self.before(axis);
            let end = first + ((output[axis].length.max(1) - 1) * stride[axis] + kernel[axis]).cast_signed();
            [input[axis].start.cast_signed() - first, end - input[axis].end().cast_signed()]
        });
        Padding { top, bottom, left, right }
    }

    fn before(self, axis: usize) -> isize {
        match self {
            Self::Window { padding, .. } => [padding.top, padding.left][axis],
            _ => 0,
        }
    }
}
