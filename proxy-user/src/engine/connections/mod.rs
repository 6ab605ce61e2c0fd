//! What a connection is to the worker, and the worker to a connection: the joint on which the
//! protocols are written. They never see the driver.
//!
//! ```text
//!   socket ─▶ driver ─▶ worker ─▶ [Layer] ─▶ Protocol::on_data(bytes, ctx)
//!   socket ◀─ driver ◀─ worker ◀─ [Layer] ◀─ ctx.out()         (all of a turn in one send)
//! ```
//!
//! A protocol is driven in this order: `on_open` (accepted) or `on_connected`; any number of
//! `on_data`, `on_sent`, `on_deadline`, `on_poke`; at most one `on_eof`; at last `on_close`,
//! exactly once. During a call it may read and change itself, its own connection and, by
//! [`Ctx::at`] and [`Ctx::with`], those beside it on the same worker. Nothing blocks, nothing is
//! sent before the turn's end.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use crate::control::counters::Counter;
use crate::control::message::{self, Snapshot};
use crate::control::role::Role;
use crate::engine::driver::Key;
use crate::engine::link::{self, incoming::Incoming, outgoing::Outgoing};
use crate::engine::worker::{Core, Shared};

mod away;
pub mod http;
mod http_log;
pub mod layer;
pub mod memcached;
pub(crate) mod outbox;
pub(crate) mod timers;
pub mod upstream_pool;

#[cfg(test)]
mod http_tests;
#[cfg(test)]
mod tests;

pub use http_log::AccessSink;
pub use layer::{Layer, LayerError};

/// Unsent bytes above which a connection's own input waits, and below which it goes on.
pub const OUTBOX_HIGH: usize = 256 * 1024;
/// See [`OUTBOX_HIGH`].
pub const OUTBOX_LOW: usize = 64 * 1024;

/// How to end a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// At once; unsent bytes are lost.
    Now,
    /// As `Now`, by a reset: the peer must not take what it has for whole.
    Reset,
    /// When everything has been handed to the kernel.
    Flush,
    /// As `Flush`, then our end of stream, then wait a moment for the peer's while discarding what
    /// it still sends: else a reset may overtake the answer (RFC 9112 section 9.6).
    Linger,
}

/// Why a connection has ended.
#[derive(Debug)]
pub enum Closed {
    /// By [`Ctx::close`].
    Local,
    /// Receiving or sending failed.
    Io(io::Error),
    /// The layer gave up.
    Layer(LayerError),
    /// It could not be connected.
    Connect(io::Error),
    /// The worker stops and its patience is over.
    Stop,
}

