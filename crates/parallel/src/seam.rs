//! What a run calls of code that it does not know: no call unwinds, and no answer is taken for what it should be.

use std::ops::Range;

use tiling::{CompositeError, Compositor, FrameScale, HostTensor, Party, Region, TileOp, TilePlan, TileSource, guard};

use crate::error::guarded;
use crate::{Event, ExecError, Progress};

/// The input.
#[derive(Clone, Copy)]
pub(crate) struct Input<'a> {
    source: &'a dyn TileSource,
    /// Batch and channels.
    channels: [usize; 2],
}

impl<'a> Input<'a> {
    /// # Errors
    /// When it is not what the plan was made for.
    pub(crate) fn new(source: &'a dyn TileSource, plan: &TilePlan) -> Result<Self, ExecError> {
        let got = guard(Party::Source, || source.shape())?;
        let [batch, channels, frames, height, width] = got;
        if got.contains(&0) || [frames, height, width] != plan.input {
            return Err(ExecError::InputShape { got, expected: plan.input });
        }
        Ok(Self { source, channels: [batch, channels] })
    }

    /// # Errors
    /// When the source fails, panics, or gives a block of another shape.
    pub(crate) fn read(&self, tile: usize, region: &Region) -> Result<HostTensor, ExecError> {
        let piece = guard(Party::Source, || self.source.read(region))?.map_err(|source| ExecError::Source { tile, source })?;
        let ([batch, channels], [frames, height, width]) = (self.channels, region.size);
        let expected = [batch, channels, frames, height, width];
        if piece.shape() != expected {
            let source = format!("a block of {:?} came, {expected:?} (batch, channels, frames, height, width) was asked for", piece.shape()).into();
            return Err(ExecError::Source { tile, source });
        }
        Ok(piece)
    }
}

/// Whoever hears of a run.
pub(crate) struct Listener<'a>(pub(crate) &'a mut dyn Progress);

impl Listener<'_> {
    /// # Errors
    /// When it panics.
    pub(crate) fn on_event(&mut self, event: &Event) -> Result<(), ExecError> {
        Ok(guard(Party::Listener, || self.0.on_event(event))?)
    }
}

/// Asks for the blend policy's weights.
///
/// # Errors
/// When they are none, or the policy panics.
pub(crate) fn prepare(compositor: &mut Compositor<'_>) -> Result<(), ExecError> {
    compositor.prepare().map_err(|error| match error {
        CompositeError::Panicked(panic) => panic.into(),
        error => ExecError::Unfinished(error),
    })
}

/// Hands a piece of a tile to the compositor.
///
/// # Errors
/// When it is not taken.
pub(crate) fn push(compositor: &mut Compositor<'_>, tile: usize, piece: HostTensor) -> Result<(), ExecError> {
    compositor.push(tile, piece).map_err(|source| match source {
        CompositeError::Panicked(panic) => panic.into(),
        source => ExecError::Composite { tile, source },
    })
}

/// The pieces in which an operation takes a tile of `frames`.
///
/// # Errors
/// When the operation panics, or the pieces do not follow on each other up to a frame after which no more of the output comes.
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

/// How much of a tile has come.
pub(crate) struct Progressed {
    /// Tiles in the stack.
    pub(crate) stacked: usize,
    /// Input frames up to the end of this piece.
    pub(crate) input: usize,
    /// Whether it is the last.
    pub(crate) is_last: bool,
    /// Output frames of the pieces before.
    pub(crate) before: usize,
}

/// Looks at a piece of the answer for a tile, against the frames, height and width that are to come in all.
///
/// # Errors
/// When it does not fit: no piece has more frames than belong to the input so far, and all have as many as are to come.
pub(crate) fn check_answer(answer: &HostTensor, tile: usize, so_far: &Progressed, scale: FrameScale, expected: [usize; 3]) -> Result<(), ExecError> {
    let [items, channels, count, height, width] = answer.shape();
    let frames = so_far.before + count;
    let has_right_frames = count > 0 && if so_far.is_last { frames == expected[0] } else { frames <= scale.output(so_far.input) };
    let has_right_items = items > 0 && items.is_multiple_of(so_far.stacked) && channels > 0;
    if has_right_items && has_right_frames && [height, width] == expected[1..] {
        return Ok(());
    }
    Err(ExecError::AnswerShape { tile, got: [items, channels, frames, height, width], expected })
}
