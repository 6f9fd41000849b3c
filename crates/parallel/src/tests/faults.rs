//! Faults of everything that a run calls, and of devices that do not come back: a run ends, in time, with an error that says who it was, or well.

use std::borrow::Cow;
use std::ops::Range;
use std::panic::{panic_any, resume_unwind};
use std::sync::atomic::AtomicBool;
use std::thread::sleep;

use tiling::{BlendPolicy, CompositeError, Feather, FrameScale, Party, catch};

use super::*;
use crate::engine::{self, Settings};

/// What a run is given. Whatever is left out is sound.
struct Given {
    plan: TilePlan,
    source: Box<dyn TileSource + Send>,
    workers: Vec<Worker>,
    blend: Box<dyn BlendPolicy>,
    sink: Box<dyn Sink>,
    progress: Box<dyn Progress>,
    stop: Stop,
}

impl Default for Given {
    fn default() -> Self {
        let workers = vec![good("a")];
        Self {
            plan: plan(),
            source: Box::new(clip()),
            workers,
            blend: Box::new(Cascade),
            sink: Box::new(Canvas::default()),
            progress: Box::new(()),
            stop: Stop::default(),
        }
    }
}

/// A run that must neither hang nor unwind.
fn outcome(executor: &(impl Executor + Clone + 'static), given: Given) -> Result<RunStats, ExecError> {
    let executor = executor.clone();
    in_time(move || {
        let Given { plan, source, workers, blend, mut sink, mut progress, stop } = given;
        let compositor = Compositor::new(&plan, blend.as_ref(), sink.as_mut());
        let job = Job { plan: &plan, source: source.as_ref(), workers: &workers, compositor, stop: &stop };
        catch(|| executor.run(job, progress.as_mut())).expect("a run does not unwind")
    })
}

/// Every executor, with as many workers as it is to have.
fn each(test: impl Fn(&dyn Fn(Given) -> Result<RunStats, ExecError>, usize)) {
    test(&|given| outcome(&Sequential, given), 1);
    for batch in [1, 3] {
        for executor in many(|devices| devices.batch_tiles = Count::Exactly(NonZeroUsize::new(batch).unwrap())) {
            for count in [1, 3] {
                test(&|given| outcome(&executor, given), count);
            }
        }
    }
}

fn workers(count: usize) -> Vec<Worker> {
    (0..count).map(|i| good(&i.to_string())).collect()
}

/// Panics, when it is time for it: as sink, listener, source and blend.
#[derive(Debug)]
struct Bomb(AtomicUsize, &'static str);

impl Bomb {
    fn after(calls: usize, at: &'static str) -> Self {
        Self(AtomicUsize::new(calls), at)
    }

    fn tick(&self, at: &str) {
        let is_due = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(1))) == Ok(0);
        assert!(self.1 != at || !is_due, "a bomb");
    }
}

impl Sink for Bomb {
    fn take(&mut self, _: [usize; 3], _: [usize; 3], _: HostTensor) -> Result<(), BoxError> {
        self.tick("take");
        Ok(())
    }
}

impl Progress for Bomb {
    fn on_event(&mut self, event: &Event) {
        let name = serde_name(event);
        self.tick(name);
    }
}

fn serde_name(event: &Event) -> &'static str {
    match event {
        Event::Started { .. } => "started",
        Event::TileStarted { .. } => "tile_started",
        Event::Advanced(_) => "advanced",
        Event::TileFinished { .. } => "tile_finished",
        Event::TileFailed { .. } => "tile_failed",
        Event::WorkerRetired { .. } => "worker_retired",
        Event::TileUpcast { .. } => "tile_upcast",
    }
}

impl TileSource for Bomb {
    fn shape(&self) -> [usize; 5] {
        self.tick("shape");
        clip().shape()
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        self.tick("read");
        Ok(clip().region(region))
    }
}

impl BlendPolicy for Bomb {
    fn weight(&self, offset: usize, extent: usize) -> f64 {
        self.tick("weight");
        Feather.weight(offset, extent)
    }

    fn corner(&self) -> tiling::Corner {
        self.tick("corner");
        Feather.corner()
    }
}

