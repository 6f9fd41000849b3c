//! Every executor against an operation whose tiles can be slow, fail, panic or answer nonsense.

mod faults;

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use tiling::{
    BoxError, Canvas, Cascade, Compositor, DevicePiece, Geometry, HostTensor, Region, Scale, Sink, TileOp, TilePlan, TileRun, TileSource, Uniform,
};

use crate::testing::{Deed, Negate, Scripted};
use crate::{Count, Done, Event, ExecError, Executor, Job, MultiDevice, Pipelined, Progress, RunStats, Sequential, Stage, Stop, Worker};

const fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn scripted(name: &str, script: impl Fn(usize) -> Deed + Send + Sync + 'static) -> Worker {
    Worker::new(name, Arc::new(Scripted::new(Arc::new(Negate), script)))
}

fn good(name: &str) -> Worker {
    Worker::new(name, Arc::new(Negate))
}

/// Two frames.
fn clip() -> HostTensor {
    HostTensor::from_fn([1, 2, 2, 11, 17], |[_, c, t, y, x]| ((c * 7 + t * 5 + y * 3 + x) as f32).sin())
}

fn plan() -> TilePlan {
    TilePlan::new(&Uniform::with_tile([4, 5], [1, 2]), Geometry::image(Scale::Up(1)), clip().extent()).unwrap()
}

/// The last that was heard, which must have grown all along.
#[derive(Default)]
struct Heard {
    done: Done,
    events: Vec<Event>,
}

impl Progress for Heard {
    fn on_event(&mut self, event: &Event) {
        if let Event::Advanced(done) | Event::TileFinished { done, .. } = *event {
            assert!(
                done.tiles >= self.done.tiles
                    && done.tile_frames >= self.done.tile_frames
                    && done.output_frames >= self.done.output_frames
                    && done.tiles <= done.of_tiles
            );
            self.done = done;
        }
        self.events.push(event.clone());
    }
}

fn run_to(executor: &dyn Executor, source: &dyn TileSource, workers: &[Worker], sink: &mut dyn Sink) -> Result<(RunStats, Vec<Event>), ExecError> {
    let plan = plan();
    let mut heard = Heard::default();
    let compositor = Compositor::new(&plan, &Cascade, sink);
    let stats = executor.run(Job { plan: &plan, source, workers, compositor, stop: &Stop::default() }, &mut heard)?;
    let [tiles, frames] = [plan.tiles.len(), 2 * plan.tiles.len()];
    let all = Done { tiles, of_tiles: tiles, output_frames: 2, of_output_frames: 2, tile_frames: frames, of_tile_frames: frames };
    assert_eq!((heard.done, stats.tiles, stats.frames), (all, plan.tiles.len(), 2));
    assert_eq!(stats.workers.iter().map(|worker| worker.tiles).sum::<usize>(), plan.tiles.len());
    Ok((stats, heard.events))
}

/// Nothing may hang: a run that has not ended in time fails its test.
fn run(executor: &(impl Executor + Clone + 'static), workers: &[Worker]) -> Result<(HostTensor, RunStats), ExecError> {
    let (executor, workers) = (executor.clone(), workers.to_vec());
    in_time(move || {
        let mut canvas = Canvas::default();
        let (stats, _) = run_to(&executor, &clip(), &workers, &mut canvas)?;
        Ok((canvas.into_block(), stats))
    })
}

fn in_time<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || drop(sender.send(work())));
    let answer = receiver.recv_timeout(Duration::from_secs(30));
    match answer {
        Ok(answer) => answer,
        Err(mpsc::RecvTimeoutError::Disconnected) => std::panic::resume_unwind(thread.join().unwrap_err()),
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the run hangs"),
    }
}

/// The executors that use many workers, as one type.
#[derive(Debug, Clone, Copy)]
enum Many {
    Multi(MultiDevice),
    Pipe(Pipelined),
}

