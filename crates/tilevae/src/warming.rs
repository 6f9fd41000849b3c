//! Warm-up: devices compile and tune kernels before a run, all at once.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use tiling::{BoxError, Party, Stop, guard};

/// How often the stop is checked.
const PATIENCE: Duration = Duration::from_millis(20);

/// How long to wait for a device after a stop.
const GRACE: Duration = Duration::from_secs(5);

/// How long to wait for devices; a run can begin without them.
pub(crate) const LIMIT: Duration = Duration::from_mins(10);

/// The name of a device and its work.
pub(crate) type Task = (String, Box<dyn FnOnce() -> Result<(), BoxError> + Send>);

/// Runs all tasks at once, each on its own thread, and logs the outcomes. A task that does not end within `limit`, or soon after a stop, is
/// abandoned.
pub(crate) fn warm(tasks: Vec<Task>, stop: &Stop, limit: Duration) {
    let mut missing: Vec<String> = tasks.iter().map(|(name, _)| name.clone()).collect();
    let (sender, inbox) = mpsc::channel();
    for (name, task) in tasks {
        let sender = sender.clone();
        let started = thread::Builder::new().spawn({
            let name = name.clone();
            move || {
                let outcome = guard(Party::Operation, task).map_err(BoxError::from).flatten();
                let _ = sender.send((name, outcome.map_err(|error| error.to_string())));
            }
        });
        if let Err(error) = started {
            tracing::warn!("{name} cannot be warmed up: {error}");
        }
    }
    drop(sender);
    let mut end = Instant::now() + limit;
    let mut is_stopping = false;
    loop {
        if stop.is_stopped() && !is_stopping {
            is_stopping = true;
            end = end.min(Instant::now() + GRACE);
        }
        match inbox.recv_timeout(PATIENCE) {
            Ok((name, outcome)) => {
                missing.retain(|other| *other != name);
                match outcome {
                    Ok(()) => tracing::debug!("{name} is warm"),
                    Err(_) if is_stopping => {}
                    Err(error) => tracing::warn!("{name} cannot be warmed up: {error}"),
                }
            }
            // All tasks have ended.
            Err(RecvTimeoutError::Disconnected) => return,
            Err(RecvTimeoutError::Timeout) if Instant::now() > end => {
                tracing::warn!("the warm-up of {} has not ended; the run starts without waiting", missing.join(", "));
                return;
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn devices_that_panic_or_hang_do_not_delay_others() {
        let done = Arc::new(AtomicUsize::new(0));
        let task = |name: &str, work: fn() -> Result<(), BoxError>| -> Task {
            let done = done.clone();
            let run = move || {
                let outcome = work();
                done.fetch_add(1, Ordering::SeqCst);
                outcome
            };
            (name.to_owned(), Box::new(run))
        };
        let sound = || task("sound", || Ok(()));
        warm(vec![sound(), task("bad", || Err("a failure".into())), task("broken", || panic!("a panic"))], &Stop::default(), LIMIT);
        assert_eq!(done.load(Ordering::SeqCst), 2);
        let hung = || {
            task("hung", || {
                thread::sleep(Duration::from_hours(1));
                Ok(())
            })
        };
        let begun = Instant::now();
        warm(vec![hung(), sound()], &Stop::default(), Duration::from_millis(200));
        let stop = Stop::default();
        stop.stop();
        warm(vec![sound(), hung()], &stop, LIMIT);
        assert!(begun.elapsed() < Duration::from_secs(20) && done.load(Ordering::SeqCst) == 4);
    }
}
