use burn::tensor::Tensor;
use serde::Serialize;

/// A convolution over height and width, and over each frame with those before it.
#[derive(Debug, Clone)]
pub struct Convolution {
    /// `[out, in, kernel_frames, kernel_height, kernel_width]`.
    pub weight: Tensor<5>,
    /// `[out]`.
    pub bias: Option<Tensor<1>>,
    /// Input px from one px of the output to the next, over height and width.
    pub stride: [usize; 2],
    /// Zeros around each frame.
    pub padding: Padding,
    /// Which frames each frame of the output is computed from.
    pub window: TemporalWindow,
}

impl Convolution {
    /// One of equal parts of the output channels: which, and of how many.
    pub(crate) fn part(&self, part: usize, parts: usize) -> Self {
        let channels = self.weight.dims()[0] / parts;
        let weight = self.weight.clone().narrow(0, part * channels, channels);
        let bias = self.bias.clone().map(|bias| bias.narrow(0, part * channels, channels));
        Self { weight, bias, ..self.clone() }
    }

    /// Frames, height and width of the kernel.
    pub fn kernel(&self) -> [usize; 3] {
        let [_, _, frames, height, width] = self.weight.dims();
        [frames, height, width]
    }

    /// The shape of the output.
    ///
    /// # Shapes
    /// `[b, in, t, h, w]` to `[b, out, t', h', w']`, where a side is 0 if the padded input is smaller than the kernel.
    pub fn output_dims(&self, [b, _, t, h, w]: [usize; 5]) -> [usize; 5] {
        let Padding { top, bottom, left, right } = self.padding;
        let [_, kernel_height, kernel_width] = self.kernel();
        let side = |side: usize, padding: isize, kernel: usize, stride: usize| {
            (side.saturating_add_signed(padding) + stride).saturating_sub(kernel) / stride
        };
        let height = side(h, top + bottom, kernel_height, self.stride[0]);
        let width = side(w, left + right, kernel_width, self.stride[1]);
        [b, self.weight.dims()[0], self.window.frames(t), height, width]
    }
}

/// Rows and columns of zeros around a frame, in px. Where it is negative, so many rows or columns of the frame are left out, but never all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Padding {
    /// Rows above.
    pub top: isize,
    /// Rows below.
    pub bottom: isize,
    /// Columns to the left.
    pub left: isize,
    /// Columns to the right.
    pub right: isize,
}

impl Padding {
    /// No padding.
    pub const NONE: Self = Self::all(0);
    /// One row below and one column to the right (diffusers, `Downsample2D` with `padding=0`).
    pub const BOTTOM_RIGHT: Self = Self { bottom: 1, right: 1, ..Self::NONE };

    /// The same on all four sides.
    pub const fn all(px: isize) -> Self {
        Self { top: px, bottom: px, left: px, right: px }
    }
}

/// The frames of the input that each frame of the output is computed from: for the frame `n` of the output the last `kernel_frames` frames up to the index
/// `context + stride * n`. Frames before the first are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemporalWindow {
    /// Index of the last frame that the first frame of the output depends on.
    pub context: usize,
    /// Frames of the input from one frame of the output to the next.
    pub stride: usize,
}

impl TemporalWindow {
    /// A frame of the output for each frame of the input.
    pub const EACH: Self = Self { context: 0, stride: 1 };

    /// Frames of the output for a number of input frames.
    pub fn frames(self, frames: usize) -> usize {
        frames.saturating_sub(self.context).div_ceil(self.stride)
    }
}
