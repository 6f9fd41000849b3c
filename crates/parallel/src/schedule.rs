use std::time::Duration;

use crate::Count;

/// How much a new measurement of a worker's speed counts against the earlier ones.
const FRESHNESS: f64 = 0.5;
/// Waiting tiles a worker from which on nobody looks ahead.
const MANY: usize = 4;
/// Faults in a row after which a worker gets no more tiles.
const FAULTS_BEFORE_RETIREMENT: usize = 3;
/// The largest stack that is tried where stacks are as large as pays.
const LARGEST_TRIED_BATCH: usize = 4;
/// How much faster tiles have to run in a larger stack for it to pay.
const GAIN_THAT_PAYS: f64 = 1.05;

/// Decides which worker runs which tiles. Knows no threads and no clock: it is told the time.
///
/// A free worker takes the tile with the most work. Once the tiles that wait are few, the rest of the run is played through with the speeds measured
/// so far, and a slow worker leaves a tile to a fast one that would finish it earlier. A tile that failed goes to a worker that has not tried it, as
/// long as there is one. No tile is begun that lies `window` tiles or more after the first one that is not blended, which bounds the answers that
/// wait for their turn.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Work of each tile, in any unit.
    work: Vec<f64>,
    /// Tiles that can run in one stack have one class.
    class: Vec<usize>,
    tiles: Vec<TileState>,
    workers: Vec<WorkerState>,
    finished: usize,
    /// The first tile that is not blended.
    placed: usize,
    /// The last tile that was begun.
    newest: usize,
    rules: Rules,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Tiles from the first that is not blended that may be begun.
    pub(crate) window: usize,
    /// What a worker may have in work at once: tiles, or stacks of them.
    pub(crate) at_once: usize,
    /// Tiles in a stack.
    pub(crate) batch: Count,
    /// How often a tile may fail before the run does.
    pub(crate) retries: usize,
}

impl Rules {
    /// The largest stack.
    pub(crate) fn largest_batch(batch: Count) -> usize {
        match batch {
            Count::Auto => LARGEST_TRIED_BATCH,
            Count::Exactly(size) => size.get(),
        }
    }
}

#[derive(Debug, Clone, Default)]
struct TileState {
    progress: TileProgress,
    /// Workers that failed on it.
    tried: Vec<usize>,
    /// Whether it is to be run in a wider dtype.
    is_upcast: bool,
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
    running: Vec<Running>,
    last_finish: Duration,
    faults_in_a_row: usize,
    is_retired: bool,
    /// Tiles with so much work do not fit its memory.
    too_large: f64,
    batch: Batch,
}

#[derive(Debug, Clone)]
struct Running {
    tiles: Vec<usize>,
    start: Duration,
}

/// The size of a worker's stacks, and whether larger ones are being tried.
#[derive(Debug, Clone)]
struct Batch {
    size: usize,
    trial: Option<Trial>,
}

/// The first stack of a size is not counted: it pays for what is prepared once.
#[derive(Debug, Clone, Default)]
struct Trial {
    runs: usize,
    smaller: Option<f64>,
}

/// What a free worker is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Run these tiles.
    Run(Task),
    /// Ask again when something has happened, or a little later.
    Wait,
    /// Nothing is left for it.
    Leave,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Task {
    /// Tiles of one shape, one or more.
    pub(crate) tiles: Vec<usize>,
    /// Whether they are to be run in a wider dtype.
    pub(crate) is_upcast: bool,
}

/// What a failure is put down to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The tile, or nobody knows.
    Tile,
    /// The device, which does not work any more.
    Device,
    /// The device's memory, which is too small.
    Memory,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// The worker gets no more tiles, or none so large, from now on.
    pub(crate) is_retired: bool,
    /// Nobody can run the tiles.
    pub(crate) is_hopeless: bool,
}

