use super::*;

const RULES: Rules = Rules { window: 64, at_once: 1, batch: 1, retries: 2, timeout: None, silence: Duration::from_mins(5) };

fn scheduler(work: &[f64], workers: usize, rules: Rules) -> Scheduler {
    Scheduler::new(work.to_vec(), vec![0; work.len()], vec![None; workers], rules)
}

/// The assignment of one tile.
fn run(tile: usize) -> Assignment {
    Assignment::Run(Task { tiles: vec![tile], is_upcast: false })
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Simulates a run with workers of given speeds. Returns its length, and the least that is possible. Tiles are blended as soon as those before them are.
fn play(work: &[f64], speeds: &[f64], rules: Rules) -> (f64, f64) {
    let mut scheduler = scheduler(work, speeds.len(), rules);
    // What each worker has in work, and when it is finished: one after the other.
    let mut queues: Vec<Vec<(Vec<usize>, f64)>> = vec![Vec::new(); speeds.len()];
    let (mut now, mut begun, mut is_finished) = (0.0_f64, std::collections::HashSet::new(), vec![false; work.len()]);
    while !scheduler.is_over() {
        for worker in 0..speeds.len() {
            while let Assignment::Run(task) = scheduler.assign(worker, Duration::from_secs_f64(now)) {
                assert!(task.tiles.iter().all(|&tile| begun.insert(tile) && tile < scheduler.placed + rules.window), "{task:?}");
                let length: f64 = task.tiles.iter().map(|&tile| work[tile]).sum::<f64>() / speeds[worker];
                let start = queues[worker].last().map_or(now, |last| last.1);
                queues[worker].push((task.tiles, start + length));
                assert!(queues[worker].len() <= rules.at_once);
            }
        }
        now = queues.iter().filter_map(|queue| queue.first()).map(|first| first.1).fold(f64::INFINITY, f64::min);
        assert!(now.is_finite(), "every worker waits");
        for (worker, queue) in queues.iter_mut().enumerate() {
            if queue.first().is_some_and(|first| first.1 <= now) {
                let (tiles, _) = queue.remove(0);
                assert_eq!(scheduler.finished(worker, &tiles, Duration::from_secs_f64(now)), tiles);
                for tile in tiles {
                    is_finished[tile] = true;
                }
                scheduler.placed(is_finished.iter().position(|finished| !finished).unwrap_or(work.len()));
            }
        }
    }
    let total: f64 = work.iter().sum();
    let best = (total / speeds.iter().sum::<f64>()).max(work.iter().copied().fold(0.0, f64::max) / speeds.iter().copied().fold(0.0, f64::max));
    (now, best)
}

#[test]
fn equal_workers_are_busy_to_the_end() {
    for (workers, least) in [(1, 1.0), (2, 0.99), (4, 0.97), (16, 0.95)] {
        // A grid of 20 columns with thin tiles at the right.
        let work: Vec<f64> = (0..400).map(|tile| if tile % 20 == 19 { 0.25 } else { 1.0 }).collect();
        for at_once in 1..=3 {
            let (length, best) = play(&work, &vec![1.0; workers], Rules { at_once, window: 4 * workers * at_once, ..RULES });
            assert!(best / length >= least, "{workers} workers: {}", best / length);
        }
    }
}

#[test]
fn slow_workers_do_not_hold_up_the_end() {
    for tiles in [9, 20, 33, 70] {
        let work = vec![1.0; tiles];
        let speeds = [1.0, 2.0, 4.0];
        let (length, _) = play(&work, &speeds, RULES);
        // The shortest run there is: by trying every way to divide equal tiles.
        let possible = (0..=tiles).flat_map(|a| (0..=tiles - a).map(move |b| [a, b, tiles - a - b]));
        let best = possible.map(|counts| (0..3).map(|i| counts[i] as f64 / speeds[i]).fold(0.0, f64::max)).fold(f64::INFINITY, f64::min);
        // The first tile of each worker goes out before its speed is known.
        assert!(length <= best * 1.05 + 1e-9 || length <= best + 0.5, "{tiles} tiles: {length} against {best}");
    }
}

#[test]
fn a_slow_worker_shows_its_speed_before_it_gets_a_second_tile() {
    for at_once in 1..=4 {
        let (length, _) = play(&[1.0; 9], &[0.01, 0.01, 1.0], Rules { at_once, ..RULES });
        assert!(length <= 100.0 + 1e-9, "{at_once} at once: {length}");
    }
}

fn outcome(tiles: &[usize], is_retired: bool) -> FailureOutcome {
    FailureOutcome { tiles: tiles.to_vec(), is_retired }
}

/// A way in which a worker loses a tile.
type Return = fn(&mut Scheduler) -> bool;

#[test]
fn a_failed_tile_goes_to_another_worker() {
    let mut scheduler = scheduler(&[1.0, 1.0], 2, RULES);
    assert_eq!([scheduler.assign(0, seconds(0)), scheduler.assign(1, seconds(0))], [run(0), run(1)]);
    assert_eq!(scheduler.failed(0, &[0], Blame::Tile), Some(outcome(&[0], false)));
    assert_eq!(scheduler.assign(0, seconds(1)), Assignment::Wait);
    assert_eq!(scheduler.finished(1, &[1], seconds(2)), [1]);
    assert_eq!(scheduler.assign(1, seconds(2)), run(0));
    // The last worker gets it again.
    assert_eq!(scheduler.failed(1, &[0], Blame::Device), Some(outcome(&[0], true)));
    assert!(!scheduler.is_hopeless());
    assert_eq!((scheduler.assign(1, seconds(3)), scheduler.assign(0, seconds(3))), (Assignment::Leave, run(0)));
    assert_eq!(scheduler.finished(0, &[0], seconds(4)), [0]);
    assert_eq!((scheduler.assign(0, seconds(4)), scheduler.live_workers()), (Assignment::Leave, 1));
}

#[test]
fn a_tile_is_given_up_once_it_failed_everywhere_and_more_often_than_is_allowed() {
    let mut scheduler = scheduler(&[1.0], 2, Rules { retries: 2, ..RULES });
    for (worker, is_hopeless) in [(0, false), (1, false), (0, true)] {
        assert_eq!(scheduler.assign(worker, seconds(0)), run(0));
        scheduler.failed(worker, &[0], Blame::Tile).unwrap();
        assert_eq!(scheduler.is_hopeless(), is_hopeless);
    }
}

#[test]
fn a_worker_that_is_needed_has_all_retries() {
    for (workers, retries) in [(1, 0), (1, 2), (1, 7), (2, 9)] {
        let mut scheduler = scheduler(&[1.0, 1.0], workers, Rules { retries, ..RULES });
        let mut failures = [0; 2];
        while !scheduler.is_hopeless() {
            for worker in 0..workers {
                if let Assignment::Run(task) = scheduler.assign(worker, seconds(0)) {
                    scheduler.failed(worker, &task.tiles, Blame::Tile).unwrap();
                    failures[task.tiles[0]] += 1;
                }
            }
        }
        assert_eq!(failures.into_iter().max(), Some(retries + 1));
    }
}

#[test]
fn a_device_without_memory_gets_smaller_tiles_only() {
    let mut scheduler = scheduler(&[2.0, 2.0, 1.0], 2, RULES);
    assert_eq!(scheduler.assign(0, seconds(0)), run(0));
    assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(outcome(&[0], true)));
    assert_eq!(scheduler.assign(0, seconds(0)), run(2));
    assert_eq!(scheduler.finished(0, &[2], seconds(1)), [2]);
    assert_eq!([scheduler.assign(0, seconds(1)), scheduler.assign(1, seconds(1))], [Assignment::Wait, run(0)]);
    assert!(!scheduler.is_hopeless());
    scheduler.failed(1, &[0], Blame::Memory).unwrap();
    assert!(scheduler.is_hopeless());
}