#[test]
fn whoever_panics_ends_the_run_with_an_error_that_says_so() {
    each(|run, count| {
        let check = |who: Party, given: Given| {
            let error = run(Given { workers: workers(count), ..given }).unwrap_err();
            assert!(matches!(&error, ExecError::PartyPanicked { who: party, message } if *party == who && message == "a bomb"), "{who}: {error}");
        };
        for calls in [0, 7] {
            check(Party::Sink, Given { sink: Box::new(Bomb::after(calls, "take")), ..Given::default() });
            check(Party::Source, Given { source: Box::new(Bomb::after(calls, "read")), ..Given::default() });
        }
        for event in ["started", "tile_started", "advanced", "tile_finished"] {
            check(Party::Listener, Given { progress: Box::new(Bomb::after(0, event)), ..Given::default() });
        }
        check(Party::Source, Given { source: Box::new(Bomb::after(0, "shape")), ..Given::default() });
        for call in ["weight", "corner"] {
            check(Party::Blend, Given { blend: Box::new(Bomb::after(0, call)), ..Given::default() });
        }
    });
    // The listener hears of a failure.
    for executor in many(|_| ()) {
        for event in ["tile_failed", "worker_retired"] {
            let given = Given {
                progress: Box::new(Bomb::after(0, event)),
                workers: vec![scripted("bad", |_| Deed::LoseDevice), good("b")],
                ..Given::default()
            };
            let error = outcome(&executor, given).unwrap_err();
            assert!(matches!(&error, ExecError::PartyPanicked { who: Party::Listener, .. }), "{error}");
        }
    }
}

/// Where an operation is, or what it made.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Place {
    Chunks,
    Upload,
    Begin,
    Run,
    Download,
    Check,
    DropRun,
    DropUploaded,
    DropAnswer,
}

const PLACES: [Place; 9] =
    [Place::Chunks, Place::Upload, Place::Begin, Place::Run, Place::Download, Place::Check, Place::DropRun, Place::DropUploaded, Place::DropAnswer];

/// Panics at a place.
struct Fragile(Place);

/// Panics when it is dropped, unless it is taken apart.
struct Delicate(Option<HostTensor>, bool);

impl Delicate {
    fn open(mut self) -> HostTensor {
        self.1 = false;
        self.0.take().unwrap()
    }
}

impl Drop for Delicate {
    fn drop(&mut self) {
        assert!(!self.1, "a fragile thing");
    }
}

impl Fragile {
    fn at(&self, place: Place) {
        assert!(self.0 != place, "a fragile thing");
    }
}

impl TileOp for Fragile {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        self.at(Place::Chunks);
        Negate.chunks(frames)
    }

    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        self.at(Place::Upload);
        Ok(DevicePiece::new(Delicate(Some(piece), self.0 == Place::DropUploaded)))
    }

    fn begin(&self, stop: &Stop) -> TileRun<'_> {
        self.at(Place::Begin);
        let mut run = Negate.begin(stop);
        let fragile = Delicate(None, self.0 == Place::DropRun);
        Box::new(move |piece| {
            let _ = &fragile;
            self.at(Place::Run);
            if self.0 == Place::Check {
                return Err("a failure".into());
            }
            let piece: Delicate = piece.take()?;
            if self.0 == Place::DropUploaded {
                drop(piece);
                unreachable!("it has panicked");
            }
            let answer: HostTensor = run(DevicePiece::new(piece.open()))?.take()?;
            Ok(DevicePiece::new(Delicate(Some(answer), self.0 == Place::DropAnswer)))
        })
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        self.at(Place::Download);
        let answer: Delicate = answer.take()?;
        if self.0 == Place::DropAnswer {
            drop(answer);
            unreachable!("it has panicked");
        }
        Ok(answer.open())
    }

    fn check(&self) -> Result<(), BoxError> {
        self.at(Place::Check);
        Ok(())
    }
}

