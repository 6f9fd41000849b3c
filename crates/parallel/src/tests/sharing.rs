//! Several runs on the same workers.

use std::sync::Barrier;
use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;
use crate::WorkerLock;
use crate::engine::{self, Settings};

/// Negates, and records which run has a tile in work on a worker.
struct Tracked {
    run: usize,
    worker: Arc<Tracker>,
}

#[derive(Default)]
struct Tracker {
    in_work: AtomicUsize,
    /// The runs of the tiles, in the order in which they began.
    order: Mutex<Vec<usize>>,
}

struct InWork<'a>(&'a Tracker);

impl Drop for InWork<'_> {
    fn drop(&mut self) {
        self.0.in_work.fetch_sub(1, Ordering::SeqCst);
    }
}

impl TileOp for Tracked {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn chunks(&self, frames: usize) -> Vec<std::ops::Range<usize>> {
        Negate.chunks(frames)
    }

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        assert_eq!(self.worker.in_work.fetch_add(1, Ordering::SeqCst), 0, "two tiles at once");
        self.worker.order.lock().unwrap().push(self.run);
        let in_work = InWork(&self.worker);
        let mut run = Negate.begin(tiles, stop);
        Box::new(move |piece| {
            let _ = &in_work;
            thread::sleep(ms(2));
            run(piece)
        })
    }
}

/// Begins when the other run does.
struct Together(Arc<Barrier>);

impl Progress for Together {
    fn on_event(&mut self, event: &Event) {
        if matches!(event, Event::Started { .. }) {
            self.0.wait();
        }
    }
}

fn executors() -> Vec<(Arc<dyn Executor>, usize)> {
    let mut executors: Vec<(Arc<dyn Executor>, usize)> = vec![(Arc::new(Sequential), 1)];
    for executor in many(|_| ()) {
        executors.extend([1, 2].map(|workers| (Arc::new(executor) as Arc<dyn Executor>, workers)));
    }
    executors
}

fn run_on(executor: &dyn Executor, workers: &[Worker], stop: &Stop, progress: &mut dyn Progress) -> Result<(HostTensor, RunStats), ExecError> {
    let (plan, clip, mut canvas) = (plan(), clip(), Canvas::default());
    let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
    let stats = executor.run(Job { plan: &plan, source: &clip, workers, compositor, stop }, progress)?;
    Ok((canvas.into_tensor(), stats))
}

#[test]
fn two_runs_take_turns_tile_by_tile() {
    let expected = right_answer();
    for (executor, count) in executors() {
        let expected = expected.clone();
        within(move || {
            let trackers: Vec<Arc<Tracker>> = (0..count).map(|_| Arc::default()).collect();
            let locks: Vec<WorkerLock> = (0..count).map(|_| WorkerLock::default()).collect();
            let barrier = Arc::new(Barrier::new(2));
            thread::scope(|scope| {
                for run in 0..2 {
                    let worker = |n: usize| {
                        let op = Arc::new(Tracked { run, worker: trackers[n].clone() });
                        Worker { lock: locks[n].clone(), ..Worker::new(n.to_string(), op) }
                    };
                    let workers: Vec<Worker> = (0..count).map(worker).collect();
                    let (executor, expected, mut progress) = (executor.clone(), &expected, Together(barrier.clone()));
                    scope.spawn(move || {
                        let (output, stats) = run_on(executor.as_ref(), &workers, &Stop::default(), &mut progress).unwrap();
                        assert_eq!(&output, expected);
                        assert!(stats.workers.iter().all(|worker| worker.faults == 0), "{stats:?}");
                    });
                }
            });
            // When the first run was through, the second had got its share.
            let order: Vec<usize> = trackers.iter().flat_map(|tracker| tracker.order.lock().unwrap().clone()).collect();
            assert_eq!(order.len(), 2 * plan().tiles.len());
            for tracker in trackers {
                let order = tracker.order.lock().unwrap();
                let last = |run| order.iter().rposition(|other| *other == run).unwrap();
                let first_end = last(0).min(last(1));
                let [a, b] = [0, 1].map(|run| order[..=first_end].iter().filter(|other| **other == run).count());
                assert!(a.min(b) * 4 >= a.max(b), "{}: one run had {a} tiles while the other had {b}", executor.name());
            }
        });
    }
}

