//! The primary's end of one link: streams, the full sync, acknowledgements, forwarded commands.
//!
//! ```text
//! HELLO ──HelloAck──▶ STREAMING: each own partition WAITING → WALKING → WALKED
//!   └──Refused──▶ LOST ◀── overrun, damage, another epoch, the peer's fault
//! ```
//! The engine owns the socket. It calls [`Sender::handle_bytes`] with what came,
//! [`Sender::poll_transmit`] while the link takes more and something may be there (a dirty
//! partition, a walk, a forwarded answer), and [`Sender::poll_event`] until `None` after each.
//! A lost sender stays lost: close the link, [`Sender::close`] it, make a new one with a greater
//! number. There is no resume yet: each link begins with a full sync.

use std::collections::VecDeque;
use std::time::Instant;

use super::forward::ForwardServer;
use super::frame::{Deframer, PeerMisbehaved};
use super::message::{self, Hello, Item, Message, Record, Refusal};
use super::stream::{LinkSession, StreamLost};
use crate::exec::remaining;
use crate::session::Context;
use crate::{Cache, Cursor, ItemView, PARTITIONS, StoreTime};

/// What a sender is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SenderConfig {
    /// Name of the pair.
    pub cluster: String,
    /// Name of this node.
    pub node: String,
    /// Which link this is; it carries partitions `p % link_count == link_index`.
    pub link_index: u16,
    /// How many there are, 1 to 64.
    pub link_count: u16,
    /// Epoch of this primary and a number greater than any link's before it in this epoch.
    pub session: LinkSession,
    /// Unsent records that a partition may keep (bytes); two items are always kept.
    pub backlog: usize,
}

/// Why a link is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkLost {
    /// The other end does not take it.
    #[error("peer refused the link: {0:?}")]
    Refused(Refusal),
    /// This end does not take it; the refusal is in the output.
    #[error("link refused: {0:?}")]
    Refusing(Refusal),
    /// The peer was slower than the backlog allows.
    #[error("peer is slower than the backlog of partition {0} allows")]
    Overrun(u8),
    /// A newer link took a partition over.
    #[error("a newer link carries partition {0}")]
    Replaced(u8),
    /// A partition is in another epoch than this link.
    #[error("partition {0} is in another epoch than the link")]
    EpochChanged(u8),
    /// The peer broke the protocol, or the path damaged it.
    #[error(transparent)]
    Peer(#[from] PeerMisbehaved),
}

/// What happened on a sender's link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SenderEvent {
    /// The peer has taken the link; the full sync begins.
    Accepted {
        /// Its store.
        store_id: u128,
        /// Its name.
        node: String,
    },
    /// Acknowledgements went on in these partitions (bit = number): answers may leave.
    AckAdvanced(u64),
    /// The peer has acknowledged the whole full sync of this link's partitions. Once.
    CaughtUp,
    /// Answer to [`Sender::ping`].
    Pong(u64),
    /// The link is over. Nothing comes after it.
    Lost(LinkLost),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Hello,
    Streaming,
    Lost,
}

/// Partitions in order of the walk.
#[derive(Debug)]
struct Walk {
    /// Partition and place in it; `None` = to begin.
    at: Option<Cursor>,
    partition: usize,
    /// Version at `SyncEnd`, by partition; `None` while it has not been sent.
    ended: [Option<u64>; PARTITIONS],
    /// Bytes of the items shown last, to choose how many to show next.
    item_bytes: usize,
}

/// See the module's text.
#[derive(Debug)]
pub struct Sender {
    config: SenderConfig,
    state: State,
    /// Own partitions.
    mask: u64,
    walk: Walk,
    caught_up: bool,
    deframer: Deframer,
    control: Vec<u8>,
    events: VecDeque<SenderEvent>,
    forward: ForwardServer,
}

/// Bytes that a walk tries to take under one lock. Small in tests, so that much happens in between.
const WALK_BYTES: usize = if cfg!(test) { 512 } else { 64 * 1024 };

