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
///
/// What a worker is to be blamed for is the time that it spends inside its operation ([`enter`](Self::enter), [`leave`](Self::leave)): not that in which
/// it is read for, or waits for whoever takes its answers.
#[derive(Debug)]
pub(crate) struct Scheduler {
    /// Work of each tile, in any batch.
    work: Vec<f64>,
    /// Which device each worker is a share of, if of one that others share.
    devices: Vec<Option<usize>>,
    /// Tiles that can run in one stack have one class.
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
    /// What a worker may have in work at once: tiles, or stacks of them.
    pub(crate) at_once: usize,
    /// Tiles in a stack.
    pub(crate) batch: Count,
    /// How often a tile may fail before the run does.
    pub(crate) retries: usize,
    /// How long a worker may take for a tile; none: many times as long as is to be expected.
    pub(crate) timeout: Option<Duration>,
    /// How long a worker that has not finished a tile yet may work without a sign of life before others that have nothing to do run the tile, too.
    pub(crate) silence: Duration,
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
    /// What was taken from it while it was inside its operation, from which it has not come back.
    ghosts: Vec<Running>,
    last_finish: Duration,
    faults_in_a_row: usize,
    is_retired: bool,
    /// Tiles with so much work run on it with nothing beside them: with something, they did not fit its memory.
    crowded: f64,
    /// Tiles with so much work do not fit its memory.
    too_large: f64,
    batch: Batch,
}

#[derive(Debug, Clone)]
struct Running {
    tiles: Vec<usize>,
    start: Duration,
    /// Whether the worker had anything else meanwhile.
    had_company: bool,
    clock: Clock,
}

/// The time that a worker spends inside its operation for some tiles. Stages that run at once count once.
#[derive(Debug, Clone, Default)]
struct Clock {
    /// Stages that run.
    active: usize,
    /// Since when any does.
    since: Duration,
    /// The time before that.
    spent: Duration,
    /// The time up to the last stage that came back.
    heard: Duration,
}

impl Clock {
    fn enter(&mut self, now: Duration) {
        if self.active == 0 {
            self.since = now;
        }
        self.active += 1;
    }

    fn leave(&mut self, now: Duration) {
        self.heard = self.time(now);
        self.active = self.active.saturating_sub(1);
        if self.active == 0 {
            self.spent = self.heard;
        }
    }

    fn time(&self, now: Duration) -> Duration {
        self.spent + if self.active > 0 { now.saturating_sub(self.since) } else { Duration::ZERO }
    }

    fn silence(&self, now: Duration) -> Duration {
        self.time(now).saturating_sub(self.heard)
    }
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
pub(crate) enum Assignment {
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FailureOutcome {
    /// The tiles that the worker has not any more.
    pub(crate) tiles: Vec<usize>,
    /// The worker gets no more tiles, or none so large, from now on.
    pub(crate) is_retired: bool,
}

impl Scheduler {
    /// A run over tiles with this `work`; those of one `class` can run in one stack. For each worker the device that it is a share of, if of one.
    pub(crate) fn new(work: Vec<f64>, class: Vec<usize>, devices: Vec<Option<usize>>, rules: Rules) -> Self {
        let batch = match rules.batch {
            Count::Auto => Batch { size: 1, trial: Some(Trial::default()) },
            Count::Exactly(size) => Batch { size: size.get(), trial: None },
        };
        let idle = WorkerState {
            speed: None,
            running: Vec::new(),
            ghosts: Vec::new(),
            last_finish: Duration::ZERO,
            faults_in_a_row: 0,
            is_retired: false,
            crowded: f64::INFINITY,
            too_large: f64::INFINITY,
            batch,
        };
        let rules = Rules { window: rules.window.max(1), ..rules };
        let (tiles, workers) = (vec![TileState::default(); work.len()], vec![idle; devices.len()]);
        Self { work, devices, class, tiles, workers, finished: 0, unfinished: 0, placed: 0, newest: 0, is_troubled: false, rules }
    }