impl Scheduler {
    /// A run over tiles with this `work`; those of one `class` can run in one stack.
    pub(crate) fn new(work: Vec<f64>, class: Vec<usize>, workers: usize, rules: Rules) -> Self {
        let batch = match rules.batch {
            Count::Auto => Batch { size: 1, trial: Some(Trial::default()) },
            Count::Exactly(size) => Batch { size: size.get(), trial: None },
        };
        let idle = WorkerState {
            speed: None,
            running: Vec::new(),
            last_finish: Duration::ZERO,
            faults_in_a_row: 0,
            is_retired: false,
            too_large: f64::INFINITY,
            batch,
        };
        let rules = Rules { window: rules.window.max(1), ..rules };
        Self { tiles: vec![TileState::default(); work.len()], work, class, workers: vec![idle; workers], finished: 0, placed: 0, newest: 0, rules }
    }

    /// What the worker is to do at `now`, besides what it does.
    pub(crate) fn turn(&mut self, worker: usize, now: Duration) -> Turn {
        if self.workers[worker].is_retired || self.is_over() {
            return Turn::Leave;
        }
        let state = &self.workers[worker];
        // Beside others a worker shows its speed before it is given more than it works on: what lies in the queue of a slow one holds up the end.
        let at_once = if state.speed.is_none() && self.live_workers() > 1 { 1 } else { self.rules.at_once };
        if state.running.len() >= at_once || self.stands_by(worker) {
            return Turn::Wait;
        }
        let waiting = self.waiting();
        // Towards the end tiles wait for whoever is free first, and not in the queue of one.
        if self.workers[worker].running.len() >= waiting.len().div_ceil(self.live_workers()).max(1) {
            return Turn::Wait;
        }
        let Some(largest) = waiting.iter().copied().find(|&tile| self.may_run(worker, tile)) else { return Turn::Wait };
        let choice = if waiting.len() > MANY * self.workers.len() { Some(largest) } else { self.planned(worker, &waiting, now) };
        let Some(tile) = choice else { return Turn::Wait };
        let tiles = self.stack(worker, tile, &waiting);
        for &tile in &tiles {
            self.tiles[tile].progress = TileProgress::Running;
            self.newest = self.newest.max(tile);
        }
        self.workers[worker].running.push(Running { tiles: tiles.clone(), start: now });
        Turn::Run(Task { tiles, is_upcast: self.tiles[tile].is_upcast })
    }

    /// The worker has finished these tiles. False when they were taken from it before.
    pub(crate) fn finished(&mut self, worker: usize, tiles: &[usize], now: Duration) -> bool {
        let Some(running) = self.take_running(worker, tiles) else { return false };
        for &tile in tiles {
            self.tiles[tile].progress = TileProgress::Finished;
        }
        self.finished += tiles.len();
        let work: f64 = tiles.iter().map(|&tile| self.work[tile]).sum();
        let state = &mut self.workers[worker];
        let seconds = now.saturating_sub(running.start.max(state.last_finish)).as_secs_f64().max(1e-9);
        let measured = work / seconds;
        state.speed = Some(state.speed.map_or(measured, |earlier| earlier + FRESHNESS * (measured - earlier)));
        state.last_finish = now;
        state.faults_in_a_row = 0;
        state.batch.learn(tiles.len(), measured);
        true
    }

