//! One worker: a thread, a driver, and the connections on it.
//!
//! ```text
//! poll ─▶ dispatch: protocols change state and fill outboxes ─▶ deadlines ─▶ mailbox ─▶ one send per
//!   ▲                                                                          dirty connection │
//!   └───────────────────────────────────────────────────────────────────────────────────────────┘
//! ```
//! It knows no protocol. [`Core`] is everything but the loop, and what [`Ctx`] works on.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use socket2::{Domain, SockRef, Socket, Type};

use crate::config::Config;
use crate::engine::connections::outbox::{Outbox, Spares};
use crate::engine::connections::timers::{Deadline, Timers};
use crate::engine::connections::{
    Close, Closed, Ctx, Kind, Layer, Locals, OUTBOX_HIGH, OUTBOX_LOW, Protocol, Service,
};
use crate::engine::driver::{Completion, Driver, Event, Key, Op, Waker};

/// Time for the rest of the answers, and for the peer's end, of a connection being closed; each
/// byte taken starts the former anew.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// See [`Close::Linger`].
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause of a listener after it found no descriptor or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Size of one large read.
const BULK: usize = 64 * 1024;
/// Buffers for large reads kept for reuse.
const BULK_SPARES_MAX: usize = 16;
/// Longest sleep: bounds the age of what only a turn looks at.
const TURN_MAX: Duration = Duration::from_millis(500);

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The configuration; taken anew each turn.
    pub config: ArcSwap<Config>,
    /// Client connections that may be open in all workers together.
    pub connections_max: usize,
    /// Open client connections.
    pub connections: AtomicUsize,
    /// One mailbox per worker.
    pub mailboxes: Vec<Mailbox>,
    /// One set of counters per worker.
    pub counters: Vec<Counters>,
}

impl Shared {
    /// For so many workers and client connections.
    #[must_use]
    pub fn new(config: Config, workers: usize, connections_max: usize) -> Self {
        Self {
            config: ArcSwap::from_pointee(config),
            connections_max,
            connections: AtomicUsize::new(0),
            mailboxes: (0..workers).map(|_| Mailbox::default()).collect(),
            counters: (0..workers).map(|_| Counters::default()).collect(),
        }
    }
}

/// A worker's counters; written by it alone.
#[derive(Debug, Default)]
pub struct Counters {
    /// Turns made.
    pub turns: AtomicU64,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections refused because there were too many.
    pub refused: AtomicU64,
    /// Connections ended by an error.
    pub failed: AtomicU64,
}

/// Adds to a counter that only this thread writes.
pub(crate) fn count(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

/// What other threads may ask of a worker.
pub enum Mail {
    /// Listen, and make this of what comes.
    Listen(OwnedFd, Service),
    /// Look for waiting connections on all listeners.
    Sweep,
    /// Stop: no more new connections; until this time the present ones may finish.
    Stop(Instant),
    /// Close all listeners at once.
    Unlisten,
    /// Do this in the worker.
    Task(Box<dyn FnOnce(&mut Core) + Send>),
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listen(..) => "Listen",
            Self::Sweep => "Sweep",
            Self::Stop(_) => "Stop",
            Self::Unlisten => "Unlisten",
            Self::Task(_) => "Task",
        })
    }
}

/// A worker's letter-box.
#[derive(Debug, Default)]
pub struct Mailbox {
    mail: Mutex<Vec<Mail>>,
    waker: std::sync::OnceLock<Waker>,
}

impl Mailbox {
    /// Puts something in and wakes the worker.
    pub fn post(&self, mail: Mail) {
        self.mail.lock().push(mail);
        self.wake();
    }

    /// Has the worker make a turn.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }
}

/// Why input waits.
#[derive(Debug, Default, Clone, Copy)]
struct Hold {
    by_protocol: bool,
    by_outbox: bool,
}

