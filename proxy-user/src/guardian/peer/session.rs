//! What one handshake gives: keys for a control connection and for datagrams on every path.
//!
//! Noise NNpsk0 (snow) on the control connection, keyed by the pair's key file; its *stateless*
//! transport then seals frames and datagrams alike, each with its own nonce. Why this and not an
//! AEAD keyed by the secret and boot ids: the keys are fresh for each session by construction (so
//! nothing of an earlier boot can be replayed, whatever either node remembers), and are forward
//! secret. The price: a beat needs a handshake first, one round trip on any path; a session
//! outlives its connection, so a broken connection silences nobody.
//!
//! ```text
//! datagram: version 1 | session 8 | counter 8 | sealed bytes, tag 16
//! frame:    length 2 | sealed bytes, tag 16          (its counter is its place in the stream)
//! nonce:    counter << 1 | 1 for datagrams, counter << 1 for frames
//! ```

use serde::{Deserialize, Serialize};
use snow::{Builder, HandshakeState, StatelessTransportState};

use crate::config::Side;
use crate::control::message::Secret;

const NOISE: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"tandem guardian 1";
/// First byte of a datagram.
const DATAGRAM_VERSION: u8 = 1;
const HEADER: usize = 17;
const TAG: usize = 16;
/// Longest sealed message, bytes.
pub(super) const SEALED_MAX: usize = 1024;
/// Datagrams that may overtake each other: words of 64 counters.
const WINDOW_WORDS: usize = 8;

/// What each side says of itself inside the handshake.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::guardian) struct Introduction {
    /// Must be the same.
    pub(in crate::guardian) cluster: String,
    /// Must differ.
    pub(in crate::guardian) side: Side,
    /// This start of the guardian.
    pub(in crate::guardian) boot: u64,
    /// For logs.
    pub(in crate::guardian) name: String,
    /// For the status page.
    pub(in crate::guardian) version: String,
    /// Interval of beats, microseconds; must be the same, or a lease could outlive a takeover.
    pub(in crate::guardian) heartbeat_us: u64,
    /// Must be the same.
    pub(in crate::guardian) dead_after: u32,
}

/// Why a stranger, or a peer that is set up differently, is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::guardian) enum Refused {
    /// The handshake does not open under our key.
    #[error("wrong key, or not a tandem guardian")]
    Key,
    /// It closed the connection in the middle of the handshake.
    #[error("it refused us during the handshake: its log says why (wrong key or cluster?)")]
    ByPeer,
    /// Its cluster has another name.
    #[error("it belongs to cluster \"{0}\"")]
    Cluster(String),
    /// It has our own side.
    #[error("both nodes are side \"{0}\": one must be a, the other b")]
    Side(&'static str),
    /// Its heartbeat or dead_after differs from ours.
    #[error("its heartbeat is {0} us with dead_after {1}, ours differ")]
    Timing(u64, u32),
    /// A frame that breaks the rules, or too late.
    #[error("it broke the handshake's rules")]
    Protocol,
}

impl Introduction {
    /// Whether the other belongs to us.
    pub(super) fn accepts(&self, other: &Self) -> Result<(), Refused> {
        if other.cluster != self.cluster {
            return Err(Refused::Cluster(other.cluster.chars().take(32).collect()));
        }
        if other.side == self.side {
            return Err(Refused::Side(self.side.as_str()));
        }
        if (other.heartbeat_us, other.dead_after) != (self.heartbeat_us, self.dead_after) {
            return Err(Refused::Timing(other.heartbeat_us, other.dead_after));
        }
        Ok(())
    }
}

/// A handshake that has not ended.
pub(super) struct Handshake(HandshakeState);

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handshake")
    }
}

impl Handshake {
    /// Begins one; `None` only if the cryptography itself fails (no random bytes).
    pub(super) fn new(key: &Secret<32>, dials: bool) -> Option<Self> {
        let builder = Builder::new(NOISE.parse().ok()?);
        let builder = builder.prologue(PROLOGUE).ok()?.psk(0, &key.0).ok()?;
        let state = if dials { builder.build_initiator() } else { builder.build_responder() };
        state.ok().map(Self)
    }

    /// Our next message.
    pub(super) fn write(&mut self, us: &Introduction) -> Option<Vec<u8>> {
        let payload = postcard::to_stdvec(us).ok()?;
        let mut message = vec![0; SEALED_MAX];
        let length = self.0.write_message(&payload, &mut message).ok()?;
        message.truncate(length);
        Some(message)
    }

