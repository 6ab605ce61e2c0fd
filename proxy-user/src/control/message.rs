//! What guardian and engine say to each other: postcard on SOCK_SEQPACKET, one value a packet.
//! Descriptors ride with [`ToEngine::Config`] by SCM_RIGHTS. Pure: `channel.rs` moves the bytes.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::role::Role;
use crate::config;
pub use crate::node::{SyncEvent, Target};

/// Version of these messages; both ends are one binary, so another one means a mixed installation.
pub const VERSION: u16 = 1;

/// Largest packet, bytes. A snapshot of 64 upstreams with 256 servers stays below.
pub const SIZE_MAX: usize = 1 << 20;

/// From guardian to engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToEngine {
    /// The first message, and only once. Its descriptors, in this order: the shared page, the
    /// store's memfd (if `cache` is there; empty and of size 0 at the very first start: the engine
    /// sizes it), then one listening socket for each of `listeners`.
    Config(Box<Snapshot>),
    /// The role word has changed; a wake-up for the workers. The word itself is in the page.
    Role(Role),
    /// State of every server, by upstream and by server in the snapshot's order.
    Backends(Vec<Vec<ServerState>>),
    /// Raise every partition to this epoch; answered by [`ToGuardian::Prepared`].
    Prepare {
        /// The epoch to be promoted to; already persisted.
        epoch: u16,
    },
    /// A word of the role machine about the streams.
    Sync(SyncCommand),
    /// The engine before this one is reaped: its ring accepts nothing any more, so the listeners
    /// need no sweeping.
    PredecessorReaped,
    /// The end is near, and the role still here: finish the commands that were received, close what
    /// is idle, say in each answer that its connection ends. Answered by [`ToGuardian::Rested`].
    Rest,
    /// The role is gone: finish what runs, leave. Answered by [`ToGuardian::Stopped`] and exit.
    Stop {
        /// Time for running requests, milliseconds; 0 = at once.
        grace_ms: u32,
        /// The other node has the address: what still comes here is served meanwhile. Else
        /// nothing new is accepted.
        handed_over: bool,
    },
}

/// From engine to guardian.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToGuardian {
    /// Workers hold their seats, the store is attached, listeners are armed.
    Hello(Hello),
    /// The engine cannot serve; it exits after this. A sentence for the user.
    Failed {
        /// What and why.
        reason: String,
    },
    /// Every partition is at this epoch; records of a lower one are refused from now on.
    Prepared {
        /// The epoch of [`ToEngine::Prepare`].
        epoch: u16,
    },
    /// Something happened to the streams.
    Sync(SyncEvent),
    /// Passive health: a server failed or answered.
    Backend(BackendEvent),
    /// After [`ToEngine::Rest`]: every command of the cache's clients is answered.
    Rested,
    /// Every connection is closed; the process exits now.
    Stopped,
}

/// All an engine needs to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// [`VERSION`].
    pub version: u16,
    /// This node's name.
    pub node: String,
    /// Number of worker threads, 1 to 64.
    pub workers: u16,
    /// Driver wanted.
    pub io: config::Io,
    /// 0 for the guardian's first engine; otherwise it follows a dead one, whose ring may steal
    /// accepts until [`ToEngine::PredecessorReaped`].
    pub generation: u32,
    /// The memcached service.
    pub cache: Option<config::Cache>,
    /// Key of the keyed hash that places items; shared by the pair.
    pub hash_key: Secret<16>,
    /// Balancer listeners and routes.
    pub http: Vec<config::Http>,
    /// Groups of servers.
    pub upstreams: Vec<config::Upstream>,
    /// What each listening descriptor is for.
    pub listeners: Vec<Listener>,
    /// The peer's engine, if there is a peer.
    pub link: Option<Link>,
    /// Logs.
    pub log: config::Log,
    /// Whom the engine becomes before it reads a stranger's byte; `None`: it is not root and stays
    /// who it is.
    pub identity: Option<Identity>,
}

/// A user and its group, by number; never root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group; there are no others.
    pub gid: u32,
}

/// One listening socket (SO_REUSEPORT: each worker has its own).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listener {
    /// Who accepts from it.
    pub worker: u16,
    /// For what.
    pub service: Service,
    /// Where it is bound.
    pub address: SocketAddr,
}

/// What a listener is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Service {
    /// memcached protocol.
    Cache,
    /// HTTP, by index into [`Snapshot::http`].
    Http(u16),
    /// Streams of the peer's engine.
    Link,
}

/// How engines of a pair meet: every worker of the master dials, the other side listens on the
/// [`Service::Link`] sockets. Noise NNpsk0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Our side.
    pub side: config::Side,
    /// Must be the same on both.
    pub cluster: String,
    /// The pair's secret.
    pub key: Secret<32>,
    /// The peer engine's addresses, best first.
    pub peers: Vec<SocketAddr>,
}

/// Key bytes; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<const N: usize>(pub [u8; N]);