impl Hold {
    const fn any(self) -> bool {
        self.by_protocol || self.by_outbox
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Connecting,
    Open,
    /// Closing, once everything is sent; then wait for the peer's end if the flag says so.
    Flushing(bool),
    /// Our end is sent; the peer's is awaited.
    Lingering,
}

/// The worker's part of a connection.
#[derive(Debug)]
pub(crate) struct Slot {
    key: Key,
    stage: Stage,
    pub(crate) outbox: Outbox,
    hold: Hold,
    bulk: bool,
    /// A large read is with the driver: it cannot be taken back, only awaited.
    bulk_flying: bool,
    /// Whether the driver is asked to receive.
    receiving: bool,
    /// Input that came while it had to wait, and whether the end came after it.
    kept: Vec<u8>,
    eof: bool,
    eof_told: bool,
    dirty: bool,
    ending: bool,
    client: bool,
    deadline: Deadline,
    layer: Option<Box<dyn Layer>>,
    /// Bytes of the layer's own, to be sent.
    wire: Vec<u8>,
    listener: Option<Service>,
}

impl Slot {
    fn new(key: Key, stage: Stage) -> Self {
        Self {
            key,
            stage,
            outbox: Outbox::default(),
            hold: Hold::default(),
            bulk: false,
            bulk_flying: false,
            receiving: false,
            kept: Vec::new(),
            eof: false,
            eof_told: false,
            dirty: false,
            ending: false,
            client: false,
            deadline: Deadline::default(),
            layer: None,
            wire: Vec::new(),
            listener: None,
        }
    }
}

/// Everything of a worker but its loop.
#[derive(Debug)]
pub struct Core {
    /// This worker's index.
    pub index: usize,
    /// The time of this turn.
    pub now: Instant,
    /// What all workers share.
    pub shared: Arc<Shared>,
    /// The configuration of this turn.
    pub config: Arc<Config>,
    /// What protocols keep on this worker.
    pub locals: Locals,
    driver: Driver,
    slots: Vec<Option<Slot>>,
    kinds: Vec<Option<Kind>>,
    open: usize,
    timers: Timers,
    spares: Spares,
    bulk_spares: Vec<Vec<u8>>,
    dirty: Vec<Key>,
    resumed: Vec<Key>,
    poked: Vec<Key>,
    ending: Vec<(Key, Closed)>,
    listeners: Vec<Key>,
    accepting: bool,
    stopping: Option<Instant>,
    plain: Vec<u8>,
}

impl Core {
    fn new(index: usize, shared: Arc<Shared>, driver: Driver) -> Self {
        let config = shared.config.load_full();
        Self {
            index,
            now: Instant::now(),
            shared,
            config,
            locals: Locals::default(),
            driver,
            slots: Vec::new(),
            kinds: Vec::new(),
            open: 0,
            timers: Timers::default(),
            spares: Spares::default(),
            bulk_spares: Vec::new(),
            dirty: Vec::new(),
            resumed: Vec::new(),
            poked: Vec::new(),
            ending: Vec::new(),
            listeners: Vec::new(),
            accepting: true,
            stopping: None,
            plain: Vec::new(),
        }
    }

    /// This worker's counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters[self.index]
    }

    pub(crate) fn slot(&self, key: Key) -> Option<&Slot> {
        self.slots.get(key.index())?.as_ref().filter(|slot| slot.key == key && !slot.ending)
    }

    fn slot_mut(&mut self, key: Key) -> Option<&mut Slot> {
        slot_mut(&mut self.slots, key)
    }

    fn insert(&mut self, slot: Slot, kind: Option<Kind>) {
        let index = slot.key.index();
        if self.slots.len() <= index {
            self.slots.resize_with(index + 1, || None);
            self.kinds.resize_with(index + 1, || None);
        }
        debug_assert!(self.slots[index].is_none(), "the driver gives free places");
        self.slots[index] = Some(slot);
        self.kinds[index] = kind;
        self.open += 1;
    }

    // ---- what protocols ask for ----

