//! What nodes and the witness say to each other: one sealed datagram each way.
//!
//! On the wire: a random nonce of 24 bytes, then XChaCha20-Poly1305 of the message (postcard) under
//! a key derived from the pair's. Direction and cluster are authenticated with it, so neither a
//! datagram of another cluster nor one sent back to its sender can be opened.

use std::fmt;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::config::Side;
use crate::node::{Answer, BootId, Question};

/// Bytes of a nonce; never used twice: draw it at random.
pub const NONCE: usize = 24;
/// No datagram of ours is longer, bytes.
pub const DATAGRAM_MAX: usize = 256;
/// For `PairKey::derive`.
pub const KEY_LABEL: &str = "tandem witness 1";
/// Where a witness listens by default.
pub const PORT: u16 = 7710;

/// A node's question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Who asks.
    pub side: Side,
    /// Its boot.
    pub boot: BootId,
    /// What the witness told last in a [`Reply::Present`]; any value before.
    pub token: u64,
    number: u64,
    epoch: u32,
    expected: u64,
    by_contact: bool,
}

impl Request {
    /// A question of a node's boot.
    #[must_use]
    pub const fn new(side: Side, boot: BootId, token: u64, question: Question) -> Self {
        let Question { number, epoch, expected, by_contact } = question;
        Self { side, boot, token, number, epoch, expected, by_contact }
    }

    /// What is asked.
    #[must_use]
    pub const fn question(&self) -> Question {
        let Self { number, epoch, expected, by_contact, .. } = *self;
        Question { number, epoch, expected, by_contact }
    }
}

/// The witness's reply; names boot and number of the request, so that an old one is worth nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Ask again with this token: it does not know this boot.
    Present {
        /// Of the request.
        boot: BootId,
        /// Of the request.
        number: u64,
        /// To be shown.
        token: u64,
    },
    /// This node holds the register now.
    Granted {
        /// Of the request.
        boot: BootId,
        /// Of the request.
        number: u64,
        /// The new one.
        generation: u64,
    },
    /// Somebody else went on.
    Refused {
        /// Of the request.
        boot: BootId,
        /// Of the request.
        number: u64,
        /// What the register says.
        generation: u64,
        /// It is this node that holds it.
        holder_is_us: bool,
    },
}

impl Reply {
    /// `None`: it does not know, and is silent.
    #[must_use]
    pub const fn of(boot: BootId, answer: Answer) -> Option<Self> {
        match answer {
            Answer::Granted { number, generation } => {
                Some(Self::Granted { boot, number, generation })
            }
            Answer::Refused { number, generation, holder_is_us } => {
                Some(Self::Refused { boot, number, generation, holder_is_us })
            }
            Answer::Unreachable { .. } => None,
        }
    }

    /// Which boot's question it is about, and its number.
    #[must_use]
    pub const fn about(&self) -> (BootId, u64) {
        match *self {
            Self::Present { boot, number, .. }
            | Self::Granted { boot, number, .. }
            | Self::Refused { boot, number, .. } => (boot, number),
        }
    }

    /// The answer, if it is one.
    #[must_use]
    pub const fn answer(&self) -> Option<Answer> {
        match *self {
            Self::Present { .. } => None,
            Self::Granted { number, generation, .. } => {
                Some(Answer::Granted { number, generation })
            }
            Self::Refused { number, generation, holder_is_us, .. } => {
                Some(Answer::Refused { number, generation, holder_is_us })
            }
        }
    }
}

/// Seals and opens one cluster's datagrams.
pub struct Seal {
    cipher: XChaCha20Poly1305,
    cluster: String,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seal").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

impl Seal {
    /// With the key derived for [`KEY_LABEL`].
    #[must_use]
    pub fn new(key: &[u8; 32], cluster: &str) -> Self {
        Self { cipher: XChaCha20Poly1305::new(key.into()), cluster: cluster.to_owned() }
    }

    /// A request as a datagram; `None` never happens with messages of ours.
    #[must_use]
    pub fn request(&self, nonce: [u8; NONCE], request: &Request) -> Option<Vec<u8>> {
        self.seal("question", nonce, request)
    }