impl<const N: usize> fmt::Debug for Secret<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl<const N: usize> Serialize for Secret<N> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Secret<N> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let bytes: &[u8] = Deserialize::deserialize(deserializer)?;
        let exact = <[u8; N]>::try_from(bytes);
        exact.map(Self).map_err(|_short| serde::de::Error::invalid_length(bytes.len(), &"a key"))
    }
}

/// The engine's first words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`].
    pub version: u16,
    /// The driver in use, with the reason if it was not the one wanted: `uring`, `epoll (EPERM:
    /// …)`.
    pub io: String,
    /// What was found in the store's memory; `None` without a cache.
    pub store: Option<StoreReport>,
}

/// What an engine found when it attached the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreReport {
    /// It was empty or had to be rejected: no item of before is left.
    pub fresh: bool,
    /// Newest epoch among the partitions; 0 if fresh.
    pub epoch: u16,
    /// Items found.
    pub items: u64,
    /// Shards that were found half changed and were rebuilt.
    pub shards_rebuilt: u32,
    /// Items dropped because their check failed.
    pub items_dropped: u64,
    /// Anything a human should read: rejected memory and why, huge pages refused.
    pub note: Option<String>,
}

/// A server's state, as active checks see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServerState {
    /// May be used.
    Up,
    /// Must not be used.
    Down,
}

/// Passive health.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendEvent {
    /// Index of the upstream.
    pub upstream: u16,
    /// Index of its server.
    pub server: u16,
    /// Whether it was taken out (true) or has answered again (false).
    pub out: bool,
}

/// What the role machine tells the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncCommand {
    /// Hold every answer for the peer's ack from now on (the role word says MASTER already);
    /// answered by [`SyncEvent::Gated`].
    Gate {
        /// Number of the gate.
        gate: u64,
    },
    /// Where the master is: who sends the stream, and where commands go.
    Target(Target),
}

/// Why a packet was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Longer than [`SIZE_MAX`].
    #[error("message is longer than {SIZE_MAX} bytes")]
    TooLong,
    /// Not a message, or bytes after it.
    #[error("not a control message")]
    Malformed,
}

/// A message as packet bytes.
///
/// # Errors
/// [`MessageError::TooLong`].
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, MessageError> {
    let bytes = postcard::to_stdvec(message).map_err(|_error| MessageError::TooLong)?;
    if bytes.len() > SIZE_MAX { Err(MessageError::TooLong) } else { Ok(bytes) }
}

/// A packet as message.
///
/// # Errors
/// Anything but exactly one message is [`MessageError::Malformed`].
pub fn decode<T: DeserializeOwned>(packet: &[u8]) -> Result<T, MessageError> {
    match postcard::take_from_bytes(packet) {
        Ok((message, [])) => Ok(message),
        _ => Err(MessageError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::role::State;

    fn snapshot() -> Snapshot {
        let backend = "127.0.0.1:8081".parse().expect("address");
        let config = config::Config::single(&[backend]);
        Snapshot {
            version: VERSION,
            node: config.node.name,
            workers: 2,
            io: config::Io::Auto,
            generation: 3,
            cache: config.cache,
            hash_key: Secret([7; 16]),
            http: config.http,
            upstreams: config.upstreams,
            listeners: vec![Listener { worker: 1, service: Service::Http(0), address: backend }],
            link: Some(Link {
                side: config::Side::B,
                cluster: "tandem".to_owned(),
                key: Secret([9; 32]),
                peers: vec![backend],
            }),
            log: config.log,
            identity: Some(Identity { uid: 65_534, gid: 65_534 }),
        }
    }

    #[test]
    fn round_trips() {
        let role = Role { state: State::Master, epoch: 4, serial: 9 };
        let all = [
            ToEngine::Config(Box::new(snapshot())),
            ToEngine::Role(role),
            ToEngine::Backends(vec![vec![ServerState::Up, ServerState::Down]]),
            ToEngine::Prepare { epoch: 5 },
            ToEngine::Sync(SyncCommand::Gate { gate: 1 }),
            ToEngine::Rest,
            ToEngine::Stop { grace_ms: 500, handed_over: true },
        ];
        for message in all {
            let packet = encode(&message).expect("fits");
            assert_eq!(decode::<ToEngine>(&packet), Ok(message.clone()));
            let mut longer = packet.clone();
            longer.push(0);
            assert_eq!(decode::<ToEngine>(&longer), Err(MessageError::Malformed));
            let shorter = &packet[..packet.len() - 1];
            assert_eq!(decode::<ToEngine>(shorter), Err(MessageError::Malformed));
        }
        let hello = ToGuardian::Hello(Hello { version: 1, io: "uring".into(), store: None });
        assert_eq!(decode(&encode(&hello).expect("fits")), Ok(hello));
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", snapshot());
        assert!(!shown.contains("9, 9") && shown.contains("Secret(..)"), "{shown}");
    }

    proptest! {
        /// Arbitrary bytes are refused by name or decode to something that encodes again.
        #[test]
        fn arbitrary_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(message) = decode::<ToEngine>(&bytes) {
                prop_assert!(encode(&message).is_ok());
            }
            if let Ok(message) = decode::<ToGuardian>(&bytes) {
                prop_assert!(encode(&message).is_ok());
            }
        }
    }
}
