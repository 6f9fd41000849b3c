//! Runs that hear Ctrl-C and report their progress.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use tilevae::{Done, Error, Event, Progress, RunOptions, Stop};

use crate::error::raise;

/// The longest time after which signals are looked at.
const POLL: Duration = Duration::from_millis(50);

/// Runs `work` without the interpreter's lock. A signal whose handler raises, and an exception of `progress`, end it within a tile.
///
/// # Errors
/// That of the handler, of `progress`, or of `work`.
pub(crate) fn watched<T: Send>(
    py: Python<'_>,
    progress: Option<Py<PyAny>>,
    work: impl FnOnce(RunOptions<'_>) -> Result<T, Error> + Send,
) -> PyResult<T> {
    let (stop, raised) = (Stop::default(), Mutex::new(None));
    let note = |error: PyErr| {
        raised.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        stop.stop();
    };
    let outcome = py.detach(|| {
        thread::scope(|scope| {
            let (sender, ended) = channel::<()>();
            let run = scope.spawn(|| {
                // Its end is seen when the sender is dropped.
                let _sender = sender;
                let mut listener = progress.map(|callback| Listener { callback, note: &note });
                let mut options = RunOptions::default().with_stop(stop.clone());
                if let Some(listener) = &mut listener {
                    options = options.with_progress(listener);
                }
                work(options)
            });
            while ended.recv_timeout(POLL) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = Python::attach(|py| py.check_signals()) {
                    note(error);
                }
            }
            run.join()
        })
    });
    if let Some(error) = raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    match outcome {
        Ok(result) => result.map_err(raise),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Passes progress to a callable: tiles that are done, and all.
struct Listener<'a, N> {
    callback: Py<PyAny>,
    note: &'a N,
}

impl<N: Fn(PyErr) + Sync> Progress for Listener<'_, N> {
    fn on_event(&mut self, event: &Event) {
        let (Event::Started { done, .. } | Event::TileFinished { done, .. }) = event else { return };
        let Done { tiles, of_tiles, .. } = *done;
        if let Err(error) = Python::attach(|py| self.callback.call1(py, (tiles, of_tiles)).map(drop)) {
            (self.note)(error);
        }
    }
}
