//! Every executor against a toy whose tiles can be slow, fail, panic or answer nonsense.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tiling::{Block, BoxError, Canvas, Cascade, Compositor, Emit, Geometry, Region, Scale, Sink, TileInput, TileOp, TilePlan, TileSource, Uniform};

use crate::{Done, ExecError, Executor, Job, MultiDevice, Progress, RunStats, Sequential, Stop, Worker};

/// What a toy does with its `n`-th tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Answer,
    /// After this many milliseconds.
    AnswerLate(u64),
    Fail,
    /// After its first frame.
    FailLate,
    Panic,
    Nonsense,
}

/// Negates, frame by frame.
struct Toy {
    deeds: fn(usize) -> Deed,
    begun: AtomicUsize,
}

fn toy(name: &str, deeds: fn(usize) -> Deed) -> Worker {
    Worker { name: name.to_owned(), op: Arc::new(Toy { deeds, begun: AtomicUsize::new(0) }) }
}

impl TileOp for Toy {
    fn geometry(&self) -> Geometry {
        Geometry::image(Scale::Up(1))
    }

    fn run(&self, tile: &TileInput<'_>, emit: &mut Emit<'_>) -> Result<(), BoxError> {
        let deed = (self.deeds)(self.begun.fetch_add(1, Ordering::Relaxed));
        for frame in 0..tile.shape()[2] {
            let mut piece = tile.frames(frame..frame + 1)?;
            match deed {
                Deed::AnswerLate(milliseconds) => std::thread::sleep(Duration::from_millis(milliseconds)),
                Deed::Fail => return Err("a failure".into()),
                Deed::FailLate if frame > 0 => return Err("a late failure".into()),
                Deed::Panic => panic!("a panic"),
                Deed::Nonsense => piece.data_mut()[0] = f32::NAN,
                Deed::Answer | Deed::FailLate => {}
            }
            piece.data_mut().iter_mut().for_each(|value| *value = -*value);
            emit(piece)?;
        }
        Ok(())
    }
}

/// Two frames.
fn clip() -> Block {
    Block::from_fn([1, 2, 2, 11, 17], |[_, c, t, y, x]| ((c * 7 + t * 5 + y * 3 + x) as f32).sin())
}

fn plan() -> TilePlan {
    TilePlan::new(&Uniform::with_tile([4, 5], [1, 2]), Geometry::image(Scale::Up(1)), clip().extent()).unwrap()
}

/// The last that was heard, which must have grown all along.
#[derive(Default)]
struct Heard(Done);

impl Progress for Heard {
    fn advanced(&mut self, done: Done) {
        assert!(done.tiles >= self.0.tiles && done.frames >= self.0.frames && done.tiles <= done.of_tiles);
        self.0 = done;
    }
}

fn run_to(executor: &dyn Executor, source: &dyn TileSource, workers: &[Worker], sink: &mut dyn Sink) -> Result<RunStats, ExecError> {
    let plan = plan();
    let mut heard = Heard::default();
    let compositor = Compositor::new(&plan, &Cascade, sink);
    let stats = executor.run(Job { plan: &plan, source, workers, compositor, stop: &Stop::default() }, &mut heard)?;
    let all = Done { tiles: plan.tiles.len(), of_tiles: plan.tiles.len(), frames: 2 * plan.tiles.len(), of_frames: 2 * plan.tiles.len() };
    assert_eq!((heard.0, stats.tiles, stats.frames), (all, plan.tiles.len(), 2));
    assert_eq!(stats.workers.iter().map(|worker| worker.tiles).sum::<usize>(), plan.tiles.len());
    Ok(stats)
}

fn run(executor: &dyn Executor, workers: &[Worker]) -> Result<(Block, RunStats), ExecError> {
    let mut canvas = Canvas::default();
    let stats = run_to(executor, &clip(), workers, &mut canvas)?;
    Ok((canvas.into_block(), stats))
}

const MULTI: MultiDevice = MultiDevice { retries: 2 };

fn executors() -> [&'static dyn Executor; 2] {
    [&Sequential, &MULTI]
}

fn negative() -> Block {
    let mut negative = clip();
    negative.data_mut().iter_mut().for_each(|value| *value = -*value);
    negative
}

fn close(a: &Block, b: &Block) -> bool {
    a.shape() == b.shape() && a.data().iter().zip(b.data()).all(|(a, b)| (a - b).abs() < 1e-6)
}

#[test]
fn every_tile_is_run_and_blended() {
    assert!(plan().tiles.len() > 15);
    for executor in executors() {
        let (answer, _) = run(executor, &[toy("a", |_| Deed::Answer)]).unwrap();
        assert!(close(&answer, &negative()), "{}", executor.name());
    }
}

#[test]
fn any_number_of_workers_at_any_pace_gives_the_same_bytes() {
    let (expected, _) = run(&Sequential, &[toy("a", |_| Deed::Answer)]).unwrap();
    let paces: [fn(usize) -> Deed; 4] = [
        |_| Deed::Answer,
        |n| Deed::AnswerLate((n as u64 * 7) % 3),
        |n| if n % 5 == 0 { Deed::AnswerLate(4) } else { Deed::Answer },
        |n| Deed::AnswerLate(2 - (n as u64 % 3)),
    ];
    for round in 0..30 {
        for count in 1..=8 {
            let workers: Vec<Worker> = (0..count).map(|i| toy(&i.to_string(), paces[(i + round) % 4])).collect();
            assert_eq!(run(&MULTI, &workers).unwrap().0, expected);
        }
    }
}

