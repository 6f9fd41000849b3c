use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tiling::Stop;

/// How often a run that waits looks at its stop.
const POLL: Duration = Duration::from_millis(20);

/// How long a worker that does not come back from an earlier run's tile is waited for.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(5) };

/// A fair lock: of all runs that share a worker, one at a time computes a tile on it. Runs queue in order of arrival and release the lock after each
/// tile, so that they alternate. Clones are one lock.
#[derive(Debug, Clone, Default)]
pub struct WorkerLock(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    /// The run whose tile is computed.
    holder: Option<RunId>,
    /// Since when that run does not wait for the tile any more.
    abandoned: Option<Instant>,
    /// Tickets of those that wait, the next one first.
    waiting: VecDeque<u64>,
    next_ticket: u64,
}

/// Identifies a run among those that share workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunId(u64);

impl RunId {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// Why a run did not get a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unavailable {
    /// The run was stopped meanwhile.
    Stopped,
    /// The worker does not come back from a tile that its run has given up.
    Hung,
}

/// The worker is this run's until the guard is dropped.
#[derive(Debug)]
pub(crate) struct WorkerGuard(Arc<Queue>);

impl WorkerLock {
    /// Waits until the worker is free and all that came before have had it.
    pub(crate) fn acquire(&self, run: RunId, stop: &Stop) -> Result<WorkerGuard, Unavailable> {
        let mut state = self.0.state();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back(ticket);
        let outcome = loop {
            if stop.is_stopped() {
                break Err(Unavailable::Stopped);
            }
            if state.holder.is_none() && state.waiting.front() == Some(&ticket) {
                state.holder = Some(run);
                break Ok(WorkerGuard(self.0.clone()));
            }
            if state.abandoned.is_some_and(|since| since.elapsed() > PATIENCE) {
                break Err(Unavailable::Hung);
            }
            state = self.0.changed.wait_timeout(state, POLL).unwrap_or_else(PoisonError::into_inner).0;
        };
        state.waiting.retain(|other| *other != ticket);
        // The next in the queue may go now.
        self.0.notify(&state);
        outcome
    }

    /// The run does not wait any longer for what it computes here, if it does: others wait for a while only.
    pub(crate) fn abandon(&self, run: RunId) {
        let mut state = self.0.state();
        if state.holder == Some(run) {
            state.abandoned.get_or_insert_with(Instant::now);
        }
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those that wait. It is a call of the system, so that it is left out where none does.
    fn notify(&self, state: &QueueState) {
        if !state.waiting.is_empty() {
            self.changed.notify_all();
        }
    }
}

impl Drop for WorkerGuard {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.holder = None;
        state.abandoned = None;
        self.0.notify(&state);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Waits until so many wait for the lock.
    fn until_waiting(lock: &WorkerLock, count: usize) {
        while lock.0.state().waiting.len() != count {
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn those_who_wait_get_it_in_order_of_arrival() {
        let (lock, stop) = (WorkerLock::default(), Stop::default());
        let first = lock.acquire(RunId::new(), &stop).unwrap();
        let (sender, receiver) = mpsc::channel();
        thread::scope(|scope| {
            for n in 0..5 {
                let (sender, lock, stop) = (sender.clone(), &lock, &stop);
                scope.spawn(move || {
                    let _guard = lock.acquire(RunId::new(), stop).unwrap();
                    sender.send(n).unwrap();
                });
                until_waiting(lock, n + 1);
            }
            drop(first);
        });
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn a_stop_ends_the_wait_of_one_run_alone() {
        let (lock, stops) = (WorkerLock::default(), [Stop::default(), Stop::default()]);
        let first = lock.acquire(RunId::new(), &Stop::default()).unwrap();
        thread::scope(|scope| {
            let mut waits = Vec::new();
            for (n, stop) in stops.iter().enumerate() {
                let lock = &lock;
                waits.push(scope.spawn(move || lock.acquire(RunId::new(), stop).map(drop)));
                until_waiting(lock, n + 1);
            }
            stops[0].stop();
            until_waiting(&lock, 1);
            drop(first);
            assert_eq!(waits.into_iter().map(|wait| wait.join().unwrap()).collect::<Vec<_>>(), [Err(Unavailable::Stopped), Ok(())]);
        });
    }

    #[test]
    fn a_worker_that_hangs_is_not_waited_for_for_ever() {
        let (lock, stop, run) = (WorkerLock::default(), Stop::default(), RunId::new());
        let hung = lock.acquire(run, &stop).unwrap();
        lock.abandon(RunId::new());
        assert!(lock.0.state().abandoned.is_none(), "another run's tile is none of its business");
        lock.abandon(run);
        assert_eq!(lock.acquire(RunId::new(), &stop).unwrap_err(), Unavailable::Hung);
        // It comes back after all.
        drop(hung);
        drop(lock.acquire(RunId::new(), &stop).unwrap());
    }
}
