use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

#[cfg(feature = "flex")]
use kernels::Workspace;
use tiling::Stop;

use crate::{MathMode, VaeError};

/// What one run of a model needs besides its input: how f32 is computed, the stop that cancels the run, whether it has a single chunk of frames, and on the
/// CPU the memory that its layers reuse. Clones share all of it.
///
/// The memory goes back to the system with the last clone and the last [`Features`](crate::layers::Features) of the run, so each run has a context of its own.
#[derive(Debug, Clone, Default)]
pub struct Context {
    math_mode: MathMode,
    stop: Stop,
    is_single_chunk: bool,
    #[cfg(feature = "flex")]
    workspace: Workspace,
}

impl Context {
    /// The context of a run that `stop` ends.
    pub fn new(math_mode: MathMode, stop: &Stop) -> Self {
        Self {
            math_mode,
            stop: stop.clone(),
            is_single_chunk: false,
            #[cfg(feature = "flex")]
            workspace: {
                let stop = stop.clone();
                Workspace::cancellable(move || stop.is_stopped())
            },
        }
    }

    /// The same run with a single chunk of frames, or with any number of them (the default). Causal models keep no frames of a single chunk; they refuse
    /// a second one with [`VaeError::SecondChunk`].
    #[must_use]
    pub fn with_single_chunk(self, is_single_chunk: bool) -> Self {
        Self { is_single_chunk, ..self }
    }

    /// The same run, with the same memory, for a part of it that `stop` ends, too.
    #[must_use]
    pub fn with_stop(&self, stop: &Stop) -> Self {
        Self { stop: stop.clone(), ..self.clone() }
    }

    /// Whether the run has a single chunk of frames.
    pub fn is_single_chunk(&self) -> bool {
        self.is_single_chunk
    }

    /// How f32 is computed.
    pub fn math_mode(&self) -> MathMode {
        self.math_mode
    }

    /// Whether the run is stopped.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stop.is_stopped()
    }

    /// Unwinds to [`catch_stop`](Self::catch_stop) once the run is stopped. Layers call it; a family calls it in other long computations. No panic hook runs.
    pub fn check_stop(&self) {
        if self.stop.is_stopped() {
            resume_unwind(Box::new(Unwinding));
        }
    }

    /// Runs `work`, which layers leave early once the run is stopped. It may be called for one piece of the input after the other.
    ///
    /// # Errors
    /// [`VaeError::Stopped`] when `work` was cut short. The values that it was changing must not be used any more.
    pub fn catch_stop<T>(&self, work: impl FnOnce() -> T) -> Result<T, VaeError> {
        catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
            let is_stopped = payload.is::<Unwinding>();
            #[cfg(feature = "flex")]
            let is_stopped = is_stopped || payload.is::<kernels::Cancelled>();
            if is_stopped { VaeError::Stopped } else { resume_unwind(payload) }
        })
    }

    /// Gives memory of the CPU that is free back to the system. Without that it is kept for buffers of about the same size.
    pub fn return_free_memory(&self) {
        #[cfg(feature = "flex")]
        self.workspace.return_free_memory();
    }

    #[cfg(feature = "flex")]
    pub(crate) fn workspace(&self) -> &Workspace {
        &self.workspace
    }
}

/// The payload with which layers of a stopped run unwind.
struct Unwinding;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_ends_the_work_of_its_context() {
        let stop = Stop::default();
        let [context, other] = [&stop, &Stop::default()].map(|stop| Context::new(MathMode::default(), stop));
        let work = |context: &Context| {
            context.check_stop();
            7
        };
        assert!(matches!(context.catch_stop(|| work(&context)), Ok(7)));
        stop.stop();
        assert!(matches!(context.catch_stop(|| work(&context)), Err(VaeError::Stopped)));
        assert!(matches!(other.catch_stop(|| work(&other)), Ok(7)));
    }

    #[test]
    fn other_panics_pass_through() {
        let context = Context::default();
        let payload =
            catch_unwind(AssertUnwindSafe(|| context.catch_stop(|| resume_unwind(Box::new(5_u8))))).map(|answer: Result<(), _>| answer.is_ok());
        assert_eq!(payload.unwrap_err().downcast_ref(), Some(&5_u8));
    }
}
