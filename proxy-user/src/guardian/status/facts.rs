//! Every fact of a node, each declared once: see [`facts!`](super::fact::facts). A new one is one
//! declaration here, and the line of whoever sets it.
//!
//! A group that changes as a whole lives in an [`ArcSwap`]: its writer swaps in a new one. Single
//! values are atomics. Neither ever waits for a reader.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use vrrp::Refusal;

use super::fact::{
    Bytes, Derived, Last, Moment, Pid, Rtt, Since, Tell, Unit, Value, facts, milliseconds,
};
use crate::control::counters::Counter;
use crate::control::message::StoreReport;
use crate::control::role::State;
use crate::control::shared::{Liveness, Seat};
use crate::guardian::steering::Counters;
use crate::http::Reason;

facts! {
    /// A node.
    pub(super) struct Root {
        /// The program and its node.
        build: Build, flat(), info("build");
        /// When this was read: milliseconds since 1970.
        time_unix_ms: Derived = Derived(|at| at.unix_ms.tell(at));
        /// Time since the guardian started.
        uptime_ms: Since, gauge("uptime_seconds");
        /// Guardians started after the first, on the same memory.
        guardian_restarts: AtomicU64, total("guardian_restarts"), warn("guardian restarts");
        /// Whether clients are served: what /healthz says; the metric is 1 for `serving`.
        health: Derived = Derived(|at| Health::of(at).word().tell(at)), is("serving", "serving");
        /// The node is stopping.
        stopping: AtomicBool, hidden();
        /// The role, as the workers see it.
        role: ArcSwap<RoleFacts>, flat();
        /// What an operator must look at now.
        alarms: ArcSwap<Vec<Alarm>>, section("Alarms");
        /// The addresses that move between the nodes.
        vips: Vec<Vip>, section("Addresses");
        /// How they are answered for.
        xdp: Xdp, section("Frames");
        /// The other node.
        peer: Peer, section("Peer");
        /// Whether the two hold the same.
        sync: Sync, section("Sync");
        /// The third host that grants one side.
        witness: ArcSwap<WitnessFacts>, section("Witness");
        /// The state file.
        disk: ArcSwap<DiskFacts>, section("State file");
        /// The engine process.
        engine: Engine, section("Engine");
        /// The upstream servers, by upstream.
        backends: Vec<Upstream>;
        /// The cache; nothing where none is configured.
        cache: Option<Cache>, section("Cache");
        /// The balancer.
        http: Http, section("HTTP");
        /// What happened last, newest first.
        events: ArcSwap<Vec<EventFacts>>;
    }

    /// The program and its node.
    pub(super) struct Build {
        /// Version of this program.
        version: &'static str = env!("CARGO_PKG_VERSION"), label("version");
        /// This node's name.
        node: String, label("node");
        /// The pair's name; nothing on a single node.
        cluster: Option<String>, label("cluster");
        /// Side of the pair, `a` or `b`; nothing on a single node.
        side: Option<&'static str>, label("side");
    }

    /// The role. What is shown is the role word; the rest is left when it was written.
    #[derive(Clone)]
    pub(super) struct RoleFacts {
        /// BOOT, JOIN, CATCHUP, SYNCED, MASTER, MASTER_SOLO, HANDOVER or FENCED: 1 for the state.
        role: Derived = Derived(|at| at.page.role().state.tell(at)), states("role");
        /// Epoch of the reign, or of the one followed; 0 before the first.
        epoch: Derived = Derived(|at| at.page.role().epoch.tell(at)), gauge("epoch");
        /// When this state was entered: milliseconds since 1970.
        since_unix_ms: u64;
        /// Time since the state was entered.
        for_ms: Since, gauge("role_seconds");
        /// Why it was entered; `start` at first.
        cause: &'static str = "start";
        /// Changes of role since the guardian started.
        changes: u64, total("role_changes");
        /// The state told.
        state: State = State::Boot, hidden();
        /// Time alone before it, nanoseconds.
        unprotected_ns: u64, hidden();
    }

    /// What an operator must look at now.
    #[derive(Clone)]
    pub(super) struct Alarm {
        /// Its name.
        cause: &'static str, label("cause"), row("cause");
        /// Since when: milliseconds since 1970.
        since_unix_ms: u64;
        /// For how long.
        for_ms: Since, row("for");
        /// 1 while an operator must look at it.
        on: bool = true, hidden(), gauge("alarm");
    }

    /// An address that moves between the nodes.
    pub(super) struct Vip {
        /// The address.
        address: String, label("address"), row("address");
        /// Its network's prefix length.
        prefix: u8, row("prefix");
        /// The interface that it is reached by.
        interface: String, label("interface"), row("interface");
        /// VRRP's virtual router id.
        vrid: u8, row("VRID");
        /// 1 when this node answers for the address.
        answering: AtomicBool, gauge("vip_answering"), row("answering");
        /// Whether the interface has carrier; nothing while unknown.
        carrier: Carrier, must("carrier");
        /// What is known of the stations there.
        segment: ArcSwap<SegmentFacts>;
        /// VRRP's adverts.
        adverts: ArcSwap<AdvertFacts>;
    }

    /// What is known of an address's segment.
    #[derive(Clone, PartialEq, Eq)]
    pub struct SegmentFacts {
        /// Whether a third host there was heard lately; nothing while nobody asks.
        reached: Option<bool>, gauge("segment_reached"), must("segment reached");
        /// Whether there is a third host to ask: the gateway, a client of the last minute.
        askable: bool, gauge("segment_askable");
        /// Requests sent to hosts of the segment.
        probes: u64, total("segment_probes");
        /// Answers of hosts of the segment.
        answers: u64, total("segment_answers");
    }

    /// VRRP's adverts for one address.
    #[derive(Clone, PartialEq, Eq)]
    pub(super) struct AdvertFacts {
        /// The virtual router's id.
        vrid: u8, hidden(), label("vrid");
        /// Adverts sent.
        sent: u64, total("adverts_sent"), row("adverts sent");
        /// Adverts accepted.
        received: u64, total("adverts_received"), row("received");
        /// Adverts refused, by reason.
        refused: Refused, total("adverts_refused"), warn("refused");
    }

    /// How the addresses are answered for.
    pub(super) struct Xdp {
        /// What the configuration asks: `auto`, `native`, `generic` or `off`.
        wanted: &'static str, row("XDP wanted");
        /// How the addresses of an interface are answered for.
        interfaces: ArcSwap<Vec<XdpInterface>>, section("XDP"), info("xdp");
        /// Frames seen by the XDP program, by what it did.
        frames: ArcSwap<Counters>, total("xdp_frames"), row("seen");
    }

    /// One interface.
    #[derive(Clone)]
    pub(super) struct XdpInterface {
        /// Its name.
        interface: String, label("interface"), row("interface");
        /// `native`, `generic` or `off`.
        mode: String, label("mode"), row("mode");
        /// Why this one.
        reason: String, label("reason"), row("why");
        /// What will not work as it stands.
        warnings: Vec<String>, warn("warnings");
    }

    /// The other node.
    pub(super) struct Peer {
        /// Whether there is to be one.
        configured: bool;
        /// What the link to it knows.
        link: ArcSwap<PeerFacts>, flat();
        /// Its addresses, each a path to it.
        paths: Vec<Path>, section("Paths to the peer");
    }

    /// What a peer link knows; the role thread hands over a new one when it has changed, and now
    /// and then for the counts.
    #[derive(Clone, PartialEq, Eq)]
    pub struct PeerFacts {
        /// 1 when the peer's guardian is connected.
        connected: bool, gauge("peer_connected"), headline();
        /// Its node's name, once known.
        name: Option<String>, row("name");
        /// Version of its program, once known.
        version: Option<String>, row("version");
        /// 1 for the peer's state, as last heard; nothing while it is not heard.
        state: Option<State>, states("peer_role"), row("state");
        /// The peer's epoch, as last heard.
        epoch: Option<u16>, gauge("peer_epoch"), row("epoch");
        /// Beats sent, on all paths.
        beats_sent: u64, total("peer_beats_sent");
        /// Beats received, on all paths.
        beats_received: u64, total("peer_beats_received");
        /// Connections and datagrams refused on the peer's port, by reason.
        refused: ByReason, total("peer_refused"), row("refused");
        /// Why the last one was.
        refused_reason: Option<String>, row("last refused");
    }

    /// One path to the peer.
    pub(super) struct Path {
        /// The peer's address.
        address: String, label("path"), row("path");
        /// Age of the last beat heard on this path.
        last_beat_ms_ago: Last, gauge("peer_beat_age_seconds"), row("beat heard");
        /// Round trip of a beat and its echo on this path.
        rtt_us: Rtt, gauge("peer_rtt_seconds"), row("round trip");
        /// What both sides hear there.
        ears: ArcSwap<Ears>, flat();
    }

    /// What both sides hear on a path.
    #[derive(Clone, PartialEq, Eq)]
    pub struct Ears {
        /// `whole`, `deaf` (we hear nothing there), `mute` (the peer hears nothing), `silent`
        /// (neither) or empty while unknown; the metric is 1 for `whole`.
        ears: &'static str, is("peer_path_whole", "whole"), row("ears");
    }

    /// Whether the two nodes hold the same.
    pub(super) struct Sync {
        /// `single` (no peer), `in_sync` (MASTER, SYNCED), `alone` (MASTER_SOLO: writes are not
        /// protected), `joining`, `catching_up` or `none`; the metric is 1 for `in_sync`.
        state: Derived = Derived(sync_state), is("in_sync", "in_sync"), headline();
        /// Records that the peer has not acknowledged.
        lag_records: Counter = Counter::ReplicationLagRecords, row("records not acknowledged");
        /// The same in bytes.
        lag_bytes: Counter = Counter::ReplicationLagBytes, row("bytes not acknowledged");
        /// Full syncs received whole.
        full_syncs: AtomicU64, total("full_syncs"), row("full syncs received");
        /// Times the peer's ack was late and answers were held.
        acks_late: AtomicU64, total("acks_late"), row("late acks");
        /// Answers that now wait for the peer's ack.
        held_answers: Counter = Counter::AnswersHeld, row("answers held");
        /// Age of the eldest answer held.
        oldest_held_ms: Derived = Derived(oldest_held), gauge("oldest_held_answer_seconds"), zero(),
            row("eldest waits");
        /// Time that a node of a pair was master alone.
        unprotected_seconds: Derived = Derived(unprotected), total("unprotected_seconds"),
            row("time unprotected");
        /// Writes acknowledged meanwhile.
        unprotected_writes: Counter = Counter::AnswersUnprotected, warn("unprotected writes");
    }

    /// The register on a third host that grants one side.
    #[derive(Clone, PartialEq, Eq)]
    pub struct WitnessFacts {
        /// Whether there is to be one.
        configured: bool;
        /// `granted`, `refused`, `unreachable` or empty while nothing was asked; 1 for `granted`.
        state: &'static str, is("witness_granted", "granted"), headline();
        /// Generation of its register, as last answered.
        generation: Option<u64>, gauge("witness_generation"), row("generation");
        /// Whom it names.
        holder: Option<String>, row("holder");
        /// The epoch that it holds.
        epoch: Option<u64>, gauge("witness_epoch"), row("epoch");
        /// Questions sent to the witness.
        asked: u64, total("witness_asked"), row("asked");
        /// Questions that the witness did not answer in time.
        unanswered: u64, total("witness_unanswered"), warn("not answered");
    }

    /// The state file: epochs are reserved there ahead of their use.
    #[derive(Clone, PartialEq, Eq)]
    pub struct DiskFacts {
        /// `ok`, `slow`, `hung`, `failed` or empty while unknown; the metric is 1 for `ok`.
        state: &'static str, is("disk_ok", "ok"), headline();
        /// Epochs reserved on disk and not used yet.
        reserved: u64, gauge("epochs_reserved"), row("epochs reserved");
        /// Epochs left before the state file must be reset.
        left: Option<u64>, gauge("epochs_left"), row("epochs left");
        /// Writes of the state file that failed.
        failures: u64, total("disk_failures"), bad("failed writes");
    }

    /// The engine process.
    pub(super) struct Engine {
        /// The process.
        process: ArcSwap<EngineFacts>, flat();
        /// Its worker threads.
        workers: Derived = Derived(workers), section("Workers");
        /// Client connections accepted.
        accepted: Counter = Counter::Accepted, row("accepted");
        /// Connections open now.
        connections: Counter = Counter::Connections, row("connections");
        /// Client connections refused for want of room.
        connections_refused: Counter = Counter::ConnectionsRefused, warn("refused, no room");
    }

    /// The process.
    #[derive(Clone)]
    pub(super) struct EngineFacts {
        /// `down`, `starting` or `serving`; the metric is 1 when an engine serves.
        state: &'static str = "down", is("engine_up", "serving"), headline();
        /// Its process id, while it runs.
        pid: Option<Pid>, row("process");
        /// Engines started.
        starts: u64, hidden();
        /// Engines started after the first.
        restarts: u64, total("engine_restarts"), warn("restarts");
        /// How the last one ended.
        last_end: Option<String>, row("the last one ended");
        /// Time since it serves.
        serving_ms: Option<Since>, row("serving for");
        /// The engine's driver; why, if another was wanted.
        io: Io, info("io_backend");
        /// What it found in the store's memory when it started.
        store: Option<StoreFacts>;
    }

    /// The engine's driver.
    #[derive(Clone)]
    pub(super) struct Io {
        /// `uring` or `epoll`; empty before the first engine served.
        backend: String, label("kind"), row("driver");
        /// Why it is not the one wanted; empty if it is.
        reason: String, label("reason"), warn("not the driver wanted");
    }

    /// What an engine found in the store's memory.
    #[derive(Clone)]
    pub(super) struct StoreFacts {
        /// It began empty.
        fresh: bool, row("store began empty");
        /// Newest epoch among its items.
        epoch: u16;
        /// Items found.
        items: u64, row("items found");
        /// Shards that the engine had to rebuild when it started.
        shards_rebuilt: u32, gauge("store_shards_rebuilt"), warn("shards rebuilt");
        /// Items that the engine dropped when it started: their check failed.
        items_dropped: u64, gauge("store_items_dropped"), warn("items dropped");
        /// What a human should read.
        note: Option<String>, warn("store");
    }

    /// One worker thread.
    pub(super) struct Worker {
        /// Its number.
        worker: u16, label("worker"), row("worker");
        /// 1 when the worker's thread lives.
        alive: bool, gauge("worker_alive"), must("alive");
        /// Turns of its loop, since the engine started.
        loops: u64, row("loops");
        /// Whether it waits for something to do.
        idle: bool;
        /// Its open connections.
        connections: u64, row("connections");
    }

    /// One upstream.
    pub(super) struct Upstream {
        /// Its name.
        upstream: String, label("upstream");
        /// Its servers, in the configuration's order.
        servers: Vec<ArcSwap<Server>>, section("Servers of");
    }

    /// One upstream server.
    #[derive(Clone)]
    pub(super) struct Server {
        /// Where it is.
        address: String, label("server"), row("address");
        /// Its share of the requests.
        weight: u16, row("weight");
        /// Its jvmRoute.
        route: Option<String>, row("route");
        /// 1 when the server gets requests: neither checks nor requests have taken it out.
        up: bool = true, gauge("backend_up"), must("up");
        /// Whether active checks are configured.
        checked: bool, row("checked");
        /// Failed checks in a row.
        fails: u32, gauge("backend_check_fails"), row("failed checks");
        /// Whether failed requests have taken it out.
        removed: bool;
        /// Why it is down, or why the last check failed; empty when all is well.
        reason: String, row("why");
        /// The active checks' word.
        checked_up: bool = true, hidden();
        /// Why the last check failed.
        check: String, hidden();
    }

    /// The cache.
    pub(super) struct Cache {
        /// Items stored.
        items: Counter = Counter::CacheItems, row("items");
        /// Bytes of keys and values stored.
        bytes: Counter = Counter::CacheBytes, row("keys and values");
        /// Memory of the store.
        memory: Bytes, gauge("cache_memory_bytes"), row("memory");
        /// memcached commands executed here.
        commands: Counter = Counter::CacheCommands, row("commands");
        /// Keys asked for.
        gets: Counter = Counter::CacheGets;
        /// Keys found.
        hits: Counter = Counter::CacheHits, row("gets: hits");
        /// Keys not found.
        misses: Derived = Derived(misses), row("gets: misses");
        /// Values stored.
        sets: Counter = Counter::CacheSets, row("sets");
        /// Items evicted before they expired: for sessions, logouts.
        evictions: Counter = Counter::CacheEvictions, warn("evicted");
        /// Items reclaimed after they expired.
        expired: Counter = Counter::CacheExpired, row("expired");
        /// Commands answered with an error line.
        protocol_errors: Counter = Counter::CacheProtocolErrors, row("error lines");
        /// Commands forwarded to the master.
        forwarded_out: Counter = Counter::ForwardedOut, row("forwarded to master");
        /// Commands executed for the peer.
        forwarded_in: Counter = Counter::ForwardedIn, row("done for the peer");
    }

    /// The balancer.
    pub(super) struct Http {
        /// Requests whose head was complete.
        requests: Counter = Counter::HttpRequests, row("requests");
        /// Replies by class of status.
        replies: Derived = Derived(replies), row("replies");
        /// Requests refused or ended by this node.
        refused: Counter = Counter::HttpRefused;
        /// HTTP requests refused or ended by this node, by reason.
        refusals: Derived = Derived(refusals), total("http_refusals"), row("refused or cut");
        /// Requests sent to a second server.
        retries: Counter = Counter::HttpRetries, row("tried twice");
        /// Connections opened to servers.
        upstream_connects: Counter = Counter::UpstreamConnects, row("server connects");
        /// Connects, writes or reads there that failed.
        upstream_failures: Counter = Counter::UpstreamFailures, warn("server failures");
    }

    /// Something that happened.
    #[derive(Clone)]
    pub(super) struct EventFacts {
        /// When: milliseconds since 1970.
        time_unix_ms: u64;
        /// What, in one line.
        text: String;
    }
}

