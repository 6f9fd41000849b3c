use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use tiling::{DevicePiece, HostTensor, Panicked, Party, TileRun, catch};

use super::POLL;
use super::state::{Chunk, Message, Shared, TileBatch};
use crate::checked::{Expected, all_finite};
use crate::error::{discard, guarded, guarded_drop};
use crate::scheduler::{Blame, FailureOutcome};
use crate::trace::{Stage, Transfer};
use crate::worker_lock::{Unavailable, WorkerGuard};
use crate::{ExecError, Worker};

/// The stages of a worker, on one thread, one after the other, or on a thread for each stage. The threads are detached: a hung device must not block the
/// run.
#[derive(Clone)]
pub(crate) struct WorkerPipeline {
    pub(crate) worker: usize,
    pub(crate) workers: Arc<[Worker]>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) messages: Sender<Message>,
}

/// The batch in computation, with the state of the operation. It holds the worker's lock.
struct Begun<'a> {
    batch: Arc<TileBatch>,
    /// Begun with the first piece.
    run: Option<TileRun<'a>>,
    /// Dropped last.
    _guard: WorkerGuard,
}

impl WorkerPipeline {
    /// Starts the threads that process what comes from `chunks`.
    pub(crate) fn start(&self, chunks: Receiver<Chunk<HostTensor>>, overlap: bool) -> std::io::Result<Vec<JoinHandle<()>>> {
        if !overlap {
            return Ok(vec![self.spawn("", move |pipeline| {
                let mut emitted = 0;
                Self::compute_all(&chunks, |begun, chunk| {
                    let answer = pipeline.upload(chunk).and_then(|chunk| pipeline.compute(begun, chunk));
                    if let Some(answer) = answer {
                        pipeline.download(&mut emitted, answer);
                    }
                });
            })?]);
        }
        let (uploaded, to_compute) = bounded(1);
        let (computed, to_download) = bounded(1);
        Ok(vec![
            self.spawn("upload", move |pipeline| {
                for chunk in chunks {
                    if let Some(chunk) = pipeline.upload(chunk) {
                        hand_on(&uploaded, chunk);
                    }
                }
            })?,
            self.spawn("compute", move |pipeline| {
                Self::compute_all(&to_compute, |begun, chunk| {
                    if let Some(chunk) = pipeline.compute(begun, chunk) {
                        hand_on(&computed, chunk);
                    }
                });
            })?,
            self.spawn("download", move |pipeline| {
                let mut emitted = 0;
                for chunk in to_download {
                    pipeline.download(&mut emitted, chunk);
                }
            })?,
        ])
    }

    /// Starts a thread. When it panics, the worker is given up.
    fn spawn(&self, stage: &str, work: impl FnOnce(&Self) + Send + 'static) -> std::io::Result<JoinHandle<()>> {
        let pipeline = self.clone();
        let name = format!("{} {stage}", self.workers[self.worker].name);
        // The system takes no name with a zero in it.
        thread::Builder::new().name(name.trim().replace('\0', " ")).spawn(move || {
            if let Err(message) = catch(|| work(&pipeline)) {
                let message = pipeline.shared.state().give_up(pipeline.worker, Panicked { who: Party::Operation, message }.into());
                pipeline.shared.notify_all();
                let _ = pipeline.messages.send(message);
            }
        })
    }

