//! Epochs, and which of two nodes has the better claim to be master.
//!
//! Values only: who holds them and when they change is [`super::Node`]'s business.

use serde::{Deserialize, Serialize};

use crate::config::Side;

/// A reign: `counter << 1 | side`, 15 bits, as in every item's version. 0 = before the first.
///
/// The low bit is the node's, so the two nodes never take the same value; a value is persisted
/// before it is used and never used twice.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(try_from = "u16", into = "u16")]
pub struct Epoch(u16);

impl Epoch {
    /// Before the first reign.
    pub const NONE: Self = Self(0);
    /// Largest value that fits a version.
    pub const MAX: Self = Self(0x7fff);
    /// Promotions after which [`Self::is_alarming`]; 1,383 more are possible.
    pub const ALARM_PROMOTIONS: u16 = 15_000;
    /// Four promotions of either side.
    const RESERVED: u16 = 9;

    /// `None` when `value` does not fit 15 bits.
    #[must_use]
    pub const fn new(value: u16) -> Option<Self> {
        if value <= Self::MAX.0 { Some(Self(value)) } else { None }
    }

    /// The 15 bits.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// A reign of this side.
    #[must_use]
    pub const fn is_of(self, side: Side) -> bool {
        self.0 & 1 == side.bit()
    }

    /// `side`'s epoch of the next counter; `None` when there is none left: the pair's state files
    /// must be removed while both nodes are stopped.
    #[must_use]
    pub fn next(self, side: Side) -> Option<Self> {
        Self::new((self.0 & !1) + 2 + side.bit())
    }

    /// So many promotions may follow without waiting for the disk: what the state file is made to
    /// hold ahead of the highest epoch known. A start uses up what was reserved before it, since
    /// nobody knows how much of it was used.
    #[must_use]
    pub fn reserve(self) -> Self {
        Self(self.0.saturating_add(Self::RESERVED).min(Self::MAX.0))
    }

    /// Half of the reserve is used: make a new one.
    #[must_use]
    pub(super) fn wants_reserve(self, held: Self) -> bool {
        held < Self::MAX && held.0 < self.0.saturating_add(Self::RESERVED / 2)
    }

    /// So few are left that an operator must know.
    #[must_use]
    pub const fn is_alarming(self) -> bool {
        self.0 >> 1 >= Self::ALARM_PROMOTIONS
    }
}

impl From<Epoch> for u16 {
    fn from(epoch: Epoch) -> Self {
        epoch.0
    }
}

impl TryFrom<u16> for Epoch {
    type Error = EpochTooLarge;

    fn try_from(value: u16) -> Result<Self, Self::Error> {
        Self::new(value).ok_or(EpochTooLarge(value))
    }
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A peer (or a state file) named an epoch of more than 15 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("epoch {0} does not fit 15 bits")]
pub struct EpochTooLarge(pub u16);

/// Where a store's content comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Lineage {
    /// Nothing was ever stored.
    Empty,
    /// The reign of this epoch began without what the pair had held (an empty store, or a full
    /// sync not finished), and no peer has held its content since.
    Apart(Epoch),
    /// Both nodes have held this content at some time, and whoever wrote to it since had proof that
    /// the other does not; the epoch is the newest that wrote to it.
    Shared(Epoch),
    /// Shared content of epoch `base`, written to by this node since it went on by *silence*, in
    /// `epoch`: the other may have done the same.
    Fork {
        /// Epoch of the content that both hold.
        base: Epoch,
        /// This side's reign, at first `base` itself or a new one.
        epoch: Epoch,
    },
}

impl Lineage {
    /// Sorts from the worst to the best. Of two that began apart the elder is better: it has
    /// served for longer. Of two shared ones the newer is better: it continues the older. A fork is
    /// as good as its base: what came after it is for [`Claim`] to weigh.
    const fn rank(self) -> (u8, u16) {
        match self {
            Self::Empty => (0, 0),
            Self::Apart(epoch) => (1, Epoch::MAX.0 - epoch.0),
            Self::Shared(epoch) | Self::Fork { base: epoch, .. } => (2, epoch.0),
        }
    }

    /// Did `side` lead the epoch that both sides held last?
    const fn led_by(self, side: Side) -> bool {
        match self {
            Self::Empty => false,
            Self::Apart(epoch) | Self::Shared(epoch) | Self::Fork { base: epoch, .. } => {
                epoch.0 & 1 == side.bit()
            }
        }
    }

    /// This content, after its node went on by silence in `epoch`.
    #[must_use]
    pub(super) const fn forked(self, epoch: Epoch) -> Self {
        match self {
            Self::Empty => Self::Apart(epoch),
            Self::Apart(since) => Self::Apart(since),
            Self::Shared(base) | Self::Fork { base, .. } => Self::Fork { base, epoch },
        }
    }

