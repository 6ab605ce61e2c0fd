//! The eight states, and every change between them that is allowed.
//!
//! ```text
//!              ┌──────────────────────── no master about ───────────────────────┐
//!              ▼                                                                │
//!   ┌──────▶ BOOT ── a master is heard ──▶ JOIN ── stream up ──▶ CATCHUP ── told ──▶ SYNCED
//!   │         │ ▲                           │ ▲                   │    ◀── out of ───┘ │
//!   │  alone, │ │                           │ └──── stream lost ──┘       sync         │
//!   │ elected │ │              peer unheard └─────────┐ (policy)                       │ T1–T4
//!   │         ▼ │ resigned, engine gone               ▼                                │
//!   │      MASTER_SOLO ◀──────────────────────────────┴────────────────────────────────┘
//!   │         │     ▲ out of sync confirmed, peer dead
//!   │  caught │     │                       MASTER, MASTER_SOLO ── a better claim, isolated,
//!   │  up     ▼     │                                              a foreign master ──▶ FENCED
//!   └─────── MASTER ┘                       FENCED ── a master is heard ──▶ JOIN, else ──▶ BOOT
//!   SYNCED, MASTER ── silence, and nobody answers this node; or the witness refuses ──▶ FENCED
//! ```
//!
//! MASTER, told to stop, with a replica in sync, enters HANDOVER and leaves it by ending: the
//! replica takes over at once, and what is under way here is finished.

use serde::{Deserialize, Serialize};

/// What a node is. The codes are those of the role word and of beats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum State {
    /// Nobody is known to be master; answers nothing, forwards nothing.
    Boot = 0,
    /// A master is heard; its stream is not up.
    Join = 1,
    /// The stream is up: full sync, or waiting to be told that the pair is in sync.
    Catchup = 2,
    /// Backup that holds whatever the master has answered.
    Synced = 3,
    /// Owns the VIP; no answer leaves that the peer does not hold.
    Master = 4,
    /// Owns the VIP alone: answers are not protected.
    MasterSolo = 5,
    /// A master that was told to stop and has given the address away: it finishes the requests
    /// that it has, and takes part in nothing.
    Handover = 6,
    /// Must not answer: isolated, or somebody else is master.
    Fenced = 7,
}

impl State {
    /// Every state, in the order of the codes.
    pub const ALL: [Self; 8] = [
        Self::Boot,
        Self::Join,
        Self::Catchup,
        Self::Synced,
        Self::Master,
        Self::MasterSolo,
        Self::Handover,
        Self::Fenced,
    ];

