//! How soon the next process follows one that died: the keeper's guardians, a guardian's engines.

use std::time::Duration;

/// One that dies by itself within this time counts as dying at start.
pub const EARLY: Duration = Duration::from_secs(1);
/// Longest pause before the next start of one that keeps dying.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// Deaths at start, in a row.
#[derive(Debug, Clone, Copy, Default)]
pub struct Restarts {
    early: u32,
}

impl Restarts {
    /// One more has died, at its start or later.
    pub fn count(&mut self, early: bool) {
        self.early = if early { self.early.saturating_add(1) } else { 0 };
    }

    /// None for the first deaths, then longer and longer.
    #[must_use]
    pub fn pause(&self) -> Duration {
        match self.early {
            0 | 1 => Duration::ZERO,
            again => PAUSE_MAX.min(Duration::from_millis(100) * (1 << (again - 2).min(8))),
        }
    }
}