/// Whether clients are served by this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Serving,
    /// The node is stopping.
    Stopping,
    /// No engine serves.
    EngineDown,
    /// BOOT: who is master is not known yet.
    Boot,
    /// FENCED: this node must not answer.
    Fenced,
}

impl Health {
    /// The word of `/healthz`.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Stopping => "stopping",
            Self::EngineDown => "engine_down",
            Self::Boot => "boot",
            Self::Fenced => "fenced",
        }
    }

    pub(super) fn of(at: &Moment<'_>) -> Self {
        match at.page.role().state {
            _ if at.root.stopping.load(Ordering::Relaxed) => Self::Stopping,
            _ if at.root.engine.process.load().state != "serving" => Self::EngineDown,
            _ if at.page.engine_is_gone() => Self::EngineDown,
            State::Boot => Self::Boot,
            State::Fenced => Self::Fenced,
            _ => Self::Serving,
        }
    }
}

impl RoleFacts {
    /// Time alone until `now_ns`: that of a pair's node in MASTER_SOLO.
    pub(super) fn unprotected_until(&self, pair: bool, now_ns: u64) -> u64 {
        let alone = pair && self.state == State::MasterSolo;
        self.unprotected_ns + if alone { now_ns.saturating_sub(self.for_ms.0) } else { 0 }
    }
}