    /// The worker has failed on these tiles, which wait again. None when they were taken from it before.
    pub(crate) fn failed(&mut self, worker: usize, tiles: &[usize], blame: Blame) -> Option<Verdict> {
        self.take_running(worker, tiles)?;
        self.let_wait(tiles);
        if blame == Blame::Memory && tiles.len() > 1 {
            self.workers[worker].batch = Batch { size: tiles.len() / 2, trial: None };
            return Some(Verdict { is_retired: false, is_hopeless: false });
        }
        let state = &mut self.workers[worker];
        let was_retired = state.is_retired;
        match blame {
            Blame::Device => state.is_retired = true,
            Blame::Memory => state.too_large = state.too_large.min(self.work[tiles[0]]),
            Blame::Tile => state.faults_in_a_row += 1,
        }
        if blame != Blame::Device {
            for &tile in tiles {
                self.tiles[tile].tried.push(worker);
            }
        }
        // Before the worker is retired: what failed too often has then no better prospects.
        let was_hopeless = tiles.iter().any(|&tile| self.is_hopeless(tile));
        let state = &mut self.workers[worker];
        state.is_retired |= state.faults_in_a_row >= FAULTS_BEFORE_RETIREMENT;
        let is_retired = !was_retired && (state.is_retired || blame == Blame::Memory);
        Some(Verdict { is_retired, is_hopeless: was_hopeless || self.is_stuck() })
    }

    /// These tiles are to be run in a wider dtype. False when they were taken from the worker before.
    pub(crate) fn upcast(&mut self, worker: usize, tiles: &[usize]) -> bool {
        if self.take_running(worker, tiles).is_none() {
            return false;
        }
        self.let_wait(tiles);
        for &tile in tiles {
            self.tiles[tile].is_upcast = true;
        }
        true
    }

    /// All tiles before `first` are blended.
    pub(crate) fn placed(&mut self, first: usize) {
        self.placed = first;
    }

    /// Workers that do not come back: what they run has taken longer than `timeout` a tile, or without one, many times as long as is to be expected
    /// by the speeds measured so far.
    pub(crate) fn stalled(&self, now: Duration, timeout: Option<Duration>) -> Vec<usize> {
        let slowest = self.workers.iter().filter_map(|worker| worker.speed).fold(f64::INFINITY, f64::min);
        let is_stalled = |&worker: &usize| {
            let state = &self.workers[worker];
            let Some(oldest) = state.running.first().filter(|_| !state.is_retired) else { return false };
            let work: f64 = oldest.tiles.iter().map(|&tile| self.work[tile]).sum();
            let limit = match (timeout, state.speed) {
                (Some(timeout), _) => timeout.as_secs_f64() * oldest.tiles.len() as f64,
                (None, Some(speed)) => 60.0 + 20.0 * work / speed,
                // Infinite while nothing has been measured.
                (None, None) => 600.0 + 100.0 * work / if slowest.is_finite() { slowest } else { 0.0 },
            };
            now.saturating_sub(oldest.start.max(state.last_finish)).as_secs_f64() > limit
        };
        (0..self.workers.len()).filter(is_stalled).collect()
    }

    /// The worker gives back tiles that it has not begun.
    pub(crate) fn give_back(&mut self, worker: usize, tiles: &[usize]) {
        if self.take_running(worker, tiles).is_some() {
            self.let_wait(tiles);
        }
    }

    /// Takes everything from a worker. Gives the tiles that it had in work, and whether nobody can run what is left.
    pub(crate) fn give_up(&mut self, worker: usize) -> (Vec<usize>, bool) {
        let state = &mut self.workers[worker];
        state.is_retired = true;
        let tiles: Vec<usize> = state.running.drain(..).flat_map(|running| running.tiles).collect();
        self.let_wait(&tiles);
        (tiles, self.is_stuck())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.finished == self.tiles.len()
    }

    /// Whether so few tiles wait that workers look at each other, or none is left.
    pub(crate) fn is_ending(&self) -> bool {
        self.tiles.len() - self.finished <= (MANY + self.rules.at_once) * self.workers.len()
    }

    pub(crate) fn is_retired(&self, worker: usize) -> bool {
        self.workers[worker].is_retired
    }

    pub(crate) fn live_workers(&self) -> usize {
        self.workers.iter().filter(|worker| !worker.is_retired).count()
    }

    /// Where workers outnumber tiles, the first ones run them, and the others step in when something has failed.
    fn stands_by(&self, worker: usize) -> bool {
        let all_is_well = || self.tiles.iter().all(|tile| tile.tried.is_empty()) && !self.workers.iter().any(|worker| worker.is_retired);
        worker >= self.tiles.len() && all_is_well()
    }

