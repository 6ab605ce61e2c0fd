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
//! message of a handshake: Noise's, its payload version 1 | introduction
//! datagram: version 1 | session 8 | counter 8 | sealed bytes, tag 16
//! frame:    length 2 | sealed bytes, tag 16          (its counter is its place in the stream)
//! nonce:    counter << 1 | 1 for datagrams, counter << 1 for frames
//! ```

use serde::{Deserialize, Serialize};
use snow::{Builder, HandshakeState, StatelessTransportState};

use super::refusals::Refused;
use crate::config::Side;
use crate::control::message::Secret;
use crate::node::WIRE_VERSION;

const NOISE: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
const PROLOGUE: &[u8] = b"tandem guardian 1";
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
        let payload = postcard::to_extend(us, vec![WIRE_VERSION]).ok()?;
        let mut message = vec![0; SEALED_MAX];
        let length = self.0.write_message(&payload, &mut message).ok()?;
        message.truncate(length);
        Some(message)
    }

    /// The other's message.
    pub(super) fn read(&mut self, message: &[u8]) -> Result<Introduction, Refused> {
        let mut payload = vec![0; SEALED_MAX];
        let length = self.0.read_message(message, &mut payload).map_err(|_error| Refused::Key)?;
        // It has the key: whatever it says, it is no stranger.
        let (&version, rest) =
            payload.get(..length).and_then(<[u8]>::split_first).ok_or(Refused::Malformed)?;
        if version != WIRE_VERSION {
            return Err(Refused::Version(version));
        }
        match postcard::take_from_bytes(rest) {
            Ok((introduction, [])) => Ok(introduction),
            _ => Err(Refused::Malformed),
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
        header[0] = WIRE_VERSION;
        header[1..9].copy_from_slice(&self.id);
        header[9..].copy_from_slice(&counter.to_be_bytes());
        self.keys.write_message(counter << 1 | 1, message, body).ok()?;
        Some(datagram)
    }

    /// Whether a datagram of this session id claims to belong here.
    pub(super) fn owns(&self, id: [u8; 8]) -> bool {
        self.id == id
    }

    /// Opens a datagram of this session that was not seen before.
    pub(super) fn open_datagram(&mut self, datagram: &[u8]) -> Result<Vec<u8>, Refused> {
        let (header, sealed) =
            datagram.split_at_checked(HEADER).ok_or(Refused::DatagramMalformed)?;
        let counter = header.get(9..).and_then(|bytes| <[u8; 8]>::try_from(bytes).ok());
        let counter = u64::from_be_bytes(counter.ok_or(Refused::DatagramMalformed)?);
        if counter >= 1 << 62 {
            return Err(Refused::DatagramForged);
        }
        if !self.window.is_new(counter) {
            return Err(Refused::DatagramReplay);
        }
        let opened = self.open(counter << 1 | 1, sealed).ok_or(Refused::DatagramForged)?;
        self.window.mark(counter);
        Ok(opened)
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

/// The session that a datagram says it is of, before any key is tried.
pub(super) fn session_of(datagram: &[u8]) -> Result<[u8; 8], Refused> {
    if datagram.len() < HEADER + TAG || datagram.len() > HEADER + SEALED_MAX {
        return Err(Refused::DatagramMalformed);
    }
    match datagram.split_first_chunk::<1>() {
        Some(([WIRE_VERSION], rest)) => {
            let id = rest.first_chunk::<8>().ok_or(Refused::DatagramMalformed)?;
            Ok(*id)
        }
        Some(([version], _)) => Err(Refused::DatagramVersion(*version)),
        None => Err(Refused::DatagramMalformed),
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
        let id = session_of(&datagram).unwrap();
        assert!(b.owns(id));
        assert_eq!(b.open_datagram(&datagram).unwrap(), b"beat");
        assert_eq!(b.open_datagram(&datagram), Err(Refused::DatagramReplay));
        assert_eq!(a.open_datagram(&datagram), Err(Refused::DatagramForged), "reflected");
        let frame = b.seal_frame(0, b"bye").unwrap();
        assert_eq!(a.open_frame(1, &frame[2..]), None);
        assert_eq!(a.open_frame(0, &frame[2..]).unwrap(), b"bye");
        let (_, mut other) = sessions();
        assert!(!other.owns(id));
        assert_eq!(other.open_datagram(&datagram), Err(Refused::DatagramForged));
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let (mut a, mut b) = sessions();
        let datagram = a.seal_datagram(b"beat").unwrap();
        for at in 0..datagram.len() {
            let mut bad = datagram.clone();
            bad[at] ^= 0x40;
            let opened = session_of(&bad).map(|id| b.owns(id).then(|| b.open_datagram(&bad)));
            match (at, opened) {
                (0, opened) => assert_eq!(opened, Err(Refused::DatagramVersion(0x42))),
                (1..9, opened) => assert_eq!(opened, Ok(None), "another session"),
                (_, opened) => assert_eq!(opened, Ok(Some(Err(Refused::DatagramForged))), "{at}"),
            }
            assert!(b.open_datagram(&datagram[..at]).is_err());
        }
        assert_eq!(session_of(&datagram[..HEADER + TAG - 1]), Err(Refused::DatagramMalformed));
        let long = [&datagram[..], &[0; SEALED_MAX]].concat();
        assert_eq!(session_of(&long), Err(Refused::DatagramMalformed));
        assert!(b.open_datagram(&datagram).is_ok(), "failures cost nothing");
    }

    #[test]
    fn late_datagrams_once_within_the_window() {
        let (mut a, mut b) = sessions();
        let all: Vec<Vec<u8>> = (0..1300).map(|_| a.seal_datagram(b"x").unwrap()).collect();
        assert!(b.open_datagram(&all[600]).is_ok());
        assert!(b.open_datagram(&all[100]).is_ok(), "late, within the window");
        assert!(b.open_datagram(&all[100]).is_err());
        assert!(b.open_datagram(&all[80]).is_err(), "too late");
        assert!(b.open_datagram(&all[1299]).is_ok());
        assert!(b.open_datagram(&all[600]).is_err());
        assert!(b.open_datagram(&all[900]).is_ok());
        assert!(b.open_datagram(&all[900]).is_err());
    }

    /// Of a pair that is upgraded one node after the other, each says which version it met.
    #[test]
    fn another_version_is_named() {
        let key = Secret([7; 32]);
        let mut dialler = Handshake::new(&key, true).unwrap();
        let mut listener = Handshake::new(&key, false).unwrap();
        let former = postcard::to_extend(&introduction(Side::A, 1), vec![1]).unwrap();
        let mut message = vec![0; SEALED_MAX];
        let length = dialler.0.write_message(&former, &mut message).unwrap();
        assert_eq!(listener.read(&message[..length]), Err(Refused::Version(1)));
        let (mut a, _) = sessions();
        let mut datagram = a.seal_datagram(b"beat").unwrap();
        assert_eq!(datagram[0], 2, "the wire has changed since version 1");
        datagram[0] = 1;
        assert_eq!(session_of(&datagram), Err(Refused::DatagramVersion(1)));
        assert!(Refused::Version(1).to_string().contains("version 1, this node 2"));
    }

    #[test]
    fn a_handshake_without_an_introduction_is_malformed() {
        for payload in [&[][..], &[WIRE_VERSION], &[WIRE_VERSION, 0xff, 0xff, 0xff, 0xff, 0xff]] {
            let key = Secret([7; 32]);
            let mut dialler = Handshake::new(&key, true).unwrap();
            let mut listener = Handshake::new(&key, false).unwrap();
            let mut message = vec![0; SEALED_MAX];
            let length = dialler.0.write_message(payload, &mut message).unwrap();
            assert_eq!(listener.read(&message[..length]), Err(Refused::Malformed));
        }
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