#[test]
fn an_operation_may_panic_anywhere() {
    for place in PLACES {
        each(|run, count| {
            let fragile = |name: &str| Worker::new(name, Arc::new(Fragile(place)));
            let error = run(Given { workers: (0..count).map(|i| fragile(&i.to_string())).collect(), ..Given::default() }).unwrap_err();
            let said = if place == Place::Check { "a failure" } else { "a fragile thing" };
            assert!(error.line().contains(said), "{place:?}: {}", error.line());
            if count > 1 {
                let mut workers = workers(count);
                workers[0] = fragile("bad");
                let stats = run(Given { workers, ..Given::default() }).unwrap();
                assert!(stats.workers[0].tiles == 0 || stats.workers[0].faults > 0, "{place:?}: {stats:?}");
            }
        });
    }
}

/// Panics when it is dropped although nobody has asked it to do anything: in a thread, outside the work on a tile.
struct Leftover;

impl TileOp for Leftover {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        Negate.chunks(frames)
    }

    fn begin(&self, _: &Stop) -> TileRun<'_> {
        let bomb = Delicate(None, true);
        Box::new(move |_| {
            let _ = &bomb;
            Err("a failure".into())
        })
    }
}

#[test]
fn what_is_left_of_a_failure_may_panic_too() {
    each(|run, count| {
        let error = run(Given { workers: vec![Worker::new("bad", Arc::new(Leftover)); count], ..Given::default() }).unwrap_err();
        assert!(error.line().contains("a failure"), "{}", error.line());
    });
}

#[test]
fn panics_are_told_whatever_they_throw() {
    let throw: [fn(); 4] = [|| panic!("a word"), || panic_any(Cow::Borrowed("a word")), || panic_any(BoxError::from("a word")), || panic_any(17_u8)];
    for throw in throw {
        struct Thrower(fn());

        impl TileOp for Thrower {
            fn geometry(&self) -> Geometry {
                Negate.geometry()
            }

            fn begin(&self, _: &Stop) -> TileRun<'_> {
                Box::new(|_| {
                    (self.0)();
                    Err("no panic".into())
                })
            }
        }

        each(|run, count| {
            let error = run(Given { workers: vec![Worker::new("bad", Arc::new(Thrower(throw))); count], ..Given::default() }).unwrap_err();
            assert!(["a word", "it gave no message"].iter().any(|message| error.line().contains(message)), "{}", error.line());
        });
    }
}

/// Answers with another shape, `[batch, channels, frames, height, width]` of a piece.
struct Misshapen(fn([usize; 5]) -> [usize; 5]);

impl TileOp for Misshapen {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        Negate.chunks(frames)
    }

    fn begin(&self, _: &Stop) -> TileRun<'_> {
        Box::new(|piece| {
            let piece: HostTensor = piece.take()?;
            Ok(DevicePiece::new(HostTensor::zeros((self.0)(piece.shape()))))
        })
    }
}

#[test]
fn answers_of_another_shape_are_failures() {
    let shapes: [fn([usize; 5]) -> [usize; 5]; 8] = [
        |[_, c, t, h, w]| [0, c, t, h, w],
        |[b, c, t, h, w]| if b > 1 { [b - 1, c, t, h, w] } else { [b, c, t, h + 1, w] },
        |[b, _, t, h, w]| [b, 0, t, h, w],
        |[b, c, _, h, w]| [b, c, 0, h, w],
        |[b, c, t, h, w]| [b, c, 2 * t, h, w],
        |[b, c, t, _, w]| [b, c, t, 0, w],
        |[b, c, t, h, w]| [b, c, t, h - 1, w],
        |[b, c, t, h, w]| [b, c, t, h, w + 1],
    ];
    for (index, shape) in shapes.into_iter().enumerate() {
        each(|run, count| {
            let bad = Worker::new("bad", Arc::new(Misshapen(shape)));
            let error = run(Given { workers: vec![bad.clone(); count], ..Given::default() }).unwrap_err();
            assert!(error.line().contains("were to come"), "{index}: {}", error.line());
            if count > 1 {
                let mut workers = workers(count);
                workers[0] = bad;
                run(Given { workers, ..Given::default() }).unwrap();
            }
        });
    }
}

/// The pieces of a tile of so many frames.
type Pieces = fn(usize) -> Vec<Range<usize>>;

/// Takes a tile in pieces of its own.
struct Chunked(Pieces);

impl TileOp for Chunked {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        (self.0)(frames)
    }

    fn begin(&self, stop: &Stop) -> TileRun<'_> {
        Negate.begin(stop)
    }
}

