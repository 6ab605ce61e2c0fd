//! Processes that do not run for a while, and what must come of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};

use crate::topology::{Pair, Side};
use crate::watch::{Watch, pass};

/// A process of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// The one that decides.
    Guardian,
    /// The one that serves.
    Engine,
}

/// Stalls of the table.
pub const STALLS: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(3),
];

/// Two answerers: the lease is 30 ms, and the asker is a process among others.
const CONTESTED_MAX: Duration = Duration::from_millis(100);
/// Over the stall itself, for a write that was under way: detection, takeover, TCP's own 200 ms.
const WAIT_MAX: Duration = Duration::from_millis(900);

impl Pair {
    /// SIGSTOP for a while. A supervisor may have killed and replaced the process meanwhile.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stall(&mut self, side: Side, program: Program, time: Duration) -> Result<()> {
        let running = |pair: &mut Self| match program {
            Program::Guardian => pair.guardian(side),
            Program::Engine => pair.engine(side),
        };
        let stopped = running(self)?;
        kill(stopped, Signal::SIGSTOP)?;
        let passed = pass(time);
        if running(self).is_ok_and(|now| now == stopped) {
            kill(stopped, Signal::SIGCONT)?;
        }
        passed
    }
}

/// Whether another node serves after a stall: when the master's guardian was silent for longer than
/// a busy host is given (2.5 dead times and 1.25 advert intervals, 225 ms), or when the master's
/// engine hung until its guardian killed it (1.5 s). `None`: either, when a takeover by silence is
/// met by the waking master before the new one has answered anybody (rule 13).
fn moves(at_master: bool, program: Program, time: Duration) -> Option<bool> {
    let ms = time.as_millis();
    match program {
        _ if !at_master => Some(false),
        Program::Guardian if (226..600).contains(&ms) => None,
        Program::Guardian => Some(ms > 225),
        Program::Engine => Some(ms > 1500),
    }
}

/// One row: the stall under numbered writes, what was seen, a protected pair again; gives its
/// master.
///
/// # Errors
/// An answered write was lost, two nodes answered, the wrong one serves, or nobody for too long.
pub fn row(
    pair: &mut Pair,
    master: Side,
    at_master: bool,
    program: Program,
    time: Duration,
) -> Result<Side> {
    let side = if at_master { master } else { master.other() };
    let watch = Watch::start(pair)?;
    pair.stall(side, program, time)?;
    let after = pair.wait_any_protected(Duration::from_secs(20))?;
    let seen = watch.stop(pair)?;
    let who = if at_master { "master" } else { "backup" };
    eprintln!("{}", seen.line(&format!("{who}'s {program:?} {time:?}")));
    let expected = match moves(at_master, program, time) {
        Some(true) => master.other(),
        Some(false) => master,
        None => after,
    };
    ensure!(seen.lost == 0, "{} answered writes lost", seen.lost);
    let contested = seen.answers.contested();
    ensure!(contested < CONTESTED_MAX, "two answered for {contested:?}");
    ensure!(after == expected, "{} serves, not {}", after.name(), expected.name());
    let owner = seen.owner().context("nobody answers for the address")?;
    ensure!(owner == expected, "{} owns the address", owner.name());
    let longest = seen.written.outage.longest;
    ensure!(longest < time + WAIT_MAX, "a write waited {longest:?}");
    Ok(after)
}

/// All rows of `times`, on one pair; what failed is told at the end.
///
/// # Errors
/// The rows that failed.
pub fn table(pair: &mut Pair, mut master: Side, times: &[Duration]) -> Result<()> {
    let mut refused = Vec::new();
    eprintln!("{}", crate::watch::HEAD);
    for time in times {
        for program in [Program::Guardian, Program::Engine] {
            for at_master in [true, false] {
                if let Err(error) = row(pair, master, at_master, program, *time) {
                    refused.push(format!("{program:?} {time:?} master {at_master}: {error:#}"));
                }
                let settled = pair.wait_any_protected(Duration::from_secs(20));
                master = settled.with_context(|| refused.join("\n"))?;
            }
        }
    }
    ensure!(refused.is_empty(), "{}", refused.join("\n"));
    Ok(())
}
