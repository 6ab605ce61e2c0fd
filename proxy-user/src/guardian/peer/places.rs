//! Who may hold a place while its handshake runs. Strangers have few, for a short time, and never
//! one of the peer's: 160 connections a second without the key once kept a node out of its pair.

use std::net::IpAddr;
use std::time::Duration;

/// Connections accepted in one turn, from all listeners together: a flood must not delay a beat.
pub(super) const ACCEPTS_MAX: usize = 16;
/// Running handshakes from one address.
const PER_SOURCE: usize = 2;
/// Running handshakes of all strangers.
const STRANGERS: usize = 8;
/// Running handshakes from each of the peer's addresses: its dials and its questions.
const PEER: usize = 4;
/// A stranger proves itself by its first message, within this time.
const STRANGER_TIME: Duration = Duration::from_millis(300);
/// The peer may be slow: its host just started, or is loaded.
const PEER_TIME: Duration = Duration::from_secs(2);

/// What is to become of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// Take it, for so long.
    Take(Duration),
    /// Drop the running handshake of this index (in the order given), and take it for so long.
    Replace(usize, Duration),
    /// There are enough from there.
    Refuse,
}

/// Decides on a connection from `source`; `running`: the sources of the handshakes that run, the
/// eldest first.
pub(super) fn admit(source: IpAddr, peers: &[IpAddr], running: &[IpAddr]) -> Admission {
    let same = running.iter().filter(|one| **one == source).count();
    if peers.contains(&source) {
        let eldest = running.iter().position(|one| *one == source);
        return match eldest {
            Some(eldest) if same >= PEER => Admission::Replace(eldest, PEER_TIME),
            _ => Admission::Take(PEER_TIME),
        };
    }
    if same >= PER_SOURCE {
        return Admission::Refuse;
    }
    let strangers = running.iter().filter(|one| !peers.contains(one)).count();
    let eldest = running.iter().position(|one| !peers.contains(one));
    match eldest {
        Some(eldest) if strangers >= STRANGERS => Admission::Replace(eldest, STRANGER_TIME),
        _ => Admission::Take(STRANGER_TIME),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn strangers_have_few_places_and_the_peer_has_its_own() {
        let peers = [ip(1), ip(2)];
        let crowd: Vec<IpAddr> = (10..18).map(ip).collect();
        for (source, running, expected) in [
            (ip(9), vec![], Admission::Take(STRANGER_TIME)),
            (ip(9), vec![ip(9)], Admission::Take(STRANGER_TIME)),
            (ip(9), vec![ip(9), ip(9)], Admission::Refuse),
            (ip(9), crowd.clone(), Admission::Replace(0, STRANGER_TIME)),
            (ip(9), [&[ip(1)][..], &crowd].concat(), Admission::Replace(1, STRANGER_TIME)),
            (ip(1), crowd.clone(), Admission::Take(PEER_TIME)),
            (ip(1), [&[ip(2)][..], &[ip(1); 4]].concat(), Admission::Replace(1, PEER_TIME)),
            (ip(2), vec![ip(1); 4], Admission::Take(PEER_TIME)),
        ] {
            assert_eq!(admit(source, &peers, &running), expected, "{source} {running:?}");
        }
    }

    #[test]
    fn no_crowd_grows() {
        let peers = [ip(1)];
        let mut running = Vec::new();
        for n in 0..10_000_u32 {
            let source = if n % 7 == 0 { ip(1) } else { IpAddr::from((n % 500).to_be_bytes()) };
            match admit(source, &peers, &running) {
                Admission::Take(_) => running.push(source),
                Admission::Replace(at, _) => {
                    running.remove(at);
                    running.push(source);
                }
                Admission::Refuse => {}
            }
            assert!(running.len() <= STRANGERS + PEER, "{n}");
        }
    }
}
