//! A client's HTTP connection: the shell around one [`Exchange`].
//!
//! ```text
//!   client socket ─▶ Http ─▶ Exchange ─ Wire ─▶ out of the server's connection
//!   client socket ◀─ out ◀── Wire ── Exchange ◀─ Http ◀─ Upstream ◀─ server socket
//! ```
//! It carries bytes and commands, holds the side that runs ahead, arms one deadline. It decides
//! nothing: what may be sent again, kept or refused is the exchange's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::http_log::{AccessLog, AccessSink};
use super::upstream_pool::{After, Upstream};
use super::{Close, Closed, Ctx, Kind, Protocol};
use crate::balance::Change;
use crate::config;
use crate::control::counters::Counter;
use crate::control::message::{BackendEvent, ServerState, Snapshot, ToGuardian};
use crate::engine::driver::Key;
use crate::engine::worker::Core;
use crate::exchange::{self, Blocked, CloseHow, Command, Ending, Exchange, Settings, Wire};
use crate::http::Reason;

/// Unsent bytes above which the other side is not read. One large read in flight and one waiting:
/// more would only leave the processor's cache.
const CROWDED: usize = 96 << 10;
/// Unsent bytes below which it is read again.
pub(super) const ROOM: usize = 64 << 10;

/// What all HTTP connections of all workers share.
#[derive(Debug)]
pub struct Balancer {
    upstreams: Arc<[exchange::Upstream]>,
    /// One for each `[[http]]`.
    settings: Vec<Arc<Settings>>,
    refused: Vec<AtomicU64>,
    log: OnceLock<AccessLog>,
}

impl Balancer {
    /// As configured, every server up.
    #[must_use]
    pub fn new(config: &Snapshot) -> Self {
        let upstreams: Arc<[_]> = config.upstreams.iter().map(exchange::Upstream::new).collect();
        let log = config.log.access != config::AccessLog::Off;
        let settings = |http| Arc::new(Settings::new(http, Arc::clone(&upstreams), log));
        Self {
            settings: config.http.iter().map(settings).collect(),
            upstreams,
            refused: Reason::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
            log: OnceLock::new(),
        }
    }