    /// The other's message.
    pub(super) fn read(&mut self, message: &[u8]) -> Result<Introduction, Refused> {
        let mut payload = vec![0; SEALED_MAX];
        let length = self.0.read_message(message, &mut payload).map_err(|_error| Refused::Key)?;
        let whole = postcard::take_from_bytes(payload.get(..length).unwrap_or_default());
        match whole {
            Ok((introduction, [])) => Ok(introduction),
            _ => Err(Refused::Protocol),
        }
    }

    /// Both messages are through.
    pub(super) fn finish(self) -> Option<Session> {
        let id = <[u8; 8]>::try_from(self.0.get_handshake_hash().get(..8)?).ok()?;
        let keys = self.0.into_stateless_transport_mode().ok()?;
        Some(Session { id, keys, sent: 0, window: Window::default() })
    }
}

/// Keys shared with one boot of the peer.
pub(super) struct Session {
    id: [u8; 8],
    keys: StatelessTransportState,
    sent: u64,
    window: Window,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Session {
    /// Seals a datagram.
    pub(super) fn seal_datagram(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        self.sent += 1;
        let counter = self.sent;
        let mut datagram = vec![0; HEADER + message.len() + TAG];
        let (header, body) = datagram.split_at_mut(HEADER);
        header[0] = DATAGRAM_VERSION;
        header[1..9].copy_from_slice(&self.id);
        header[9..].copy_from_slice(&counter.to_be_bytes());
        self.keys.write_message(counter << 1 | 1, message, body).ok()?;
        Some(datagram)
    }

    /// Whether a datagram claims to belong here.
    pub(super) fn owns(&self, datagram: &[u8]) -> bool {
        datagram.first() == Some(&DATAGRAM_VERSION) && datagram.get(1..9) == Some(&self.id)
    }

    /// Opens a datagram of this session that was not seen before.
    pub(super) fn open_datagram(&mut self, datagram: &[u8]) -> Option<Vec<u8>> {
        if datagram.len() > HEADER + SEALED_MAX {
            return None;
        }
        let counter = <[u8; 8]>::try_from(datagram.get(9..HEADER)?).ok()?;
        let counter = u64::from_be_bytes(counter);
        if counter >= 1 << 62 || !self.window.is_new(counter) {
            return None;
        }
        let opened = self.open(counter << 1 | 1, datagram.get(HEADER..)?)?;
        self.window.mark(counter);
        Some(opened)
    }

    /// Seals the `counter`th frame of the connection, with its length before it.
    pub(super) fn seal_frame(&self, counter: u64, message: &[u8]) -> Option<Vec<u8>> {
        let length = message.len() + TAG;
        let mut frame = vec![0; 2 + length];
        let (head, body) = frame.split_at_mut(2);
        head.copy_from_slice(&u16::try_from(length).ok()?.to_be_bytes());
        self.keys.write_message(counter << 1, message, body).ok()?;
        Some(frame)
    }

    /// Opens the `counter`th frame of the connection.
    pub(super) fn open_frame(&self, counter: u64, sealed: &[u8]) -> Option<Vec<u8>> {
        self.open(counter << 1, sealed)
    }

    fn open(&self, nonce: u64, sealed: &[u8]) -> Option<Vec<u8>> {
        let mut message = vec![0; sealed.len()];
        let length = self.keys.read_message(nonce, sealed, &mut message).ok()?;
        message.truncate(length);
        Some(message)
    }
}

/// Which counters were seen: those of the last 512, and all below.
#[derive(Debug, Default)]
struct Window {
    /// Highest seen; counters begin with 1.
    top: u64,
    /// Bit `c % 512` for the last 512 counters.
    seen: [u64; WINDOW_WORDS],
}

impl Window {
    const SPAN: u64 = WINDOW_WORDS as u64 * 64;

    fn place(counter: u64) -> (usize, u64) {
        let bit = counter % Self::SPAN;
        (usize::try_from(bit / 64).unwrap_or(0), 1 << (bit % 64))
    }

    fn is_new(&self, counter: u64) -> bool {
        let (word, mask) = Self::place(counter);
        counter > self.top
            || (counter + Self::SPAN > self.top && counter > 0 && self.seen[word] & mask == 0)
    }

    fn mark(&mut self, counter: u64) {
        if counter > self.top {
            // Forget what the new counters stand in for.
            let fresh = (counter - self.top).min(Self::SPAN);
            for gone in counter + 1 - fresh..=counter {
                let (word, mask) = Self::place(gone);
                self.seen[word] &= !mask;
            }
            self.top = counter;
        }
        let (word, mask) = Self::place(counter);
        self.seen[word] |= mask;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::guardian::peer) fn introduction(side: Side, boot: u64) -> Introduction {
        Introduction {
            cluster: "tandem".to_owned(),
            side,
            boot,
            name: side.as_str().to_owned(),
            version: "1".to_owned(),
            heartbeat_us: 10_000,
            dead_after: 4,
        }
    }

