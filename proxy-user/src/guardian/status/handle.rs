//! Where the guardian's threads leave what they know.

mod read;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use super::{EVENTS_MAX, EventStatus, Io, XdpInterface};
use crate::config::{self, Config, XdpMode};
use crate::control::message::{BackendEvent, Hello, StoreReport, SyncEvent};
use crate::control::role::State;
use crate::control::shared::{SharedPage, monotonic_ns};
use crate::guardian::steering::{AttachReport, Counters};

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
}

const fn mode_name(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Auto => "auto",
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
        XdpMode::Off => "off",
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
