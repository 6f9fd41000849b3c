use std::time::Duration;

/// How much a new measurement of a worker's speed counts against the earlier ones.
const FRESHNESS: f64 = 0.5;
/// Waiting tiles a worker from which on nobody looks ahead.
const MANY: usize = 4;

/// Decides which worker runs which tile. Knows no threads and no clock: it is told the time.
///
/// A free worker takes the tile with the most work. Once the tiles that wait are few, the rest of the run is played through with the speeds measured
/// so far, and a slow worker leaves a tile to a fast one that would finish it earlier. A tile that failed goes to a worker that has not tried it, as
/// long as there is one. No tile is begun that lies `window` tiles or more after the first unfinished one, which bounds the answers that wait to be
/// blended.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Work of each tile, in any unit.
    work: Vec<f64>,
    tiles: Vec<TileState>,
    workers: Vec<WorkerState>,
    /// The first tile that is not finished.
    first: usize,
    window: usize,
}

#[derive(Debug, Clone, Default)]
struct TileState {
    progress: TileProgress,
    /// Workers that failed on it.
    tried: Vec<usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum TileProgress {
    #[default]
    Waiting,
    Running,
    Finished,
}

#[derive(Debug, Clone)]
struct WorkerState {
    /// Work a second, once measured.
    speed: Option<f64>,
    running: Option<(usize, Duration)>,
    is_retired: bool,
}

/// What a free worker is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Run this tile.
    Run(usize),
    /// Ask again when something has happened, or a little later.
    Wait,
    /// Nothing is left for it.
    Leave,
}

impl Scheduler {
    pub(crate) fn new(work: Vec<f64>, workers: usize, window: usize) -> Self {
        let idle = WorkerState { speed: None, running: None, is_retired: false };
        Self { tiles: vec![TileState::default(); work.len()], work, workers: vec![idle; workers], first: 0, window: window.max(1) }
    }

    /// What the free worker `worker` is to do at `now`.
    pub(crate) fn turn(&mut self, worker: usize, now: Duration) -> Turn {
        if self.workers[worker].is_retired || self.is_over() {
            return Turn::Leave;
        }
        let waiting = self.waiting();
        let mine = waiting.iter().copied().filter(|&tile| self.may_run(worker, tile));
        let Some(largest) = mine.clone().next() else { return Turn::Wait };
        let choice = if waiting.len() > MANY * self.workers.len() { Some(largest) } else { self.planned(worker, &waiting, now) };
        let Some(tile) = choice else { return Turn::Wait };
        self.tiles[tile].progress = TileProgress::Running;
        self.workers[worker].running = Some((tile, now));
        Turn::Run(tile)
    }

    /// The worker has finished its tile.
    pub(crate) fn finished(&mut self, worker: usize, now: Duration) {
        let Some((tile, start)) = self.workers[worker].running.take() else { return };
        self.tiles[tile].progress = TileProgress::Finished;
        let seconds = now.saturating_sub(start).as_secs_f64().max(1e-9);
        let measured = self.work[tile] / seconds;
        let speed = &mut self.workers[worker].speed;
        *speed = Some(speed.map_or(measured, |earlier| earlier + FRESHNESS * (measured - earlier)));
        while self.tiles.get(self.first).is_some_and(|tile| tile.progress == TileProgress::Finished) {
            self.first += 1;
        }
    }

    /// The worker has failed on its tile, which waits again. Gives how many times it has failed.
    pub(crate) fn failed(&mut self, worker: usize) -> usize {
        let Some((tile, _)) = self.workers[worker].running.take() else { return 0 };
        let state = &mut self.tiles[tile];
        state.progress = TileProgress::Waiting;
        state.tried.push(worker);
        state.tried.len()
    }

    /// The worker gets no more tiles.
    pub(crate) fn retire(&mut self, worker: usize) {
        self.workers[worker].is_retired = true;
    }

    pub(crate) fn is_over(&self) -> bool {
        self.first == self.tiles.len()
    }

    pub(crate) fn live_workers(&self) -> usize {
        self.workers.iter().filter(|worker| !worker.is_retired).count()
    }

    /// Tiles that may be begun, those with the most work first.
    fn waiting(&self) -> Vec<usize> {
        let end = (self.first + self.window).min(self.tiles.len());
        let mut waiting: Vec<usize> = (self.first..end).filter(|&tile| self.tiles[tile].progress == TileProgress::Waiting).collect();
        waiting.sort_by(|&a, &b| self.work[b].total_cmp(&self.work[a]).then(a.cmp(&b)));
        waiting
    }

    fn may_run(&self, worker: usize, tile: usize) -> bool {
        let tried = &self.tiles[tile].tried;
        let others_left = (0..self.workers.len()).any(|other| !self.workers[other].is_retired && !tried.contains(&other));
        !tried.contains(&worker) || !others_left
    }

