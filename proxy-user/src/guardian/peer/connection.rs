//! One control connection: dial or accept, handshake, frames. Non-blocking; the role thread polls.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::refusals::Refused;
use super::session::{Handshake, Introduction, SEALED_MAX, Session};
use crate::control::message::Secret;

/// Time for connect and handshake together.
const HANDSHAKE_TIME: Duration = Duration::from_secs(2);
/// Unacknowledged bytes for this long end a connection; it says nothing about the peer.
const USER_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes waiting to be sent above which a beat is left out: the next one says more.
const BACKLOG_MAX: usize = 4096;

/// Why a connection is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    /// The peer's host closed it.
    ClosedByPeer,
    /// It was reset or timed out, or we could not use it.
    Lost,
    /// Never was one.
    Refused(Refused),
    /// Nobody answered the dial.
    NoAnswer,
}

#[derive(Debug)]
enum Stage {
    /// The dial is under way.
    Connecting(Handshake),
    /// One message each.
    Shaking(Handshake),
    /// Responder: the session is there, the dialler has not proved yet that it has it.
    Unproved,
    /// Frames go both ways.
    Open,
}

/// A connection to the peer's guardian.
#[derive(Debug)]
pub(super) struct Connection {
    socket: TcpStream,
    stage: Option<Stage>,
    until: Instant,
    input: Vec<u8>,
    output: VecDeque<u8>,
    sent: u64,
    received: u64,
    /// The other side, once its message was read.
    pub(super) peer: Option<Introduction>,
    /// Where it leads.
    pub(super) remote: SocketAddr,
    /// We dialled it.
    pub(super) dialled: bool,
}

/// What reading gave.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// The session, once: the peer is proved.
    pub(super) opened: bool,
    /// Messages, in order.
    pub(super) messages: Vec<Vec<u8>>,
    /// It is over.
    pub(super) end: Option<End>,
}

impl Connection {
    /// Starts to dial.
    pub(super) fn dial(now: Instant, to: SocketAddr, key: &Secret<32>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        match socket.connect(&to.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        let shake = Handshake::new(key, true).ok_or(io::ErrorKind::Other)?;
        Ok(Self::new(now + HANDSHAKE_TIME, socket.into(), to, Stage::Connecting(shake), true))
    }

    /// Takes an accepted one, whose handshake must be through at `until`.
    pub(super) fn accept(
        until: Instant,
        socket: TcpStream,
        remote: SocketAddr,
        key: &Secret<32>,
    ) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let shake = Handshake::new(key, false).ok_or(io::ErrorKind::Other)?;
        Ok(Self::new(until, socket, remote, Stage::Shaking(shake), false))
    }

    fn new(
        until: Instant,
        socket: TcpStream,
        remote: SocketAddr,
        stage: Stage,
        dialled: bool,
    ) -> Self {
        let reference = SockRef::from(&socket);
        // Best effort: only speed depends on them.
        drop(reference.set_tcp_nodelay(true));
        drop(reference.set_tcp_user_timeout(Some(USER_TIMEOUT)));
        Self {
            socket,
            stage: Some(stage),
            until,
            input: Vec::new(),
            output: VecDeque::new(),
            sent: 0,
            received: 0,
            peer: None,
            remote,
            dialled,
        }
    }

    /// What to poll for.
    pub(super) fn interest(&self) -> PollFlags {
        let writes = matches!(self.stage, Some(Stage::Connecting(_))) || !self.output.is_empty();
        if writes { PollFlags::POLLIN | PollFlags::POLLOUT } else { PollFlags::POLLIN }
    }

