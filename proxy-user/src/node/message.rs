//! What two guardians say to each other: bytes of a version and a postcard value.
//!
//! There is one message that matters, the [`Beat`]: a node's whole view, numbered, sent each beat
//! interval and at once when something changed, on every path and on the control connection.
//! Each fact in it is a level, not an edge, so loss, repetition and reorder cost time and never
//! truth: a receiver keeps the beat with the highest number of the peer's current boot.

use serde::{Deserialize, Serialize};

use super::claim::{Claim, Epoch};
use super::role::State;
use super::segment::Reach;

/// First byte of every message: changes whenever old and new cannot understand each other.
pub const WIRE_VERSION: u8 = 2;
/// No message is longer, encoded; what is longer is refused unread.
pub const MESSAGE_MAX: usize = 256;

/// One start of a guardian: random, never 0 by chance worth naming. New after every restart.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct BootId(pub u64);

/// One attempt to get in sync, counted by the replica since its boot.
///
/// The replica ends a session (and so begins the next) whenever it must not be taken for in sync
/// any more: the master said so, its engine died, its stream broke before it was in sync, it was
/// promoted, or it follows another epoch. `told(session)` is void once a beat shows a later one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Session(pub u64);

/// The newest beat that the sender heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Echo {
    /// Of this boot of the receiver.
    pub boot: BootId,
    /// Its number.
    pub number: u64,
}

/// What a master says about its replica, or what it was saying when it stopped being master.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Tell {
    /// Nothing: the replica is not in sync.
    Nothing,
    /// SYNCED: the replica of that boot holds, in this session, whatever the master has answered
    /// and will answer while it says so.
    InSync(BootId, Session),
    /// OUT_OF_SYNC: end this session; answers are held until the replica shows a later one.
    OutOfSync(BootId, Session),
}

/// A set of paths: bit `i` is path `i`, in the order of the configuration of whose paths they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Paths(pub u8);

impl Paths {
    /// More are not told apart.
    pub const MAX: usize = 8;

    /// Is path `index` in it?
    #[must_use]
    pub const fn has(self, index: usize) -> bool {
        index < Self::MAX && self.0 >> index & 1 == 1
    }

    /// With path `index`; one beyond [`Self::MAX`] is left out.
    #[must_use]
    pub const fn with(self, index: usize) -> Self {
        if index < Self::MAX { Self(self.0 | 1 << index) } else { self }
    }
}

/// The path by which a datagram came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Via {
    /// Index of the peer's address, in our configuration.
    pub ours: usize,
    /// Index of our address, in the peer's configuration: what it calls the path.
    pub theirs: usize,
}

/// A node's view, numbered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Beat {
    /// The sender's start.
    pub boot: BootId,
    /// Grows by one with each beat sent, from 1.
    pub number: u64,
    /// The sender's state. A sender that shows no master's state has stopped answering.
    pub state: State,
    /// Its reign, or the reign that it follows; in BOOT and FENCED the last of these.
    pub epoch: Epoch,
    /// The highest epoch that it knows of.
    pub seen: Epoch,
    /// Its claim to be master.
    pub claim: Claim,
    /// It could be master: engine up, an epoch to use, its segments reached, not stopping.
    pub able: bool,
    /// Its state file can be written (a reserve of epochs may outlast a disk that cannot).
    pub disk: bool,
    /// The interface of its VIP has carrier.
    pub carrier: bool,
    /// It reaches the segments of its addresses.
    pub reach: Reach,
    /// The paths on which it hears the receiver, as the *receiver* counts them.
    pub hears: Paths,
    /// Answer at once: the sender is in doubt whether the receiver lives.
    pub asks: bool,
    /// Newest beat of the receiver that it heard on any path.
    pub echo: Option<Echo>,
    /// As a replica: its session.
    pub session: Session,
    /// As a replica: the full sync of this session and epoch is applied.
    pub ready: bool,
    /// As a master.
    pub tell: Tell,
    /// The witness's generation, as far as known; 0 without a witness.
    pub generation: u64,
}