#[test]
#[expect(clippy::reversed_empty_ranges, clippy::single_range_in_vec_init, reason = "they are wrong on purpose")]
fn pieces_that_do_not_follow_on_each_other_are_failures() {
    let pieces: [Pieces; 8] = [
        |_| vec![],
        |_| vec![0..0],
        |_| vec![0..1],
        |_| vec![1..2],
        |_| vec![0..1, 0..2],
        |_| vec![0..3],
        |_| vec![0..1, 1..1, 1..2],
        |_| vec![0..1, 2..1],
    ];
    for (index, pieces) in pieces.into_iter().enumerate() {
        each(|run, count| {
            let bad = Worker::new("bad", Arc::new(Chunked(pieces)));
            let error = run(Given { workers: vec![bad.clone(); count], ..Given::default() }).unwrap_err();
            assert!(error.line().contains("in the pieces"), "{index}: {}", error.line());
            if count > 1 {
                let mut workers = workers(count);
                workers[0] = bad;
                run(Given { workers, ..Given::default() }).unwrap();
            }
        });
    }
    // A remainder of which nothing comes may be left out.
    let chunks = |frames| crate::seam::chunks(&Chunked(|_| vec![0..1, 1..5]), FrameScale::CausalDown(4), 0, frames).is_ok();
    assert_eq!([5, 8, 9, 4].map(chunks), [true, true, false, false]);
}

/// Says that it has another shape than it gives, or gives what nobody asked for.
struct Liar([usize; 5], fn(&Region) -> Region);

impl TileSource for Liar {
    fn shape(&self) -> [usize; 5] {
        self.0
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        Ok(clip().region(&(self.1)(region)))
    }
}

#[test]
fn inputs_of_another_shape_are_refused() {
    each(|run, count| {
        for shape in [[0, 2, 2, 11, 17], [1, 0, 2, 11, 17], [1, 2, 0, 11, 17], [1, 2, 2, 11, 18], [1, 2, 3, 11, 17]] {
            let source = Box::new(Liar(shape, |region| *region));
            let error = run(Given { source, workers: workers(count), ..Given::default() }).unwrap_err();
            assert!(matches!(error, ExecError::InputShape { got, expected: [2, 11, 17] } if got == shape), "{error}");
        }
        let smaller: [fn(&Region) -> Region; 3] = [
            |region| Region { size: [0; 3], ..*region },
            |region| Region { size: [region.size[0], region.size[1] - 1, region.size[2]], ..*region },
            |region| Region { size: [1, 1, 1], ..*region },
        ];
        for (shape, answer) in
            smaller.map(|answer| (clip().shape(), answer)).into_iter().chain([([1, 3, 2, 11, 17], (|region| *region) as fn(&_) -> _)])
        {
            let error = run(Given { source: Box::new(Liar(shape, answer)), workers: workers(count), ..Given::default() }).unwrap_err();
            assert!(matches!(&error, ExecError::Source { .. }) && error.line().contains("was asked for"), "{}", error.line());
        }
    });
}

#[test]
fn weights_that_are_none_end_the_run_before_a_tile_does() {
    #[derive(Debug)]
    struct Odd;

    impl BlendPolicy for Odd {
        fn weight(&self, _: usize, _: usize) -> f64 {
            f64::NAN
        }
    }

    each(|run, count| {
        let worker = Arc::new(Scripted::new(Arc::new(Negate), |_| Deed::Answer));
        let error = run(Given { blend: Box::new(Odd), workers: vec![Worker::new("a", worker.clone()); count], ..Given::default() }).unwrap_err();
        assert!(matches!(error, ExecError::Unfinished(CompositeError::Weight { .. })), "{error}");
        assert_eq!(worker.begun(), 0);
    });
}

/// Cannot take a piece, for want of memory.
struct Tiny;

impl TileOp for Tiny {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        Negate.chunks(frames)
    }

    fn upload(&self, _: HostTensor) -> Result<DevicePiece, BoxError> {
        Err("out of memory".into())
    }

    fn begin(&self, stop: &Stop) -> TileRun<'_> {
        Negate.begin(stop)
    }
}

