use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

/// The stages of a run with their times.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Trace {
    /// The names of the workers.
    pub workers: Vec<String>,
    /// The stages, on workers and on the host, in the order in which they ended.
    pub spans: Vec<Span>,
}

/// A stage of a piece of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Span {
    /// The worker; none where the host blends.
    pub worker: Option<usize>,
    /// The stage.
    pub stage: Stage,
    /// The tile; of a stack, its first.
    pub tile: usize,
    /// Tiles in the stack.
    pub stacked: usize,
    /// The piece's first frame: of the tile's input, or, of [`Stage::Blend`], of its output.
    pub frame: usize,
    /// From the beginning of the run.
    pub start: Duration,
    /// From the beginning of the run.
    pub end: Duration,
}

/// A stage of the work on a piece of a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Reads the piece from the input.
    Read,
    /// Copies it to the device.
    Upload,
    /// Runs the operation. On a device that works asynchronously, part of that time shows up in [`Download`](Self::Download).
    Compute,
    /// Copies the output back.
    Download,
    /// Blends the output and hands what is finished to the sink.
    Blend,
}

impl Stage {
    /// All stages, in order.
    pub const ALL: [Self; 5] = [Self::Read, Self::Upload, Self::Compute, Self::Download, Self::Blend];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Upload => "upload",
            Self::Compute => "compute",
            Self::Download => "download",
            Self::Blend => "blend",
        }
    }

    /// Whether it keeps the device busy.
    pub fn is_on_device(self) -> bool {
        matches!(self, Self::Upload | Self::Compute | Self::Download)
    }
}

impl Trace {
    /// The time in which a worker's device had something to do.
    pub fn busy(&self, worker: usize) -> Duration {
        let mut spans: Vec<[Duration; 2]> =
            self.spans.iter().filter(|span| span.worker == Some(worker) && span.stage.is_on_device()).map(|span| [span.start, span.end]).collect();
        spans.sort_unstable();
        let (mut busy, mut until) = (Duration::ZERO, Duration::ZERO);
        for [start, end] in spans {
            busy += end.saturating_sub(start.max(until));
            until = until.max(end);
        }
        busy
    }
}

/// Records spans and transfers, from any thread.
#[derive(Debug)]
pub(crate) struct Recorder {
    start: Instant,
    spans: Mutex<Vec<Span>>,
    /// Bytes up and down, for each worker.
    transferred: Vec<[AtomicU64; 2]>,
}

/// The tile and piece that a span belongs to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject {
    pub(crate) worker: Option<usize>,
    pub(crate) tile: usize,
    pub(crate) stacked: usize,
    pub(crate) frame: usize,
}

/// The direction of a copy.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Transfer {
    Upload,
    Download,
}

impl Recorder {
    pub(crate) fn new(workers: usize) -> Self {
        Self { start: Instant::now(), spans: Mutex::default(), transferred: (0..workers).map(|_| <[AtomicU64; 2]>::default()).collect() }
    }

    /// The time since the beginning of the run.
    pub(crate) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Runs `work` and records its time.
    pub(crate) fn time<T>(&self, stage: Stage, subject: Subject, work: impl FnOnce() -> T) -> T {
        let start = self.now();
        let done = work();
        let Subject { worker, tile, stacked, frame } = subject;
        let span = Span { worker, stage, tile, stacked, frame, start, end: self.now() };
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).push(span);
        done
    }

    /// All spans so far.
    pub(crate) fn trace(&self, workers: Vec<String>) -> Trace {
        Trace { workers, spans: std::mem::take(&mut *self.spans.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// Counts bytes that are copied to or from a worker's device.
    pub(crate) fn count(&self, worker: usize, direction: Transfer, bytes: usize) {
        self.transferred[worker][direction as usize].fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes up and down.
    pub(crate) fn transferred(&self, worker: usize) -> [u64; 2] {
        self.transferred[worker].each_ref().map(|bytes| bytes.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlaps_is_counted_once() {
        let span = |worker, stage, start, end| {
            let [start, end] = [start, end].map(Duration::from_millis);
            Span { worker: Some(worker), stage, tile: 0, stacked: 1, frame: 0, start, end }
        };
        let spans = vec![
            span(0, Stage::Read, 0, 9),
            span(0, Stage::Compute, 20, 30),
            span(0, Stage::Upload, 10, 15),
            span(0, Stage::Download, 25, 40),
            span(0, Stage::Upload, 21, 22),
            span(1, Stage::Compute, 0, 1000),
        ];
        assert_eq!(Trace { workers: Vec::new(), spans }.busy(0), Duration::from_millis(25));
    }
}
