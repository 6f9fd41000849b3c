//! Decides which worker runs which tiles.

mod choice;
mod clock;
mod stall;

use std::collections::BTreeSet;
use std::time::Duration;

use clock::Clock;

/// The weight of a new measurement of a worker's speed against the earlier ones.
const FRESHNESS: f64 = 0.5;
/// Waiting tiles for each worker above which the rest of the run is not simulated.
const MANY: usize = 4;
/// Failures in a row after which a worker is retired.
const FAULTS_BEFORE_RETIREMENT: usize = 3;

/// Decides which worker runs which tiles. It has no threads and no clock: callers pass the time.
///
/// A free worker takes the tile with the most work, of those whose input is near before others. Once few tiles wait, the rest of the run is simulated with the speeds measured so far, and a slow
/// worker leaves a tile to a fast one that would finish it earlier. A tile that failed goes to a worker that has not tried it, as long as there is one.
/// No tile is begun that lies `window` tiles or more after the first one that is not blended, which bounds the outputs that wait to be blended.
///
/// Limits of time apply to the time that a worker spends inside its operation ([`enter`](Self::enter), [`leave`](Self::leave)): not to that in which its
/// input is read, or in which it waits for another run or for its outputs to be taken.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Work of each tile, in any batch.
    work: Vec<f64>,
    /// The device that each worker is a share of, if others share it.
    devices: Vec<Option<usize>>,
    /// Tiles of one class can run as one stack.
    class: Vec<usize>,
    tiles: Vec<TileState>,
    workers: Vec<WorkerState>,
    finished: usize,
    /// The first tile that is not finished.
    unfinished: usize,
    /// The first tile that is not blended.
    placed: usize,
    /// The last tile that was begun.
    newest: usize,
    /// Whether anything has gone wrong yet.
    is_troubled: bool,
    rules: Rules,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Tiles from the first that is not blended that may be begun.
    pub(crate) window: usize,
    /// Tiles, or stacks of them, that a worker may have at once.
    pub(crate) at_once: usize,
    /// The most tiles in a stack.
    pub(crate) batch: usize,
    /// How often a tile may fail before the run does.
    pub(crate) retries: usize,
    /// How long a worker may take for a tile; none: many times the expected time.
    pub(crate) timeout: Option<Duration>,
    /// How long a worker that has not finished a tile yet may give no sign of life before idle workers run the tile, too.
    pub(crate) silence: Duration,
}

#[derive(Debug, Clone, Default)]
struct TileState {
    progress: TileProgress,
    /// Workers that failed on it, once for each failure.
    tried: Vec<usize>,
    /// Those among them that ran it besides a silent worker.
    stepped_in: Vec<usize>,
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
    /// What was known of its speed before, in some unit.
    expected_speed: f64,
    /// Tiles whose input lies on its device.
    near: BTreeSet<usize>,
    running: Vec<Running>,
    /// Batches that were reassigned while the worker was still inside its operation on them.
    abandoned: Vec<Running>,
    last_finish: Duration,
    faults_in_a_row: usize,
    is_retired: bool,
    /// Tiles with so much work run alone on it: together with others they did not fit its memory.
    crowded: f64,
    /// Tiles with so much work do not fit its memory.
    too_large: f64,
    /// The most tiles in a stack.
    batch: usize,
}

#[derive(Debug, Clone)]
struct Running {
    tiles: Vec<usize>,
    start: Duration,
    /// Whether the worker had other tiles at that time.
    had_company: bool,
    clock: Clock,
}

/// What a worker is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Assignment {
    /// Run these tiles.
    Run(Task),
    /// Ask again after a change, or a little later.
    Wait,
    /// Nothing is left for it.
    Leave,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Task {
    /// One or more tiles of one shape.
    pub(crate) tiles: Vec<usize>,
    /// Whether they are to be run in a wider dtype.
    pub(crate) is_upcast: bool,
}

/// What a failure is blamed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blame {
    /// The tile, or unknown.
    Tile,
    /// The device: it does not work any more.
    Device,
    /// The device's memory: it is too small.
    Memory,
}

