//! The streams between the engines of a pair: sockets, channel and order of calls around
//! [`cache::replication`].
//!
//! ```text
//!   master                                             replica
//!   worker i ── dials ─▶ [Secure] ══ link i of N ══ [Secure] ─▶ some worker
//!   Outgoing: Sender (partitions p % N == i)             Incoming: Receiver, clients' commands
//! ```
//! The master dials, whichever side of the pair it is: each of its workers has one link. A
//! replica accepts on any worker; commands of clients on a worker without a link travel by mailbox
//! (`forward`). What the links amount to is kept in `book` and told to the role machine.
//! Nothing here decides who is master: [`Target`] says so.

mod book;
pub(crate) mod forward;
pub(crate) mod incoming;
pub(crate) mod outgoing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use book::{Receiving, Sending};

use super::connections::memcached::CacheService;
use super::connections::{Close, Kind};
use super::driver::Key;
use super::worker::{Core, Shared};
use crate::control::message::{SyncCommand, SyncEvent, Target, ToGuardian};
use crate::control::role::State;

/// First and longest pause before a link is dialled again.
const DIAL_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// Silence on a link after which it is over: a host that is lost sends no end. The role machine
/// knows long before; this is for the next link.
const SILENCE: Duration = Duration::from_secs(3);

/// What all workers know of the streams.
#[derive(Debug, Default)]
pub struct Streams {
    books: Mutex<Books>,
    /// Grows with every change of the target: workers look at it once a turn.
    changes: AtomicU64,
    /// The newest gate ordered.
    gate: AtomicU64,
    /// Links over which commands can be forwarded.
    pub(crate) carriers: Mutex<Vec<forward::Carrier>>,
    /// Grows with each of them that is new.
    ways: AtomicU64,
    /// Refused peers, and when that was last said.
    refused: Mutex<Option<Instant>>,
}

#[derive(Debug)]
struct Books {
    target: Target,
    sending: Sending,
    receiving: Receiving,
}

impl Default for Books {
    fn default() -> Self {
        Self {
            target: Target::Nobody,
            sending: Sending::default(),
            receiving: Receiving::default(),
        }
    }
}

impl Streams {
    /// The role machine's order.
    pub fn order(&self, command: SyncCommand, shared: &Shared) {
        let mut books = self.books.lock();
        match command {
            SyncCommand::Gate { gate } => {
                books.sending.gate(gate);
                self.gate.store(gate, Ordering::Release);
            }
            SyncCommand::Target(target) if target == books.target => return,
            SyncCommand::Target(target) => {
                let workers = shared.mailboxes.len();
                let (here, there) = match target {
                    Target::Nobody => (None, None),
                    Target::Here(epoch) => (Some(epoch), None),
                    Target::Peer(epoch) => (None, Some(epoch)),
                };
                books.target = target;
                let sent = books.sending.begin(here, workers);
                let received = books.receiving.begin(there);
                tell(shared, sent.or(received));
                self.changes.fetch_add(1, Ordering::Release);
            }
        }
        drop(books);
        shared.wake_all();
    }

    /// Where the master is now.
    #[must_use]
    pub fn target(&self) -> Target {
        self.books.lock().target
    }

    fn new_ways(&self) {
        self.ways.fetch_add(1, Ordering::Release);
    }

    /// How many links have become able to carry commands, ever.
    pub(crate) fn ways(&self) -> u64 {
        self.ways.load(Ordering::Acquire)
    }

    fn sending(&self, shared: &Shared, note: impl FnOnce(&mut Sending) -> Option<SyncEvent>) {
        let mut books = self.books.lock();
        tell(shared, note(&mut books.sending));
    }

    fn receiving<E: IntoIterator<Item = SyncEvent>>(
        &self,
        shared: &Shared,
        note: impl FnOnce(&mut Receiving) -> E,
    ) {
        let mut books = self.books.lock();
        tell(shared, note(&mut books.receiving));
    }

    /// A gated answer is late.
    pub(crate) fn late(&self, shared: &Shared, service: &CacheService, epoch: u16) {
        let positions = cache::replication::positions(&service.cache);
        self.sending(shared, |sending| sending.late(epoch, positions));
    }

    /// Acknowledgements have come.
    fn acknowledged(&self, shared: &Shared, service: &CacheService) {
        let mut books = self.books.lock();
        if books.sending.is_waiting() {
            tell(
                shared,
                books.sending.acked(|partition| service.acks.acked((partition & 63) as u8)),
            );
        }
    }

