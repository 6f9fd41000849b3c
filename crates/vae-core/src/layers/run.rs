use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

#[cfg(feature = "flex")]
use kernels::Workspace;
use tiling::Stop;

use super::{MathMode, Precision};
use crate::VaeError;

/// One run of a model, as its layers see it: they end by unwinding once it is stopped, and on the CPU their images share memory, which goes back to the system
/// with the run and its last image. [`Decode`](crate::Decode) and [`Encode`](crate::Encode) make one for each tile.
#[derive(Debug, Clone)]
pub struct Run {
    stop: Stop,
    #[cfg(feature = "flex")]
    workspace: Workspace,
}

impl Run {
    /// A run that `stop` ends.
    pub fn new(stop: &Stop) -> Self {
        Self {
            stop: stop.clone(),
            #[cfg(feature = "flex")]
            workspace: {
                let stop = stop.clone();
                Workspace::cancellable(move || stop.is_stopped())
            },
        }
    }

    /// Has the layers that `work` calls on this thread, and the weights that it loads, belong to the run. `work` may be called for one piece after the other.
    ///
    /// # Errors
    /// [`VaeError::Stopped`] when `work` was cut short. What it was working on is not to be used any more.
    pub fn during<T>(&self, work: impl FnOnce() -> T) -> Result<T, VaeError> {
        let context = Context { run: Some(self.clone()), ..Context::current() };
        catch_unwind(AssertUnwindSafe(|| context.during(work))).map_err(|payload| {
            let is_stopped = payload.is::<Unwinding>();
            #[cfg(feature = "flex")]
            let is_stopped = is_stopped || payload.is::<kernels::Cancelled>();
            if is_stopped { VaeError::Stopped } else { resume_unwind(payload) }
        })
    }

    #[cfg(feature = "flex")]
    pub(super) fn workspace(&self) -> &Workspace {
        &self.workspace
    }
}

/// The payload with which layers unwind. No panic hook is called.
struct Unwinding;

/// Ends what this thread does for a run, by unwinding to its [`Run::during`], once the run is stopped. Layers do so themselves; for what else takes long.
pub fn check_stop() {
    if is_stopped() {
        resume_unwind(Box::new(Unwinding));
    }
}

/// Whether the run that this thread works for is stopped: where unwinding is not possible.
pub(crate) fn is_stopped() -> bool {
    CURRENT.with_borrow(|context| context.run.as_ref().is_some_and(|run| run.stop.is_stopped()))
}

thread_local! {
    /// Borrowed only to be read and replaced, never while anything runs.
    static CURRENT: RefCell<Context> = const { RefCell::new(Context::NONE) };
}

/// What layers need to know besides their input, held for the thread that runs an operation.
#[derive(Debug, Clone)]
pub(super) struct Context {
    pub(super) math_mode: MathMode,
    pub(super) run: Option<Run>,
}

impl Context {
    const NONE: Self = Self { math_mode: MathMode { precision: Precision::Fast, tf32: true }, run: None };

    pub(super) fn current() -> Self {
        CURRENT.with_borrow(Clone::clone)
    }

    /// Holds it for as long as the call.
    pub(super) fn during<T>(self, work: impl FnOnce() -> T) -> T {
        /// Also when `work` unwinds.
        struct Before(Option<Context>);

        impl Drop for Before {
            fn drop(&mut self) {
                if let Some(context) = self.0.take() {
                    CURRENT.replace(context);
                }
            }
        }

        let _before = Before(Some(CURRENT.replace(self)));
        work()
    }
}

/// Hides the context of this thread from what it takes on while it waits for others of its pool: that may be somebody else's.
pub(super) fn aside<T>(work: impl FnOnce() -> T) -> T {
    Context::NONE.during(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_ends_what_runs() {
        let stop = Stop::default();
        let run = Run::new(&stop);
        let work = || {
            check_stop();
            7
        };
        assert!(matches!(run.during(work), Ok(7)));
        stop.stop();
        assert_eq!(work(), 7);
        assert!(matches!(run.during(work), Err(VaeError::Stopped)));
        assert!(matches!(Run::new(&Stop::default()).during(work), Ok(7)));
        let exact = MathMode { precision: Precision::Strict, tf32: false };
        let seen = exact.during(|| run.during(|| (MathMode::current(), aside(|| (MathMode::current(), work())))));
        assert!(matches!(seen, Ok((inside, (hidden, 7))) if inside == exact && hidden == MathMode::default()));
    }

    #[test]
    fn other_panics_pass_through() {
        let run = Run::new(&Stop::default());
        let payload = catch_unwind(AssertUnwindSafe(|| {
            run.during(|| {
                if true {
                    resume_unwind(Box::new(5_u8))
                }
            })
        }))
        .unwrap_err();
        assert_eq!(payload.downcast_ref(), Some(&5_u8));
        assert!(Context::current().run.is_none());
    }
}
