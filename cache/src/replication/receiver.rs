//! The replica's end of one link: applies the streams, acknowledges, forwards commands.
//!
//! It applies what comes in the order in which it comes and overwrites whatever it has: the order
//! of the stream is the truth, the versions of items are not compared. Each record is applied
//! under its partition's lock together with two checks: the link's epoch is not below the
//! partition's (this node was promoted, or follows a newer primary), and no newer link has the
//! partition. What fails them is not applied and not acknowledged, and the link is over.
//!
//! A partition is acknowledged from its `SyncEnd` on: only then does the replica hold everything
//! up to the version it names.

use std::collections::VecDeque;

use super::forward::{ForwardClient, ForwardReply};
use super::frame::{Deframer, PeerMisbehaved};
use super::message::{self, Arrived, Hello, Message, Record, Refusal, ReplyState};
use super::sender::{LinkLost, bits, hash_check};
use super::stream::LinkSession;
use crate::exec::expiry_of;
use crate::{Cache, Cursor, LockedPartition, Meta, PARTITIONS, PutError, StoreTime};

/// What a receiver is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverConfig {
    /// Name of the pair.
    pub cluster: String,
    /// Name of this node.
    pub node: String,
    /// The epoch this node follows; a link of any other is refused.
    pub epoch: u16,
}

/// What happened on a receiver's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReceiverEvent {
    /// The link is taken: its full sync has begun.
    Receiving {
        /// The primary's first message.
        hello: Hello,
    },
    /// The full sync is applied in every partition of this link. Once.
    Received {
        /// The primary's epoch.
        epoch: u16,
    },
    /// Answer to [`Receiver::ping`].
    Pong(u64),
    /// Bytes for a client whose commands were forwarded.
    Reply(ForwardReply),
    /// The link is over. Nothing comes after it.
    Lost(LinkLost),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Hello,
    Streaming,
    Lost,
}

/// What a receiver has done, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReceiverCounters {
    /// Records applied.
    pub applied: u64,
    /// Items removed at the ends of walks because the primary does not have them.
    pub swept: u64,
    /// Items that did not fit because eviction is off. The primary has them, this node has not.
    pub no_memory: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Receiver {
    config: ReceiverConfig,
    state: State,
    session: LinkSession,
    /// Partitions of this link, those whose walk has begun, those whose walk has ended.
    mask: u64,
    begun: u64,
    ended: u64,
    applied: [u64; PARTITIONS],
    /// Partitions to be acknowledged.
    unacked: u64,
    deframer: Deframer,
    control: Vec<u8>,
    events: VecDeque<ReceiverEvent>,
    counters: ReceiverCounters,
    forward: ForwardClient,
}

/// Items that a sweep looks at under one lock.
const SWEEP: usize = 512;

impl Receiver {
    /// The replica's end of a link just connected.
    #[must_use]
    pub fn new(config: ReceiverConfig, cache: &Cache) -> Self {
        Self {
            config,
            state: State::Hello,
            session: LinkSession::default(),
            mask: 0,
            begun: 0,
            ended: 0,
            applied: [0; PARTITIONS],
            unacked: 0,
            deframer: Deframer::new(cache.item_limit() as usize),
            control: Vec::new(),
            events: VecDeque::new(),
            counters: ReceiverCounters::default(),
            forward: ForwardClient::default(),
        }
    }

    /// Takes in what came on the link and applies it.
    pub fn handle_bytes(&mut self, cache: &Cache, now: StoreTime, bytes: &[u8]) {
        if self.state == State::Lost {
            return;
        }
        let limit = cache.item_limit() as usize;
        let mut deframer = std::mem::replace(&mut self.deframer, Deframer::new(limit));
        let mut lost = None;
        let fed = deframer.feed(bytes, |frame| {
            if lost.is_none() {
                lost = self.message(cache, now, message::decode(&frame)?).err();
            }
            Ok(())
        });
        self.deframer = deframer;
        if let Some(reason) = fed.err().map(LinkLost::Peer).or(lost) {
            self.state = State::Lost;
            self.events.push_back(ReceiverEvent::Lost(reason));
        }
    }