    /// The tile that `worker` runs now when every waiting tile goes to whoever finishes it first; none when all go to others.
    fn planned(&self, worker: usize, waiting: &[usize], now: Duration) -> Option<usize> {
        let known: Vec<f64> = self.workers.iter().filter_map(|worker| worker.speed).collect();
        // A worker that was not measured yet is taken to be as fast as the fastest: it is to be tried.
        let fastest = known.iter().copied().fold(f64::NAN, f64::max);
        if fastest.is_nan() {
            return waiting.iter().copied().find(|&tile| self.may_run(worker, tile));
        }
        let speed = |other: usize| self.workers[other].speed.unwrap_or(fastest);
        let mut free_at: Vec<f64> = (0..self.workers.len())
            .map(|other| match self.workers[other].running {
                Some((tile, start)) => (self.work[tile] / speed(other) - now.saturating_sub(start).as_secs_f64()).max(0.0),
                None => 0.0,
            })
            .collect();
        for &tile in waiting {
            let finish = |other: usize| free_at[other] + self.work[tile] / speed(other);
            let able = (0..self.workers.len()).filter(|&other| !self.workers[other].is_retired && self.may_run(other, tile));
            // Among equals, whoever asks.
            let best = able.min_by(|&a, &b| finish(a).total_cmp(&finish(b)).then((a != worker).cmp(&(b != worker))))?;
            if best == worker && free_at[worker] == 0.0 {
                return Some(tile);
            }
            free_at[best] = finish(best);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a run through with workers of given speeds and gives its length, the best that could be, and who ran what.
    fn play(work: &[f64], speeds: &[f64], window: usize) -> (f64, f64, Vec<Vec<usize>>) {
        let mut scheduler = Scheduler::new(work.to_vec(), speeds.len(), window);
        let mut busy_until: Vec<Option<f64>> = vec![None; speeds.len()];
        let mut ran = vec![Vec::new(); speeds.len()];
        let (mut now, mut begun) = (0.0_f64, std::collections::HashSet::new());
        while !scheduler.is_over() {
            for worker in 0..speeds.len() {
                if busy_until[worker].is_none()
                    && let Turn::Run(tile) = scheduler.turn(worker, Duration::from_secs_f64(now))
                {
                    assert!(begun.insert(tile), "tile {tile} runs twice");
                    assert!(tile < scheduler.first + window);
                    busy_until[worker] = Some(now + work[tile] / speeds[worker]);
                    ran[worker].push(tile);
                }
            }
            now = busy_until.iter().flatten().copied().fold(f64::INFINITY, f64::min);
            assert!(now.is_finite(), "everybody waits");
            for (worker, until) in busy_until.iter_mut().enumerate() {
                if until.is_some_and(|until| until <= now) {
                    scheduler.finished(worker, Duration::from_secs_f64(now));
                    *until = None;
                }
            }
        }
        let total: f64 = work.iter().sum();
        let best = (total / speeds.iter().sum::<f64>()).max(work.iter().copied().fold(0.0, f64::max) / speeds.iter().copied().fold(0.0, f64::max));
        (now, best, ran)
    }

    #[test]
    fn equal_workers_are_busy_to_the_end() {
        for (workers, least) in [(1, 1.0), (2, 0.99), (4, 0.97), (16, 0.95)] {
            // A grid of 20 columns with thin tiles at the right.
            let work: Vec<f64> = (0..400).map(|tile| if tile % 20 == 19 { 0.25 } else { 1.0 }).collect();
            let (length, best, _) = play(&work, &vec![1.0; workers], 64);
            assert!(best / length >= least, "{workers} workers: {}", best / length);
        }
    }

    #[test]
    fn slow_workers_do_not_hold_up_the_end() {
        for tiles in [9, 20, 33, 70] {
            let work = vec![1.0; tiles];
            let speeds = [1.0, 2.0, 4.0];
            let (length, ..) = play(&work, &speeds, 64);
            // The shortest run there is: by trying every way to divide equal tiles.
            let possible = (0..=tiles).flat_map(|a| (0..=tiles - a).map(move |b| [a, b, tiles - a - b]));
            let best = possible.map(|counts| (0..3).map(|i| counts[i] as f64 / speeds[i]).fold(0.0, f64::max)).fold(f64::INFINITY, f64::min);
            // The first tile of each worker goes out before its speed is known.
            assert!(length <= best * 1.05 + 1e-9 || length <= best + 0.5, "{tiles} tiles: {length} against {best}");
        }
    }

    #[test]
    fn a_failed_tile_goes_to_another_worker() {
        let mut scheduler = Scheduler::new(vec![1.0, 1.0], 2, 8);
        let now = Duration::from_secs;
        assert_eq!([scheduler.turn(0, now(0)), scheduler.turn(1, now(0))], [Turn::Run(0), Turn::Run(1)]);
        assert_eq!(scheduler.failed(0), 1);
        assert_eq!(scheduler.turn(0, now(1)), Turn::Wait);
        scheduler.finished(1, now(2));
        assert_eq!(scheduler.turn(1, now(2)), Turn::Run(0));
        // The last one standing gets it again.
        assert_eq!(scheduler.failed(1), 2);
        scheduler.retire(1);
        assert_eq!((scheduler.turn(1, now(3)), scheduler.turn(0, now(3))), (Turn::Leave, Turn::Run(0)));
        scheduler.finished(0, now(4));
        assert_eq!((scheduler.turn(0, now(4)), scheduler.live_workers()), (Turn::Leave, 1));
    }

    #[test]
    fn the_window_bounds_what_is_begun() {
        let mut scheduler = Scheduler::new(vec![1.0; 6], 3, 2);
        let now = Duration::ZERO;
        assert_eq!([0, 1, 2].map(|worker| scheduler.turn(worker, now)), [Turn::Run(0), Turn::Run(1), Turn::Wait]);
        scheduler.finished(1, Duration::from_secs(1));
        assert_eq!(scheduler.turn(2, Duration::from_secs(1)), Turn::Wait);
        scheduler.finished(0, Duration::from_secs(1));
        assert_eq!(scheduler.turn(2, Duration::from_secs(1)), Turn::Run(2));
    }
}