/// The consequences of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FailureOutcome {
    /// The tiles that were taken from the worker.
    pub(crate) tiles: Vec<usize>,
    /// Whether the worker is retired, or limited to smaller tiles.
    pub(crate) is_retired: bool,
}

impl Scheduler {
    /// A run over tiles with this `work`; those of one `class` can run as one stack. `devices` holds for each worker the device that it is a share of.
    pub(crate) fn new(work: Vec<f64>, class: Vec<usize>, devices: Vec<Option<usize>>, rules: Rules) -> Self {
        let idle = WorkerState {
            speed: None,
            expected_speed: 1.0,
            near: BTreeSet::new(),
            running: Vec::new(),
            abandoned: Vec::new(),
            last_finish: Duration::ZERO,
            faults_in_a_row: 0,
            is_retired: false,
            crowded: f64::INFINITY,
            too_large: f64::INFINITY,
            batch: rules.batch,
        };
        let rules = Rules { window: rules.window.max(1), ..rules };
        let (tiles, workers) = (vec![TileState::default(); work.len()], vec![idle; devices.len()]);
        Self { work, devices, class, tiles, workers, finished: 0, unfinished: 0, placed: 0, newest: 0, is_troubled: false, rules }
    }

    /// The same with what is known of the speed of each worker, in some unit.
    pub(crate) fn with_expected_speeds(mut self, speeds: impl IntoIterator<Item = f64>) -> Self {
        for (worker, speed) in self.workers.iter_mut().zip(speeds) {
            worker.expected_speed = speed;
        }
        self
    }

