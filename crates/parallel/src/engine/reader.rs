use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{SendTimeoutError, Sender};
use tiling::{HostTensor, Party, TilePlan, guard};

use super::POLL;
use super::pipeline::WorkerPipeline;
use super::state::{Chunk, Message, TileBatch};
use crate::checked::{self, Input, all_finite};
use crate::scheduler::Blame;
use crate::trace::Subject;
use crate::{ExecError, Stage};

/// Takes tiles for a worker from the scheduler and reads them.
pub(crate) struct Reader<'a> {
    pub(crate) pipeline: WorkerPipeline,
    pub(crate) plan: &'a TilePlan,
    pub(crate) input: Input<'a>,
    pub(crate) chunks: Sender<Chunk<HostTensor>>,
}

impl Reader<'_> {
    pub(crate) fn work(self) {
        let messages = self.pipeline.messages.clone();
        if let Err(error) = guard(Party::Engine, || self.read_batches()).map_err(ExecError::from).flatten() {
            let _ = messages.send(Message::Fatal(error));
        }
    }

    fn read_batches(self) -> Result<(), ExecError> {
        let WorkerPipeline { worker, workers, shared, messages } = &self.pipeline;
        while let Some(batch) = shared.next_batch(*worker, POLL) {
            if let Some(other) = batch.also_on {
                let [name, other] = [*worker, other].map(|worker| &workers[worker].name);
                tracing::warn!("{other} makes no progress; {name} also runs its tile {}", batch.tiles[0]);
            }
            let started = Message::Started { worker: *worker, tiles: batch.tiles.clone() };
            if messages.send(started).is_err() || !self.read(&batch)? {
                break;
            }
        }
        Ok(())
    }

    /// Reads the pieces of a batch and hands them to the pipeline. False when that takes no more.
    fn read(&self, batch: &Arc<TileBatch>) -> Result<bool, ExecError> {
        let WorkerPipeline { worker, workers, shared, .. } = &self.pipeline;
        let op = workers[*worker].op(batch.is_upcast);
        let chunks = match checked::chunks(op, self.plan.geometry.frames, batch.tiles[0], self.plan.input[0]) {
            Ok(chunks) => chunks,
            Err(error) => {
                self.pipeline.fail(batch, Some(Blame::Tile), error);
                return Ok(true);
            }
        };
        let mut chunks = chunks.into_iter().peekable();
        while let Some(frames) = chunks.next() {
            if batch.stop.is_stopped() {
                break;
            }
            let subject = Subject { worker: Some(*worker), tile: batch.tiles[0], stacked: batch.tiles.len(), frame: frames.start };
            let pieces = shared.recorder.time(Stage::Read, subject, || {
                batch.tiles.iter().map(|&tile| self.input.read(tile, &self.plan.tiles[tile].input.frames(&frames))).collect::<Result<Vec<_>, _>>()
            });
            let load = HostTensor::join_batch(pieces?);
            if !all_finite(&load) {
                batch.is_finite.store(false, Ordering::Relaxed);
            }
            let mut chunk = Chunk { batch: batch.clone(), frames, is_last: chunks.peek().is_none(), load };
            loop {
                chunk = match self.chunks.send_timeout(chunk, POLL) {
                    Ok(()) => break,
                    Err(SendTimeoutError::Timeout(chunk)) if !self.is_dismissed() => chunk,
                    Err(_) => {
                        shared.state().give_back(batch);
                        shared.notify_all();
                        return Ok(false);
                    }
                };
                if batch.stop.is_stopped() {
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }

    fn is_dismissed(&self) -> bool {
        self.pipeline.shared.is_stopped() || self.pipeline.shared.state().scheduler.is_retired(self.pipeline.worker)
    }
}
