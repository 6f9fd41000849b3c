use std::panic::resume_unwind;
use std::sync::atomic::AtomicBool;

use super::*;
use crate::engine::{self, Settings};

/// Works on its first piece until it is stopped.
#[derive(Default)]
struct Endless {
    is_running: Arc<AtomicBool>,
    is_stopped: Arc<AtomicBool>,
}

impl TileOp for Endless {
    fn geometry(&self) -> Geometry {
        Negate.geometry()
    }

    fn begin(&self, _: &[usize], stop: &Stop) -> TileRun<'_> {
        let stop = stop.clone();
        Box::new(move |_| {
            self.is_running.store(true, Ordering::SeqCst);
            while !stop.is_stopped() {
                sleep(ms(1));
            }
            self.is_stopped.store(true, Ordering::SeqCst);
            resume_unwind(Box::new("it was stopped"))
        })
    }
}

/// A stop that is stopped later.
fn stopped_after(time: Duration) -> Stop {
    let stop = Stop::default();
    let later = stop.clone();
    std::thread::spawn(move || {
        sleep(time);
        later.stop();
    });
    stop
}

#[test]
fn a_stop_reaches_running_operations() {
    each(|run, count| {
        let begun = Instant::now();
        let workers = (0..count).map(|i| Worker::new(i.to_string(), Arc::new(Endless::default()))).collect();
        let error = run(Given { workers, stop: stopped_after(ms(50)), ..Given::default() }).unwrap_err();
        assert!(matches!(error, ExecError::Stopped), "{error}");
        assert!(begun.elapsed() < ms(2000), "{:?}", begun.elapsed());
    });
}

/// Panics at its first event, but for the one that begins the run, once an operation runs.
struct PanicsMeanwhile(Arc<AtomicBool>);

impl Progress for PanicsMeanwhile {
    fn on_event(&mut self, event: &Event) {
        if matches!(event, Event::Started { .. }) {
            return;
        }
        while !self.0.load(Ordering::SeqCst) {
            sleep(ms(1));
        }
        panic!("on purpose");
    }
}

#[test]
fn an_error_stops_operations_on_other_workers() {
    for executor in many(|_| ()) {
        let [is_running, is_stopped] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let endless = Endless { is_running: is_running.clone(), is_stopped: is_stopped.clone() };
        let workers = vec![scripted("a", |_| Behavior::AnswerAfter(ms(5))), Worker::new("endless", Arc::new(endless))];
        let given = Given { progress: Box::new(PanicsMeanwhile(is_running)), workers, ..Given::default() };
        let error = outcome(&executor, given).unwrap_err();
        assert!(matches!(error, ExecError::PartyPanicked(Panicked { who: Party::Listener, .. })), "{error}");
        assert!(is_stopped.load(Ordering::SeqCst));
    }
}

/// Runs tiles on workers of which some may hang.
fn run_with(silence: Duration, plan: TilePlan, workers: Vec<Worker>, in_flight: Option<usize>, stop: Stop) -> Result<RunStats, ExecError> {
    within(move || {
        let executor = MultiDevice { in_flight: in_flight.and_then(NonZeroUsize::new), ..MultiDevice::default() };
        let settings = Settings { silence, grace: ms(300), ..Settings::new(executor) };
        let (clip, mut canvas) = (clip(), Canvas::default());
        let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
        let job = Job { plan: &plan, source: &clip, workers: &workers, compositor, stop: &stop };
        let stats = engine::run(settings, job, &mut ())?;
        assert!(close(&canvas.into_tensor(), &negative()));
        Ok(stats)
    })
}

const IN_FLIGHT: [Option<usize>; 3] = [None, Some(1), Some(3)];

const HOUR: Duration = Duration::from_hours(1);

#[test]
fn a_stopped_run_leaves_hung_workers_behind() {
    for in_flight in IN_FLIGHT {
        let workers = vec![scripted("lost", |_| Behavior::AnswerAfter(HOUR)), good("b")];
        let error = run_with(HOUR, plan(), workers, in_flight, stopped_after(ms(50))).unwrap_err();
        assert!(matches!(error, ExecError::Stopped), "{error}");
    }
}

