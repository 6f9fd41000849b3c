use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::{Span, Trace};

/// The figures of a finished run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunStats {
    /// Tiles that were run, of all stages.
    pub tiles: usize,
    /// Stages that followed each other, each over tiles of its own.
    pub stages: usize,
    /// Frames of the output.
    pub frames: usize,
    /// Tiles that were run again in a wider dtype.
    pub upcast_tiles: usize,
    /// The time from the first read to the last piece written.
    #[serde(rename = "seconds", serialize_with = "seconds")]
    pub elapsed: Duration,
    /// Figures of each worker. Workers that stood by to the end, because there were fewer tiles than workers, are left out.
    pub workers: Vec<WorkerStats>,
    /// Every stage of every piece.
    #[serde(skip)]
    pub trace: Trace,
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    duration.as_secs_f64().serialize(serializer)
}

impl RunStats {
    /// The figures of runs on the same workers, or some of them, that follow each other, as of one.
    ///
    /// # Panics
    /// When there is none.
    pub fn of_parts(parts: Vec<Self>) -> Self {
        let mut parts = parts.into_iter();
        let mut all = parts.next().expect("a run");
        for part in parts {
            for worker in part.workers {
                match all.workers.iter_mut().find(|own| own.name == worker.name) {
                    Some(own) => own.add(worker),
                    None => all.workers.push(worker),
                }
            }
            let mut place = |name: String| {
                let known = all.trace.workers.iter().position(|own| *own == name);
                known.unwrap_or_else(|| {
                    all.trace.workers.push(name);
                    all.trace.workers.len() - 1
                })
            };
            let places: Vec<usize> = part.trace.workers.into_iter().map(&mut place).collect();
            let later = |span: Span| Span {
                worker: span.worker.map(|worker| places[worker]),
                tile: all.tiles + span.tile,
                start: all.elapsed + span.start,
                end: all.elapsed + span.end,
                ..span
            };
            all.trace.spans.extend(part.trace.spans.into_iter().map(later));
            all.tiles += part.tiles;
            all.stages += part.stages;
            all.frames = part.frames;
            all.upcast_tiles += part.upcast_tiles;
            all.elapsed += part.elapsed;
        }
        all
    }

    /// The length of the run over that of an ideal one, in which every worker is busy to the end at its measured speed: 1 is the best.
    pub fn schedule_loss(&self) -> f64 {
        let speeds: f64 =
            self.workers.iter().filter(|worker| worker.busy > Duration::ZERO).map(|worker| worker.work / worker.busy.as_secs_f64()).sum();
        let work: f64 = self.workers.iter().map(|worker| worker.work).sum();
        self.elapsed.as_secs_f64() * speeds / work
    }

    /// The share of all workers' time in which they were busy.
    pub fn busy_share(&self) -> f64 {
        let busy: f64 = self.workers.iter().map(|worker| worker.busy.as_secs_f64()).sum();
        busy / (self.elapsed.as_secs_f64() * self.workers.len() as f64)
    }
}

/// The figures of a worker.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorkerStats {
    /// Its name.
    pub name: String,
    /// Tiles that it finished.
    pub tiles: usize,
    /// The input px of those tiles, over all their frames.
    pub work: f64,
    /// The time in which its device had something to do.
    #[serde(rename = "busy_seconds", serialize_with = "seconds")]
    pub busy: Duration,
    /// Bytes copied to the device.
    pub uploaded_bytes: u64,
    /// Bytes copied back.
    pub downloaded_bytes: u64,
    /// Its failures.
    pub faults: usize,
    /// Why it was retired, or limited to smaller tiles, if so.
    pub retired: Option<String>,
    /// Whether it was limited to smaller tiles, and not retired.
    #[serde(skip)]
    pub is_limited: bool,
}

impl WorkerStats {
    /// Adds the figures of a later run.
    fn add(&mut self, later: Self) {
        self.tiles += later.tiles;
        self.work += later.work;
        self.busy += later.busy;
        self.uploaded_bytes += later.uploaded_bytes;
        self.downloaded_bytes += later.downloaded_bytes;
        self.faults += later.faults;
        self.is_limited = if later.retired.is_some() { later.is_limited } else { self.is_limited };
        self.retired = later.retired.or(self.retired.take());
    }

    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            tiles: 0,
            work: 0.0,
            busy: Duration::ZERO,
            uploaded_bytes: 0,
            downloaded_bytes: 0,
            faults: 0,
            retired: None,
            is_limited: false,
        }
    }
}
