//! The channel between the engines of a pair: Noise `NNpsk0`, keyed by the pair's key, with the
//! cluster's name in its prologue. A [`Layer`]: bytes in, bytes out; no socket, no clock. (Its
//! ephemeral keys come from the operating system.)
//!
//! On the wire: length, 16 bits big-endian, then one Noise message of at most 65535 bytes. The
//! first two messages are the handshake, the dialling side's first, both without payload. Whoever
//! does not hold the key cannot make the other side say anything.

use std::fmt;

use snow::{Builder, HandshakeState, TransportState};

use crate::engine::connections::{Layer, LayerError};

const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Largest Noise message.
const MESSAGE_MAX: usize = 65_535;
/// Authentication tag of each message.
const TAG: usize = 16;
/// Largest plain text of one message.
const CHUNK_MAX: usize = MESSAGE_MAX - TAG;
/// A handshake message is an ephemeral key and a tag: 48 bytes. Anything longer is not one.
const HANDSHAKE_MAX: usize = 64;

/// Which end this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Connects, and speaks first.
    Dialling,
    /// Accepts.
    Listening,
}

enum State {
    Handshake(Box<HandshakeState>),
    Transport(Box<TransportState>),
    Broken,
}

/// One end of a channel. See the module.
pub struct Secure {
    end: End,
    state: State,
    /// The beginning of a message whose rest has not come; less than one message.
    partial: Vec<u8>,
}

impl fmt::Debug for Secure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secure").field("end", &self.end).finish_non_exhaustive()
    }
}

fn error(what: &'static str) -> impl Fn(snow::Error) -> LayerError {
    move |error| LayerError(format!("{what}: {error}"))
}

impl Secure {
    /// One end of the channel of a cluster's pair.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn new(end: End, key: &[u8; 32], cluster: &str) -> Result<Self, LayerError> {
        let begin = error("secure channel");
        let pattern = PATTERN.parse().map_err(&begin)?;
        let prologue = format!("tandem engine link 1 {cluster}");
        let builder = Builder::new(pattern)
            .psk(0, key)
            .and_then(|builder| builder.prologue(prologue.as_bytes()))
            .map_err(&begin)?;
        let handshake = match end {
            End::Dialling => builder.build_initiator(),
            End::Listening => builder.build_responder(),
        };
        let state = State::Handshake(Box::new(handshake.map_err(&begin)?));
        Ok(Self { end, state, partial: Vec::new() })
    }

    /// Whether the peer has proved that it holds the key.
    #[must_use]
    pub const fn is_established(&self) -> bool {
        matches!(self.state, State::Transport(_))
    }

    /// Takes one whole message.
    fn message(
        &mut self,
        message: &[u8],
        plain: &mut Vec<u8>,
        wire_out: &mut Vec<u8>,
    ) -> Result<(), LayerError> {
        match std::mem::replace(&mut self.state, State::Broken) {
            State::Handshake(mut handshake) => {
                let mut payload = [0; HANDSHAKE_MAX];
                let count = handshake
                    .read_message(message, &mut payload)
                    .map_err(error("wrong key or cluster"))?;
                if count != 0 {
                    return Err(LayerError("a handshake with a payload".into()));
                }
                if self.end == End::Listening {
                    greet(&mut handshake, wire_out)?;
                }
                let transport = handshake.into_transport_mode().map_err(error("handshake"))?;
                self.state = State::Transport(Box::new(transport));
            }
            State::Transport(mut transport) => {
                let start = plain.len();
                plain.resize(start + message.len(), 0);
                let count = transport
                    .read_message(message, &mut plain[start..])
                    .map_err(error("a forged or damaged message"))?;
                plain.truncate(start + count);
                self.state = State::Transport(transport);
            }
            State::Broken => return Err(LayerError("the channel is broken".into())),
        }
        Ok(())
    }

    /// Length of a whole message at the beginning of `bytes`; `None`: more is needed.
    fn next_len(&self, bytes: &[u8]) -> Result<Option<usize>, LayerError> {
        let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
        let length = usize::from(u16::from_be_bytes(*length));
        if !self.is_established() && length > HANDSHAKE_MAX {
            return Err(LayerError("not a handshake".into()));
        }
        Ok((rest.len() >= length).then_some(length))
    }
}

fn greet(handshake: &mut HandshakeState, wire_out: &mut Vec<u8>) -> Result<(), LayerError> {
    let mut message = [0; HANDSHAKE_MAX];
    let count = handshake.write_message(&[], &mut message).map_err(error("handshake"))?;
    frame(&message[..count], wire_out);
    Ok(())
}

fn frame(message: &[u8], wire_out: &mut Vec<u8>) {
    wire_out.extend_from_slice(&(message.len() as u16).to_be_bytes());
    wire_out.extend_from_slice(message);
}

impl Layer for Secure {
    fn start(&mut self, wire_out: &mut Vec<u8>) -> Result<(), LayerError> {
        match (&mut self.state, self.end) {
            (State::Handshake(handshake), End::Dialling) => greet(handshake, wire_out),
            _ => Ok(()),
        }
    }

    fn open(
        &mut self,
        wire: &[u8],
        plain: &mut Vec<u8>,
        wire_out: &mut Vec<u8>,
    ) -> Result<(), LayerError> {
        let mut joined = std::mem::take(&mut self.partial);
        let mut bytes = if joined.is_empty() {
            wire
        } else {
            joined.extend_from_slice(wire);
            &joined
        };
        while let Some(length) = self.next_len(bytes)? {
            self.message(&bytes[2..2 + length], plain, wire_out)?;
            bytes = &bytes[2 + length..];
        }
        self.partial = bytes.to_vec();
        Ok(())
    }

