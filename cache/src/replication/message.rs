//! The messages of a replication link: what each frame means, and its bytes.
//!
//! Primary to replica: [`Hello`], `SyncBegin`, `Record`, `SyncEnd`, `Reply`, `Ping`. Replica to
//! primary: `HelloAck` or `Refused`, `Ack`, `Forward`, `ForwardClose`, `Pong`. The link's channel
//! (encryption, authentication by the pair's key) is beneath; who may send what when is the
//! business of `sender` and `receiver`. Everything borrowed, nothing copied.

use crate::replication::frame::{self, Frame, PeerMisbehaved, le32, le64};
use crate::replication::stream::LinkSession;

/// Version of this protocol; both ends must have the same.
pub const PROTOCOL: u16 = 1;

/// Longest cluster id and node name (bytes).
pub const NAME_MAX: usize = 64;

/// "Never expires" as a remaining time.
pub const FOREVER: u32 = 0;

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const HELLO_ACK: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const SYNC_BEGIN: u8 = 4;
    pub(super) const SYNC_END: u8 = 5;
    pub(super) const PUT: u8 = 6;
    pub(super) const COPY: u8 = 7;
    pub(super) const DELETE: u8 = 8;
    pub(super) const TOUCH: u8 = 9;
    pub(super) const FLUSH: u8 = 10;
    pub(super) const FLUSH_AT: u8 = 11;
    pub(super) const ACK: u8 = 12;
    pub(super) const PING: u8 = 13;
    pub(super) const PONG: u8 = 14;
    pub(super) const FORWARD: u8 = 15;
    pub(super) const REPLY: u8 = 16;
    pub(super) const FORWARD_CLOSE: u8 = 17;
}

/// First message of the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// [`PROTOCOL`] of the sender.
    pub protocol: u16,
    /// This link's number.
    pub link_index: u16,
    /// How many links the primary has; this one carries partitions `p % count == index`.
    pub link_count: u16,
    /// Epoch and number of this link's life.
    pub session: LinkSession,
    /// The primary's store: changes when the store was emptied.
    pub store_id: u128,
    /// Hash of a fixed text under the pair's hash key: both must agree on partitions.
    pub hash_check: u64,
    /// Largest item of the primary (bytes, key and value).
    pub item_limit: u32,
    /// Name of the pair; never joins another.
    pub cluster: String,
    /// Name of the node.
    pub node: String,
}

/// Why a replica does not take a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refusal {
    /// Another protocol version.
    Protocol = 1,
    /// Another cluster id.
    Cluster = 2,
    /// The primary's epoch is below one that this node has seen.
    Epoch = 3,
    /// The hash keys differ.
    HashKey = 4,
    /// The primary's items may be larger than this node's.
    ItemLimit = 5,
    /// Link index or count make no sense.
    LinkNumber = 6,
}

impl Refusal {
    fn from_byte(byte: u8) -> Option<Self> {
        let all = [
            Self::Protocol,
            Self::Cluster,
            Self::Epoch,
            Self::HashKey,
            Self::ItemLimit,
            Self::LinkNumber,
        ];
        all.into_iter().find(|r| *r as u8 == byte)
    }
}

/// One change of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Record<'a> {
    /// A key got this content. The version is the change's place in the stream and the item's.
    Put(Item<'a>),
    /// A key has this content: said by the walk, not a place in the stream.
    Copy(Item<'a>),
    /// A key went away by a command.
    Delete {
        /// Place in the stream.
        version: u64,
        /// The key.
        key: &'a [u8],
    },
    /// A key has a new expiry; its content and version stay.
    Touch {
        /// Place in the stream.
        version: u64,
        /// Seconds left, [`FOREVER`] for no expiry.
        remaining: u32,
        /// The key.
        key: &'a [u8],
    },
    /// All keys of the partition went away; a flush that was still to come is forgotten.
    Flush {
        /// Place in the stream.
        version: u64,
    },
    /// All keys are to go away later; the primary of that moment does it.
    FlushAt {
        /// Place in the stream.
        version: u64,
        /// Seconds from now.
        remaining: u32,
    },
}

impl Record<'_> {
    /// Place in the stream, or for [`Self::Copy`] the item's version.
    #[must_use]
    pub const fn version(&self) -> u64 {
        match self {
            Self::Put(item) | Self::Copy(item) => item.version,
            Self::Delete { version, .. }
            | Self::Touch { version, .. }
            | Self::Flush { version }
            | Self::FlushAt { version, .. } => *version,
        }
    }
}

