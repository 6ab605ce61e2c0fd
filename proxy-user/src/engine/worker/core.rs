//! Everything of a worker but its loop: its connections, and what protocols may ask for them.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};

use super::flow::FLUSH_TIMEOUT;
use super::shared::Shared;
use super::stop::Stop;
use crate::control::counters::Counter;
use crate::control::shared::WorkerPage;
use crate::engine::connections::outbox::{Outbox, Spares};
use crate::engine::connections::timers::{Deadline, Timers};
use crate::engine::connections::{Close, Closed, Ctx, Kind, Layer, Locals, Protocol, Service};
use crate::engine::driver::{Driver, Key, Op};

/// Pause and interval of keep-alive probes where a peer is watched; the least there is.
const KEEPALIVE: Duration = Duration::from_secs(1);

/// Why input waits.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Hold {
    pub(super) by_protocol: bool,
    pub(super) by_outbox: bool,
}

impl Hold {
    pub(super) const fn any(self) -> bool {
        self.by_protocol || self.by_outbox
    }
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
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
    pub(super) key: Key,
    pub(super) stage: Stage,
    pub(crate) outbox: Outbox,
    pub(super) hold: Hold,
    pub(super) bulk: bool,
    /// A large read is with the driver: it cannot be taken back, only awaited.
    pub(super) bulk_flying: bool,
    /// Whether the driver is asked to receive.
    pub(super) receiving: bool,
    /// Input that came while it had to wait, and whether the end came after it.
    pub(super) kept: Vec<u8>,
    pub(super) eof: bool,
    pub(super) eof_told: bool,
    /// Its input is never held for the sake of its output: see [`Core::eager`].
    pub(super) eager: bool,
    pub(super) dirty: bool,
    pub(super) ending: bool,
    pub(super) client: bool,
    /// It came after the address had gone: no stop waits for it.
    pub(super) late: bool,
    pub(super) deadline: Deadline,
    pub(super) layer: Option<Box<dyn Layer>>,
    /// Bytes of the layer's own, to be sent.
    pub(super) wire: Vec<u8>,
    pub(super) listener: Option<Service>,
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
            eager: false,
            dirty: false,
            ending: false,
            client: false,
            late: false,
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
    /// This worker's part of the shared page.
    pub page: WorkerPage,
    /// What protocols keep on this worker.
    pub locals: Locals,
    pub(super) driver: Driver,
    pub(super) slots: Vec<Option<Slot>>,
    pub(super) kinds: Vec<Option<Kind>>,
    pub(super) open: usize,
    pub(super) timers: Timers,
    pub(super) spares: Spares,
    pub(super) bulk_spares: Vec<Vec<u8>>,
    pub(super) dirty: Vec<Key>,
    pub(super) resumed: Vec<Key>,
    pub(super) poked: Vec<Key>,
    pub(super) ending: Vec<(Key, Closed)>,
    pub(super) listeners: Vec<Key>,
    pub(super) accepting: bool,
    /// Nothing that is begun now lasts longer than what it begins with.
    pub(crate) resting: bool,
    /// It was said that the cache's clients have their answers.
    pub(super) rested: bool,
    pub(super) stopping: Option<Stop>,
    pub(super) sweeping: Option<Instant>,
    pub(super) plain: Vec<u8>,
}

impl Core {
    pub(super) fn new(index: usize, shared: Arc<Shared>, page: WorkerPage, driver: Driver) -> Self {
        Self {
            index,
            now: Instant::now(),
            shared,
            page,
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
            resting: false,
            rested: false,
            stopping: None,
            sweeping: None,
            plain: Vec::new(),
        }
    }

    pub(crate) fn slot(&self, key: Key) -> Option<&Slot> {
        self.slots.get(key.index())?.as_ref().filter(|slot| slot.key == key && !slot.ending)
    }

    pub(super) fn slot_mut(&mut self, key: Key) -> Option<&mut Slot> {
        slot_mut(&mut self.slots, key)
    }

