use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A switch that ends work, from any thread or a signal's handler. Clones are one switch.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<Switch>);

#[derive(Debug, Default)]
struct Switch {
    is_thrown: AtomicBool,
    parent: Option<Stop>,
}

impl Stop {
    /// Ends all work that looks at this switch or a [`branch`](Self::branch) of it.
    pub fn stop(&self) {
        self.0.is_thrown.store(true, Ordering::Relaxed);
    }

    /// Whether it was thrown.
    pub fn is_stopped(&self) -> bool {
        self.0.is_thrown.load(Ordering::Relaxed) || self.0.parent.as_ref().is_some_and(Self::is_stopped)
    }

    /// A switch for a part of the work: it is thrown with this one, but throws itself alone.
    #[must_use]
    pub fn branch(&self) -> Self {
        Self(Arc::new(Switch { is_thrown: AtomicBool::new(false), parent: Some(self.clone()) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_branch_is_thrown_with_its_switch_but_not_the_other_way() {
        let stop = Stop::default();
        let branches = [stop.branch(), stop.clone().branch()];
        let twig = branches[1].branch();
        branches[1].stop();
        assert!(!stop.is_stopped() && !branches[0].is_stopped() && branches[1].is_stopped() && twig.is_stopped());
        stop.stop();
        assert!(branches[0].is_stopped());
    }
}
