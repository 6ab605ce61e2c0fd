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

    /// `side`'s epoch of the next counter; `None` when there is none left: the pair's state files
    /// must be removed while both nodes are stopped.
    #[must_use]
    pub fn next(self, side: Side) -> Option<Self> {
        Self::new((self.0 & !1) + 2 + side.bit())
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
    /// Both nodes have held this content at some time; the epoch is the newest that wrote to it.
    Shared(Epoch),
}

impl Lineage {
    /// Sorts from the worst to the best. Of two that began apart the elder is better: it has
    /// served for longer. Of two shared ones the newer is better: it continues the older.
    const fn rank(self) -> (u8, u16) {
        match self {
            Self::Empty => (0, 0),
            Self::Apart(epoch) => (1, Epoch::MAX.0 - epoch.0),
            Self::Shared(epoch) => (2, epoch.0),
        }
    }
}

/// A node's claim to be master. Two nodes that compare the same two claims agree on the better:
/// claims of different sides are never equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Claim {
    /// Where the data comes from.
    pub lineage: Lineage,
    /// This node was the master of that epoch: it may hold what it did not replicate.
    pub led: bool,
    /// Last tie-break: side a wins.
    pub side: Side,
}

impl Claim {
    /// Is this claim better than `other`?
    #[must_use]
    pub fn beats(self, other: Self) -> bool {
        self.rank() > other.rank()
    }

    const fn rank(self) -> ((u8, u16), bool, bool) {
        (self.lineage.rank(), self.led, matches!(self.side, Side::A))
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
    fn claims_in_order() {
        use Lineage::{Apart, Empty, Shared};
        let claim = |lineage, led, side| Claim { lineage, led, side };
        let ascending = [
            claim(Empty, false, Side::B),
            claim(Empty, false, Side::A),
            claim(Apart(epoch(9)), true, Side::B),
            claim(Apart(epoch(2)), true, Side::A),
            claim(Shared(epoch(2)), false, Side::B),
            claim(Shared(epoch(2)), true, Side::A),
            claim(Shared(epoch(4)), false, Side::B),
            claim(Shared(epoch(4)), true, Side::B),
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(a.beats(*b), i > j, "{a:?} {b:?}");
            }
        }
    }
}