/// A connection's protocol. Methods must return soon; see the module for their order.
pub trait Protocol: fmt::Debug {
    /// An accepted connection is ready.
    fn on_open(&mut self, _ctx: &mut Ctx<'_>) {}

    /// A connection asked for by [`Ctx::connect`] stands. If it fails only `on_close` is called.
    fn on_connected(&mut self, _ctx: &mut Ctx<'_>) {}

    /// Bytes, never none. What is not consumed must be kept by the protocol.
    fn on_data(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>);

    /// Bytes of a large read ([`Ctx::bulk`]), in a buffer that may be swapped for an empty one.
    fn on_bulk(&mut self, bytes: &mut Vec<u8>, ctx: &mut Ctx<'_>) {
        self.on_data(bytes, ctx);
    }

    /// The kernel has taken what was in flight; see [`Ctx::unsent`] for what is left.
    fn on_sent(&mut self, _ctx: &mut Ctx<'_>) {}

    /// The peer will send no more.
    fn on_eof(&mut self, ctx: &mut Ctx<'_>) {
        ctx.close(Close::Flush);
    }

    /// The deadline set has passed; it is cleared.
    fn on_deadline(&mut self, ctx: &mut Ctx<'_>) {
        ctx.close(Close::Now);
    }

    /// Another connection of this worker, or the worker itself, called [`Ctx::poke`].
    fn on_poke(&mut self, _ctx: &mut Ctx<'_>) {}

    /// The worker stops: finish what is under way, take nothing new, and close.
    fn on_stop(&mut self, ctx: &mut Ctx<'_>) {
        ctx.close(Close::Flush);
    }

    /// The last call.
    fn on_close(&mut self, _reason: &Closed, _ctx: &mut Ctx<'_>) {}
}

/// All kinds of connection. A new protocol adds an arm here and one in `Kind::protocol`.
#[derive(Debug)]
pub enum Kind {
    /// A client of the cache.
    Memcached(Box<memcached::Memcached>),
    /// A client's HTTP connection.
    Http(Box<http::Http>),
    /// A connection to an HTTP server.
    Upstream(Box<upstream_pool::Upstream>),
    /// The master's end of a link between the engines.
    Outgoing(Box<Outgoing>),
    /// The replica's end.
    Incoming(Box<Incoming>),
    /// Anything else; tests.
    Other(Box<dyn Protocol>),
}

impl Kind {
    pub(crate) fn protocol(&mut self) -> &mut dyn Protocol {
        match self {
            Self::Memcached(protocol) => protocol.as_mut(),
            Self::Http(protocol) => protocol.as_mut(),
            Self::Upstream(protocol) => protocol.as_mut(),
            Self::Outgoing(protocol) => protocol.as_mut(),
            Self::Incoming(protocol) => protocol.as_mut(),
            Self::Other(protocol) => protocol.as_mut(),
        }
    }

    /// A stop waits for this one.
    pub(crate) fn is_busy(&self) -> bool {
        match self {
            Self::Memcached(client) => client.is_busy(),
            Self::Http(client) => client.is_busy(),
            Self::Upstream(_) | Self::Outgoing(_) | Self::Incoming(_) => false,
            Self::Other(_) => true,
        }
    }

    /// A stream between the engines.
    pub(crate) const fn is_link(&self) -> bool {
        matches!(self, Self::Outgoing(_) | Self::Incoming(_))
    }
}

/// What protocols keep per worker (idle upstream connections, waiting sessions): one field each.
#[derive(Debug, Default)]
pub struct Locals {
    pub(crate) memcached: memcached::Local,
    /// Idle connections to HTTP servers.
    pub(crate) idle: upstream_pool::Idle,
    pub(crate) link: link::Local,
}

impl Locals {
    /// When a service wants the next turn at the latest.
    pub(crate) fn next_turn(&self, now: Instant) -> Option<Instant> {
        [self.memcached.next_turn(now), self.link.next_turn()].into_iter().flatten().min()
    }
}

/// What services do once a turn, after all input and before anything is sent.
pub(crate) fn on_turn(core: &mut Core) {
    memcached::on_turn(core);
    link::on_turn(core);
}

/// What a listener makes of its connections.
#[derive(Clone)]
pub enum Service {
    /// The memcached protocol.
    Cache,
    /// The HTTP balancer.
    Http {
        /// Index of its `[[http]]`.
        index: u16,
        /// Port it listens on.
        port: u16,
    },
    /// Streams of the peer's engine.
    Link,
    /// Anything else; tests.
    Other(std::sync::Arc<dyn Fn() -> Box<dyn Protocol> + Send + Sync>),
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cache => "cache",
            Self::Http { .. } => "http",
            Self::Link => "link",
            Self::Other(_) => "other",
        })
    }
}

impl Service {
    /// What the guardian's word for a listener means.
    #[must_use]
    pub const fn of(listener: &message::Listener) -> Self {
        match listener.service {
            message::Service::Cache => Self::Cache,
            message::Service::Http(index) => Self::Http { index, port: listener.address.port() },
            message::Service::Link => Self::Link,
        }
    }

    /// A new connection's protocol and layer; `None`: it cannot be served.
    pub(crate) fn make(&self, core: &mut Core) -> Option<(Kind, Option<Box<dyn Layer>>)> {
        match self {
            Self::Cache => Some((memcached::Memcached::kind(core), None)),
            Self::Http { index, port } => Some((http::Http::kind(*index, *port, core), None)),
            Self::Link => Incoming::make(core),
            Self::Other(make) => Some((Kind::Other(make()), None)),
        }
    }
}

/// A protocol's view of its connection and of the worker, for the time of one call.
#[derive(Debug)]
pub struct Ctx<'a> {
    pub(crate) core: &'a mut Core,
    pub(crate) key: Key,
}

impl Ctx<'_> {
    /// The time of this turn.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.core.now
    }

    /// This connection's name on this worker; dead once it is closed.
    #[must_use]
    pub const fn key(&self) -> Key {
        self.key
    }

    /// This worker's index.
    #[must_use]
    pub fn worker(&self) -> usize {
        self.core.index
    }

    /// What all workers share.
    #[must_use]
    pub fn shared(&self) -> &Shared {
        &self.core.shared
    }

    /// What protocols keep on this worker.
    pub fn locals(&mut self) -> &mut Locals {
        &mut self.core.locals
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Snapshot {
        &self.core.shared.config
    }

    /// State and epoch of this node at this moment.
    #[must_use]
    pub fn role(&self) -> Role {
        self.core.shared.page.role()
    }

    /// Adds to one of this worker's counters.
    pub fn count(&self, counter: Counter, more: u64) {
        self.core.page.add(counter, more);
    }

    /// Bytes to send are appended here. They leave at the end of the turn.
    pub fn out(&mut self) -> &mut Vec<u8> {
        self.core.out(self.key)
    }

    /// Appends to what is to be sent.
    pub fn send(&mut self, bytes: &[u8]) {
        self.out().extend_from_slice(bytes);
    }

    /// Bytes that the kernel has not taken.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.core.slot(self.key).map_or(0, |slot| slot.outbox.len())
    }

    /// Whether bytes are with the kernel that it has not all taken yet.
    #[must_use]
    pub fn sends(&self) -> bool {
        self.core.slot(self.key).is_some_and(|slot| slot.outbox.in_flight())
    }

    /// Takes no more input until [`Ctx::resume`]; what is under way is kept and delivered then.
    pub fn pause(&mut self) {
        self.core.pause(self.key);
    }

    /// Takes input again; what was kept is delivered after this call, within the turn.
    pub fn resume(&mut self) {
        self.core.resume(self.key);
    }

    /// Large reads from here on (bodies), or back to small shared buffers (heads, commands).
    pub fn bulk(&mut self, on: bool) {
        self.core.bulk(self.key, on);
    }

    /// Calls `on_deadline` at this time unless it is moved; `None` clears it.
    pub fn set_deadline(&mut self, due: Option<Instant>) {
        self.core.set_deadline(self.key, due);
    }

    /// Ends the connection; input is no longer delivered. `on_close` comes after this call, or
    /// when everything is sent.
    pub fn close(&mut self, how: Close) {
        self.core.close(self.key, how);
    }

    /// The peer's address, if the connection stands.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.core.peer(self.key)
    }

    /// Opens another connection on this worker. It may be written to at once.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn connect(
        &mut self,
        address: SocketAddr,
        kind: Kind,
        layer: Option<Box<dyn Layer>>,
    ) -> io::Result<Key> {
        self.core.connect(address, kind, layer)
    }

    /// Has `on_poke` of a living connection (perhaps this one) called after this call.
    pub fn poke(&mut self, key: Key) {
        self.core.poke(key);
    }

    /// The same view of another living connection of this worker: to write to it, to hold it, to
    /// close it.
    pub fn at(&mut self, key: Key) -> Option<Ctx<'_>> {
        self.core.slot(key)?;
        Some(Ctx { core: self.core, key })
    }

    /// Calls into another living connection's protocol. `None` also when that protocol is already
    /// in a call further up.
    pub fn with<R>(
        &mut self,
        key: Key,
        call: impl FnOnce(&mut Kind, &mut Ctx<'_>) -> R,
    ) -> Option<R> {
        self.core.with(key, call)
    }
}