/// A message of the control connection, or the content of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// A beat; on the control connection too, which is one more path.
    Beat(Beat),
    /// The sender closes this connection on purpose and lives on: its end proves nothing.
    Bye,
}

impl PeerMessage {
    /// The message's bytes, at most [`MESSAGE_MAX`].
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![WIRE_VERSION];
        // plain data into a Vec: postcard has nothing to refuse
        let encoded = postcard::to_extend(self, Vec::new()).unwrap_or_default();
        bytes.extend_from_slice(&encoded);
        bytes
    }

    /// # Errors
    /// Whatever is not exactly one message of this version. The peer (or the network) is to blame.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        if bytes.len() > MESSAGE_MAX {
            return Err(MessageError::TooLong(bytes.len()));
        }
        let (&version, rest) = bytes.split_first().ok_or(MessageError::Malformed)?;
        if version != WIRE_VERSION {
            return Err(MessageError::Version(version));
        }
        match postcard::take_from_bytes(rest) {
            Ok((message, [])) => Ok(message),
            Ok(_) | Err(_) => Err(MessageError::Malformed),
        }
    }
}

/// Why a peer's bytes were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Longer than [`MESSAGE_MAX`].
    #[error("a message of {0} bytes (at most {MESSAGE_MAX})")]
    TooLong(usize),
    /// Another wire version: upgrade both nodes to releases that understand each other.
    #[error("message version {0}, this node speaks {WIRE_VERSION}")]
    Version(u8),
    /// Not a message.
    #[error("malformed message")]
    Malformed,
}

#[cfg(test)]
mod tests {
    use super::super::claim::{Alone, Lineage};
    use super::*;
    use crate::config::Side;
    use proptest::prelude::*;

    fn beat() -> Beat {
        let epoch = Epoch::new(12).unwrap();
        Beat {
            boot: BootId(u64::MAX),
            number: u64::MAX,
            state: State::Synced,
            epoch,
            seen: Epoch::MAX,
            claim: Claim {
                lineage: Lineage::Fork { base: epoch, epoch: Epoch::MAX },
                alone: Alone(64),
                side: Side::B,
            },
            able: true,
            disk: true,
            carrier: true,
            reach: Reach::Whole,
            hears: Paths(u8::MAX),
            asks: true,
            echo: Some(Echo { boot: BootId(u64::MAX), number: u64::MAX }),
            session: Session(u64::MAX),
            ready: true,
            tell: Tell::OutOfSync(BootId(u64::MAX), Session(u64::MAX)),
            generation: u64::MAX,
        }
    }

    #[test]
    fn round_trip_and_size() {
        for message in [PeerMessage::Beat(beat()), PeerMessage::Bye] {
            let bytes = message.encode();
            assert!(bytes.len() <= 120, "{} bytes: one small datagram", bytes.len());
            assert_eq!(PeerMessage::decode(&bytes), Ok(message));
            for cut in 0..bytes.len() {
                assert_eq!(PeerMessage::decode(&bytes[..cut]), Err(MessageError::Malformed));
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(PeerMessage::decode(&longer), Err(MessageError::Malformed));
        }
    }

    #[test]
    fn refusals() {
        assert_eq!(PeerMessage::decode(&[]), Err(MessageError::Malformed));
        assert_eq!(PeerMessage::decode(&[9, 1]), Err(MessageError::Version(9)));
        assert_eq!(PeerMessage::decode(&[WIRE_VERSION; 257]), Err(MessageError::TooLong(257)));
        // an epoch of 16 bits
        let epoch = PeerMessage::Beat(Beat { seen: Epoch::NONE, ..beat() }).encode();
        let at = epoch.windows(3).rposition(|w| w == [0xff, 0xff, 0x01]).unwrap();
        let mut bad = epoch.clone();
        bad[at + 2] = 0x03;
        assert_eq!(PeerMessage::decode(&bad), Err(MessageError::Malformed));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(message) = PeerMessage::decode(&bytes) {
                prop_assert_eq!(PeerMessage::decode(&message.encode()), Ok(message));
            }
        }
    }
}
