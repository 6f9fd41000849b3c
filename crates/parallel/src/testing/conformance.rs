use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use tiling::{
    BlendPolicy, BoxError, Canvas, Cascade, Compositor, Corner, Geometry, HostTensor, Party, Region, Scale, Sink, Stop, TilePlan, TileSource,
    Uniform, catch,
};

use super::{Behavior, Negate, Scripted};
use crate::{Event, ExecError, Executor, Job, Progress, RunStats, Sequential, Worker};

/// The time after which a run counts as hung.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs all tests below on an executor, with the numbers of workers from 1 to 4 that it can use.
///
/// # Panics
/// When the executor fails a test.
pub fn executor_conformance(executor: impl Executor + Clone + 'static) {
    same_bytes_as_sequential(executor.clone());
    failures_end_the_run_or_are_retried(executor.clone());
    stops_end_the_run(executor.clone());
    panics_become_errors(executor);
}

/// Every number of workers at every pace gives the bytes of [`Sequential`], in events that count up to the end.
///
/// # Panics
/// When the executor fails the test.
pub fn same_bytes_as_sequential(executor: impl Executor + Clone + 'static) {
    let expected = run(&Sequential, Given::new(1, |_| Behavior::Answer)).expect("sequential succeeds");
    for count in worker_counts(&executor) {
        for pace in [|_| Behavior::Answer, |n| Behavior::AnswerAfter(Duration::from_millis(n as u64 * 7 % 3))] {
            let run = run(&executor, Given::new(count, pace)).expect("nothing fails");
            assert_eq!(run.output, expected.output, "{count} workers");
            assert_eq!((run.stats.tiles, run.stats.frames), (expected.stats.tiles, expected.stats.frames));
            let finished: Vec<usize> =
                run.events.iter().filter_map(|event| if let Event::TileFinished { tile, .. } = event { Some(*tile) } else { None }).collect();
            assert_eq!(finished.len(), expected.stats.tiles, "each tile is finished once");
            assert!((0..expected.stats.tiles).all(|tile| finished.contains(&tile)));
            assert!(matches!(run.events.first(), Some(Event::Started { workers, .. }) if workers.len() == count));
        }
    }
}

/// A failure of the operation ends the run with an error, or the tile is run again and the bytes are right.
///
/// # Panics
/// When the executor fails the test.
pub fn failures_end_the_run_or_are_retried(executor: impl Executor + Clone + 'static) {
    let expected = run(&Sequential, Given::new(1, |_| Behavior::Answer)).expect("sequential succeeds").output;
    let behaviors =
        [Behavior::Fail, Behavior::FailAt(1, Duration::ZERO), Behavior::Panic, Behavior::NotFinite, Behavior::OutOfMemory, Behavior::LoseDevice];
    for count in worker_counts(&executor) {
        for behavior in behaviors {
            match run(&executor, Given::new(count, move |n| if n == 2 { behavior } else { Behavior::Answer })) {
                Ok(run) => assert_eq!(run.output, expected, "{behavior:?}"),
                Err(error) => assert!(!matches!(error, ExecError::Stopped | ExecError::Unfinished(_)), "{behavior:?}: {error}"),
            }
            assert!(run(&executor, Given::new(count, move |_| behavior)).is_err(), "{behavior:?} on every tile");
        }
    }
}

/// A stop ends the run with [`ExecError::Stopped`]; no further tile is begun.
///
/// # Panics
/// When the executor fails the test.
pub fn stops_end_the_run(executor: impl Executor + Clone + 'static) {
    for count in worker_counts(&executor) {
        let mut given = Given::new(count, |_| Behavior::AnswerAfter(Duration::from_millis(2)));
        let begun = given.operation.clone();
        given.stop_at_piece = Some(3);
        let error = run(&executor, given).expect_err("the run is stopped");
        assert!(matches!(error, ExecError::Stopped), "{error}");
        // Those that are at their tile may end it.
        let after = begun.begun();
        thread::sleep(Duration::from_millis(20));
        assert!(begun.begun() <= after + count && begun.begun() < plan().tiles.len(), "tiles are begun after the end");
    }
}

/// A panic of the source, the sink, the blend policy or the listener ends the run with an error that says which it was.
///
/// # Panics
/// When the executor fails the test.
pub fn panics_become_errors(executor: impl Executor + Clone + 'static) {
    for count in worker_counts(&executor) {
        for who in [Party::Source, Party::Sink, Party::Blend, Party::Listener] {
            for calls in [0, 5] {
                let mut given = Given::new(count, |_| Behavior::Answer);
                given.panics = Some((who, calls));
                let error = run(&executor, given).err();
                // There may be fewer calls.
                let is_right =
                    |error: &ExecError| matches!(error, ExecError::PartyPanicked(panic) if panic.who == who && panic.message == "on purpose");
                assert!(error.as_ref().is_some_and(is_right) || (who == Party::Blend && calls > 0 && error.is_none()), "{who}: {error:?}");
            }
        }
    }
}

