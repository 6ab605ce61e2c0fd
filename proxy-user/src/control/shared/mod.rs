//! The shared page: role, lease, liveness, counters. Written and read with plain atomics; the raw
//! parts (mapping, robust list, futex calls, adopting descriptors) are in `raw.rs`, the only module
//! here with `unsafe`.
//!
//! The guardian creates it once and hands its descriptor to each engine it starts. What the
//! guardian alone says (role, lease, its own seat) is a page of memory that an engine has mapped
//! read-only: one that was taken over by a stranger cannot make itself master. Every thread whose
//! death matters holds a *seat*: a robust futex that the kernel marks, and whose waiter it wakes,
//! at the start of the thread's exit, before any memory is torn down.

mod raw;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::counters::{COUNTERS_MAX, Counter};
use super::role::{Role, State};
use crate::http::Reason;

pub(in crate::control) use raw::adopt;
pub use raw::{Held, lift, mark_on_fatal_signals, run_realtime};

/// Most workers that fit.
pub const WORKERS_MAX: usize = 64;

/// Magic and layout version; changes with every change of [`Page`] or of the counters' order.
const MAGIC: u64 = u64::from_be_bytes(*b"tandem\0\x05");

/// Room for reasons of HTTP refusals.
const REASONS_MAX: usize = 64;

const _: () = assert!(Reason::ALL.len() <= REASONS_MAX, "the page has no room for this reason");

/// The mapped memory. Any bit pattern is valid, so a foreign writer can confuse but not corrupt.
#[repr(C, align(4096))]
struct Page {
    // The guardian's own: in an engine a write here faults.
    magic: AtomicU64,
    workers: AtomicU32,
    role: AtomicU64,
    lease: AtomicU64,
    guardian_turn: AtomicU64,
    guardian: AtomicU32,
    boundary: Boundary,
    // The engine's.
    engine: AtomicU32,
    poke: AtomicU32,
    slots: [Slot; WORKERS_MAX],
}

/// What follows begins on the next page of memory.
#[repr(C, align(4096))]
struct Boundary([u8; 0]);

/// Bytes before [`Page::boundary`].
const RULING: usize = std::mem::offset_of!(Page, boundary);

const _: () = assert!(RULING == 4096, "one page of memory is the guardian's own");

/// One worker's own lines.
#[repr(C, align(64))]
struct Slot {
    seat: AtomicU32,
    turn: AtomicU64,
    held_since: AtomicU64,
    counters: [AtomicU64; COUNTERS_MAX],
    refusals: [AtomicU64; REASONS_MAX],
}

/// A thread whose death matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Seat {
    /// The guardian's main thread.
    Guardian,
    /// The engine's main thread.
    Engine,
    /// A worker of the engine.
    Worker(u16),
}

/// What a seat's futex says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// Nobody has taken it yet.
    Empty,
    /// Held by the thread with this id.
    Alive(u32),
    /// Given back on purpose.
    Left,
    /// Its holder is dead: it runs no user code any more.
    Died,
}

/// Why [`SharedPage::watch`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// A watched seat is not held (any more).
    Seat(Seat, Liveness),
    /// Someone called [`SharedPage::poke`]; the new count.
    Poked(u32),
    /// The time is over.
    Timeout,
}

/// Handle of the mapped page; the mapping lives as long as the process.
#[derive(Clone, Copy)]
pub struct SharedPage(&'static Page);

impl std::fmt::Debug for SharedPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedPage").field("role", &self.role()).finish_non_exhaustive()
    }
}