#[test]
fn a_tile_that_does_not_fit_beside_others_runs_alone() {
    let mut scheduler = scheduler(&[2.0, 2.0, 1.0, 1.0, 1.0], 1, Rules { at_once: 2, ..RULES });
    let assign = |scheduler: &mut Scheduler| scheduler.assign(0, seconds(0));
    assert_eq!([assign(&mut scheduler), assign(&mut scheduler), assign(&mut scheduler)], [run(0), run(1), Assignment::Wait]);
    // Both fail while the other was there.
    assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(outcome(&[0], false)));
    assert_eq!(scheduler.failed(0, &[1], Blame::Memory), Some(outcome(&[1], false)));
    assert!(!scheduler.is_hopeless());
    assert_eq!([assign(&mut scheduler), assign(&mut scheduler)], [run(0), Assignment::Wait]);
    assert_eq!(scheduler.finished(0, &[0], seconds(1)), [0]);
    assert_eq!([assign(&mut scheduler), assign(&mut scheduler)], [run(1), Assignment::Wait]);
    assert_eq!(scheduler.finished(0, &[1], seconds(1)), [1]);
    // Smaller tiles still run concurrently.
    assert_eq!([assign(&mut scheduler), assign(&mut scheduler)], [run(2), run(3)]);
    // Alone, what does not fit is too large.
    let mut scheduler = Scheduler::new(vec![2.0; 3], vec![0; 3], vec![None], Rules { at_once: 2, ..RULES });
    assert_eq!([assign(&mut scheduler), assign(&mut scheduler)], [run(0), run(1)]);
    assert_eq!(scheduler.finished(0, &[1], seconds(1)), [1]);
    assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(outcome(&[0], false)));
    assert_eq!(assign(&mut scheduler), run(0));
    assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(outcome(&[0], true)));
    assert!(scheduler.is_hopeless());
}

