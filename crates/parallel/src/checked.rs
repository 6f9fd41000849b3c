//! Calls of foreign code: a panic becomes an error, and results are checked.

use std::ops::Range;

use tiling::{CompositeError, Compositor, FrameScale, HostTensor, Party, Region, TileOp, TilePlan, TileSource, guard};

use crate::error::guarded;
use crate::{Event, ExecError, Progress};

/// The input.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    source: &'a dyn TileSource,
    /// Batch items and channels.
    items: [usize; 2],
}

impl<'a> Input<'a> {
    /// # Errors
    /// When the source has another shape than the plan.
    pub(crate) fn new(source: &'a dyn TileSource, plan: &TilePlan) -> Result<Self, ExecError> {
        let got = guard(Party::Source, || source.shape())?;
        let [batch, channels, frames, height, width] = got;
        if got.contains(&0) || [frames, height, width] != plan.input {
            return Err(ExecError::InputShape { got, expected: plan.input });
        }
        Ok(Self { source, items: [batch, channels] })
    }

    /// The batch items of the input, and so of every tile.
    pub(crate) fn batch(&self) -> usize {
        self.items[0]
    }

    /// # Errors
    /// When the source fails, panics, or gives a tensor of another shape.
    pub(crate) fn read(&self, tile: usize, region: &Region) -> Result<HostTensor, ExecError> {
        let piece = guard(Party::Source, || self.source.read(region))?.map_err(|source| ExecError::Source { tile, source })?;
        let ([batch, channels], [frames, height, width]) = (self.items, region.size);
        let expected = [batch, channels, frames, height, width];
        if piece.shape() != expected {
            let source = format!("it came as {:?}, {expected:?} (batch, channels, frames, height, width) was asked for", piece.shape()).into();
            return Err(ExecError::Source { tile, source });
        }
        Ok(piece)
    }
}

/// The progress listener.
pub(crate) struct Listener<'a>(pub(crate) &'a mut dyn Progress);

impl Listener<'_> {
    /// # Errors
    /// When it panics.
    pub(crate) fn on_event(&mut self, event: &Event) -> Result<(), ExecError> {
        Ok(guard(Party::Listener, || self.0.on_event(event))?)
    }
}

/// Computes the blend policy's weights.
///
/// # Errors
/// When a weight is not from 0 to 1, or the policy panics.
pub(crate) fn prepare(compositor: &mut Compositor<'_>) -> Result<(), ExecError> {
    compositor.prepare().map_err(|error| match error {
        CompositeError::Panicked(panic) => panic.into(),
        error => ExecError::Unfinished(error),
    })
}

/// Hands a piece of a tile to the compositor.
///
/// # Errors
/// When the compositor refuses it, or the sink fails or panics.
pub(crate) fn push(compositor: &mut Compositor<'_>, tile: usize, piece: HostTensor) -> Result<(), ExecError> {
    compositor.push(tile, piece).map_err(|source| match source {
        CompositeError::Panicked(panic) => panic.into(),
        source => ExecError::Composite { tile, source },
    })
}

/// The pieces in which an operation takes a tile of `frames`.
///
/// # Errors
/// When the operation panics, or the pieces do not follow each other up to a frame after which no more of the output comes.
pub(crate) fn chunks(op: &dyn TileOp, scale: FrameScale, tile: usize, frames: usize) -> Result<Vec<Range<usize>>, ExecError> {
    let chunks = guarded(tile, || Ok(op.chunks(frames)))?;
    let mut end = 0;
    for chunk in &chunks {
        if chunk.start != end || chunk.end <= end {
            end = usize::MAX;
            break;
        }
        end = chunk.end;
    }
    let is_whole = end > 0 && end <= frames && scale.output(end) == scale.output(frames);
    if is_whole { Ok(chunks) } else { Err(ExecError::Chunks { tile, frames, got: chunks.into_iter().take(8).collect() }) }
}

/// What the output of the pieces of a tile so far has to be.
pub(crate) struct Expected {
    /// Batch items: those of the input, times the tiles of a stack.
    pub(crate) batch: usize,
    /// Input frames up to the end of this piece.
    pub(crate) input_frames: usize,
    /// Output frames of the pieces before.
    pub(crate) frames_before: usize,
    /// Whether it is the last piece.
    pub(crate) is_last: bool,
    /// Frames, height and width of the whole output.
    pub(crate) whole: [usize; 3],
}

impl Expected {
    /// Checks a piece of the output of a tile.
    ///
    /// # Errors
    /// When its shape is wrong: no piece has more frames than belong to the input so far, and all pieces together have the frames of the whole.
    pub(crate) fn check(&self, answer: &HostTensor, tile: usize, scale: FrameScale) -> Result<(), ExecError> {
        let [batch, channels, count, height, width] = answer.shape();
        let frames = self.frames_before + count;
        let has_right_frames = count > 0 && if self.is_last { frames == self.whole[0] } else { frames <= scale.output(self.input_frames) };
        if batch == self.batch && channels > 0 && has_right_frames && [height, width] == self.whole[1..] {
            return Ok(());
        }
        Err(ExecError::AnswerShape { tile, got: [batch, channels, frames, height, width], expected: self.whole })
    }
}

/// Whether all values are finite.
pub(crate) fn all_finite(tensor: &HostTensor) -> bool {
    tensor.data().iter().all(|value| value.is_finite())
}
