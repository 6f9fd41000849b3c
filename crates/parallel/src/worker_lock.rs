use std::cell::Cell;
use std::collections::VecDeque;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tiling::Stop;

/// How often a run that waits looks at its stop.
const POLL: Duration = Duration::from_millis(20);

/// How long to wait for a worker that hangs on a tile of an earlier run.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(5) };

/// A fair lock: of all runs that share a worker, one at a time computes a tile on it. Runs queue in order of arrival and release the lock after each
/// tile, so that they alternate. Clones are one lock.
///
/// The wait for a worker counts for no timeout, and ends when the run is stopped. A run that gives up a worker that hangs reports it here: other runs then
/// wait for five seconds more, and fail on that worker with [`ExecError::WorkerHung`](crate::ExecError::WorkerHung) until it returns.
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
    /// The run was stopped while it waited.
    Stopped,
    /// The worker hangs on a tile that its run has given up.
    Hung,
}

/// The worker is this run's until the guard is dropped, on the thread that acquired it.
#[derive(Debug)]
pub(crate) struct WorkerGuard {
    /// None where the thread did not wait.
    queue: Option<Arc<Queue>>,
    /// Not `Send`.
    thread: PhantomData<*const ()>,
}

thread_local! {
    /// The workers that this thread holds.
    static HELD: Cell<usize> = const { Cell::new(0) };
}

impl WorkerLock {
    /// Waits until the worker is free and all that came before have had it.
    ///
    /// A thread that holds a worker already does not wait: below it on its stack a run is at a tile and cannot go on before this call returns. That
    /// happens where a thread of a pool takes on another run while it waits for other threads, and where a sink starts a run.
    pub(crate) fn acquire(&self, run: RunId, stop: &Stop) -> Result<WorkerGuard, Unavailable> {
        if HELD.get() > 0 {
            return Ok(WorkerGuard::new(None));
        }
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
                break Ok(WorkerGuard::new(Some(self.0.clone())));
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

impl WorkerGuard {
    fn new(queue: Option<Arc<Queue>>) -> Self {
        HELD.set(HELD.get() + 1);
        Self { queue, thread: PhantomData }
    }
}

impl Drop for WorkerGuard {
    fn drop(&mut self) {
        HELD.set(HELD.get() - 1);
        let Some(queue) = &self.queue else { return };
        let mut state = queue.state();
        state.holder = None;
        state.abandoned = None;
        queue.notify(&state);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// Waits until `count` runs wait for the lock.
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
        let elsewhere = || thread::scope(|scope| scope.spawn(|| lock.acquire(RunId::new(), &stop).map(drop)).join().unwrap());
        let hung = lock.acquire(run, &stop).unwrap();
        lock.abandon(RunId::new());
        assert!(lock.0.state().abandoned.is_none(), "another run cannot abandon it");
        lock.abandon(run);
        assert_eq!(elsewhere(), Err(Unavailable::Hung));
        // It returns after all.
        drop(hung);
        assert_eq!(elsewhere(), Ok(()));
    }

    #[test]
    fn a_thread_that_holds_a_worker_waits_for_no_other() {
        let (locks, stop) = ([WorkerLock::default(), WorkerLock::default()], Stop::default());
        let outer = locks[0].acquire(RunId::new(), &stop).unwrap();
        let inner = locks.each_ref().map(|lock| lock.acquire(RunId::new(), &stop).unwrap());
        drop(inner);
        assert!(locks[0].0.state().holder.is_some() && locks[1].0.state().holder.is_none());
        drop(outer);
        assert!(locks[0].0.state().holder.is_none());
        // Then it waits again.
        let _held = locks[1].acquire(RunId::new(), &stop).unwrap();
        assert!(locks[1].0.state().holder.is_some());
    }
}
