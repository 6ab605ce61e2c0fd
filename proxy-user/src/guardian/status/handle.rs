//! Where the guardian's threads leave what they know.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;

use super::fact::{Bytes, Moment, Pid, Since, Tell as _, Value};
use super::facts::{
    AdvertFacts, Alarm, Build, Cache, DiskFacts, Ears, EngineFacts, EventFacts, Health, Io, Path,
    Peer, PeerFacts, Refused, RoleFacts, Root, SegmentFacts, Server, StoreFacts, Upstream, Vip,
    WitnessFacts, Xdp, XdpInterface,
};
use crate::config::{self, Config, XdpMode};
use crate::control::keeper::Lives;
use crate::control::message::{BackendEvent, Hello, SyncEvent};
use crate::control::role::State;
use crate::control::shared::{SharedPage, monotonic_ns};
use crate::guardian::steering::{AttachReport, Counters};

/// Longest text of an event, characters.
const EVENT_CHARACTERS_MAX: usize = 300;
/// Most events kept.
pub(super) const EVENTS_MAX: usize = 20;

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

/// Shared by all threads of the guardian; cheap to clone. No setter ever waits for a reader, so the
/// role thread may call them between two beats.
#[derive(Clone)]
pub struct StatusHandle(Arc<Inner>);

impl fmt::Debug for StatusHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusHandle")
            .field("node", &self.0.root.build.node)
            .finish_non_exhaustive()
    }
}

struct Inner {
    page: SharedPage,
    root: Root,
}

/// One writer's change of a group; another writer's at the same time is not lost.
fn change<T: Clone>(group: &ArcSwap<T>, how: impl Fn(&mut T)) {
    group.rcu(|old| {
        let mut new = T::clone(old);
        how(&mut new);
        new
    });
}

impl StatusHandle {
    /// A node as configured, in BOOT, without an engine.
    #[must_use]
    pub fn new(config: &Config, page: SharedPage) -> Self {
        let pair = config.node.pair.as_ref();
        let started = Since(monotonic_ns());
        let role = RoleFacts { since_unix_ms: unix_ms(), for_ms: started, ..RoleFacts::default() };
        let path = |address: &SocketAddr| Path { address: address.to_string(), ..Path::default() };
        let root = Root {
            build: Build {
                node: config.node.name.clone(),
                cluster: pair.map(|pair| pair.cluster.clone()),
                side: pair.map(|pair| pair.side.as_str()),
                ..Build::default()
            },
            uptime_ms: started,
            role: ArcSwap::from_pointee(role),
            vips: config.vips.iter().map(Vip::new).collect(),
            xdp: Xdp { wanted: mode_name(config.xdp), ..Xdp::default() },
            peer: Peer {
                configured: pair.is_some(),
                paths: pair.iter().flat_map(|pair| &pair.peers).map(path).collect(),
                ..Peer::default()
            },
            backends: config.upstreams.iter().map(Upstream::new).collect(),
            cache: config
                .cache
                .as_ref()
                .map(|cache| Cache { memory: Bytes(cache.memory), ..Cache::default() }),
            ..Root::default()
        };
        Self(Arc::new(Inner { page, root }))
    }

    /// The page that it reads.
    #[must_use]
    pub fn page(&self) -> SharedPage {
        self.0.page
    }