    pub(super) fn insert(&mut self, slot: Slot, kind: Option<Kind>) {
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

    pub(super) fn mark(&mut self, key: Key) {
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
        if how == Close::Reset
            && let Some(descriptor) = self.driver.descriptor(key)
            && let Err(error) = SockRef::from(&descriptor).set_linger(Some(Duration::ZERO))
        {
            tracing::debug!(%error, "a broken answer ends without a reset");
        }
        let Some(slot) = self.slot_mut(key) else { return };
        if matches!(how, Close::Now | Close::Reset) || slot.stage == Stage::Connecting {
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

    /// Input goes on whatever waits to be sent: for a protocol that bounds its output itself, and
    /// whose peer may be doing the same.
    pub(crate) fn eager(&mut self, key: Key) {
        if let Some(slot) = self.slot_mut(key) {
            slot.eager = true;
        }
    }

    /// Has the kernel end the connection when the peer has not been heard for about this long,
    /// whether something waits to be acknowledged or not.
    ///
    /// # Errors
    /// The kernel refuses the options.
    pub(crate) fn watch(&self, key: Key, silence: Duration) -> io::Result<()> {
        let Some(descriptor) = self.driver.descriptor(key) else { return Ok(()) };
        let socket = SockRef::from(&descriptor);
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        socket.set_tcp_keepalive(&keepalive)?;
        socket.set_tcp_user_timeout(Some(silence))
    }

    /// Has those that ended told so, outside of a dispatch.
    pub(crate) fn settle_ends(&mut self) {
        self.bury();
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

    pub(super) fn call(&mut self, key: Key, call: impl FnOnce(&mut dyn Protocol, &mut Ctx<'_>)) {
        self.with(key, |kind, ctx| call(kind.protocol(), ctx));
    }

    // ---- beginnings and ends ----

    pub(super) fn accepted(&mut self, listener: Key, descriptor: OwnedFd) {
        let total = self.shared.connections.load(Ordering::Relaxed);
        let Some(service) = self.slot(listener).and_then(|slot| slot.listener.clone()) else {
            return;
        };
        if total >= self.shared.connections_max {
            self.page.add(Counter::ConnectionsRefused, 1);
            self.admit(false);
            return;
        }
        let Some((kind, layer)) = service.make(self) else { return };
        let key = match self.driver.adopt(descriptor) {
            Ok(key) => key,
            Err(error) => {
                tracing::warn!(%error, "an accepted connection cannot be used");
                return;
            }
        };
        self.page.add(Counter::Accepted, 1);
        self.shared.connections.fetch_add(1, Ordering::Relaxed);
        let mut slot = Slot::new(key, Stage::Open);
        slot.client = true;
        slot.late = self.is_late();
        slot.layer = layer;
        self.insert(slot, Some(kind));
        self.opened(key, |protocol, ctx| protocol.on_open(ctx));
    }

    pub(super) fn opened(&mut self, key: Key, call: impl FnOnce(&mut dyn Protocol, &mut Ctx<'_>)) {
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
    pub(super) fn admit(&mut self, yes: bool) {
        if std::mem::replace(&mut self.accepting, yes) != yes {
            for key in self.listeners.clone() {
                self.driver.push(key, if yes { Op::Accept } else { Op::AcceptStop });
            }
        }
    }

    /// The connection has ended; its protocol is told at the next opportunity.
    pub(super) fn end(&mut self, key: Key, reason: Closed) {
        if let Some(slot) = self.slot_mut(key) {
            slot.ending = true;
            self.ending.push((key, reason));
        }
    }

    pub(super) fn bury(&mut self) {
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
            tracing::trace!(?reason, "connection ended");
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

    /// All living connections and listeners.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.slots.iter().flatten().filter(|slot| !slot.ending).map(|slot| slot.key).collect()
    }
}

pub(super) fn slot_mut(slots: &mut [Option<Slot>], key: Key) -> Option<&mut Slot> {
    slots.get_mut(key.index())?.as_mut().filter(|slot| slot.key == key && !slot.ending)
}
