//! The tile that a free worker runs next.

use std::time::Duration;

use super::{MANY, Scheduler, TileProgress};

/// How much longer a tile is expected to take whose input lies on the device of another worker.
const FAR: f64 = 1.2;

impl Scheduler {
    /// The waiting tiles that the worker runs next.
    pub(super) fn choice(&self, worker: usize, now: Duration) -> Option<Vec<usize>> {
        let state = &self.workers[worker];
        // Among several workers, one of unknown speed gets a single tile: tiles in the queue of a slow one would delay the end.
        let at_once = if state.speed.is_none() && self.live_workers() > 1 { 1 } else { self.rules.at_once };
        if state.running.len() >= at_once || !state.abandoned.is_empty() || self.stands_by(worker) {
            return None;
        }
        let is_crowded = |tile: usize| self.work[tile] >= state.crowded;
        if state.running.iter().any(|running| is_crowded(running.tiles[0])) {
            return None;
        }
        let waiting = self.waiting(worker);
        // Towards the end tiles wait for the worker that is free first, not in the queue of one.
        if state.running.len() >= waiting.len().div_ceil(self.live_workers()).max(1) {
            return None;
        }
        let largest = waiting.iter().copied().find(|&tile| self.may_run(worker, tile))?;
        let tile = if waiting.len() > MANY * self.workers.len() { largest } else { self.planned(worker, &waiting, now)? };
        (state.running.is_empty() || !is_crowded(tile)).then(|| self.stack(worker, tile, &waiting))
    }

    /// Tiles that may be begun: those that are overdue first, then those whose input is nearest to the worker, then those with the most work.
    fn waiting(&self, worker: usize) -> Vec<usize> {
        let end = (self.placed + self.rules.window).min(self.tiles.len());
        // A tile may be blended and yet be run again: it was taken from its worker before that reported it as finished.
        let first = self.placed.min(self.unfinished);
        let mut waiting: Vec<usize> = (first..end).filter(|&tile| self.tiles[tile].progress == TileProgress::Waiting).collect();
        // A small tile must not wait until the window allows nothing else.
        let is_overdue = |tile: usize| end < self.tiles.len() && tile + self.rules.window / 2 < self.newest;
        let distance = |tile: usize| if self.workers[worker].near.contains(&tile) { 0 } else { 1 + usize::from(self.is_far(worker, tile)) };
        waiting.sort_by(|&a, &b| {
            let by_work = || self.work[b].total_cmp(&self.work[a]);
            is_overdue(b).cmp(&is_overdue(a)).then(distance(a).cmp(&distance(b))).then_with(by_work).then(a.cmp(&b))
        });
        waiting
    }

    /// Whether the input of a tile lies on the device of another worker.
    fn is_far(&self, worker: usize, tile: usize) -> bool {
        !self.workers[worker].near.contains(&tile) && self.workers.iter().any(|other| other.near.contains(&tile))
    }

    fn may_run(&self, worker: usize, tile: usize) -> bool {
        let tried = &self.tiles[tile].tried;
        let is_better = |other: usize| !tried.contains(&other) && self.workers[other].abandoned.is_empty();
        self.is_able(worker, tile) && (!tried.contains(&worker) || !self.able(tile).any(is_better))
    }

    /// `tile`, and others that run as one stack with it.
    fn stack(&self, worker: usize, tile: usize, waiting: &[usize]) -> Vec<usize> {
        let is_fresh = |tile: usize| self.tiles[tile].tried.is_empty() && !self.tiles[tile].is_upcast;
        let mut tiles = vec![tile];
        // A tile that failed runs alone, and towards the end stacks leave tiles for all workers.
        let size = if is_fresh(tile) { self.workers[worker].batch.min(waiting.len().div_ceil(self.live_workers())) } else { 1 };
        let alike = |&other: &usize| other != tile && self.class[other] == self.class[tile] && is_fresh(other) && self.may_run(worker, other);
        tiles.extend(waiting.iter().copied().filter(alike).take(size - 1));
        tiles
    }

    /// The tile that `worker` runs now if every waiting tile goes to the worker that finishes it first; none if all go to others.
    fn planned(&self, worker: usize, waiting: &[usize], now: Duration) -> Option<usize> {
        let known: Vec<f64> = self.workers.iter().filter_map(|worker| Some(worker.speed? / worker.expected_speed)).collect();
        // A worker that was not measured yet counts as fast as expected, by the measure of the one that exceeds its own the most, so that it is tried.
        let is_known = !known.is_empty();
        let unit = if is_known { known.into_iter().fold(0.0, f64::max) } else { 1.0 };
        let speed = |other: usize| self.workers[other].speed.unwrap_or(unit * self.workers[other].expected_speed);
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
            let finish = |other: usize| {
                let longer = if self.is_far(other, tile) { FAR } else { 1.0 };
                free_at[other] + self.work[tile] * longer / speed(other)
            };
            let able = (0..self.workers.len())
                .filter(|&other| self.may_run(other, tile) && !self.stands_by(other) && self.workers[other].abandoned.is_empty());
            // Among equals, the worker that asks.
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
