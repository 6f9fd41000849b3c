//! Runs that hear Ctrl-C and report their progress.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use pyo3::prelude::*;
use tilevae::{Done, Error, Event, Progress, RunOptions, Stop};

use crate::error::raise;

/// The longest time after which signals are looked at.
pub(crate) const POLL: Duration = Duration::from_millis(50);

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
                let mut listener = progress.map(|callback| {
                    Listener(move |done, all| {
                        if let Err(error) = Python::attach(|py| callback.call1(py, (done, all)).map(drop)) {
                            note(error);
                        }
                    })
                });
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

/// Passes on tiles that are done, and all.
pub(crate) struct Listener<F>(pub(crate) F);

impl<F: FnMut(usize, usize) + Send> Progress for Listener<F> {
    fn on_event(&mut self, event: &Event) {
        if let Event::Started { done, .. } | Event::TileFinished { done, .. } = event {
            let Done { tiles, of_tiles, .. } = *done;
            (self.0)(tiles, of_tiles);
        }
    }
}