#[test]
fn tiles_that_no_worker_is_left_for_end_the_run() {
    // One worker has no memory for large tiles, and the other is lost on a small one.
    let work = [2.0, 1.0, 2.0];
    let begin = |at_once| {
        let mut scheduler = scheduler(&work, 2, Rules { at_once, ..RULES });
        assert_eq!(scheduler.assign(0, seconds(0)), run(0));
        assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(outcome(&[0], true)));
        assert_eq!(scheduler.assign(1, seconds(0)), run(0));
        assert_eq!(scheduler.finished(1, &[0], seconds(1)), [0]);
        scheduler
    };
    let mut lost = begin(1);
    lost.tiles[2].progress = TileProgress::Finished;
    lost.finished += 1;
    assert_eq!(lost.assign(1, seconds(1)), run(1));
    lost.failed(1, &[1], Blame::Device).unwrap();
    assert!(!lost.is_hopeless(), "the other can run what is left");
    // However the other worker loses a large tile, no worker is left for it.
    let returns: [Return; 5] = [
        |scheduler| scheduler.failed(1, &[2], Blame::Device).is_some(),
        |scheduler| scheduler.failed(1, &[2], Blame::Memory).is_some(),
        |scheduler| scheduler.give_up(1) == [2],
        |scheduler| std::mem::replace(&mut scheduler.workers[1].is_retired, true) || scheduler.give_back(1, &[2]),
        |scheduler| std::mem::replace(&mut scheduler.workers[1].is_retired, true) || scheduler.upcast(1, &[2]),
    ];
    for come_back in returns {
        let mut gone = begin(1);
        assert_eq!(gone.assign(1, seconds(1)), run(2));
        assert!(!gone.is_hopeless() && come_back(&mut gone) && gone.is_hopeless());
    }
    // The device is lost on one tile while it has another.
    let mut lost = begin(2);
    assert_eq!(lost.assign(1, seconds(1)), run(2));
    lost.workers[1].running.push(Running { tiles: vec![1], start: seconds(1), had_company: true, clock: Clock::default() });
    lost.tiles[1].progress = TileProgress::Running;
    assert_eq!(lost.failed(1, &[1], Blame::Device), Some(outcome(&[1, 2], true)));
    assert!(lost.is_hopeless());
    // So does half a stack.
    let mut stacks = Scheduler::new(vec![1.0; 4], vec![0; 4], vec![None; 2], Rules { batch: 2, ..RULES });
    let Assignment::Run(task) = stacks.assign(0, seconds(0)) else { panic!("nothing to run") };
    assert_eq!(task.tiles, [0, 1]);
    stacks.give_up(1);
    stacks.workers[0].is_retired = true;
    stacks.failed(0, &[0, 1], Blame::Memory).unwrap();
    assert!(stacks.is_hopeless());
}