impl Executor for Many {
    fn name(&self) -> &'static str {
        self.inner().name()
    }

    fn check_workers(&self, count: usize) -> Result<(), ExecError> {
        self.inner().check_workers(count)
    }

    fn held_tiles(&self, plan: &TilePlan, workers: usize) -> usize {
        self.inner().held_tiles(plan, workers)
    }

    fn run(&self, job: Job<'_>, progress: &mut dyn Progress) -> Result<RunStats, ExecError> {
        self.inner().run(job, progress)
    }
}

impl Many {
    fn inner(&self) -> &dyn Executor {
        match self {
            Self::Multi(executor) => executor,
            Self::Pipe(executor) => executor,
        }
    }
}

fn many(change: impl Fn(&mut MultiDevice)) -> [Many; 3] {
    let mut devices = MultiDevice::default();
    change(&mut devices);
    let pipe = |in_flight| Many::Pipe(Pipelined { in_flight: NonZeroUsize::new(in_flight).unwrap(), devices });
    [Many::Multi(devices), pipe(1), pipe(3)]
}

fn negative() -> HostTensor {
    let mut negative = clip();
    negative.data_mut().iter_mut().for_each(|value| *value = -*value);
    negative
}

fn close(a: &HostTensor, b: &HostTensor) -> bool {
    a.shape() == b.shape() && a.data().iter().zip(b.data()).all(|(a, b)| (a - b).abs() < 1e-6)
}

fn right_answer() -> HostTensor {
    run(&Sequential, &[good("a")]).unwrap().0
}

#[test]
fn every_tile_is_run_and_blended() {
    assert!(plan().tiles.len() > 15);
    assert!(close(&right_answer(), &negative()));
    for executor in many(|_| ()) {
        assert!(close(&run(&executor, &[good("a")]).unwrap().0, &negative()), "{}", executor.name());
    }
}

#[test]
fn any_number_of_workers_at_any_pace_gives_the_same_bytes() {
    let expected = right_answer();
    let paces: [fn(usize) -> Deed; 4] = [
        |_| Deed::Answer,
        |n| Deed::AnswerAfter(ms((n as u64 * 7) % 3)),
        |n| if n % 5 == 0 { Deed::AnswerAfter(ms(4)) } else { Deed::Answer },
        |n| Deed::AnswerAfter(ms(2 - (n as u64 % 3))),
    ];
    let mut schedules = 0;
    for batch in [Count::ONE, Count::Exactly(NonZeroUsize::new(3).unwrap()), Count::Auto] {
        for executor in many(|devices| devices.batch_tiles = batch) {
            for round in 0..if batch == Count::ONE { 16 } else { 4 } {
                for count in 1..=8 {
                    let workers: Vec<Worker> = (0..count).map(|i| scripted(&i.to_string(), paces[(i + round) % 4])).collect();
                    assert_eq!(run(&executor, &workers).unwrap().0, expected);
                    schedules += 1;
                }
            }
        }
    }
    assert!(schedules > 500);
}

#[test]
fn faults_of_one_worker_are_made_good_by_another() {
    let expected = right_answer();
    for fault in [
        (|_| Deed::Fail) as fn(usize) -> Deed,
        |_| Deed::Panic,
        |_| Deed::Nonsense,
        |_| Deed::FailAt(1, Duration::ZERO),
        |_| Deed::RunOutOfMemory,
        |n| if n % 2 == 0 { Deed::FailAt(1, Duration::ZERO) } else { Deed::Answer },
        |n| if n > 2 { Deed::Panic } else { Deed::Answer },
        |n| if n == 2 { Deed::LoseDevice } else { Deed::Answer },
        |n| if n == 0 { Deed::RunOutOfMemory } else { Deed::Answer },
    ] {
        for executor in many(|_| ()) {
            let workers = [scripted("bad", fault), scripted("good", |_| Deed::AnswerAfter(ms(1)))];
            let (answer, stats) = run(&executor, &workers).unwrap();
            assert_eq!(answer, expected);
            assert!(stats.workers[0].faults > 0 && stats.workers[1].faults == 0, "{stats:?}");
        }
    }
}

