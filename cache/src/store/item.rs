//! An item's header, its state byte and its check byte.
//!
//! ```text
//! chunk:  header 24 │ key │ value                       an item of one chunk
//!         header 24 │ next 4 │ key │ value …            first chunk of a chain
//!         header 24 │ … value …                         the chunks that follow
//! ```
//!
//! An item is written while its state is PENDING and is never changed afterwards, but for four
//! fields that are each changed by one aligned store: version and expiry (touch), the state byte's
//! frequency and mark. The check covers what cannot change: key, lengths, flags, class.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a header.
pub(crate) const HEADER: usize = 24;

/// Header of an item, or of a following chunk of a chain.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct ItemHeader {
    /// Version; in a following chunk: location of the first, location of the next.
    pub(crate) version: u64,
    /// Store time in seconds; 0 = never.
    pub(crate) expiry: u32,
    /// Bytes of the value; in a following chunk, of this part of it.
    pub(crate) value_len: u32,
    /// The client's flags.
    pub(crate) flags: u32,
    /// Bytes of the key; 0 in a following chunk.
    pub(crate) key_len: u8,
    /// State, use, frequency, mark.
    pub(crate) state: u8,
    /// Class of the chunk.
    pub(crate) class: u8,
    /// As of [`Self::expected_check`]: a torn header does not match it.
    pub(crate) check: u8,
}

const _: () = assert!(size_of::<ItemHeader>() == HEADER);

/// Nothing there.
pub(crate) const FREE: u8 = 0;
/// Taken, being written.
pub(crate) const PENDING: u8 = 1;
/// A whole item (its first chunk).
pub(crate) const LIVE: u8 = 2;
/// A following chunk of a chain, fully written.
pub(crate) const PIECE: u8 = 3;

const STATE: u8 = 0b11;
const FETCHED: u8 = 0b100;
const FREQUENCY_SHIFT: u8 = 3;
const FREQUENCY_MAX: u8 = 3;
const MARK_SHIFT: u8 = 5;
/// Generations of marks.
pub(crate) const MARKS: u8 = 8;

impl ItemHeader {
    /// FREE, PENDING, LIVE or PIECE.
    pub(crate) const fn state(&self) -> u8 {
        self.state & STATE
    }

    /// Has it been read since it was written?
    pub(crate) const fn fetched(&self) -> bool {
        self.state & FETCHED != 0
    }

    /// Uses since the clock's hand last passed, at most 3.
    pub(crate) const fn frequency(&self) -> u8 {
        (self.state >> FREQUENCY_SHIFT) & FREQUENCY_MAX
    }

    /// Generation of the full sync that named it last.
    pub(crate) const fn mark(&self) -> u8 {
        self.state >> MARK_SHIFT
    }

    /// Counts a use.
    pub(crate) const fn used(&mut self) {
        let frequency = self.frequency();
        if frequency < FREQUENCY_MAX {
            self.state += 1 << FREQUENCY_SHIFT;
        }
        self.state |= FETCHED;
    }

    /// The hand passes.
    pub(crate) const fn passed(&mut self) {
        if self.frequency() > 0 {
            self.state -= 1 << FREQUENCY_SHIFT;
        }
    }

    /// Sets the mark.
    pub(crate) const fn set_mark(&mut self, mark: u8) {
        self.state = (self.state & !(0b111 << MARK_SHIFT)) | (mark << MARK_SHIFT);
    }

    /// Header, key and value, in bytes.
    pub(crate) const fn size(&self) -> u64 {
        HEADER as u64 + self.key_len as u64 + self.value_len as u64
    }

    /// Location of the chain's first chunk, and of its next (0 = last), in a following chunk.
    pub(crate) const fn links(&self) -> (u32, u32) {
        ((self.version >> 32) as u32, self.version as u32)
    }

    /// The check this header should have, its key having this hash.
    pub(crate) const fn expected_check(&self, hash: u64) -> u8 {
        let fixed = (self.value_len as u64) | (self.flags as u64) << 32;
        let small = (self.key_len as u64) << 8 | self.class as u64;
        let mixed = (hash ^ fixed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = mixed ^ (mixed >> 29) ^ small;
        (mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 56) as u8
    }
}

/// A live state byte: as often used as `before` was, if it overwrites something.
pub(crate) const fn live_state(mark: u8, before: Option<&ItemHeader>) -> u8 {
    let carried = match before {
        Some(old) => old.state & (FREQUENCY_MAX << FREQUENCY_SHIFT),
        None => 0,
    };
    LIVE | carried | mark << MARK_SHIFT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frequency_saturates_and_never_touches_its_neighbours() {
        let mut header = ItemHeader::new_zeroed_for_test();
        header.state = live_state(5, None);
        for _ in 0..10 {
            header.used();
        }
        assert_eq!((header.state(), header.frequency(), header.mark()), (LIVE, 3, 5));
        assert!(header.fetched());
        header.set_mark(7);
        for _ in 0..10 {
            header.passed();
        }
        assert_eq!((header.state(), header.frequency(), header.mark()), (LIVE, 0, 7));
    }

    #[test]
    fn the_check_depends_on_every_fixed_field() {
        let base = ItemHeader::new_zeroed_for_test();
        let blind = |change: &dyn Fn(&mut ItemHeader)| {
            let mut header = base;
            change(&mut header);
            let hashes = (1..=1000u64).map(|n| n.wrapping_mul(0x0123_4567_89ab_cdef));
            let same = |hash: &u64| header.expected_check(*hash) == base.expected_check(*hash);
            hashes.filter(same).count()
        };
        // one in 256 by chance
        assert!(blind(&|h| h.value_len = 1) < 20);
        assert!(blind(&|h| h.flags = 1) < 20);
        assert!(blind(&|h| h.key_len = 1) < 20);
        assert!(blind(&|h| h.class = 1) < 20);
        assert_eq!(blind(&|h| h.version = 1), 1000);
        assert_eq!(blind(&|h| h.expiry = 1), 1000);
    }

    impl ItemHeader {
        fn new_zeroed_for_test() -> Self {
            zerocopy::FromZeros::new_zeroed()
        }
    }
}