#[test]
fn stacks_hold_tiles_of_one_shape() {
    let mut scheduler = Scheduler::new(vec![1.0; 6], vec![0, 0, 1, 0, 0, 0], vec![None], Rules { batch: 3, ..RULES });
    let task = |tiles: &[usize]| Assignment::Run(Task { tiles: tiles.to_vec(), is_upcast: false });
    assert_eq!(scheduler.assign(0, seconds(0)), task(&[0, 1, 3]));
    // What does not fit the memory runs in smaller stacks, and what failed alone.
    assert_eq!(scheduler.failed(0, &[0, 1, 3], Blame::Memory), Some(outcome(&[0, 1, 3], false)));
    assert_eq!(scheduler.assign(0, seconds(0)), run(0));
    assert!(scheduler.upcast(0, &[0]));
    assert_eq!(scheduler.assign(0, seconds(0)), Assignment::Run(Task { tiles: vec![0], is_upcast: true }));
}

#[test]
fn tiles_over_time_are_taken_away() {
    let limited = Rules { timeout: Some(seconds(9)), ..RULES };
    let mut impatient = scheduler(&[1.0; 4], 2, limited);
    let mut scheduler = scheduler(&[1.0; 4], 2, RULES);
    for scheduler in [&mut impatient, &mut scheduler] {
        assert_eq!([scheduler.assign(0, seconds(0)), scheduler.assign(1, seconds(0))], [run(0), run(1)]);
        assert!(scheduler.enter(0, &[0], seconds(0)) && scheduler.enter(1, &[1], seconds(0)));
    }
    assert!(scheduler.stalled(seconds(10_000)).is_empty(), "nothing is known yet");
    assert_eq!((impatient.stalled(seconds(9)), impatient.stalled(seconds(10))), (vec![], vec![(0, 0), (1, 1)]));
    scheduler.leave(1, &[1], seconds(2));
    assert_eq!(scheduler.finished(1, &[1], seconds(2)), [1]);
    assert!(scheduler.stalled(seconds(700)).is_empty());
    assert_eq!(scheduler.stalled(seconds(801)), [(0, 0)]);
    assert_eq!(scheduler.give_up(0), [0]);
    assert!(scheduler.stalled(seconds(10_000)).is_empty() && !scheduler.is_hopeless());
    assert!(scheduler.finished(0, &[0], seconds(802)).is_empty(), "the result comes too late");
    assert_eq!((scheduler.assign(0, seconds(802)), scheduler.assign(1, seconds(802))), (Assignment::Leave, run(0)));
    assert!(scheduler.enter(1, &[0], seconds(802)));
    assert_eq!(scheduler.stalled(seconds(802 + 101)), [(1, 0)]);
}

#[test]
fn only_time_inside_the_operation_counts() {
    let mut scheduler = scheduler(&[1.0], 1, Rules { timeout: Some(seconds(9)), ..RULES });
    assert_eq!(scheduler.assign(0, seconds(0)), run(0));
    // Its input was read, and its outputs waited.
    assert!(scheduler.stalled(seconds(100)).is_empty());
    for start in [100, 200] {
        assert!(scheduler.enter(0, &[0], seconds(start)) && scheduler.enter(0, &[0], seconds(start + 1)));
        scheduler.leave(0, &[0], seconds(start + 3));
        scheduler.leave(0, &[0], seconds(start + 4));
    }
    assert!(scheduler.stalled(seconds(1000)).is_empty());
    assert!(scheduler.enter(0, &[0], seconds(1000)));
    assert_eq!((scheduler.stalled(seconds(1001)), scheduler.stalled(seconds(1002))), (vec![], vec![(0, 0)]));
}

#[test]
fn a_retired_worker_that_hangs_is_given_up_too() {
    let mut scheduler = scheduler(&[1.0; 2], 2, Rules { timeout: Some(seconds(9)), ..RULES });
    assert_eq!(scheduler.assign(0, seconds(0)), run(0));
    assert!(scheduler.enter(0, &[0], seconds(0)));
    scheduler.workers[0].is_retired = true;
    assert_eq!(scheduler.stalled(seconds(10)), [(0, 0)]);
    scheduler.give_up(0);
    assert_eq!((scheduler.stalled(seconds(20)), scheduler.assign(1, seconds(20))), (vec![], run(0)));
}