/// Holds its worker until it is released.
struct Gate {
    is_held: AtomicBool,
    is_released: AtomicBool,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self { is_held: AtomicBool::new(false), is_released: AtomicBool::new(false) })
    }

    fn until_held(&self) {
        while !self.is_held.load(Ordering::SeqCst) {
            thread::sleep(ms(1));
        }
    }

    fn release(&self) {
        self.is_released.store(true, Ordering::SeqCst);
    }
}

struct Gated(Arc<Gate>);

impl TileOp for Gated {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn begin(&self, tiles: &[usize], stop: &Stop) -> TileRun<'_> {
        let mut run = Negate.begin(tiles, stop);
        Box::new(move |piece| {
            self.0.is_held.store(true, Ordering::SeqCst);
            while !self.0.is_released.load(Ordering::SeqCst) {
                thread::sleep(ms(1));
            }
            run(piece)
        })
    }
}

#[test]
fn a_run_that_waits_for_a_worker_can_be_stopped_alone() {
    let expected = right_answer();
    for (executor, _) in executors() {
        let expected = expected.clone();
        within(move || {
            let gate = Gate::new();
            let busy = Worker::new("shared", Arc::new(Gated(gate.clone())));
            let waiting = Worker { lock: busy.lock.clone(), ..good("shared") };
            let stop = Stop::default();
            thread::scope(|scope| {
                let first = scope.spawn(|| run_on(&Sequential, &[busy], &Stop::default(), &mut ()));
                gate.until_held();
                let second = scope.spawn(|| run_on(executor.as_ref(), &[waiting], &stop, &mut ()));
                thread::sleep(ms(50));
                assert!(!second.is_finished());
                stop.stop();
                assert!(matches!(second.join().unwrap(), Err(ExecError::Stopped)));
                gate.release();
                assert_eq!(first.join().unwrap().unwrap().0, expected);
            });
        });
    }
}

#[test]
fn time_of_other_runs_does_not_count() {
    for executor in many(|settings| settings.tile_timeout = Some(ms(200))) {
        within(move || {
            let gate = Gate::new();
            let busy = Worker::new("shared", Arc::new(Gated(gate.clone())));
            let waiting = Worker { lock: busy.lock.clone(), ..good("shared") };
            thread::scope(|scope| {
                scope.spawn(|| run_on(&Sequential, &[busy], &Stop::default(), &mut ()).unwrap());
                gate.until_held();
                let second = scope.spawn(|| run_on(&executor, &[waiting], &Stop::default(), &mut ()));
                thread::sleep(ms(600));
                gate.release();
                let stats = second.join().unwrap().unwrap().1;
                assert!(stats.workers.iter().all(|worker| worker.faults == 0 && worker.retired.is_none()), "{stats:?}");
            });
        });
    }
}

#[test]
fn a_worker_that_hangs_in_one_run_is_no_trap_for_the_next() {
    for executor in many(|_| ()) {
        within(move || {
            let gate = Gate::new();
            let hung = Worker::new("hung", Arc::new(Gated(gate.clone())));
            let later = Worker { lock: hung.lock.clone(), ..good("hung") };
            let (plan, clip, mut canvas, stop) = (plan(), clip(), Canvas::default(), Stop::default());
            thread::scope(|scope| {
                let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
                let workers = [hung];
                let job = Job { plan: &plan, source: &clip, workers: &workers, compositor, stop: &stop };
                let settings = Settings { grace: ms(50), ..Settings::new(executor) };
                scope.spawn(|| {
                    gate.until_held();
                    stop.stop();
                });
                assert!(matches!(engine::run(settings, job, &mut ()), Err(ExecError::Stopped)));
            });
            // It is left behind, and still at its tile.
            let error = run_on(&executor, std::slice::from_ref(&later), &Stop::default(), &mut ()).unwrap_err();
            assert!(matches!(error, ExecError::WorkerHung { .. }), "{error}");
            let error = run_on(&Sequential, std::slice::from_ref(&later), &Stop::default(), &mut ()).unwrap_err();
            assert!(matches!(error, ExecError::WorkerHung { .. }), "{error}");
            let stats =
                run_on(&executor, &[later.clone(), scripted("other", |_| Behavior::AnswerAfter(ms(1)))], &Stop::default(), &mut ()).unwrap().1;
            assert_eq!((stats.workers[0].tiles, stats.workers[1].tiles), (0, plan.tiles.len()));
            // The worker is used again once it returns.
            gate.release();
            while run_on(&Sequential, std::slice::from_ref(&later), &Stop::default(), &mut ()).is_err() {}
        });
    }
}
