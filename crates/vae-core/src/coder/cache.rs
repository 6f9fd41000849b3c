use crate::layers::Features;
use crate::{Context, VaeError};

/// What a run over the frames of a clip keeps from chunk to chunk: the last input frames of each temporal convolution, one slot for each, in the order in which
/// they run. A run of a single chunk keeps nothing: its layers share one slot, which is emptied for each of them.
#[derive(Debug, Default)]
pub struct FrameCache {
    slots: Vec<Option<Features>>,
    next: usize,
    is_first: bool,
    is_single_chunk: bool,
}

impl FrameCache {
    /// The cache of a run.
    pub fn new(context: &Context) -> Self {
        Self { is_single_chunk: context.is_single_chunk(), ..Self::default() }
    }

    /// Goes back to the first slot, before the layers run on the next frames.
    ///
    /// # Errors
    /// When a run of a single chunk gets another one.
    pub(super) fn rewind(&mut self) -> Result<(), VaeError> {
        self.next = 0;
        self.is_first = self.slots.is_empty();
        if self.is_single_chunk && !self.is_first { Err(VaeError::SecondChunk) } else { Ok(()) }
    }

    /// Whether the frames that run now are the first of the clip.
    pub(super) fn is_first(&self) -> bool {
        self.is_first
    }

    /// The slot of the next convolution, with what it kept of the chunk before.
    pub(super) fn slot(&mut self) -> &mut Option<Features> {
        if self.is_single_chunk {
            self.slots.clear();
            self.next = 0;
        }
        if self.next == self.slots.len() {
            self.slots.push(None);
        }
        self.next += 1;
        &mut self.slots[self.next - 1]
    }

    /// Values in all slots, channels in whole blocks.
    #[cfg(feature = "testing")]
    pub fn values(&self) -> usize {
        let values = |[b, c, t, h, w]: [usize; 5]| b * c.next_multiple_of(crate::CHANNEL_BLOCK) * t * h * w;
        self.slots.iter().flatten().map(|frames| values(frames.dims())).sum()
    }
}
