//! One client connection's requests, one after the other: from a head to a choice of server, both
//! bodies streamed, to the answer's last byte. Pure.
//!
//! What it is: the state machine between `http` (grammar) and `balance` (servers). Inputs are
//! `handle_*` with the time; bytes go out through [`Wire`], everything else by
//! [`Exchange::poll_command`]; the next moment to call is [`Exchange::poll_timeout`].
//!
//! What it is not: it has no socket. The engine's HTTP connection drives it: feed, drain the
//! commands, hold the side that runs ahead, arm the deadline.
//!
//! ```text
//!            head complete          connected
//!  Idle ─▶ Head ──────────▶ Connecting ──────▶ Active ──▶ Idle     (kept: next request)
//!   ▲        │ refused          │ ▲  retry       │    └──▶ Closing (said close, cut, or refused)
//!   └────────┴──────────────────┘ └──────────────┘
//! ```
//!
//! Promises: a request is never run twice (`balance::retry`); it is answered, or refused for a
//! named reason; what was held for a replay is bounded by [`REPLAY_WINDOW`]; bytes of the next
//! request are not looked at before this one has ended.

mod client;
mod page;
mod record;
mod settings;
mod timeout;
mod upstream;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::balance::{Attempt, Choice, Outcome, Retry, Selection, retry};
use crate::http::writer::Forwarded;
use crate::http::{BodyReader, Framing, Method, Reason, RequestParser, ResponseParser, Version};

pub use record::Record;
pub use settings::{Settings, Upstream};

/// Bytes of a request (head and body as sent) kept so that it can be sent again.
pub const REPLAY_WINDOW: usize = 64 << 10;

/// Bytes of later requests kept while one is under way; above, the client is not read.
pub const PIPELINE_WINDOW: usize = 64 << 10;

/// Bytes of body left above which it is read in large pieces.
const BULK_MIN: u64 = 32 << 10;

/// Interim answers (1xx) taken from a server for one request. Product requirement.
const INTERIM_MAX: u32 = 32;

/// Servers tried for one request.
const ATTEMPTS_MAX: u32 = 8;

/// Where bytes go: appended to what the shell sends.
pub trait Wire {
    /// To the client.
    fn client(&mut self) -> &mut Vec<u8>;
    /// To the server this exchange is connected to; asked for only then.
    fn upstream(&mut self) -> &mut Vec<u8>;
}

/// How the client's connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseHow {
    /// At once, so that a broken answer does not look complete.
    Cut,
    /// When all is sent.
    Flush,
    /// When all is sent, and then still reading for a moment (RFC 9112 §9.6).
    Linger,
}

/// What the shell must do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Get a connection to this server: an idle one unless `fresh`. Answer with
    /// [`Exchange::handle_connected`] or [`Exchange::handle_connect_failed`].
    Connect {
        /// Index of the upstream in the settings.
        upstream: u16,
        /// The server in its pool.
        server: u16,
        /// Where it is.
        address: SocketAddr,
        /// No idle connection.
        fresh: bool,
    },
    /// The server's connection (or the attempt at one) is of no use any more.
    CloseUpstream,
    /// The server's connection is idle and may be used for other requests.
    ReleaseUpstream {
        /// How long the server said it keeps it.
        idle_limit: Option<Duration>,
    },
    /// A request has ended; [`Exchange::record`] tells of it until the next one begins.
    Done,
    /// End the client's connection.
    CloseClient(CloseHow),
}

/// Whose bytes wait to be taken by the kernel, as the shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Blocked {
    /// The client does not take the answer.
    pub client: bool,
    /// The server does not take the request.
    pub upstream: bool,
}

/// How a server's connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// By its end of stream, not by an error.
    pub clean: bool,
    /// At least one byte of this request may have left.
    pub written: bool,
}

/// The client, as the server is told.
#[derive(Debug, Clone)]
struct ClientText {
    address: String,
    port: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    Head,
    Connecting,
    Active,
    Closing,
}

/// Where the answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// No byte of it has come.
    Awaited,
    /// Some have, but the final head is not complete.
    Begun,
    /// The head has gone to the client.
    HeadSent {
        /// The body goes out in chunks.
        chunked: bool,
    },
}

/// The facts of the request under way that outlive its head.
#[derive(Debug)]
struct Current {
    method: Method,
    version: Version,
    keep_alive: bool,
    expect_continue: bool,
    chunked: bool,
    body: BodyReader,
    /// The end of the body has been passed on.
    body_ended: bool,
    upstream: u16,
    server: Option<u16>,
    selection: Selection,
    attempts: u32,
    repeated: bool,
    reused: bool,
    /// All that was sent is still in `replay`.
    replayable: bool,
    answer: Answer,
    answer_body: BodyReader,
    /// The server keeps its connection after this answer, and for how long.
    reusable: bool,
    idle_limit: Option<Duration>,
    interims: u32,
    /// The client's connection is kept after this answer.
    keep_client: bool,
    last_failure: Reason,
}

