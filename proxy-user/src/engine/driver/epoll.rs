//! The epoll driver: mio's edge-triggered readiness, turned into the completions that io_uring
//! would give. The fallback; kept small. No unsafe.
//!
//! Readiness is remembered per socket until a call says `EWOULDBLOCK`. All system calls are made
//! in `Epoll::poll`: first for the sockets with something new to do, then for those reported.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::Instant;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use socket2::{SockAddr, SockRef};

use super::buffers::Pool;
use super::table::{Key, Table};
use super::wake::Waker;
use super::{Completion, DriverOptions, DriverStats, Event, Op, is_passing, patience};

/// The waker's place among the tokens.
const WAKE: Token = Token(usize::MAX);
/// Events taken from the kernel in one call.
const EVENTS_MAX: usize = 1024;
/// Connections accepted, and buffers received, from one socket in one turn: then it is the
/// others' turn.
const ACCEPTS_MAX: usize = 64;
const RECVS_MAX: usize = 16;

#[derive(Debug)]
struct Socket {
    descriptor: OwnedFd,
    readable: bool,
    writable: bool,
    /// The peer has sent its end: a short read is not the last.
    read_closed: bool,
    queued: bool,
    accepting: bool,
    receiving: bool,
    into: Option<Vec<u8>>,
    send: Option<(Vec<u8>, usize)>,
    connecting: Option<Connecting>,
    shutdown: bool,
}

#[derive(Debug, Clone, Copy)]
enum Connecting {
    Asked(SocketAddr),
    Under,
}

/// See the module.
#[derive(Debug)]
pub struct Epoll {
    poll: Poll,
    events: Events,
    sockets: Table<Socket>,
    pool: Rc<Pool>,
    waker: Waker,
    /// Sockets that may have something to do.
    queue: Vec<Key>,
    starved: Vec<Key>,
    stats: DriverStats,
}