/// A key with its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Item<'a> {
    /// Version of the item.
    pub version: u64,
    /// The client's flags.
    pub flags: u32,
    /// Seconds left, [`FOREVER`] for no expiry.
    pub remaining: u32,
    /// The key.
    pub key: &'a [u8],
    /// The value in pieces, as the store has it.
    pub value: &'a [&'a [u8]],
}

/// A record as it arrived; the value is one piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrived<'a> {
    /// [`Record::Put`], or [`Record::Copy`] if `copy`.
    Item {
        /// Said by the walk.
        copy: bool,
        /// Version of the item.
        version: u64,
        /// The client's flags.
        flags: u32,
        /// Seconds left, [`FOREVER`] for no expiry.
        remaining: u32,
        /// The key.
        key: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// [`Record::Delete`], [`Record::Touch`], [`Record::Flush`] or [`Record::FlushAt`].
    Other(Record<'a>),
}

/// What a forwarded connection is told besides bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ReplyState {
    /// Every command received has been answered and no part of another is waiting.
    Idle = 0,
    /// Bytes of an incomplete command, or answers that may not leave yet, are at the primary.
    Busy = 1,
    /// After these bytes the client is to be closed.
    Close = 2,
}

/// One message, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    /// First of the primary.
    Hello(Hello),
    /// The replica takes the link.
    HelloAck {
        /// The replica's store.
        store_id: u128,
        /// The replica's name.
        node: &'a str,
    },
    /// The replica does not take the link.
    Refused(Refusal),
    /// The walk of a partition begins: marks are cleared.
    SyncBegin {
        /// Partition.
        partition: u8,
        /// The partition's version at this place.
        version: u64,
    },
    /// A change, or a word of the walk.
    Record {
        /// Partition.
        partition: u8,
        /// The change.
        record: Arrived<'a>,
    },
    /// The walk of a partition has ended: what it did not name goes.
    SyncEnd {
        /// Partition.
        partition: u8,
        /// The partition's version at this place.
        version: u64,
        /// Version of its last delete or flush.
        last_delete: u64,
        /// Seconds to a pending flush.
        flush_in: Option<u32>,
    },
    /// What the replica has applied.
    Ack {
        /// Epoch of the link.
        epoch: u16,
        /// (partition, version) pairs.
        applied: Applied<'a>,
    },
    /// Are you there?
    Ping(u64),
    /// The answer to [`Message::Ping`], with its token.
    Pong(u64),
    /// Bytes of a client of the replica.
    Forward {
        /// Client, unique on this link.
        connection: u64,
        /// Number of this batch, from 1.
        request: u64,
        /// What the client sent.
        bytes: &'a [u8],
    },
    /// Bytes for a client of the replica.
    Reply {
        /// Client.
        connection: u64,
        /// Batches up to this one have been taken in; their answers are in replies up to here
        /// unless the state is [`ReplyState::Busy`].
        request: u64,
        /// What else is to be known.
        state: ReplyState,
        /// What to send to the client.
        bytes: &'a [u8],
    },
    /// A client of the replica is gone.
    ForwardClose {
        /// Client.
        connection: u64,
    },
}

/// The pairs of an [`Message::Ack`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied<'a>(&'a [u8]);

impl Applied<'_> {
    /// (partition, applied version), each partition below 64.
    pub fn iter(&self) -> impl Iterator<Item = (u8, u64)> {
        self.0.chunks_exact(9).map(|pair| (pair[0], le64(&pair[1..])))
    }
}

