//! The role as workers see it: one word of the shared page.

use serde::{Deserialize, Serialize};

/// State of a node (docs/ARCHITECTURE.md section 4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum State {
    /// Just started; who is master is not known yet.
    Boot = 0,
    /// A master is heard; the stream is being opened.
    Join = 1,
    /// Full sync is running.
    Catchup = 2,
    /// Backup that holds everything the master acknowledged.
    Synced = 3,
    /// Owns the address; the peer is synced and every answer waits for it.
    Master = 4,
    /// Owns the address alone; answers wait for nobody.
    MasterSolo = 5,
    /// Planned switch is running.
    Handover = 6,
    /// May be the isolated side, or lost an election: answers nothing.
    Fenced = 7,
}

impl State {
    /// Every state, in the order of their codes.
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

    /// The name used in logs, metrics and documents.
    #[must_use]
    pub fn as_str(self) -> &'static str {
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

    /// Whether this state owns the address and executes memcached commands itself.
    #[must_use]
    pub fn is_master(self) -> bool {
        matches!(self, Self::Master | Self::MasterSolo)
    }
}

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
