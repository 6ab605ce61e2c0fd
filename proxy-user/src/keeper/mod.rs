//! The keeper: the process that `tandem run` is. It starts the guardian, and when that dies another
//! one, on the same listening sockets and the same memory; it takes the addresses off at once.
//!
//! ```text
//! keeper ── starts ─▶ guardian ── starts ─▶ engine
//!    │  ◀─ descriptors ──┘  killed with it ◀──┘
//!    └── on its death: addresses off, the next guardian gets the descriptors
//! ```
//! It knows no configuration and reads nobody's bytes: signals go to the guardian, the guardian's
//! exit code is its own. A guardian that hangs while the kernel answers for its addresses is seen
//! in the shared page; its addresses go when its lease is over, and it is killed. When the keeper
//! dies the guardian stops the node as if it had been asked to.

mod manager;
mod verdict;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use aya::maps::{Array, Map, MapData, MapError};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use proxy_common::abi::Control;
use vrrp::io::Netlink;

use crate::cli;
use crate::control::channel::ChannelError;
use crate::control::keeper::{self, GuardianSide, LEASE, LISTENER, Lives, PAGE, ToKeeper};
use crate::control::role::State;
use crate::control::shared::{Liveness, Seat, SharedPage, monotonic_ns, run_realtime};
use crate::control::{self, NAME, OWN_PROGRAM, PARENT_VARIABLE};
use crate::telemetry;

use verdict::{Record, Verdict, words};

/// Between two looks at a guardian whose addresses the kernel answers for.
const LOOK: Duration = Duration::from_millis(20);
/// A guardian that has not come round for this long, and holds such addresses, hangs: it comes
/// round five times a second at least.
const HUNG: Duration = Duration::from_millis(500);
/// What a guardian may take to see that its lease is over.
const GRACE_NS: u64 = 20_000_000;
/// SCHED_FIFO priority: it sleeps until its guardian dies.
const PRIORITY: i32 = 40;

/// The guardian that runs.
#[derive(Debug)]
struct Guardian {
    pid: Pid,
    begun: Instant,
    channel: Option<GuardianSide>,
}

/// Until when the program answers; see [`Control`].
type LeaseMap = Array<MapData, Control>;

struct Keeper {
    arguments: Vec<OsString>,
    shelf: BTreeMap<String, OwnedFd>,
    addresses: Vec<IpAddr>,
    page: Option<SharedPage>,
    /// The program's, that a guardian has hooked in.
    lease: Option<LeaseMap>,
    guardian: Option<Guardian>,
    record: Record,
    lives: Lives,
    start_at: Option<Instant>,
    hang: Hang,
}

/// Runs a node until it is stopped; its exit code.
///
/// # Errors
/// The kernel refuses the first guardian's start.
pub fn run() -> anyhow::Result<u8> {
    let signals = signals()?;
    // after it: the thread that writes would take the signals otherwise
    let _logs = telemetry::init(&control::child_log())?;
    nix::sys::prctl::set_child_subreaper(true)?;
    // Without the right a busy host may delay the address's leaving.
    run_realtime(PRIORITY).ok();
    let mut keeper = Keeper {
        arguments: arguments(std::env::args_os()),
        shelf: manager::kept(),
        addresses: Vec::new(),
        page: None,
        lease: None,
        guardian: None,
        record: Record::default(),
        lives: Lives::default(),
        start_at: None,
        hang: Hang::default(),
    };
    keeper.start()?;
    keeper.run(&signals)
}

/// What this process waits for, from here on on every thread of it.
fn signals() -> nix::Result<SignalFd> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGCHLD] {
        mask.add(signal);
    }
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// The guardian's command line: ours, with its verb.
fn arguments(ours: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let mut verb = Some(OsString::from("guardian"));
    let replace = |word| if word == "run" { verb.take().unwrap_or(word) } else { word };
    ours.skip(1).map(replace).collect()
}