/// Takes its time.
struct SlowToRead(Duration);

impl TileSource for SlowToRead {
    fn shape(&self) -> [usize; 5] {
        clip().shape()
    }

    fn read(&self, region: &Region) -> Result<HostTensor, BoxError> {
        sleep(self.0);
        Ok(clip().region(region))
    }
}

#[test]
fn a_unit_that_comes_back_from_the_last_worker_ends_the_run() {
    for batch in [1, 4] {
        for executor in many(|devices| devices.batch_tiles = Count::Exactly(NonZeroUsize::new(batch).unwrap())) {
            for (n, piece) in [(0, 0), (1, 0), (1, 1), (2, 1)] {
                // It is lost on a tile while the next one is still being read for it.
                let lost = scripted("lost", move |at| if at == n { Deed::FailAt(piece, ms(15)) } else { Deed::Answer });
                let lost = Worker { op: Arc::new(LostAfterFailure(lost.op, AtomicBool::new(false))), ..lost };
                let given =
                    Given { source: Box::new(SlowToRead(ms(10))), workers: vec![Worker::new("tiny", Arc::new(Tiny)), lost], ..Given::default() };
                let error = outcome(&executor, given).unwrap_err();
                assert!(matches!(&error, ExecError::NoWorkerLeft { causes } if causes.len() == 2), "{error}");
            }
        }
    }
}

/// Is lost with its first failure.
struct LostAfterFailure(Arc<dyn TileOp>, AtomicBool);

impl TileOp for LostAfterFailure {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        self.0.chunks(frames)
    }

    fn begin(&self, stop: &Stop) -> TileRun<'_> {
        let mut run = self.0.begin(stop);
        Box::new(move |piece| {
            let answer = run(piece);
            self.1.fetch_or(answer.is_err(), Ordering::SeqCst);
            answer
        })
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        self.0.download(answer)
    }

    fn check(&self) -> Result<(), BoxError> {
        if self.1.load(Ordering::SeqCst) { Err("the device is lost".into()) } else { Ok(()) }
    }
}

/// Works on its first piece until it is told to stop.
struct Endless(Arc<AtomicBool>);

impl TileOp for Endless {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn begin(&self, stop: &Stop) -> TileRun<'_> {
        let stop = stop.clone();
        Box::new(move |_| {
            while !stop.is_stopped() {
                sleep(ms(1));
            }
            self.0.store(true, Ordering::SeqCst);
            resume_unwind(Box::new("nobody waits for it"))
        })
    }
}

/// Throws a switch a little later.
fn thrown_after(time: Duration) -> Stop {
    let stop = Stop::default();
    let later = stop.clone();
    std::thread::spawn(move || {
        sleep(time);
        later.stop();
    });
    stop
}

#[test]
fn a_stop_reaches_what_runs() {
    each(|run, count| {
        let begun = Instant::now();
        let workers = (0..count).map(|i| Worker::new(i.to_string(), Arc::new(Endless(Arc::default())))).collect();
        let error = run(Given { workers, stop: thrown_after(ms(50)), ..Given::default() }).unwrap_err();
        assert!(matches!(error, ExecError::Stopped), "{error}");
        assert!(begun.elapsed() < ms(2000), "{:?}", begun.elapsed());
    });
}

#[test]
fn an_error_reaches_what_runs_elsewhere() {
    for executor in many(|_| ()) {
        let told = Arc::new(AtomicBool::new(false));
        let workers = vec![scripted("a", |_| Deed::AnswerAfter(ms(50))), Worker::new("endless", Arc::new(Endless(told.clone())))];
        let error = outcome(&executor, Given { sink: Box::new(Bomb::after(0, "take")), workers, ..Given::default() }).unwrap_err();
        assert!(matches!(error, ExecError::PartyPanicked { who: Party::Sink, .. }), "{error}");
        assert!(told.load(Ordering::SeqCst));
    }
}