#[test]
fn faults_of_one_worker_are_made_good_by_another() {
    let (expected, _) = run(&Sequential, &[toy("a", |_| Deed::Answer)]).unwrap();
    for fault in [
        (|_| Deed::Fail) as fn(usize) -> Deed,
        |_| Deed::Panic,
        |_| Deed::Nonsense,
        |_| Deed::FailLate,
        |n| if n % 2 == 0 { Deed::FailLate } else { Deed::Answer },
        |n| if n > 2 { Deed::Panic } else { Deed::Answer },
    ] {
        let workers = [toy("bad", fault), toy("good", |_| Deed::AnswerLate(1))];
        let (answer, stats) = run(&MULTI, &workers).unwrap();
        assert_eq!(answer, expected);
        assert!(stats.workers[0].faults > 0 && stats.workers[1].faults == 0, "{stats:?}");
    }
}

#[test]
fn a_worker_that_fails_three_times_in_a_row_gets_no_more_tiles() {
    let (_, stats) = run(&MULTI, &[toy("bad", |_| Deed::Fail), toy("good", |_| Deed::AnswerLate(2))]).unwrap();
    assert_eq!((stats.workers[0].faults, stats.workers[0].tiles), (3, 0));
}

#[test]
fn a_run_ends_with_an_error_when_a_tile_fails_everywhere() {
    for count in 1..=4 {
        for fault in [(|_| Deed::Fail) as fn(usize) -> Deed, |_| Deed::Panic, |_| Deed::Nonsense] {
            let workers: Vec<Worker> = (0..count).map(|i| toy(&i.to_string(), fault)).collect();
            let error = run(&MULTI, &workers).unwrap_err();
            assert!(matches!(error, ExecError::Tile { .. } | ExecError::Panicked { .. }), "{error}");
        }
    }
    let error = run(&Sequential, &[toy("a", |n| if n == 3 { Deed::Panic } else { Deed::Answer })]).unwrap_err();
    assert!(matches!(&error, ExecError::Panicked { tile: 3, message } if message == "a panic"), "{error}");
    let error = run(&Sequential, &[toy("a", |n| if n == 2 { Deed::Fail } else { Deed::Answer })]).unwrap_err();
    assert!(matches!(&error, ExecError::Tile { tile: 2, source } if source.to_string() == "a failure"), "{error}");
}

#[test]
fn numbers_that_are_none_in_the_input_are_no_fault() {
    let mut odd = clip();
    odd.data_mut()[40] = f32::NAN;
    for executor in executors() {
        let mut canvas = Canvas::default();
        let stats = run_to(executor, &odd, &[toy("a", |_| Deed::Answer), toy("b", |_| Deed::Answer)][..1], &mut canvas).unwrap();
        assert!(stats.workers[0].faults == 0 && canvas.into_block().data().iter().any(|value| value.is_nan()));
    }
}

struct Unreadable;

impl TileSource for Unreadable {
    fn shape(&self) -> [usize; 5] {
        clip().shape()
    }

    fn read(&self, _: &Region) -> Result<Block, BoxError> {
        Err("gone".into())
    }
}

/// Takes some pieces, slowly, and then no more.
struct Full(usize);

impl Sink for Full {
    fn take(&mut self, _: [usize; 3], _: [usize; 3], _: Block) -> Result<(), BoxError> {
        std::thread::sleep(Duration::from_millis(1));
        self.0 = self.0.checked_sub(1).ok_or("full")?;
        Ok(())
    }
}

#[test]
fn sources_and_sinks_that_fail_end_the_run() {
    let workers: Vec<Worker> = (0..3).map(|i| toy(&i.to_string(), |_| Deed::Answer)).collect();
    for (executor, count) in [(executors()[0], 1), (executors()[1], 3)] {
        let error = run_to(executor, &Unreadable, &workers[..count], &mut Canvas::default()).unwrap_err();
        assert!(matches!(error, ExecError::Source { .. }), "{error}");
        let error = run_to(executor, &clip(), &workers[..count], &mut Full(9)).unwrap_err();
        assert!(matches!(error, ExecError::Composite { source: tiling::CompositeError::Sink(_), .. }), "{error}");
    }
}

#[test]
fn workers_are_counted_before_they_run() {
    let one = [toy("a", |_| Deed::Answer)];
    let two = [one[0].clone(), one[0].clone()];
    for executor in executors() {
        assert!(matches!(run(executor, &[]), Err(ExecError::NoDevice)));
    }
    assert!(matches!(run(&Sequential, &two), Err(ExecError::TooManyDevices { got: 2, .. })));
    assert!(run(&MULTI, &two).is_ok());
}

/// Throws a switch at its third piece.
struct Thrower(Stop, usize);

impl Sink for Thrower {
    fn take(&mut self, _: [usize; 3], _: [usize; 3], _: Block) -> Result<(), BoxError> {
        self.1 += 1;
        if self.1 == 3 {
            self.0.stop();
        }
        Ok(())
    }
}

#[test]
fn a_stopped_run_ends_within_its_tiles() {
    for (executor, count) in [(executors()[0], 1), (executors()[1], 1), (executors()[1], 4)] {
        let workers: Vec<Worker> = (0..count).map(|i| toy(&i.to_string(), |_| Deed::AnswerLate(2))).collect();
        let (plan, clip, stop) = (plan(), clip(), Stop::default());
        let mut sink = Thrower(stop.clone(), 0);
        let compositor = Compositor::new(&plan, &Cascade, &mut sink);
        let error = executor.run(Job { plan: &plan, source: &clip, workers: &workers, compositor, stop: &stop }, &mut ()).unwrap_err();
        assert!(matches!(error, ExecError::Stopped), "{error}");
        assert!(sink.1 <= 3 + 2 * count, "{} pieces", sink.1);
    }
}
