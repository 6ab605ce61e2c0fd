//! Reads what `cargo test -- --show-output` prints, and counts. Pure: the caller reads the clock.
//!
//! libtest says no times. Where tests run one at a time, a test's time is that between the line of
//! the one before and its own.

use std::collections::BTreeSet;
use std::time::Duration;

/// Lines of a failed test's output that are shown again at the end.
const FAILURE_LINES_MAX: usize = 30;
const CUT: usize = FAILURE_LINES_MAX + 1;
/// How many of the slowest tests are named.
const SLOWEST: usize = 10;

/// A test that did not run, or said that it did nothing.
#[derive(Debug, PartialEq, Eq)]
struct Skip {
    test: String,
    reason: String,
}

/// The count over all suites fed so far.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    suite: String,
    /// `suite: name` of the test whose output is being shown.
    showing: Option<String>,
    /// Lines of it so far.
    shown: usize,
    in_failures: bool,
    passed: usize,
    failed: usize,
    /// Ignored tests: they wait for the privileged run.
    waiting: Vec<Skip>,
    skips: Vec<Skip>,
    /// Tests that passed and yet said SKIPPED, to be counted once.
    said: BTreeSet<String>,
    failures: Vec<String>,
    /// Tests now run one at a time: since when the present one does.
    since: Option<Duration>,
    times: Vec<(Duration, String)>,
    stages: Vec<(String, Duration)>,
}

impl Tally {
    /// From now on, at `at`, tests run one at a time, and are timed; or not.
    pub(crate) fn one_at_a_time(&mut self, at: Option<Duration>) {
        self.since = at;
    }

    /// A stage is over, and took so long.
    pub(crate) fn stage(&mut self, name: &str, time: Duration) {
        self.stages.push((name.to_owned(), time));
    }

    /// One line of output, which came at `at`; any clock will do.
    pub(crate) fn feed(&mut self, line: &str, at: Duration) {
        let text = line.trim();
        if let Some(rest) = text.strip_prefix("Running ") {
            self.suite = suite_name(rest);
        } else if let Some(krate) = text.strip_prefix("Doc-tests ") {
            self.suite = format!("{krate} (doc)");
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.result(rest);
        } else if let Some(rest) = line.strip_prefix("test ") {
            self.outcome(rest, at);
        } else if line.starts_with("running ") {
            self.since = self.since.map(|_| at);
        } else if line == "successes:" || line == "failures:" {
            self.in_failures = line == "failures:";
            self.showing = None;
        } else if let Some(name) = line.strip_prefix("---- ") {
            let name = name.trim_end_matches(" ----").trim_end_matches(" stdout");
            self.showing = Some(format!("{}: {name}", self.suite));
            self.shown = 0;
        } else if self.in_failures && self.showing.is_some() {
            self.shown += 1;
            match self.shown {
                ..=FAILURE_LINES_MAX => self.failures.push(format!("    {line}")),
                CUT => self.failures.push("    ... (the whole is in the log)".to_owned()),
                _ => {}
            }
        } else if text.starts_with("SKIPPED") {
            self.said_skipped(text);
        }
        if self.in_failures && line.starts_with("---- ") {
            self.failures.push(line.to_owned());
        }
    }

    /// `name ... ignored, reason`, `name ... FAILED`; others are counted by their suite's result.
    fn outcome(&mut self, rest: &str, at: Duration) {
        let Some((name, outcome)) = rest.split_once(" ... ") else { return };
        if let Some(since) = &mut self.since {
            let time = at.saturating_sub(std::mem::replace(since, at));
            if !outcome.starts_with("ignored") {
                self.times.push((time, format!("{}: {name}", self.suite)));
            }
        }
        if let Some(reason) = outcome.strip_prefix("ignored") {
            let reason = reason.trim_start_matches(", ").to_owned();
            let test = format!("{}: {name}", self.suite);
            self.waiting.push(Skip { test, reason });
        }
    }

    fn said_skipped(&mut self, text: &str) {
        let Some(test) = self.showing.clone() else { return };
        if self.said.insert(test.clone()) {
            self.skips.push(Skip { test, reason: text.to_owned() });
        }
    }

    /// `ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s`
    fn result(&mut self, rest: &str) {
        let count = |what: &str| -> usize {
            let before = rest.split(what).next().unwrap_or("");
            before
                .rsplit([' ', ';'])
                .find(|w| !w.is_empty())
                .and_then(|w| w.parse().ok())
                .unwrap_or(0)
        };
        let (passed, failed) = (count(" passed"), count(" failed"));
        self.passed += passed;
        self.failed += failed;
        self.in_failures = false;
        self.showing = None;
        if passed + failed > 0 {
            let time = rest.rsplit("finished in ").next().unwrap_or("");
            println!("  {:<34} {passed:>5} passed {failed:>4} failed  {time}", self.suite);
        }
    }

    /// How many passed so far; one that said it skipped did not.
    fn passed(&self) -> usize {
        self.passed - self.said.len()
    }

    /// How many failed so far.
    pub(crate) fn failed(&self) -> usize {
        self.failed
    }

    /// A run ended badly without a failed test: counts as one.
    pub(crate) fn broken(&mut self, what: &str) {
        self.failed += 1;
        self.failures.push(what.to_owned());
    }

    /// What waited is skipped, for `why`.
    pub(crate) fn skip_waiting(&mut self, why: &str) {
        for skip in self.waiting.drain(..) {
            let reason = if skip.reason.is_empty() {
                why.to_owned()
            } else {
                format!("{} ({why})", skip.reason)
            };
            self.skips.push(Skip { test: skip.test, reason });
        }
    }