    /// Hands each chunk that comes to `work`, until no more come. A batch that fails in another stage, or that another worker has finished, may have no
    /// further chunk: it is dropped here, so that other runs get the worker.
    fn compute_all<'a, T>(chunks: &Receiver<Chunk<T>>, mut work: impl FnMut(&mut Option<Begun<'a>>, Chunk<T>)) {
        let mut begun = None;
        loop {
            // An idle thread need not look again.
            let wait = if begun.is_some() { POLL } else { Duration::MAX };
            match chunks.recv_timeout(wait) {
                Ok(chunk) => work(&mut begun, chunk),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if begun.as_ref().is_some_and(|begun| begun.batch.stop.is_stopped()) {
                discard(begun.take());
            }
        }
        discard(begun);
    }

    /// Runs one stage of a chunk; none when the batch has failed, now or before, or the run has ended.
    fn stage<T, U>(&self, stage: Stage, chunk: Chunk<T>, work: impl FnOnce(&TileBatch, T) -> Result<U, ExecError>) -> Option<Chunk<U>> {
        let subject = chunk.subject();
        let Chunk { batch, frames, is_last, load } = chunk;
        let recorder = &self.shared.recorder;
        let mut state = self.shared.state();
        if batch.stop.is_stopped() || !state.scheduler.enter(self.worker, &batch.tiles, recorder.now()) {
            drop(state);
            discard(load);
            return None;
        }
        drop(state);
        let done = recorder.time(stage, subject, || work(&batch, load)).map_err(|error| {
            let blame = self.blame(&batch, &error);
            (error, blame)
        });
        self.shared.state().scheduler.leave(self.worker, &batch.tiles, recorder.now());
        match done {
            Ok(load) => Some(Chunk { batch, frames, is_last, load }),
            Err((error, blame)) => {
                self.fail(&batch, blame, error);
                None
            }
        }
    }

    fn upload(&self, chunk: Chunk<HostTensor>) -> Option<Chunk<DevicePiece>> {
        self.shared.recorder.count(self.worker, Transfer::Upload, size_of_val(chunk.load.data()));
        self.stage(Stage::Upload, chunk, |batch, piece| {
            let op = self.workers[self.worker].op(batch.is_upcast);
            guarded(batch.tiles[0], || op.upload(piece))
        })
    }

    fn compute<'a>(&'a self, begun: &mut Option<Begun<'a>>, chunk: Chunk<DevicePiece>) -> Option<Chunk<DevicePiece>> {
        let (batch, is_last, tile) = (chunk.batch.clone(), chunk.is_last, chunk.batch.tiles[0]);
        let mut leftover = None;
        match begun {
            Some(begun) if Arc::ptr_eq(&begun.batch, &batch) => {}
            Some(begun) => {
                leftover = begun.run.take();
                begun.batch = batch.clone();
            }
            // Outside the stage: the worker is not to blame for the tiles of other runs.
            None => {
                let Some(guard) = self.lock(&batch) else {
                    discard(chunk.load);
                    return None;
                };
                *begun = Some(Begun { batch: batch.clone(), run: None, _guard: guard });
            }
        }
        let answer = self.stage(Stage::Compute, chunk, |_, piece| {
            guarded_drop(tile, leftover.take())?;
            let Some(Begun { run, .. }) = begun.as_mut() else { unreachable!("begun before the stage") };
            let run = match run {
                Some(run) => run,
                None => run.insert(guarded(tile, || Ok(self.workers[self.worker].op(batch.is_upcast).begin(&batch.tiles, &batch.stop)))?),
            };
            let answer = guarded(tile, || run(piece))?;
            if is_last {
                guarded_drop(tile, begun.take())?;
            }
            Ok(answer)
        });
        discard(leftover);
        if answer.is_none() {
            discard(begun.take());
        }
        answer
    }

    /// Waits for the worker, which other runs may use. None when the batch is not wanted any longer, or has failed because the worker hangs.
    fn lock(&self, batch: &TileBatch) -> Option<WorkerGuard> {
        let Worker { name, lock, .. } = &self.workers[self.worker];
        match lock.acquire(self.shared.run, &batch.stop) {
            Ok(guard) => Some(guard),
            Err(Unavailable::Stopped) => None,
            Err(Unavailable::Hung) => {
                self.fail(batch, Some(Blame::Device), ExecError::WorkerHung { tile: batch.tiles[0], worker: name.clone() });
                None
            }
        }
    }

    /// `emitted` counts the frames of the batch's output that were handed on.
    fn download(&self, emitted: &mut usize, chunk: Chunk<DevicePiece>) {
        if chunk.frames.start == 0 {
            *emitted = 0;
        }
        let (input_frames, frames_before, is_last) = (chunk.frames.end, *emitted, chunk.is_last);
        let bytes = chunk.load.bytes();
        let answer = self.stage(Stage::Download, chunk, |batch, answer| {
            let tile = batch.tiles[0];
            let op = self.workers[self.worker].op(batch.is_upcast);
            let answer = guarded(tile, || op.download(answer))?;
            let items = self.shared.batch * batch.tiles.len();
            let expected = Expected { batch: items, input_frames, frames_before, is_last, whole: self.shared.answers[tile] };
            expected.check(&answer, tile, self.shared.frames)?;
            if batch.is_finite.load(Ordering::Relaxed) && !all_finite(&answer) {
                return Err(ExecError::NotFinite { tile });
            }
            Ok(answer)
        });
        let Some(Chunk { batch, load: answer, .. }) = answer else { return };
        self.shared.recorder.count(self.worker, Transfer::Download, bytes.unwrap_or_else(|| size_of_val(answer.data())));
        let first = *emitted;
        *emitted += answer.shape()[2];
        for (&tile, piece) in batch.tiles.iter().zip(answer.split_batch(batch.tiles.len())) {
            if self.messages.send(Message::Piece { tile, first, piece }).is_err() {
                return;
            }
        }
        if is_last {
            self.finish(&batch);
        }
    }

    fn finish(&self, batch: &TileBatch) {
        let mut state = self.shared.state();
        if batch.stop.is_stopped() {
            return;
        }
        let tiles = state.change(|scheduler| scheduler.finished(self.worker, &batch.tiles, self.shared.recorder.now()));
        let concerns_all = state.scheduler.is_ending();
        drop(state);
        if concerns_all {
            self.shared.notify_all();
        } else {
            self.shared.changed[self.worker].notify_one();
        }
        if !tiles.is_empty() {
            let _ = self.messages.send(Message::Finished { worker: self.worker, tiles });
        }
    }

    /// What a failure is blamed on; none where the tile is to be run in a wider dtype. The device is asked within the stage: one that is lost may not answer.
    fn blame(&self, batch: &TileBatch, error: &ExecError) -> Option<Blame> {
        let worker = &self.workers[self.worker];
        if matches!(error, ExecError::NotFinite { .. }) && !batch.is_upcast && worker.upcast.is_some() {
            return None;
        }
        if error.is_out_of_memory() {
            return Some(Blame::Memory);
        }
        if batch.stop.is_stopped() {
            return Some(Blame::Tile);
        }
        let is_lost = guarded(batch.tiles[0], || worker.op(batch.is_upcast).check()).is_err();
        Some(if is_lost { Blame::Device } else { Blame::Tile })
    }

    /// Gives the tiles of a batch back. A failure after the batch was stopped counts for nothing.
    pub(crate) fn fail(&self, batch: &TileBatch, blame: Option<Blame>, error: ExecError) {
        let mut state = self.shared.state();
        if batch.stop.is_stopped() {
            return;
        }
        let message = match blame {
            None => {
                let is_new = state.change(|scheduler| scheduler.upcast(self.worker, &batch.tiles));
                is_new.then(|| Message::Upcast { worker: self.worker, tiles: batch.tiles.clone() })
            }
            Some(blame) => {
                let outcome = state.change(|scheduler| scheduler.failed(self.worker, &batch.tiles, blame));
                outcome.map(|FailureOutcome { tiles, is_retired }| state.failure(self.worker, tiles, error, is_retired))
            }
        };
        drop(state);
        self.shared.notify_all();
        if let Some(message) = message {
            let _ = self.messages.send(message);
        }
    }
}

/// Hands a chunk to the next stage. Where that has ended, the chunk is not needed.
fn hand_on<T>(next: &Sender<Chunk<T>>, chunk: Chunk<T>) {
    if let Err(refused) = next.send(chunk) {
        discard(refused.into_inner().load);
    }
}
