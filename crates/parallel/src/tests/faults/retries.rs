use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::*;

/// Has no memory for any piece.
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

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        Negate.begin(tiles, stop)
    }
}

#[test]
fn a_tile_that_comes_back_from_the_last_worker_ends_the_run() {
    for batch in [1, 4] {
        for executor in many(|settings| settings.batch_tiles = count(batch)) {
            for (n, piece) in [(0, 0), (1, 0), (1, 1), (2, 1)] {
                // Its device is lost on a tile while the next one is still being read for it.
                let lost = scripted("lost", move |at| if at == n { Behavior::FailAt(piece, ms(15)) } else { Behavior::Answer });
                let lost = Worker { op: Arc::new(LostAfterFailure(lost.op, AtomicBool::new(false))), ..lost };
                let given =
                    Given { source: Box::new(SlowToRead(ms(10))), workers: vec![Worker::new("tiny", Arc::new(Tiny)), lost], ..Given::default() };
                let error = outcome(&executor, given).unwrap_err();
                assert!(matches!(&error, ExecError::NoWorkerLeft { causes } if causes.len() == 2), "{error}");
            }
        }
    }
}

/// Loses its device with its first failure.
struct LostAfterFailure(Arc<dyn TileOp>, AtomicBool);

impl TileOp for LostAfterFailure {
    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        self.0.chunks(frames)
    }

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        let mut run = self.0.begin(tiles, stop);
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

#[test]
fn a_single_worker_has_all_retries() {
    for executor in many(|settings| settings.retries = 6) {
        let failing = |times| scripted("a", move |n| if n < times { Behavior::Fail } else { Behavior::Answer });
        let stats = outcome(&executor, Given { workers: vec![failing(6)], ..Given::default() }).unwrap();
        assert_eq!((stats.workers[0].faults, stats.workers[0].retired.clone()), (6, None));
        let error = outcome(&executor, Given { workers: vec![failing(usize::MAX)], ..Given::default() }).unwrap_err();
        assert!(matches!(error, ExecError::Tile { .. }), "{error}");
    }
}

/// Has memory for a limited number of pieces at once.
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

    fn begin(&self, _: &[usize], _: &Stop) -> TileRun<'_> {
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
fn a_tile_that_does_not_fit_beside_others_is_tried_alone() {
    let pipelined = MultiDevice { in_flight: NonZeroUsize::new(4), ..MultiDevice::default() };
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
fn the_largest_settings_do_not_overflow() {
    let most = NonZeroUsize::MAX;
    for in_flight in [None, Some(most)] {
        let executor = MultiDevice { in_flight, retries: usize::MAX, batch_tiles: most, tile_timeout: Some(Duration::MAX) };
        assert_eq!(executor.held_tiles(&plan(), usize::MAX), plan().tiles.len());
        outcome(&executor, Given { workers: workers(2), ..Given::default() }).unwrap();
    }
}
