//! The other guardian: beats as sealed datagrams on every path, and one control connection a path.
//!
//! Side a dials each of the peer's addresses, side b listens: so there is at most one connection a
//! path and no rule is needed for two. The eldest that is open is *the* control connection of
//! [`crate::node`]; when it ends, the next takes its place. A stranger (wrong key, wrong cluster,
//! same side, a crowd) is refused, and counted by reason.
//!
//! Driven by the role thread: poll [`PeerLink::interests`], then [`PeerLink::turn`].

mod asker;
mod connection;
mod datagrams;
mod door;
mod places;
mod refusals;
mod session;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;

use super::start::PeerSockets;
use crate::config::Side;
use crate::control::message::Secret;
use crate::node::{ControlEvent, PeerMessage, Via};

use asker::Asker;
use connection::{Connection, End};
use refusals::{Cause, Line, Refusals, Refused};
use session::Session;

pub(super) use session::Introduction;

/// Between two dials of a path that nobody answers.
const REDIAL: Duration = Duration::from_millis(100);
/// After a refusal: strangers do not change soon.
const REDIAL_REFUSED: Duration = Duration::from_secs(1);
/// Sessions kept without their connection.
const KEPT_MAX: usize = 8;

/// What arrived, in order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Input {
    /// For [`crate::node::Node::handle_message`]; by a path, or on a control connection.
    Message(PeerMessage, Option<Via>),
    /// For [`crate::node::Node::handle_control`].
    Control(ControlEvent),
    /// A datagram came by this path: for the status page.
    Heard(usize),
}

/// Numbers for status and metrics.
#[derive(Debug, Clone, Default)]
pub(super) struct PeerStats {
    /// Connections and datagrams refused, by reason.
    pub(super) refused: Vec<(&'static str, u64)>,
    /// Datagrams opened.
    pub(super) beats_received: u64,
    /// Datagrams sent.
    pub(super) beats_sent: u64,
    /// The peer's name, once known.
    pub(super) name: Option<String>,
    /// Control connections now open.
    pub(super) connections: usize,
    /// Its version, once known.
    pub(super) version: Option<String>,
    /// Why the last one was refused.
    pub(super) refused_reason: Option<String>,
}

#[derive(Debug)]
struct Link {
    /// Order of opening; 0 while the handshake runs.
    serial: u64,
    /// Which of our dials it is.
    path: Option<usize>,
    connection: Connection,
    session: Option<Session>,
}

/// A session whose connection is over: its peer may live.
#[derive(Debug)]
struct Kept {
    boot: u64,
    serial: u64,
    session: Session,
}

/// The link to the other guardian.
#[derive(Debug)]
pub(super) struct PeerLink {
    us: Introduction,
    key: Secret<32>,
    paths: Vec<SocketAddr>,
    dial_at: Vec<Option<Instant>>,
    sockets: PeerSockets,
    links: Vec<Link>,
    kept: Vec<Kept>,
    opened: u64,
    /// Serial of the control connection.
    current: Option<u64>,
    /// What sending found out, for the next turn, which a beat's time brings at the latest.
    found: Vec<Input>,
    /// Nothing is accepted before then.
    accept_at: Option<Instant>,
    /// Whose turn it is to be accepted from.
    next_listener: usize,
    /// The control connection has ended: is there still a guardian?
    asker: Option<Asker>,
    stats: PeerStats,
    refusals: Refusals,
}

impl PeerLink {
    /// Dials nothing before the first [`Self::turn`].
    pub(super) fn new(
        now: Instant,
        us: Introduction,
        key: Secret<32>,
        paths: Vec<SocketAddr>,
        sockets: PeerSockets,
    ) -> Self {
        let dials = us.side == Side::A;
        Self {
            us,
            key,
            dial_at: paths.iter().map(|_| dials.then_some(now)).collect(),
            stats: PeerStats::default(),
            paths,
            sockets,
            links: Vec::new(),
            kept: Vec::new(),
            opened: 0,
            current: None,
            found: Vec::new(),
            accept_at: None,
            next_listener: 0,
            asker: None,
            refusals: Refusals::new(),
        }
    }