    pub(crate) fn out(&mut self, key: Key) -> &mut Vec<u8> {
        self.mark(key);
        match slot_mut(&mut self.slots, key) {
            Some(slot) => {
                if slot.outbox.filling.capacity() == 0 {
                    slot.outbox.filling = self.spares.take();
                }
                &mut slot.outbox.filling
            }
            // The connection has ended in this call: what is written now goes nowhere.
            None => {
                self.plain.clear();
                &mut self.plain
            }
        }
    }

    fn mark(&mut self, key: Key) {
        if let Some(slot) = slot_mut(&mut self.slots, key)
            && !std::mem::replace(&mut slot.dirty, true)
        {
            self.dirty.push(key);
        }
    }

    pub(crate) fn pause(&mut self, key: Key) {
        if let Some(slot) = self.slot_mut(key) {
            slot.hold.by_protocol = true;
        }
        self.receive(key);
    }

    pub(crate) fn resume(&mut self, key: Key) {
        if let Some(slot) = self.slot_mut(key)
            && std::mem::replace(&mut slot.hold.by_protocol, false)
            && !slot.hold.any()
        {
            self.resumed.push(key);
        }
    }

    pub(crate) fn bulk(&mut self, key: Key, on: bool) {
        if let Some(slot) = self.slot_mut(key)
            && slot.bulk != on
        {
            slot.bulk = on;
            if on && slot.receiving {
                slot.receiving = false; // the large read interrupts the other
            }
        }
        self.receive(key);
    }

    pub(crate) fn set_deadline(&mut self, key: Key, due: Option<Instant>) {
        if let Some(slot) = slot_mut(&mut self.slots, key)
            && matches!(slot.stage, Stage::Connecting | Stage::Open)
        {
            self.timers.set(key, &mut slot.deadline, due);
        }
    }

    pub(crate) fn close(&mut self, key: Key, how: Close) {
        let now = self.now;
        let Some(slot) = self.slot_mut(key) else { return };
        if how == Close::Now || slot.stage == Stage::Connecting {
            self.end(key, Closed::Local);
            return;
        }
        if slot.stage == Stage::Open {
            slot.stage = Stage::Flushing(how == Close::Linger);
            slot.kept = Vec::new();
            if let Some(slot) = slot_mut(&mut self.slots, key) {
                self.timers.set(key, &mut slot.deadline, Some(now + FLUSH_TIMEOUT));
            }
            self.mark(key);
        }
    }

    pub(crate) fn peer(&self, key: Key) -> Option<SocketAddr> {
        let descriptor = self.driver.descriptor(key)?;
        SockRef::from(&descriptor).peer_addr().ok()?.as_socket()
    }

    pub(crate) fn poke(&mut self, key: Key) {
        self.poked.push(key);
    }

