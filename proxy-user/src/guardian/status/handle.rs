//! Where the guardian's threads leave what they know, and how a [`Status`] is made of it.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use super::{
    CacheStatus, EVENTS_MAX, EngineStatus, EventStatus, Health, HttpStatus, Io, PathStatus,
    PeerStatus, RoleStatus, ServerStatus, Status, SyncStatus, UpstreamStatus, VipStatus,
    WorkerStatus, XdpInterface, XdpStatus,
};
use crate::config::{self, Config, XdpMode};
use crate::control::counters::Counter;
use crate::control::message::{BackendEvent, Hello, StoreReport, SyncEvent};
use crate::control::role::State;
use crate::control::shared::{Liveness, Seat, SharedPage, monotonic_ns};
use crate::guardian::steering::{AttachReport, Counters};
use crate::http::Reason;

/// Longest text of an event, characters.
const EVENT_CHARACTERS_MAX: usize = 300;

/// What a peer link knows; the role thread hands over a new one when it has changed, and now and
/// then for the counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerFacts {
    /// Whether a control connection is open.
    pub connected: bool,
    /// The peer's node name, once known.
    pub name: Option<String>,
    /// Version of its program, once known.
    pub version: Option<String>,
    /// State of its last beat; `None` while it is not heard.
    pub state: Option<State>,
    /// Epoch of its last beat.
    pub epoch: Option<u16>,
    /// Beats sent, on all paths.
    pub beats_sent: u64,
    /// Beats received, on all paths.
    pub beats_received: u64,
    /// Handshakes refused.
    pub refused: u64,
    /// Why the last one was.
    pub refused_reason: Option<String>,
    /// Datagrams that belong to no session.
    pub datagrams_refused: u64,
}

/// Outcome of one active check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// The server took the connection.
    Passed,
    /// It did not in time.
    TimedOut,
    /// The kernel's error number.
    Failed(i32),
}

/// Shared by all threads of the guardian; cheap to clone. One thread writes each part: the role
/// thread role, addresses, peer and sync; the main thread the engine and passive health; the health
/// checks theirs.
#[derive(Clone)]
pub struct StatusHandle(Arc<Inner>);

impl fmt::Debug for StatusHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusHandle").field("node", &self.0.node).finish_non_exhaustive()
    }
}

struct Inner {
    page: SharedPage,
    started_ns: u64,
    node: String,
    pair: Option<(String, &'static str)>,
    xdp_wanted: &'static str,
    memory: Option<u64>,
    stopping: AtomicBool,
    role: ArcSwap<RoleFacts>,
    vips: Vec<Vip>,
    answering: AtomicBool,
    xdp: ArcSwap<Vec<XdpInterface>>,
    frames: ArcSwap<Counters>,
    paths: Vec<Path>,
    peer: ArcSwap<PeerFacts>,
    full_syncs: AtomicU64,
    acks_late: AtomicU64,
    engine: ArcSwap<EngineFacts>,
    upstreams: Vec<Upstream>,
    events: ArcSwap<Vec<Arc<EventStatus>>>,
}

#[derive(Debug, Clone)]
struct RoleFacts {
    state: State,
    since_ns: u64,
    since_unix_ms: u64,
    cause: &'static str,
    changes: u64,
    /// Before `since_ns`.
    unprotected_ns: u64,
}

struct Vip {
    config: config::Vip,
    /// 0 unknown, 1 down, 2 up.
    carrier: AtomicU32,
}

struct Path {
    address: SocketAddr,
    /// 0 before the first.
    heard_ns: AtomicU64,
    rtt_ns: AtomicU64,
}

#[derive(Debug, Clone, Default)]
struct EngineFacts {
    state: &'static str,
    pid: Option<u32>,
    starts: u64,
    last_end: Option<String>,
    serving_ns: Option<u64>,
    io: Io,
    store: Option<StoreReport>,
}

struct Upstream {
    name: String,
    servers: Vec<Server>,
}

struct Server {
    address: SocketAddr,
    weight: u16,
    route: Option<String>,
    checked: bool,
    up: AtomicBool,
    removed: AtomicBool,
    fails: AtomicU32,
    /// Error number of the last failed check; [`NO_ERROR`] or [`TIMED_OUT`].
    error: AtomicI32,
}

const NO_ERROR: i32 = 0;
const TIMED_OUT: i32 = -1;

impl StatusHandle {
    /// A node as configured, in BOOT, without an engine.
    #[must_use]
    pub fn new(config: &Config, page: SharedPage) -> Self {
        let pair = config.node.pair.as_ref();
        let now = monotonic_ns();
        let path = |&address: &SocketAddr| Path {
            address,
            heard_ns: AtomicU64::new(0),
            rtt_ns: AtomicU64::new(0),
        };
        let vip = |vip: &config::Vip| Vip { config: vip.clone(), carrier: AtomicU32::new(0) };
        let role = RoleFacts {
            state: State::Boot,
            since_ns: now,
            since_unix_ms: unix_ms(),
            cause: "start",
            changes: 0,
            unprotected_ns: 0,
        };
        Self(Arc::new(Inner {
            page,
            started_ns: now,
            node: config.node.name.clone(),
            pair: pair.map(|pair| (pair.cluster.clone(), pair.side.as_str())),
            xdp_wanted: mode_name(config.xdp),
            memory: config.cache.as_ref().map(|cache| cache.memory),
            stopping: AtomicBool::new(false),
            role: ArcSwap::from_pointee(role),
            vips: config.vips.iter().map(vip).collect(),
            answering: AtomicBool::new(false),
            xdp: ArcSwap::default(),
            frames: ArcSwap::default(),
            paths: pair.map(|pair| pair.peers.iter().map(path).collect()).unwrap_or_default(),
            peer: ArcSwap::default(),
            full_syncs: AtomicU64::new(0),
            acks_late: AtomicU64::new(0),
            engine: ArcSwap::from_pointee(EngineFacts { state: "down", ..EngineFacts::default() }),
            upstreams: config.upstreams.iter().map(Upstream::new).collect(),
            events: ArcSwap::default(),
        }))
    }

