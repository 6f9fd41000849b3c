//! For tests: operations that fail or take their time as a script says, and the tests that every executor has to pass.

mod conformance;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

pub use conformance::{
    executor_conformance, failures_end_the_run_or_are_retried, panics_become_errors, same_bytes_as_sequential, stops_end_the_run, within,
};
use tiling::{BoxError, DevicePiece, Geometry, HostTensor, Scale, Stop, TileOp, TileRun};

/// How a [`Scripted`] operation behaves on a tile, or a stack of tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behavior {
    /// Answers as the wrapped operation does.
    Answer,
    /// Sleeps for this time for each piece, then answers.
    AnswerAfter(Duration),
    /// Sleeps for these times in the upload, the computation and the download of each piece.
    AnswerInStages([Duration; 3]),
    /// Returns an error.
    Fail,
    /// Sleeps for this time for each piece, and returns an error at the piece of this index.
    FailAt(usize, Duration),
    /// Panics.
    Panic,
    /// Answers with a NaN in the first piece.
    NotFinite,
    /// Returns an error that says that memory is exhausted.
    OutOfMemory,
    /// Panics, and from then on at every call.
    LoseDevice,
}

/// An operation that follows a script.
pub struct Scripted {
    op: Arc<dyn TileOp>,
    script: Box<dyn Fn(usize) -> Behavior + Send + Sync>,
    begun: AtomicUsize,
    is_lost: AtomicBool,
}

impl Scripted {
    /// Wraps `op`; `script` maps the index of a tile, in the order in which tiles are begun, to the behaviour.
    pub fn new(op: Arc<dyn TileOp>, script: impl Fn(usize) -> Behavior + Send + Sync + 'static) -> Self {
        Self { op, script: Box::new(script), begun: AtomicUsize::new(0), is_lost: AtomicBool::new(false) }
    }

    /// The number of tiles, or stacks of them, that were begun.
    pub fn begun(&self) -> usize {
        self.begun.load(Ordering::Relaxed)
    }

    fn check_device(&self) {
        assert!(!self.is_lost.load(Ordering::Relaxed), "the device is lost");
    }
}

impl fmt::Debug for Scripted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scripted").field("begun", &self.begun).finish_non_exhaustive()
    }
}

/// An output before its download.
enum Answer {
    OnDevice(DevicePiece, Duration),
    InMemory(HostTensor),
}

impl TileOp for Scripted {
    fn geometry(&self) -> Geometry {
        self.op.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        self.op.chunks(frames)
    }

    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        self.check_device();
        // The tile is not begun yet: the script's first entry counts for all.
        if let Behavior::AnswerInStages([upload, ..]) = (self.script)(0) {
            sleep(upload);
        }
        self.op.upload(piece)
    }

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        self.check_device();
        let behavior = (self.script)(self.begun.fetch_add(1, Ordering::Relaxed));
        let mut run = self.op.begin(tiles, stop);
        let mut pieces = 0;
        Box::new(move |piece| {
            self.check_device();
            let is_first = pieces == 0;
            pieces += 1;
            let mut download = Duration::ZERO;
            match behavior {
                Behavior::AnswerAfter(time) => sleep(time),
                Behavior::AnswerInStages([_, compute, last]) => {
                    sleep(compute);
                    download = last;
                }
                Behavior::Fail => return Err("a failure".into()),
                Behavior::FailAt(piece, time) => {
                    sleep(time);
                    if piece + 1 == pieces {
                        return Err("a late failure".into());
                    }
                }
                Behavior::Panic => panic!("a panic"),
                Behavior::OutOfMemory => return Err("out of memory".into()),
                Behavior::LoseDevice => {
                    self.is_lost.store(true, Ordering::Relaxed);
                    self.check_device();
                }
                Behavior::Answer | Behavior::NotFinite => {}
            }
            let answer = run(piece)?;
            if behavior != Behavior::NotFinite || !is_first {
                return Ok(DevicePiece::new(Answer::OnDevice(answer, download)));
            }
            let mut tensor = self.op.download(answer)?;
            tensor.data_mut()[0] = f32::NAN;
            Ok(DevicePiece::new(Answer::InMemory(tensor)))
        })
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        self.check_device();
        match answer.take()? {
            Answer::OnDevice(answer, time) => {
                sleep(time);
                self.op.download(answer)
            }
            Answer::InMemory(tensor) => Ok(tensor),
        }
    }

    fn check(&self) -> Result<(), BoxError> {
        self.check_device();
        self.op.check()
    }
}

/// An operation that costs next to nothing: negates its input, frame by frame.
#[derive(Debug, Clone, Copy)]
pub struct Negate;

impl TileOp for Negate {
    fn geometry(&self) -> Geometry {
        Geometry::image(Scale::Up(1))
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        (0..frames).map(|frame| frame..frame + 1).collect()
    }

    fn begin(&self, _: &[usize], _: &Stop) -> TileRun<'_> {
        Box::new(|piece| {
            let mut piece: HostTensor = piece.take()?;
            piece.data_mut().iter_mut().for_each(|value| *value = -*value);
            Ok(DevicePiece::new(piece))
        })
    }
}