/// See the module.
#[derive(Debug)]
pub struct Exchange {
    settings: Arc<Settings>,
    client: ClientText,
    phase: Phase,
    commands: VecDeque<Command>,
    parser: RequestParser,
    /// Bytes of the client not yet consumed, from `inbox_at` on.
    inbox: Vec<u8>,
    inbox_at: usize,
    answer_parser: ResponseParser,
    /// Bytes of an answer's incomplete head.
    answer_inbox: Vec<u8>,
    current: Current,
    replay: Vec<u8>,
    record: Record,
    requests: u32,
    stopping: bool,
    /// When the phase began (Idle, Head, Connecting), or bytes last moved (Active).
    since: Instant,
}

impl Exchange {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(settings: Arc<Settings>, client: IpAddr, port: u16, now: Instant) -> Self {
        let limits = &settings.limits;
        let current = Current {
            method: Method::Other,
            version: Version::Http11,
            keep_alive: false,
            expect_continue: false,
            chunked: false,
            body: BodyReader::new(Framing::None, 0, limits),
            body_ended: true,
            upstream: 0,
            server: None,
            selection: Selection::default(),
            attempts: 0,
            repeated: false,
            reused: false,
            replayable: true,
            answer: Answer::Awaited,
            answer_body: BodyReader::new(Framing::None, 0, limits),
            reusable: false,
            idle_limit: None,
            interims: 0,
            keep_client: false,
            last_failure: Reason::NoServer,
        };
        Self {
            client: ClientText {
                address: client.to_canonical().to_string(),
                port: port.to_string(),
            },
            settings,
            phase: Phase::Idle,
            commands: VecDeque::new(),
            parser: RequestParser::new(),
            inbox: Vec::new(),
            inbox_at: 0,
            answer_parser: ResponseParser::new(),
            answer_inbox: Vec::new(),
            current,
            replay: Vec::new(),
            record: Record::new(now),
            requests: 0,
            stopping: false,
            since: now,
        }
    }

    /// What to do next, in order. Drain after each call of a `handle_*`.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Whether bytes of the client are of use now; if not, it should not be read.
    #[must_use]
    pub fn wants_client(&self) -> bool {
        match self.phase {
            Phase::Idle | Phase::Head | Phase::Closing => true,
            Phase::Connecting if !self.current.body.is_done() => self.replay.len() < REPLAY_WINDOW,
            Phase::Active if !self.current.body.is_done() => true,
            Phase::Connecting | Phase::Active => self.pending() < PIPELINE_WINDOW,
        }
    }

    /// Whether a further request waits: call [`Self::proceed`] when the commands are done.
    #[must_use]
    pub fn wants_proceed(&self) -> bool {
        self.phase == Phase::Idle && self.pending() > 0
    }

    /// Whether no request is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// Whether so much of the answer's body is still to come that large reads pay.
    #[must_use]
    pub fn answers_in_bulk(&self) -> bool {
        matches!(self.current.answer, Answer::HeadSent { .. })
            && is_bulk(&self.current.answer_body, self.record.body_bytes)
    }

    /// The same of the request's body.
    #[must_use]
    pub fn awaits_bulk(&self) -> bool {
        self.awaits_body() && is_bulk(&self.current.body, 0)
    }

    /// The client's address, once it is known.
    pub fn set_client(&mut self, client: IpAddr) {
        self.client.address = client.to_canonical().to_string();
    }

