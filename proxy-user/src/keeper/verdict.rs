//! What a dead guardian means: the end of the node, or another guardian. Pure.

use std::time::{Duration, Instant};

use nix::sys::wait::WaitStatus;

use crate::cli::EXIT_RUNTIME;
use crate::control::restarts::{EARLY, Restarts};

/// The exit code of a panic.
const PANICKED: i32 = 101;

/// What must happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Leave, with this exit code.
    Leave(u8),
    /// Start the next guardian after this time.
    Again(Duration),
}

/// What is known of the guardians so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Record {
    /// One of them has served: what is kept is worth another start.
    pub(super) served: bool,
    /// The user wants the node to stop.
    pub(super) stopping: bool,
    restarts: Restarts,
}

impl Record {
    /// A guardian that was started at `begun` has ended.
    pub(super) fn judge(&mut self, status: WaitStatus, begun: Instant, now: Instant) -> Verdict {
        let code = match status {
            WaitStatus::Exited(_, code) if code != PANICKED => Some(code),
            _ => None,
        };
        if let Some(code) = code {
            // it has said why, and has put everything back
            return Verdict::Leave(u8::try_from(code).unwrap_or(EXIT_RUNTIME));
        }
        if self.stopping || !self.served {
            return Verdict::Leave(EXIT_RUNTIME);
        }
        self.restarts.count(now.saturating_duration_since(begun) < EARLY);
        Verdict::Again(self.restarts.pause())
    }
}

/// How a process ended, in words.
pub(super) fn words(status: WaitStatus) -> String {
    match status {
        WaitStatus::Exited(_, PANICKED) => "it panicked".to_owned(),
        WaitStatus::Exited(_, code) => format!("exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => signal.to_string(),
        other => format!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::Signal;
    use nix::unistd::Pid;

    use super::*;

    const PID: Pid = Pid::from_raw(7);
    const KILLED: WaitStatus = WaitStatus::Signaled(PID, Signal::SIGKILL, false);

    #[test]
    fn an_exit_is_passed_on_and_a_death_is_followed() {
        let now = Instant::now();
        let long = now + Duration::from_secs(60);
        let mut serving = Record { served: true, ..Record::default() };
        for code in [0, 1, 2] {
            let verdict = serving.judge(WaitStatus::Exited(PID, code), now, long);
            assert_eq!(verdict, Verdict::Leave(u8::try_from(code).unwrap()));
        }
        let again = Verdict::Again(Duration::ZERO);
        assert_eq!(serving.judge(KILLED, now, long), again);
        assert_eq!(serving.judge(WaitStatus::Exited(PID, 101), now, long), again, "a panic");
        // one that never served has nothing to come back to
        assert_eq!(Record::default().judge(KILLED, now, long), Verdict::Leave(1));
        serving.stopping = true;
        assert_eq!(serving.judge(KILLED, now, long), Verdict::Leave(1));
    }

    #[test]
    fn one_that_keeps_dying_is_started_ever_more_slowly_but_never_given_up() {
        let now = Instant::now();
        let mut record = Record { served: true, ..Record::default() };
        let mut pauses = Vec::new();
        for _ in 0..12 {
            match record.judge(KILLED, now, now + Duration::from_millis(10)) {
                Verdict::Again(pause) => pauses.push(pause),
                leave @ Verdict::Leave(_) => panic!("{leave:?}"),
            }
        }
        assert_eq!(pauses[..4], [0, 100, 200, 400].map(Duration::from_millis));
        assert_eq!(pauses[11], Duration::from_secs(5));
        let after_a_while = record.judge(KILLED, now, now + EARLY);
        assert_eq!(after_a_while, Verdict::Again(Duration::ZERO));
    }
}