#[test]
fn a_first_tile_without_a_sign_of_life_is_run_by_others_too() {
    let minute = |minutes: u64| seconds(60 * minutes);
    let begin = |devices: &[Option<usize>], rules| {
        let mut scheduler = Scheduler::new(vec![1.0], vec![0], devices.to_vec(), rules);
        assert_eq!(scheduler.assign(0, seconds(0)), run(0));
        assert!(scheduler.enter(0, &[0], seconds(0)));
        scheduler
    };
    let mut scheduler = begin(&[None, None, None], RULES);
    assert_eq!([scheduler.assign(1, minute(5)), scheduler.assign(0, minute(6))], [Assignment::Wait, Assignment::Wait]);
    // A piece that comes is a sign of life.
    scheduler.leave(0, &[0], minute(5));
    assert!(scheduler.enter(0, &[0], minute(7)));
    assert_eq!(scheduler.assign(1, minute(11)), Assignment::Wait);
    assert_eq!((scheduler.assign(1, minute(13)), scheduler.assign(2, minute(13))), (run(0), Assignment::Wait));
    assert!(scheduler.enter(1, &[0], minute(13)));
    assert_eq!((scheduler.assign(2, minute(17)), scheduler.assign(2, minute(19))), (Assignment::Wait, run(0)));
    // One of them fails: the others have it still.
    scheduler.failed(2, &[0], Blame::Tile).unwrap();
    // It tries again while they are silent.
    assert!(!scheduler.is_hopeless() && scheduler.assign(2, minute(20)) == run(0));
    scheduler.leave(1, &[0], minute(20));
    assert_eq!(scheduler.finished(1, &[0], minute(20)), [0]);
    // The first worker is not waited for any longer, and its output does not count.
    assert!(scheduler.is_over() && !scheduler.has(0, &[0]) && !scheduler.enter(0, &[0], minute(20)));
    assert!(scheduler.finished(0, &[0], minute(21)).is_empty());
    // Another share of the device does not step in, and a timeout replaces the rule.
    assert_eq!(begin(&[Some(3), Some(3)], RULES).assign(1, minute(60)), Assignment::Wait);
    assert_eq!(begin(&[None, None], Rules { timeout: Some(minute(99)), ..RULES }).assign(1, minute(60)), Assignment::Wait);
}

#[test]
fn a_worker_that_has_not_come_back_gets_no_tile_and_is_not_waited_for() {
    let mut scheduler = scheduler(&[1.0; 3], 2, RULES);
    assert_eq!([scheduler.assign(0, seconds(0)), scheduler.assign(1, seconds(0))], [run(0), run(1)]);
    assert!(scheduler.enter(0, &[0], seconds(0)));
    scheduler.failed(0, &[0], Blame::Tile).unwrap();
    assert_eq!(scheduler.finished(1, &[1], seconds(1)), [1]);
    assert_eq!((scheduler.assign(0, seconds(1)), scheduler.assign(1, seconds(1))), (Assignment::Wait, run(0)));
    scheduler.failed(1, &[0], Blame::Tile).unwrap();
    assert_eq!((scheduler.assign(0, seconds(1)), scheduler.assign(1, seconds(1))), (Assignment::Wait, run(0)));
    scheduler.leave(0, &[0], seconds(2));
    assert_eq!(scheduler.assign(0, seconds(2)), run(2));
}

#[test]
fn a_tile_that_was_blended_but_not_finished_is_run_again() {
    let mut scheduler = scheduler(&[1.0; 2], 2, RULES);
    assert_eq!([scheduler.assign(0, seconds(0)), scheduler.assign(1, seconds(0))], [run(0), run(1)]);
    // Its last piece has come when the worker is given up.
    scheduler.placed(1);
    assert_eq!(scheduler.give_up(0), [0]);
    assert_eq!(scheduler.finished(1, &[1], seconds(1)), [1]);
    scheduler.placed(2);
    assert_eq!(scheduler.assign(1, seconds(1)), run(0));
    assert_eq!(scheduler.finished(1, &[0], seconds(1)), [0]);
    assert!(scheduler.is_over());
}