impl From<&StoreReport> for StoreFacts {
    fn from(report: &StoreReport) -> Self {
        let StoreReport { fresh, epoch, items, shards_rebuilt, items_dropped, note } =
            report.clone();
        Self { fresh, epoch, items, shards_rebuilt, items_dropped, note }
    }
}

/// Carrier: 0 unknown, 1 down, 2 up.
#[derive(Debug, Default)]
pub(super) struct Carrier(pub(super) AtomicU8);

impl Tell for Carrier {
    fn tell(&self, _: &Moment<'_>) -> Value {
        match self.0.load(Ordering::Relaxed) {
            0 => Value::Nothing,
            carrier => Value::Flag(carrier == 2),
        }
    }
}

/// Adverts refused, by [`Refusal::index`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Refused(pub(super) [u64; Refusal::KINDS]);

impl Tell for Refused {
    fn tell(&self, _: &Moment<'_>) -> Value {
        let rows = self.0.iter().enumerate();
        let rows = rows.filter_map(|(index, count)| {
            Some((vec![("reason", Refusal::name(index)?.to_owned())], *count))
        });
        Value::Counts { rows: rows.collect(), rare: true }
    }
}

/// Counts by reason; a reason's name is its label.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ByReason(pub Vec<(&'static str, u64)>);

