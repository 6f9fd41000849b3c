//! The frames of a decode, one piece after the other, while the run goes on.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use numpy::PyArray5;
use pyo3::prelude::*;
use tilevae::io::WholeFrames;
use tilevae::tiling::{BoxError, HostTensor};
use tilevae::{Direction, Error, Pipeline, RunOptions, Stop};

use crate::array::into_array;
use crate::error::{raise, value_error};
use crate::runs::{Listener, POLL};

/// An iterator over the frames of a decode: arrays `[b, c, t, h, w]` of consecutive frames. The run waits until one is taken before it hands on the next.
/// Without the iterator it ends.
#[pyclass(frozen, module = "tilevae._tilevae")]
pub(crate) struct Frames {
    run: Arc<Run>,
    progress: Option<Py<PyAny>>,
}

/// What the run's thread and the iterator share.
#[derive(Default)]
struct Run {
    state: Mutex<State>,
    changed: Condvar,
    stop: Stop,
}

#[derive(Default)]
struct State {
    /// The next frames.
    frames: Option<HostTensor>,
    /// Tiles that are done and all tiles, where that has changed.
    progress: Option<(usize, usize)>,
    error: Option<Error>,
    has_ended: bool,
    is_abandoned: bool,
}

/// What there is for the iterator.
enum Next {
    Progress(usize, usize),
    Frames(HostTensor),
    Failed(Error),
    Ended,
    Nothing,
}

impl Run {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Hands on frames when those before them are taken.
    fn push(&self, frames: HostTensor) -> Result<(), BoxError> {
        let waits = |state: &mut State| state.frames.is_some() && !state.is_abandoned;
        let mut state = self.changed.wait_while(self.state(), waits).unwrap_or_else(PoisonError::into_inner);
        if state.is_abandoned {
            return Err("nobody takes the frames any more".into());
        }
        state.frames = Some(frames);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// What there is within `POLL`.
    fn next(&self) -> Next {
        let is_nothing = |state: &mut State| state.frames.is_none() && state.progress.is_none() && !state.has_ended && !state.is_abandoned;
        let (mut state, _) = self.changed.wait_timeout_while(self.state(), POLL, is_nothing).unwrap_or_else(PoisonError::into_inner);
        if state.is_abandoned {
            return Next::Ended;
        }
        if let Some((done, all)) = state.progress.take() {
            return Next::Progress(done, all);
        }
        if let Some(frames) = state.frames.take() {
            drop(state);
            self.changed.notify_all();
            return Next::Frames(frames);
        }
        match state.error.take() {
            Some(error) => Next::Failed(error),
            None if state.has_ended => Next::Ended,
            None => Next::Nothing,
        }
    }

    fn abandon(&self) {
        self.stop.stop();
        self.change(|state| state.is_abandoned = true);
    }
}

/// Says that the run has ended, however it has.
struct Ending(Arc<Run>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.change(|state| state.has_ended = true);
    }
}

impl Frames {
    /// Begins a decode on a thread of its own.
    ///
    /// # Errors
    /// When it cannot be planned, or there is no thread for it.
    pub(crate) fn start(pipeline: Pipeline, latents: HostTensor, progress: Option<Py<PyAny>>) -> PyResult<Self> {
        let plan = pipeline.plan(Direction::Decode, latents.shape()).map_err(raise)?;
        let run = Arc::new(Run::default());
        let ending = Ending(run.clone());
        let work = move || {
            let Ending(run) = &ending;
            let mut sink = WholeFrames::new(|frames| run.push(frames));
            let mut listener = Listener(|done, all| run.change(|state| state.progress = Some((done, all))));
            let options = RunOptions::default().with_stop(run.stop.clone()).with_progress(&mut listener);
            if let Err(error) = pipeline.run(&plan, &latents, &mut sink, options) {
                run.change(|state| state.error = Some(error));
            }
        };
        thread::Builder::new().name("tilevae".to_owned()).spawn(work).map_err(value_error)?;
        Ok(Self { run, progress })
    }
}

#[pymethods]
impl Frames {
    fn __iter__(this: PyRef<'_, Self>) -> PyRef<'_, Self> {
        this
    }

    fn __next__<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyArray5<f32>>>> {
        let step = || loop {
            match py.detach(|| self.run.next()) {
                Next::Progress(done, all) => {
                    if let Some(progress) = &self.progress {
                        progress.call1(py, (done, all))?;
                    }
                }
                Next::Frames(frames) => return into_array(py, frames).map(Some),
                Next::Failed(error) => return Err(raise(error)),
                Next::Ended => return Ok(None),
                Next::Nothing => py.check_signals()?,
            }
        };
        step().inspect_err(|_| self.run.abandon())
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        self.run.abandon();
    }
}