impl Epoll {
    /// # Errors
    /// No descriptors left.
    pub fn new(options: &DriverOptions) -> io::Result<Self> {
        let poll = Poll::new()?;
        let waker = Waker::new(true)?;
        let fd = waker.descriptor().as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), WAKE, Interest::READABLE)?;
        Ok(Self {
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            sockets: Table::new(),
            pool: Pool::new(options.buffers, options.buffer_size),
            waker,
            queue: Vec::new(),
            starved: Vec::new(),
            stats: DriverStats::default(),
        })
    }

    pub(super) fn adopt(&mut self, descriptor: OwnedFd) -> io::Result<Key> {
        SockRef::from(&descriptor).set_nonblocking(true)?;
        let fd = descriptor.as_raw_fd();
        let key = self.sockets.insert(Socket {
            descriptor,
            readable: false,
            writable: false,
            read_closed: false,
            queued: false,
            accepting: false,
            receiving: false,
            into: None,
            send: None,
            connecting: None,
            shutdown: false,
        });
        let interest = Interest::READABLE | Interest::WRITABLE;
        let token = Token(key.index() | (key.generation() as usize) << 32);
        if let Err(error) = self.poll.registry().register(&mut SourceFd(&fd), token, interest) {
            self.sockets.remove(key);
            return Err(error);
        }
        Ok(key)
    }

    pub(super) fn push(&mut self, key: Key, op: Op) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        match op {
            Op::Accept => socket.accepting = true,
            Op::AcceptStop => socket.accepting = false,
            Op::Sweep => socket.readable = true,
            Op::Recv => socket.receiving = true,
            Op::RecvStop => socket.receiving = false,
            Op::RecvInto(buffer) => {
                if socket.into.is_some() || buffer.is_empty() {
                    self.misuse();
                    return;
                }
                socket.receiving = false;
                socket.into = Some(buffer);
            }
            Op::Send(bytes) => {
                if socket.send.is_some() || bytes.is_empty() {
                    self.misuse();
                    return;
                }
                // Nearly always there is room: try before being told.
                socket.writable |= socket.connecting.is_none();
                socket.send = Some((bytes, 0));
            }
            Op::Connect(address) => socket.connecting = Some(Connecting::Asked(address)),
            Op::ShutdownWrite => socket.shutdown = true,
        }
        self.enqueue(key);
    }

    fn misuse(&mut self) {
        debug_assert!(false, "a second operation of this kind, or an empty one");
        self.stats.misused += 1;
    }

    fn enqueue(&mut self, key: Key) {
        if let Some(socket) = self.sockets.get_mut(key)
            && !std::mem::replace(&mut socket.queued, true)
        {
            self.queue.push(key);
        }
    }

    pub(super) fn close(&mut self, key: Key) {
        // Closing takes the descriptor out of the epoll set: nobody else holds it open.
        if let Some(socket) = self.sockets.remove(key) {
            let fd = socket.descriptor.as_raw_fd();
            if self.poll.registry().deregister(&mut SourceFd(&fd)).is_err() {
                self.stats.misused += 1;
            }
        }
    }

    pub(super) fn poll(
        &mut self,
        completions: &mut Vec<Completion>,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        if self.pool.has_free() {
            for key in std::mem::take(&mut self.starved) {
                self.enqueue(key);
            }
        }
        self.work(completions);
        let busy = !completions.is_empty() || !self.queue.is_empty();
        let asleep = !busy && self.waker.fall_asleep();
        self.stats.polls += 1;
        let result = self.poll.poll(&mut self.events, patience(deadline, !asleep));
        self.waker.rise();
        match result {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.note_events();
        self.work(completions);
        Ok(())
    }

    fn note_events(&mut self) {
        for event in &self.events {
            if event.token() == WAKE {
                self.waker.drain();
                continue;
            }
            let Token(token) = event.token();
            let key = Key::new(token as u32, (token >> 32) as u32);
            let Some(socket) = self.sockets.get_mut(key) else {
                self.stats.stale += 1;
                continue;
            };
            socket.readable |= event.is_readable() || event.is_error();
            socket.writable |= event.is_writable() || event.is_error();
            socket.read_closed |= event.is_read_closed() || event.is_error();
            if !std::mem::replace(&mut socket.queued, true) {
                self.queue.push(key);
            }
        }
        self.events.clear();
    }

    /// Does what can be done for every queued socket. Those that have more to do than is fair in
    /// one turn stay queued.
    fn work(&mut self, completions: &mut Vec<Completion>) {
        for key in std::mem::take(&mut self.queue) {
            let Some(socket) = self.sockets.get_mut(key) else { continue };
            socket.queued = false;
            let mut emit = |event| completions.push(Completion { key, event });
            socket.connect(&mut emit);
            socket.transmit(&mut emit);
            let more = socket.accept(&mut emit);
            match socket.receive(&self.pool, &mut emit) {
                Received::Enough if !more => {}
                Received::Starved => {
                    self.stats.starved += 1;
                    self.starved.push(key);
                }
                Received::Enough | Received::More => self.enqueue(key),
            }
        }
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn descriptor(&self, key: Key) -> Option<BorrowedFd<'_>> {
        self.sockets.get(key).map(|socket| socket.descriptor.as_fd())
    }

    pub(super) fn held(&self) -> usize {
        self.sockets.len()
    }

    pub(super) const fn stats(&self) -> DriverStats {
        self.stats
    }
}

enum Received {
    /// Nothing more to get, or nobody wants it.
    Enough,
    /// The turn is over, not the bytes.
    More,
    /// No buffer is left.
    Starved,
}

impl Socket {
    fn connect(&mut self, emit: &mut impl FnMut(Event)) {
        match self.connecting {
            None => {}
            Some(Connecting::Asked(address)) => {
                self.writable = false;
                self.connecting = Some(Connecting::Under);
                match SockRef::from(&self.descriptor).connect(&SockAddr::from(address)) {
                    Ok(()) => self.connected(Ok(()), emit),
                    Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
                    Err(error) => self.connected(Err(error), emit),
                }
            }
            Some(Connecting::Under) if self.writable => {
                let result = match SockRef::from(&self.descriptor).take_error() {
                    Ok(None) => Ok(()),
                    Ok(Some(error)) | Err(error) => Err(error),
                };
                self.connected(result, emit);
            }
            Some(Connecting::Under) => {}
        }
    }