    fn seal(&mut self, plain: &mut Vec<u8>, wire: &mut Vec<u8>) -> Result<(), LayerError> {
        let State::Transport(transport) = &mut self.state else { return Ok(()) };
        for chunk in plain.chunks(CHUNK_MAX) {
            let start = wire.len();
            wire.resize(start + 2 + chunk.len() + TAG, 0);
            let count =
                transport.write_message(chunk, &mut wire[start + 2..]).map_err(error("sealing"))?;
            debug_assert_eq!(count, chunk.len() + TAG);
            wire[start..start + 2].copy_from_slice(&(count as u16).to_be_bytes());
        }
        plain.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ends(first: &[u8; 32], second: &[u8; 32], clusters: [&str; 2]) -> (Secure, Secure) {
        (
            Secure::new(End::Dialling, first, clusters[0]).unwrap(),
            Secure::new(End::Listening, second, clusters[1]).unwrap(),
        )
    }

    fn handshake(dialling: &mut Secure, listening: &mut Secure) -> Result<(), LayerError> {
        let (mut hello, mut answer, mut plain) = (Vec::new(), Vec::new(), Vec::new());
        dialling.start(&mut hello)?;
        listening.start(&mut answer)?;
        assert!(answer.is_empty(), "the listening side waits");
        listening.open(&hello, &mut plain, &mut answer)?;
        dialling.open(&answer, &mut plain, &mut hello)?;
        assert!(plain.is_empty());
        assert!(dialling.is_established() && listening.is_established());
        Ok(())
    }

    #[test]
    fn plain_text_waits_for_the_handshake_and_then_passes() {
        let (mut a, mut b) = ends(&[1; 32], &[1; 32], ["x", "x"]);
        let (mut plain, mut wire) = (b"early".to_vec(), Vec::new());
        a.seal(&mut plain, &mut wire).unwrap();
        assert_eq!((plain.len(), wire.len()), (5, 0));
        handshake(&mut a, &mut b).unwrap();
        a.seal(&mut plain, &mut wire).unwrap();
        assert!(plain.is_empty() && !wire.windows(5).any(|window| window == b"early"));
        let mut got = Vec::new();
        b.open(&wire, &mut got, &mut Vec::new()).unwrap();
        assert_eq!(got, b"early");
    }

    #[test]
    fn another_key_or_cluster_is_refused_without_an_answer() {
        for (keys, clusters) in [([[1; 32], [2; 32]], ["x", "x"]), ([[1; 32]; 2], ["x", "y"])] {
            let (mut a, mut b) = ends(&keys[0], &keys[1], clusters);
            let (mut hello, mut answer, mut plain) = (Vec::new(), Vec::new(), Vec::new());
            a.start(&mut hello).unwrap();
            let refused = b.open(&hello, &mut plain, &mut answer).unwrap_err();
            assert!(refused.0.starts_with("wrong key or cluster"), "{refused}");
            assert!(answer.is_empty() && plain.is_empty());
            assert!(b.open(&hello, &mut plain, &mut answer).is_err(), "it stays broken");
        }
    }

    #[test]
    fn strangers_are_refused_early() {
        let (_, mut b) = ends(&[1; 32], &[1; 32], ["x", "x"]);
        let http = b"GET / HTTP/1.1\r\n\r\n";
        assert!(b.open(http, &mut Vec::new(), &mut Vec::new()).is_err());
    }

    #[test]
    fn damage_and_replay_are_refused() {
        let (mut a, mut b) = ends(&[1; 32], &[1; 32], ["x", "x"]);
        handshake(&mut a, &mut b).unwrap();
        let mut wire = Vec::new();
        a.seal(&mut b"one".to_vec(), &mut wire).unwrap();
        let mut got = Vec::new();
        b.open(&wire, &mut got, &mut Vec::new()).unwrap();
        assert!(b.open(&wire, &mut got, &mut Vec::new()).is_err(), "replayed");
        let (mut a, mut b) = ends(&[1; 32], &[1; 32], ["x", "x"]);
        handshake(&mut a, &mut b).unwrap();
        let mut wire = Vec::new();
        a.seal(&mut b"one".to_vec(), &mut wire).unwrap();
        wire[4] ^= 1;
        assert!(b.open(&wire, &mut Vec::new(), &mut Vec::new()).is_err(), "damaged");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        #[test]
        fn any_bytes_split_anywhere(
            lengths in proptest::collection::vec(0usize..200_000, 1..4),
            cuts in proptest::collection::vec(1usize..70_000, 1..20),
        ) {
            let (mut a, mut b) = ends(&[3; 32], &[3; 32], ["x", "x"]);
            handshake(&mut a, &mut b).unwrap();
            let (mut sent, mut wire, mut got) = (Vec::new(), Vec::new(), Vec::new());
            for (number, length) in lengths.iter().enumerate() {
                let bytes = vec![number as u8; *length];
                sent.extend_from_slice(&bytes);
                a.seal(&mut bytes.clone(), &mut wire).unwrap();
            }
            let (mut rest, mut cuts) = (&wire[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (head, tail) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
                b.open(head, &mut got, &mut Vec::new()).unwrap();
                rest = tail;
                prop_assert!(b.partial.len() < 2 + MESSAGE_MAX);
            }
            prop_assert!(got == sent);
        }

        #[test]
        fn a_stranger_never_gets_in(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut b = Secure::new(End::Listening, &[1; 32], "x").unwrap();
            let (mut plain, mut out) = (Vec::new(), Vec::new());
            let _refused = b.open(&bytes, &mut plain, &mut out);
            prop_assert!(plain.is_empty() && out.is_empty() && !b.is_established());
            prop_assert!(b.partial.len() <= 2 + HANDSHAKE_MAX);
        }
    }
}