    /// Opens a connection; see [`Ctx::connect`].
    ///
    /// # Errors
    /// No descriptors left.
    pub fn connect(
        &mut self,
        address: SocketAddr,
        kind: Kind,
        layer: Option<Box<dyn Layer>>,
    ) -> io::Result<Key> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), None)?;
        socket.set_tcp_nodelay(true)?;
        let key = self.driver.adopt(socket.into())?;
        let mut slot = Slot::new(key, Stage::Connecting);
        slot.layer = layer;
        self.insert(slot, Some(kind));
        self.driver.push(key, Op::Connect(address));
        Ok(key)
    }

    pub(crate) fn with<R>(
        &mut self,
        key: Key,
        call: impl FnOnce(&mut Kind, &mut Ctx<'_>) -> R,
    ) -> Option<R> {
        self.slot(key)?;
        let mut kind = self.kinds.get_mut(key.index())?.take()?;
        let result = call(&mut kind, &mut Ctx { core: self, key });
        self.kinds[key.index()] = Some(kind);
        Some(result)
    }

    fn call(&mut self, key: Key, call: impl FnOnce(&mut dyn Protocol, &mut Ctx<'_>)) {
        self.with(key, |kind, ctx| call(kind.protocol(), ctx));
    }

    // ---- receiving ----

    /// Brings the driver's wish to receive in line with what is wanted.
    fn receive(&mut self, key: Key) {
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        let wanted = match slot.stage {
            Stage::Connecting => false,
            Stage::Open => !slot.hold.any(),
            Stage::Flushing(_) | Stage::Lingering => true,
        } && !slot.eof;
        if wanted == slot.receiving {
            return;
        }
        slot.receiving = wanted;
        let op = match (wanted, slot.bulk) {
            (_, true) if slot.bulk_flying => return,
            (true, true) => {
                slot.bulk_flying = true;
                Op::RecvInto(self.bulk_spares.pop().unwrap_or_else(|| vec![0; BULK]))
            }
            (true, false) => Op::Recv,
            (false, _) => Op::RecvStop,
        };
        self.driver.push(key, op);
    }

    fn on_data(&mut self, key: Key, bytes: &[u8]) {
        let Some(slot) = self.slot_mut(key) else { return };
        match slot.stage {
            Stage::Flushing(_) | Stage::Lingering => return,
            _ if slot.hold.any() => {
                slot.kept.extend_from_slice(bytes);
                return;
            }
            _ => {}
        }
        self.deliver(key, bytes);
    }

    /// Through the layer, if there is one, to the protocol.
    fn deliver(&mut self, key: Key, bytes: &[u8]) {
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        let Some(mut layer) = slot.layer.take() else {
            self.call(key, |protocol, ctx| protocol.on_data(bytes, ctx));
            return;
        };
        let mut plain = std::mem::take(&mut self.plain);
        let mut reply = self.spares.take();
        plain.clear();
        let result = layer.open(bytes, &mut plain, &mut reply);
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        slot.layer = Some(layer);
        slot.wire.extend_from_slice(&reply);
        self.spares.give(reply);
        self.mark(key);
        if !plain.is_empty() {
            self.call(key, |protocol, ctx| protocol.on_data(&plain, ctx));
        }
        self.plain = plain;
        if let Err(error) = result {
            self.end(key, Closed::Layer(error));
        }
    }

    fn on_eof(&mut self, key: Key) {
        let Some(slot) = self.slot_mut(key) else { return };
        slot.eof = true;
        slot.receiving = false;
        self.tell_eof(key);
    }

    fn tell_eof(&mut self, key: Key) {
        let Some(slot) = self.slot_mut(key) else { return };
        if slot.stage == Stage::Lingering {
            self.end(key, Closed::Local);
        } else if slot.stage == Stage::Open && slot.kept.is_empty() && !slot.hold.any() {
            slot.eof_told = true;
            self.call(key, |protocol, ctx| protocol.on_eof(ctx));
        }
    }

    // ---- sending ----

    /// Gives a dirty connection's bytes to the driver; one send at a time.
    fn flush(&mut self, key: Key) {
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        slot.dirty = false;
        if slot.stage == Stage::Connecting || slot.stage == Stage::Lingering {
            return;
        }
        if !slot.outbox.in_flight() {
            let bytes = match &mut slot.layer {
                None => std::mem::take(&mut slot.outbox.filling),
                Some(layer) => {
                    let mut wire = std::mem::take(&mut slot.wire);
                    if let Err(error) = layer.seal(&mut slot.outbox.filling, &mut wire) {
                        self.end(key, Closed::Layer(error));
                        return;
                    }
                    wire
                }
            };
            if bytes.is_empty() {
                self.spares.give(bytes);
            } else {
                slot.outbox.launch(bytes.len());
                self.driver.push(key, Op::Send(bytes));
            }
        }
        self.after_flush(key);
    }

    fn after_flush(&mut self, key: Key) {
        let now = self.now;
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        let unsent = slot.outbox.len();
        match slot.stage {
            Stage::Flushing(linger) if !slot.outbox.in_flight() => {
                if !linger || slot.eof {
                    self.end(key, Closed::Local);
                    return;
                }
                slot.stage = Stage::Lingering;
                self.timers.set(key, &mut slot.deadline, Some(now + LINGER_TIMEOUT));
                self.driver.push(key, Op::ShutdownWrite);
            }
            _ => {}
        }
        if unsent > OUTBOX_HIGH && !slot.hold.by_outbox {
            slot.hold.by_outbox = true;
        } else if unsent <= OUTBOX_LOW && slot.hold.by_outbox {
            slot.hold.by_outbox = false;
            if !slot.hold.any() {
                self.resumed.push(key);
            }
        }
        self.receive(key);
    }

    fn on_progress(&mut self, key: Key, bytes: usize) {
        let now = self.now;
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        slot.outbox.progress(bytes);
        if matches!(slot.stage, Stage::Flushing(_)) {
            self.timers.set(key, &mut slot.deadline, Some(now + FLUSH_TIMEOUT));
        }
    }

    fn on_sent(&mut self, key: Key, buffer: Vec<u8>) {
        self.spares.give(buffer);
        let Some(slot) = self.slot_mut(key) else { return };
        slot.outbox.land();
        let open = slot.stage == Stage::Open;
        self.mark(key);
        if open {
            self.call(key, |protocol, ctx| protocol.on_sent(ctx));
        }
    }

    // ---- beginnings and ends ----

    fn accepted(&mut self, listener: Key, descriptor: OwnedFd) {
        let total = self.shared.connections.load(Ordering::Relaxed);
        let Some(service) = self.slot(listener).and_then(|slot| slot.listener.clone()) else {
            return;
        };
        if self.stopping.is_some() || total >= self.shared.connections_max {
            count(&self.counters().refused, 1);
            self.admit(false);
            return;
        }
        let Ok(key) = self.driver.adopt(descriptor) else {
            count(&self.counters().failed, 1);
            return;
        };
        count(&self.counters().accepted, 1);
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let (kind, layer) = service.make(self);
        let mut slot = Slot::new(key, Stage::Open);
        slot.client = true;
        slot.layer = layer;
        self.insert(slot, Some(kind));
        self.opened(key, |protocol, ctx| protocol.on_open(ctx));
    }

    fn opened(&mut self, key: Key, call: impl FnOnce(&mut dyn Protocol, &mut Ctx<'_>)) {
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        slot.stage = Stage::Open;
        if let Some(layer) = &mut slot.layer
            && let Err(error) = layer.start(&mut slot.wire)
        {
            self.end(key, Closed::Layer(error));
            return;
        }
        self.mark(key);
        self.receive(key);
        self.call(key, call);
    }

    /// Accepts, or not: when there are too many connections.
    fn admit(&mut self, yes: bool) {
        if std::mem::replace(&mut self.accepting, yes) != yes {
            for key in self.listeners.clone() {
                self.driver.push(key, if yes { Op::Accept } else { Op::AcceptStop });
            }
        }
    }

    /// The connection has ended; its protocol is told at the next opportunity.
    fn end(&mut self, key: Key, reason: Closed) {
        if let Some(slot) = self.slot_mut(key) {
            slot.ending = true;
            self.ending.push((key, reason));
        }
    }

    fn bury(&mut self) {
        while let Some((key, reason)) = self.ending.pop() {
            let index = key.index();
            if let Some(mut kind) = self.kinds[index].take() {
                kind.protocol().on_close(&reason, &mut Ctx { core: self, key });
            }
            let Some(slot) = self.slots[index].take() else { continue };
            self.open -= 1;
            if slot.client {
                self.shared.connections.fetch_sub(1, Ordering::Relaxed);
            }
            if !matches!(reason, Closed::Local | Closed::Stop) {
                count(&self.counters().failed, 1);
            }
            self.driver.close(key);
        }
    }

    /// Starts to listen.
    ///
    /// # Errors
    /// The driver cannot take the descriptor.
    pub fn listen(&mut self, descriptor: OwnedFd, service: Service) -> io::Result<Key> {
        // Inherited by what is accepted.
        SockRef::from(&descriptor.as_fd()).set_tcp_nodelay(true)?;
        let key = self.driver.adopt(descriptor)?;
        let mut slot = Slot::new(key, Stage::Open);
        slot.receiving = true; // nothing to receive, ever
        slot.listener = Some(service);
        self.insert(slot, None);
        self.listeners.push(key);
        if self.accepting {
            self.driver.push(key, Op::Accept);
        }
        Ok(key)
    }

    /// Closes all listeners.
    pub fn unlisten(&mut self) {
        for key in std::mem::take(&mut self.listeners) {
            self.end(key, Closed::Local);
        }
    }

    fn stop(&mut self, until: Instant) {
        self.unlisten();
        self.stopping = Some(until);
        for key in self.keys() {
            self.call(key, |protocol, ctx| protocol.on_stop(ctx));
        }
    }

    fn keys(&self) -> Vec<Key> {
        self.slots.iter().flatten().filter(|slot| !slot.ending).map(|slot| slot.key).collect()
    }
}

fn slot_mut(slots: &mut [Option<Slot>], key: Key) -> Option<&mut Slot> {
    slots.get_mut(key.index())?.as_mut().filter(|slot| slot.key == key && !slot.ending)
}

/// A worker, to be run on the thread that made it.
#[derive(Debug)]
pub struct Worker {
    core: Core,
    completions: Vec<Completion>,
}

impl Worker {
    /// A worker on this thread, with its driver made here.
    #[must_use]
    pub fn new(index: usize, shared: Arc<Shared>, driver: Driver) -> Self {
        let waker = driver.waker();
        debug_assert!(shared.mailboxes[index].waker.get().is_none(), "one worker per mailbox");
        shared.mailboxes[index].waker.get_or_init(|| waker);
        Self { core: Core::new(index, shared, driver), completions: Vec::new() }
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
        let wake = [core.timers.next(), core.stopping].into_iter().flatten().min();
        let wake = wake.map_or(latest, |wake| wake.min(latest));
        core.driver.poll(&mut self.completions, Some(wake))?;
        core.now = Instant::now();
        core.config = core.shared.config.load_full();
        for completion in self.completions.drain(..) {
            core.dispatch(completion);
        }
        core.on_deadlines();
        core.on_mail();
        core.settle();
        count(&core.counters().turns, 1);
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
            Event::AcceptFailed(_) => {
                count(&self.counters().failed, 1);
                let due = Some(self.now + ACCEPT_PAUSE);
                self.set_deadline(key, due);
            }
            Event::Connected(Ok(())) => {
                self.opened(key, |protocol, ctx| protocol.on_connected(ctx));
            }
            Event::Connected(Err(error)) => self.end(key, Closed::Connect(error)),
            Event::Data(lease) => self.on_data(key, &lease),
            Event::Filled(buffer, len) => {
                if let Some(slot) = self.slot_mut(key) {
                    slot.receiving = false;
                    slot.bulk_flying = false;
                }
                self.on_data(key, &buffer[..len]);
                if self.bulk_spares.len() < BULK_SPARES_MAX {
                    self.bulk_spares.push(buffer);
                }
                self.receive(key);
            }
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
        let mail = std::mem::take(&mut *self.shared.mailboxes[self.index].mail.lock());
        for mail in mail {
            match mail {
                Mail::Listen(descriptor, service) => {
                    if self.listen(descriptor, service).is_err() {
                        count(&self.counters().failed, 1);
                    }
                }
                Mail::Sweep => {
                    for key in &self.listeners {
                        self.driver.push(*key, Op::Sweep);
                    }
                }
                Mail::Stop(until) => self.stop(until),
                Mail::Unlisten => self.unlisten(),
                Mail::Task(task) => task(self),
            }
            self.bury();
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

    fn goes_on(&mut self) -> bool {
        let Some(until) = self.stopping else { return true };
        if self.now >= until {
            for key in self.keys() {
                self.end(key, Closed::Stop);
            }
            self.bury();
        }
        self.open > 0
    }
}