/// Appends the frame of a record.
pub fn encode_record(out: &mut Vec<u8>, partition: u8, record: &Record<'_>) {
    let start = match *record {
        Record::Put(item) => put(out, kind::PUT, partition, &item),
        Record::Copy(item) => put(out, kind::COPY, partition, &item),
        Record::Delete { version, key } => {
            let start = frame::begin(out, kind::DELETE, partition, version);
            out.extend_from_slice(key);
            start
        }
        Record::Touch { version, remaining, key } => {
            let start = frame::begin(out, kind::TOUCH, partition, version);
            out.extend_from_slice(&remaining.to_le_bytes());
            out.extend_from_slice(key);
            start
        }
        Record::Flush { version } => frame::begin(out, kind::FLUSH, partition, version),
        Record::FlushAt { version, remaining } => {
            let start = frame::begin(out, kind::FLUSH_AT, partition, version);
            out.extend_from_slice(&remaining.to_le_bytes());
            start
        }
    };
    frame::finish(out, start);
}

fn put(out: &mut Vec<u8>, kind: u8, partition: u8, item: &Item<'_>) -> usize {
    let length: usize = item.value.iter().map(|v| v.len()).sum();
    out.reserve(frame::HEADER + 9 + item.key.len() + length);
    let start = frame::begin(out, kind, partition, item.version);
    out.extend_from_slice(&item.flags.to_le_bytes());
    out.extend_from_slice(&item.remaining.to_le_bytes());
    out.push(u8::try_from(item.key.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(item.key);
    for piece in item.value {
        out.extend_from_slice(piece);
    }
    start
}

/// Appends the frame of an acknowledgement.
pub fn encode_ack(out: &mut Vec<u8>, epoch: u16, applied: impl Iterator<Item = (u8, u64)>) {
    let start = frame::begin(out, kind::ACK, 0, u64::from(epoch));
    for (partition, version) in applied {
        out.push(partition);
        out.extend_from_slice(&version.to_le_bytes());
    }
    frame::finish(out, start);
}

/// Appends the frame of any message but `Record` and `Ack`, which have their own.
pub fn encode(out: &mut Vec<u8>, message: &Message<'_>) {
    let start = match message {
        Message::Hello(hello) => encode_hello(out, hello),
        Message::HelloAck { store_id, node } => {
            let start = frame::begin(out, kind::HELLO_ACK, 0, 0);
            out.extend_from_slice(&store_id.to_le_bytes());
            out.extend_from_slice(name(node));
            start
        }
        Message::Refused(reason) => {
            let start = frame::begin(out, kind::REFUSED, 0, 0);
            out.push(*reason as u8);
            start
        }
        Message::SyncBegin { partition, version } => {
            frame::begin(out, kind::SYNC_BEGIN, *partition, *version)
        }
        Message::SyncEnd { partition, version, last_delete, flush_in } => {
            let start = frame::begin(out, kind::SYNC_END, *partition, *version);
            out.extend_from_slice(&last_delete.to_le_bytes());
            out.push(u8::from(flush_in.is_some()));
            out.extend_from_slice(&flush_in.unwrap_or(0).to_le_bytes());
            start
        }
        Message::Ping(token) => frame::begin(out, kind::PING, 0, *token),
        Message::Pong(token) => frame::begin(out, kind::PONG, 0, *token),
        Message::Forward { connection, request, bytes } => {
            let start = frame::begin(out, kind::FORWARD, 0, *request);
            out.extend_from_slice(&connection.to_le_bytes());
            out.extend_from_slice(bytes);
            start
        }
        Message::Reply { connection, request, state, bytes } => {
            let start = frame::begin(out, kind::REPLY, 0, *request);
            out.extend_from_slice(&connection.to_le_bytes());
            out.push(*state as u8);
            out.extend_from_slice(bytes);
            start
        }
        Message::ForwardClose { connection } => {
            frame::begin(out, kind::FORWARD_CLOSE, 0, *connection)
        }
        Message::Record { partition, record } => {
            return encode_arrived(out, *partition, record);
        }
        Message::Ack { epoch, applied } => return encode_ack(out, *epoch, applied.iter()),
    };
    frame::finish(out, start);
}

fn encode_arrived(out: &mut Vec<u8>, partition: u8, record: &Arrived<'_>) {
    match *record {
        Arrived::Item { copy, version, flags, remaining, key, value } => {
            let item = Item { version, flags, remaining, key, value: &[value] };
            let record = if copy { Record::Copy(item) } else { Record::Put(item) };
            encode_record(out, partition, &record);
        }
        Arrived::Other(record) => encode_record(out, partition, &record),
    }
}

fn encode_hello(out: &mut Vec<u8>, hello: &Hello) -> usize {
    let start = frame::begin(out, kind::HELLO, 0, hello.session.number);
    out.extend_from_slice(&hello.protocol.to_le_bytes());
    out.extend_from_slice(&hello.link_index.to_le_bytes());
    out.extend_from_slice(&hello.link_count.to_le_bytes());
    out.extend_from_slice(&hello.session.epoch.to_le_bytes());
    out.extend_from_slice(&hello.store_id.to_le_bytes());
    out.extend_from_slice(&hello.hash_check.to_le_bytes());
    out.extend_from_slice(&hello.item_limit.to_le_bytes());
    let cluster = name(&hello.cluster);
    out.push(u8::try_from(cluster.len()).unwrap_or(0));
    out.extend_from_slice(cluster);
    out.extend_from_slice(name(&hello.node));
    start
}

fn name(text: &str) -> &[u8] {
    &text.as_bytes()[..text.len().min(NAME_MAX)]
}

/// What the frame says.
///
/// # Errors
/// An unknown kind, a payload that has not its kind's form, a partition above 63.
pub fn decode<'a>(frame: &Frame<'a>) -> Result<Message<'a>, PeerMisbehaved> {
    if frame.partition >= 64 {
        return Err(PeerMisbehaved::NoSuchPartition(frame.partition));
    }
    let (payload, version) = (frame.payload, frame.version);
    match frame.kind {
        kind::HELLO => hello(version, payload),
        kind::HELLO_ACK => {
            let (store_id, node) =
                payload.split_first_chunk().ok_or_else(|| malformed("HelloAck", "too short"))?;
            let store_id = u128::from_le_bytes(*store_id);
            Ok(Message::HelloAck { store_id, node: text(node, "HelloAck")? })
        }
        kind::REFUSED => payload
            .first()
            .and_then(|b| Refusal::from_byte(*b))
            .map(Message::Refused)
            .ok_or_else(|| malformed("Refused", "unknown reason")),
        kind::SYNC_BEGIN => Ok(Message::SyncBegin { partition: frame.partition, version }),
        kind::SYNC_END => {
            let p = exact::<13>(payload, "SyncEnd")?;
            Ok(Message::SyncEnd {
                partition: frame.partition,
                version,
                last_delete: le64(p),
                flush_in: (p[8] != 0).then(|| le32(&p[9..])),
            })
        }
        kind::ACK => ack(version, payload),
        kind::PING => Ok(Message::Ping(version)),
        kind::PONG => Ok(Message::Pong(version)),
        kind::FORWARD => {
            let (connection, bytes) = connection(payload, "Forward")?;
            Ok(Message::Forward { connection, request: version, bytes })
        }
        kind::REPLY => reply(version, payload),
        kind::FORWARD_CLOSE => Ok(Message::ForwardClose { connection: version }),
        _ => Ok(Message::Record { partition: frame.partition, record: record(frame)? }),
    }
}