#[test]
fn one_sound_worker_among_many_is_enough() {
    for executor in many(|devices| devices.retries = 0) {
        for fault in [Deed::Fail, Deed::Panic, Deed::LoseDevice, Deed::RunOutOfMemory] {
            let mut workers: Vec<Worker> = (0..7).map(|i| scripted(&i.to_string(), move |_| fault)).collect();
            workers.push(scripted("good", |_| Deed::AnswerAfter(ms(1))));
            let (answer, stats) = run(&executor, &workers).unwrap();
            assert_eq!(answer, right_answer());
            assert_eq!(stats.workers[7].tiles, plan().tiles.len());
            assert!(stats.workers.iter().filter_map(|worker| worker.retired.as_ref()).all(|cause| cause.starts_with("tile ")), "{stats:?}");
        }
    }
}

#[test]
fn a_worker_that_fails_three_times_in_a_row_gets_no_more_tiles() {
    let (_, stats) = run(&MultiDevice::default(), &[scripted("bad", |_| Deed::Fail), scripted("good", |_| Deed::AnswerAfter(ms(2)))]).unwrap();
    assert_eq!((stats.workers[0].faults, stats.workers[0].tiles), (3, 0));
    assert!(stats.workers[0].retired.as_ref().is_some_and(|cause| cause.contains("a failure")));
}

#[test]
fn tiles_that_a_retired_worker_has_not_begun_go_to_others() {
    for executor in many(|_| ()) {
        in_time(move || {
            // So many frames that the pipeline of the failing worker is full of them when it is retired.
            let source = HostTensor::from_fn([1, 1, 9, 11, 17], |[_, _, t, y, x]| (t * 5 + y * 3 + x) as f32);
            let plan = TilePlan::new(&Uniform::with_tile([4, 5], [1, 2]), Negate.geometry(), source.extent()).unwrap();
            let workers = [scripted("bad", |_| Deed::FailAt(8, ms(40))), scripted("good", |_| Deed::AnswerAfter(ms(8)))];
            let mut canvas = Canvas::default();
            let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
            let stats = executor.run(Job { plan: &plan, source: &source, workers: &workers, compositor, stop: &Stop::default() }, &mut ()).unwrap();
            assert!(stats.workers[0].retired.is_some() && stats.workers[1].tiles == plan.tiles.len(), "{:?}", stats.workers);
            assert!(canvas.into_block().data().iter().zip(source.data()).all(|(got, given)| (got + given).abs() < 1e-4));
        });
    }
}

#[test]
fn a_lost_device_gets_no_more_tiles_at_once() {
    let workers = [scripted("bad", |n| if n == 1 { Deed::LoseDevice } else { Deed::Answer }), scripted("good", |_| Deed::AnswerAfter(ms(1)))];
    let (_, stats) = run(&MultiDevice::default(), &workers).unwrap();
    assert_eq!((stats.workers[0].faults, stats.workers[0].tiles), (1, 1));
}

#[test]
fn who_has_no_tile_steps_in_for_who_fails() {
    let source = clip();
    let plan = TilePlan::new(&tiling::Off, Geometry::image(Scale::Up(1)), source.extent()).unwrap();
    for deed in [Deed::Answer, Deed::Fail, Deed::RunOutOfMemory, Deed::LoseDevice] {
        let sound = matches!(deed, Deed::Answer);
        for executor in [&MultiDevice::default() as &dyn Executor, &Pipelined::default()] {
            let workers = [scripted("first", move |_| deed), good("second"), good("third")];
            let mut canvas = Canvas::default();
            let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
            let stats = executor.run(Job { plan: &plan, source: &source, workers: &workers, compositor, stop: &Stop::default() }, &mut ()).unwrap();
            assert_eq!((stats.workers[0].tiles, stats.workers[0].faults), if sound { (1, 0) } else { (0, 1) });
            assert!(if sound { stats.workers.len() == 1 } else { stats.workers.iter().any(|worker| worker.tiles == 1) });
            assert!(canvas.into_block().data().iter().zip(source.data()).all(|(answer, value)| *answer == -value));
        }
    }
}