    fn moment(&self) -> Moment<'_> {
        Moment { now_ns: monotonic_ns(), unix_ms: unix_ms(), page: self.0.page, root: &self.0.root }
    }

    /// This moment.
    pub(super) fn read(&self) -> Value {
        self.0.root.tell(&self.moment())
    }

    /// This moment, as `/status.json` has it.
    ///
    /// # Errors
    /// A value has no form in JSON.
    pub fn json(&self) -> serde_json::Result<serde_json::Value> {
        serde_json::to_value(self.read())
    }

    /// Whether clients are served.
    #[must_use]
    pub fn health(&self) -> Health {
        Health::of(&self.moment())
    }

    /// Role thread: the state was entered (after the role word was written). `cause` is
    /// `node::Cause::as_str`.
    pub fn role_changed(&self, state: State, cause: &'static str) {
        let (now, since_unix_ms) = (monotonic_ns(), unix_ms());
        change(&self.0.root.role, |role| {
            role.unprotected_ns = role.unprotected_until(self.0.root.peer.configured, now);
            role.state = state;
            role.for_ms = Since(now);
            role.since_unix_ms = since_unix_ms;
            role.cause = cause;
            role.changes += 1;
        });
    }

    /// Any thread: an operator must look at this, or need not any more. Says whether that is new.
    pub fn alarm(&self, cause: &'static str, on: bool) -> bool {
        let is_on = self.0.root.alarms.load().iter().any(|alarm| alarm.cause == cause);
        if is_on == on {
            return false;
        }
        let (now, since_unix_ms) = (Since(monotonic_ns()), unix_ms());
        change(&self.0.root.alarms, |alarms| {
            alarms.retain(|alarm| alarm.cause != cause);
            if on {
                alarms.push(Alarm { cause, since_unix_ms, for_ms: now, on });
            }
        });
        true
    }

    /// Role thread: this node answers for the addresses, or does not.
    pub fn answering(&self, on: bool) {
        for vip in &self.0.root.vips {
            vip.answering.store(on, Ordering::Relaxed);
        }
    }

    /// Role thread: an interface gained or lost carrier; `vip` is the index in the configuration.
    pub fn carrier(&self, vip: usize, up: bool) {
        if let Some(vip) = self.0.root.vips.get(vip) {
            vip.carrier.0.store(1 + u8::from(up), Ordering::Relaxed);
        }
    }

    /// Role thread: what is known of the segment of an address.
    pub fn segment(&self, vip: usize, facts: SegmentFacts) {
        if let Some(vip) = self.0.root.vips.get(vip) {
            vip.segment.store(Arc::new(facts));
        }
    }

    /// Role thread, now and then: what a virtual router counted.
    pub fn adverts(&self, vip: usize, counters: &vrrp::Counters) {
        if let Some(vip) = self.0.root.vips.get(vip) {
            vip.adverts.store(Arc::new(AdvertFacts {
                vrid: vip.vrid,
                sent: counters.sent,
                received: counters.received,
                refused: Refused(counters.refused),
            }));
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
        self.0.root.xdp.interfaces.store(Arc::new(reports.iter().map(interface).collect()));
    }

    /// Role thread: no program runs, and why.
    pub fn no_xdp(&self, reason: &str) {
        let mut names: Vec<_> = self.0.root.vips.iter().map(|vip| &vip.interface).collect();
        names.sort();
        names.dedup();
        let interface = |name: &String| XdpInterface {
            interface: name.clone(),
            mode: "off".to_owned(),
            reason: reason.to_owned(),
            warnings: Vec::new(),
        };
        self.0.root.xdp.interfaces.store(Arc::new(names.into_iter().map(interface).collect()));
    }

    /// Role thread, now and then: what the program counted.
    pub fn frames(&self, counters: Counters) {
        self.0.root.xdp.frames.store(Arc::new(counters));
    }

    /// Role thread: a beat came by this path (index in the configuration's peers). Two stores.
    pub fn path_heard(&self, path: usize, rtt: Option<Duration>) {
        let Some(path) = self.0.root.peer.paths.get(path) else { return };
        path.last_beat_ms_ago.0.store(monotonic_ns(), Ordering::Relaxed);
        if let Some(rtt) = rtt {
            let ns = u64::try_from(rtt.as_nanos()).unwrap_or(u64::MAX);
            path.rtt_us.0.store(ns.max(1), Ordering::Relaxed);
        }
    }

    /// Role thread, at a change and now and then: what both sides hear on this path.
    pub fn path(&self, path: usize, ears: Ears) {
        if let Some(path) = self.0.root.peer.paths.get(path) {
            path.ears.store(Arc::new(ears));
        }
    }

    /// Role thread: what the peer link knows.
    pub fn peer(&self, facts: PeerFacts) {
        self.0.root.peer.link.store(Arc::new(facts));
    }

    /// Role thread: what the witness said last.
    pub fn witness(&self, facts: WitnessFacts) {
        self.0.root.witness.store(Arc::new(facts));
    }

    /// Role thread: how the state file is.
    pub fn disk(&self, facts: DiskFacts) {
        self.0.root.disk.store(Arc::new(facts));
    }

    /// Role thread: the engine said this of the streams.
    pub fn sync_event(&self, event: &SyncEvent) {
        let counter: &AtomicU64 = match event {
            SyncEvent::Received { .. } => &self.0.root.sync.full_syncs,
            SyncEvent::AckLate { .. } => &self.0.root.sync.acks_late,
            _ => return,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Main thread, at its start: the guardians before this one.
    pub fn lives(&self, lives: &Lives) {
        self.0.root.guardian_restarts.store(lives.before.into(), Ordering::Relaxed);
        if let Some(ended) = &lives.ended {
            self.event(&format!("the guardian before this one ended: {ended}"));
        }
    }

    /// Main thread: an engine process was started.
    pub fn engine_started(&self, pid: u32) {
        self.change_engine(|engine| {
            engine.state = "starting";
            engine.pid = Some(Pid(pid));
            engine.restarts = engine.starts;
            engine.starts += 1;
        });
    }

    /// Main thread: it serves.
    pub fn engine_serving(&self, hello: &Hello) {
        let (backend, reason) = hello.io.split_once(' ').unwrap_or((&hello.io, ""));
        let reason = reason.trim_start_matches('(').trim_end_matches(')');
        let now = monotonic_ns();
        self.change_engine(|engine| {
            engine.state = "serving";
            engine.serving_ms = Some(Since(now));
            engine.io = Io { backend: backend.to_owned(), reason: reason.to_owned() };
            engine.store = hello.store.as_ref().map(StoreFacts::from);
        });
    }

    /// Main thread: no thread of it runs any more; `how` in words.
    pub fn engine_ended(&self, how: &str) {
        for server in self.0.root.backends.iter().flat_map(|upstream| &upstream.servers) {
            change(server, |server| server.set_removed(false));
        }
        self.change_engine(|engine| {
            engine.state = "down";
            engine.pid = None;
            engine.serving_ms = None;
            engine.last_end = Some(how.to_owned());
        });
    }

    fn change_engine(&self, how: impl Fn(&mut EngineFacts)) {
        change(&self.0.root.engine.process, how);
    }

    /// Main thread: the engine has taken a server out or back in.
    pub fn passive(&self, event: BackendEvent) {
        if let Some(server) = self.server(event.upstream, event.server) {
            change(server, |server| server.set_removed(event.out));
        }
    }

    /// Health checks: one was done; `up` and `fails` as the rules say after it.
    pub fn checked(&self, upstream: u16, server: u16, check: Check, up: bool, fails: u32) {
        let Some(server) = self.server(upstream, server) else { return };
        change(server, |server| {
            server.checked_up = up;
            server.fails = fails;
            match check {
                Check::Passed if up => server.check = String::new(),
                Check::Passed => {}
                Check::TimedOut => "check: timed out".clone_into(&mut server.check),
                Check::Failed(error) => {
                    server.check = format!("check: {}", std::io::Error::from_raw_os_error(error));
                }
            }
            server.judge();
        });
    }

    fn server(&self, upstream: u16, server: u16) -> Option<&ArcSwap<Server>> {
        self.0.root.backends.get(usize::from(upstream))?.servers.get(usize::from(server))
    }

    /// Any thread: something worth a line on the page; the newest [`EVENTS_MAX`] are kept.
    pub fn event(&self, text: &str) {
        let text: String = text.chars().take(EVENT_CHARACTERS_MAX).collect();
        let event = EventFacts { time_unix_ms: unix_ms(), text };
        change(&self.0.root.events, |events| {
            events.truncate(EVENTS_MAX - 1);
            events.insert(0, event.clone());
        });
    }

    /// Main thread: the node is stopping.
    pub fn stopping(&self) {
        self.0.root.stopping.store(true, Ordering::Relaxed);
    }
}

impl Vip {
    fn new(config: &config::Vip) -> Self {
        Self {
            address: config.address.to_string(),
            prefix: config.prefix,
            interface: config.interface.clone(),
            vrid: config.vrid,
            adverts: ArcSwap::from_pointee(AdvertFacts {
                vrid: config.vrid,
                ..AdvertFacts::default()
            }),
            ..Self::default()
        }
    }
}

impl Upstream {
    fn new(config: &config::Upstream) -> Self {
        let server = |server: &config::Server| Server {
            address: server.address.to_string(),
            weight: server.weight,
            route: server.route.clone(),
            checked: config.health.is_some(),
            ..Server::default()
        };
        let servers = config.servers.iter().map(server).map(ArcSwap::from_pointee);
        Self { upstream: config.name.clone(), servers: servers.collect() }
    }
}

impl Server {
    fn set_removed(&mut self, removed: bool) {
        self.removed = removed;
        self.judge();
    }

    /// What the parts come to.
    fn judge(&mut self) {
        self.up = self.checked_up && !self.removed;
        self.reason = match (self.check.as_str(), self.removed) {
            ("", true) => "requests failed".to_owned(),
            (check, _) => check.to_owned(),
        };
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