impl Sender {
    /// The primary's end of a link just connected. What the peer has acknowledged of its
    /// partitions is forgotten.
    #[must_use]
    pub fn new(config: SenderConfig, ctx: &Context<'_>) -> Self {
        let count = usize::from(config.link_count.clamp(1, 64));
        let own = (0..PARTITIONS).filter(|p| p % count == usize::from(config.link_index));
        let mask = own.fold(0, |mask, p| mask | 1u64 << p);
        for partition in bits(mask) {
            ctx.shared.forget(partition);
        }
        let mut control = Vec::new();
        let hello = Hello {
            protocol: message::PROTOCOL,
            link_index: config.link_index,
            link_count: config.link_count,
            session: config.session,
            store_id: ctx.cache.store_id(),
            hash_check: hash_check(ctx.cache),
            item_limit: ctx.cache.item_limit(),
            cluster: config.cluster.clone(),
            node: config.node.clone(),
        };
        message::encode(&mut control, &Message::Hello(hello));
        let deframer = Deframer::new(ctx.cache.item_limit() as usize);
        Self {
            config,
            state: State::Hello,
            mask,
            walk: Walk {
                at: None,
                partition: mask.trailing_zeros() as usize,
                ended: [None; PARTITIONS],
                item_bytes: 0,
            },
            caught_up: false,
            deframer,
            control,
            events: VecDeque::new(),
            forward: ForwardServer::default(),
        }
    }

    /// Takes in what came on the link.
    pub fn handle_bytes(&mut self, ctx: &Context<'_>, bytes: &[u8]) {
        if self.state == State::Lost {
            return;
        }
        let limit = ctx.cache.item_limit() as usize;
        let mut deframer = std::mem::replace(&mut self.deframer, Deframer::new(limit));
        let mut lost = None;
        let fed = deframer.feed(bytes, |frame| {
            if lost.is_none() {
                lost = self.message(ctx, message::decode(&frame)?).err();
            }
            Ok(())
        });
        self.deframer = deframer;
        if let Some(lost) = fed.err().map(LinkLost::Peer).or(lost) {
            self.lose(lost);
        }
    }