    /// What the worker is to do at `now`, besides what it does.
    pub(crate) fn turn(&mut self, worker: usize, now: Duration) -> Assignment {
        if self.workers[worker].is_retired || self.is_over() {
            return Assignment::Leave;
        }
        if self.is_hopeless() {
            return Assignment::Wait;
        }
        let Some(tiles) = self.choice(worker, now).or_else(|| self.silent(worker, now).map(|tile| vec![tile])) else { return Assignment::Wait };
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

    /// The tiles that wait and that the worker had best run next.
    fn choice(&self, worker: usize, now: Duration) -> Option<Vec<usize>> {
        let state = &self.workers[worker];
        // Beside others a worker shows its speed before it is given more than it works on: what lies in the queue of a slow one holds up the end.
        let at_once = if state.speed.is_none() && self.live_workers() > 1 { 1 } else { self.rules.at_once };
        if state.running.len() >= at_once || !state.ghosts.is_empty() || self.stands_by(worker) {
            return None;
        }
        let is_crowded = |tile: usize| self.work[tile] >= state.crowded;
        if state.running.iter().any(|running| is_crowded(running.tiles[0])) {
            return None;
        }
        let waiting = self.waiting();
        // Towards the end tiles wait for whoever is free first, and not in the queue of one.
        if state.running.len() >= waiting.len().div_ceil(self.live_workers()).max(1) {
            return None;
        }
        let largest = waiting.iter().copied().find(|&tile| self.may_run(worker, tile))?;
        let tile = if waiting.len() > MANY * self.workers.len() { largest } else { self.planned(worker, &waiting, now)? };
        (state.running.is_empty() || !is_crowded(tile)).then(|| self.stack(worker, tile, &waiting))
    }

    /// A tile that a worker without anything to do runs besides those who have it, because none of them has finished a tile yet nor given a sign of life
    /// for long. Whoever finishes it first has run it. Workers of one device do not step in for each other: they would only make it slower.
    fn silent(&self, worker: usize, now: Duration) -> Option<usize> {
        let state = &self.workers[worker];
        if self.rules.timeout.is_some() || !state.running.is_empty() || !state.ghosts.is_empty() {
            return None;
        }
        let is_elsewhere = |other: usize| self.devices[other].is_none() || self.devices[other] != self.devices[worker];
        let is_silent = |tile: usize| {
            let holders = || (0..self.workers.len()).flat_map(|other| self.workers[other].running.iter().map(move |running| (other, running)));
            holders().filter(|(_, running)| running.tiles.contains(&tile)).all(|(other, running)| {
                other != worker && is_elsewhere(other) && self.workers[other].speed.is_none() && running.clock.silence(now) > self.rules.silence
            })
        };
        let running = self.workers.iter().flat_map(|state| &state.running).flat_map(|running| &running.tiles).copied();
        running
            .filter(|&tile| self.tiles[tile].progress == TileProgress::Running && self.is_able(worker, tile))
            .find(|&tile| !self.tiles[tile].tried.contains(&worker) && is_silent(tile))
    }

    /// The worker begins a stage of these tiles. False when they were taken from it: it is to leave them alone.
    pub(crate) fn enter(&mut self, worker: usize, tiles: &[usize], now: Duration) -> bool {
        let running = self.workers[worker].running.iter_mut().find(|running| running.tiles == tiles);
        running.map(|running| running.clock.enter(now)).is_some()
    }

    /// The worker has come back from a stage of these tiles, whatever came of it.
    pub(crate) fn leave(&mut self, worker: usize, tiles: &[usize], now: Duration) {
        let state = &mut self.workers[worker];
        if let Some(running) = state.running.iter_mut().chain(&mut state.ghosts).find(|running| running.tiles == tiles) {
            running.clock.leave(now);
        }
        state.ghosts.retain(|ghost| ghost.clock.active > 0);
    }

    /// Whether the worker has these tiles.
    pub(crate) fn has(&self, worker: usize, tiles: &[usize]) -> bool {
        self.workers[worker].running.iter().any(|running| running.tiles == tiles)
    }

    /// The worker has finished these tiles. Gives those that nobody had finished before; none when they were taken from it.
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
        state.batch.learn(tiles.len(), measured);
        // Nobody waits any more for others that run them.
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
        let failure_outcome = |is_retired| Some(FailureOutcome { tiles: tiles.to_vec(), is_retired });
        let state = &mut self.workers[worker];
        if blame == Blame::Memory && tiles.len() > 1 {
            state.batch = Batch { size: tiles.len() / 2, trial: None };
            return failure_outcome(false);
        }
        if blame == Blame::Memory && had_company {
            // It is tried again alone.
            state.crowded = state.crowded.min(self.work[tiles[0]]);
            return failure_outcome(false);
        }
        if blame == Blame::Device {
            let was_retired = state.is_retired;
            // What else it has comes to nothing, too.
            let others = self.give_up(worker);
            return Some(FailureOutcome { tiles: [tiles.to_vec(), others].concat(), is_retired: !was_retired });
        }
        for &tile in tiles {
            self.tiles[tile].tried.push(worker);
        }
        if blame == Blame::Memory {
            state.too_large = state.too_large.min(self.work[tiles[0]]);
            return failure_outcome(!state.is_retired);
        }
        state.faults_in_a_row += 1;
        let is_retired = state.faults_in_a_row >= FAULTS_BEFORE_RETIREMENT && !state.is_retired && !self.is_needed(worker);
        self.workers[worker].is_retired |= is_retired;
        failure_outcome(is_retired)
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

    /// Workers that do not come back, each with a tile: it has been inside its operation for longer than the timeout allows, or without one, many times as
    /// long as is to be expected by the speeds measured so far.
    pub(crate) fn stalled(&self, now: Duration) -> Vec<(usize, usize)> {
        let slowest = self.workers.iter().filter_map(|worker| worker.speed).fold(f64::INFINITY, f64::min);
        let limit = |state: &WorkerState, running: &Running| {
            let work: f64 = running.tiles.iter().map(|&tile| self.work[tile]).sum();
            match (self.rules.timeout, state.speed) {
                (Some(timeout), _) => timeout.as_secs_f64() * running.tiles.len() as f64,
                (None, Some(speed)) => 60.0 + 20.0 * work / speed,
                // Infinite while nothing has been measured.
                (None, None) => 600.0 + 100.0 * work / if slowest.is_finite() { slowest } else { 0.0 },
            }
        };
        let is_stalled =
            |state: &WorkerState, running: &Running| running.clock.active > 0 && running.clock.time(now).as_secs_f64() > limit(state, running);
        let stalled = |(worker, state): (usize, &WorkerState)| {
            let ghosts = state.ghosts.iter().filter(|_| !state.is_retired);
            state.running.iter().chain(ghosts).find(|running| is_stalled(state, running)).map(|running| (worker, running.tiles[0]))
        };
        self.workers.iter().enumerate().filter_map(stalled).collect()
    }

    /// The worker has not these tiles any more: unless others run them, they wait again. Every tile that is not finished comes back this way. False when they
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

    /// Takes everything from a worker, for good. Gives the tiles that it had.
    pub(crate) fn give_up(&mut self, worker: usize) -> Vec<usize> {
        self.is_troubled = true;
        self.workers[worker].is_retired = true;
        let batches: Vec<Vec<usize>> = self.workers[worker].running.iter().map(|running| running.tiles.clone()).collect();
        for tiles in &batches {
            self.give_back(worker, tiles);
        }
        batches.concat()
    }

    /// Whether the run can come to no good end: a tile waits that nobody can run, or that has failed too often and everywhere. It is to be asked again and again:
    /// whatever happens to tiles and workers, no run waits for what will not come.
    pub(crate) fn is_hopeless(&self) -> bool {
        let is_lost = |(tile, state): (usize, &TileState)| {
            let has_failed = || state.tried.len() > self.rules.retries && !self.is_untried_by_some(tile);
            state.progress == TileProgress::Waiting && (self.able(tile).next().is_none() || has_failed())
        };
        self.is_troubled && self.tiles.iter().enumerate().any(is_lost)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.finished == self.tiles.len()
    }

    /// Whether so few tiles wait that workers look at each other, or none is left.
    pub(crate) fn is_ending(&self) -> bool {
        self.tiles.len() - self.finished <= self.rules.at_once.saturating_add(MANY).saturating_mul(self.workers.len())
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

    fn take(&mut self, worker: usize, tiles: &[usize]) -> Option<Running> {
        let state = &mut self.workers[worker];
        let at = state.running.iter().position(|running| running.tiles == tiles)?;
        let taken = state.running.remove(at);
        if taken.clock.active > 0 {
            state.ghosts.push(taken.clone());
        }
        Some(taken)
    }

    /// Tiles that may be begun: those that are overdue first, then those with the most work.
    fn waiting(&self) -> Vec<usize> {
        let end = (self.placed + self.rules.window).min(self.tiles.len());
        // All pieces of a tile may have come, and yet it is run again: it was taken from who was about to say so.
        let first = self.placed.min(self.unfinished);
        let mut waiting: Vec<usize> = (first..end).filter(|&tile| self.tiles[tile].progress == TileProgress::Waiting).collect();
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
        let tried = &self.tiles[tile].tried;
        let is_better = |other: usize| !tried.contains(&other) && self.workers[other].ghosts.is_empty();
        self.is_able(worker, tile) && (!tried.contains(&worker) || !self.able(tile).any(is_better))
    }

    /// Whether something is left that nobody else can run.
    fn is_needed(&self, worker: usize) -> bool {
        let is_left = |tile: &usize| self.tiles[*tile].progress != TileProgress::Finished;
        (0..self.tiles.len()).filter(is_left).any(|tile| !self.able(tile).any(|other| other != worker))
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
            let able =
                (0..self.workers.len()).filter(|&other| self.may_run(other, tile) && !self.stands_by(other) && self.workers[other].ghosts.is_empty());
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

    const RULES: Rules =
        Rules { window: 64, at_once: 1, batch: Count::Exactly(NonZeroUsize::MIN), retries: 2, timeout: None, silence: Duration::from_mins(5) };

    fn scheduler(work: &[f64], workers: usize, rules: Rules) -> Scheduler {
        Scheduler::new(work.to_vec(), vec![0; work.len()], vec![None; workers], rules)
    }

    /// A turn in which one tile is run.
    fn run(tile: usize) -> Assignment {
        Assignment::Run(Task { tiles: vec![tile], is_upcast: false })
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
                while let Assignment::Run(task) = scheduler.turn(worker, Duration::from_secs_f64(now)) {
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

    fn failure_outcome(tiles: &[usize], is_retired: bool) -> FailureOutcome {
        FailureOutcome { tiles: tiles.to_vec(), is_retired }
    }

    /// A way in which tiles come back.
    type Return = fn(&mut Scheduler) -> bool;

    #[test]
    fn a_failed_tile_goes_to_another_worker() {
        let mut scheduler = scheduler(&[1.0, 1.0], 2, RULES);
        assert_eq!([scheduler.turn(0, seconds(0)), scheduler.turn(1, seconds(0))], [run(0), run(1)]);
        assert_eq!(scheduler.failed(0, &[0], Blame::Tile), Some(failure_outcome(&[0], false)));
        assert_eq!(scheduler.turn(0, seconds(1)), Assignment::Wait);
        assert_eq!(scheduler.finished(1, &[1], seconds(2)), [1]);
        assert_eq!(scheduler.turn(1, seconds(2)), run(0));
        // The last one standing gets it again.
        assert_eq!(scheduler.failed(1, &[0], Blame::Device), Some(failure_outcome(&[0], true)));
        assert!(!scheduler.is_hopeless());
        assert_eq!((scheduler.turn(1, seconds(3)), scheduler.turn(0, seconds(3))), (Assignment::Leave, run(0)));
        assert_eq!(scheduler.finished(0, &[0], seconds(4)), [0]);
        assert_eq!((scheduler.turn(0, seconds(4)), scheduler.live_workers()), (Assignment::Leave, 1));
    }

    #[test]
    fn a_tile_is_given_up_once_it_failed_everywhere_and_more_often_than_is_allowed() {
        let mut scheduler = scheduler(&[1.0], 2, Rules { retries: 2, ..RULES });
        for (worker, is_hopeless) in [(0, false), (1, false), (0, true)] {
            assert_eq!(scheduler.turn(worker, seconds(0)), run(0));
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
                    if let Assignment::Run(task) = scheduler.turn(worker, seconds(0)) {
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
        assert_eq!(scheduler.turn(0, seconds(0)), run(0));
        assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(failure_outcome(&[0], true)));
        assert_eq!(scheduler.turn(0, seconds(0)), run(2));
        assert_eq!(scheduler.finished(0, &[2], seconds(1)), [2]);
        assert_eq!([scheduler.turn(0, seconds(1)), scheduler.turn(1, seconds(1))], [Assignment::Wait, run(0)]);
        assert!(!scheduler.is_hopeless());
        scheduler.failed(1, &[0], Blame::Memory).unwrap();
        assert!(scheduler.is_hopeless());
    }

    #[test]
    fn what_does_not_fit_beside_others_runs_alone() {
        let mut scheduler = scheduler(&[2.0, 2.0, 1.0, 1.0, 1.0], 1, Rules { at_once: 2, ..RULES });
        let turn = |scheduler: &mut Scheduler| scheduler.turn(0, seconds(0));
        assert_eq!([turn(&mut scheduler), turn(&mut scheduler), turn(&mut scheduler)], [run(0), run(1), Assignment::Wait]);
        // Both fail while the other was there.
        assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(failure_outcome(&[0], false)));
        assert_eq!(scheduler.failed(0, &[1], Blame::Memory), Some(failure_outcome(&[1], false)));
        assert!(!scheduler.is_hopeless());
        assert_eq!([turn(&mut scheduler), turn(&mut scheduler)], [run(0), Assignment::Wait]);
        assert_eq!(scheduler.finished(0, &[0], seconds(1)), [0]);
        assert_eq!([turn(&mut scheduler), turn(&mut scheduler)], [run(1), Assignment::Wait]);
        assert_eq!(scheduler.finished(0, &[1], seconds(1)), [1]);
        // Smaller ones still run beside each other.
        assert_eq!([turn(&mut scheduler), turn(&mut scheduler)], [run(2), run(3)]);
        // Alone, what does not fit is too large.
        let mut scheduler = Scheduler::new(vec![2.0; 3], vec![0; 3], vec![None], Rules { at_once: 2, ..RULES });
        assert_eq!([turn(&mut scheduler), turn(&mut scheduler)], [run(0), run(1)]);
        assert_eq!(scheduler.finished(0, &[1], seconds(1)), [1]);
        assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(failure_outcome(&[0], false)));
        assert_eq!(turn(&mut scheduler), run(0));
        assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(failure_outcome(&[0], true)));
        assert!(scheduler.is_hopeless());
    }

    #[test]
    fn tiles_that_nobody_is_left_for_end_the_run() {
        // One worker has no memory for large tiles, and the other is lost on a small one.
        let work = [2.0, 1.0, 2.0];
        let begin = |at_once| {
            let mut scheduler = scheduler(&work, 2, Rules { at_once, ..RULES });
            assert_eq!(scheduler.turn(0, seconds(0)), run(0));
            assert_eq!(scheduler.failed(0, &[0], Blame::Memory), Some(failure_outcome(&[0], true)));
            assert_eq!(scheduler.turn(1, seconds(0)), run(0));
            assert_eq!(scheduler.finished(1, &[0], seconds(1)), [0]);
            scheduler
        };
        let mut lost = begin(1);
        lost.tiles[2].progress = TileProgress::Finished;
        lost.finished += 1;
        assert_eq!(lost.turn(1, seconds(1)), run(1));
        lost.failed(1, &[1], Blame::Device).unwrap();
        assert!(!lost.is_hopeless(), "the other can run what is left");
        // However a large tile comes back from the other, nobody can run it.
        let returns: [Return; 5] = [
            |scheduler| scheduler.failed(1, &[2], Blame::Device).is_some(),
            |scheduler| scheduler.failed(1, &[2], Blame::Memory).is_some(),
            |scheduler| scheduler.give_up(1) == [2],
            |scheduler| std::mem::replace(&mut scheduler.workers[1].is_retired, true) || scheduler.give_back(1, &[2]),
            |scheduler| std::mem::replace(&mut scheduler.workers[1].is_retired, true) || scheduler.upcast(1, &[2]),
        ];
        for come_back in returns {
            let mut gone = begin(1);
            assert_eq!(gone.turn(1, seconds(1)), run(2));
            assert!(!gone.is_hopeless() && come_back(&mut gone) && gone.is_hopeless());
        }
        // The device is lost on one tile while it has another.
        let mut lost = begin(2);
        assert_eq!(lost.turn(1, seconds(1)), run(2));
        lost.workers[1].running.push(Running { tiles: vec![1], start: seconds(1), had_company: true, clock: Clock::default() });
        lost.tiles[1].progress = TileProgress::Running;
        assert_eq!(lost.failed(1, &[1], Blame::Device), Some(failure_outcome(&[1, 2], true)));
        assert!(lost.is_hopeless());
        // So does half a stack.
        let mut stacks =
            Scheduler::new(vec![1.0; 4], vec![0; 4], vec![None; 2], Rules { batch: Count::Exactly(NonZeroUsize::new(2).unwrap()), ..RULES });
        let Assignment::Run(task) = stacks.turn(0, seconds(0)) else { panic!("nothing to run") };
        assert_eq!(task.tiles, [0, 1]);
        stacks.give_up(1);
        stacks.workers[0].is_retired = true;
        stacks.failed(0, &[0, 1], Blame::Memory).unwrap();
        assert!(stacks.is_hopeless());
    }

    #[test]
    fn stacks_hold_tiles_of_one_shape() {
        let size = |size| Count::Exactly(NonZeroUsize::new(size).unwrap());
        let mut scheduler = Scheduler::new(vec![1.0; 6], vec![0, 0, 1, 0, 0, 0], vec![None], Rules { batch: size(3), ..RULES });
        let task = |tiles: &[usize]| Assignment::Run(Task { tiles: tiles.to_vec(), is_upcast: false });
        assert_eq!(scheduler.turn(0, seconds(0)), task(&[0, 1, 3]));
        // What does not fit the memory runs in smaller stacks, and what failed alone.
        assert_eq!(scheduler.failed(0, &[0, 1, 3], Blame::Memory), Some(failure_outcome(&[0, 1, 3], false)));
        assert_eq!(scheduler.turn(0, seconds(0)), run(0));
        assert!(scheduler.upcast(0, &[0]));
        assert_eq!(scheduler.turn(0, seconds(0)), Assignment::Run(Task { tiles: vec![0], is_upcast: true }));
    }

    #[test]
    fn stacks_grow_while_that_pays() {
        for (gain, largest) in [(1.0, 1), (1.5, 4)] {
            let mut scheduler = scheduler(&[1.0; 64], 1, Rules { batch: Count::Auto, ..RULES });
            let (mut now, mut sizes) = (0.0, Vec::new());
            while let Assignment::Run(task) = scheduler.turn(0, Duration::from_secs_f64(now)) {
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
        let limited = Rules { timeout: Some(seconds(9)), ..RULES };
        let mut impatient = scheduler(&[1.0; 4], 2, limited);
        let mut scheduler = scheduler(&[1.0; 4], 2, RULES);
        for scheduler in [&mut impatient, &mut scheduler] {
            assert_eq!([scheduler.turn(0, seconds(0)), scheduler.turn(1, seconds(0))], [run(0), run(1)]);
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
        assert!(scheduler.finished(0, &[0], seconds(802)).is_empty(), "it comes too late");
        assert_eq!((scheduler.turn(0, seconds(802)), scheduler.turn(1, seconds(802))), (Assignment::Leave, run(0)));
        assert!(scheduler.enter(1, &[0], seconds(802)));
        assert_eq!(scheduler.stalled(seconds(802 + 101)), [(1, 0)]);
    }

    #[test]
    fn only_time_inside_the_operation_is_the_workers() {
        let mut scheduler = scheduler(&[1.0], 1, Rules { timeout: Some(seconds(9)), ..RULES });
        assert_eq!(scheduler.turn(0, seconds(0)), run(0));
        // It was read for, and its answers were waited with.
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
        assert_eq!(scheduler.turn(0, seconds(0)), run(0));
        assert!(scheduler.enter(0, &[0], seconds(0)));
        scheduler.workers[0].is_retired = true;
        assert_eq!(scheduler.stalled(seconds(10)), [(0, 0)]);
        scheduler.give_up(0);
        assert_eq!((scheduler.stalled(seconds(20)), scheduler.turn(1, seconds(20))), (vec![], run(0)));
    }

    #[test]
    fn a_first_tile_without_a_sign_of_life_is_run_by_others_too() {
        let minute = |minutes: u64| seconds(60 * minutes);
        let begin = |devices: &[Option<usize>], rules| {
            let mut scheduler = Scheduler::new(vec![1.0], vec![0], devices.to_vec(), rules);
            assert_eq!(scheduler.turn(0, seconds(0)), run(0));
            assert!(scheduler.enter(0, &[0], seconds(0)));
            scheduler
        };
        let mut scheduler = begin(&[None, None, None], RULES);
        assert_eq!([scheduler.turn(1, minute(5)), scheduler.turn(0, minute(6))], [Assignment::Wait, Assignment::Wait]);
        // A piece that comes is a sign of life.
        scheduler.leave(0, &[0], minute(5));
        assert!(scheduler.enter(0, &[0], minute(7)));
        assert_eq!(scheduler.turn(1, minute(11)), Assignment::Wait);
        assert_eq!((scheduler.turn(1, minute(13)), scheduler.turn(2, minute(13))), (run(0), Assignment::Wait));
        assert!(scheduler.enter(1, &[0], minute(13)));
        assert_eq!((scheduler.turn(2, minute(17)), scheduler.turn(2, minute(19))), (Assignment::Wait, run(0)));
        // One of them fails: the others have it still.
        scheduler.failed(2, &[0], Blame::Tile).unwrap();
        assert!(!scheduler.is_hopeless() && scheduler.turn(2, minute(20)) == Assignment::Wait);
        scheduler.leave(1, &[0], minute(20));
        assert_eq!(scheduler.finished(1, &[0], minute(20)), [0]);
        // Nobody waits for the first any more, and what it gives is no second answer.
        assert!(scheduler.is_over() && !scheduler.has(0, &[0]) && !scheduler.enter(0, &[0], minute(20)));
        assert!(scheduler.finished(0, &[0], minute(21)).is_empty());
        // Another share of the device is no help, and whoever sets a limit means it.
        assert_eq!(begin(&[Some(3), Some(3)], RULES).turn(1, minute(60)), Assignment::Wait);
        assert_eq!(begin(&[None, None], Rules { timeout: Some(minute(99)), ..RULES }).turn(1, minute(60)), Assignment::Wait);
    }

    #[test]
    fn who_has_not_come_back_gets_nothing_and_nobody_waits_for_him() {
        let mut scheduler = scheduler(&[1.0; 3], 2, RULES);
        assert_eq!([scheduler.turn(0, seconds(0)), scheduler.turn(1, seconds(0))], [run(0), run(1)]);
        assert!(scheduler.enter(0, &[0], seconds(0)));
        scheduler.failed(0, &[0], Blame::Tile).unwrap();
        assert_eq!(scheduler.finished(1, &[1], seconds(1)), [1]);
        assert_eq!((scheduler.turn(0, seconds(1)), scheduler.turn(1, seconds(1))), (Assignment::Wait, run(0)));
        scheduler.failed(1, &[0], Blame::Tile).unwrap();
        assert_eq!((scheduler.turn(0, seconds(1)), scheduler.turn(1, seconds(1))), (Assignment::Wait, run(0)));
        scheduler.leave(0, &[0], seconds(2));
        assert_eq!(scheduler.turn(0, seconds(2)), run(2));
    }

    #[test]
    fn what_was_blended_but_not_finished_is_run_again() {
        let mut scheduler = scheduler(&[1.0; 2], 2, RULES);
        assert_eq!([scheduler.turn(0, seconds(0)), scheduler.turn(1, seconds(0))], [run(0), run(1)]);
        // Its last piece has come when the worker is given up.
        scheduler.placed(1);
        assert_eq!(scheduler.give_up(0), [0]);
        assert_eq!(scheduler.finished(1, &[1], seconds(1)), [1]);
        scheduler.placed(2);
        assert_eq!(scheduler.turn(1, seconds(1)), run(0));
        assert_eq!(scheduler.finished(1, &[0], seconds(1)), [0]);
        assert!(scheduler.is_over());
    }

    #[test]
    fn the_window_bounds_what_is_begun() {
        let mut scheduler = scheduler(&[1.0; 6], 3, Rules { window: 2, ..RULES });
        assert_eq!([0, 1, 2].map(|worker| scheduler.turn(worker, seconds(0))), [run(0), run(1), Assignment::Wait]);
        assert_eq!([scheduler.finished(1, &[1], seconds(1)), scheduler.finished(0, &[0], seconds(1))].concat(), [1, 0]);
        // Finished is not enough: it has to be blended.
        assert_eq!(scheduler.turn(2, seconds(1)), Assignment::Wait);
        scheduler.placed(1);
        assert_eq!(scheduler.turn(2, seconds(1)), run(2));
        assert_eq!(scheduler.turn(1, seconds(1)), Assignment::Wait);
    }
}
