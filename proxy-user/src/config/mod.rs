//! Configuration: TOML in, types that cannot be wrong out. Pure: the caller reads the file and
//! resolves what only the host knows (does the interface exist, can the key be read).
//!
//! `raw.rs` is the file's shape, `check.rs` turns it into the types below, `problem.rs` says what
//! is wrong with line and hint. Every key has a unit in its value: `"100ms"`, `"1GiB"`.

mod check;
mod problem;
mod raw;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use problem::{Problem, Problems};

/// One node's whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Who this node is.
    pub node: Node,
    /// Addresses that move between the nodes; empty on a single node.
    pub vips: Vec<Vip>,
    /// The third voter, if there is one; only with a peer.
    pub witness: Option<Witness>,
    /// The memcached service, if there is one.
    pub cache: Option<Cache>,
    /// The HTTP balancer's listeners.
    pub http: Vec<Http>,
    /// Groups of servers, in name order; routes point into this by index.
    pub upstreams: Vec<Upstream>,
    /// The engine process.
    pub engine: Engine,
    /// The status page and metrics.
    pub admin: Admin,
    /// How ARP and frames for the VIPs are steered.
    pub xdp: XdpMode,
    /// Logs.
    pub log: Log,
}

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Shown in logs and on the status page; 1 to 32 letters, digits, `-`, `_`, `.`.
    pub name: String,
    /// Where the persisted epoch and the lock file live; `None` = the guardian's default.
    pub state_dir: Option<PathBuf>,
    /// The other node, if there is one.
    pub pair: Option<Pair>,
}

/// The other node, and how to judge it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// This node's side; the epoch's low bit.
    pub side: Side,
    /// Both nodes must name the same cluster; 1 to 32 characters as for a name.
    pub cluster: String,
    /// The peer's addresses: each is one path to the same peer. Guardians speak TCP and UDP on this
    /// port, engines TCP on the next one.
    pub peers: Vec<SocketAddr>,
    /// Where this node listens for its peer; by default every address, on the first peer's port.
    pub listen: Vec<SocketAddr>,
    /// The pair's shared secret (`tandem keygen`), as written in the file.
    pub key_file: PathBuf,
    /// Interval of beats.
    pub heartbeat: Duration,
    /// Missed beats until silence is death.
    pub dead_after: u32,
    /// When a node that is not in sync may take over from a dead peer.
    pub unsynced_takeover: UnsyncedTakeover,
    /// Silence at start after which this node takes itself for alone.
    pub boot_wait: Duration,
    /// What silence means on a segment where no third host is known.
    pub lonely_segment: LonelySegment,
}

/// What silence of the peer means where there is nobody else on the segment who could say whether
/// this node is the isolated one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LonelySegment {
    /// The peer is dead: go on without it.
    Takeover,
    /// Nothing: wait for the peer.
    Hold,
}

/// Who may go on by silence when the witness cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum UnreachableWitness {
    /// Nobody.
    Hold,
    /// The master of that moment; its backup never.
    PreferMaster,
}

/// The third voter, and what its silence means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// Where its register is.
    pub register: RegisterPlace,
    /// Who goes on when it does not answer.
    pub unreachable: UnreachableWitness,
    /// Time for an answer.
    pub timeout: Duration,
}

/// Where the witness's register is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RegisterPlace {
    /// At a `tandem witness`; each address is one path to the same one.
    Tandem(Vec<SocketAddr>),
    /// A key in an etcd.
    Etcd {
        /// Members of one etcd, `http://ip:port`; tried in turn.
        urls: Vec<String>,
        /// Of the key; the cluster's name comes after it.
        prefix: String,
    },
}

impl Pair {
    /// Silence on every path after which the peer is dead.
    #[must_use]
    pub fn dead_time(&self) -> Duration {
        self.heartbeat * self.dead_after
    }

    /// How long one echoed beat lets a master answer: one beat less than `dead_time`.
    #[must_use]
    pub fn lease_time(&self) -> Duration {
        self.heartbeat * (self.dead_after - 1)
    }
}

/// A node's side of the pair: makes their epochs differ, and dials the peer link (side a).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Side {
    /// Low bit 0.
    A,
    /// Low bit 1.
    B,
}

impl Side {
    /// The epoch's low bit.
    #[must_use]
    pub const fn bit(self) -> u16 {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }

    /// The peer's side.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// `a` or `b`, as in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// When a node that is not in sync may take over from a peer that is proved dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnsyncedTakeover {
    /// As soon as the peer is dead.
    Now,
    /// After the peer was unheard for this long.
    After(Duration),
    /// Only by an operator.
    Never,
}

/// An address that moves between the nodes (RFC 9568 virtual router).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vip {
    /// The address.
    pub address: Ipv4Addr,
    /// Its network's prefix length, 1 to 32.
    pub prefix: u8,
    /// The interface whose segment the address lives on.
    pub interface: String,
    /// Virtual router id, 1 to 255; unique on the segment.
    pub vrid: u8,
    /// VRRP priority, 1 to 254; matters only to foreign routers.
    pub priority: u8,
    /// Interval of adverts, 10 ms to 40.95 s in whole centiseconds.
    pub advert: Duration,
}

/// The memcached service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cache {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Memory of the store, bytes, a multiple of 1 MiB.
    pub memory: u64,
    /// Largest value accepted, bytes.
    pub item_size_max: u32,
    /// What an acknowledgement means.
    pub ack: Ack,
    /// Lateness of the peer's ack after which answers are held until the peer is out of sync.
    pub ack_timeout: Duration,
}

/// What an acknowledged write means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ack {
    /// The peer has applied it.
    Replicated,
    /// This node has applied it.
    Local,
}