fn record<'a>(frame: &Frame<'a>) -> Result<Arrived<'a>, PeerMisbehaved> {
    let (payload, version) = (frame.payload, frame.version);
    match frame.kind {
        kind::PUT | kind::COPY => {
            if payload.len() < 9 {
                return Err(malformed("Put", "too short"));
            }
            let (key, value) = payload[9..]
                .split_at_checked(usize::from(payload[8]))
                .ok_or_else(|| malformed("Put", "key runs past the end"))?;
            let copy = frame.kind == kind::COPY;
            let (flags, remaining) = (le32(payload), le32(&payload[4..]));
            let key = checked_key(key)?;
            Ok(Arrived::Item { copy, version, flags, remaining, key, value })
        }
        kind::DELETE => Ok(Arrived::Other(Record::Delete { version, key: checked_key(payload)? })),
        kind::TOUCH => {
            let (time, key) =
                payload.split_at_checked(4).ok_or_else(|| malformed("Touch", "too short"))?;
            let key = checked_key(key)?;
            Ok(Arrived::Other(Record::Touch { version, remaining: le32(time), key }))
        }
        kind::FLUSH => Ok(Arrived::Other(Record::Flush { version })),
        kind::FLUSH_AT => {
            let remaining = le32(exact::<4>(payload, "FlushAt")?);
            Ok(Arrived::Other(Record::FlushAt { version, remaining }))
        }
        unknown => Err(PeerMisbehaved::UnknownKind(unknown)),
    }
}