    fn take_running(&mut self, worker: usize, tiles: &[usize]) -> Option<Running> {
        let running = &mut self.workers[worker].running;
        let at = running.iter().position(|running| running.tiles == tiles)?;
        Some(running.remove(at))
    }

    fn let_wait(&mut self, tiles: &[usize]) {
        for &tile in tiles {
            self.tiles[tile].progress = TileProgress::Waiting;
        }
    }

    /// Tiles that may be begun: those that are overdue first, then those with the most work.
    fn waiting(&self) -> Vec<usize> {
        let end = (self.placed + self.rules.window).min(self.tiles.len());
        let mut waiting: Vec<usize> = (self.placed..end).filter(|&tile| self.tiles[tile].progress == TileProgress::Waiting).collect();
        // A small tile must not wait until nothing else may be begun.
        let is_overdue = |tile: usize| end < self.tiles.len() && tile + self.rules.window / 2 < self.newest;
        waiting.sort_by(|&a, &b| is_overdue(b).cmp(&is_overdue(a)).then(self.work[b].total_cmp(&self.work[a])).then(a.cmp(&b)));
        waiting
    }

    /// Whether the tile fits the memory of a worker that gets tiles.
    fn is_able(&self, worker: usize, tile: usize) -> bool {
        !self.workers[worker].is_retired && self.work[tile] < self.workers[worker].too_large
    }

    fn able(&self, tile: usize) -> impl Iterator<Item = usize> {
        (0..self.workers.len()).filter(move |&worker| self.is_able(worker, tile))
    }

    fn is_untried_by_some(&self, tile: usize) -> bool {
        self.able(tile).any(|worker| !self.tiles[tile].tried.contains(&worker))
    }

    fn may_run(&self, worker: usize, tile: usize) -> bool {
        self.is_able(worker, tile) && (!self.tiles[tile].tried.contains(&worker) || !self.is_untried_by_some(tile))
    }

    /// Whether a tile waits that nobody can run.
    fn is_stuck(&self) -> bool {
        (0..self.tiles.len()).any(|tile| self.tiles[tile].progress == TileProgress::Waiting && self.able(tile).next().is_none())
    }

    fn is_hopeless(&self, tile: usize) -> bool {
        self.tiles[tile].tried.len() > self.rules.retries && !self.is_untried_by_some(tile)
    }

    /// `tile`, and others that run in one stack with it.
    fn stack(&self, worker: usize, tile: usize, waiting: &[usize]) -> Vec<usize> {
        let is_fresh = |tile: usize| self.tiles[tile].tried.is_empty() && !self.tiles[tile].is_upcast;
        let mut tiles = vec![tile];
        // A tile that failed runs alone, and towards the end stacks leave something for everybody.
        let size = if is_fresh(tile) { self.workers[worker].batch.size.min(waiting.len().div_ceil(self.live_workers())) } else { 1 };
        let alike = |&other: &usize| other != tile && self.class[other] == self.class[tile] && is_fresh(other) && self.may_run(worker, other);
        tiles.extend(waiting.iter().copied().filter(alike).take(size - 1));
        tiles
    }