/// Runs some tiles on workers of whom some may not come back, until it is stopped.
fn run_hurriedly(plan: TilePlan, workers: Vec<Worker>, in_flight: Option<usize>, stop_after: Duration) -> Result<RunStats, ExecError> {
    in_time(move || {
        let in_flight = in_flight.and_then(NonZeroUsize::new);
        let settings = Settings { retries: 2, batch: Count::ONE, timeout: None, silence: ms(500), grace: ms(300), in_flight };
        let (clip, mut canvas) = (clip(), Canvas::default());
        let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
        let job = Job { plan: &plan, source: &clip, workers: &workers, compositor, stop: &thrown_after(stop_after) };
        let stats = engine::run(settings, job, &mut ())?;
        assert!(close(&canvas.into_block(), &negative()));
        Ok(stats)
    })
}

const IN_FLIGHT: [Option<usize>; 3] = [None, Some(1), Some(3)];

#[test]
fn a_stopped_run_leaves_behind_who_does_not_come_back() {
    for in_flight in IN_FLIGHT {
        let begun = Instant::now();
        let workers = vec![scripted("lost", |_| Deed::AnswerAfter(Duration::from_hours(1))), good("b")];
        let error = run_hurriedly(plan(), workers, in_flight, ms(50)).unwrap_err();
        assert!(matches!(error, ExecError::Stopped), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[test]
fn a_first_tile_that_never_comes_back_is_run_by_who_stands_by() {
    let run_untiled = |workers: [Worker; 2], in_flight| {
        let plan = TilePlan::new(&tiling::Off, Negate.geometry(), clip().extent()).unwrap();
        run_hurriedly(plan, workers.to_vec(), in_flight, ms(2000))
    };
    for in_flight in IN_FLIGHT {
        let told = Arc::new(AtomicBool::new(false));
        let endless = || Worker::new("endless", Arc::new(Endless(told.clone())));
        let stats = run_untiled([endless(), good("b")], in_flight).unwrap();
        assert_eq!((stats.workers[0].tiles, stats.workers[1].tiles, stats.tiles), (0, 1, 1));
        assert!(told.load(Ordering::SeqCst), "nobody waits for the first any more");
        let dead = scripted("dead", |_| Deed::AnswerAfter(Duration::from_hours(1)));
        assert_eq!(run_untiled([dead, good("b")], in_flight).unwrap().tiles, 1);
        // Who is alive is left in peace, and so is whoever would only be in the way of himself.
        let slow = scripted("slow", |_| Deed::AnswerAfter(ms(300)));
        assert_eq!(run_untiled([slow, good("b")], in_flight).unwrap().workers[0].tiles, 1);
        let shares = [endless(), good("b")].map(|worker| Worker { device: Some(0), ..worker });
        assert!(matches!(run_untiled(shares, in_flight), Err(ExecError::Stopped)));
    }
}

/// Takes its time with each piece that came, until a worker is retired.
struct SlowToHear(Duration, Arc<Mutex<Vec<Event>>>);

impl Progress for SlowToHear {
    fn on_event(&mut self, event: &Event) {
        let mut heard = self.1.lock().unwrap();
        heard.push(event.clone());
        if matches!(event, Event::Advanced(_)) && !heard.iter().any(|event| matches!(event, Event::WorkerRetired { .. })) {
            sleep(self.0);
        }
    }
}

#[test]
fn time_in_which_others_are_slow_is_not_the_workers() {
    let plan = || TilePlan::new(&Uniform::with_tile([11, 7], [1, 2]), Negate.geometry(), clip().extent()).unwrap();
    assert_eq!(plan().tiles.len(), 3);
    for executor in many(|devices| devices.tile_timeout = Some(ms(400))) {
        // A tile takes longer to be read, or to be taken, than the limit.
        let slow_to_hear = Given { progress: Box::new(SlowToHear(ms(250), Arc::default())), ..Given::default() };
        let slow_to_read = Given { source: Box::new(SlowToRead(ms(250))), ..Given::default() };
        for given in [slow_to_hear, slow_to_read] {
            let stats = outcome(&executor, Given { plan: plan(), ..given }).unwrap();
            assert!(stats.workers.iter().all(|worker| worker.faults == 0 && worker.retired.is_none()), "{stats:?}");
        }
    }
}

#[test]
fn who_hangs_is_found_while_others_have_much_to_tell() {
    for executor in many(|devices| devices.tile_timeout = Some(ms(500))) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let mut progress = SlowToHear(ms(4), events.clone());
        in_time(move || {
            let source = HostTensor::from_fn([1, 1, 100, 11, 17], |[_, _, t, y, x]| (t * 5 + y * 3 + x) as f32);
            let plan = TilePlan::new(&Uniform::with_tile([4, 5], [1, 2]), Negate.geometry(), source.extent()).unwrap();
            let workers = [scripted("lost", |_| Deed::AnswerAfter(Duration::from_hours(1))), good("b")];
            let mut canvas = Canvas::default();
            let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
            executor.run(Job { plan: &plan, source: &source, workers: &workers, compositor, stop: &Stop::default() }, &mut progress).unwrap();
        });
        let events = events.lock().unwrap();
        let at = events.iter().position(|event| matches!(event, Event::WorkerRetired { worker: 0, .. })).unwrap();
        let before = events[..at].iter().filter(|event| matches!(event, Event::Advanced(_))).count();
        assert!(before < 400, "{before} pieces came before anybody looked");
    }
}

#[test]
fn a_single_worker_has_all_the_retries_that_are_allowed() {
    for executor in many(|devices| devices.retries = 6) {
        let failing = |times| scripted("a", move |n| if n < times { Deed::Fail } else { Deed::Answer });
        let stats = outcome(&executor, Given { workers: vec![failing(6)], ..Given::default() }).unwrap();
        assert_eq!((stats.workers[0].faults, stats.workers[0].retired.clone()), (6, None));
        let error = outcome(&executor, Given { workers: vec![failing(usize::MAX)], ..Given::default() }).unwrap_err();
        assert!(matches!(error, ExecError::Tile { .. }), "{error}");
    }
}

/// Has memory for so many pieces at once.
struct Narrowed {
    room: usize,
    held: Arc<AtomicUsize>,
}

/// A piece in memory.
struct Held(Option<HostTensor>, Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl TileOp for Narrowed {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn upload(&self, piece: HostTensor) -> Result<DevicePiece, BoxError> {
        let held = Held(Some(piece), self.held.clone());
        if self.held.fetch_add(1, Ordering::SeqCst) < self.room { Ok(DevicePiece::new(held)) } else { Err("out of memory".into()) }
    }

    fn begin(&self, _: &Stop) -> TileRun<'_> {
        Box::new(|piece| {
            let mut piece: Held = piece.take()?;
            sleep(ms(3));
            piece.0.as_mut().ok_or("nothing")?.data_mut().iter_mut().for_each(|value| *value = -*value);
            Ok(DevicePiece::new(piece))
        })
    }

    fn download(&self, answer: DevicePiece) -> Result<HostTensor, BoxError> {
        let mut answer: Held = answer.take()?;
        sleep(ms(3));
        answer.0.take().ok_or_else(|| "nothing".into())
    }
}

#[test]
fn what_does_not_fit_beside_others_is_tried_alone() {
    let pipelined = Pipelined { in_flight: NonZeroUsize::new(4).unwrap(), ..Pipelined::default() };
    for (room, fits) in [(2, true), (1, true), (0, false)] {
        let narrowed = Worker::new("narrow", Arc::new(Narrowed { room, held: Arc::default() }));
        let (answer, stats) = match run(&pipelined, &[narrowed]) {
            Ok(answer) => answer,
            Err(error) => {
                assert!(!fits && error.is_out_of_memory(), "{error}");
                continue;
            }
        };
        assert!(fits && answer == right_answer());
        assert!(stats.workers[0].faults > 0 && stats.workers[0].retired.is_none(), "{stats:?}");
    }
}

#[test]
fn nothing_overflows_however_much_is_asked_for() {
    let most = NonZeroUsize::MAX;
    let devices = MultiDevice { retries: usize::MAX, batch_tiles: Count::Exactly(most), tile_timeout: Some(Duration::MAX) };
    for executor in [Many::Multi(devices), Many::Pipe(Pipelined { in_flight: most, devices })] {
        assert_eq!(executor.held_tiles(&plan(), usize::MAX), plan().tiles.len());
        outcome(&executor, Given { workers: workers(2), ..Given::default() }).unwrap();
    }
}