/// Runs `work` on a thread of its own.
///
/// # Panics
/// When it panics, or does not end within 30 seconds.
pub fn within<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = thread::spawn(move || drop(sender.send(work())));
    match receiver.recv_timeout(LIMIT) {
        Ok(answer) => answer,
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(()) => unreachable!("the output was sent"),
        },
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the run hangs"),
    }
}

fn worker_counts(executor: &impl Executor) -> Vec<usize> {
    assert!(executor.check_workers(0).is_err(), "a run needs a worker");
    (1..=4).filter(|&count| executor.check_workers(count).is_ok()).collect()
}

fn source() -> HostTensor {
    HostTensor::from_fn([1, 2, 2, 11, 17], |[_, c, t, y, x]| ((c * 7 + t * 5 + y * 3 + x) as f32).sin())
}

fn plan() -> TilePlan {
    TilePlan::new(&Uniform::with_tile([4, 5], [1, 2]), Geometry::image(Scale::Up(1)), source().extent()).expect("a small grid")
}

/// What a run is given.
struct Given {
    workers: usize,
    operation: Arc<Scripted>,
    stop_at_piece: Option<usize>,
    /// The party that panics after a number of calls.
    panics: Option<(Party, usize)>,
}

impl Given {
    fn new(workers: usize, script: impl Fn(usize) -> Behavior + Send + Sync + 'static) -> Self {
        Self { workers, operation: Arc::new(Scripted::new(Arc::new(Negate), script)), stop_at_piece: None, panics: None }
    }
}

/// A finished run.
#[derive(Debug)]
struct Outcome {
    output: HostTensor,
    stats: RunStats,
    events: Vec<Event>,
}

/// A run that must neither hang nor unwind.
fn run(executor: &(impl Executor + Clone + 'static), given: Given) -> Result<Outcome, ExecError> {
    let executor = executor.clone();
    within(move || {
        let Given { workers, operation, stop_at_piece, panics } = given;
        let workers: Vec<Worker> = (0..workers).map(|n| Worker::new(n.to_string(), operation.clone())).collect();
        let (plan, stop) = (plan(), Stop::default());
        let bomb = |who: Party| Bomb(panics.filter(|(party, _)| *party == who).map(|(_, calls)| AtomicUsize::new(calls)));
        let source = Source(source(), bomb(Party::Source));
        let blend = Blend(bomb(Party::Blend));
        let mut sink = Output { canvas: Canvas::default(), bomb: bomb(Party::Sink), pieces: 0, stop_at: stop_at_piece, stop: stop.clone() };
        let mut progress = Log(Vec::new(), bomb(Party::Listener));
        let compositor = Compositor::new(&plan, &blend, &mut sink);
        let job = Job { plan: &plan, source: &source, workers: &workers, compositor, stop: &stop };
        let stats = catch(|| executor.run(job, &mut progress)).expect("a run does not unwind")?;
        Ok(Outcome { output: sink.canvas.into_tensor(), stats, events: progress.0 })
    })
}

/// Panics after a number of calls, if one is given.
#[derive(Debug)]
struct Bomb(Option<AtomicUsize>);

impl Bomb {
    fn call(&self) {
        let Some(left) = &self.0 else { return };
        let is_due = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(1))) == Ok(0);
        assert!(!is_due, "on purpose");
    }
}

struct Source(HostTensor, Bomb);

impl TileSource for Source {
    fn shape(&self) -> [usize; 5] {
        self.0.shape()
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        self.1.call();
        Ok(self.0.region(region))
    }
}

#[derive(Debug)]
struct Blend(Bomb);

impl BlendPolicy for Blend {
    fn weight(&self, offset: usize, seam: &tiling::Seam) -> f64 {
        self.0.call();
        Cascade.weight(offset, seam)
    }

    fn corner(&self) -> Corner {
        Cascade.corner()
    }
}

struct Output {
    canvas: Canvas,
    bomb: Bomb,
    pieces: usize,
    stop_at: Option<usize>,
    stop: Stop,
}

impl Sink for Output {
    fn take(&mut self, start: [usize; 3], extent: [usize; 3], piece: HostTensor) -> Result<(), BoxError> {
        self.bomb.call();
        self.pieces += 1;
        if self.stop_at == Some(self.pieces) {
            self.stop.stop();
        }
        self.canvas.take(start, extent, piece)
    }
}

struct Log(Vec<Event>, Bomb);

impl Progress for Log {
    fn on_event(&mut self, event: &Event) {
        self.1.call();
        self.0.push(event.clone());
    }
}
