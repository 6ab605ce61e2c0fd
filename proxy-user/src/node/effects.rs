//! What [`super::Node`] asks of its shell and hears from it: inputs, effects and events as data.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::claim::{Alone, Epoch, Lineage};
use super::message::{Beat, BootId};
use super::question::Question;
use super::role::{Cause, Refused, State};
use super::segment::Reach;
use crate::config::{LonelySegment, Side, UnreachableWitness, UnsyncedTakeover};

/// What a [`super::Node`] is made from.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// This node's side: low bit of its epochs. Meaningless but needed without a peer.
    pub side: Side,
    /// This start of the guardian: random.
    pub boot: BootId,
    /// The highest epoch in the state file, of any side; [`Epoch::NONE`] on a first start.
    pub persisted: Epoch,
    /// The other node; `None` = single.
    pub peer: Option<PeerConfig>,
    /// Per VRRP instance: which of the peer's addresses is on its segment, as an index of the
    /// paths (by which [`super::Node::handle_beat`] names them).
    pub segments: Vec<Option<usize>>,
    /// What the guardian before this one knew of the store, if the store outlived it.
    pub legacy: Option<Legacy>,
}

/// What a guardian leaves to the next one on the same store ([`Effect::Remember`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Legacy {
    /// Where the store's content comes from.
    pub lineage: Lineage,
    /// What was answered that the peer does not hold.
    pub alone: Alone,
    /// It was the master, and the peer was not there: nobody else needs to be waited for.
    pub solo: bool,
}

/// The other node, and how to judge it.
#[derive(Debug, Clone)]
pub struct PeerConfig {
    /// Interval of beats.
    pub beat: Duration,
    /// Missed beats until silence is death: `T_dead = beat * dead_after`, at least 3.
    pub dead_after: u32,
    /// After its connection closed: how often it is asked whether it lives.
    pub ask: Duration,
    /// Silence after start until this node takes itself for alone.
    pub boot_wait: Duration,
    /// When a node that is not SYNCED takes over from a peer that is unheard.
    pub unsynced_takeover: UnsyncedTakeover,
    /// After MASTER was left for MASTER_SOLO: how long until MASTER is tried again.
    pub resync_hold: Duration,
    /// How long a master's lease may be invalid, with its peer heard, until it goes out of sync.
    pub lease_wait: Duration,
    /// How long a master waits for its engine to come back until it gives up its role.
    pub engine_wait: Duration,
    /// How long the better of two masters waits for the other to hear it, until it yields itself.
    pub asymmetry_wait: Duration,
    /// What silence means where no third host is known on the segment to ask.
    pub lonely: LonelySegment,
    /// A witness is asked before a node goes on by silence; what to do when it cannot be reached.
    pub witness: Option<UnreachableWitness>,
}

impl Default for PeerConfig {
    fn default() -> Self {
        Self {
            beat: Duration::from_millis(10),
            dead_after: 4,
            ask: Duration::from_millis(1),
            boot_wait: Duration::from_secs(3),
            unsynced_takeover: UnsyncedTakeover::After(Duration::from_secs(3)),
            resync_hold: Duration::from_secs(1),
            lease_wait: Duration::from_millis(20),
            engine_wait: Duration::from_secs(3),
            asymmetry_wait: Duration::from_millis(200),
            lonely: LonelySegment::Takeover,
            witness: None,
        }
    }
}

impl PeerConfig {
    /// `T_dead`: silence on every path after which the peer counts as dead.
    #[must_use]
    pub fn dead_time(&self) -> Duration {
        self.beat * self.dead_after.max(3)
    }

    /// `T_lease`: one beat less. The beat between them covers two clocks whose rates differ by
    /// less than `1 / (2 * dead_after)`: 12 % at 4 beats, where quartz differs by 0.02 %.
    #[must_use]
    pub fn lease_time(&self) -> Duration {
        self.dead_time() - self.beat
    }

    /// Two beats in a row are missed, and half of a third: time to ask.
    #[must_use]
    pub fn ear_time(&self) -> Duration {
        self.beat * 5 / 2
    }