    /// Starts the access log, if there is to be one; once.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start_log(&self, sink: Option<AccessSink>) -> io::Result<()> {
        if let Some(sink) = sink {
            let log = AccessLog::start(sink)?;
            self.log.get_or_init(|| log);
        }
        Ok(())
    }

    /// Writes out what is left of the access log; when the workers have ended.
    pub fn finish_log(&self) {
        if let Some(log) = self.log.get() {
            log.finish();
        }
    }

    /// The verdict of the guardian's active checks, by upstream and server.
    pub fn set_backends(&self, states: &[Vec<ServerState>]) {
        for (upstream, servers) in self.upstreams.iter().zip(states) {
            for (server, state) in (0u16..).zip(servers) {
                upstream.pool.set_up(server, *state == ServerState::Up);
            }
        }
    }

    /// The upstreams, for status.
    #[must_use]
    pub fn upstreams(&self) -> &[exchange::Upstream] {
        &self.upstreams
    }

    /// How often requests ended for a reason.
    #[must_use]
    pub fn refused(&self, reason: Reason) -> u64 {
        self.refused[reason.index()].load(Ordering::Relaxed)
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct Http {
    exchange: Exchange,
    client: IpAddr,
    /// The server's connection in use or being made.
    upstream: Option<Key>,
    /// What that connection is told when the call it made has ended.
    after: After,
    paused: bool,
}

/// A listener that no `[[http]]` belongs to: a mistake of whoever made the snapshot.
#[derive(Debug)]
struct Unserved;

impl Protocol for Unserved {
    fn on_open(&mut self, ctx: &mut Ctx<'_>) {
        ctx.close(Close::Now);
    }

    fn on_data(&mut self, _bytes: &[u8], ctx: &mut Ctx<'_>) {
        ctx.close(Close::Now);
    }
}

/// Both ways out, for the time of one call.
struct Ways<'a, 'b> {
    ctx: &'a mut Ctx<'b>,
    upstream: Option<Key>,
    /// Takes what is for a server that is gone.
    nowhere: Vec<u8>,
}

impl Wire for Ways<'_, '_> {
    fn client(&mut self) -> &mut Vec<u8> {
        self.ctx.out()
    }

    fn upstream(&mut self) -> &mut Vec<u8> {
        match self.upstream {
            Some(key) if self.ctx.core.slot(key).is_some() => self.ctx.core.out(key),
            _ => &mut self.nowhere,
        }
    }
}

impl Http {
    /// A connection being accepted on a listener of this `[[http]]`.
    pub(super) fn kind(index: u16, port: u16, core: &Core) -> Kind {
        let client = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let Some(settings) = core.shared.http.settings.get(usize::from(index)) else {
            return Kind::Other(Box::new(Unserved));
        };
        let exchange = Exchange::new(Arc::clone(settings), client, port, core.now);
        let after = After::Keep;
        Kind::Http(Box::new(Self { exchange, client, upstream: None, after, paused: false }))
    }

    /// One call into the exchange, and all that follows from it.
    fn drive(
        &mut self,
        ctx: &mut Ctx<'_>,
        call: impl FnOnce(&mut Exchange, std::time::Instant, &mut Ways<'_, '_>),
    ) {
        let now = ctx.now();
        let mut ways = Ways { upstream: self.upstream, ctx, nowhere: Vec::new() };
        call(&mut self.exchange, now, &mut ways);
        while let Some(command) = self.exchange.poll_command() {
            self.perform(command, ctx);
        }
        self.settle(ctx);
    }

    fn perform(&mut self, command: Command, ctx: &mut Ctx<'_>) {
        match command {
            Command::Connect { upstream, server, address, fresh } => {
                self.connect((upstream, server), address, fresh, ctx);
            }
            Command::CloseUpstream => {
                if let Some(mut upstream) = self.upstream.take().and_then(|key| ctx.at(key)) {
                    upstream.close(Close::Now);
                }
            }
            Command::ReleaseUpstream { idle_limit } => {
                // Only ever in a call that the server's connection made.
                self.upstream = None;
                self.after = After::Release { idle_limit };
            }
            Command::Done => self.done(ctx),
            Command::CloseClient(how) => ctx.close(match how {
                CloseHow::Cut => Close::Reset,
                CloseHow::Flush => Close::Flush,
                CloseHow::Linger => Close::Linger,
            }),
        }
    }

    fn connect(&mut self, to: (u16, u16), address: SocketAddr, fresh: bool, ctx: &mut Ctx<'_>) {
        let client = ctx.key();
        while !fresh && let Some(key) = ctx.locals().idle.take(to) {
            let taken = ctx.with(key, |kind, ctx| match kind {
                Kind::Upstream(upstream) => {
                    upstream.take(client, ctx);
                    true
                }
                _ => false,
            });
            if taken == Some(true) {
                self.upstream = Some(key);
                self.connected(true, ctx);
                return;
            }
        }
        let kind = Kind::Upstream(Box::new(Upstream::new(to, client)));
        match ctx.connect(address, kind, None) {
            Ok(key) => {
                ctx.count(Counter::UpstreamConnects, 1);
                self.upstream = Some(key);
            }
            Err(_no_descriptors) => {
                let now = ctx.now();
                let mut ways = Ways { upstream: None, ctx, nowhere: Vec::new() };
                self.exchange.handle_connect_failed(now, &mut ways);
            }
        }
    }

    fn connected(&mut self, reused: bool, ctx: &mut Ctx<'_>) {
        let now = ctx.now();
        let mut ways = Ways { upstream: self.upstream, ctx, nowhere: Vec::new() };
        self.exchange.handle_connected(now, reused, &mut ways);
    }

    /// Holds the faster side and arms the deadline.
    fn settle(&mut self, ctx: &mut Ctx<'_>) {
        let upstream_unsent =
            self.upstream.and_then(|key| ctx.at(key)).map_or(0, |upstream| upstream.unsent());
        let client_unsent = ctx.unsent();
        let crowded = if self.paused { ROOM } else { CROWDED };
        let pause = !self.exchange.wants_client() || upstream_unsent > crowded;
        if pause != self.paused {
            self.paused = pause;
            if pause {
                ctx.pause();
            } else {
                ctx.resume();
            }
        }
        if client_unsent > CROWDED
            && let Some(mut upstream) = self.upstream.and_then(|key| ctx.at(key))
        {
            upstream.pause();
        }
        let blocked = Blocked { client: client_unsent > 0, upstream: upstream_unsent > 0 };
        ctx.set_deadline(self.exchange.poll_timeout(blocked));
        if self.exchange.wants_proceed() {
            let this = ctx.key();
            ctx.poke(this);
        }
    }

    fn blocked(&self, ctx: &mut Ctx<'_>) -> Blocked {
        let client = ctx.unsent() > 0;
        let upstream = self.upstream.and_then(|key| ctx.at(key));
        Blocked { client, upstream: upstream.is_some_and(|upstream| upstream.unsent() > 0) }
    }

    fn done(&mut self, ctx: &mut Ctx<'_>) {
        let record = self.exchange.record();
        ctx.count(Counter::HttpRequests, 1);
        let class = match record.status {
            200..300 => Some(Counter::HttpReplies2xx),
            300..400 => Some(Counter::HttpReplies3xx),
            499 => None,
            400..500 => Some(Counter::HttpReplies4xx),
            _ => Some(Counter::HttpReplies5xx),
        };
        if let Some(class) = class {
            ctx.count(class, 1);
        }
        if record.attempts > 1 {
            ctx.count(Counter::HttpRetries, u64::from(record.attempts - 1));
        }
        if let Some(reason) = record.reason {
            ctx.count(Counter::HttpRefused, 1);
            ctx.shared().http.refused[reason.index()].fetch_add(1, Ordering::Relaxed);
            ctx.core.page.refuse(reason);
        }
        if let Some((upstream, server, change)) = record.change {
            let out = change == Change::Removed;
            let event = BackendEvent { upstream, server, out };
            ctx.shared().events.tell(ToGuardian::Backend(event));
        }
        if let Some(log) = ctx.shared().http.log.get() {
            log.write(self.client, record);
        }
    }

    // ---- what the server's connection tells ----

    /// It stands.
    pub(super) fn upstream_connected(&mut self, key: Key, ctx: &mut Ctx<'_>) {
        if self.upstream == Some(key) {
            self.drive(ctx, |exchange, now, ways| exchange.handle_connected(now, false, ways));
        }
    }

    /// Bytes of it.
    pub(super) fn upstream_data(&mut self, key: Key, bytes: &[u8], ctx: &mut Ctx<'_>) -> After {
        if self.upstream != Some(key) {
            return After::Close;
        }
        self.after = After::Keep;
        self.drive(ctx, |exchange, now, ways| exchange.handle_upstream_data(now, bytes, ways));
        std::mem::replace(&mut self.after, After::Keep)
    }

    /// The same of a large read: what is body and nothing else goes on in its own buffer.
    pub(super) fn upstream_bulk(
        &mut self,
        key: Key,
        bytes: &mut Vec<u8>,
        ctx: &mut Ctx<'_>,
    ) -> After {
        let passes = self.upstream == Some(key)
            && ctx.out().is_empty()
            && self.exchange.pass_answer(ctx.now(), bytes);
        if !passes {
            return self.upstream_data(key, bytes, ctx);
        }
        std::mem::swap(ctx.out(), bytes);
        self.settle(ctx);
        After::Keep
    }

    /// It has ended.
    pub(super) fn upstream_closed(&mut self, key: Key, ending: Ending, ctx: &mut Ctx<'_>) {
        if self.upstream == Some(key) {
            self.upstream = None;
            self.drive(ctx, |exchange, now, ways| {
                exchange.handle_upstream_closed(now, ending, ways);
            });
        }
    }

    /// It has taken bytes.
    pub(super) fn upstream_sent(&mut self, key: Key, ctx: &mut Ctx<'_>) {
        if self.upstream == Some(key) {
            self.exchange.handle_progress(ctx.now());
            self.settle(ctx);
        }
    }

    /// A request is under way.
    pub(super) fn is_busy(&self) -> bool {
        !self.exchange.is_idle()
    }

    /// Whether the answer under way is large.
    pub(super) fn answers_in_bulk(&self) -> bool {
        self.exchange.answers_in_bulk()
    }
}

impl Protocol for Http {
    fn on_open(&mut self, ctx: &mut Ctx<'_>) {
        match ctx.peer() {
            Some(peer) => {
                self.client = peer.ip().to_canonical();
                self.exchange.set_client(self.client);
                if ctx.core.resting {
                    self.exchange.handle_stop(ctx.now());
                }
                self.settle(ctx);
            }
            None => ctx.close(Close::Now),
        }
    }

    fn on_data(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>) {
        self.drive(ctx, |exchange, now, ways| exchange.handle_client_data(now, bytes, ways));
        ctx.bulk(self.exchange.awaits_bulk());
    }

    fn on_bulk(&mut self, bytes: &mut Vec<u8>, ctx: &mut Ctx<'_>) {
        let now = ctx.now();
        if let Some(mut upstream) = self.upstream.and_then(|key| ctx.at(key))
            && upstream.out().is_empty()
            && self.exchange.pass_body_whole(now, bytes)
        {
            std::mem::swap(upstream.out(), bytes);
            self.settle(ctx);
        } else {
            self.on_data(bytes, ctx);
        }
    }

    fn on_sent(&mut self, ctx: &mut Ctx<'_>) {
        self.exchange.handle_progress(ctx.now());
        if ctx.unsent() <= ROOM
            && let Some(mut upstream) = self.upstream.and_then(|key| ctx.at(key))
        {
            upstream.resume();
        }
        self.settle(ctx);
    }

    fn on_eof(&mut self, ctx: &mut Ctx<'_>) {
        self.drive(ctx, |exchange, now, _ways| exchange.handle_client_closed(now));
    }

    fn on_deadline(&mut self, ctx: &mut Ctx<'_>) {
        let blocked = self.blocked(ctx);
        self.drive(ctx, |exchange, now, ways| exchange.handle_timeout(now, blocked, ways));
    }

    fn on_poke(&mut self, ctx: &mut Ctx<'_>) {
        if self.exchange.wants_proceed() {
            self.drive(ctx, |exchange, now, ways| exchange.proceed(now, ways));
        }
    }

    fn on_stop(&mut self, ctx: &mut Ctx<'_>) {
        self.drive(ctx, |exchange, now, _ways| exchange.handle_stop(now));
    }
    fn on_close(&mut self, _reason: &Closed, ctx: &mut Ctx<'_>) {
        self.drive(ctx, |exchange, now, _ways| exchange.handle_client_closed(now));
    }
}

/// How long an idle connection to a server is kept: below Tomcat's 20 s, unless the server says.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