    /// The page that it reads.
    #[must_use]
    pub fn page(&self) -> SharedPage {
        self.0.page
    }

    /// Role thread: the state was entered (after the role word was written). `cause` is
    /// `node::Cause::as_str`.
    pub fn role_changed(&self, state: State, cause: &'static str) {
        let now = monotonic_ns();
        let before = self.0.role.load();
        let unprotected_ns = before.unprotected_ns + before.unprotected_since(self.is_pair(), now);
        self.0.role.store(Arc::new(RoleFacts {
            state,
            since_ns: now,
            since_unix_ms: unix_ms(),
            cause,
            changes: before.changes + 1,
            unprotected_ns,
        }));
    }

    /// Role thread: this node answers for the addresses, or does not.
    pub fn answering(&self, on: bool) {
        self.0.answering.store(on, Ordering::Relaxed);
    }

    /// Role thread: an interface gained or lost carrier; `vip` is the index in the configuration.
    pub fn carrier(&self, vip: usize, up: bool) {
        if let Some(vip) = self.0.vips.get(vip) {
            vip.carrier.store(1 + u32::from(up), Ordering::Relaxed);
        }
    }

    /// Role thread: what each interface got. Without XDP: [`Self::no_xdp`].
    pub fn xdp(&self, reports: &[AttachReport]) {
        let interface = |report: &AttachReport| XdpInterface {
            interface: report.interface.clone(),
            mode: report.got.name().to_owned(),
            reason: report.reason.clone(),
            warnings: report.warnings.clone(),
        };
        self.0.xdp.store(Arc::new(reports.iter().map(interface).collect()));
    }

    /// Role thread: no program runs, and why.
    pub fn no_xdp(&self, reason: &str) {
        let mut names: Vec<_> = self.0.vips.iter().map(|vip| &vip.config.interface).collect();
        names.sort();
        names.dedup();
        let interface = |name: &String| XdpInterface {
            interface: name.clone(),
            mode: "off".to_owned(),
            reason: reason.to_owned(),
            warnings: Vec::new(),
        };
        self.0.xdp.store(Arc::new(names.into_iter().map(interface).collect()));
    }

    /// Role thread, about once a second: what the program counted.
    pub fn frames(&self, counters: Counters) {
        self.0.frames.store(Arc::new(counters));
    }

    /// Role thread: a beat came by this path (index in the configuration's peers). Two stores.
    pub fn path_heard(&self, path: usize, rtt: Option<Duration>) {
        let Some(path) = self.0.paths.get(path) else { return };
        path.heard_ns.store(monotonic_ns(), Ordering::Relaxed);
        if let Some(rtt) = rtt {
            let ns = u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX);
            path.rtt_ns.store(ns.max(1), Ordering::Relaxed);
        }
    }