#[test]
fn a_silent_first_tile_is_run_by_an_idle_worker() {
    let untiled = || TilePlan::new(&tiling::Off, Negate.geometry(), clip().extent()).unwrap();
    for in_flight in IN_FLIGHT {
        let is_stopped = Arc::new(AtomicBool::new(false));
        let endless = || Worker::new("endless", Arc::new(Endless { is_stopped: is_stopped.clone(), ..Endless::default() }));
        let dead = scripted("dead", |_| Behavior::AnswerAfter(HOUR));
        for (silent, waits_for_it) in [(endless(), true), (dead.clone(), false)] {
            let stats = run_with(ms(50), untiled(), vec![silent, good("b")], in_flight, Stop::default()).unwrap();
            assert_eq!((stats.workers[0].tiles, stats.workers[1].tiles, stats.tiles), (0, 1, 1));
            assert!(!waits_for_it || is_stopped.load(Ordering::SeqCst), "the first is stopped");
        }
        // A worker that gives signs of life keeps its tile.
        let slow = scripted("slow", |_| Behavior::AnswerAfter(ms(50)));
        assert_eq!(run_with(HOUR, untiled(), vec![slow, good("b")], in_flight, Stop::default()).unwrap().workers[0].tiles, 1);
        // Another share of the device does not step in.
        let shares = [endless(), good("b")].map(|worker| Worker { device: Some(0), ..worker });
        let error = run_with(ms(50), untiled(), shares.to_vec(), in_flight, stopped_after(ms(400))).unwrap_err();
        assert!(matches!(error, ExecError::Stopped), "{error}");
        // Where those that step in fail, too, the silent one is given up.
        let bad = scripted("bad", |_| Behavior::Fail);
        let error = run_with(ms(50), untiled(), vec![dead, bad], in_flight, Stop::default()).unwrap_err();
        assert!(matches!(&error, ExecError::NoWorkerLeft { causes } if causes.len() == 2), "{error}");
    }
}

/// A listener that sleeps at each piece, until a worker is retired.
struct SlowListener(Duration, Arc<Mutex<Vec<Event>>>);

impl Progress for SlowListener {
    fn on_event(&mut self, event: &Event) {
        let mut events = self.1.lock().unwrap();
        events.push(event.clone());
        if matches!(event, Event::Advanced(_)) && !events.iter().any(|event| matches!(event, Event::WorkerRetired { .. })) {
            sleep(self.0);
        }
    }
}

#[test]
fn time_of_a_slow_source_or_listener_does_not_count() {
    let plan = || TilePlan::new(&Uniform::with_tile([11, 7], [1, 2]), Negate.geometry(), clip().extent()).unwrap();
    assert_eq!(plan().tiles.len(), 3);
    for executor in many(|settings| settings.tile_timeout = Some(ms(400))) {
        // A tile takes longer to be read, or to be taken, than the limit.
        let slow_listener = Given { progress: Box::new(SlowListener(ms(250), Arc::default())), ..Given::default() };
        let slow_to_read = Given { source: Box::new(SlowToRead(ms(250))), ..Given::default() };
        for given in [slow_listener, slow_to_read] {
            let stats = outcome(&executor, Given { plan: plan(), ..given }).unwrap();
            assert!(stats.workers.iter().all(|worker| worker.faults == 0 && worker.retired.is_none()), "{stats:?}");
        }
    }
}

#[test]
fn a_hung_worker_is_found_while_others_send_many_messages() {
    for executor in many(|settings| settings.tile_timeout = Some(ms(500))) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let mut progress = SlowListener(ms(4), events.clone());
        within(move || {
            let source = HostTensor::from_fn([1, 1, 100, 11, 17], |[_, _, t, y, x]| (t * 5 + y * 3 + x) as f32);
            let plan = TilePlan::new(&Uniform::with_tile([4, 5], [1, 2]), Negate.geometry(), source.extent()).unwrap();
            let workers = [scripted("lost", |_| Behavior::AnswerAfter(Duration::from_hours(1))), good("b")];
            let mut canvas = Canvas::default();
            let compositor = Compositor::new(&plan, &Cascade, &mut canvas);
            executor.run(Job { plan: &plan, source: &source, workers: &workers, compositor, stop: &Stop::default() }, &mut progress).unwrap();
        });
        let events = events.lock().unwrap();
        let at = events.iter().position(|event| matches!(event, Event::WorkerRetired { worker: 0, .. })).unwrap();
        let before = events[..at].iter().filter(|event| matches!(event, Event::Advanced(_))).count();
        assert!(before < 400, "{before} pieces came before the workers were checked");
    }
}