impl SharedPage {
    /// Makes the page for this many workers (at most [`WORKERS_MAX`]), and its descriptor.
    ///
    /// # Errors
    /// What the kernel says of the memfd or the mapping.
    pub fn create(workers: u16) -> io::Result<(Self, OwnedFd)> {
        if usize::from(workers) > WORKERS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many workers"));
        }
        let fd = raw::page_memfd()?;
        let page = Self(raw::map_page(&fd)?);
        page.0.workers.store(u32::from(workers), Ordering::Relaxed);
        page.0.role.store(Role::BOOT.to_word(), Ordering::Relaxed);
        page.0.magic.store(MAGIC, Ordering::Release);
        Ok((page, fd))
    }

    /// Maps a page made by [`Self::create`].
    ///
    /// # Errors
    /// The mapping failed, or the page is of another program or version.
    pub fn open(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Self(raw::map_page(&fd)?).checked()
    }

    /// Maps a page made by [`Self::create`] as an engine may: what the guardian says is read-only
    /// for good, once the descriptor is closed.
    ///
    /// # Errors
    /// As of [`Self::open`], or without /proc.
    pub fn open_as_engine(fd: BorrowedFd<'_>) -> io::Result<Self> {
        Self(raw::map_page_as_engine(&fd)?).checked()
    }

    fn checked(self) -> io::Result<Self> {
        let page = self;
        let known = page.0.magic.load(Ordering::Acquire) == MAGIC;
        if !known || page.workers() > WORKERS_MAX {
            let reason = "shared page is of another version";
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(page)
    }

    /// Number of workers it was made for.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.0.workers.load(Ordering::Relaxed) as usize
    }

    /// The role now. Answers are released under what this says at the moment of release.
    #[must_use]
    pub fn role(&self) -> Role {
        Role::from_word(self.0.role.load(Ordering::Acquire))
    }

    /// Guardian only: changes the role; the serial grows.
    pub fn set_role(&self, state: State, epoch: u16) -> Role {
        let serial = self.role().serial.wrapping_add(1);
        let role = Role { state, epoch, serial };
        self.0.role.store(role.to_word(), Ordering::SeqCst);
        role
    }

    /// Until when a MASTER may let answers leave: [`monotonic_ns`] time. Zero = no lease.
    #[must_use]
    pub fn lease(&self) -> u64 {
        self.0.lease.load(Ordering::Acquire)
    }

    /// Guardian only: sets the lease's end.
    pub fn set_lease(&self, until_ns: u64) {
        self.0.lease.store(until_ns, Ordering::SeqCst);
    }

    /// Whether a MASTER's answer may leave at `now_ns`.
    #[must_use]
    pub fn lease_valid(&self, now_ns: u64) -> bool {
        now_ns < self.lease()
    }

    /// Guardian only: its role thread has come round.
    pub fn set_guardian_turn(&self, now_ns: u64) {
        self.0.guardian_turn.store(now_ns, Ordering::Release);
    }

    /// When the guardian's role thread came round last ([`monotonic_ns`] time); 0: not yet.
    #[must_use]
    pub fn guardian_turn(&self) -> u64 {
        self.0.guardian_turn.load(Ordering::Acquire)
    }

    /// A worker's own part; `None` beyond the page's workers.
    #[must_use]
    pub fn worker(&self, worker: u16) -> Option<WorkerPage> {
        let slot = self.0.slots.get(usize::from(worker))?;
        (usize::from(worker) < self.workers()).then_some(WorkerPage(slot))
    }

    /// Sum of one counter over all workers.
    #[must_use]
    pub fn sum(&self, counter: Counter) -> u64 {
        let workers = self.0.slots.iter().take(self.workers());
        workers.fold(0, |sum, slot| sum.wrapping_add(slot.get(counter)))
    }

    /// HTTP requests that ended for this reason, over all workers.
    #[must_use]
    pub fn refusals(&self, reason: Reason) -> u64 {
        let cells = self.0.slots.iter().take(self.workers());
        let cells = cells.filter_map(|slot| slot.refusals.get(reason.index()));
        cells.fold(0, |sum, cell| sum.wrapping_add(cell.load(Ordering::Relaxed)))
    }

    /// Since when the eldest answer now waits for the peer's ack: [`monotonic_ns`] time.
    #[must_use]
    pub fn held_since(&self) -> Option<u64> {
        let workers = self.0.slots.iter().take(self.workers());
        workers.map(|slot| slot.held_since.load(Ordering::Relaxed)).filter(|&at| at != 0).min()
    }

    /// Takes a seat for the calling thread, which must live on until it gives the seat back.
    ///
    /// # Errors
    /// The seat is held by a living thread, is beyond the page, or the kernel refuses.
    pub fn hold(&self, seat: Seat) -> io::Result<Held> {
        let word = self.word(seat).ok_or(io::ErrorKind::InvalidInput)?;
        raw::hold(word)
    }

    /// What a seat says now.
    #[must_use]
    pub fn liveness(&self, seat: Seat) -> Liveness {
        self.word(seat).map_or(Liveness::Empty, |word| raw::liveness(word.load(Ordering::Acquire)))
    }

    /// Every seat an engine must hold while it serves.
    pub fn engine_seats(&self) -> impl Iterator<Item = Seat> + use<> {
        let workers = u16::try_from(self.workers()).unwrap_or(u16::MAX);
        (0..workers).map(Seat::Worker).chain([Seat::Engine])
    }

    /// Those of them that a living thread holds.
    pub fn living_engine_seats(&self) -> impl Iterator<Item = Seat> + '_ {
        self.engine_seats().filter(|seat| matches!(self.liveness(*seat), Liveness::Alive(_)))
    }

    /// Whether no engine thread that took a seat can run user code any more.
    #[must_use]
    pub fn engine_is_gone(&self) -> bool {
        self.living_engine_seats().next().is_none()
    }

    /// A new guardian on the page of a dead one: waits until [`Self::engine_is_gone`], then nobody
    /// has a role or a lease. `false` when an engine is still there at `until_ns`.
    ///
    /// # Errors
    /// As of [`Self::watch`].
    pub fn take_over(&self, until_ns: u64) -> io::Result<bool> {
        self.set_role(State::Boot, 0);
        self.set_lease(0);
        self.set_guardian_turn(0);
        loop {
            let seats: Vec<Seat> = self.living_engine_seats().collect();
            if seats.is_empty() {
                return Ok(true);
            }
            if self.watch(&seats, self.poked(), Some(until_ns))? == Woken::Timeout {
                return Ok(false);
            }
        }
    }

    /// Guardian only, when [`Self::engine_is_gone`]: empties the engine's seats, zeroes its gauges.
    pub fn reset_engine(&self) {
        self.0.engine.store(0, Ordering::Release);
        for slot in &self.0.slots {
            slot.reset();
        }
    }

    /// Waits until one of `seats` is not held, somebody pokes (the count differs from `poked`), or
    /// [`monotonic_ns`] passes `until_ns`. One watcher a seat: the kernel wakes one.
    ///
    /// # Errors
    /// What the kernel says of `futex_waitv` (missing before Linux 5.16).
    pub fn watch(&self, seats: &[Seat], poked: u32, until_ns: Option<u64>) -> io::Result<Woken> {
        raw::watch(self, seats, poked, until_ns)
    }

    /// Count of pokes; the next [`Self::watch`]'s argument.
    #[must_use]
    pub fn poked(&self) -> u32 {
        self.0.poke.load(Ordering::Acquire)
    }

    /// Makes [`Self::watch`] return.
    pub fn poke(&self) {
        self.0.poke.fetch_add(1, Ordering::SeqCst);
        raw::wake(&self.0.poke);
    }

    fn word(&self, seat: Seat) -> Option<&'static AtomicU32> {
        match seat {
            Seat::Guardian => Some(&self.0.guardian),
            Seat::Engine => Some(&self.0.engine),
            Seat::Worker(worker) => self.0.slots.get(usize::from(worker)).map(|slot| &slot.seat),
        }
    }
}

