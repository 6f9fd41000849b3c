//! Runs in which tiles, devices, sources or sinks fail.

use super::*;

#[test]
fn failures_of_one_worker_are_retried_on_another() {
    let expected = right_answer();
    for fault in [
        (|_| Behavior::Fail) as fn(usize) -> Behavior,
        |_| Behavior::Panic,
        |_| Behavior::NotFinite,
        |_| Behavior::FailAt(1, Duration::ZERO),
        |_| Behavior::OutOfMemory,
        |n| if n % 2 == 0 { Behavior::FailAt(1, Duration::ZERO) } else { Behavior::Answer },
        |n| if n > 2 { Behavior::Panic } else { Behavior::Answer },
        |n| if n == 2 { Behavior::LoseDevice } else { Behavior::Answer },
        |n| if n == 0 { Behavior::OutOfMemory } else { Behavior::Answer },
    ] {
        for executor in many(|_| ()) {
            let workers = [scripted("bad", fault), scripted("good", |_| Behavior::AnswerAfter(ms(1)))];
            let (answer, stats) = run(&executor, &workers).unwrap();
            assert_eq!(answer, expected);
            assert!(stats.workers[0].faults > 0 && stats.workers[1].faults == 0, "{stats:?}");
        }
    }
}

#[test]
fn one_working_worker_among_many_is_enough() {
    for executor in many(|settings| settings.retries = 0) {
        for fault in [Behavior::Fail, Behavior::Panic, Behavior::LoseDevice, Behavior::OutOfMemory] {
            let mut workers: Vec<Worker> = (0..7).map(|i| scripted(&i.to_string(), move |_| fault)).collect();
            workers.push(scripted("good", |_| Behavior::AnswerAfter(ms(1))));
            let (answer, stats) = run(&executor, &workers).unwrap();
            assert_eq!(answer, right_answer());
            assert_eq!(stats.workers[7].tiles, plan().tiles.len());
            assert!(stats.workers.iter().filter_map(|worker| worker.retired.as_ref()).all(|cause| cause.starts_with("tile ")), "{stats:?}");
        }
    }
}

#[test]
fn a_worker_that_fails_three_times_in_a_row_is_retired() {
    let (_, stats) =
        run(&MultiDevice::default(), &[scripted("bad", |_| Behavior::Fail), scripted("good", |_| Behavior::AnswerAfter(ms(2)))]).unwrap();
    assert_eq!((stats.workers[0].faults, stats.workers[0].tiles), (3, 0));
    assert!(stats.workers[0].retired.as_ref().is_some_and(|cause| cause.contains("a failure")));
}

#[test]
fn tiles_that_a_retired_worker_has_not_begun_go_to_others() {
    for executor in many(|_| ()) {
        within(move || {
            // So many frames that the pipeline of the failing worker is full when it is retired.
            let source = HostTensor::from_fn([1, 1, 9, 11, 17], |[_, _, t, y, x]| (t * 5 + y * 3 + x) as f32);
            let plan = TilePlan::new(&Uniform::with_tile([4, 5], [1, 2]), Negate.geometry(), source.extent()).unwrap();
            let workers = [scripted("bad", |_| Behavior::FailAt(8, ms(40))), scripted("good", |_| Behavior::AnswerAfter(ms(8)))];
            let mut canvas = Canvas::default();
            let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
            let stats = executor.run(Job { plan: &plan, source: &source, workers: &workers, compositor, stop: &Stop::default() }, &mut ()).unwrap();
            assert!(stats.workers[0].retired.is_some() && stats.workers[1].tiles == plan.tiles.len(), "{:?}", stats.workers);
            assert!(canvas.into_tensor().data().iter().zip(source.data()).all(|(got, given)| (got + given).abs() < 1e-4));
        });
    }
}

#[test]
fn a_worker_whose_device_is_lost_is_retired_at_once() {
    let workers =
        [scripted("bad", |n| if n == 1 { Behavior::LoseDevice } else { Behavior::Answer }), scripted("good", |_| Behavior::AnswerAfter(ms(1)))];
    let (_, stats) = run(&MultiDevice::default(), &workers).unwrap();
    assert_eq!((stats.workers[0].faults, stats.workers[0].tiles), (1, 1));
}

#[test]
fn a_worker_without_a_tile_steps_in_after_a_failure() {
    let source = clip();
    let plan = TilePlan::new(&tiling::Off, Geometry::image(Scale::Up(1)), source.extent()).unwrap();
    for behavior in [Behavior::Answer, Behavior::Fail, Behavior::OutOfMemory, Behavior::LoseDevice] {
        let sound = matches!(behavior, Behavior::Answer);
        for executor in [MultiDevice::default(), MultiDevice::pipelined()] {
            let workers = [scripted("first", move |_| behavior), good("second"), good("third")];
            let mut canvas = Canvas::default();
            let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
            let stats = executor.run(Job { plan: &plan, source: &source, workers: &workers, compositor, stop: &Stop::default() }, &mut ()).unwrap();
            assert_eq!((stats.workers[0].tiles, stats.workers[0].faults), if sound { (1, 0) } else { (0, 1) });
            assert!(if sound { stats.workers.len() == 1 } else { stats.workers.iter().any(|worker| worker.tiles == 1) });
            assert!(canvas.into_tensor().data().iter().zip(source.data()).all(|(answer, value)| *answer == -value));
        }
    }
}

