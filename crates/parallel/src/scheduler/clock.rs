use std::time::Duration;

/// The time that a worker spends inside its operation for some tiles. Stages that run at once count once.
#[derive(Debug, Clone, Default)]
pub(super) struct Clock {
    /// Stages that run now.
    active: usize,
    /// Since when any stage runs.
    since: Duration,
    /// The time before that.
    spent: Duration,
    /// The time up to the end of the last stage that came back.
    last_sign: Duration,
}

impl Clock {
    pub(super) fn enter(&mut self, now: Duration) {
        if self.active == 0 {
            self.since = now;
        }
        self.active += 1;
    }

    pub(super) fn leave(&mut self, now: Duration) {
        self.last_sign = self.time(now);
        self.active = self.active.saturating_sub(1);
        if self.active == 0 {
            self.spent = self.last_sign;
        }
    }

    /// Whether any stage runs.
    pub(super) fn is_active(&self) -> bool {
        self.active > 0
    }

    /// The time inside the operation up to `now`.
    pub(super) fn time(&self, now: Duration) -> Duration {
        self.spent + if self.active > 0 { now.saturating_sub(self.since) } else { Duration::ZERO }
    }

    /// The time inside the operation since a stage last came back.
    pub(super) fn silence(&self, now: Duration) -> Duration {
        self.time(now).saturating_sub(self.last_sign)
    }
}