    /// The tile that `worker` runs now when every waiting tile goes to whoever finishes it first; none when all go to others.
    fn planned(&self, worker: usize, waiting: &[usize], now: Duration) -> Option<usize> {
        let known: Vec<f64> = self.workers.iter().filter_map(|worker| worker.speed).collect();
        // A worker that was not measured yet is taken to be as fast as the fastest: it is to be tried. While none was, all are alike.
        let is_known = !known.is_empty();
        let fastest = if is_known { known.into_iter().fold(0.0, f64::max) } else { 1.0 };
        let speed = |other: usize| self.workers[other].speed.unwrap_or(fastest);
        let mut free_at: Vec<f64> = (0..self.workers.len())
            .map(|other| {
                let state = &self.workers[other];
                let Some(oldest) = state.running.first() else { return 0.0 };
                let work: f64 = state.running.iter().flat_map(|running| &running.tiles).map(|&tile| self.work[tile]).sum();
                let passed = if is_known { now.saturating_sub(oldest.start.max(state.last_finish)).as_secs_f64() } else { 0.0 };
                (work / speed(other) - passed).max(0.0)
            })
            .collect();
        let mut has_more = false;
        for &tile in waiting {
            let finish = |other: usize| free_at[other] + self.work[tile] / speed(other);
            let able = (0..self.workers.len()).filter(|&other| self.may_run(other, tile) && !self.stands_by(other));
            // Among equals, whoever asks.
            let best = able.min_by(|&a, &b| finish(a).total_cmp(&finish(b)).then((a != worker).cmp(&(b != worker))))?;
            if best == worker && !has_more {
                return Some(tile);
            }
            has_more |= best == worker;
            free_at[best] = finish(best);
        }
        None
    }
}