    /// Numbers.
    pub(super) fn stats(&self) -> PeerStats {
        let connections = self.links.iter().filter(|link| link.connection.is_open()).count();
        PeerStats {
            connections,
            refused: self.refusals.by_reason(),
            refused_reason: self.refusals.newest(),
            ..self.stats.clone()
        }
    }

    /// Why the peer cannot be understood, by what was refused in the last seconds.
    pub(super) fn likely_cause(&self, now: Instant) -> Option<Cause> {
        self.refusals.cause(now)
    }

    /// What is to be said of refusals now.
    pub(super) fn lines(&mut self, now: Instant) -> Vec<Line> {
        self.refusals.lines(now)
    }

    /// Everything to poll.
    pub(super) fn interests(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        // without descriptors a waiting connection would wake this thread without end
        let listeners = self.sockets.tcp.iter().filter(|_| self.accept_at.is_none());
        let listeners = listeners.map(|socket| (socket.as_fd(), PollFlags::POLLIN));
        let datagrams = self.sockets.udp.iter().map(|socket| (socket.as_fd(), PollFlags::POLLIN));
        let links =
            self.links.iter().map(|link| (link.connection.as_fd(), link.connection.interest()));
        let asked = self.asker.iter().flat_map(Asker::interests);
        let asked = asked.map(|socket| (socket, PollFlags::POLLOUT));
        listeners.chain(datagrams).chain(links).chain(asked)
    }

    /// When [`Self::turn`] is due without any news.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let handshakes = self.links.iter().filter_map(|link| link.connection.deadline());
        let asked = self.asker.as_ref().and_then(Asker::poll_timeout);
        let dials = self.dial_at.iter().copied().flatten();
        dials.chain(handshakes).chain(asked).chain(self.accept_at).min()
    }

    /// Takes everything that has arrived, datagrams first.
    pub(super) fn turn(&mut self, now: Instant) -> Vec<Input> {
        let mut inputs = std::mem::take(&mut self.found);
        self.take_datagrams(now, &mut inputs);
        self.accept(now);
        self.turn_links(now, &mut inputs);
        self.ask(now, &mut inputs);
        // A dialler's datagram may have come before its proof on the connection.
        self.dial(now);
        inputs
    }

    /// Sends a beat on every path and on the control connections.
    pub(super) fn send(&mut self, now: Instant, message: &PeerMessage) {
        let bytes = message.encode();
        self.send_datagrams(&bytes);
        let mut ended = Vec::new();
        for (index, link) in self.links.iter_mut().enumerate() {
            if let (true, Some(session)) = (link.connection.is_open(), &link.session)
                && let Some(end) = link.connection.send(session, &bytes)
            {
                ended.push((index, end));
            }
        }
        // The reading side reports the end, after whatever came before it; here only what reading
        // cannot see.
        for (index, end) in ended.into_iter().rev() {
            if end == End::Lost {
                let mut found = std::mem::take(&mut self.found);
                self.end(now, index, &end, &mut found);
                self.found = found;
            }
        }
    }

    /// Goes on asking whether a guardian listens; a refusal is proof of death.
    fn ask(&mut self, now: Instant, inputs: &mut Vec<Input>) {
        let Some(asker) = &mut self.asker else { return };
        let refused = asker.turn(now);
        if refused {
            inputs.push(Input::Control(ControlEvent::Refused));
        }
        if refused || asker.is_over(now) {
            self.asker = None;
        }
    }

    fn dial(&mut self, now: Instant) {
        for path in 0..self.paths.len() {
            let due = self.dial_at[path].is_some_and(|at| at <= now);
            if !due {
                continue;
            }
            match Connection::dial(now, self.paths[path], &self.key) {
                Ok(connection) => {
                    self.dial_at[path] = None;
                    let path = Some(path);
                    self.links.push(Link { serial: 0, path, connection, session: None });
                }
                Err(_) => self.dial_at[path] = Some(now + REDIAL),
            }
        }
    }

