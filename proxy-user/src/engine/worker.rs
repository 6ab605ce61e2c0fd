//! One worker: a thread, a driver, and the connections on it.
//!
//! ```text
//! poll ─▶ dispatch: protocols change state and fill outboxes ─▶ deadlines ─▶ mailbox
//!   ▲                                                                          │
//!   └──────────── one send per dirty connection ◀── services ◀─────────────────┘
//! ```
//! It knows no protocol. [`Core`] is everything but the loop, and what a protocol's `Ctx` works on.

mod core;
mod flow;
mod shared;
mod stop;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

pub use self::core::Core;
use self::core::{Stage, slot_mut};
pub use shared::{Events, Mail, Mailbox, Shared};
pub use stop::Stop;

use crate::control::counters::Counter;
use crate::engine::connections::{self, Closed};
use crate::engine::driver::{Completion, Driver, Event, Key, Op};

/// Pause of a listener after it found no descriptor or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// See [`Mail::SweepUntil`].
const SWEEP_PAUSE: Duration = Duration::from_millis(1);
/// Longest sleep: bounds the age of what only a turn looks at.
const TURN_MAX: Duration = Duration::from_millis(500);

/// A worker, to be run on the thread that made it.
#[derive(Debug)]
pub struct Worker {
    core: Core,
    completions: Vec<Completion>,
}

impl Worker {
    /// A worker on this thread, with its driver made here.
    ///
    /// # Errors
    /// The page has no room for this worker.
    pub fn new(index: usize, shared: Arc<Shared>, driver: Driver) -> io::Result<Self> {
        let page = u16::try_from(index).ok().and_then(|index| shared.page.worker(index));
        let page = page.ok_or(io::ErrorKind::InvalidInput)?;
        shared.mailboxes.get(index).ok_or(io::ErrorKind::InvalidInput)?.open(driver.waker());
        Ok(Self { core: Core::new(index, shared, page, driver), completions: Vec::new() })
    }

    /// Turns until it is stopped and empty.
    ///
    /// # Errors
    /// The kernel refuses to go on.
    pub fn run(&mut self) -> io::Result<()> {
        while self.turn()? {}
        Ok(())
    }

    /// One turn; false: it was the last.
    ///
    /// # Errors
    /// The kernel refuses to go on.
    pub fn turn(&mut self) -> io::Result<bool> {
        let core = &mut self.core;
        let latest = core.now + TURN_MAX;
        let sweep = core.sweeping.map(|_| core.now + SWEEP_PAUSE);
        let services = core.locals.next_turn(core.now);
        let wakes = [core.timers.next(), core.stop_due(), sweep, services];
        let wake = wakes.into_iter().flatten().min();
        let wake = wake.map_or(latest, |wake| wake.min(latest));
        core.page.enter_poll();
        let polled = core.driver.poll(&mut self.completions, Some(wake));
        core.page.leave_poll();
        polled?;
        core.now = Instant::now();
        for completion in self.completions.drain(..) {
            core.dispatch(completion);
        }
        core.on_deadlines();
        core.on_mail();
        core.sweep();
        connections::on_turn(core);
        core.settle();
        core.report();
        Ok(core.goes_on())
    }

    /// For set-up before the first turn.
    pub fn core(&mut self) -> &mut Core {
        &mut self.core
    }
}

impl Core {
    fn dispatch(&mut self, Completion { key, event }: Completion) {
        match event {
            Event::Accepted(descriptor) => self.accepted(key, descriptor),
            Event::AcceptFailed(error) => {
                tracing::warn!(%error, "accepting pauses");
                let due = Some(self.now + ACCEPT_PAUSE);
                self.set_deadline(key, due);
            }
            Event::Connected(Ok(())) => {
                self.opened(key, |protocol, ctx| protocol.on_connected(ctx));
            }
            Event::Connected(Err(error)) => self.end(key, Closed::Connect(error)),
            Event::Data(lease) => self.on_data(key, &lease),
            Event::Filled(buffer, len) => self.on_filled(key, buffer, len),
            Event::Eof => self.on_eof(key),
            Event::RecvFailed(error) | Event::SendFailed(error) => {
                self.end(key, Closed::Io(error));
            }
            Event::Progress(bytes) => self.on_progress(key, bytes),
            Event::Sent(buffer) => self.on_sent(key, buffer),
        }
        self.bury();
    }

    fn on_deadlines(&mut self) {
        loop {
            let key = self.timers.pop(self.now, &mut self.slots, |slots, key| {
                slot_mut(slots, key).map(|slot| &mut slot.deadline)
            });
            let Some(key) = key else { return };
            self.on_deadline(key);
            self.bury();
        }
    }

    fn on_deadline(&mut self, key: Key) {
        let Some(slot) = self.slot(key) else { return };
        match slot.stage {
            Stage::Flushing(_) | Stage::Lingering => self.end(key, Closed::Local),
            _ if slot.listener.is_some() => {
                if self.accepting {
                    self.driver.push(key, Op::Accept);
                }
            }
            Stage::Connecting | Stage::Open => {
                self.call(key, |protocol, ctx| protocol.on_deadline(ctx));
            }
        }
    }

    fn on_mail(&mut self) {
        let mail = self.shared.mailboxes[self.index].empty();
        for mail in mail {
            match mail {
                Mail::Listen(descriptor, service) => {
                    if let Err(error) = self.listen(descriptor, service) {
                        tracing::error!(%error, "cannot listen");
                    }
                }
                Mail::SweepUntil(until) => self.sweeping = until,
                Mail::Rest => self.rest(),
                Mail::Stop(stop) => self.stop(stop),
                Mail::Unlisten => self.unlisten(),
                Mail::Task(task) => task(self),
            }
            self.bury();
        }
    }

    /// Behind a dead engine whose ring takes the wake-ups of our listeners.
    fn sweep(&mut self) {
        let Some(until) = self.sweeping else { return };
        for key in &self.listeners {
            self.driver.push(*key, Op::Sweep);
        }
        if self.now >= until {
            self.sweeping = None;
        }
    }

    /// What calls have left to do: kept input, pokes, sends; until nothing is left.
    fn settle(&mut self) {
        loop {
            if let Some(key) = self.poked.pop() {
                self.call(key, |protocol, ctx| protocol.on_poke(ctx));
            } else if let Some(key) = self.resumed.pop() {
                self.on_resumed(key);
            } else if let Some(key) = self.dirty.pop() {
                self.flush(key);
            } else {
                break;
            }
            self.bury();
        }
        let max = self.shared.connections_max;
        if !self.accepting && self.shared.connections.load(Ordering::Relaxed) <= max - max / 16 {
            self.admit(true);
        }
    }

    fn on_resumed(&mut self, key: Key) {
        let Some(slot) = self.slot_mut(key) else { return };
        if slot.hold.any() {
            return;
        }
        let kept = std::mem::take(&mut slot.kept);
        if !kept.is_empty() {
            self.deliver(key, &kept);
        }
        let Some(slot) = self.slot_mut(key) else { return };
        if slot.eof && !slot.eof_told {
            self.tell_eof(key);
        }
        self.receive(key);
    }

    fn report(&self) {
        let stats = self.driver.stats();
        self.page.add(Counter::Turns, 1);
        self.page.set(Counter::Connections, (self.open - self.listeners.len()) as u64);
        self.page.set(Counter::BuffersStarved, stats.starved);
        self.page.set(Counter::CqOverflows, stats.overflows);
    }
}