    /// Of what waits: how many tests need rights and are about to run, and the names of those that
    /// are ignored for another reason, which stay skipped.
    pub(crate) fn split_waiting(&mut self) -> (usize, Vec<String>) {
        let (needy, others): (Vec<_>, Vec<_>) =
            self.waiting.drain(..).partition(|skip| skip.reason.starts_with("needs "));
        let names = others.iter().filter_map(|skip| skip.test.split_once(": "));
        let names = names.map(|(_, name)| name.to_owned()).collect();
        self.skips.extend(others);
        (needy.len(), names)
    }

    /// The slowest tests of those that ran one at a time, slowest first.
    fn slowest(&self) -> Vec<&(Duration, String)> {
        let mut all: Vec<_> = self.times.iter().collect();
        all.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
        all.truncate(SLOWEST);
        all
    }

    /// Stages and the slowest tests with their times, failures, skips and, last and alone on its
    /// line, the total.
    pub(crate) fn print(&self) {
        let line =
            |name: &str, time: &Duration| println!("  {:>7.1} s  {name}", time.as_secs_f32());
        if !self.stages.is_empty() {
            println!("\nstages:");
            self.stages.iter().for_each(|(name, time)| line(name, time));
        }
        if !self.times.is_empty() {
            println!("\nslowest of the tests that run one at a time:");
            self.slowest().iter().for_each(|(time, name)| line(name, time));
        }
        if !self.failures.is_empty() {
            println!("\nfailures:");
            self.failures.iter().for_each(|line| println!("  {line}"));
        }
        if !self.skips.is_empty() {
            println!("\nskipped:");
            self.skips.iter().for_each(|skip| println!("  {}: {}", skip.test, skip.reason));
        }
        println!("\n{}", self.total());
    }

    fn total(&self) -> String {
        format!("{} passed, {} failed, {} skipped", self.passed(), self.failed, self.skips.len())
    }
}

/// `unittests src/lib.rs (target/debug/deps/cache-0f12)` is `cache`; a test target is its own name.
fn suite_name(rest: &str) -> String {
    let file = rest.rsplit('/').next().unwrap_or(rest).trim_end_matches(')');
    file.rsplit_once('-').map_or(file, |(name, _hash)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
     Running unittests src/lib.rs (target/debug/deps/cache-0f1e2d)

running 4 tests
test store::keeps ... ok
test driver::both ... ok
test store::loses ... FAILED
test wire ... ignored, needs CAP_NET_ADMIN: cargo xtask test
test soak ... ignored

successes:

---- driver::both stdout ----
SKIPPED under io_uring: the kernel refuses it
SKIPPED twice

successes:
    driver::both
    store::keeps

failures:

---- store::loses stdout ----
thread 'store::loses' panicked at x.rs:1:
SKIPPED is a word here

failures:
    store::loses

test result: FAILED. 2 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s

   Doc-tests cache
test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    fn fed() -> Tally {
        let mut tally = Tally::default();
        RUN.lines().for_each(|line| tally.feed(line, Duration::ZERO));
        tally
    }

    #[test]
    fn a_run_is_counted_and_a_test_that_skips_itself_did_not_pass() {
        let mut tally = fed();
        assert_eq!((tally.passed(), tally.failed), (2, 1));
        let panic = "    thread 'store::loses' panicked at x.rs:1:";
        assert!(tally.failures.iter().any(|line| line == panic), "{:?}", tally.failures);
        assert!(tally.skips.iter().all(|skip| skip.test == "cache: driver::both"));
        tally.skip_waiting("not root");
        assert_eq!(tally.total(), "2 passed, 1 failed, 3 skipped");
        assert_eq!(tally.skips[1].reason, "needs CAP_NET_ADMIN: cargo xtask test (not root)");
        assert_eq!(tally.skips[2].reason, "not root");
    }

    #[test]
    fn as_root_only_what_needs_rights_is_run() {
        let mut tally = fed();
        assert_eq!(tally.split_waiting(), (1, vec!["soak".to_owned()]));
        assert_eq!(tally.skips.last().map(|skip| skip.test.as_str()), Some("cache: soak"));
        tally.skip_waiting("nothing waits any more");
        assert_eq!(tally.skips.len(), 2);
    }

    #[test]
    fn tests_that_run_one_at_a_time_are_timed_by_their_lines() {
        let mut tally = fed();
        assert!(tally.times.is_empty(), "in parallel a line's time says nothing");
        let at = Duration::from_millis;
        tally.one_at_a_time(Some(at(0)));
        for (ms, line) in [
            (900, "     Running netns/main.rs (target/debug/deps/netns-0f1e2d)"),
            (1000, "running 3 tests"),
            (1200, "test fast ... ok"),
            (1200, "test off ... ignored, later"),
            (4200, "test slow ... FAILED"),
            (4300, "test result: FAILED. 1 passed; 1 failed; 1 ignored; finished in 3.2s"),
            (9000, "running 1 test"),
            (9100, "test third ... ok"),
        ] {
            tally.feed(line, at(ms));
        }
        let slowest: Vec<_> = tally.slowest().into_iter().cloned().collect();
        let expected = [(3000, "slow"), (200, "fast"), (100, "third")];
        assert_eq!(slowest, expected.map(|(ms, name)| (at(ms), format!("netns: {name}"))));
    }

    #[test]
    fn a_run_that_breaks_is_a_failure() {
        let mut tally = Tally::default();
        tally.broken("error: could not compile");
        assert_eq!(tally.total(), "0 passed, 1 failed, 0 skipped");
    }
}
