//! A double for operations: it does what another operation does, but fails and dawdles as a test wants.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::sleep;
use std::time::Duration;

use tiling::{BoxError, DevicePiece, Geometry, HostTensor, Scale, Stop, TileOp, TileRun};

/// What a [`Scripted`] operation does with a tile, or a stack of tiles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deed {
    /// What it should.
    Answer,
    /// The same, after so long a time for each piece.
    AnswerAfter(Duration),
    /// The same, with so long an upload, computation and download of each piece.
    AnswerInStages([Duration; 3]),
    /// An error.
    Fail,
    /// An error at a piece, counted from 0, where each takes so long a time.
    FailAt(usize, Duration),
    /// A panic.
    Panic,
    /// A value that is no number in the first piece.
    Nonsense,
    /// An error that says that memory is exhausted.
    RunOutOfMemory,
    /// A panic, and from then on nothing works.
    LoseDevice,
}

/// An operation that follows a script.
pub struct Scripted {
    op: Arc<dyn TileOp>,
    script: Box<dyn Fn(usize) -> Deed + Send + Sync>,
    begun: AtomicUsize,
    is_lost: AtomicBool,
}

impl Scripted {
    /// `op`, but for what `script` says of the `n`-th tile that is begun.
    pub fn new(op: Arc<dyn TileOp>, script: impl Fn(usize) -> Deed + Send + Sync + 'static) -> Self {
        Self { op, script: Box::new(script), begun: AtomicUsize::new(0), is_lost: AtomicBool::new(false) }
    }

    /// Tiles, or stacks of them, that were begun.
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

/// An answer on its way back.
enum Answer {
    There(DevicePiece, Duration),
    Here(HostTensor),
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
        // The tile is not begun yet: all have the pace of the first.
        if let Deed::AnswerInStages([upload, ..]) = (self.script)(0) {
            sleep(upload);
        }
        self.op.upload(piece)
    }

    fn begin(&self, stop: &Stop) -> TileRun<'_> {
        self.check_device();
        let deed = (self.script)(self.begun.fetch_add(1, Ordering::Relaxed));
        let mut run = self.op.begin(stop);
        let mut pieces = 0;
        Box::new(move |piece| {
            self.check_device();
            let is_first = pieces == 0;
            pieces += 1;
            let mut download = Duration::ZERO;
            match deed {
                Deed::AnswerAfter(time) => sleep(time),
                Deed::AnswerInStages([_, compute, last]) => {
                    sleep(compute);
                    download = last;
                }
                Deed::Fail => return Err("a failure".into()),
                Deed::FailAt(piece, time) => {
                    sleep(time);
                    if piece + 1 == pieces {
                        return Err("a late failure".into());
                    }
                }
                Deed::Panic => panic!("a panic"),
                Deed::RunOutOfMemory => return Err("out of memory".into()),
                Deed::LoseDevice => {
                    self.is_lost.store(true, Ordering::Relaxed);
                    self.check_device();
                }
                Deed::Answer | Deed::Nonsense => {}
            }
            let answer = run(piece)?;
            if deed != Deed::Nonsense || !is_first {
                return Ok(DevicePiece::new(Answer::There(answer, download)));
            }
            let mut block = self.op.download(answer)?;
            block.data_mut()[0] = f32::NAN;
            Ok(DevicePiece::new(Answer::Here(block)))
        })
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        self.check_device();
        match answer.take()? {
            Answer::There(answer, time) => {
                sleep(time);
                self.op.download(answer)
            }
            Answer::Here(block) => Ok(block),
        }
    }

    fn check(&self) -> Result<(), BoxError> {
        self.check_device();
        self.op.check()
    }
}

/// An operation that costs next to nothing: it negates, frame by frame.
#[derive(Debug, Clone, Copy)]
pub struct Negate;

impl TileOp for Negate {
    fn geometry(&self) -> Geometry {
        Geometry::image(Scale::Up(1))
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        (0..frames).map(|frame| frame..frame + 1).collect()
    }

    fn begin(&self, _: &Stop) -> TileRun<'_> {
        Box::new(|piece| {
            let mut piece: HostTensor = piece.take()?;
            piece.data_mut().iter_mut().for_each(|value| *value = -*value);
            Ok(DevicePiece::new(piece))
        })
    }
}
