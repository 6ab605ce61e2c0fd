//! What the link refuses, by reason: counted, said in the log, and remembered for some seconds as
//! what may keep the pair apart. Pure: the caller reads the clock.
//!
//! Strangers can cause any number of refusals, so each costs one count and no line: a reason is
//! said at once for the first time, then once a minute with its count.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::node::{MessageError, WIRE_VERSION};

/// Between two lines on the same reason.
const EVERY: Duration = Duration::from_secs(60);
/// A reason that was not seen for so long is no cause any more. A peer that is refused dials again
/// each second.
const FRESH: Duration = Duration::from_secs(5);

/// Declares the reasons: each with its text for people and its name in metrics.
macro_rules! refusals {
    ($($(#[$meta:meta])* $name:ident $(($of:ty $(, $more:ty)*))? = $code:literal;)*) => {
        /// Why a connection or a datagram on the peer's port is refused. First what explains why
        /// two guardians do not understand each other, the plainest reason first.
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        pub(in crate::guardian) enum Refused { $($(#[$meta])* $name $(($of $(, $more)*))?,)* }

        impl Refused {
            /// Names in metrics, in the order of the reasons.
            const CODES: &[&str] = &[$($code),*];

            /// Name in metrics.
            const fn code(&self) -> &'static str {
                match self { $(Self::$name { .. } => $code,)* }
            }
        }
    };
}

refusals! {
    /// Its cluster has another name.
    #[error("it belongs to cluster \"{0}\"")]
    Cluster(String) = "wrong_cluster";
    /// It has our own side.
    #[error("both nodes are side \"{0}\": one must be a, the other b")]
    Side(&'static str) = "same_side";
    /// Its heartbeat or dead_after differs from ours.
    #[error("its heartbeat is {0} us with dead_after {1}, ours differ")]
    Timing(u64, u32) = "wrong_timing";
    /// It has the key and speaks another version.
    #[error("it speaks version {0}, this node {WIRE_VERSION}: upgrade both nodes")]
    Version(u8) = "wrong_version";
    /// The handshake does not open under our key.
    #[error("wrong key, or not a tandem guardian")]
    Key = "wrong_key";
    /// A datagram of another version than ours.
    #[error("a datagram of version {0}, not {WIRE_VERSION}: another release, or not a guardian")]
    DatagramVersion(u8) = "datagram_version";
    /// It was proved, and says what we do not know.
    #[error("{0}")]
    Message(MessageError) = "message";
    /// A frame that breaks the rules.
    #[error("it broke the handshake's rules")]
    Malformed = "malformed";
    /// It closed the connection in the middle of the handshake.
    #[error("it refused us during the handshake: its log says why (wrong key or cluster?)")]
    ByPeer = "by_peer";
    /// Its first message was good and the second was not, or never came: a recorded one.
    #[error("its handshake was not proved: a recorded one?")]
    Unproved = "unproved";
    /// It said nothing, or too little, in its time.
    #[error("it was silent")]
    Silent = "silent";
    /// So many handshakes from its address run already.
    #[error("too many connections from its address")]
    Source = "too_many_from_source";
    /// A newer stranger got its place.
    #[error("no free place for strangers")]
    Place = "no_free_place";
    /// Too short or too long.
    #[error("not a datagram of a guardian")]
    DatagramMalformed = "datagram_malformed";
    /// Of no session that we have: a stranger's, or one of a former boot's.
    #[error("a datagram of no session")]
    DatagramSession = "datagram_session";
    /// Seen already, or too old to know.
    #[error("a datagram that came again")]
    DatagramReplay = "datagram_replay";
    /// It names a session of ours and does not open under its keys.
    #[error("a forged datagram")]
    DatagramForged = "datagram_forged";
}

impl Refused {
    /// Whether it tells why two guardians stay apart; a crowd's reasons do not.
    const fn explains(&self) -> bool {
        match self {
            Self::Cluster(_) | Self::Side(_) | Self::Timing(..) | Self::Version(_) => true,
            Self::Key | Self::ByPeer | Self::Malformed => true,
            Self::DatagramVersion(_) | Self::Message(_) => true,
            Self::Unproved | Self::Silent | Self::Source | Self::Place => false,
            Self::DatagramMalformed | Self::DatagramSession => false,
            Self::DatagramReplay | Self::DatagramForged => false,
        }
    }

    /// Comes with every restart of the peer, whose former session's datagrams are under way.
    const fn is_usual(&self) -> bool {
        matches!(self, Self::DatagramSession)
    }
}

/// The newest of one reason.
#[derive(Debug, Clone)]
struct Last {
    at: Instant,
    from: SocketAddr,
    refused: Refused,
}

/// One reason.
#[derive(Debug, Clone, Default)]
struct Tally {
    count: u64,
    /// How many of them were said.
    told: u64,
    told_at: Option<Instant>,
    /// From wherever.
    last: Option<Last>,
    /// From an address of the peer.
    of_peer: Option<Last>,
}

/// What may keep the two guardians apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::guardian) struct Cause {
    /// The reason's name, and whether it came from an address of the peer: the same cause again has
    /// the same, whatever its text.
    pub(in crate::guardian) kind: (&'static str, bool),
    /// For people.
    pub(in crate::guardian) text: String,
}

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::guardian) struct Line {
    /// The line.
    pub(in crate::guardian) text: String,
    /// Nothing to look at.
    pub(in crate::guardian) usual: bool,
}

/// All reasons.
#[derive(Debug)]
pub(super) struct Refusals(Vec<Tally>);

impl Refusals {
    /// Nothing was refused yet.
    pub(super) fn new() -> Self {
        Self(vec![Tally::default(); Refused::CODES.len()])
    }

    /// Counts one; `peer`: it came from an address of the peer.
    pub(super) fn count(&mut self, now: Instant, from: SocketAddr, peer: bool, refused: Refused) {
        let index = Refused::CODES.iter().position(|code| *code == refused.code());
        let Some(tally) = index.and_then(|index| self.0.get_mut(index)) else { return };
        tally.count += 1;
        let last = Last { at: now, from, refused };
        if peer {
            tally.of_peer = Some(last.clone());
        }
        tally.last = Some(last);
    }

    /// Every reason with its count.
    pub(super) fn by_reason(&self) -> Vec<(&'static str, u64)> {
        let counts = self.0.iter().map(|tally| tally.count);
        Refused::CODES.iter().copied().zip(counts).collect()
    }

    /// What was refused last.
    pub(super) fn newest(&self) -> Option<String> {
        let lasts = self.0.iter().filter_map(|tally| tally.last.as_ref());
        lasts.max_by_key(|last| last.at).map(|last| last.refused.to_string())
    }

    /// Why the peer cannot be understood, by what was refused lately: its own refusals before
    /// those of other addresses, the plainest first, so that two that alternate are one cause.
    pub(super) fn cause(&self, now: Instant) -> Option<Cause> {
        let fresh = |last: &&Last| {
            last.refused.explains() && now.saturating_duration_since(last.at) < FRESH
        };
        let of_peer = self.0.iter().filter_map(|tally| tally.of_peer.as_ref()).find(fresh);
        if let Some(Last { refused, .. }) = of_peer {
            return Some(Cause { kind: (refused.code(), true), text: refused.to_string() });
        }
        let others = self.0.iter().filter_map(|tally| tally.last.as_ref()).find(fresh);
        let Last { refused, .. } = others?;
        let text = format!("{refused} (at an address that is none of the peer's)");
        Some(Cause { kind: (refused.code(), false), text })
    }

    /// The lines that are due.
    pub(super) fn lines(&mut self, now: Instant) -> Vec<Line> {
        self.0.iter_mut().filter_map(|tally| tally.line(now)).collect()
    }
}

impl Tally {
    fn line(&mut self, now: Instant) -> Option<Line> {
        let new = self.count.saturating_sub(self.told);
        let early = self.told_at.is_some_and(|at| now.saturating_duration_since(at) < EVERY);
        if new == 0 || early {
            return None;
        }
        (self.told, self.told_at) = (self.count, Some(now));
        let Last { from, refused, .. } = self.last.as_ref()?;
        let code = refused.code();
        let text = format!("{new} refused on the peer's port, {code}: {refused}; last from {from}");
        Some(Line { text, usual: refused.is_usual() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: bool = true;

    fn from(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 7))
    }

    fn one_of_each() -> Vec<Refused> {
        vec![
            Refused::Cluster("x".to_owned()),
            Refused::Side("a"),
            Refused::Timing(1, 2),
            Refused::Version(1),
            Refused::Key,
            Refused::DatagramVersion(1),
            Refused::Message(MessageError::Malformed),
            Refused::Malformed,
            Refused::ByPeer,
            Refused::Unproved,
            Refused::Silent,
            Refused::Source,
            Refused::Place,
            Refused::DatagramMalformed,
            Refused::DatagramSession,
            Refused::DatagramReplay,
            Refused::DatagramForged,
        ]
    }

    #[test]
    fn each_reason_has_its_own_count() {
        let mut refusals = Refusals::new();
        for (count, refused) in (1..).zip(one_of_each()) {
            for _ in 0..count {
                refusals.count(Instant::now(), from(1), PEER, refused.clone());
            }
        }
        let by_reason = refusals.by_reason();
        assert_eq!(by_reason.len(), one_of_each().len());
        for (expected, (code, count)) in (1..).zip(&by_reason) {
            assert_eq!(*count, expected, "{code}");
        }
        let mut codes: Vec<_> = by_reason.iter().map(|(code, _)| code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), by_reason.len(), "a name twice");
    }

    #[test]
    fn the_first_is_said_at_once_and_then_one_line_a_minute_for_each_reason() {
        let (mut refusals, start) = (Refusals::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(refusals.lines(at(0)), []);
        refusals.count(at(0), from(3), PEER, Refused::Key);
        let key = |count, last| Line {
            text: format!(
                "{count} refused on the peer's port, wrong_key: wrong key, or not a tandem \
                 guardian; last from 192.0.2.{last}:7"
            ),
            usual: false,
        };
        assert_eq!(refusals.lines(at(1)), [key(1, 3)]);
        for second in 0..50 {
            refusals.count(at(second), from(4), !PEER, Refused::Key);
        }
        refusals.count(at(50), from(5), !PEER, Refused::DatagramSession);
        let lines = refusals.lines(at(60));
        assert_eq!(lines.len(), 1, "another reason has its own minute: {lines:?}");
        assert!(lines[0].usual && lines[0].text.starts_with("1 refused"), "{lines:?}");
        assert_eq!(refusals.lines(at(61)), [key(50, 4)], "said though no other came");
        assert_eq!(refusals.lines(at(200)), [], "nothing new");
        refusals.count(at(200), from(4), PEER, Refused::Key);
        assert_eq!(refusals.lines(at(201)), [key(1, 4)], "a quiet minute is over");
    }

    #[test]
    fn a_cause_is_the_peers_the_plainest_and_no_older_than_some_seconds() {
        let (mut refusals, start) = (Refusals::new(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let cause = |refusals: &Refusals, second| refusals.cause(at(second)).unwrap();
        assert_eq!(refusals.cause(at(0)), None);
        for crowd in [Refused::Source, Refused::Place, Refused::Silent, Refused::DatagramSession] {
            refusals.count(at(0), from(9), PEER, crowd);
        }
        assert_eq!(refusals.cause(at(0)), None, "a crowd explains nothing");
        refusals.count(at(1), from(9), !PEER, Refused::Key);
        assert_eq!(cause(&refusals, 1).kind, ("wrong_key", !PEER));
        refusals.count(at(1), from(1), PEER, Refused::ByPeer);
        assert_eq!(cause(&refusals, 1).kind, ("by_peer", PEER), "the peer's own first");
        refusals.count(at(2), from(1), PEER, Refused::Side("a"));
        for second in 2..7 {
            // both dial and both refuse: one cause, whichever was last
            refusals.count(at(second), from(1), PEER, Refused::ByPeer);
            assert_eq!(cause(&refusals, second).text, Refused::Side("a").to_string());
        }
        assert_eq!(cause(&refusals, 7).kind, ("by_peer", PEER), "the side is no cause any more");
        assert_eq!(refusals.cause(at(20)), None, "nor is anything");
        assert_eq!(refusals.newest().as_deref(), Some(&*Refused::ByPeer.to_string()));
    }
}
