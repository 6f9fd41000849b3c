use std::fmt;

use parallel::{Progress, Stop};

/// Options of a single run: progress and cancellation. The default has neither.
///
/// ```
/// # use tilevae::{Event, Progress, RunOptions, Stop};
/// struct Count(usize);
///
/// impl Progress for Count {
///     fn on_event(&mut self, event: &Event) {
///         self.0 += usize::from(matches!(event, Event::TileFinished { .. }));
///     }
/// }
///
/// let (mut count, stop) = (Count(0), Stop::default());
/// // `stop.stop()`, from any thread, cancels the run that takes these options.
/// let options = RunOptions::default().with_progress(&mut count).with_stop(stop.clone());
/// ```
#[derive(Default)]
pub struct RunOptions<'a> {
    /// Receives the events of the run, on the thread that runs it.
    pub progress: Option<&'a mut dyn Progress>,
    /// Cancels the run.
    pub stop: Stop,
}

impl<'a> RunOptions<'a> {
    /// The same options with a receiver of events.
    #[must_use]
    pub fn with_progress(self, progress: &'a mut dyn Progress) -> Self {
        Self { progress: Some(progress), ..self }
    }

    /// The same options with a switch that cancels the run.
    #[must_use]
    pub fn with_stop(self, stop: Stop) -> Self {
        Self { stop, ..self }
    }
}

impl fmt::Debug for RunOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunOptions").field("progress", &self.progress.is_some()).field("stop", &self.stop).finish()
    }
}
