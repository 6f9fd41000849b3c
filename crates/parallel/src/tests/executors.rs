//! Answers, statistics, events and memory of runs in which nothing fails.

use super::*;

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
    let paces: [fn(usize) -> Behavior; 4] = [
        |_| Behavior::Answer,
        |n| Behavior::AnswerAfter(ms((n as u64 * 7) % 3)),
        |n| if n % 5 == 0 { Behavior::AnswerAfter(ms(4)) } else { Behavior::Answer },
        |n| Behavior::AnswerAfter(ms(2 - (n as u64 % 3))),
    ];
    let mut schedules = 0;
    for batch in [1, 3, 4] {
        for executor in many(|settings| settings.batch_tiles = count(batch)) {
            for round in 0..if batch == 1 { 16 } else { 4 } {
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
fn values_that_are_not_finite_in_the_input_are_no_failure() {
    within(|| {
        let mut odd = clip();
        odd.data_mut()[40] = f32::NAN;
        let mut executors: Vec<Box<dyn Executor>> = vec![Box::new(Sequential)];
        executors.extend(many(|_| ()).map(|executor| Box::new(executor) as Box<dyn Executor>));
        for executor in executors {
            let mut canvas = Canvas::default();
            let (stats, _) = run_to(executor.as_ref(), &odd, &[good("a")], &mut canvas).unwrap();
            assert!(stats.workers[0].faults == 0 && canvas.into_tensor().data().iter().any(|value| value.is_nan()));
        }
    });
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

/// Stops the run at its third piece.
struct StopsRun(Stop, usize);

impl Sink for StopsRun {
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
        within(move || {
            let workers: Vec<Worker> = (0..count).map(|i| scripted(&i.to_string(), |_| Behavior::AnswerAfter(ms(2)))).collect();
            let (plan, clip, stop) = (plan(), clip(), Stop::default());
            let mut sink = StopsRun(stop.clone(), 0);
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

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        Negate.begin(tiles, stop)
    }
}

/// A sink that sleeps at each piece.
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
fn no_more_tiles_are_held_than_stated_with_a_slow_sink() {
    within(|| {
        for batch in [1, 2] {
            for executor in many(|settings| settings.batch_tiles = count(batch)) {
                for count in 1..=3 {
                    let live = Arc::new(Live::default());
                    let workers: Vec<Worker> = (0..count).map(|i| Worker::new(i.to_string(), Arc::new(Counted(live.clone())))).collect();
                    let plan = plan();
                    run_to(&executor, &clip(), &workers, &mut Slow(live.clone())).unwrap();
                    let (most, stated) = (live.most.load(Ordering::SeqCst), executor.held_tiles(&plan, count));
                    assert_eq!(live.placed.load(Ordering::SeqCst), plan.tiles.len());
                    assert!(most >= count && most <= stated, "{most} tiles, {stated} were stated");
                    // Workers that are faster than the sink have waited.
                    assert!(count > 1 || stated < plan.tiles.len(), "{stated}");
                }
            }
        }
    });
}

#[test]
fn stages_of_a_pipeline_overlap() {
    let pace = Behavior::AnswerInStages([ms(4), ms(6), ms(4)]);
    let overlap = |executor: MultiDevice| {
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
fn events_report_every_step() {
    within(|| {
        let log = |executor: &dyn Executor, workers: &[Worker]| run_to(executor, &clip(), workers, &mut Canvas::default()).unwrap().1;
        let tiles = plan().tiles.len();
        for executor in many(|_| ()) {
            let events = log(&executor, &[scripted("bad", |_| Behavior::LoseDevice), scripted("good", |_| Behavior::AnswerAfter(ms(3)))]);
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
