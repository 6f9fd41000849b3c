use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Cancels work, from any thread or a signal handler. Clones share their state.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<State>);

#[derive(Debug, Default)]
struct State {
    is_stopped: AtomicBool,
    parent: Option<Stop>,
}

impl Stop {
    /// Cancels all work that looks at this stop or a [`branch`](Self::branch) of it.
    pub fn stop(&self) {
        self.0.is_stopped.store(true, Ordering::Relaxed);
    }

    /// Whether the work is cancelled.
    pub fn is_stopped(&self) -> bool {
        self.0.is_stopped.load(Ordering::Relaxed) || self.0.parent.as_ref().is_some_and(Self::is_stopped)
    }

    /// A stop for a part of the work. It is stopped with this one; stopping it does not stop this one.
    #[must_use]
    pub fn branch(&self) -> Self {
        Self(Arc::new(State { is_stopped: AtomicBool::new(false), parent: Some(self.clone()) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_stopped_with_its_parent_but_not_the_other_way() {
        let stop = Stop::default();
        let branches = [stop.branch(), stop.clone().branch()];
        let twig = branches[1].branch();
        branches[1].stop();
        assert!(!stop.is_stopped() && !branches[0].is_stopped() && branches[1].is_stopped() && twig.is_stopped());
        stop.stop();
        assert!(branches[0].is_stopped());
    }
}