impl Slot {
    fn get(&self, counter: Counter) -> u64 {
        self.counters.get(counter as usize).map_or(0, |cell| cell.load(Ordering::Relaxed))
    }

    fn reset(&self) {
        self.seat.store(0, Ordering::Release);
        self.turn.store(0, Ordering::Relaxed);
        self.held_since.store(0, Ordering::Relaxed);
        for counter in Counter::ALL {
            if counter.kind() == super::counters::Kind::Gauge
                && let Some(cell) = self.counters.get(*counter as usize)
            {
                cell.store(0, Ordering::Relaxed);
            }
        }
    }
}

/// One worker's part of the page. Only that worker writes it.
#[derive(Clone, Copy)]
pub struct WorkerPage(&'static Slot);

impl std::fmt::Debug for WorkerPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerPage").field("turn", &self.turn()).finish_non_exhaustive()
    }
}

impl WorkerPage {
    /// Before the worker may sleep in its driver: being silent there is not a hang.
    pub fn enter_poll(&self) {
        let turn = self.0.turn.load(Ordering::Relaxed);
        self.0.turn.store(turn | 1, Ordering::Relaxed);
    }

    /// After the driver returned: from here on the worker is expected to come back soon.
    pub fn leave_poll(&self) {
        let turn = self.0.turn.load(Ordering::Relaxed);
        self.0.turn.store((turn | 1).wrapping_add(1), Ordering::Relaxed);
    }

    /// The loop counter: odd while in the driver.
    #[must_use]
    pub fn turn(&self) -> u64 {
        self.0.turn.load(Ordering::Relaxed)
    }

    /// Adds to a counter. Single writer: no locked instruction.
    pub fn add(&self, counter: Counter, n: u64) {
        self.set(counter, self.get(counter).wrapping_add(n));
    }

    /// Sets a gauge.
    pub fn set(&self, counter: Counter, value: u64) {
        if let Some(cell) = self.0.counters.get(counter as usize) {
            cell.store(value, Ordering::Relaxed);
        }
    }

    /// Counts an HTTP request that ended for this reason.
    pub fn refuse(&self, reason: Reason) {
        if let Some(cell) = self.0.refusals.get(reason.index()) {
            cell.store(cell.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        }
    }

    /// Tells since when this worker's eldest held answer waits ([`monotonic_ns`] time); `None` when
    /// it holds none.
    pub fn set_held_since(&self, since_ns: Option<u64>) {
        self.0.held_since.store(since_ns.unwrap_or(0), Ordering::Relaxed);
    }

    /// Reads a counter.
    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.0.get(counter)
    }
}

/// CLOCK_MONOTONIC in nanoseconds: the clock of leases, the same in both processes. No system call
/// on hosts with a vDSO clock.
#[must_use]
pub fn monotonic_ns() -> u64 {
    let clock = nix::time::ClockId::CLOCK_MONOTONIC;
    let now = nix::time::clock_gettime(clock).map_or(std::time::Duration::ZERO, Into::into);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