#[test]
fn a_device_without_memory_for_a_tile_still_runs_smaller_ones() {
    in_time(|| {
        /// Has memory for a few px only.
        struct Small(usize);

        impl TileOp for Small {
            fn geometry(&self) -> Geometry {
                Negate.geometry()
            }

            fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
                if piece.extent().iter().product::<usize>() > self.0 {
                    Err("the device is Out Of Memory".into())
                } else {
                    Ok(DevicePiece::new(piece))
                }
            }

            fn begin(&self, stop: &Stop) -> TileRun<'_> {
                Negate.begin(stop)
            }
        }

        // The last row is lower than the first.
        let source = clip();
        let plan = TilePlan::new(&tiling::DiffusersGrid { tile_px: [12, 8], ..grid() }, Negate.geometry(), source.extent()).unwrap();
        let sizes: Vec<usize> = plan.tiles.iter().map(|tile| tile.input.volume()).collect();
        let (largest, smallest) = (*sizes.iter().max().unwrap(), *sizes.iter().min().unwrap());
        assert!(smallest < largest);
        for executor in many(|_| ()) {
            let workers = [Worker::new("small", Arc::new(Small(smallest))), scripted("large", |_| Deed::AnswerAfter(ms(2)))];
            let mut canvas = Canvas::default();
            let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
            let job = Job { plan: &plan, source: &source, workers: &workers, compositor, stop: &Stop::default() };
            let stats = executor.run(job, &mut ()).unwrap();
            assert!(close(&canvas.into_block(), &negative()));
            assert!(stats.workers[0].faults > 0 && stats.workers[0].tiles >= 1 && stats.workers[0].retired.is_some(), "{stats:?}");
        }
        // Stacks that do not fit run as smaller ones.
        let batch = Count::Exactly(NonZeroUsize::new(4).unwrap());
        let (answer, stats) = run(&MultiDevice { batch_tiles: batch, ..MultiDevice::default() }, &[Worker::new("small", Arc::new(Narrow))]).unwrap();
        assert_eq!((answer, stats.workers[0].tiles), (right_answer(), crate::tests::plan().tiles.len()));
        assert!(stats.workers[0].faults > 0 && stats.workers[0].retired.is_none(), "{stats:?}");
    });
}

fn grid() -> tiling::DiffusersGrid {
    tiling::DiffusersGrid { tile_px: [8, 8], overlap: tiling::Overlap::Share([0.25; 2]), skip_redundant: false, unit_px: 1 }
}

/// Takes one tile at a time.
struct Narrow;

impl TileOp for Narrow {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn begin(&self, stop: &Stop) -> TileRun<'_> {
        let mut run = Negate.begin(stop);
        Box::new(move |piece| {
            let piece: HostTensor = piece.take()?;
            if piece.shape()[0] > 1 { Err("out of memory".into()) } else { run(DevicePiece::new(piece)) }
        })
    }
}

#[test]
fn a_run_ends_with_an_error_when_a_tile_fails_everywhere() {
    for count in 1..=4 {
        for fault in [Deed::Fail, Deed::Panic, Deed::Nonsense, Deed::LoseDevice, Deed::RunOutOfMemory] {
            for executor in many(|_| ()) {
                let workers: Vec<Worker> = (0..count).map(|i| scripted(&format!("w{i}"), move |_| fault)).collect();
                let error = run(&executor, &workers).unwrap_err();
                match &error {
                    // Each worker's cause, by name.
                    ExecError::NoWorkerLeft { causes } => {
                        assert!(
                            causes.len() == count && causes.iter().enumerate().all(|(i, cause)| cause.starts_with(&format!("w{i}: tile "))),
                            "{error}"
                        );
                    }
                    ExecError::Tile { .. } | ExecError::Panicked { .. } | ExecError::NotFinite { .. } => assert!(count == 1 || fault == Deed::Fail),
                    _ => panic!("{error}"),
                }
            }
        }
    }
    let error = run(&Sequential, &[scripted("a", |n| if n == 3 { Deed::Panic } else { Deed::Answer })]).unwrap_err();
    assert!(matches!(&error, ExecError::Panicked { tile: 3, message } if message == "a panic"), "{error}");
    let error = run(&Sequential, &[scripted("a", |n| if n == 2 { Deed::Fail } else { Deed::Answer })]).unwrap_err();
    assert!(matches!(&error, ExecError::Tile { tile: 2, source } if source.to_string() == "a failure"), "{error}");
    let error = run(&Sequential, &[scripted("a", |n| if n == 2 { Deed::Nonsense } else { Deed::Answer })]).unwrap_err();
    assert!(matches!(&error, ExecError::NotFinite { tile: 2 }), "{error}");
}