    /// The name used in code, logs, metrics and documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Boot => "BOOT",
            Self::Join => "JOIN",
            Self::Catchup => "CATCHUP",
            Self::Synced => "SYNCED",
            Self::Master => "MASTER",
            Self::MasterSolo => "MASTER_SOLO",
            Self::Handover => "HANDOVER",
            Self::Fenced => "FENCED",
        }
    }

    /// MASTER or MASTER_SOLO: owns the VIP and runs memcached commands itself.
    #[must_use]
    pub const fn is_master(self) -> bool {
        matches!(self, Self::Master | Self::MasterSolo)
    }

    /// JOIN, CATCHUP or SYNCED: follows a master and forwards to it.
    #[must_use]
    pub const fn is_follower(self) -> bool {
        matches!(self, Self::Join | Self::Catchup | Self::Synced)
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a state was left. The name is the `cause` of the event and of the log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Cause {
    /// There is no peer.
    Single,
    /// Nobody was heard for `boot_wait`.
    Alone,
    /// Both nodes are without a master, and this claim is the better, or the other cannot serve.
    Elected,
    /// T1, T2, T3: the master said that it has stopped, and that this node is in sync.
    Resigned,
    /// Its guardian's connection closed, and its kernel says that no guardian listens.
    Closed,
    /// Its guardian has a new boot id.
    Rebooted,
    /// T4: nothing was heard on any path for `T_dead`.
    Silent,
    /// The peer is unheard for `unsynced_takeover`: what it alone held is lost.
    Unsynced,
    /// The peer, or the other master, knows a higher epoch: this reign goes on above it.
    EpochRaised,
    /// A master is heard.
    MasterHeard,
    /// No master is about.
    NoMaster,
    /// The stream from the master is up.
    StreamUp,
    /// The stream from the master is down.
    StreamDown,
    /// The master said that this node is in sync.
    ToldInSync,
    /// The master said, or shows, that this node is not in sync.
    ToldOutOfSync,
    /// This node did not run for `T_dead`: the master may have given it up.
    Stalled,
    /// The replica has all, and answers will wait for its acks.
    CaughtUp,
    /// The replica confirmed that it is out of sync, or was never told that it is in sync.
    OutOfSync,
    /// The peer cannot be in sync: dead, restarted or without its engine.
    PeerGone,
    /// The engine died, or could not be prepared.
    EngineDied,
    /// The engine came back with an empty store.
    StoreLost,
    /// The interface of the VIP has no carrier, and the peer's has.
    CarrierLost,
    /// The peer is not heard, and nobody on the segment of the addresses answers this node.
    Isolated,
    /// Nobody on the segment of the addresses answers this node, and the peer is answered there.
    SegmentLost,
    /// The master's host and its ownership are heard, its beats are not: filtered, or another key.
    NoBeats,
    /// The witness says that the other node went on, or could not be asked.
    Refused,
    /// Two masters: the other has the better claim.
    BetterClaim,
    /// Two masters: the other does not hear this one, and so cannot yield.
    Unheard,
    /// A foreign VRRP router outranks us.
    ForeignMaster,
    /// What had fenced this node is gone.
    Cleared,
    /// The epoch could not be persisted.
    DiskFailed,
    /// This node cannot be master: engine, disk, carrier, epochs, or it is stopping.
    NotAble,
    /// The peer, thought dead, is heard.
    PeerHeard,
    /// An operator's `stop` or `resign`.
    Operator,
}

impl Cause {
    /// A promotion by this cause is right whatever the peer does: it is dead, resigned or agrees.
    #[must_use]
    pub const fn is_proof(self) -> bool {
        !matches!(self, Self::Silent | Self::Alone | Self::Unsynced)
    }

    /// The name used in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Alone => "alone",
            Self::Elected => "elected",
            Self::Resigned => "resigned",
            Self::Closed => "closed",
            Self::Rebooted => "rebooted",
            Self::Silent => "silent",
            Self::Unsynced => "unsynced",
            Self::EpochRaised => "epoch_raised",
            Self::MasterHeard => "master_heard",
            Self::NoMaster => "no_master",
            Self::StreamUp => "stream_up",
            Self::StreamDown => "stream_down",
            Self::ToldInSync => "told_in_sync",
            Self::ToldOutOfSync => "told_out_of_sync",
            Self::Stalled => "stalled",
            Self::CaughtUp => "caught_up",
            Self::OutOfSync => "out_of_sync",
            Self::PeerGone => "peer_gone",
            Self::EngineDied => "engine_died",
            Self::StoreLost => "store_lost",
            Self::CarrierLost => "carrier_lost",
            Self::Isolated => "isolated",
            Self::SegmentLost => "segment_lost",
            Self::NoBeats => "no_beats",
            Self::Refused => "refused",
            Self::BetterClaim => "better_claim",
            Self::Unheard => "unheard",
            Self::ForeignMaster => "foreign_master",
            Self::Cleared => "cleared",
            Self::DiskFailed => "disk_failed",
            Self::NotAble => "not_able",
            Self::PeerHeard => "peer_heard",
            Self::Operator => "operator",
        }
    }
}