    fn connected(&mut self, result: io::Result<()>, emit: &mut impl FnMut(Event)) {
        self.connecting = None;
        self.writable = result.is_ok();
        emit(Event::Connected(result));
    }

    fn accept(&mut self, emit: &mut impl FnMut(Event)) -> bool {
        if !self.accepting || !self.readable {
            return false;
        }
        for _ in 0..ACCEPTS_MAX {
            match SockRef::from(&self.descriptor).accept() {
                Ok((socket, _)) => emit(Event::Accepted(socket.into())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = false;
                    return false;
                }
                Err(error) if is_passing(&error) => {}
                Err(error) => {
                    self.accepting = false;
                    emit(Event::AcceptFailed(error));
                    return false;
                }
            }
        }
        true
    }

    fn receive(&mut self, pool: &Rc<Pool>, emit: &mut impl FnMut(Event)) -> Received {
        for _ in 0..RECVS_MAX {
            if !self.readable || !(self.receiving || self.into.is_some()) {
                return Received::Enough;
            }
            let fd = self.descriptor.as_raw_fd();
            let (wanted, result) = if let Some(mut buffer) = self.into.take() {
                let result = recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT);
                let wanted = buffer.len();
                match result {
                    Ok(count) if count > 0 => emit(Event::Filled(buffer, count)),
                    Err(Errno::EWOULDBLOCK | Errno::EINTR) => self.into = Some(buffer),
                    _ => {}
                }
                (wanted, result)
            } else {
                let mut wanted = 0;
                let filled = pool.fill(|buffer| {
                    wanted = buffer.len();
                    match recv(fd, buffer, MsgFlags::MSG_DONTWAIT) {
                        Ok(0) => Err(Ok(0)),
                        Ok(count) => Ok(count),
                        Err(error) => Err(Err(error)),
                    }
                });
                match filled {
                    None => return Received::Starved,
                    Some(Err(result)) => (wanted, result),
                    Some(Ok(lease)) => {
                        let count = lease.len();
                        emit(Event::Data(lease));
                        (wanted, Ok(count))
                    }
                }
            };
            self.after_receive(wanted, result, emit);
        }
        Received::More
    }

    fn after_receive(
        &mut self,
        wanted: usize,
        result: Result<usize, Errno>,
        emit: &mut impl FnMut(Event),
    ) {
        match result {
            Ok(0) => {
                self.receiving = false;
                self.readable = false;
                emit(Event::Eof);
            }
            // A short read has emptied the socket (epoll(7)), unless its end is already there.
            Ok(count) => self.readable = count == wanted || self.read_closed,
            Err(Errno::EINTR) => {}
            Err(Errno::EWOULDBLOCK) => self.readable = false,
            Err(error) => {
                self.receiving = false;
                self.readable = false;
                emit(Event::RecvFailed(error.into()));
            }
        }
    }

    fn transmit(&mut self, emit: &mut impl FnMut(Event)) {
        while self.writable && self.connecting.is_none() {
            let Some((bytes, sent)) = &mut self.send else { break };
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(self.descriptor.as_raw_fd(), &bytes[*sent..], flags) {
                Ok(count) => {
                    *sent += count;
                    if *sent < bytes.len() {
                        emit(Event::Progress(count));
                    } else if let Some((bytes, _)) = self.send.take() {
                        emit(Event::Sent(bytes));
                    }
                }
                Err(Errno::EINTR) => {}
                Err(Errno::EWOULDBLOCK) => self.writable = false,
                Err(error) => {
                    self.send = None;
                    emit(Event::SendFailed(error.into()));
                }
            }
        }
        if self.shutdown && self.send.is_none() {
            self.shutdown = false;
            if let Err(error) = shutdown(self.descriptor.as_raw_fd(), Shutdown::Write) {
                // Only where the connection is gone, which receiving tells.
                debug_assert_eq!(error, Errno::ENOTCONN);
            }
        }
    }
}