    /// Whether the request's body is still coming.
    #[must_use]
    pub fn awaits_body(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Active) && !self.current.body.is_done()
    }

    /// The last request that ended.
    #[must_use]
    pub const fn record(&self) -> &Record {
        &self.record
    }

    /// New settings, from the next request on.
    pub fn renew(&mut self, settings: &Arc<Settings>) {
        if self.phase == Phase::Idle && !Arc::ptr_eq(settings, &self.settings) {
            self.settings = Arc::clone(settings);
        }
    }

    fn pending(&self) -> usize {
        self.inbox.len() - self.inbox_at
    }

    fn forwarded<'a>(client: &'a ClientText, settings: &'a Settings) -> Forwarded<'a> {
        Forwarded {
            client: client.address.as_bytes(),
            proto: b"http",
            port: client.port.as_bytes(),
            trusted: settings.trusted,
            default_host: b"localhost",
        }
    }

    /// The next candidate, or the refusal when none is left.
    fn choose(&mut self, now: Instant, wire: &mut impl Wire) {
        let choice = if self.current.attempts < ATTEMPTS_MAX {
            let pool = &self.settings.upstreams[usize::from(self.current.upstream)].pool;
            pool.next(now, &mut self.current.selection)
        } else {
            None
        };
        match choice {
            Some(choice) => self.connect(now, choice, self.current.attempts > 0),
            None => self.refuse(now, self.current.last_failure, wire),
        }
    }

    fn connect(&mut self, now: Instant, choice: Choice, fresh: bool) {
        self.phase = Phase::Connecting;
        self.since = now;
        self.current.attempts += 1;
        self.current.server = Some(choice.server);
        self.current.answer = Answer::Awaited;
        self.record.attempts = self.current.attempts;
        self.record.server = Some(choice.address);
        self.answer_parser.reset();
        self.answer_inbox.clear();
        let (upstream, server) = (self.current.upstream, choice.server);
        self.commands.push_back(Command::Connect {
            upstream,
            server,
            address: choice.address,
            fresh,
        });
    }

    /// Tells the pool what became of the server in use; it is no longer in use.
    fn report(&mut self, now: Instant, outcome: Outcome) {
        if let Some(server) = self.current.server.take() {
            let upstream = self.current.upstream;
            let pool = &self.settings.upstreams[usize::from(upstream)].pool;
            if let Some(change) = pool.report(now, server, outcome) {
                self.record.change = Some((upstream, server, change));
            }
        }
    }

    /// An attempt has failed: again, by the rules of `balance::retry`, or the client is told.
    fn failed(&mut self, now: Instant, attempt: Attempt, reason: Reason, wire: &mut impl Wire) {
        let facts = retry::Facts {
            idempotent: self.current.method.is_idempotent(),
            replayable: self.current.replayable,
            repeated: self.current.repeated,
        };
        let idle_was_dead =
            matches!(attempt, Attempt::Died { reused: true, answer_begun: false, .. });
        let server = self.current.server;
        self.report(now, if idle_was_dead { Outcome::Neutral } else { Outcome::Failed });
        self.current.last_failure = reason;
        let verdict = retry::verdict(attempt, facts);
        if verdict != Retry::No && matches!(attempt, Attempt::Died { .. }) {
            self.current.repeated = true;
        }
        match verdict {
            Retry::No => self.refuse(now, reason, wire),
            Retry::Another => self.choose(now, wire),
            Retry::Fresh => self.choose_fresh(now, server, wire),
        }
    }

    /// After a dead idle connection: the session's own server again, else the next candidate, and
    /// if there is no other, the same.
    fn choose_fresh(&mut self, now: Instant, server: Option<u16>, wire: &mut impl Wire) {
        let pool = &self.settings.upstreams[usize::from(self.current.upstream)].pool;
        let own = server.filter(|_| self.current.selection.preferred() == server);
        let choice = own
            .and_then(|server| pool.again(server))
            .or_else(|| pool.next(now, &mut self.current.selection))
            .or_else(|| server.and_then(|server| pool.again(server)));
        match choice {
            Some(choice) => self.connect(now, choice, true),
            None => self.refuse(now, self.current.last_failure, wire),
        }
    }

    /// Answers for the server, if the head has not gone; else cuts the answer off.
    fn refuse(&mut self, now: Instant, reason: Reason, wire: &mut impl Wire) {
        if matches!(self.current.answer, Answer::HeadSent { .. }) {
            self.cut(now, reason);
            return;
        }
        // Keep the connection when the next request's first byte is known: the fault was not the
        // client's framing, and its body has been read.
        let keep = matches!(reason.status(), 404 | 502 | 503 | 504)
            && self.current.keep_alive
            && self.current.body.is_done()
            && !self.stopping;
        let connection = page::connection(keep, self.current.version);
        let head_only = self.current.method == Method::Head;
        self.record.body_bytes = page::write(wire.client(), reason, head_only, connection);
        self.record.status = reason.status();
        self.record.reason = Some(reason);
        self.end(now, keep, if keep { None } else { Some(CloseHow::Linger) });
    }

    /// The answer cannot be completed and its head has gone: only the cut tells the client.
    fn cut(&mut self, now: Instant, reason: Reason) {
        self.record.reason = Some(reason);
        self.end(now, false, Some(CloseHow::Cut));
    }

    /// The request has ended.
    fn end(&mut self, now: Instant, keep: bool, close: Option<CloseHow>) {
        self.record.ended = now;
        self.commands.push_back(Command::Done);
        let stops = keep && self.stopping;
        if let Some(how) = close.or_else(|| stops.then_some(CloseHow::Flush)) {
            self.commands.push_back(Command::CloseClient(how));
        }
        self.phase = if keep && !stops { Phase::Idle } else { Phase::Closing };
        self.since = now;
        self.parser.reset();
        self.answer_parser.reset();
        self.answer_inbox.clear();
        self.replay.clear();
        // What an idle connection holds does not grow with what it once carried.
        self.replay.shrink_to(4096);
        self.answer_inbox.shrink_to(4096);
        if self.phase == Phase::Closing {
            self.inbox = Vec::new();
            self.inbox_at = 0;
        }
    }

    fn drop_upstream(&mut self, now: Instant, outcome: Outcome) {
        if self.current.server.is_some() {
            self.report(now, outcome);
            self.commands.push_back(Command::CloseUpstream);
        }
    }

    /// The engine stops: no further request on this connection. One that has just come may have its
    /// first request on the way.
    pub fn handle_stop(&mut self, now: Instant) {
        self.stopping = true;
        if self.phase == Phase::Idle && self.requests > 0 {
            self.phase = Phase::Closing;
            self.since = now;
            self.commands.push_back(Command::CloseClient(CloseHow::Flush));
        }
    }
}

/// Of a body without a length only what has come says how long it may be.
fn is_bulk(body: &BodyReader, so_far: u64) -> bool {
    body.remaining().unwrap_or(so_far) > BULK_MIN
}