/// Every change of state that is allowed; all others are refused by name ([`refused`]).
pub const TRANSITIONS: &[(State, State, &[Cause])] = {
    use Cause as C;
    use State::{Boot, Catchup, Fenced, Handover, Join, Master, MasterSolo, Synced};
    &[
        (Boot, Join, &[C::MasterHeard]),
        (Boot, MasterSolo, &[C::Single, C::Alone, C::Elected]),
        (Join, Boot, &[C::NoMaster, C::Operator]),
        (Join, Catchup, &[C::StreamUp]),
        (Join, MasterSolo, &[C::Unsynced]),
        (Catchup, Boot, &[C::NoMaster, C::Operator]),
        (Catchup, Join, &[C::StreamDown, C::EngineDied, C::EpochRaised]),
        (Catchup, Synced, &[C::ToldInSync]),
        (Catchup, MasterSolo, &[C::Unsynced]),
        (Synced, Boot, &[C::NoMaster, C::Operator]),
        (Synced, Join, &[C::EngineDied, C::EpochRaised, C::NoBeats, C::NotAble]),
        (Synced, Fenced, &[C::Isolated, C::Refused]),
        (Synced, Catchup, &[C::ToldOutOfSync, C::Stalled]),
        (Synced, MasterSolo, &[C::Resigned, C::Closed, C::Rebooted, C::Silent]),
        (MasterSolo, Master, &[C::CaughtUp]),
        (MasterSolo, MasterSolo, &[C::EpochRaised]),
        (MasterSolo, Boot, &[C::EngineDied, C::StoreLost, C::Operator]),
        (MasterSolo, Fenced, &[C::BetterClaim, C::Unheard, C::ForeignMaster, C::Refused]),
        (Master, MasterSolo, &[C::OutOfSync, C::PeerGone, C::Silent]),
        (Master, Boot, &[C::EngineDied, C::StoreLost, C::CarrierLost, C::SegmentLost, C::Operator]),
        (Master, Handover, &[C::Operator]),
        (Master, Fenced, &[C::BetterClaim, C::Unheard, C::ForeignMaster, C::Isolated, C::Refused]),
        (Fenced, Join, &[C::MasterHeard]),
        (Fenced, Boot, &[C::Cleared, C::Operator]),
    ]
};

/// `None` when [`TRANSITIONS`] has it; else the refused change by name.
#[must_use]
pub fn refused(from: State, to: State, cause: Cause) -> Option<Refused> {
    let allowed =
        TRANSITIONS.iter().any(|(f, t, causes)| *f == from && *t == to && causes.contains(&cause));
    (!allowed).then_some(Refused { from, to, cause })
}

/// A change of state that no rule allows: a fault of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no rule leads from {from} to {to} by {}", cause.as_str())]
pub struct Refused {
    /// The state that would be left.
    pub from: State,
    /// The state that would be entered.
    pub to: State,
    /// The cause that was given.
    pub cause: Cause,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_table_is_allowed() {
        assert_eq!(refused(State::Synced, State::MasterSolo, Cause::Silent), None);
        let no = refused(State::Catchup, State::MasterSolo, Cause::Silent);
        let text = no.map(|r| r.to_string());
        assert_eq!(text.as_deref(), Some("no rule leads from CATCHUP to MASTER_SOLO by silent"));
        for state in State::ALL {
            let masters = TRANSITIONS.iter().filter(|(f, t, _)| *f == state && *t == State::Master);
            let allowed = usize::from(state == State::MasterSolo);
            assert_eq!(masters.count(), allowed, "MASTER is entered from MASTER_SOLO only");
        }
    }

    #[test]
    fn a_pair_of_states_has_one_row() {
        for (i, (from, to, causes)) in TRANSITIONS.iter().enumerate() {
            assert!(!causes.is_empty());
            assert!(
                !TRANSITIONS[..i].iter().any(|(f, t, _)| (f, t) == (from, to)),
                "{from} {to} twice"
            );
        }
        assert!(TRANSITIONS.iter().all(|(from, _, _)| *from != State::Handover), "it only ends");
    }
}