    /// Silence without a sign of life from the segment, after which this node is the isolated one.
    #[must_use]
    pub fn isolation_time(&self) -> Duration {
        self.dead_time() + self.beat * 2
    }

    /// Silence of a guardian whose host's kernel still answers: hung, stopped, or the host is busy.
    #[must_use]
    pub fn hung_time(&self) -> Duration {
        self.dead_time() * 5 / 2
    }
}

/// What the engine (or its supervisor) reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineEvent {
    /// It runs and has attached the store. A new engine may report this only when every thread of
    /// the last one is dead.
    Up {
        /// The store began empty.
        fresh: bool,
        /// Epoch of the newest full content, from the region; used by a guardian that has no
        /// memory of its own.
        data_epoch: Epoch,
    },
    /// Every worker is dead (not merely signalled): no answer leaves any more.
    Died,
    /// Every partition is at this epoch: records of lower ones are refused, never acked.
    Prepared(Epoch),
    /// Something happened to the streams between the engines.
    Sync(SyncEvent),
}

/// What an engine reports about the streams to and from the peer's engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncEvent {
    /// At least one link is down, or was replaced by a new one: the stream as a whole is over. The
    /// engines make new links by themselves; a full sync follows.
    LinksDown,
    /// Receiver: all links are up and the full sync of this epoch has begun.
    Receiving {
        /// The sender's epoch.
        epoch: Epoch,
    },
    /// Receiver: since [`Self::Receiving`] the full sync is applied, in every partition.
    Received {
        /// The sender's epoch.
        epoch: Epoch,
    },
    /// Sender: the receiver has acked a whole full sync and follows in time; or, after
    /// [`Self::AckLate`], it has acked what was unacked then. A hint: [`Effect::Gate`] may follow.
    CaughtUp {
        /// The sender's epoch.
        epoch: Epoch,
    },
    /// Sender: every worker has seen this gate's MASTER, **and then** the receiver has acked the
    /// position that each partition had at that moment. So it holds whatever was answered ungated.
    Gated {
        /// Of [`Effect::Gate`].
        gate: u64,
    },
    /// Sender: a gated answer has waited for an ack for `ack_timeout`.
    AckLate {
        /// The sender's epoch.
        epoch: Epoch,
    },
}

/// What happened to the control connection. One is current at a time; the shell reports the end
/// of the current one only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlEvent {
    /// Established and authenticated.
    Connected,
    /// Its end came in order (FIN): the peer's kernel does that for a guardian that died; a box in
    /// between may do it too, so the peer is asked.
    ClosedByPeer,
    /// After that: the peer's kernel says that no guardian listens there. Proof of its death.
    Refused,
    /// It was reset (perhaps by a box in between), or this side gave it up: proves nothing.
    Lost,
}

/// What an operator asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// It will be stopped as soon as the peer is in sync ([`super::Node::awaits_replica`]): no time
    /// to lose.
    Leave,
    /// Stop for good. A SYNCED peer is given the role, and HANDOVER is entered; else BOOT. The node
    /// answers for nothing from here on.
    Stop,
}

/// Until when answers may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// For ever: there is no peer.
    Unlimited,
    /// Until then.
    Until(Instant),
    /// Not at all.
    Expired,
}

/// Where the engine's master is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// Nobody is known to be master: close the memcached clients and any stream.
    Nobody,
    /// This node: run commands here; send the stream to the peer's engine.
    Here(Epoch),
    /// The peer: take a full sync and the stream of this epoch from it, forward commands to it.
    /// Named again with another epoch: a new stream.
    Peer(Epoch),
}

/// What becomes of a TCP segment to an address that belongs to no connection of this node and
/// begins none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strays {
    /// The kernel answers with a reset: whoever sent it learns that its connection is gone.
    Refused,
    /// It is dropped in silence: the sender's connection is with the other node.
    Dropped,
    /// It is passed on to the other node, which finishes what it has.
    Relayed,
}