    /// Appends what the link is to send: at most one acknowledgement, forwarded commands, all of
    /// it small. Returns whether something was appended.
    pub fn poll_transmit(&mut self, out: &mut Vec<u8>) -> bool {
        let before = out.len();
        out.append(&mut self.control);
        if self.state == State::Streaming {
            if self.unacked != 0 {
                let applied = bits(self.unacked).map(|p| (p, self.applied[usize::from(p)]));
                message::encode_ack(out, self.session.epoch, applied);
                self.unacked = 0;
            }
            self.forward.poll_transmit(out);
        }
        out.len() > before
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<ReceiverEvent> {
        self.events.pop_front()
    }

    /// Sends a ping; the answer comes back as [`ReceiverEvent::Pong`].
    pub fn ping(&mut self, token: u64) {
        message::encode(&mut self.control, &Message::Ping(token));
    }

    /// Whether commands may be forwarded: the link is taken and not lost.
    #[must_use]
    pub fn can_forward(&self) -> bool {
        self.state == State::Streaming
    }

    /// The clients whose commands go over this link.
    pub fn forward(&mut self) -> &mut ForwardClient {
        &mut self.forward
    }

    /// What has been done.
    #[must_use]
    pub fn counters(&self) -> ReceiverCounters {
        self.counters
    }

    fn message(
        &mut self,
        cache: &Cache,
        now: StoreTime,
        message: Message<'_>,
    ) -> Result<(), LinkLost> {
        match (self.state, message) {
            (State::Hello, Message::Hello(hello)) => self.hello(cache, hello)?,
            (State::Streaming, Message::SyncBegin { partition, version }) => {
                self.sync_begin(cache, partition, version)?;
            }
            (State::Streaming, Message::Record { partition, record }) => {
                self.record(cache, now, partition, record)?;
            }
            (State::Streaming, Message::SyncEnd { partition, version, last_delete, flush_in }) => {
                let flush_at = flush_in.map(|s| StoreTime(now.0.saturating_add(s.max(1))));
                self.sync_end(cache, partition, version, last_delete, flush_at)?;
            }
            (State::Streaming, Message::Reply { connection, request, state, bytes }) => {
                self.reply(connection, request, state, bytes)?;
            }
            (_, Message::Ping(token)) => {
                message::encode(&mut self.control, &Message::Pong(token));
            }
            (_, Message::Pong(token)) => self.events.push_back(ReceiverEvent::Pong(token)),
            _ => return Err(PeerMisbehaved::Unexpected { kind: "a message" }.into()),
        }
        Ok(())
    }

    fn hello(&mut self, cache: &Cache, hello: Hello) -> Result<(), LinkLost> {
        if let Some(reason) = self.refuses(cache, &hello) {
            message::encode(&mut self.control, &Message::Refused(reason));
            return Err(LinkLost::Refusing(reason));
        }
        let (index, count) = (usize::from(hello.link_index), usize::from(hello.link_count));
        let own = (0..PARTITIONS).filter(|p| p % count == index);
        self.mask = own.fold(0, |mask, p| mask | 1u64 << p);
        self.session = hello.session;
        self.state = State::Streaming;
        let ack = Message::HelloAck { store_id: cache.store_id(), node: &self.config.node };
        message::encode(&mut self.control, &ack);
        self.events.push_back(ReceiverEvent::Receiving { hello });
        Ok(())
    }

    fn refuses(&self, cache: &Cache, hello: &Hello) -> Option<Refusal> {
        let checks = [
            (hello.protocol == message::PROTOCOL, Refusal::Protocol),
            (hello.cluster == self.config.cluster, Refusal::Cluster),
            (hello.session.epoch == self.config.epoch, Refusal::Epoch),
            (hello.hash_check == hash_check(cache), Refusal::HashKey),
            (hello.item_limit <= cache.item_limit(), Refusal::ItemLimit),
            ((1..=64).contains(&hello.link_count), Refusal::LinkNumber),
            (hello.link_index < hello.link_count, Refusal::LinkNumber),
        ];
        checks.into_iter().find(|(holds, _)| !holds).map(|(_, refusal)| refusal)
    }

    /// Locks a partition of this link and checks that this link may still write it.
    fn lock<'c>(
        &self,
        cache: &'c Cache,
        partition: u8,
    ) -> Result<LockedPartition<'c>, PeerMisbehaved> {
        if self.begun & 1 << partition == 0 {
            return Err(PeerMisbehaved::NotBegun);
        }
        let mut locked = cache.lock_partition(usize::from(partition));
        let (state, stream) = locked.split();
        self.check_epoch(state.epoch())?;
        if stream.source() != Some(self.session) {
            return Err(PeerMisbehaved::StaleSession);
        }
        Ok(locked)
    }

    fn check_epoch(&self, have: u16) -> Result<(), PeerMisbehaved> {
        let got = self.session.epoch;
        if got < have { Err(PeerMisbehaved::StaleEpoch { got, have }) } else { Ok(()) }
    }

    fn sync_begin(
        &mut self,
        cache: &Cache,
        partition: u8,
        version: u64,
    ) -> Result<(), PeerMisbehaved> {
        let bit = 1u64 << partition;
        if self.mask & bit == 0 || self.begun & bit != 0 {
            return Err(PeerMisbehaved::Unexpected { kind: "SyncBegin" });
        }
        let got = u16::try_from(version >> crate::PartitionState::SEQ_BITS).unwrap_or(u16::MAX);
        if got != self.session.epoch {
            return Err(PeerMisbehaved::StaleEpoch { got, have: self.session.epoch });
        }
        let mut locked = cache.lock_partition(usize::from(partition));
        let (state, stream) = locked.split();
        self.check_epoch(state.epoch())?;
        if !stream.accept_from(self.session) {
            return Err(PeerMisbehaved::StaleSession);
        }
        // From here on no command of this node's own past epoch gets into the partition.
        state.raise_version(version);
        locked.clear_marks();
        self.applied[usize::from(partition)] = version;
        self.begun |= bit;
        Ok(())
    }

    /// The next place in a partition's stream: every change takes one and every change travels.
    fn check_next(&self, partition: u8, version: u64) -> Result<(), PeerMisbehaved> {
        let have = self.applied[usize::from(partition)];
        if have.checked_add(1) == Some(version) {
            Ok(())
        } else {
            Err(PeerMisbehaved::Gap { got: version, have })
        }
    }

    /// A place that the stream has reached already, or the version of an item.
    fn check_past(&self, partition: u8, version: u64) -> Result<(), PeerMisbehaved> {
        let have = self.applied[usize::from(partition)];
        if version <= have { Ok(()) } else { Err(PeerMisbehaved::Gap { got: version, have }) }
    }

    fn sync_end(
        &mut self,
        cache: &Cache,
        partition: u8,
        version: u64,
        last_delete: u64,
        flush_at: Option<StoreTime>,
    ) -> Result<(), PeerMisbehaved> {
        if self.ended & 1 << partition != 0 {
            return Err(PeerMisbehaved::Unexpected { kind: "SyncEnd" });
        }
        let have = self.applied[usize::from(partition)];
        if version != have {
            return Err(PeerMisbehaved::Gap { got: version, have });
        }
        let mut cursor = Some(Cursor::START);
        while let Some(at) = cursor {
            let swept = self.lock(cache, partition)?.sweep_unmarked(at, SWEEP);
            self.counters.swept += swept.removed;
            cursor = swept.next;
        }
        let mut locked = self.lock(cache, partition)?;
        let state = locked.partition();
        state.raise_last_delete(last_delete);
        state.set_flush_at(flush_at);
        self.reached(&mut locked, partition, version);
        self.ended |= 1 << partition;
        self.unacked |= 1 << partition;
        if self.ended == self.mask {
            let epoch = self.session.epoch;
            self.events.push_back(ReceiverEvent::Received { epoch });
        }
        Ok(())
    }

    fn reached(&mut self, locked: &mut LockedPartition<'_>, partition: u8, version: u64) {
        locked.partition().raise_version(version);
        self.applied[usize::from(partition)] = version;
        self.unacked |= self.ended & 1 << partition;
    }

    fn record(
        &mut self,
        cache: &Cache,
        now: StoreTime,
        partition: u8,
        record: Arrived<'_>,
    ) -> Result<(), PeerMisbehaved> {
        self.counters.applied += 1;
        match record {
            Arrived::Item { copy, version, flags, remaining, key, value } => {
                if copy {
                    self.check_past(partition, version)?;
                } else {
                    self.check_next(partition, version)?;
                }
                let meta = Meta { version, expiry: expiry_of(remaining, now), flags };
                let full = self.put(cache, partition, key, meta, value, now)?;
                self.counters.no_memory += u64::from(full);
                if !copy {
                    self.reached_by_key(partition, version);
                }
            }
            Arrived::Other(Record::Delete { version, key }) => {
                self.check_next(partition, version)?;
                let mut locked = self.lock_key(cache, partition, key)?;
                locked.remove(now);
                let state = locked.partition();
                state.raise_version(version);
                state.raise_last_delete(version);
                self.reached_by_key(partition, version);
            }
            Arrived::Other(Record::Touch { version, remaining, key }) => {
                self.check_next(partition, version)?;
                let mut locked = self.lock_key(cache, partition, key)?;
                if let Some(item_version) = locked.peek(now).map(|item| item.version) {
                    locked.touch(expiry_of(remaining, now), item_version, now);
                }
                locked.partition().raise_version(version);
                self.reached_by_key(partition, version);
            }
            Arrived::Other(Record::Flush { version }) => {
                self.check_next(partition, version)?;
                let mut locked = self.lock(cache, partition)?;
                locked.flush(None);
                locked.partition().raise_last_delete(version);
                locked.partition().set_flush_at(None);
                self.reached(&mut locked, partition, version);
            }
            Arrived::Other(Record::FlushAt { version, remaining }) => {
                self.check_next(partition, version)?;
                let mut locked = self.lock(cache, partition)?;
                let at = StoreTime(now.0.saturating_add(remaining.max(1)));
                locked.partition().set_flush_at(Some(at));
                self.reached(&mut locked, partition, version);
            }
            Arrived::Other(Record::Put(_) | Record::Copy(_)) => {}
        }
        Ok(())
    }

    /// Locks a key's shard and checks as [`Self::lock`] does.
    fn lock_key<'c, 'k>(
        &self,
        cache: &'c Cache,
        partition: u8,
        key: &'k [u8],
    ) -> Result<crate::Locked<'c, 'k>, PeerMisbehaved> {
        if self.begun & 1 << partition == 0 {
            return Err(PeerMisbehaved::NotBegun);
        }
        let mut locked = cache.lock(key);
        if locked.partition_id() != usize::from(partition) {
            return Err(PeerMisbehaved::WrongPartition);
        }
        let (state, stream) = locked.split();
        self.check_epoch(state.epoch())?;
        if stream.source() != Some(self.session) {
            return Err(PeerMisbehaved::StaleSession);
        }
        Ok(locked)
    }

    /// Returns whether there was no room.
    fn put(
        &self,
        cache: &Cache,
        partition: u8,
        key: &[u8],
        meta: Meta,
        value: &[u8],
        now: StoreTime,
    ) -> Result<bool, PeerMisbehaved> {
        let mut locked = self.lock_key(cache, partition, key)?;
        let full = match locked.put(meta, &[value], now) {
            Ok(()) => false,
            Err(PutError::NoMemory) => {
                // Better no item than the one that the primary has replaced.
                locked.remove(now);
                true
            }
            Err(PutError::TooLarge { .. } | PutError::KeyLength(_)) => {
                return Err(PeerMisbehaved::ItemTooLarge);
            }
        };
        // A copy's version is not above the partition's, so this moves only for live records.
        locked.partition().raise_version(meta.version);
        Ok(full)
    }

    fn reached_by_key(&mut self, partition: u8, version: u64) {
        self.applied[usize::from(partition)] = version;
        self.unacked |= self.ended & 1 << partition;
    }

    fn reply(
        &mut self,
        connection: u64,
        request: u64,
        state: ReplyState,
        bytes: &[u8],
    ) -> Result<(), PeerMisbehaved> {
        if let Some(reply) = self.forward.handle_reply(connection, request, state, bytes)? {
            self.events.push_back(ReceiverEvent::Reply(reply));
        }
        Ok(())
    }
}
