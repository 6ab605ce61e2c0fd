//! The role as workers see it: one word of the shared page.

use serde::{Deserialize, Serialize};

pub use crate::node::State;

/// State and epoch, with a serial that grows with every change (so that a change there and back
/// between two looks is seen too).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Role {
    /// What this node is.
    pub state: State,
    /// Under which epoch; 15 bits.
    pub epoch: u16,
    /// Number of this change.
    pub serial: u32,
}

impl Role {
    /// Before anything was decided.
    pub const BOOT: Self = Self { state: State::Boot, epoch: 0, serial: 0 };

    /// As the word of the shared page: serial, 32 bits; epoch, 16; state, 8; zero, 8.
    #[must_use]
    pub fn to_word(self) -> u64 {
        u64::from(self.serial) << 32
            | u64::from(self.epoch) << 16
            | u64::from(self.state as u8) << 8
    }

    /// Back from the word; an unknown state reads as FENCED, which answers nothing.
    #[must_use]
    pub fn from_word(word: u64) -> Self {
        let bytes = word.to_be_bytes();
        Self {
            state: *State::ALL.get(usize::from(bytes[6])).unwrap_or(&State::Fenced),
            epoch: u16::from_be_bytes([bytes[4], bytes[5]]),
            serial: u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn word_round_trip() {
        for state in State::ALL {
            let role = Role { state, epoch: 0x7fff, serial: u32::MAX };
            assert_eq!(Role::from_word(role.to_word()), role);
        }
        assert_eq!(Role::from_word(0), Role::BOOT);
        assert_eq!(Role::from_word(0xff00).state, State::Fenced);
    }
}