impl Keeper {
    fn start(&mut self) -> anyhow::Result<()> {
        let (ours, theirs) = keeper::pair().context("cannot make the guardian's socket")?;
        let mut command = Command::new(OWN_PROGRAM);
        command.arg0(NAME).args(&self.arguments).stdin(Stdio::from(theirs));
        command.env(PARENT_VARIABLE, std::process::id().to_string());
        command.env_remove(manager::SOCKET_VARIABLE);
        // Ctrl-C in the terminal is the keeper's business.
        command.process_group(0);
        let child = command.spawn().context("cannot start the guardian")?;
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or(0));
        if let Err(error) = keeper::hand_over(&ours, &self.shelf, self.lives.clone()) {
            // its end will say more
            tracing::warn!(%error, "the guardian takes nothing over");
        }
        self.guardian = Some(Guardian { pid, begun: Instant::now(), channel: Some(ours) });
        self.hang = Hang::default();
        Ok(())
    }

    fn run(&mut self, signals: &SignalFd) -> anyhow::Result<u8> {
        loop {
            self.sleep(signals)?;
            while let Some(signal) = signals.read_signal()? {
                match i32::try_from(signal.ssi_signo).map(Signal::try_from) {
                    Ok(Ok(Signal::SIGCHLD)) | Err(_) | Ok(Err(_)) => {}
                    Ok(Ok(signal)) => {
                        if let Some(code) = self.pass_on(signal) {
                            return Ok(code);
                        }
                    }
                }
            }
            self.listen();
            self.look();
            if let Some(code) = self.reap() {
                return Ok(code);
            }
            if self.start_at.is_some_and(|at| at <= Instant::now()) {
                self.start_at = None;
                self.start()?;
            }
        }
    }

    fn sleep(&self, signals: &SignalFd) -> anyhow::Result<()> {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let channel = self.guardian.as_ref().and_then(|guardian| guardian.channel.as_ref());
        fds.extend(channel.map(|channel| PollFd::new(channel.as_fd(), PollFlags::POLLIN)));
        let watched = (!self.addresses.is_empty() && self.guardian.is_some()).then_some(LOOK);
        let start = self.start_at.map(|at| at.saturating_duration_since(Instant::now()));
        let timeout = watched.into_iter().chain(start).min();
        let timeout = timeout.map_or(PollTimeout::NONE, |time| {
            // rounded up: not a turn too early
            PollTimeout::try_from(time + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("cannot wait for signals"),
        }
    }

    /// A signal for the node; an exit code when there is no guardian to take it.
    fn pass_on(&mut self, signal: Signal) -> Option<u8> {
        if signal != Signal::SIGHUP {
            self.record.stopping = true;
            manager::stopping();
        }
        match &self.guardian {
            Some(guardian) => {
                if let Err(error) = kill(guardian.pid, signal) {
                    tracing::warn!(%error, %signal, "cannot pass a signal on");
                }
                None
            }
            None => self.record.stopping.then_some(cli::EXIT_RUNTIME),
        }
    }

    /// What the guardian says.
    fn listen(&mut self) {
        loop {
            let guardian = self.guardian.as_mut();
            let Some(channel) = guardian.and_then(|guardian| guardian.channel.as_ref()) else {
                return;
            };
            match channel.try_recv() {
                Ok(Some((message, descriptors))) => self.take(message, descriptors),
                Ok(None) => return,
                Err(ChannelError::Message(error)) => {
                    tracing::error!(%error, "the guardian sent what we do not know");
                }
                Err(_) => {
                    // its process ends, which takes some more milliseconds
                    if let Some(guardian) = &mut self.guardian {
                        guardian.channel = None;
                    }
                    let seat = self.page.map(|page| page.liveness(Seat::Guardian));
                    if seat == Some(Liveness::Died) {
                        self.mourn();
                    }
                }
            }
        }
    }

    fn take(&mut self, message: ToKeeper, descriptors: Vec<OwnedFd>) {
        match message {
            ToKeeper::Keep { names } => {
                for (name, descriptor) in names.into_iter().zip(descriptors) {
                    manager::keep(&name, descriptor.as_fd());
                    if name == PAGE {
                        self.page = SharedPage::open(descriptor.as_fd())
                            .inspect_err(|error| tracing::error!(%error, "a page is not kept"))
                            .ok();
                    }
                    if name == LEASE {
                        self.lease = lease_map(descriptor)
                            .inspect_err(|error| tracing::error!(%error, "no lease is kept"))
                            .ok();
                        continue;
                    }
                    self.shelf.insert(name, descriptor);
                }
            }
            ToKeeper::Only { names } => self.shelf.retain(|name, _| names.contains(name)),
            ToKeeper::Addresses(addresses) => self.addresses = addresses,
            ToKeeper::Ready => {
                self.record.served = true;
                manager::ready();
            }
        }
    }

    /// Whether the guardian still comes round.
    fn look(&mut self) {
        let (Some(guardian), Some(page)) = (&self.guardian, self.page) else { return };
        if self.addresses.is_empty() {
            return;
        }
        let pid = guardian.pid;
        let seen = (page.guardian_turn(), page.lease());
        match self.hang.look(Instant::now(), monotonic_ns(), seen) {
            Look::Fine => {}
            Look::Late => {
                tracing::warn!("the guardian does not come round: its addresses go");
                self.take_off();
            }
            Look::Hung => {
                tracing::error!("the guardian hangs: it is killed");
                self.take_off();
                if let Err(error) = kill(pid, Signal::SIGKILL) {
                    tracing::warn!(%error, "cannot end the guardian");
                }
            }
        }
    }

    /// A guardian is dead: nobody answers for its addresses here. Where the other node takes over,
    /// whoever waits to be accepted is reset, and connects there; else for the next engine.
    fn mourn(&mut self) {
        if let Some(Err(error)) = self.lease.take().map(|mut map| map.set(0, Control::default(), 0))
        {
            tracing::error!(%error, "the program answers to the end of its lease");
        }
        self.take_off();
        if self.page.is_some_and(|page| page.role().state == State::Master) {
            self.shelf.retain(|name, _| !name.starts_with(LISTENER));
        }
    }

    /// Takes every address off this host.
    fn take_off(&self) {
        if self.addresses.is_empty() {
            return;
        }
        let taken = Netlink::open().and_then(|mut netlink| {
            self.addresses.iter().try_fold(0, |sum, one| Ok(sum + netlink.take_off(*one)?))
        });
        match taken {
            Ok(0) => {}
            Ok(taken) => tracing::info!(taken, "addresses taken off"),
            // they go by themselves when their lifetime is over
            Err(error) => tracing::error!(%error, "cannot take the addresses off"),
        }
    }

    /// Takes the dead in; an exit code when the node ends with one of them.
    fn reap(&mut self) -> Option<u8> {
        loop {
            let status = match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return None,
                Ok(status) => status,
            };
            let ours = self.guardian.as_ref().map(|guardian| guardian.pid);
            if ours.is_none() || status.pid() != ours {
                continue;
            }
            let ended = matches!(status, WaitStatus::Exited(..) | WaitStatus::Signaled(..));
            let Some(guardian) = self.guardian.take_if(|_| ended) else { continue };
            self.mourn();
            let now = Instant::now();
            match self.record.judge(status, guardian.begun, now) {
                Verdict::Leave(code) => {
                    if matches!(status, WaitStatus::Signaled(..)) {
                        tracing::error!(how = words(status), "the guardian died");
                    }
                    return Some(code);
                }
                Verdict::Again(pause) => {
                    tracing::error!(how = words(status), ?pause, "the guardian died: another one");
                    self.lives.before = self.lives.before.saturating_add(1);
                    self.lives.ended = Some(words(status));
                    self.start_at = Some(now + pause);
                }
            }
        }
    }
}

