//! What this node is and does, for the status page, `/status.json` and `/metrics`.
//!
//! [`Status`] is one moment of it; its field names are part of the program's public face.
//! [`StatusHandle`] is where the guardian's threads leave what they know: each setter is a few
//! atomic stores or one pointer swap and never waits for a reader, so the role thread may call it
//! between two beats. The engine's numbers are read from the shared page when somebody asks,
//! without a system call.
//!
//! Not here: how it is shown ([`super::admin`]).

mod handle;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use serde::Serialize;

use crate::control::message::StoreReport;

pub use handle::{Check, PeerFacts, StatusHandle};

/// One moment of a node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Version of this program.
    pub version: &'static str,
    /// This node's name.
    pub node: String,
    /// The pair's name; `null` on a single node.
    pub cluster: Option<String>,
    /// Side of the pair, `a` or `b`; `null` on a single node.
    pub side: Option<&'static str>,
    /// When this was read: milliseconds since 1970.
    pub time_unix_ms: u64,
    /// How long the guardian runs, milliseconds.
    pub uptime_ms: u64,
    /// Whether clients are served: what `/healthz` says.
    pub health: Health,
    /// The role; its fields stand beside the others, `state` as `role`.
    #[serde(flatten)]
    pub role: RoleStatus,
    /// The addresses that move between the nodes.
    pub vips: Vec<VipStatus>,
    /// How they are answered for.
    pub xdp: XdpStatus,
    /// The other node.
    pub peer: PeerStatus,
    /// Whether the two hold the same.
    pub sync: SyncStatus,
    /// The engine process.
    pub engine: EngineStatus,
    /// The upstream servers, by upstream.
    pub backends: Vec<UpstreamStatus>,
    /// The cache; `null` where none is configured.
    pub cache: Option<CacheStatus>,
    /// The balancer.
    pub http: HttpStatus,
    /// What happened last, newest first; at most [`EVENTS_MAX`].
    pub events: Vec<EventStatus>,
}

/// Most events kept.
pub const EVENTS_MAX: usize = 20;

/// Whether clients are served by this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
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
}

/// The role, as the workers see it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RoleStatus {
    /// `BOOT`, `JOIN`, `CATCHUP`, `SYNCED`, `MASTER`, `MASTER_SOLO`, `HANDOVER` or `FENCED`.
    #[serde(rename = "role")]
    pub state: &'static str,
    /// The reign, or the one that is followed; 0 before the first.
    pub epoch: u16,
    /// When this state was entered: milliseconds since 1970.
    pub since_unix_ms: u64,
    /// For how long it lasts, milliseconds.
    pub for_ms: u64,
    /// Why it was entered: a name of `node::Cause`; `start` at first.
    pub cause: &'static str,
    /// Changes of role since the guardian started.
    pub changes: u64,
}

/// An address that moves between the nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VipStatus {
    /// The address.
    pub address: Ipv4Addr,
    /// Its network's prefix length.
    pub prefix: u8,
    /// The interface that it is reached by.
    pub interface: String,
    /// VRRP's virtual router id.
    pub vrid: u8,
    /// Whether this node answers for it.
    pub answering: bool,
    /// Whether the interface has carrier; `null` while unknown.
    pub carrier: Option<bool>,
}

/// How ARP for the addresses is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct XdpStatus {
    /// What the configuration asks: `auto`, `native`, `generic` or `off`.
    pub wanted: &'static str,
    /// What each interface got.
    pub interfaces: Vec<XdpInterface>,
    /// Frames by what the program did, since it was loaded.
    pub frames: BTreeMap<&'static str, u64>,
}

/// One interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct XdpInterface {
    /// Its name.
    pub interface: String,
    /// `native`, `generic` or `off`.
    pub mode: String,
    /// Why this one.
    pub reason: String,
    /// What will not work as it stands.
    pub warnings: Vec<String>,
}

/// The other node.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerStatus {
    /// Whether there is to be one.
    pub configured: bool,
    /// Whether its guardian is connected.
    pub connected: bool,
    /// Its node's name, once known.
    pub name: Option<String>,
    /// Version of its program, once known.
    pub version: Option<String>,
    /// The state that its last beat showed; `null` while it is not heard.
    pub state: Option<&'static str>,
    /// The epoch that its last beat showed.
    pub epoch: Option<u16>,
    /// Its addresses, each a path to it.
    pub paths: Vec<PathStatus>,
    /// Beats sent, on all paths.
    pub beats_sent: u64,
    /// Beats received, on all paths.
    pub beats_received: u64,
    /// Handshakes refused, by us or by the other side: wrong key, cluster, side or version.
    pub refused: u64,
    /// Why the last one was.
    pub refused_reason: Option<String>,
    /// Datagrams that belong to no session: strangers, replays, leftovers.
    pub datagrams_refused: u64,
}