    /// This content, after its node took a new reign with proof that the other has none.
    #[must_use]
    pub(super) const fn continued(self, epoch: Epoch) -> Self {
        match self {
            Self::Shared(_) => Self::Shared(epoch),
            _ => self.forked(epoch),
        }
    }
}

/// How much was answered alone, to clients, that the other node does not hold: 0 for nothing, else
/// one more than the binary logarithm of the number of answers.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Alone(pub u8);

impl Alone {
    /// Of a number of answers.
    #[must_use]
    pub const fn of(answers: u64) -> Self {
        // at most 64
        Self((u64::BITS - answers.leading_zeros()) as u8)
    }

    /// Has any client been answered?
    #[must_use]
    pub const fn any(self) -> bool {
        self.0 > 0
    }
}

/// A node's claim to be master. Two nodes that compare the same two claims agree on the better:
/// claims of different sides are never equal.
///
/// In order: where the content comes from; of two continuations of the same content, the one that
/// has answered clients alone; then the side that led the common epoch (it may hold what it did not
/// replicate); then who answered more; then side a.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// Where the data comes from.
    pub lineage: Lineage,
    /// What clients were told that the other node does not hold.
    pub alone: Alone,
    /// Which node it is.
    pub side: Side,
}

impl Claim {
    /// Is this claim better than `other`?
    #[must_use]
    pub fn beats(self, other: Self) -> bool {
        self.rank() > other.rank()
    }

    const fn rank(self) -> ((u8, u16), bool, bool, Alone, bool) {
        let Self { lineage, alone, side } = self;
        let led = lineage.led_by(side);
        (lineage.rank(), alone.any(), led, alone, matches!(side, Side::A))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(value: u16) -> Epoch {
        Epoch::new(value).unwrap()
    }

    #[test]
    fn next_epoch() {
        for (from, side, next) in [
            (0, Side::A, Some(2)),
            (0, Side::B, Some(3)),
            (1, Side::A, Some(2)),
            (2, Side::A, Some(4)),
            (2, Side::B, Some(5)),
            (3, Side::A, Some(4)),
            (0x7ffd, Side::A, Some(0x7ffe)),
            (0x7ffe, Side::A, None),
            (0x7ffe, Side::B, None),
        ] {
            assert_eq!(epoch(from).next(side), next.map(epoch), "{from} {side:?}");
        }
        assert!(!epoch(29_999).is_alarming());
        assert!(epoch(30_000).is_alarming());
        assert_eq!(Epoch::new(0x8000), None);
    }

    #[test]
    fn alone_is_a_logarithm() {
        for (answers, alone) in [(0, 0), (1, 1), (2, 2), (3, 2), (4, 3), (u64::MAX, 64)] {
            assert_eq!(Alone::of(answers), Alone(alone), "{answers}");
        }
    }

    #[test]
    fn claims_in_order() {
        use Lineage::{Apart, Empty, Fork, Shared};
        let claim = |lineage, alone, side| Claim { lineage, alone: Alone(alone), side };
        let fork = |base, own| Fork { base: epoch(base), epoch: epoch(own) };
        let ascending = [
            claim(Empty, 0, Side::B),
            claim(Empty, 0, Side::A),
            claim(Apart(epoch(9)), 0, Side::B),
            claim(Apart(epoch(2)), 3, Side::A),
            // a common content of epoch 2, led by a: a backup that nobody reached yields
            claim(fork(2, 3), 0, Side::B),
            claim(Shared(epoch(2)), 0, Side::A),
            // who answered alone wins
            claim(fork(2, 3), 5, Side::B),
            // both did: the old master
            claim(fork(2, 2), 1, Side::A),
            // with proof, history goes on
            claim(Shared(epoch(3)), 0, Side::B),
            claim(fork(4, 5), 1, Side::B),
            claim(Shared(epoch(4)), 2, Side::A),
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(a.beats(*b), i > j, "{a:?} {b:?}");
            }
        }
    }

    #[test]
    fn forks_and_continuations() {
        use Lineage::{Apart, Empty, Fork, Shared};
        let e = epoch;
        let fork = Fork { base: e(2), epoch: e(5) };
        for (from, forked, continued) in [
            (Empty, Apart(e(5)), Apart(e(5))),
            (Apart(e(2)), Apart(e(2)), Apart(e(2))),
            (Shared(e(2)), fork, Shared(e(5))),
            (Fork { base: e(2), epoch: e(3) }, fork, fork),
        ] {
            assert_eq!(from.forked(e(5)), forked, "{from:?}");
            assert_eq!(from.continued(e(5)), continued, "{from:?}");
        }
    }
}
