//! Workers that hang, and workers that take over their tiles.

use std::time::Duration;

use super::{Running, Scheduler, TileProgress, TileState, WorkerState};

impl Scheduler {
    /// A tile that an idle worker runs, too, because none of the workers that have it has finished a tile yet or given a sign of life for long. The first
    /// answer counts. Workers of one device do not step in for each other: they would only slow it down.
    pub(super) fn silent_tile(&self, worker: usize, now: Duration) -> Option<usize> {
        let state = &self.workers[worker];
        if !state.running.is_empty() || !state.abandoned.is_empty() {
            return None;
        }
        let is_elsewhere = |other: usize| self.devices[other].is_none() || self.devices[other] != self.devices[worker];
        let running = self.workers.iter().flat_map(|state| &state.running).flat_map(|running| &running.tiles).copied();
        running
            .filter(|&tile| self.tiles[tile].progress == TileProgress::Running && self.is_able(worker, tile))
            .filter(|&tile| self.holders(tile).all(|(other, _)| other != worker && is_elsewhere(other)) && self.is_silent(tile, now))
            .find(|&tile| {
                let TileState { tried, stepped_in, .. } = &self.tiles[tile];
                let failures = |workers: &[usize]| workers.iter().filter(|&&other| other == worker).count();
                // One that has failed besides the silent one tries again, once no other can.
                let may_retry = || failures(tried) == failures(stepped_in) && !self.is_untried_beside(tile);
                stepped_in.len() <= self.rules.retries && (!tried.contains(&worker) || may_retry())
            })
    }

    /// The workers that have a tile.
    pub(super) fn holders(&self, tile: usize) -> impl Iterator<Item = (usize, &Running)> {
        let all = self.workers.iter().enumerate().flat_map(|(worker, state)| state.running.iter().map(move |running| (worker, running)));
        all.filter(move |(_, running)| running.tiles.contains(&tile))
    }

    /// Whether no worker that has the tile has finished a tile yet or given a sign of life for long. With a timeout, that decides.
    fn is_silent(&self, tile: usize, now: Duration) -> bool {
        let is_silent =
            |(worker, running): (usize, &Running)| self.workers[worker].speed.is_none() && running.clock.silence(now) > self.rules.silence;
        self.rules.timeout.is_none() && self.holders(tile).all(is_silent)
    }

    /// Whether a worker that does not have the tile could try it for the first time.
    fn is_untried_beside(&self, tile: usize) -> bool {
        self.able(tile).any(|worker| !self.tiles[tile].tried.contains(&worker) && self.holders(tile).all(|(holder, _)| holder != worker))
    }

    /// Whether a tile's workers are silent, and those that stepped in have failed on it too often.
    fn is_lost_in_silence(&self, tile: usize, now: Duration) -> bool {
        self.tiles[tile].stepped_in.len() > self.rules.retries && self.is_silent(tile, now)
    }

    /// Workers that hang, each with a tile. They have been inside their operation for longer than the timeout, or without one, for many times
    /// the time that the measured speeds suggest; or they are silent and the workers that stepped in for them have failed.
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
        let is_over_time =
            |state: &WorkerState, running: &Running| running.clock.is_active() && running.clock.time(now).as_secs_f64() > limit(state, running);
        let stalled = |(worker, state): (usize, &WorkerState)| {
            let abandoned = state.abandoned.iter().filter(|_| !state.is_retired);
            let over_time = state.running.iter().chain(abandoned).find(|running| is_over_time(state, running));
            let lost = || state.running.iter().find(|running| running.tiles.iter().any(|&tile| self.is_lost_in_silence(tile, now)));
            over_time.or_else(lost).map(|running| (worker, running.tiles[0]))
        };
        self.workers.iter().enumerate().filter_map(stalled).collect()
    }
}