    /// The same with the tiles whose input lies on the device of each worker.
    pub(crate) fn with_near_tiles<'t>(mut self, tiles: impl IntoIterator<Item = &'t [usize]>) -> Self {
        for (worker, tiles) in self.workers.iter_mut().zip(tiles) {
            worker.near = tiles.iter().copied().collect();
        }
        self
    }

    /// What the worker is to do at `now`, besides the tiles that it has.
    pub(crate) fn assign(&mut self, worker: usize, now: Duration) -> Assignment {
        if self.workers[worker].is_retired || self.is_over() {
            return Assignment::Leave;
        }
        if self.is_hopeless() {
            return Assignment::Wait;
        }
        let Some(tiles) = self.choice(worker, now).or_else(|| self.silent_tile(worker, now).map(|tile| vec![tile])) else { return Assignment::Wait };
        for &tile in &tiles {
            self.tiles[tile].progress = TileProgress::Running;
            self.newest = self.newest.max(tile);
        }
        let is_upcast = self.tiles[tiles[0]].is_upcast;
        let running = &mut self.workers[worker].running;
        let had_company = !running.is_empty();
        for other in running.iter_mut() {
            other.had_company = true;
        }
        running.push(Running { tiles: tiles.clone(), start: now, had_company, clock: Clock::default() });
        Assignment::Run(Task { tiles, is_upcast })
    }

    /// The worker begins a stage of these tiles. False when they were taken from it: it must not run the stage.
    pub(crate) fn enter(&mut self, worker: usize, tiles: &[usize], now: Duration) -> bool {
        let running = self.workers[worker].running.iter_mut().find(|running| running.tiles == tiles);
        running.map(|running| running.clock.enter(now)).is_some()
    }

    /// The worker has left a stage of these tiles, with or without success.
    pub(crate) fn leave(&mut self, worker: usize, tiles: &[usize], now: Duration) {
        let state = &mut self.workers[worker];
        if let Some(running) = state.running.iter_mut().chain(&mut state.abandoned).find(|running| running.tiles == tiles) {
            running.clock.leave(now);
        }
        state.abandoned.retain(|abandoned| abandoned.clock.is_active());
    }

    /// Whether the worker has these tiles.
    pub(crate) fn has(&self, worker: usize, tiles: &[usize]) -> bool {
        self.workers[worker].running.iter().any(|running| running.tiles == tiles)
    }

    /// The worker has finished these tiles. Returns those that no other worker had finished before; none when they were taken from it.
    pub(crate) fn finished(&mut self, worker: usize, tiles: &[usize], now: Duration) -> Vec<usize> {
        let Some(running) = self.take(worker, tiles) else { return Vec::new() };
        let fresh: Vec<usize> = tiles.iter().copied().filter(|&tile| self.tiles[tile].progress != TileProgress::Finished).collect();
        for &tile in &fresh {
            self.tiles[tile].progress = TileProgress::Finished;
        }
        self.finished += fresh.len();
        while self.tiles.get(self.unfinished).is_some_and(|tile| tile.progress == TileProgress::Finished) {
            self.unfinished += 1;
        }
        let work: f64 = tiles.iter().map(|&tile| self.work[tile]).sum();
        let state = &mut self.workers[worker];
        let seconds = now.saturating_sub(running.start.max(state.last_finish)).as_secs_f64().max(1e-9);
        let measured = work / seconds;
        state.speed = Some(state.speed.map_or(measured, |earlier| earlier + FRESHNESS * (measured - earlier)));
        state.last_finish = now;
        state.faults_in_a_row = 0;
        // Other workers that run them are not waited for any longer.
        for other in 0..self.workers.len() {
            let is_moot = |running: &Running| running.tiles.iter().all(|&tile| self.tiles[tile].progress == TileProgress::Finished);
            let moot: Vec<Vec<usize>> =
                self.workers[other].running.iter().filter(|running| is_moot(running)).map(|running| running.tiles.clone()).collect();
            for tiles in moot {
                self.take(other, &tiles);
            }
        }
        fresh
    }

    /// The worker has failed on these tiles. None when they were taken from it before.
    pub(crate) fn failed(&mut self, worker: usize, tiles: &[usize], blame: Blame) -> Option<FailureOutcome> {
        let had_company = self.workers[worker].running.iter().any(|running| running.tiles == tiles && running.had_company);
        if !self.give_back(worker, tiles) {
            return None;
        }
        let outcome = |is_retired| Some(FailureOutcome { tiles: tiles.to_vec(), is_retired });
        let state = &mut self.workers[worker];
        if blame == Blame::Memory && tiles.len() > 1 {
            state.batch = tiles.len() / 2;
            return outcome(false);
        }
        if blame == Blame::Memory && had_company {
            // It is tried again alone.
            state.crowded = state.crowded.min(self.work[tiles[0]]);
            return outcome(false);
        }
        if blame == Blame::Device {
            let was_retired = state.is_retired;
            // Its other tiles are lost, too.
            let others = self.give_up(worker);
            return Some(FailureOutcome { tiles: [tiles.to_vec(), others].concat(), is_retired: !was_retired });
        }
        let mut may_step_in_again = false;
        for &tile in tiles {
            self.tiles[tile].tried.push(worker);
            if self.holders(tile).next().is_some() {
                self.tiles[tile].stepped_in.push(worker);
                may_step_in_again |= self.tiles[tile].stepped_in.len() <= self.rules.retries;
            }
        }
        let state = &mut self.workers[worker];
        if blame == Blame::Memory {
            state.too_large = state.too_large.min(self.work[tiles[0]]);
            return outcome(!state.is_retired);
        }
        state.faults_in_a_row += 1;
        let has_failed_often = state.faults_in_a_row >= FAULTS_BEFORE_RETIREMENT && !state.is_retired;
        let is_retired = has_failed_often && !may_step_in_again && !self.is_needed(worker);
        self.workers[worker].is_retired |= is_retired;
        outcome(is_retired)
    }

    /// These tiles are to be run in a wider dtype. False when they were taken from the worker before.
    pub(crate) fn upcast(&mut self, worker: usize, tiles: &[usize]) -> bool {
        if !self.give_back(worker, tiles) {
            return false;
        }
        for &tile in tiles {
            self.tiles[tile].is_upcast = true;
        }
        true
    }

    /// All tiles before `first` are blended.
    pub(crate) fn placed(&mut self, first: usize) {
        self.placed = first;
    }

    /// Takes these tiles from the worker: unless others run them, they wait again. Every tile that is not finished comes back this way. False when they
    /// were taken from it before.
    pub(crate) fn give_back(&mut self, worker: usize, tiles: &[usize]) -> bool {
        if self.take(worker, tiles).is_none() {
            return false;
        }
        self.is_troubled = true;
        for &tile in tiles {
            let is_elsewhere = self.workers.iter().any(|state| state.running.iter().any(|running| running.tiles.contains(&tile)));
            let state = &mut self.tiles[tile];
            if state.progress == TileProgress::Running && !is_elsewhere {
                state.progress = TileProgress::Waiting;
            }
        }
        true
    }

    /// Takes everything from a worker, for good. Returns the tiles that it had.
    pub(crate) fn give_up(&mut self, worker: usize) -> Vec<usize> {
        self.is_troubled = true;
        self.workers[worker].is_retired = true;
        let batches: Vec<Vec<usize>> = self.workers[worker].running.iter().map(|running| running.tiles.clone()).collect();
        for tiles in &batches {
            self.give_back(worker, tiles);
        }
        batches.concat()
    }

    /// Whether the run cannot succeed any more: a tile waits that no worker can run, or that has failed too often and on every worker. Callers ask after
    /// every failure, so that no run waits for what will not come.
    pub(crate) fn is_hopeless(&self) -> bool {
        let is_lost = |(tile, state): (usize, &TileState)| {
            let has_failed = || state.tried.len() > self.rules.retries && !self.is_untried_by_some(tile);
            state.progress == TileProgress::Waiting && (self.able(tile).next().is_none() || has_failed())
        };
        self.is_troubled && self.tiles.iter().enumerate().any(is_lost)
    }

    /// Whether any of these tiles, which a worker has failed on, is to be run again.
    pub(crate) fn is_run_again(&self, tiles: &[usize]) -> bool {
        tiles.iter().any(|&tile| self.tiles[tile].progress == TileProgress::Waiting) && !self.is_hopeless()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.finished == self.tiles.len()
    }

    /// Whether so few tiles wait that a worker's tile may depend on the others, or none is left.
    pub(crate) fn is_ending(&self) -> bool {
        self.tiles.len() - self.finished <= self.rules.at_once.saturating_add(MANY).saturating_mul(self.workers.len())
    }

    pub(crate) fn is_retired(&self, worker: usize) -> bool {
        self.workers[worker].is_retired
    }

    pub(crate) fn live_workers(&self) -> usize {
        self.workers.iter().filter(|worker| !worker.is_retired).count()
    }

    /// Where workers outnumber tiles, the first ones run them, and the others step in after a failure.
    fn stands_by(&self, worker: usize) -> bool {
        let all_is_well = || self.tiles.iter().all(|tile| tile.tried.is_empty()) && !self.workers.iter().any(|worker| worker.is_retired);
        worker >= self.tiles.len() && all_is_well()
    }

    fn take(&mut self, worker: usize, tiles: &[usize]) -> Option<Running> {
        let state = &mut self.workers[worker];
        let at = state.running.iter().position(|running| running.tiles == tiles)?;
        let taken = state.running.remove(at);
        if taken.clock.is_active() {
            state.abandoned.push(taken.clone());
        }
        Some(taken)
    }

    /// Whether the worker is not retired and the tile fits its memory.
    fn is_able(&self, worker: usize, tile: usize) -> bool {
        !self.workers[worker].is_retired && self.work[tile] < self.workers[worker].too_large
    }

    fn able(&self, tile: usize) -> impl Iterator<Item = usize> {
        (0..self.workers.len()).filter(move |&worker| self.is_able(worker, tile))
    }

    fn is_untried_by_some(&self, tile: usize) -> bool {
        self.able(tile).any(|worker| !self.tiles[tile].tried.contains(&worker))
    }

    /// Whether a tile is left that no other worker can run.
    fn is_needed(&self, worker: usize) -> bool {
        let is_left = |tile: &usize| self.tiles[*tile].progress != TileProgress::Finished;
        (0..self.tiles.len()).filter(is_left).any(|tile| !self.able(tile).any(|other| other != worker))
    }
}

#[cfg(test)]
mod tests;