#[test]
fn answers_that_are_not_finite_are_run_again_in_a_wider_dtype() {
    // Every third tile overflows after its first frame, whoever runs it.
    struct Narrow16;

    impl TileOp for Narrow16 {
        fn geometry(&self) -> Geometry {
            Negate.geometry()
        }

        fn chunks(&self, frames: usize) -> Vec<std::ops::Range<usize>> {
            Negate.chunks(frames)
        }

        fn begin(&self, stop: &Stop) -> TileRun<'_> {
            let mut run = Negate.begin(stop);
            Box::new(move |piece| {
                let mut answer: HostTensor = run(piece)?.take()?;
                answer.data_mut().iter_mut().filter(|value| **value > 0.9999).for_each(|value| *value = f32::INFINITY);
                Ok(DevicePiece::new(answer))
            })
        }
    }

    let worker = |name: &str| Worker { upcast: Some(Arc::new(Negate)), ..Worker::new(name, Arc::new(Narrow16)) };
    let (answer, stats) = run(&Sequential, &[worker("a")]).unwrap();
    assert_eq!(answer, right_answer());
    assert!(stats.upcast_tiles > 0 && stats.upcast_tiles < stats.tiles, "{}", stats.upcast_tiles);
    for executor in many(|_| ()) {
        let (answer, many_stats) = run(&executor, &[worker("a"), worker("b")]).unwrap();
        assert_eq!((answer, many_stats.upcast_tiles), (right_answer(), stats.upcast_tiles));
        assert!(many_stats.workers.iter().all(|worker| worker.faults == 0));
    }
    assert!(matches!(run(&Sequential, &[Worker::new("a", Arc::new(Narrow16))]), Err(ExecError::NotFinite { .. })));
}

#[test]
fn numbers_that_are_none_in_the_input_are_no_fault() {
    in_time(|| {
        let mut odd = clip();
        odd.data_mut()[40] = f32::NAN;
        let mut executors: Vec<Box<dyn Executor>> = vec![Box::new(Sequential)];
        executors.extend(many(|_| ()).map(|executor| Box::new(executor) as Box<dyn Executor>));
        for executor in executors {
            let mut canvas = Canvas::default();
            let (stats, _) = run_to(executor.as_ref(), &odd, &[good("a")], &mut canvas).unwrap();
            assert!(stats.workers[0].faults == 0 && canvas.into_block().data().iter().any(|value| value.is_nan()));
        }
    });
}

#[test]
fn a_worker_that_does_not_come_back_is_left_behind() {
    for executor in many(|devices| devices.tile_timeout = Some(ms(150))) {
        let begun = Instant::now();
        let workers = [
            scripted("lost", |n| if n == 1 { Deed::AnswerAfter(Duration::from_hours(1)) } else { Deed::Answer }),
            scripted("good", |_| Deed::AnswerAfter(ms(3))),
        ];
        let (answer, stats) = run(&executor, &workers).unwrap();
        assert_eq!(answer, right_answer());
        assert!(stats.workers[0].retired.as_ref().is_some_and(|cause| cause.contains("lost did not come back")), "{stats:?}");
        assert!(begun.elapsed() < Duration::from_secs(20));
        let error = run(&executor, &[scripted("lost", |_| Deed::AnswerAfter(Duration::from_hours(1)))]).unwrap_err();
        assert!(matches!(error, ExecError::Stalled { .. }), "{error}");
    }
}

