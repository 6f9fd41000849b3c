use std::ops::Range;

use tiling::Feather;

use super::*;

/// Panics at a call: as sink, listener, source and blend policy.
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
    fn weight(&self, offset: usize, seam: &tiling::Seam) -> f64 {
        self.tick("weight");
        Feather.weight(offset, seam)
    }

    fn corner(&self) -> tiling::Corner {
        self.tick("corner");
        Feather.corner()
    }
}

#[test]
fn a_panic_ends_the_run_with_an_error_that_names_the_party() {
    each(|run, count| {
        let check = |who: Party, given: Given| {
            let error = run(Given { workers: workers(count), ..given }).unwrap_err();
            assert!(matches!(&error, ExecError::PartyPanicked(panic) if panic.who == who && panic.message == "a bomb"), "{who}: {error}");
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
    // Events of failures.
    for executor in many(|_| ()) {
        for event in ["tile_failed", "worker_retired"] {
            // The good worker waits until the bad one has a tile: otherwise it might finish the run alone.
            let has_tile = Arc::new(AtomicBool::new(false));
            let seen = has_tile.clone();
            let bad = scripted("bad", move |_| {
                has_tile.store(true, Ordering::SeqCst);
                Behavior::LoseDevice
            });
            let good = scripted("good", move |_| {
                while !seen.load(Ordering::SeqCst) {
                    sleep(ms(1));
                }
                Behavior::Answer
            });
            let given = Given { progress: Box::new(Bomb::after(0, event)), workers: vec![bad, good], ..Given::default() };
            let error = outcome(&executor, given).unwrap_err();
            assert!(matches!(&error, ExecError::PartyPanicked(Panicked { who: Party::Listener, .. })), "{error}");
        }
    }
}

/// A call of an operation, or the drop of something that it made.
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

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        self.at(Place::Begin);
        let mut run = Negate.begin(tiles, stop);
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
            assert!(error.in_one_line().contains(said), "{place:?}: {}", error.in_one_line());
            if count > 1 {
                let mut workers = workers(count);
                workers[0] = fragile("bad");
                let stats = run(Given { workers, ..Given::default() }).unwrap();
                assert!(stats.workers[0].tiles == 0 || stats.workers[0].faults > 0, "{place:?}: {stats:?}");
            }
        });
    }
}

/// Panics when what is left of a failed tile is dropped, which happens outside the work on a tile.
struct Leftover;

impl TileOp for Leftover {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<Range<usize>> {
        Negate.chunks(frames)
    }

    fn begin(&self, _: &[usize], _: &Stop) -> TileRun<'_> {
        let bomb = Delicate(None, true);
        Box::new(move |_| {
            let _ = &bomb;
            Err("a failure".into())
        })
    }
}

#[test]
fn the_rest_of_a_failed_tile_may_panic_when_dropped() {
    each(|run, count| {
        let error = run(Given { workers: vec![Worker::new("bad", Arc::new(Leftover)); count], ..Given::default() }).unwrap_err();
        assert!(error.in_one_line().contains("a failure"), "{}", error.in_one_line());
    });
}