    /// Role thread: what the peer link knows.
    pub fn peer(&self, facts: PeerFacts) {
        self.0.peer.store(Arc::new(facts));
    }

    /// Role thread: the engine said this of the streams.
    pub fn sync_event(&self, event: &SyncEvent) {
        let counter = match event {
            SyncEvent::Received { .. } => &self.0.full_syncs,
            SyncEvent::AckLate { .. } => &self.0.acks_late,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Main thread: an engine process was started.
    pub fn engine_started(&self, pid: u32) {
        self.change_engine(|engine| {
            *engine = EngineFacts {
                state: "starting",
                pid: Some(pid),
                starts: engine.starts + 1,
                ..std::mem::take(engine)
            };
        });
    }

    /// Main thread: it serves.
    pub fn engine_serving(&self, hello: &Hello) {
        let (backend, reason) = hello.io.split_once(' ').unwrap_or((&hello.io, ""));
        let reason = reason.trim_start_matches('(').trim_end_matches(')');
        let io = Io { backend: backend.to_owned(), reason: reason.to_owned() };
        self.change_engine(|engine| {
            engine.state = "serving";
            engine.serving_ns = Some(monotonic_ns());
            engine.io = io;
            engine.store = hello.store.clone();
        });
    }

    /// Main thread: no thread of it runs any more; `how` in words.
    pub fn engine_ended(&self, how: &str) {
        for server in self.0.upstreams.iter().flat_map(|upstream| &upstream.servers) {
            server.removed.store(false, Ordering::Relaxed);
        }
        self.change_engine(|engine| {
            engine.state = "down";
            engine.pid = None;
            engine.serving_ns = None;
            engine.last_end = Some(how.to_owned());
        });
    }

    fn change_engine(&self, change: impl FnOnce(&mut EngineFacts)) {
        let mut facts = EngineFacts::clone(&self.0.engine.load());
        change(&mut facts);
        self.0.engine.store(Arc::new(facts));
    }

    /// Main thread: the engine has taken a server out or back in.
    pub fn passive(&self, event: BackendEvent) {
        if let Some(server) = self.server(event.upstream, event.server) {
            server.removed.store(event.out, Ordering::Relaxed);
        }
    }

    /// Health checks: one was done; `up` and `fails` as the rules say after it.
    pub fn checked(&self, upstream: u16, server: u16, check: Check, up: bool, fails: u32) {
        let Some(server) = self.server(upstream, server) else { return };
        server.up.store(up, Ordering::Relaxed);
        server.fails.store(fails, Ordering::Relaxed);
        match check {
            Check::Passed if up => server.error.store(NO_ERROR, Ordering::Relaxed),
            Check::Passed => {}
            Check::TimedOut => server.error.store(TIMED_OUT, Ordering::Relaxed),
            Check::Failed(error) => server.error.store(error, Ordering::Relaxed),
        }
    }

    fn server(&self, upstream: u16, server: u16) -> Option<&Server> {
        self.0.upstreams.get(usize::from(upstream))?.servers.get(usize::from(server))
    }

    /// Any thread: something worth a line on the page; the newest [`EVENTS_MAX`] are kept.
    pub fn event(&self, text: &str) {
        let text = text.chars().take(EVENT_CHARACTERS_MAX).collect();
        let event = Arc::new(EventStatus { time_unix_ms: unix_ms(), text });
        self.0.events.rcu(|events| {
            let older = events.iter().take(EVENTS_MAX - 1).cloned();
            std::iter::once(Arc::clone(&event)).chain(older).collect::<Vec<_>>()
        });
    }

    /// Main thread: the node is stopping.
    pub fn stopping(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    fn is_pair(&self) -> bool {
        self.0.pair.is_some()
    }
}

/// Reading; for the admin server.
impl StatusHandle {
    /// This moment.
    #[must_use]
    pub fn read(&self) -> Status {
        let inner = &*self.0;
        let now = monotonic_ns();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            node: inner.node.clone(),
            cluster: inner.pair.as_ref().map(|(cluster, _)| cluster.clone()),
            side: inner.pair.as_ref().map(|(_, side)| *side),
            time_unix_ms: unix_ms(),
            uptime_ms: now.saturating_sub(inner.started_ns) / 1_000_000,
            health: self.health(),
            role: self.role(now),
            vips: self.vips(),
            xdp: XdpStatus {
                wanted: inner.xdp_wanted,
                interfaces: Vec::clone(&inner.xdp.load()),
                frames: frames(&inner.frames.load()),
            },
            peer: self.peer_status(now),
            sync: self.sync(now),
            engine: self.engine(now),
            backends: inner.upstreams.iter().map(Upstream::status).collect(),
            cache: inner.memory.map(|memory| self.cache(memory)),
            http: self.http(),
            events: inner.events.load().iter().map(|event| EventStatus::clone(event)).collect(),
        }
    }

    /// Whether clients are served.
    #[must_use]
    pub fn health(&self) -> Health {
        let state = self.0.page.role().state;
        if self.0.stopping.load(Ordering::Relaxed) {
            Health::Stopping
        } else if self.0.engine.load().state != "serving" || self.0.page.engine_is_gone() {
            Health::EngineDown
        } else if state == State::Boot {
            Health::Boot
        } else if state == State::Fenced {
            Health::Fenced
        } else {
            Health::Serving
        }
    }

    fn role(&self, now: u64) -> RoleStatus {
        let facts = self.0.role.load();
        let role = self.0.page.role();
        RoleStatus {
            state: role.state.as_str(),
            epoch: role.epoch,
            since_unix_ms: facts.since_unix_ms,
            for_ms: now.saturating_sub(facts.since_ns) / 1_000_000,
            cause: facts.cause,
            changes: facts.changes,
        }
    }

    fn vips(&self) -> Vec<VipStatus> {
        let answering = self.0.answering.load(Ordering::Relaxed);
        let status = |vip: &Vip| VipStatus {
            address: vip.config.address,
            prefix: vip.config.prefix,
            interface: vip.config.interface.clone(),
            vrid: vip.config.vrid,
            answering,
            carrier: match vip.carrier.load(Ordering::Relaxed) {
                0 => None,
                carrier => Some(carrier == 2),
            },
        };
        self.0.vips.iter().map(status).collect()
    }

    fn peer_status(&self, now: u64) -> PeerStatus {
        let facts = PeerFacts::clone(&self.0.peer.load());
        let known = |ns: u64| (ns != 0).then_some(ns);
        let path = |path: &Path| PathStatus {
            address: path.address,
            last_beat_ms_ago: known(path.heard_ns.load(Ordering::Relaxed))
                .map(|heard| milliseconds(now.saturating_sub(heard))),
            rtt_us: known(path.rtt_ns.load(Ordering::Relaxed)).map(|rtt| rtt / 1000),
        };
        PeerStatus {
            configured: self.is_pair(),
            connected: facts.connected,
            name: facts.name,
            version: facts.version,
            state: facts.state.map(State::as_str),
            epoch: facts.epoch,
            paths: self.0.paths.iter().map(path).collect(),
            beats_sent: facts.beats_sent,
            beats_received: facts.beats_received,
            refused: facts.refused,
            refused_reason: facts.refused_reason,
            datagrams_refused: facts.datagrams_refused,
        }
    }

    fn sync(&self, now: u64) -> SyncStatus {
        let page = self.0.page;
        let facts = self.0.role.load();
        let unprotected = facts.unprotected_ns + facts.unprotected_since(self.is_pair(), now);
        let state = match page.role().state {
            _ if !self.is_pair() => "single",
            State::Master | State::Synced => "in_sync",
            State::MasterSolo => "alone",
            State::Join => "joining",
            State::Catchup => "catching_up",
            _ => "none",
        };
        SyncStatus {
            state,
            lag_records: page.sum(Counter::ReplicationLagRecords),
            lag_bytes: page.sum(Counter::ReplicationLagBytes),
            full_syncs: self.0.full_syncs.load(Ordering::Relaxed),
            acks_late: self.0.acks_late.load(Ordering::Relaxed),
            held_answers: page.sum(Counter::AnswersHeld),
            oldest_held_ms: page.held_since().map(|at| milliseconds(now.saturating_sub(at))),
            unprotected_seconds: Duration::from_nanos(unprotected).as_secs_f64(),
            unprotected_writes: page.sum(Counter::AnswersUnprotected),
        }
    }

    fn engine(&self, now: u64) -> EngineStatus {
        let facts = EngineFacts::clone(&self.0.engine.load());
        let page = self.0.page;
        let count = u16::try_from(page.workers()).unwrap_or(u16::MAX);
        let worker = |index| {
            let worker = page.worker(index)?;
            let turn = worker.turn();
            Some(WorkerStatus {
                alive: matches!(page.liveness(Seat::Worker(index)), Liveness::Alive(_)),
                loops: turn / 2,
                idle: turn % 2 == 1,
                connections: worker.get(Counter::Connections),
            })
        };
        EngineStatus {
            state: facts.state,
            pid: facts.pid,
            restarts: facts.starts.saturating_sub(1),
            last_end: facts.last_end,
            serving_ms: facts.serving_ns.map(|since| now.saturating_sub(since) / 1_000_000),
            io: facts.io,
            store: facts.store,
            workers: (0..count).filter_map(worker).collect(),
            accepted: page.sum(Counter::Accepted),
            connections: page.sum(Counter::Connections),
            connections_refused: page.sum(Counter::ConnectionsRefused),
        }
    }

    fn cache(&self, memory: u64) -> CacheStatus {
        let of = |counter| self.0.page.sum(counter);
        let (gets, hits) = (of(Counter::CacheGets), of(Counter::CacheHits));
        CacheStatus {
            items: of(Counter::CacheItems),
            bytes: of(Counter::CacheBytes),
            memory,
            commands: of(Counter::CacheCommands),
            gets,
            hits,
            misses: gets.saturating_sub(hits),
            sets: of(Counter::CacheSets),
            evictions: of(Counter::CacheEvictions),
            expired: of(Counter::CacheExpired),
            protocol_errors: of(Counter::CacheProtocolErrors),
            forwarded_out: of(Counter::ForwardedOut),
            forwarded_in: of(Counter::ForwardedIn),
        }
    }

    fn http(&self) -> HttpStatus {
        let page = self.0.page;
        let of = |counter| page.sum(counter);
        let replies = [
            ("2xx", of(Counter::HttpReplies2xx)),
            ("3xx", of(Counter::HttpReplies3xx)),
            ("4xx", of(Counter::HttpReplies4xx)),
            ("5xx", of(Counter::HttpReplies5xx)),
        ];
        let refusals = Reason::ALL.iter().map(|&reason| (reason.code(), page.refusals(reason)));
        HttpStatus {
            requests: of(Counter::HttpRequests),
            replies: BTreeMap::from(replies),
            refused: of(Counter::HttpRefused),
            refusals: refusals.filter(|&(_, count)| count > 0).collect(),
            retries: of(Counter::HttpRetries),
            upstream_connects: of(Counter::UpstreamConnects),
            upstream_failures: of(Counter::UpstreamFailures),
        }
    }
}

impl RoleFacts {
    /// Unprotected time in the present state, nanoseconds: a pair's node in MASTER_SOLO.
    fn unprotected_since(&self, pair: bool, now: u64) -> u64 {
        let unprotected = pair && self.state == State::MasterSolo;
        if unprotected { now.saturating_sub(self.since_ns) } else { 0 }
    }
}

impl Upstream {
    fn new(config: &config::Upstream) -> Self {
        let server = |server: &config::Server| Server {
            address: server.address,
            weight: server.weight,
            route: server.route.clone(),
            checked: config.health.is_some(),
            up: AtomicBool::new(true),
            removed: AtomicBool::new(false),
            fails: AtomicU32::new(0),
            error: AtomicI32::new(NO_ERROR),
        };
        Self { name: config.name.clone(), servers: config.servers.iter().map(server).collect() }
    }

    fn status(&self) -> UpstreamStatus {
        let servers = self.servers.iter().map(Server::status).collect();
        UpstreamStatus { upstream: self.name.clone(), servers }
    }
}

impl Server {
    fn status(&self) -> ServerStatus {
        let checked_up = self.up.load(Ordering::Relaxed);
        let removed = self.removed.load(Ordering::Relaxed);
        let reason = match self.error.load(Ordering::Relaxed) {
            NO_ERROR if removed => "requests failed".to_owned(),
            NO_ERROR => String::new(),
            TIMED_OUT => "check: timed out".to_owned(),
            error => format!("check: {}", io::Error::from_raw_os_error(error)),
        };
        ServerStatus {
            address: self.address,
            weight: self.weight,
            route: self.route.clone(),
            up: checked_up && !removed,
            checked: self.checked,
            fails: self.fails.load(Ordering::Relaxed),
            removed,
            reason,
        }
    }
}

fn frames(counters: &Counters) -> BTreeMap<&'static str, u64> {
    counters.iter().map(|(reason, count)| (reason.name(), count)).collect()
}

const fn mode_name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Auto => "auto",
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
        XdpMode::Off => "off",
    }
}

fn milliseconds(ns: u64) -> f64 {
    Duration::from_nanos(ns / 1000 * 1000).as_secs_f64() * 1e3
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