#[test]
fn the_window_bounds_the_tiles_that_are_begun() {
    let mut scheduler = scheduler(&[1.0; 6], 3, Rules { window: 2, ..RULES });
    assert_eq!([0, 1, 2].map(|worker| scheduler.assign(worker, seconds(0))), [run(0), run(1), Assignment::Wait]);
    assert_eq!([scheduler.finished(1, &[1], seconds(1)), scheduler.finished(0, &[0], seconds(1))].concat(), [1, 0]);
    // Finished is not enough: it has to be blended.
    assert_eq!(scheduler.assign(2, seconds(1)), Assignment::Wait);
    scheduler.placed(1);
    assert_eq!(scheduler.assign(2, seconds(1)), run(2));
    assert_eq!(scheduler.assign(1, seconds(1)), Assignment::Wait);
}

#[test]
fn a_silent_worker_is_given_up_once_its_stand_in_has_failed_too_often() {
    let minute = |minutes: u64| seconds(60 * minutes);
    for retries in [0, 2, 5] {
        let mut scheduler = scheduler(&[1.0], 2, Rules { retries, ..RULES });
        assert_eq!(scheduler.assign(0, seconds(0)), run(0));
        assert!(scheduler.enter(0, &[0], seconds(0)));
        for failure in 0..=retries {
            assert!(scheduler.stalled(minute(60)).is_empty(), "{failure} failures");
            assert_eq!(scheduler.assign(1, minute(6)), run(0));
            assert!(scheduler.failed(1, &[0], Blame::Tile).is_some() && !scheduler.is_run_again(&[0]));
        }
        assert_eq!(scheduler.assign(1, minute(6)), if scheduler.is_retired(1) { Assignment::Leave } else { Assignment::Wait });
        // The silent one is waited for as long as it may be alive.
        assert!(scheduler.stalled(minute(4)).is_empty() && !scheduler.is_hopeless());
        assert_eq!(scheduler.stalled(minute(6)), [(0, 0)]);
        assert_eq!(scheduler.give_up(0), [0]);
        assert!(scheduler.is_hopeless());
    }
}

#[test]
fn a_worker_that_failed_on_a_tile_does_not_step_in_for_a_silent_one() {
    let hour = seconds(3600);
    let mut scheduler = scheduler(&[1.0], 2, RULES);
    assert_eq!(scheduler.assign(0, seconds(0)), run(0));
    assert!(scheduler.failed(0, &[0], Blame::Tile).is_some() && scheduler.is_run_again(&[0]));
    assert_eq!(scheduler.assign(1, seconds(0)), run(0));
    assert!(scheduler.enter(1, &[0], seconds(0)));
    // The second one may be slow: it is waited for.
    assert_eq!((scheduler.assign(0, hour), scheduler.stalled(hour)), (Assignment::Wait, vec![]));
}

#[test]
fn tiles_run_where_their_input_is() {
    // Many tiles, then few: the last ones go to the worker that is free all the same.
    let near: [&[usize]; 2] = [&[1, 3, 5, 7, 9, 11], &[0, 2, 4, 6, 8]];
    let mut scheduler = scheduler(&[1.0; 12], 2, RULES).with_near_tiles(near);
    let mut ran: [Vec<usize>; 2] = [Vec::new(), Vec::new()];
    for round in 0..6 {
        for worker in [0, 1] {
            let Assignment::Run(task) = scheduler.assign(worker, seconds(round)) else { panic!("{worker} waits in round {round}") };
            ran[worker].extend(&task.tiles);
        }
        for worker in [0, 1] {
            scheduler.finished(worker, &ran[worker][round as usize..], seconds(round + 1));
        }
    }
    assert_eq!(ran, [vec![1, 3, 5, 7, 9, 11], vec![0, 2, 4, 6, 8, 10]]);
    // A worker without tiles of its own takes those of others, but leaves the first to it.
    let mut scheduler = self::scheduler(&[1.0; 4], 2, RULES).with_near_tiles([&[0, 1, 2, 3][..], &[]]);
    assert_eq!([scheduler.assign(1, seconds(0)), scheduler.assign(0, seconds(0))], [run(1), run(0)]);
}
