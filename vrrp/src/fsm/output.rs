//! What an instance asks of its shell and tells its owner, and what it counts.

use std::net::IpAddr;

use crate::config::Priority;
use crate::packet::Refusal;

use super::State;

/// One thing to do or to know, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this IP payload to the group: TTL 255, protocol 112, from the configured source.
    SendAdvert {
        /// Whole VRRP message.
        payload: Vec<u8>,
        /// Why now.
        reason: AdvertReason,
    },
    /// Start (or start again) the GARP or unsolicited-NA burst for every address.
    Garp {
        /// Why now.
        reason: GarpReason,
    },
    /// Stop the running burst: somebody newer answers for the addresses.
    StopGarp,
    /// The state has changed.
    StateChanged {
        /// Before.
        from: State,
        /// After.
        to: State,
    },
    /// Coupled, in Active: a foreign router outranks us by RFC 9568 §6.4.3. Repeated with each of
    /// its adverts until the owner resigns.
    Superseded {
        /// The stronger router.
        source: IpAddr,
        /// Its priority.
        priority: Priority,
    },
    /// Coupled: an advert of the known peer, which therefore believes that it is Active.
    PeerContact {
        /// The peer.
        source: IpAddr,
        /// Its priority.
        priority: Priority,
    },
    /// Coupled: the known peer said priority 0.
    PeerResigned {
        /// The peer.
        source: IpAddr,
    },
    /// Coupled, in Backup: a router that is not the known peer has become Active. Once per router.
    ForeignMaster {
        /// The router.
        source: IpAddr,
        /// Its priority.
        priority: Priority,
    },
    /// In Active: somebody weaker also believes to be Active. An advert precedes, a
    /// [`Self::Garp`] follows.
    SecondMaster {
        /// The weaker router.
        source: IpAddr,
        /// Its priority.
        priority: Priority,
    },
    /// An accepted advert disagrees with our configuration; once per difference.
    Differs(Difference),
}

/// Why an advert was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AdvertReason {
    /// Just promoted.
    Promoted,
    /// The advertisement timer.
    Periodic,
    /// Against a weaker master, or by [`super::Instance::reassert`].
    Asserting,
    /// Another master resigned.
    PriorityZeroHeard,
    /// Priority 0: our own resignation.
    Resigning,
}

/// Why a GARP burst was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GarpReason {
    /// Just promoted.
    Promoted,
    /// Another master was heard, so switches and neighbours may have learned it.
    SecondMaster,
    /// By [`super::Instance::reassert`].
    Reasserted,
}

/// Disagreement that RFC 9568 §7.1 wants logged and otherwise ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Difference {
    /// Who disagrees.
    pub source: IpAddr,
    /// In the set of addresses.
    pub addresses: bool,
    /// In the advertisement interval (which version 3 learns).
    pub interval: bool,
}

/// Counters of one instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Adverts accepted.
    pub received: u64,
    /// Adverts sent, of any priority.
    pub sent: u64,
    /// Of `received`, those of priority 0.
    pub priority_zero_received: u64,
    /// Of `sent`, those of priority 0.
    pub priority_zero_sent: u64,
    /// Transitions to Active.
    pub became_active: u64,
    /// Transitions from Active.
    pub left_active: u64,
    /// Immediate answers not sent because another went out less than 10 ms before.
    pub answers_withheld: u64,
    /// Datagrams dropped, by [`Refusal::index`].
    pub refused: [u64; Refusal::KINDS],
}

impl Counters {
    /// (label, count) of every refusal.
    pub fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.refused.iter().enumerate().filter_map(|(i, n)| Some((Refusal::name(i)?, *n)))
    }
}