struct Unreadable;

impl TileSource for Unreadable {
    fn shape(&self) -> [usize; 5] {
        clip().shape()
    }

    fn read(&self, _: &Region) -> Result<HostTensor, BoxError> {
        Err("gone".into())
    }
}

/// Takes some pieces, slowly, and then no more.
struct Full(usize);

impl Sink for Full {
    fn take(&mut self, _: [usize; 3], _: [usize; 3], _: HostTensor) -> Result<(), BoxError> {
        std::thread::sleep(ms(1));
        self.0 = self.0.checked_sub(1).ok_or("full")?;
        Ok(())
    }
}

#[test]
fn sources_and_sinks_that_fail_end_the_run() {
    fn check(executor: impl Executor + Clone + 'static, count: usize) {
        in_time(move || {
            let workers: Vec<Worker> = (0..count).map(|i| good(&i.to_string())).collect();
            let error = run_to(&executor, &Unreadable, &workers, &mut Canvas::default()).unwrap_err();
            assert!(matches!(error, ExecError::Source { .. }), "{error}");
            let error = run_to(&executor, &clip(), &workers, &mut Full(9)).unwrap_err();
            assert!(matches!(error, ExecError::Composite { source: tiling::CompositeError::Sink(_), .. }), "{error}");
        });
    }
    check(Sequential, 1);
    for executor in many(|_| ()) {
        check(executor, 3);
    }
}

#[test]
fn workers_are_counted_before_they_run() {
    let one = [good("a")];
    let two = [one[0].clone(), one[0].clone()];
    assert!(matches!(run(&Sequential, &[]), Err(ExecError::NoDevice)));
    assert!(matches!(run(&Sequential, &two), Err(ExecError::TooManyDevices { got: 2, .. })));
    for executor in many(|_| ()) {
        assert!(matches!(run(&executor, &[]), Err(ExecError::NoDevice)));
        assert!(run(&executor, &two).is_ok());
    }
}

/// Throws a switch at its third piece.
struct Thrower(Stop, usize);

impl Sink for Thrower {
    fn take(&mut self, _: [usize; 3], _: [usize; 3], _: HostTensor) -> Result<(), BoxError> {
        self.1 += 1;
        if self.1 == 3 {
            self.0.stop();
        }
        Ok(())
    }
}

#[test]
fn a_stopped_run_ends_within_its_tiles() {
    fn check(executor: impl Executor + 'static, count: usize) {
        in_time(move || {
            let workers: Vec<Worker> = (0..count).map(|i| scripted(&i.to_string(), |_| Deed::AnswerAfter(ms(2)))).collect();
            let (plan, clip, stop) = (plan(), clip(), Stop::default());
            let mut sink = Thrower(stop.clone(), 0);
            let compositor = Compositor::new(&plan, &Cascade, &mut sink);
            let error = executor.run(Job { plan: &plan, source: &clip, workers: &workers, compositor, stop: &stop }, &mut ()).unwrap_err();
            assert!(matches!(error, ExecError::Stopped), "{error}");
            assert!(sink.1 <= 3 + 2 * count, "{} pieces", sink.1);
        });
    }
    check(Sequential, 1);
    for count in [1, 4] {
        for executor in many(|_| ()) {
            check(executor, count);
        }
    }
}

/// Counts the tiles that were begun and not yet blended.
#[derive(Default)]
struct Live {
    begun: AtomicUsize,
    placed: AtomicUsize,
    most: AtomicUsize,
}

struct Counted(Arc<Live>);

impl TileOp for Counted {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        let begun = self.0.begun.fetch_add(piece.shape()[0], Ordering::SeqCst) + piece.shape()[0];
        self.0.most.fetch_max(begun - self.0.placed.load(Ordering::SeqCst), Ordering::SeqCst);
        Ok(DevicePiece::new(piece))
    }

    fn begin(&self, stop: &Stop) -> TileRun<'_> {
        Negate.begin(stop)
    }
}