    fn sessions() -> (Session, Session) {
        let key = Secret([7; 32]);
        let mut dialler = Handshake::new(&key, true).unwrap();
        let mut listener = Handshake::new(&key, false).unwrap();
        let (a, b) = (introduction(Side::A, 1), introduction(Side::B, 2));
        assert_eq!(listener.read(&dialler.write(&a).unwrap()).unwrap(), a);
        assert_eq!(dialler.read(&listener.write(&b).unwrap()).unwrap(), b);
        (dialler.finish().unwrap(), listener.finish().unwrap())
    }

    #[test]
    fn datagrams_and_frames() {
        let (mut a, mut b) = sessions();
        let datagram = a.seal_datagram(b"beat").unwrap();
        assert!(b.owns(&datagram));
        assert_eq!(b.open_datagram(&datagram).unwrap(), b"beat");
        assert_eq!(b.open_datagram(&datagram), None, "replayed");
        assert_eq!(a.open_datagram(&datagram), None, "reflected");
        let frame = b.seal_frame(0, b"bye").unwrap();
        assert_eq!(a.open_frame(1, &frame[2..]), None);
        assert_eq!(a.open_frame(0, &frame[2..]).unwrap(), b"bye");
        let (_, mut other) = sessions();
        assert!(!other.owns(&datagram));
        assert_eq!(other.open_datagram(&datagram), None);
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let (mut a, mut b) = sessions();
        let datagram = a.seal_datagram(b"beat").unwrap();
        for at in 0..datagram.len() {
            let mut bad = datagram.clone();
            bad[at] ^= 0x40;
            assert!(!b.owns(&bad) || b.open_datagram(&bad).is_none(), "byte {at}");
            assert_eq!(b.open_datagram(&datagram[..at]), None);
        }
        assert!(b.open_datagram(&datagram).is_some(), "failures cost nothing");
    }

    #[test]
    fn late_datagrams_once_within_the_window() {
        let (mut a, mut b) = sessions();
        let all: Vec<Vec<u8>> = (0..1300).map(|_| a.seal_datagram(b"x").unwrap()).collect();
        assert!(b.open_datagram(&all[600]).is_some());
        assert!(b.open_datagram(&all[100]).is_some(), "late, within the window");
        assert!(b.open_datagram(&all[100]).is_none());
        assert!(b.open_datagram(&all[80]).is_none(), "too late");
        assert!(b.open_datagram(&all[1299]).is_some());
        assert!(b.open_datagram(&all[600]).is_none());
        assert!(b.open_datagram(&all[900]).is_some());
        assert!(b.open_datagram(&all[900]).is_none());
    }

    #[test]
    fn strangers() {
        let us = introduction(Side::A, 1);
        let mut dialler = Handshake::new(&Secret([1; 32]), true).unwrap();
        let mut listener = Handshake::new(&Secret([2; 32]), false).unwrap();
        let message = dialler.write(&us).unwrap();
        assert_eq!(listener.read(&message), Err(Refused::Key));
        let twin = introduction(Side::A, 2);
        assert_eq!(us.accepts(&twin), Err(Refused::Side("a")));
        let peer = introduction(Side::B, 2);
        assert_eq!(us.accepts(&peer), Ok(()));
        let other = Introduction { cluster: "other".to_owned(), ..peer.clone() };
        assert_eq!(us.accepts(&other), Err(Refused::Cluster("other".to_owned())));
        let slow = Introduction { heartbeat_us: 1, ..peer };
        assert_eq!(us.accepts(&slow), Err(Refused::Timing(1, 4)));
    }

    proptest::proptest! {
        /// The window says yes to each counter once, whatever the order.
        #[test]
        fn window_model(counters in proptest::collection::vec(1_u64..2000, 1..400)) {
            let mut window = Window::default();
            let mut model = std::collections::BTreeSet::new();
            let mut top = 0;
            for counter in counters {
                let fresh = counter + Window::SPAN > top && !model.contains(&counter);
                proptest::prop_assert_eq!(window.is_new(counter), fresh, "{}", counter);
                if fresh {
                    window.mark(counter);
                    model.insert(counter);
                    top = top.max(counter);
                }
            }
        }
    }
}
