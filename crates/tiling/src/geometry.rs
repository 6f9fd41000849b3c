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

    /// Rows times columns times frames.
    pub fn volume(&self) -> usize {
        self.size.iter().product()
    }
}

/// How height and width change from input to output. The coarser side counts in *cells* (latent px for a VAE).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scale {
    /// One input px becomes this many output px on each axis (a decoder).
    Up(usize),
    /// This many input px become one output px on each axis; a remainder is dropped (an encoder).
    Down(usize),
}

impl Scale {
    /// Px of the finer side in a cell.
    pub fn ratio(self) -> usize {
        match self {
            Self::Up(ratio) | Self::Down(ratio) => ratio,
        }
    }

    /// Cells in an input of `length` px.
    pub fn cells(self, length: usize) -> usize {
        match self {
            Self::Up(_) => length,
            Self::Down(ratio) => length / ratio,
        }
    }

    /// Input px in `cells` cells.
    pub fn input(self, cells: usize) -> usize {
        match self {
            Self::Up(_) => cells,
            Self::Down(ratio) => cells * ratio,
        }
    }

    /// Output px from `cells` cells.
    pub fn output(self, cells: usize) -> usize {
        match self {
            Self::Up(ratio) => cells * ratio,
            Self::Down(_) => cells,
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

/// How a region of the input maps to a region of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Geometry {
    /// Height and width.
    pub scale: Scale,
    /// Frames.
    pub frames: FrameScale,
}

impl Geometry {
    /// Frames stay as they are.
    pub fn image(scale: Scale) -> Self {
        Self { scale, frames: FrameScale::Same }
    }

    /// Frames, height and width of the output for an input of `[frames, height, width]`.
    pub fn output(&self, [frames, height, width]: [usize; 3]) -> [usize; 3] {
        let frames = match self.frames {
            FrameScale::Same => frames,
            FrameScale::CausalUp(ratio) => 1 + frames.saturating_sub(1) * ratio,
            FrameScale::CausalDown(ratio) => 1 + frames.saturating_sub(1) / ratio,
        };
        [frames, self.scale.output(self.scale.cells(height)), self.scale.output(self.scale.cells(width))]
    }
}