    /// A reply as a datagram.
    #[must_use]
    pub fn reply(&self, nonce: [u8; NONCE], reply: &Reply) -> Option<Vec<u8>> {
        self.seal("answer", nonce, reply)
    }

    /// `None`: another key, cluster or direction, or no datagram of ours.
    #[must_use]
    pub fn open_request(&self, datagram: &[u8]) -> Option<Request> {
        self.open("question", datagram)
    }

    /// As [`Self::open_request`].
    #[must_use]
    pub fn open_reply(&self, datagram: &[u8]) -> Option<Reply> {
        self.open("answer", datagram)
    }

    fn context(&self, direction: &str) -> String {
        format!("tandem witness 1 {direction} {}", self.cluster)
    }

    fn seal<T: Serialize>(&self, way: &str, nonce: [u8; NONCE], message: &T) -> Option<Vec<u8>> {
        let (msg, aad) = (postcard::to_stdvec(message).ok()?, self.context(way));
        let payload = Payload { msg: &msg, aad: aad.as_bytes() };
        let sealed = self.cipher.encrypt(XNonce::from_slice(&nonce), payload).ok()?;
        Some([&nonce[..], &sealed].concat())
    }

    fn open<T: DeserializeOwned>(&self, way: &str, datagram: &[u8]) -> Option<T> {
        if datagram.len() > DATAGRAM_MAX {
            return None;
        }
        let (nonce, msg) = datagram.split_at_checked(NONCE)?;
        let aad = self.context(way);
        let payload = Payload { msg, aad: aad.as_bytes() };
        let plain = self.cipher.decrypt(XNonce::from_slice(nonce), payload).ok()?;
        let (message, rest) = postcard::take_from_bytes(&plain).ok()?;
        rest.is_empty().then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> Request {
        let question =
            Question { number: u64::MAX, epoch: 7, expected: u64::MAX, by_contact: true };
        Request::new(Side::B, BootId(u64::MAX), u64::MAX, question)
    }

    #[test]
    fn there_and_back() {
        let seal = Seal::new(&[7; 32], "tandem");
        let datagram = seal.request([1; NONCE], &request()).unwrap();
        assert!(datagram.len() <= DATAGRAM_MAX, "{}", datagram.len());
        assert_eq!(seal.open_request(&datagram), Some(request()));
        let answer = Answer::Refused { number: 9, generation: u64::MAX, holder_is_us: false };
        let reply = Reply::of(BootId(3), answer).unwrap();
        let datagram = seal.reply([2; NONCE], &reply).unwrap();
        let opened = seal.open_reply(&datagram).unwrap();
        assert_eq!((opened.about(), opened.answer()), ((BootId(3), 9), Some(answer)));
        assert_eq!(Reply::of(BootId(3), Answer::Unreachable { number: 9 }), None);
    }

    /// Another key, cluster or direction; a bit flipped anywhere; any shorter or longer datagram.
    #[test]
    fn nothing_else_is_opened() {
        let seal = Seal::new(&[7; 32], "tandem");
        let datagram = seal.request([1; NONCE], &request()).unwrap();
        assert_eq!(Seal::new(&[8; 32], "tandem").open_request(&datagram), None);
        assert_eq!(Seal::new(&[7; 32], "other").open_request(&datagram), None);
        assert_eq!(seal.open_reply(&datagram), None);
        for bit in 0..datagram.len() * 8 {
            let mut flipped = datagram.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(seal.open_request(&flipped), None, "bit {bit}");
        }
        for length in 0..datagram.len() {
            assert_eq!(seal.open_request(&datagram[..length]), None, "{length} bytes");
        }
        assert_eq!(seal.open_request(&[&datagram[..], &[0; 300]].concat()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let seal = Seal::new(&[7; 32], "tandem");
            prop_assert_eq!(seal.open_request(&bytes), None);
            prop_assert_eq!(seal.open_reply(&bytes), None);
        }
    }
}