fn lease_map(descriptor: OwnedFd) -> Result<LeaseMap, MapError> {
    Array::try_from(Map::Array(MapData::from_fd(descriptor)?))
}

/// Tells a guardian that hangs from one that only waits for something to do.
#[derive(Debug, Default)]
struct Hang {
    looked: Option<Instant>,
    /// Its last turn, and since when we have seen that one.
    turn: Option<(u64, Instant)>,
    late: bool,
    killed: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    Fine,
    /// Its lease is over and it did not come round to say so: nobody may answer.
    Late,
    /// Nothing for [`HUNG`].
    Hung,
}

impl Hang {
    /// `seen`: its last turn and the lease, both in the clock of `now_ns`.
    fn look(&mut self, now: Instant, now_ns: u64, seen: (u64, u64)) -> Look {
        let (turn, lease) = seen;
        // we did not run ourselves: nothing can be said of others
        let slept = self.looked.replace(now).is_some_and(|last| now - last > HUNG / 2);
        let since = match self.turn {
            Some((known, since)) if known == turn && !slept => since,
            _ => {
                self.turn = Some((turn, now));
                self.late = false;
                now
            }
        };
        if turn == 0 || self.killed {
            return Look::Fine;
        }
        if now.saturating_duration_since(since) > HUNG {
            self.killed = true;
            return Look::Hung;
        }
        // 0: it holds no lease; the largest: nobody else is there to answer
        let over = lease != 0 && turn < lease && now_ns > lease.saturating_add(GRACE_NS);
        if over && !std::mem::replace(&mut self.late, true) { Look::Late } else { Look::Fine }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guardian_gets_our_options() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let ours = words("tandem run --config run --io epoll").into_iter();
        assert_eq!(arguments(ours), words("guardian --config run --io epoll"));
    }

