//! One line per reason and interval, with a count: for what strangers can cause as often as they
//! like. Pure: the caller reads the clock.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Most reasons told apart; the reasons are names of ours, so there are few.
const REASONS_MAX: usize = 128;

/// Decides who may log.
///
/// ```
/// # use std::time::{Duration, Instant};
/// # use proxy_user::telemetry::RateLimit;
/// static REFUSED: RateLimit = RateLimit::new(Duration::from_secs(10));
/// if let Some(count) = REFUSED.pass(Instant::now(), "wrong_key") {
///     tracing::warn!(count, "peer refused: wrong key");
/// }
/// ```
#[derive(Debug)]
pub struct RateLimit {
    interval: Duration,
    reasons: Mutex<Vec<Slot>>,
}

#[derive(Debug)]
struct Slot {
    reason: &'static str,
    since: Instant,
    /// Not told yet.
    silent: u64,
}

impl RateLimit {
    /// One line each `interval`, per reason.
    #[must_use]
    pub const fn new(interval: Duration) -> Self {
        Self { interval, reasons: Mutex::new(Vec::new()) }
    }

    /// It happened at `now`. `Some(n)`: log it; it has happened `n` times since the last line.
    pub fn pass(&self, now: Instant, reason: &'static str) -> Option<u64> {
        let mut reasons = self.reasons.lock();
        if let Some(slot) = reasons.iter_mut().find(|slot| slot.reason == reason) {
            slot.silent += 1;
            if now.saturating_duration_since(slot.since) < self.interval {
                return None;
            }
            slot.since = now;
            return Some(std::mem::take(&mut slot.silent));
        }
        if reasons.len() == REASONS_MAX {
            return None;
        }
        reasons.push(Slot { reason, since: now, silent: 0 });
        Some(1)
    }

    /// What was kept silent for a whole interval and has not happened since: reason and count.
    /// For a caller that wants the last ones told too; call it now and then until `None`.
    pub fn overdue(&self, now: Instant) -> Option<(&'static str, u64)> {
        let mut reasons = self.reasons.lock();
        let due = |slot: &&mut Slot| {
            slot.silent > 0 && now.saturating_duration_since(slot.since) >= self.interval
        };
        let slot = reasons.iter_mut().find(due)?;
        slot.since = now;
        Some((slot.reason, std::mem::take(&mut slot.silent)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_per_interval_and_reason() {
        let limit = RateLimit::new(Duration::from_secs(10));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(limit.pass(at(0), "key"), Some(1));
        assert_eq!(limit.pass(at(1), "key"), None);
        assert_eq!(limit.pass(at(1), "cluster"), Some(1));
        assert_eq!(limit.pass(at(9), "key"), None);
        assert_eq!(limit.overdue(at(9)), None);
        assert_eq!(limit.pass(at(10), "key"), Some(3));
        assert_eq!(limit.pass(at(11), "key"), None);
        assert_eq!(limit.overdue(at(20)), Some(("key", 1)));
        assert_eq!(limit.overdue(at(40)), None);
        assert_eq!(limit.pass(at(40), "key"), Some(1));
    }

    #[test]
    fn reasons_are_bounded() {
        let limit = RateLimit::new(Duration::from_secs(10));
        let now = Instant::now();
        let name = |number: usize| -> &'static str { format!("reason {number}").leak() };
        let passed = (0..REASONS_MAX + 9).filter(|&n| limit.pass(now, name(n)).is_some()).count();
        assert_eq!(passed, REASONS_MAX);
    }
}