/// One `[[http]]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Http {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Tried in file order; the first that matches is taken.
    pub routes: Vec<Route>,
    /// Time for a request's head to arrive.
    pub header_timeout: Duration,
    /// Time a connection may idle between requests.
    pub idle_timeout: Duration,
    /// Largest request body, bytes.
    pub body_size_max: u64,
}

/// Which requests go to which upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Host to match, lower case, without port; `None` = any.
    pub host: Option<String>,
    /// Prefix of the path, begins with `/`.
    pub path: String,
    /// Index into [`Config::upstreams`].
    pub upstream: u16,
}

/// A group of servers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// Its name in the file.
    pub name: String,
    /// How a server is chosen.
    pub balance: Balance,
    /// The servers, 1 to 256.
    pub servers: Vec<Server>,
    /// Failures within `fail_timeout` that take a server out; 0 = never.
    pub max_fails: u32,
    /// Window of the failures, and how long the server then stays out.
    pub fail_timeout: Duration,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time between two successive reads of a reply.
    pub reply_timeout: Duration,
    /// Idle connections kept to this group, by each worker.
    pub keepalive: u16,
    /// Active checks, if wanted.
    pub health: Option<Health>,
}

/// How a server is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Balance {
    /// In turn, by weight.
    RoundRobin,
}

/// One server of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Server {
    /// Where it is.
    pub address: SocketAddr,
    /// Share of requests, 1 to 1000.
    pub weight: u16,
    /// Its jvmRoute.
    pub route: Option<String>,
}

/// Active checks: a TCP connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// Time between two checks of one server.
    pub interval: Duration,
    /// Time for one check.
    pub timeout: Duration,
    /// Successes in a row that bring a server back.
    pub rise: u32,
    /// Failures in a row that take it out.
    pub fall: u32,
}

/// The engine process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// Worker threads, 1 to 64; `None` = one per core the process may use.
    pub workers: Option<u16>,
    /// Driver.
    pub io: Io,
    /// A worker that makes no turn for this long is hung: the engine is killed and restarted.
    pub stall_kill: Duration,
    /// Time that requests under way have to end when the node is stopped, 0 to 60 s. What is left
    /// then is cut off.
    pub stop_patience: Duration,
    /// Whom it runs as when the guardian is root.
    pub user: User,
}

/// A user of the host other than root.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum User {
    /// By name; its primary group comes with it.
    Name(String),
    /// By number.
    Id(u32),
}

impl User {
    /// `nobody`, by the number that has no files.
    pub const NOBODY: Self = Self::Id(65_534);
}

/// Driver of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Io {
    /// io_uring where the kernel allows it, else epoll, said aloud.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll.
    Epoll,
}

/// The status page and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Admin {
    /// Where it listens; keep it private.
    pub listen: SocketAddr,
}

/// How the VIPs are steered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum XdpMode {
    /// Native, else generic, else off; said aloud.
    Auto,
    /// In the driver, or refuse to start.
    Native,
    /// In the kernel's generic hook, or refuse to start.
    Generic,
    /// No XDP: the address is on the master's interface and the kernel answers.
    Off,
}

/// Logs; they go to stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Least severe level shown: `error`, `warn`, `info`, `debug`, `trace`.
    pub level: String,
    /// HTTP access log.
    pub access: AccessLog,
}

/// Where the HTTP access log goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// With the other logs.
    Stderr,
    /// Appended to a file.
    File(PathBuf),
}

/// Reads a file's text; `file` names it in errors.
///
/// # Errors
/// Everything that is wrong with it: syntax and unknown keys one at a time (as the TOML reader
/// finds them), wrong values all at once.
pub fn parse(text: &str, file: &str) -> Result<Config, Problems> {
    check::parse(text, file)
}

impl Config {
    /// What runs without a file: balancer on :8080 in front of `backends`, cache on :11211, admin
    /// on
    /// 127.0.0.1:9900, no pair, no VIP.
    #[must_use]
    pub fn single(backends: &[SocketAddr]) -> Self {
        let servers = backends.iter().map(|&address| Server { address, weight: 1, route: None });
        let any = |port| SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port);
        Self {
            node: Node { name: "single".to_owned(), state_dir: None, pair: None },
            vips: Vec::new(),
            witness: None,
            cache: Some(Cache { listen: vec![any(11211)], ..Cache::default() }),
            http: vec![Http {
                listen: vec![any(8080)],
                routes: vec![Route { host: None, path: "/".to_owned(), upstream: 0 }],
                ..Http::default()
            }],
            upstreams: vec![Upstream {
                name: "demo".to_owned(),
                servers: servers.collect(),
                health: Some(Health::default()),
                ..Upstream::default()
            }],
            engine: Engine::default(),
            admin: Admin::default(),
            xdp: XdpMode::Off,
            log: Log::default(),
        }
    }
}

const MIB: u64 = 1 << 20;

impl Default for Cache {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 11211)],
            memory: 64 * MIB,
            item_size_max: 1 << 20,
            ack: Ack::Replicated,
            ack_timeout: Duration::from_millis(20),
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            routes: Vec::new(),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_size_max: 64 * MIB,
        }
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            name: String::new(),
            balance: Balance::RoundRobin,
            servers: Vec::new(),
            max_fails: 1,
            fail_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(1),
            reply_timeout: Duration::from_secs(60),
            keepalive: 64,
            health: None,
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 2,
        }
    }
}

impl Default for Engine {
    fn default() -> Self {
        Self {
            workers: None,
            io: Io::Auto,
            stall_kill: Duration::from_secs(1),
            stop_patience: Duration::from_secs(10),
            user: User::NOBODY,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9900) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: "info".to_owned(), access: AccessLog::Off }
    }
}