impl Tell for ByReason {
    fn tell(&self, _: &Moment<'_>) -> Value {
        let row = |(reason, count): &(&str, u64)| (vec![("reason", (*reason).to_owned())], *count);
        Value::Counts { rows: self.0.iter().map(row).collect(), rare: true }
    }
}

impl Tell for Counters {
    fn tell(&self, _: &Moment<'_>) -> Value {
        let row = |(reason, count): (crate::guardian::steering::Reason, u64)| {
            (vec![("reason", reason.name().to_owned())], count)
        };
        Value::Counts { rows: self.iter().map(row).collect(), rare: false }
    }
}

fn sync_state(at: &Moment<'_>) -> Value {
    let state = match at.page.role().state {
        _ if !at.root.peer.configured => "single",
        State::Master | State::Synced => "in_sync",
        State::MasterSolo => "alone",
        State::Join => "joining",
        State::Catchup => "catching_up",
        _ => "none",
    };
    state.tell(at)
}

fn oldest_held(at: &Moment<'_>) -> Value {
    let held = at.page.held_since();
    held.map_or(Value::Nothing, |since| milliseconds(at.now_ns.saturating_sub(since)))
}

fn unprotected(at: &Moment<'_>) -> Value {
    let ns = at.root.role.load().unprotected_until(at.root.peer.configured, at.now_ns);
    Value::Real((ns / 1000) as f64 / 1e6, Unit::Seconds)
}