    /// When [`Self::overdue`] may become true.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.is_open()).then_some(self.until)
    }

    /// The handshake takes too long.
    pub(super) fn overdue(&self, now: Instant) -> Option<End> {
        let late = !self.is_open() && now >= self.until;
        let end = match self.stage {
            Some(Stage::Connecting(_)) => End::NoAnswer,
            _ if self.dialled => End::Lost,
            Some(Stage::Unproved) => End::Refused(Refused::Unproved),
            _ => End::Refused(Refused::Silent),
        };
        late.then_some(end)
    }

    /// Frames may be sent.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stage, Some(Stage::Open))
    }

    /// The first datagram under its session proves the dialler as well as the first frame.
    pub(super) fn prove(&mut self) -> bool {
        let proved = matches!(self.stage, Some(Stage::Unproved));
        if proved {
            self.stage = Some(Stage::Open);
        }
        proved
    }

    /// Seals and sends a message; left out while too much waits.
    pub(super) fn send(&mut self, session: &Session, message: &[u8]) -> Option<End> {
        if self.output.len() > BACKLOG_MAX {
            return None;
        }
        let frame = session.seal_frame(self.sent, message)?;
        self.sent += 1;
        self.output.extend(frame);
        self.flush()
    }

    fn push_plain(&mut self, message: &[u8]) {
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
        self.output.extend(length.to_be_bytes());
        self.output.extend(message);
    }

    /// Writes what can be written.
    pub(super) fn flush(&mut self) -> Option<End> {
        while !self.output.is_empty() {
            let (first, _) = self.output.as_slices();
            match self.socket.write(first) {
                Ok(0) => return Some(End::Lost),
                Ok(written) => drop(self.output.drain(..written)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Some(self.ended(&error)),
            }
        }
        None
    }

    /// Goes on after the poll said that something can be done. `session` is set when the handshake
    /// is through.
    pub(super) fn turn(&mut self, us: &Introduction, session: &mut Option<Session>) -> Taken {
        let mut taken = Taken::default();
        if let Some(Stage::Connecting(_)) = self.stage {
            match self.connected(us) {
                Ok(true) => {}
                Ok(false) => return taken,
                Err(end) => {
                    taken.end = Some(end);
                    return taken;
                }
            }
        }
        taken.end = self.flush();
        let read = self.fill();
        while let Some(frame) = self.next_frame(&mut taken) {
            if let Err(end) = self.handle(us, session, &frame, &mut taken) {
                taken.end = Some(end);
                return taken;
            }
        }
        taken.end = taken.end.or_else(|| self.flush()).or(read);
        taken
    }

    /// The dial's result; true when connected.
    fn connected(&mut self, us: &Introduction) -> Result<bool, End> {
        match self.socket.take_error() {
            Ok(None) => {}
            Ok(Some(_)) | Err(_) => return Err(End::NoAnswer),
        }
        if self.socket.peer_addr().is_err() {
            return Ok(false);
        }
        let Some(Stage::Connecting(mut shake)) = self.stage.take() else { return Ok(true) };
        let message = shake.write(us).ok_or(End::Lost)?;
        self.push_plain(&message);
        self.stage = Some(Stage::Shaking(shake));
        Ok(true)
    }

    /// Reads what there is; the end of the stream counts after what came before it.
    fn fill(&mut self) -> Option<End> {
        let mut chunk = [0; 4096];
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => return Some(self.closed()),
                Ok(length) => {
                    self.input.extend(chunk.get(..length).unwrap_or_default());
                    // Frames are taken before more is read: the input stays bounded.
                    if length < chunk.len() || self.input.len() > 4 * SEALED_MAX {
                        return None;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Some(self.ended(&error)),
            }
        }
    }

    fn closed(&self) -> End {
        match self.stage {
            Some(Stage::Open) => End::ClosedByPeer,
            Some(Stage::Shaking(_)) if self.dialled => End::Refused(Refused::ByPeer),
            _ => End::Lost,
        }
    }

    fn ended(&self, error: &io::Error) -> End {
        match error.kind() {
            // a pipe breaks after the peer's FIN, which its kernel sends for a process that died; a
            // reset may come from a box in between and proves nothing
            io::ErrorKind::BrokenPipe => self.closed(),
            _ => End::Lost,
        }
    }

    /// The next whole frame of the input.
    fn next_frame(&mut self, taken: &mut Taken) -> Option<Vec<u8>> {
        let length = <[u8; 2]>::try_from(self.input.get(..2)?).ok()?;
        let length = usize::from(u16::from_be_bytes(length));
        if length > SEALED_MAX {
            let stranger = !self.is_open();
            taken.end = Some(if stranger { End::Refused(Refused::Malformed) } else { End::Lost });
            return None;
        }
        if self.input.len() < 2 + length {
            return None;
        }
        let frame = self.input.drain(..2 + length).skip(2).collect();
        Some(frame)
    }

    fn handle(
        &mut self,
        us: &Introduction,
        session: &mut Option<Session>,
        frame: &[u8],
        taken: &mut Taken,
    ) -> Result<(), End> {
        match self.stage.take() {
            Some(Stage::Shaking(shake)) => {
                self.stage = Some(self.shaken(shake, us, session, frame)?);
                taken.opened = self.is_open();
                if taken.opened {
                    // The proof: the listener believes nothing before it.
                    let proof = session.as_ref().and_then(|session| session.seal_frame(0, &[]));
                    self.output.extend(proof.ok_or(End::Lost)?);
                    self.sent = 1;
                }
                Ok(())
            }
            Some(stage @ (Stage::Unproved | Stage::Open)) => {
                let opened = session.as_ref().and_then(|one| one.open_frame(self.received, frame));
                let message = opened.ok_or(match stage {
                    Stage::Unproved => End::Refused(Refused::Unproved),
                    _ => End::Lost,
                })?;
                self.received += 1;
                taken.opened |= matches!(stage, Stage::Unproved);
                self.stage = Some(Stage::Open);
                if !message.is_empty() {
                    taken.messages.push(message);
                }
                Ok(())
            }
            _ => Err(End::Lost),
        }
    }

    /// Takes the other's handshake message; the listener answers it.
    fn shaken(
        &mut self,
        mut shake: Handshake,
        us: &Introduction,
        session: &mut Option<Session>,
        frame: &[u8],
    ) -> Result<Stage, End> {
        let peer = shake.read(frame).map_err(End::Refused)?;
        us.accepts(&peer).map_err(End::Refused)?;
        self.peer = Some(peer);
        if !self.dialled {
            let answer = shake.write(us).ok_or(End::Lost)?;
            self.push_plain(&answer);
        }
        *session = Some(shake.finish().ok_or(End::Lost)?);
        Ok(if self.dialled { Stage::Open } else { Stage::Unproved })
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
