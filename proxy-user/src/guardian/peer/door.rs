//! Who is let in: connections on the peer's port, accepted and given a place while their handshake
//! runs.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::connection::Connection;
use super::places::{ACCEPTS_MAX, Admission, admit};
use super::refusals::Refused;
use super::{Link, PeerLink};

/// After an accept that the host could not serve (no descriptors): when to try again.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

impl PeerLink {
    /// Takes connections that wait, from each listener in turn: a crowd at one address delays
    /// neither a beat nor who comes to another.
    pub(super) fn accept(&mut self, now: Instant) {
        if self.accept_at.is_some_and(|at| now < at) {
            return;
        }
        self.accept_at = None;
        let (mut accepted, mut empty) = (0, 0);
        while accepted < ACCEPTS_MAX && empty < self.sockets.tcp.len() {
            self.next_listener = (self.next_listener + 1) % self.sockets.tcp.len();
            let Some(socket) = self.sockets.tcp.get(self.next_listener) else { return };
            match socket.accept() {
                Ok((socket, remote)) => {
                    (accepted, empty) = (accepted + 1, 0);
                    self.admit(now, socket, remote);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => empty += 1,
                // it was gone before we came
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => accepted += 1,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection on the peer port");
                    self.accept_at = Some(now + ACCEPT_RETRY);
                    return;
                }
            }
        }
    }

    fn admit(&mut self, now: Instant, socket: TcpStream, remote: SocketAddr) {
        let runs = |link: &Link| link.serial == 0 && !link.connection.dialled;
        let running: Vec<usize> =
            (0..self.links.len()).filter(|index| runs(&self.links[*index])).collect();
        let sources: Vec<_> =
            running.iter().map(|index| self.links[*index].connection.remote.ip()).collect();
        let peers: Vec<_> = self.paths.iter().map(SocketAddr::ip).collect();
        let time = match admit(remote.ip(), &peers, &sources) {
            Admission::Take(time) => time,
            Admission::Replace(eldest, time) => {
                if let Some(index) = running.get(eldest) {
                    let gone = self.links.remove(*index).connection.remote;
                    let crowd = peers.contains(&gone.ip());
                    let refused = if crowd { Refused::Source } else { Refused::Place };
                    self.refuse(now, refused, gone);
                }
                time
            }
            Admission::Refuse => return self.refuse(now, Refused::Source, remote),
        };
        if let Ok(connection) = Connection::accept(now + time, socket, remote, &self.key) {
            self.links.push(Link { serial: 0, path: None, connection, session: None });
        }
    }
}