fn workers(at: &Moment<'_>) -> Value {
    let count = u16::try_from(at.page.workers()).unwrap_or(u16::MAX);
    let told = (0..count).filter_map(|worker| {
        let page = at.page.worker(worker)?;
        let turn = page.turn();
        let facts = Worker {
            worker,
            alive: matches!(at.page.liveness(Seat::Worker(worker)), Liveness::Alive(_)),
            loops: turn / 2,
            idle: turn % 2 == 1,
            connections: page.get(Counter::Connections),
        };
        Some(facts.tell(at))
    });
    Value::List(told.collect())
}

fn misses(at: &Moment<'_>) -> Value {
    at.sum(Counter::CacheGets).saturating_sub(at.sum(Counter::CacheHits)).tell(at)
}

fn replies(at: &Moment<'_>) -> Value {
    let rows = [
        ("2xx", Counter::HttpReplies2xx),
        ("3xx", Counter::HttpReplies3xx),
        ("4xx", Counter::HttpReplies4xx),
        ("5xx", Counter::HttpReplies5xx),
    ];
    let rows = rows.map(|(class, counter)| (vec![("class", class.to_owned())], at.sum(counter)));
    Value::Counts { rows: rows.into(), rare: false }
}

fn refusals(at: &Moment<'_>) -> Value {
    let row = |&reason: &Reason| {
        let status = reason.status().to_string();
        let labels = vec![("reason", reason.code().to_owned()), ("status", status)];
        (labels, at.page.refusals(reason))
    };
    Value::Counts { rows: Reason::ALL.iter().map(row).collect(), rare: true }
}