#[test]
fn a_device_without_memory_for_a_tile_still_runs_smaller_ones() {
    within(|| {
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

            fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
                Negate.begin(tiles, stop)
            }
        }

        // The last row is lower than the first.
        let source = clip();
        let plan = TilePlan::new(&tiling::DiffusersGrid { tile_px: [12, 8], ..grid() }, Negate.geometry(), source.extent()).unwrap();
        let sizes: Vec<usize> = plan.tiles.iter().map(|tile| tile.input.volume()).collect();
        let (largest, smallest) = (*sizes.iter().max().unwrap(), *sizes.iter().min().unwrap());
        assert!(smallest < largest);
        for executor in many(|_| ()) {
            let workers = [Worker::new("small", Arc::new(Small(smallest))), scripted("large", |_| Behavior::AnswerAfter(ms(2)))];
            let mut canvas = Canvas::default();
            let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
            let job = Job { plan: &plan, source: &source, workers: &workers, compositor, stop: &Stop::default() };
            let stats = executor.run(job, &mut ()).unwrap();
            assert!(close(&canvas.into_tensor(), &negative()));
            assert!(stats.workers[0].faults > 0 && stats.workers[0].tiles >= 1 && stats.workers[0].retired.is_some(), "{stats:?}");
        }
        // Stacks that do not fit run as smaller ones.
        let batch = count(4);
        let (answer, stats) = run(&MultiDevice { batch_tiles: batch, ..MultiDevice::default() }, &[Worker::new("small", Arc::new(Narrow))]).unwrap();
        assert_eq!((answer, stats.workers[0].tiles), (right_answer(), crate::tests::plan().tiles.len()));
        assert!(stats.workers[0].faults > 0 && stats.workers[0].retired.is_none(), "{stats:?}");
    });
}

fn grid() -> tiling::DiffusersGrid {
    tiling::DiffusersGrid { tile_px: [8, 8], overlap: tiling::Overlap::Share([0.25; 2]), skip_redundant: false, unit_px: 1 }
}

/// Has memory for one tile at a time.
struct Narrow;

impl TileOp for Narrow {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        let mut run = Negate.begin(tiles, stop);
        Box::new(move |piece| {
            let piece: HostTensor = piece.take()?;
            if piece.shape()[0] > 1 { Err("out of memory".into()) } else { run(DevicePiece::new(piece)) }
        })
    }
}

#[test]
fn a_run_ends_with_an_error_when_a_tile_fails_everywhere() {
    for count in 1..=4 {
        for fault in [Behavior::Fail, Behavior::Panic, Behavior::NotFinite, Behavior::LoseDevice, Behavior::OutOfMemory] {
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
                    ExecError::Tile { .. } | ExecError::Panicked { .. } | ExecError::NotFinite { .. } => {
                        assert!(count == 1 || fault == Behavior::Fail);
                    }
                    _ => panic!("{error}"),
                }
            }
        }
    }
    let error = run(&Sequential, &[scripted("a", |n| if n == 3 { Behavior::Panic } else { Behavior::Answer })]).unwrap_err();
    assert!(matches!(&error, ExecError::Panicked { tile: 3, message } if message == "a panic"), "{error}");
    let error = run(&Sequential, &[scripted("a", |n| if n == 2 { Behavior::Fail } else { Behavior::Answer })]).unwrap_err();
    assert!(matches!(&error, ExecError::Tile { tile: 2, source } if source.to_string() == "a failure"), "{error}");
    let error = run(&Sequential, &[scripted("a", |n| if n == 2 { Behavior::NotFinite } else { Behavior::Answer })]).unwrap_err();
    assert!(matches!(&error, ExecError::NotFinite { tile: 2 }), "{error}");
}

#[test]
fn answers_that_are_not_finite_are_run_again_in_a_wider_dtype() {
    // Every third tile overflows after its first frame, on every worker.
    struct Narrow16;

    impl TileOp for Narrow16 {
        fn geometry(&self) -> Geometry {
            Negate.geometry()
        }

        fn chunks(&self, frames: usize) -> Vec<std::ops::Range<usize>> {
            Negate.chunks(frames)
        }

        fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
            let mut run = Negate.begin(tiles, stop);
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
fn a_worker_that_does_not_come_back_is_left_behind() {
    for executor in many(|settings| settings.tile_timeout = Some(ms(150))) {
        let begun = Instant::now();
        let workers = [
            scripted("lost", |n| if n == 1 { Behavior::AnswerAfter(Duration::from_hours(1)) } else { Behavior::Answer }),
            scripted("good", |_| Behavior::AnswerAfter(ms(3))),
        ];
        let (answer, stats) = run(&executor, &workers).unwrap();
        assert_eq!(answer, right_answer());
        assert!(stats.workers[0].retired.as_ref().is_some_and(|cause| cause.contains("lost did not finish")), "{stats:?}");
        assert!(begun.elapsed() < Duration::from_secs(20));
        let error = run(&executor, &[scripted("lost", |_| Behavior::AnswerAfter(Duration::from_hours(1)))]).unwrap_err();
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

/// A sink that takes some pieces, slowly, and then fails.
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
        within(move || {
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