/// What a shell performs, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Make the state file hold at least this epoch (fsync), then `handle_epoch_persisted`.
    PersistEpoch(Epoch),
    /// Have the engine raise every partition to this epoch; it reports `Prepared`.
    PrepareEngine(Epoch),
    /// Put the addresses on this host (not answered for yet), or take them off; then
    /// `handle_address`.
    Address(bool),
    /// Ask third hosts, and the peer's own address, by ARP on the segment of this instance.
    Probe {
        /// Index of the instance.
        instance: usize,
    },
    /// Ask the witness; then `handle_witness`.
    AskWitness(Question),
    /// Keep this beside the store, for the next guardian.
    Remember(Legacy),
    /// Write the role word. From here on nothing produced under another role leaves the engine.
    SetRole {
        /// What this node is.
        state: State,
        /// Its reign, or the reign it follows.
        epoch: Epoch,
    },
    /// Write the lease beside the role word.
    SetLease(Lease),
    /// Answer (or not) for every VIP: XDP map, or address.
    Answer(bool),
    /// What to do with segments of other nodes' connections, from here on; [`Strays::Refused`] at
    /// first.
    Strays(Strays),
    /// Send this VRRP advert, start or stop a burst of gratuitous ARP.
    Vrrp {
        /// Index of the instance, in the order in which they were given.
        instance: usize,
        /// What to do; only sending, `Garp` and `StopGarp` need the shell.
        output: vrrp::Output,
    },
    /// Have the engine report [`SyncEvent::Gated`] with this number when it is true. Comes after
    /// the role word MASTER; a later gate, or another role, ends an earlier one.
    Gate(u64),
    /// Send this beat at once, on every path and on the control connection.
    SendBeat(Beat),
    /// Tell the engine where the master is.
    EngineTarget(Target),
    /// For logs and metrics.
    Event(Event),
}

/// What is worth a log line or a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The state has changed: one log line.
    RoleChanged {
        /// Before.
        from: State,
        /// After.
        to: State,
        /// Under this epoch.
        epoch: Epoch,
        /// Why.
        cause: Cause,
    },
    /// A promotion has begun; `RoleChanged` or `PromotionFailed` follows.
    Promoting {
        /// The new epoch.
        epoch: Epoch,
        /// Why.
        cause: Cause,
    },
    /// A promotion was given up.
    PromotionFailed {
        /// The epoch that will not be used.
        epoch: Epoch,
        /// Why.
        cause: Cause,
    },
    /// A node that was not in sync took over: what the peer alone held is lost. Alarm.
    LossyTakeover {
        /// What this node's store is.
        lineage: Lineage,
    },
    /// This node has taken another master's content: what it had answered alone is lost. Alarm.
    ForkLost(Alone),
    /// The state file cannot be written, or the disk does not answer; the reserve of epochs lasts
    /// for a few promotions. Alarm.
    DiskFailed,
    /// The state file can be written again.
    DiskRecovered,
    /// Promotions left before epochs run out. Alarm.
    EpochsLow {
        /// How many.
        left: u16,
    },
    /// A foreign VRRP router took the VIP. Alarm.
    ForeignMaster,
    /// A foreign VRRP router outranks us by its adverts and does not answer for the address, or
    /// the peer is heard: nothing was done. Alarm, once until it falls silent.
    ForeignAdverts,
    /// Somebody answers for our addresses and sends no beat that we can read: this node stays out.
    /// Alarm; false: it is over.
    Blocked(bool),
    /// How far this node reaches its segments has changed.
    Reach(Reach),
    /// What the peer said of its reach has changed.
    PeerReach(Reach),
    /// Promotions without proof come too often: the next waits so long. Alarm.
    Damped(Duration),
    /// The witness granted, refused or was not reached.
    Witness(super::question::Answer),
    /// Another master is heard: the pair was divided.
    SecondMaster {
        /// This node keeps the VIP.
        we_win: bool,
    },
    /// The peer's guardian started (again).
    PeerBoot(BootId),
    /// The peer is heard again, or no longer (for `T_dead`).
    PeerHeard(bool),
    /// This node did not run for that long; it was not taken for the peer's silence.
    Stalled(Duration),
    /// A rule of ours tried what the table does not allow; nothing was done. Alarm.
    Refused(Refused),
}