    /// Appends what the link is to send, until about `budget` bytes; a single item may be larger.
    /// Returns whether there is more.
    pub fn poll_transmit(&mut self, ctx: &Context<'_>, out: &mut Vec<u8>, budget: usize) -> bool {
        out.append(&mut self.control);
        if self.state != State::Streaming {
            return false;
        }
        let end = out.len() + budget;
        match self.stream(ctx, out, end) {
            Ok(more) => more,
            Err(lost) => {
                self.lose(lost);
                false
            }
        }
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<SenderEvent> {
        self.events.pop_front()
    }

    /// Sends a ping; the answer comes back as [`SenderEvent::Pong`].
    pub fn ping(&mut self, token: u64) {
        message::encode(&mut self.control, &Message::Ping(token));
    }

    /// Ends the streams of this link: nothing is kept for it any more.
    pub fn close(&mut self, cache: &Cache) {
        for partition in bits(self.mask) {
            let mut locked = cache.lock_partition(usize::from(partition));
            locked.stream_mut().detach(self.config.session);
        }
        self.state = State::Lost;
    }

    /// This link's partitions (bit = number).
    #[must_use]
    pub fn partitions(&self) -> u64 {
        self.mask
    }

    /// Whether [`Self::poll_transmit`] would give something out.
    #[must_use]
    pub fn wants_transmit(&self, ctx: &Context<'_>) -> bool {
        let streams = ctx.shared.dirty() & self.mask != 0 || self.walk.partition < PARTITIONS;
        let forwards = self.forward.wants_transmit();
        !self.control.is_empty() || (self.state == State::Streaming && (streams || forwards))
    }

    /// Since when the oldest answer to a forwarded command waits for the gate.
    #[must_use]
    pub fn oldest_held_since(&self) -> Option<Instant> {
        self.forward.oldest_held_since()
    }

    /// Partitions of this link whose records the peer has not all acknowledged, with the bytes
    /// not yet on the link. Locks each of them.
    pub fn lag(&self, ctx: &Context<'_>) -> (u32, usize) {
        let mut sum = (0, 0);
        for partition in bits(self.mask) {
            let mut locked = ctx.cache.lock_partition(usize::from(partition));
            let version = locked.partition().version();
            sum.0 += u32::from(ctx.shared.acked(partition) < version);
            sum.1 += locked.stream_mut().backlog();
        }
        sum
    }

    fn lose(&mut self, reason: LinkLost) {
        if self.state != State::Lost {
            self.state = State::Lost;
            self.events.push_back(SenderEvent::Lost(reason));
        }
    }

    fn message(&mut self, ctx: &Context<'_>, message: Message<'_>) -> Result<(), LinkLost> {
        match (self.state, message) {
            (State::Hello, Message::HelloAck { store_id, node }) => {
                self.state = State::Streaming;
                let node = node.to_owned();
                self.events.push_back(SenderEvent::Accepted { store_id, node });
            }
            (State::Hello, Message::Refused(reason)) => return Err(LinkLost::Refused(reason)),
            (State::Streaming, Message::Ack { epoch, applied }) => {
                self.acked(ctx, epoch, applied)?;
            }
            (State::Streaming, Message::Forward { connection, request, bytes }) => {
                self.forward.handle(ctx, connection, request, bytes);
            }
            (State::Streaming, Message::ForwardClose { connection }) => {
                self.forward.handle_close(connection);
            }
            (_, Message::Ping(token)) => {
                message::encode(&mut self.control, &Message::Pong(token));
            }
            (_, Message::Pong(token)) => self.events.push_back(SenderEvent::Pong(token)),
            _ => return Err(PeerMisbehaved::Unexpected { kind: "a message" }.into()),
        }
        Ok(())
    }

    fn acked(
        &mut self,
        ctx: &Context<'_>,
        epoch: u16,
        applied: message::Applied<'_>,
    ) -> Result<(), LinkLost> {
        let mut advanced = 0;
        for (partition, version) in applied.iter() {
            let own = self.mask & 1 << partition != 0;
            let walked = self.walk.ended[usize::from(partition)].is_some();
            if epoch != self.config.session.epoch || !own || !walked {
                return Err(PeerMisbehaved::Unexpected { kind: "an ack" }.into());
            }
            if ctx.shared.acknowledge(partition, version) {
                advanced |= 1 << partition;
            }
        }
        if advanced != 0 {
            self.events.push_back(SenderEvent::AckAdvanced(advanced));
            self.forward.gate_may_have_opened();
        }
        if !self.caught_up && self.is_caught_up(ctx) {
            self.caught_up = true;
            self.events.push_back(SenderEvent::CaughtUp);
        }
        Ok(())
    }

    fn is_caught_up(&self, ctx: &Context<'_>) -> bool {
        bits(self.mask).all(|partition| {
            let ended = self.walk.ended[usize::from(partition)];
            ended.is_some_and(|version| ctx.shared.acked(partition) >= version)
        })
    }

    /// Live records first, then answers to forwarded commands, then the walk.
    fn stream(
        &mut self,
        ctx: &Context<'_>,
        out: &mut Vec<u8>,
        end: usize,
    ) -> Result<bool, LinkLost> {
        let mut dirty = ctx.shared.take_dirty(self.mask);
        while dirty != 0 && out.len() < end {
            let partition = (dirty.trailing_zeros() & 63) as u8;
            dirty &= dirty - 1;
            let mut locked = ctx.cache.lock_partition(usize::from(partition));
            self.take(&mut locked, partition, out)?;
        }
        for partition in bits(dirty) {
            ctx.shared.mark_dirty(partition);
        }
        let more = self.forward.poll_transmit(ctx, out, end);
        while self.walk.partition < PARTITIONS && out.len() < end {
            self.walk_step(ctx, out)?;
        }
        Ok(more || dirty != 0 || self.walk.partition < PARTITIONS)
    }

    /// Moves a partition's pending records to the link. Nothing pending and nobody attached is
    /// the state before `SyncBegin`.
    fn take(
        &self,
        locked: &mut crate::LockedPartition<'_>,
        partition: u8,
        out: &mut Vec<u8>,
    ) -> Result<(), LinkLost> {
        let (state, stream) = locked.split();
        if state.epoch() != self.config.session.epoch {
            return Err(LinkLost::EpochChanged(partition));
        }
        stream.take(self.config.session, out).map_err(|lost| match lost {
            StreamLost::Overrun => LinkLost::Overrun(partition),
            StreamLost::Replaced => LinkLost::Replaced(partition),
        })
    }

    /// Under one lock: begins, continues or ends the walk of a partition. All pending records go
    /// out first, so that what the walk says comes after every change made before it.
    fn walk_step(&mut self, ctx: &Context<'_>, out: &mut Vec<u8>) -> Result<(), LinkLost> {
        let (index, now) = (self.walk.partition, ctx.now.store);
        let partition = (index & 63) as u8;
        let mut locked = ctx.cache.lock_partition(index);
        let cursor = match self.walk.at {
            Some(cursor) => cursor,
            None => {
                let (state, stream) = locked.split();
                if state.epoch() != self.config.session.epoch {
                    return Err(LinkLost::EpochChanged(partition));
                }
                let backlog = self.config.backlog.max(2 * ctx.cache.item_limit() as usize);
                stream.attach(self.config.session, backlog);
                let version = state.version();
                message::encode(out, &Message::SyncBegin { partition, version });
                Cursor::START
            }
        };
        self.take(&mut locked, partition, out)?;
        let budget = (WALK_BYTES / self.walk.item_bytes.max(256)).max(1);
        let (before, mut shown) = (out.len(), 0);
        let next = locked.walk(cursor, budget, now, |item, _, _| {
            encode_copy(out, partition, item, now);
            shown += 1;
        });
        let average = (out.len() - before).checked_div(shown);
        self.walk.item_bytes = average.unwrap_or(self.walk.item_bytes);
        self.walk.at = next;
        if next.is_none() {
            let state = locked.partition();
            let version = state.version();
            let last_delete = state.last_delete();
            let flush_in = state.flush_at().map(|at| at.0.saturating_sub(now.0));
            let end = Message::SyncEnd { partition, version, last_delete, flush_in };
            message::encode(out, &end);
            self.walk.ended[index] = Some(version);
            let later = self.mask & !1u64.checked_shl(index as u32 + 1).map_or(u64::MAX, |b| b - 1);
            self.walk.partition = later.trailing_zeros() as usize;
        }
        Ok(())
    }
}

/// The numbers of the bits set.
pub(super) fn bits(mut mask: u64) -> impl Iterator<Item = u8> {
    std::iter::from_fn(move || {
        let bit = (mask != 0).then(|| (mask.trailing_zeros() & 63) as u8)?;
        mask &= mask - 1;
        Some(bit)
    })
}

/// Two nodes with the same answer put keys into the same partitions.
pub(super) fn hash_check(cache: &Cache) -> u64 {
    cache.lock(b"tandem: same hash key?").hash()
}

fn encode_copy(out: &mut Vec<u8>, partition: u8, item: &ItemView<'_>, now: StoreTime) {
    let mut value = item.value.clone();
    let first = value.next().unwrap_or_default();
    let parts: Vec<&[u8]>;
    let value: &[&[u8]] = if value.is_empty() {
        &[first]
    } else {
        parts = item.value.clone().collect();
        &parts
    };
    let (version, flags, key) = (item.version, item.flags, item.key);
    let remaining = remaining(item.expiry, now);
    let item = Item { version, flags, remaining, key, value };
    message::encode_record(out, partition, &Record::Copy(item));
}