/// One path to the peer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PathStatus {
    /// The peer's address.
    pub address: SocketAddr,
    /// Age of the last beat heard on it, milliseconds; `null` before the first.
    pub last_beat_ms_ago: Option<f64>,
    /// Round trip of a beat and its echo, microseconds; `null` while unknown.
    pub rtt_us: Option<u64>,
}

/// Whether the two nodes hold the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SyncStatus {
    /// `single` (no peer), `in_sync` (MASTER, SYNCED), `alone` (MASTER_SOLO: writes are not
    /// protected), `joining` (JOIN), `catching_up` (CATCHUP) or `none`.
    pub state: &'static str,
    /// Records that the peer has not acknowledged.
    pub lag_records: u64,
    /// The same in bytes.
    pub lag_bytes: u64,
    /// Full syncs that this node received whole.
    pub full_syncs: u64,
    /// Times that the peer's ack was late, and answers were held.
    pub acks_late: u64,
    /// Answers that now wait for the peer's ack.
    pub held_answers: u64,
    /// For how long the eldest waits, milliseconds; `null` when none does.
    pub oldest_held_ms: Option<f64>,
    /// Time that a node of a pair spent in MASTER_SOLO, seconds.
    pub unprotected_seconds: f64,
    /// Writes acknowledged meanwhile.
    pub unprotected_writes: u64,
}

/// The engine process.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EngineStatus {
    /// `down`, `starting` or `serving`.
    pub state: &'static str,
    /// Its process id, while it runs.
    pub pid: Option<u32>,
    /// Engines that were started after the first.
    pub restarts: u64,
    /// How the last one ended.
    pub last_end: Option<String>,
    /// Time since it serves, milliseconds.
    pub serving_ms: Option<u64>,
    /// Its driver.
    pub io: Io,
    /// What it found in the store's memory when it started.
    pub store: Option<StoreReport>,
    /// Its worker threads.
    pub workers: Vec<WorkerStatus>,
    /// Client connections accepted.
    pub accepted: u64,
    /// Connections open now.
    pub connections: u64,
    /// Client connections refused for want of room.
    pub connections_refused: u64,
}

/// The engine's driver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Io {
    /// `uring` or `epoll`; empty before the first engine served.
    pub backend: String,
    /// Why it is not the one wanted; empty if it is.
    pub reason: String,
}

/// One worker thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct WorkerStatus {
    /// Whether its thread lives.
    pub alive: bool,
    /// Turns of its loop, since the engine started.
    pub loops: u64,
    /// Whether it waits for something to do.
    pub idle: bool,
    /// Its open connections.
    pub connections: u64,
}

/// One upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub upstream: String,
    /// Its servers, in the configuration's order.
    pub servers: Vec<ServerStatus>,
}

/// One upstream server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerStatus {
    /// Where it is.
    pub address: SocketAddr,
    /// Its share of the requests.
    pub weight: u16,
    /// Its jvmRoute.
    pub route: Option<String>,
    /// Whether it gets requests: neither the checks nor the requests have taken it out.
    pub up: bool,
    /// Whether active checks are configured.
    pub checked: bool,
    /// Failed active checks in a row.
    pub fails: u32,
    /// Whether failed requests have taken it out.
    pub removed: bool,
    /// Why it is down, or why the last check failed; empty when all is well.
    pub reason: String,
}

/// The cache.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct CacheStatus {
    /// Items stored.
    pub items: u64,
    /// Bytes of keys and values stored.
    pub bytes: u64,
    /// Memory of the store, bytes.
    pub memory: u64,
    /// memcached commands executed here.
    pub commands: u64,
    /// Keys asked for.
    pub gets: u64,
    /// Keys found.
    pub hits: u64,
    /// Keys not found.
    pub misses: u64,
    /// Values stored.
    pub sets: u64,
    /// Items evicted before they expired: for sessions, logouts.
    pub evictions: u64,
    /// Items reclaimed after they expired.
    pub expired: u64,
    /// Commands answered with an error line.
    pub protocol_errors: u64,
    /// Commands forwarded to the master.
    pub forwarded_out: u64,
    /// Commands executed for the peer.
    pub forwarded_in: u64,
}

/// The balancer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HttpStatus {
    /// Requests whose head was complete.
    pub requests: u64,
    /// Replies by class of status: `2xx`, `3xx`, `4xx`, `5xx`.
    pub replies: BTreeMap<&'static str, u64>,
    /// Requests refused or ended by this node.
    pub refused: u64,
    /// The same by reason; only those that occurred.
    pub refusals: BTreeMap<&'static str, u64>,
    /// Requests sent to a second server.
    pub retries: u64,
    /// Connections opened to servers.
    pub upstream_connects: u64,
    /// Connects, writes or reads there that failed.
    pub upstream_failures: u64,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EventStatus {
    /// When: milliseconds since 1970.
    pub time_unix_ms: u64,
    /// What, in one line.
    pub text: String,
}
