/// The frames of the input that each frame of the output is computed from: for the frame `n` of the output the last `kernel_frames` frames up to the index
/// `context + stride * n`. Frames before the first count as zero.
#[derive(Debug, Clone, Copy)]
pub struct TemporalWindow {
    /// Index of the last frame that the first frame of the output depends on.
    pub context: usize,
    /// Frames of the input from one frame of the output to the next.
    pub stride: usize,
    /// Frames of the output.
    pub frames: usize,
}

impl TemporalWindow {
    /// One past the index of the last input frame that an output frame depends on.
    pub(super) fn end(&self, frame: usize) -> usize {
        self.context + self.stride * frame + 1
    }
}
