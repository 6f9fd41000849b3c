use std::ops::Range;

use serde::Serialize;

/// A box of frames, rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Region {
    /// First frame, row and column.
    pub start: [usize; 3],
    /// Number of frames, rows and columns.
    pub size: [usize; 3],
}

impl Region {
    /// Whether every point of `other` lies in this region.
    pub fn contains(&self, other: &Self) -> bool {
        (0..3).all(|axis| self.start[axis] <= other.start[axis] && other.start[axis] + other.size[axis] <= self.start[axis] + self.size[axis])
    }

    /// Some of its frames, counted from its first.
    #[must_use]
    pub fn frames(&self, range: &Range<usize>) -> Self {
        let [start, y, x] = self.start;
        Self { start: [start + range.start, y, x], size: [range.len(), self.size[1], self.size[2]] }
    }

    /// Rows times columns times frames.
    pub fn volume(&self) -> usize {
        self.size.iter().fold(1, |volume, &side| volume.saturating_mul(side))
    }
}

/// How height and width change from input to output. The coarser side counts in *latent px*.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// One input px becomes this many output px on each axis (a decoder).
    Up(usize),
    /// This many input px become one output px on each axis; a remainder is dropped (an encoder).
    Down(usize),
}

impl Scale {
    /// Px of the finer side in a latent px, on each axis.
    pub fn ratio(self) -> usize {
        match self {
            Self::Up(ratio) | Self::Down(ratio) => ratio,
        }
    }

    /// Latent px in an input of `length` px.
    pub fn latent_px(self, length: usize) -> usize {
        match self {
            Self::Up(_) => length,
            Self::Down(ratio) => length / ratio,
        }
    }

    /// Input px in `latent_px` latent px.
    pub fn input(self, latent_px: usize) -> usize {
        match self {
            Self::Up(_) => latent_px,
            Self::Down(ratio) => latent_px.saturating_mul(ratio),
        }
    }

    /// Output px of `latent_px` latent px.
    pub fn output(self, latent_px: usize) -> usize {
        match self {
            Self::Up(ratio) => latent_px.saturating_mul(ratio),
            Self::Down(_) => latent_px,
        }
    }
}

/// How the number of frames changes from input to output. Frames are never cut into tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FrameScale {
    /// As many frames out as in.
    Same,
    /// A causal decoder: `1 + (t - 1) * ratio` frames out of `t`.
    CausalUp(usize),
    /// A causal encoder: `1 + (t - 1) / ratio` frames out of `t`.
    CausalDown(usize),
}

impl FrameScale {
    /// Frames of the output for an input of `frames`.
    pub fn output(self, frames: usize) -> usize {
        match self {
            Self::Same => frames,
            Self::CausalUp(ratio) => frames.saturating_sub(1).saturating_mul(ratio).saturating_add(1),
            Self::CausalDown(ratio) => 1 + frames.saturating_sub(1) / ratio,
        }
    }

    /// The input frames that an operation processes at a time: all of them, or, where it is causal, the first frame and then `per_chunk` frames of the coarser
    /// side at a time. A remainder that makes no frame of the coarser side is left out.
    pub fn chunks(self, frames: usize, per_chunk: usize) -> Vec<Range<usize>> {
        let (step, unit) = match self {
            Self::Same => return std::iter::once(0..frames).collect(),
            Self::CausalUp(_) => (per_chunk.max(1), 1),
            Self::CausalDown(ratio) => (per_chunk.max(1).saturating_mul(ratio), ratio),
        };
        let end = 1 + frames.saturating_sub(1) / unit * unit;
        std::iter::once(0..1).chain((1..end).step_by(step).map(|start| start..start.saturating_add(step).min(end))).collect()
    }
}

/// How a region of the input maps to a region of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Geometry {
    /// Height and width.
    pub scale: Scale,
    /// Frames.
    pub frames: FrameScale,
    /// Output px that share a blend weight, on each axis: 1, or the side of the patches that the operation's last step assembles.
    pub blend_unit: usize,
}

impl Geometry {
    /// Frames stay as they are.
    pub fn image(scale: Scale) -> Self {
        Self { scale, frames: FrameScale::Same, blend_unit: 1 }
    }

    /// Frames, height and width of the output for an input of `[frames, height, width]`.
    pub fn output(&self, [frames, height, width]: [usize; 3]) -> [usize; 3] {
        [self.frames.output(frames), self.scale.output(self.scale.latent_px(height)), self.scale.output(self.scale.latent_px(width))]
    }
}