impl Batch {
    /// A stack of `size` tiles did `rate` work a second.
    fn learn(&mut self, size: usize, rate: f64) {
        let Some(trial) = self.trial.as_mut().filter(|_| size == self.size) else { return };
        trial.runs += 1;
        if trial.runs < 2 {
            return;
        }
        if trial.smaller.is_some_and(|smaller| rate < smaller * GAIN_THAT_PAYS) {
            *self = Self { size: size / 2, trial: None };
        } else if size < LARGEST_TRIED_BATCH {
            *self = Self { size: 2 * size, trial: Some(Trial { runs: 0, smaller: Some(rate) }) };
        } else {
            self.trial = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    const RULES: Rules = Rules { window: 64, at_once: 1, batch: Count::Exactly(NonZeroUsize::MIN), retries: 2 };

    fn scheduler(work: &[f64], workers: usize, rules: Rules) -> Scheduler {
        Scheduler::new(work.to_vec(), vec![0; work.len()], workers, rules)
    }

    /// A turn in which one tile is run.
    fn run(tile: usize) -> Turn {
        Turn::Run(Task { tiles: vec![tile], is_upcast: false })
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Plays a run through with workers of given speeds and gives its length, and the best that could be. Tiles are blended as soon as their turn comes.
    fn play(work: &[f64], speeds: &[f64], rules: Rules) -> (f64, f64) {
        let mut scheduler = scheduler(work, speeds.len(), rules);
        // What each worker has in work, and when it is finished: one after the other.
        let mut queues: Vec<Vec<(Vec<usize>, f64)>> = vec![Vec::new(); speeds.len()];
        let (mut now, mut begun, mut is_finished) = (0.0_f64, std::collections::HashSet::new(), vec![false; work.len()]);
        while !scheduler.is_over() {
            for worker in 0..speeds.len() {
                while let Turn::Run(task) = scheduler.turn(worker, Duration::from_secs_f64(now)) {
                    assert!(task.tiles.iter().all(|&tile| begun.insert(tile) && tile < scheduler.placed + rules.window), "{task:?}");
                    let length: f64 = task.tiles.iter().map(|&tile| work[tile]).sum::<f64>() / speeds[worker];
                    let start = queues[worker].last().map_or(now, |last| last.1);
                    queues[worker].push((task.tiles, start + length));
                    assert!(queues[worker].len() <= rules.at_once);
                }
            }
            now = queues.iter().filter_map(|queue| queue.first()).map(|first| first.1).fold(f64::INFINITY, f64::min);
            assert!(now.is_finite(), "everybody waits");
            for (worker, queue) in queues.iter_mut().enumerate() {
                if queue.first().is_some_and(|first| first.1 <= now) {
                    let (tiles, _) = queue.remove(0);
                    assert!(scheduler.finished(worker, &tiles, Duration::from_secs_f64(now)));
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

    #[test]
    fn a_failed_tile_goes_to_another_worker() {
        let mut scheduler = scheduler(&[1.0, 1.0], 2, RULES);
        assert_eq!([scheduler.turn(0, seconds(0)), scheduler.turn(1, seconds(0))], [run(0), run(1)]);
        assert_eq!(scheduler.failed(0, &[0], Blame::Tile), Some(Verdict { is_retired: false, is_hopeless: false }));
        assert_eq!(scheduler.turn(0, seconds(1)), Turn::Wait);
        assert!(scheduler.finished(1, &[1], seconds(2)));
        assert_eq!(scheduler.turn(1, seconds(2)), run(0));
        // The last one standing gets it again.
        assert_eq!(scheduler.failed(1, &[0], Blame::Device), Some(Verdict { is_retired: true, is_hopeless: false }));
        assert_eq!((scheduler.turn(1, seconds(3)), scheduler.turn(0, seconds(3))), (Turn::Leave, run(0)));
        assert!(scheduler.finished(0, &[0], seconds(4)));
        assert_eq!((scheduler.turn(0, seconds(4)), scheduler.live_workers()), (Turn::Leave, 1));
    }

    #[test]
    fn a_tile_is_given_up_once_it_failed_everywhere_and_more_often_than_is_allowed() {
        let mut scheduler = scheduler(&[1.0], 2, Rules { retries: 2, ..RULES });
        for (worker, is_hopeless) in [(0, false), (1, false), (0, true)] {
            assert_eq!(scheduler.turn(worker, seconds(0)), run(0));
            assert_eq!(scheduler.failed(worker, &[0], Blame::Tile).unwrap().is_hopeless, is_hopeless);
        }
    }

    #[test]
    fn a_device_without_memory_gets_smaller_tiles_only() {
        let mut scheduler = scheduler(&[2.0, 2.0, 1.0], 2, RULES);
        assert_eq!(scheduler.turn(0, seconds(0)), run(0));
        assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(Verdict { is_retired: true, is_hopeless: false }));
        assert_eq!(scheduler.turn(0, seconds(0)), run(2));
        assert!(scheduler.finished(0, &[2], seconds(1)));
        assert_eq!([scheduler.turn(0, seconds(1)), scheduler.turn(1, seconds(1))], [Turn::Wait, run(0)]);
        assert!(scheduler.failed(1, &[0], Blame::Memory).unwrap().is_hopeless);
    }

    #[test]
    fn tiles_that_nobody_is_left_for_end_the_run() {
        // One worker has no memory for large tiles, and the other is lost on a small one.
        let work = [2.0, 1.0, 2.0];
        let begin = || {
            let mut scheduler = scheduler(&work, 2, RULES);
            assert_eq!(scheduler.turn(0, seconds(0)), run(0));
            assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(Verdict { is_retired: true, is_hopeless: false }));
            assert_eq!(scheduler.turn(1, seconds(0)), run(0));
            assert!(scheduler.finished(1, &[0], seconds(1)));
            scheduler
        };
        let mut lost = begin();
        lost.tiles[2].progress = TileProgress::Finished;
        lost.finished += 1;
        assert_eq!(lost.turn(1, seconds(1)), run(1));
        assert!(!lost.failed(1, &[1], Blame::Device).unwrap().is_hopeless, "the other can run what is left");
        let mut lost = begin();
        assert_eq!(lost.turn(1, seconds(1)), run(2));
        assert!(lost.failed(1, &[2], Blame::Device).unwrap().is_hopeless);
        let mut gone = begin();
        gone.tiles[2].tried.push(1);
        gone.workers[1].running.push(Running { tiles: vec![1], start: seconds(1) });
        gone.tiles[1].progress = TileProgress::Running;
        assert!(gone.failed(1, &[1], Blame::Device).unwrap().is_hopeless, "tile 2 waits for nobody");
        let mut stalled = begin();
        assert_eq!(stalled.turn(1, seconds(1)), run(2));
        assert_eq!(stalled.give_up(1), ([2].to_vec(), true));
    }

    #[test]
    fn stacks_hold_tiles_of_one_shape() {
        let size = |size| Count::Exactly(NonZeroUsize::new(size).unwrap());
        let mut scheduler = Scheduler::new(vec![1.0; 6], vec![0, 0, 1, 0, 0, 0], 1, Rules { batch: size(3), ..RULES });
        let task = |tiles: &[usize]| Turn::Run(Task { tiles: tiles.to_vec(), is_upcast: false });
        assert_eq!(scheduler.turn(0, seconds(0)), task(&[0, 1, 3]));
        // What does not fit the memory runs in smaller stacks, and what failed alone.
        assert_eq!(scheduler.failed(0, &[0, 1, 3], Blame::Memory), Some(Verdict { is_retired: false, is_hopeless: false }));
        assert_eq!(scheduler.turn(0, seconds(0)), run(0));
        assert!(scheduler.upcast(0, &[0]));
        assert_eq!(scheduler.turn(0, seconds(0)), Turn::Run(Task { tiles: vec![0], is_upcast: true }));
    }

    #[test]
    fn stacks_grow_while_that_pays() {
        for (gain, largest) in [(1.0, 1), (1.5, 4)] {
            let mut scheduler = scheduler(&[1.0; 64], 1, Rules { batch: Count::Auto, ..RULES });
            let (mut now, mut sizes) = (0.0, Vec::new());
            while let Turn::Run(task) = scheduler.turn(0, Duration::from_secs_f64(now)) {
                let size = task.tiles.len();
                now += size as f64 / f64::powf(gain, (size as f64).log2());
                sizes.push(size);
                scheduler.finished(0, &task.tiles, Duration::from_secs_f64(now));
            }
            assert_eq!((sizes[0], sizes[8]), (1, largest), "{sizes:?}");
        }
    }

    #[test]
    fn what_takes_far_too_long_is_taken_away() {
        let mut scheduler = scheduler(&[1.0; 4], 2, RULES);
        assert_eq!([scheduler.turn(0, seconds(0)), scheduler.turn(1, seconds(0))], [run(0), run(1)]);
        assert!(scheduler.stalled(seconds(10_000), None).is_empty(), "nothing is known yet");
        assert_eq!(scheduler.stalled(seconds(10), Some(seconds(9))), [0, 1]);
        assert!(scheduler.finished(1, &[1], seconds(2)));
        assert!(scheduler.stalled(seconds(700), None).is_empty());
        assert_eq!(scheduler.stalled(seconds(801), None), [0]);
        assert_eq!(scheduler.give_up(0), (vec![0], false));
        assert!(!scheduler.finished(0, &[0], seconds(802)), "it comes too late");
        assert_eq!((scheduler.turn(0, seconds(802)), scheduler.turn(1, seconds(802))), (Turn::Leave, run(0)));
        assert_eq!(scheduler.stalled(seconds(802 + 101), None), [1]);
    }

    #[test]
    fn the_window_bounds_what_is_begun() {
        let mut scheduler = scheduler(&[1.0; 6], 3, Rules { window: 2, ..RULES });
        assert_eq!([0, 1, 2].map(|worker| scheduler.turn(worker, seconds(0))), [run(0), run(1), Turn::Wait]);
        assert!(scheduler.finished(1, &[1], seconds(1)) && scheduler.finished(0, &[0], seconds(1)));
        // Finished is not enough: it has to be blended.
        assert_eq!(scheduler.turn(2, seconds(1)), Turn::Wait);
        scheduler.placed(1);
        assert_eq!(scheduler.turn(2, seconds(1)), run(2));
        assert_eq!(scheduler.turn(1, seconds(1)), Turn::Wait);
    }
}