    fn turn_links(&mut self, now: Instant, inputs: &mut Vec<Input>) {
        let mut index = 0;
        while let Some(link) = self.links.get_mut(index) {
            let taken = link.connection.turn(&self.us, &mut link.session);
            let end = taken.end.or_else(|| link.connection.overdue(now));
            let remote = link.connection.remote;
            if taken.opened {
                self.open(index, inputs);
            }
            for bytes in taken.messages {
                match PeerMessage::decode(&bytes) {
                    Ok(message) => inputs.push(Input::Message(message, None)),
                    Err(error) => self.refuse(now, Refused::Message(error), remote),
                }
            }
            match end {
                Some(end) => self.end(now, index, &end, inputs),
                None => index += 1,
            }
        }
    }

    /// The peer on this link is proved.
    fn open(&mut self, index: usize, inputs: &mut Vec<Input>) {
        self.opened += 1;
        let Some(link) = self.links.get_mut(index) else { return };
        link.serial = self.opened;
        let Some(peer) = link.connection.peer.clone() else { return };
        tracing::info!(peer = %peer.name, remote = %link.connection.remote, "peer connected");
        self.stats.name = Some(peer.name);
        self.stats.version = Some(peer.version);
        // Whatever an earlier boot of the peer had is worth nothing any more.
        self.kept.retain(|kept| kept.boot == peer.boot);
        let stale = |link: &Link| {
            let boot = link.connection.peer.as_ref().map(|peer| peer.boot);
            link.serial > 0 && boot != Some(peer.boot)
        };
        if let Some(current) = self.current
            && self.links.iter().any(|link| link.serial == current && stale(link))
        {
            self.current = None;
            inputs.push(Input::Control(ControlEvent::Lost));
        }
        self.links.retain(|link| !stale(link));
        self.choose(inputs);
    }

    /// Makes the eldest open connection the current one, if there is none.
    fn choose(&mut self, inputs: &mut Vec<Input>) {
        if self.current.is_none() {
            let open = self.links.iter().filter(|link| link.serial > 0).map(|link| link.serial);
            self.current = open.min();
            if self.current.is_some() {
                inputs.push(Input::Control(ControlEvent::Connected));
            }
        }
    }

    /// A connection is over.
    fn end(&mut self, now: Instant, index: usize, end: &End, inputs: &mut Vec<Input>) {
        let mut link = self.links.remove(index);
        if let (End::Lost, true, Some(session)) = (end, link.serial > 0, &link.session) {
            // We close it and live on: its end must not look like our death.
            link.connection.send(session, &PeerMessage::Bye.encode());
        }
        let pause = match end {
            End::Refused(refused) => {
                self.refuse(now, refused.clone(), link.connection.remote);
                REDIAL_REFUSED
            }
            End::ClosedByPeer => Duration::ZERO,
            End::Lost | End::NoAnswer => REDIAL,
        };
        if let Some(at) = link.path.and_then(|path| self.dial_at.get_mut(path)) {
            *at = Some(now + pause);
        }
        if link.serial == 0 {
            return;
        }
        tracing::info!(remote = %link.connection.remote, ?end, "peer connection is over");
        if self.current == Some(link.serial) {
            self.current = None;
            let closed = *end == End::ClosedByPeer;
            let event = if closed { ControlEvent::ClosedByPeer } else { ControlEvent::Lost };
            inputs.push(Input::Control(event));
            self.asker = Some(Asker::start(now, &self.paths));
            self.choose(inputs);
        }
        if let (Some(session), Some(peer)) = (link.session, link.connection.peer) {
            if self.kept.len() == KEPT_MAX {
                self.kept.remove(0);
            }
            self.kept.push(Kept { boot: peer.boot, serial: link.serial, session });
        }
    }

    fn refuse(&mut self, now: Instant, refused: Refused, from: SocketAddr) {
        let peer = self.paths.iter().any(|path| path.ip() == from.ip());
        self.refusals.count(now, from, peer, refused);
    }
}