    /// A peer was refused: counted always, said once in a while.
    fn refuse(&self, now: Instant, reason: &dyn std::fmt::Display) {
        let mut said = self.refused.lock();
        if said.is_none_or(|at| now.duration_since(at) > Duration::from_secs(10)) {
            *said = Some(now);
            tracing::warn!(%reason, "a peer's stream is refused");
        }
    }
}

/// Under the books' lock, so that the order of events is that of what happened.
fn tell(shared: &Shared, events: impl IntoIterator<Item = SyncEvent>) {
    for event in events {
        shared.events.tell(ToGuardian::Sync(event));
    }
}

/// A worker's part.
#[derive(Debug)]
pub(crate) struct Local {
    changes: Option<u64>,
    pub(crate) target: Target,
    gate: u64,
    /// This worker's link to the replica, and when the next attempt is due.
    outgoing: Option<Key>,
    dial_at: Option<Instant>,
    pause: Duration,
    attempts: usize,
    /// Links from the master.
    incoming: Vec<Key>,
    pub(crate) forward: forward::Local,
}

impl Default for Local {
    fn default() -> Self {
        Self {
            changes: None,
            target: Target::Nobody,
            gate: 0,
            outgoing: None,
            dial_at: None,
            pause: DIAL_PAUSE.0,
            attempts: 0,
            incoming: Vec::new(),
            forward: forward::Local::default(),
        }
    }
}

impl Local {
    pub(crate) fn next_turn(&self) -> Option<Instant> {
        self.dial_at
    }
}

/// Once a turn, after all input and after the sessions.
pub(crate) fn on_turn(core: &mut Core) {
    let shared = Arc::clone(&core.shared);
    let Some(service) = &shared.cache else { return };
    if shared.config.link.is_none() {
        return;
    }
    let changes = shared.streams.changes.load(Ordering::Acquire);
    if core.locals.link.changes.replace(changes) != Some(changes) {
        retarget(core, shared.streams.target());
    }
    gate(core, &shared, service);
    if core.locals.link.dial_at.is_some_and(|at| core.now >= at) {
        outgoing::dial(core);
    }
    if let Some(key) = core.locals.link.outgoing {
        core.with(key, |kind, ctx| {
            if let Kind::Outgoing(link) = kind {
                link.pump(ctx);
            }
        });
    }
    if matches!(core.locals.link.target, Target::Here(_)) {
        wake_senders(core, &shared, service);
    }
}

/// A link whose peer is gone without a word is to end.
fn watch(core: &Core, key: Key) {
    if let Err(error) = core.watch(key, SILENCE) {
        tracing::warn!(%error, "a link to a lost host will end late");
    }
}

/// Links that do not fit the target end, others begin.
fn retarget(core: &mut Core, target: Target) {
    let local = &mut core.locals.link;
    local.target = target;
    let old: Vec<Key> = local.outgoing.take().into_iter().chain(local.incoming.drain(..)).collect();
    local.dial_at = None;
    for key in old {
        core.close(key, Close::Now);
    }
    if matches!(target, Target::Here(_)) {
        core.locals.link.pause = DIAL_PAUSE.0;
        core.locals.link.dial_at = Some(core.now);
    }
    if target == Target::Nobody {
        // Clients must not hope: their commands would not be answered.
        for key in core.keys() {
            core.with(key, |kind, ctx| {
                if let Kind::Memcached(_) = kind {
                    ctx.close(Close::Flush);
                }
            });
        }
    }
    core.settle_ends();
}

/// This worker gates from here on; the last one to say so notes where the partitions are.
fn gate(core: &mut Core, shared: &Shared, service: &CacheService) {
    let gate = shared.streams.gate.load(Ordering::Acquire);
    if gate == core.locals.link.gate || shared.page.role().state != State::Master {
        return;
    }
    core.locals.link.gate = gate;
    let mut books = shared.streams.books.lock();
    if books.sending.seen(core.index) {
        let positions = cache::replication::positions(&service.cache);
        books.sending.gated_at(positions);
        tell(shared, books.sending.acked(|partition| service.acks.acked((partition & 63) as u8)));
    }
}

/// Records for other workers' links were appended in this turn.
fn wake_senders(core: &Core, shared: &Shared, service: &CacheService) {
    let dirty = service.acks.dirty();
    if dirty == 0 {
        return;
    }
    let workers = shared.mailboxes.len();
    let mut wanted = 0u64;
    for partition in 0..cache::PARTITIONS {
        wanted |= (dirty >> partition & 1) << (partition % workers);
    }
    for (worker, mailbox) in shared.mailboxes.iter().enumerate() {
        if worker != core.index && wanted >> worker & 1 != 0 {
            mailbox.wake();
        }
    }
}