fn checked_key(key: &[u8]) -> Result<&[u8], PeerMisbehaved> {
    if key.is_empty() || key.len() > crate::command::KEY_MAX {
        return Err(malformed("record", "key length"));
    }
    Ok(key)
}

fn hello(number: u64, payload: &[u8]) -> Result<Message<'static>, PeerMisbehaved> {
    const FIXED: usize = 37;
    if payload.len() < FIXED {
        return Err(malformed("Hello", "too short"));
    }
    let le16 = |at: usize| u16::from_le_bytes([payload[at], payload[at + 1]]);
    let store_id = payload[8..].first_chunk().map_or(0, |b| u128::from_le_bytes(*b));
    let (cluster, node) = payload[FIXED..]
        .split_at_checked(usize::from(payload[FIXED - 1]))
        .ok_or_else(|| malformed("Hello", "cluster id runs past the end"))?;
    Ok(Message::Hello(Hello {
        protocol: le16(0),
        link_index: le16(2),
        link_count: le16(4),
        session: LinkSession { epoch: le16(6), number },
        store_id,
        hash_check: le64(&payload[24..]),
        item_limit: le32(&payload[32..]),
        cluster: text(cluster, "Hello")?.to_owned(),
        node: text(node, "Hello")?.to_owned(),
    }))
}

fn ack(epoch: u64, payload: &[u8]) -> Result<Message<'_>, PeerMisbehaved> {
    let epoch = u16::try_from(epoch).ok().ok_or_else(|| malformed("Ack", "epoch"))?;
    if !payload.len().is_multiple_of(9) || payload.len() > 64 * 9 {
        return Err(malformed("Ack", "length"));
    }
    let applied = Applied(payload);
    if let Some((partition, _)) = applied.iter().find(|(p, _)| *p >= 64) {
        return Err(PeerMisbehaved::NoSuchPartition(partition));
    }
    Ok(Message::Ack { epoch, applied })
}

fn reply(request: u64, payload: &[u8]) -> Result<Message<'_>, PeerMisbehaved> {
    let (connection, rest) = connection(payload, "Reply")?;
    let (state, bytes) = rest.split_first().ok_or_else(|| malformed("Reply", "too short"))?;
    let state = match state {
        0 => ReplyState::Idle,
        1 => ReplyState::Busy,
        2 => ReplyState::Close,
        _ => return Err(malformed("Reply", "unknown state")),
    };
    Ok(Message::Reply { connection, request, state, bytes })
}

fn connection<'a>(
    payload: &'a [u8],
    kind: &'static str,
) -> Result<(u64, &'a [u8]), PeerMisbehaved> {
    let (id, rest) = payload.split_at_checked(8).ok_or_else(|| malformed(kind, "too short"))?;
    Ok((le64(id), rest))
}

fn exact<'a, const N: usize>(
    payload: &'a [u8],
    kind: &'static str,
) -> Result<&'a [u8; N], PeerMisbehaved> {
    payload.try_into().ok().ok_or_else(|| malformed(kind, "length"))
}

fn text<'a>(bytes: &'a [u8], kind: &'static str) -> Result<&'a str, PeerMisbehaved> {
    if bytes.len() > NAME_MAX {
        return Err(malformed(kind, "name too long"));
    }
    std::str::from_utf8(bytes).ok().ok_or_else(|| malformed(kind, "name is not UTF-8"))
}

fn malformed(kind: &'static str, what: &'static str) -> PeerMisbehaved {
    PeerMisbehaved::Malformed { kind, what }
}

/// Fuzz target: arbitrary bytes as one side of a link. What decodes must encode to the same bytes.
#[cfg(any(test, fuzzing))]
pub fn fuzz_message(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some((frame, used))) = frame::split(rest, 1 << 20) {
        if let Ok(message) = decode(&frame) {
            let mut out = Vec::new();
            encode(&mut out, &message);
            let (again, _) = frame::split(&out, 1 << 20).ok().flatten().unwrap_or((frame, 0));
            assert_eq!(decode(&again), Ok(message));
        }
        rest = &rest[used..];
    }
}

#[cfg(test)]
mod tests;