    #[test]
    fn a_hanging_guardian_loses_its_addresses_and_then_its_life() {
        let ms = Duration::from_millis;
        let start = Instant::now();
        let look = |hang: &mut Hang, at: u64, turn, lease| {
            hang.look(start + ms(at), (1000 + at) * 1_000_000, (turn, lease))
        };
        let turn = 1_000 * 1_000_000;
        let lease = 1_050 * 1_000_000;
        let mut hang = Hang::default();
        assert_eq!(look(&mut hang, 0, 0, 0), Look::Fine, "it is starting");
        for at in (0..=70).step_by(10) {
            assert_eq!(look(&mut hang, at, turn, lease), Look::Fine);
        }
        assert_eq!(look(&mut hang, 71, turn, lease), Look::Late);
        assert_eq!(look(&mut hang, 75, turn, lease), Look::Fine, "once");
        for at in (80..=500).step_by(20) {
            assert_eq!(look(&mut hang, at, turn, lease), Look::Fine);
        }
        assert_eq!(look(&mut hang, 520, turn, lease), Look::Hung);
        assert_eq!(look(&mut hang, 540, turn, lease), Look::Fine, "once");
    }

    #[test]
    fn a_keeper_that_did_not_run_says_nothing_of_its_guardian() {
        let start = Instant::now();
        let mut hang = Hang::default();
        let lease = u64::MAX;
        assert_eq!(hang.look(start, 0, (5, lease)), Look::Fine);
        let long = start + 10 * HUNG;
        assert_eq!(hang.look(long, 0, (5, lease)), Look::Fine);
        assert_eq!(hang.look(long + HUNG / 3, 0, (5, lease)), Look::Fine);
        assert_eq!(hang.look(long + HUNG / 2, 0, (5, lease)), Look::Fine);
        assert_eq!(hang.look(long + 9 * HUNG / 10, 0, (5, lease)), Look::Fine);
        assert_eq!(hang.look(long + 11 * HUNG / 10, 0, (5, lease)), Look::Hung);
    }
}