/// Takes its time.
struct Slow(Arc<Live>);

impl Sink for Slow {
    fn take(&mut self, start: [usize; 3], _: [usize; 3], _: HostTensor) -> Result<(), BoxError> {
        std::thread::sleep(ms(1));
        // Of each tile two frames come.
        if start[0] == 1 {
            self.0.placed.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

#[test]
fn no_more_tiles_are_held_than_is_said_however_slow_the_output_is() {
    in_time(|| {
        for batch in [1, 2] {
            for executor in many(|devices| devices.batch_tiles = Count::Exactly(NonZeroUsize::new(batch).unwrap())) {
                for count in 1..=3 {
                    let live = Arc::new(Live::default());
                    let workers: Vec<Worker> = (0..count).map(|i| Worker::new(i.to_string(), Arc::new(Counted(live.clone())))).collect();
                    let plan = plan();
                    run_to(&executor, &clip(), &workers, &mut Slow(live.clone())).unwrap();
                    let (most, stated) = (live.most.load(Ordering::SeqCst), executor.held_tiles(&plan, count));
                    assert_eq!(live.placed.load(Ordering::SeqCst), plan.tiles.len());
                    assert!(most >= count && most <= stated, "{most} tiles, {stated} were stated");
                    // What was begun faster than it was taken has waited.
                    assert!(count > 1 || stated < plan.tiles.len(), "{stated}");
                }
            }
        }
    });
}

#[test]
fn stages_of_a_pipeline_overlap() {
    let pace = Deed::AnswerInStages([ms(4), ms(6), ms(4)]);
    let overlap = |executor: Many| {
        let (_, stats) = run(&executor, &[scripted("a", move |_| pace)]).unwrap();
        let spans = &stats.trace.spans;
        let of = |stage: Stage| spans.iter().filter(move |span| span.stage == stage);
        for stage in Stage::ALL {
            assert_eq!(of(stage).count(), 2 * plan().tiles.len(), "{stage:?}");
        }
        let meets = |a: Stage, b: Stage| of(a).any(|a| of(b).any(|b| a.start < b.end && b.start < a.end));
        [
            meets(Stage::Upload, Stage::Compute),
            meets(Stage::Compute, Stage::Download),
            meets(Stage::Upload, Stage::Download),
            meets(Stage::Read, Stage::Compute),
        ]
    };
    let [multi, _, pipelined] = many(|_| ());
    assert_eq!(overlap(pipelined), [true; 4]);
    assert_eq!(overlap(multi)[..3], [false; 3]);
}

#[test]
fn events_tell_what_happens() {
    in_time(|| {
        let log = |executor: &dyn Executor, workers: &[Worker]| run_to(executor, &clip(), workers, &mut Canvas::default()).unwrap().1;
        let tiles = plan().tiles.len();
        for executor in many(|_| ()) {
            let events = log(&executor, &[scripted("bad", |_| Deed::LoseDevice), scripted("good", |_| Deed::AnswerAfter(ms(3)))]);
            assert!(matches!(&events[0], Event::Started { workers, .. } if workers == &["bad", "good"]));
            let count = |is: fn(&Event) -> bool| events.iter().filter(|event| is(event)).count();
            assert_eq!(count(|event| matches!(event, Event::TileFinished { worker: 1, .. })), tiles);
            assert_eq!(count(|event| matches!(event, Event::Advanced(_))), 2 * tiles);
            assert!(count(|event| matches!(event, Event::TileFailed { worker: 0, message, .. } if message.contains("lost"))) >= 1);
            assert!(count(|event| matches!(event, Event::WorkerRetired { worker: 0, .. })) == 1);
            assert!(count(|event| matches!(event, Event::TileStarted { .. })) > tiles);
        }
        let events = Mutex::new(log(&Sequential, &[good("a")]));
        assert_eq!(events.lock().unwrap().len(), 1 + 4 * tiles);
    });
}
