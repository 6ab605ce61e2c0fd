//! Asks a `tandem witness`: the question goes to all its addresses, again each 10 ms, and the first
//! grant or refusal counts.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use super::ask::{Asker, Inbox, Outcome};
use crate::config::Side;
use crate::node::{Answer, BootId, Question};
use crate::witness::{DATAGRAM_MAX, NONCE, Reply, Request, Seal};

/// Between two sends of one question.
const AGAIN: Duration = Duration::from_millis(10);
/// Datagrams taken from one socket at a time.
const TURN_MAX: usize = 16;

/// One witness, by all its addresses.
#[derive(Debug)]
pub(super) struct Tandem {
    addresses: Vec<SocketAddr>,
    seal: Seal,
    side: Side,
    boot: BootId,
    /// What the witness told us to show.
    token: u64,
}

impl Tandem {
    pub(super) fn new(addresses: Vec<SocketAddr>, us: &Asker) -> Self {
        let seal = Seal::new(&us.key.0, &us.cluster);
        Self { addresses, seal, side: us.side, boot: us.boot, token: 0 }
    }

    pub(super) fn ask(&mut self, question: Question, until: Instant, inbox: &Inbox) -> Outcome {
        // made anew, so that a route or an address that came back is used
        let sockets: Vec<_> = self.addresses.iter().filter_map(|to| connect(*to).ok()).collect();
        let mut next = Instant::now();
        loop {
            let now = Instant::now();
            if now >= until {
                return Outcome::Silence;
            }
            if now >= next {
                self.send(&sockets, question);
                next = now + AGAIN;
            }
            if let Some(newer) = inbox.wait(&sockets, next.min(until)) {
                return Outcome::Newer(newer);
            }
            let token = self.token;
            if let Some(answer) = sockets.iter().find_map(|one| self.receive(one, question)) {
                return Outcome::Answer(answer);
            }
            if token != self.token {
                next = Instant::now();
            }
        }
    }

    /// What cannot be sent now is sent again soon.
    fn send(&self, sockets: &[UdpSocket], question: Question) {
        let request = Request::new(self.side, self.boot, self.token, question);
        for socket in sockets {
            let mut nonce = [0; NONCE];
            if getrandom::fill(&mut nonce).is_err() {
                return;
            }
            if let Some(datagram) = self.seal.request(nonce, &request) {
                socket.send(&datagram).ok();
            }
        }
    }

    fn receive(&mut self, socket: &UdpSocket, question: Question) -> Option<Answer> {
        let mut buffer = [0; DATAGRAM_MAX + 1];
        for _ in 0..TURN_MAX {
            let length = match socket.recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                // refused: nobody listens there now
                Err(_) => continue,
            };
            let Some(reply) = self.seal.open_reply(&buffer[..length]) else { continue };
            if reply.about() != (self.boot, question.number) {
                continue;
            }
            match reply {
                Reply::Present { token, .. } => self.token = token,
                Reply::Granted { .. } | Reply::Refused { .. } => return reply.answer(),
            }
        }
        None
    }
}

fn connect(to: SocketAddr) -> io::Result<UdpSocket> {
    let any = match to {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(to)?;
    Ok(socket)
}
