//! Waiting for a condition, bounded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Set by a signal handler: every wait ends at its next poll, so that owners can clean up.
pub static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Polls `check` every 2 ms until it gives a value or `limit` has passed; then an error that names
/// `what` was waited for and the last refusal.
///
/// # Errors
/// When the deadline passes, or [`INTERRUPTED`] is set.
pub fn eventually<T>(
    what: &str,
    limit: Duration,
    mut check: impl FnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        anyhow::ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("waited {limit:?} for {what}")));
            }
            Err(_) => thread::park_timeout(Duration::from_millis(2)),
        }
    }
}
