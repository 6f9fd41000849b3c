use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tiling::{HostTensor, Stop};

use super::POLL;
use super::state::{Message, Shared};
use crate::output::RunOutput;
use crate::{ExecError, Worker};

/// The calling thread: blends, counts, and watches the workers.
pub(crate) struct Coordinator<'a, 'p> {
    pub(crate) shared: Arc<Shared>,
    pub(crate) workers: Arc<[Worker]>,
    pub(crate) output: RunOutput<'a, 'p>,
    /// Workers that hang.
    pub(crate) is_given_up: Vec<bool>,
    pub(crate) grace: Duration,
}

impl Coordinator<'_, '_> {
    /// Handles messages until every tile is finished and blended.
    pub(crate) fn run(&mut self, inbox: &Receiver<Message>, stop: &Stop) -> Result<(), ExecError> {
        let mut checked = self.shared.recorder.now();
        while self.output.done().tiles < self.output.done().of_tiles || self.output.placed_tiles() < self.output.done().of_tiles {
            if stop.is_stopped() {
                return Err(ExecError::Stopped);
            }
            match inbox.recv_timeout(POLL) {
                Ok(message) => {
                    let is_failure = matches!(message, Message::Failed { .. });
                    self.handle(message)?;
                    if is_failure {
                        self.check_hopeless(inbox)?;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) if stop.is_stopped() => return Err(ExecError::Stopped),
                Err(RecvTimeoutError::Disconnected) => {
                    self.check_hopeless(inbox)?;
                    break;
                }
            }
            // However many messages there are.
            if self.shared.recorder.now().saturating_sub(checked) >= POLL {
                self.give_up_stalled()?;
                self.check_hopeless(inbox)?;
                checked = self.shared.recorder.now();
            }
        }
        Ok(())
    }

    fn handle(&mut self, message: Message) -> Result<(), ExecError> {
        match message {
            Message::Started { worker, tiles } => tiles.into_iter().try_for_each(|tile| self.output.tile_started(worker, tile)),
            Message::Piece { tile, first, piece } => self.blend(tile, first, piece),
            Message::Finished { worker, tiles } => tiles.into_iter().try_for_each(|tile| self.output.tile_finished(worker, tile)),
            Message::Upcast { worker, tiles } => tiles.into_iter().try_for_each(|tile| self.output.tile_upcast(worker, tile)),
            Message::Failed { worker, tiles, message, is_run_again, is_retired } => {
                let name = &self.workers[worker].name;
                let consequence = if is_run_again { "; the tile is run again" } else { "" };
                tracing::warn!("{name}: {message}{consequence}");
                self.output.failed(worker, &tiles, &message)?;
                if is_retired {
                    tracing::warn!("{name} is retired, or limited to smaller tiles");
                    let is_limited = !self.shared.state().scheduler.is_retired(worker);
                    if is_limited { self.output.worker_limited(worker, message)? } else { self.output.worker_retired(worker, message)? }
                }
                Ok(())
            }
            Message::Fatal(error) => Err(error),
        }
    }

    fn blend(&mut self, tile: usize, first: usize, piece: HostTensor) -> Result<(), ExecError> {
        let before = self.output.placed_tiles();
        self.output.piece(tile, first, piece)?;
        let placed = self.output.placed_tiles();
        if placed > before {
            self.shared.state().scheduler.placed(placed);
            self.shared.notify_all();
        }
        Ok(())
    }

    /// Gives up workers that hang.
    fn give_up_stalled(&mut self) -> Result<(), ExecError> {
        let mut state = self.shared.state();
        let stalled = state.scheduler.stalled(self.shared.recorder.now());
        let mut given_up = Vec::new();
        for (worker, tile) in stalled {
            self.is_given_up[worker] = true;
            self.workers[worker].lock.abandon(self.shared.run);
            given_up.push(state.give_up(worker, ExecError::Stalled { tile, worker: self.workers[worker].name.clone() }));
        }
        drop(state);
        if !given_up.is_empty() {
            self.shared.notify_all();
        }
        given_up.into_iter().try_for_each(|message| self.handle(message))
    }

    /// Ends a run that cannot succeed any more, after the messages that are there.
    fn check_hopeless(&mut self, inbox: &Receiver<Message>) -> Result<(), ExecError> {
        let error = self.shared.state().final_error(&self.workers);
        let Some(error) = error else { return Ok(()) };
        while let Ok(message) = inbox.try_recv() {
            self.handle(message)?;
        }
        Err(error)
    }

    /// Joins the threads of all workers that do not hang.
    pub(crate) fn join(&mut self, threads: Vec<Vec<JoinHandle<()>>>) {
        let begun = Instant::now();
        for (worker, threads) in threads.into_iter().enumerate() {
            while !self.is_given_up[worker] && !threads.iter().all(JoinHandle::is_finished) {
                if begun.elapsed() > self.grace {
                    tracing::warn!("{} hangs on its tile and is abandoned", self.workers[worker].name);
                    self.workers[worker].lock.abandon(self.shared.run);
                    break;
                }
                thread::sleep(Duration::from_micros(200));
            }
        }
    }
}
