//! The io_uring driver: one ring, made and used by one thread.
//!
//! `user_data` = operation:8 | generation:24 | place:32. Multishot accept into plain descriptors,
//! multishot receive from a provided-buffer ring, one enter a turn. Bytes that the kernel holds
//! live in the `Socket` of their key and stay there until their completion came; a socket leaves
//! the table only with nothing in flight. One of the engine's two unsafe modules.
#![allow(unsafe_code, reason = "submission entries hold raw addresses of our buffers")]

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use io_uring::types::{CancelBuilder, Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use socket2::SockAddr;

use super::buffers::{Lease, Pool, Ring};
use super::probe;
use super::table::{Key, Table};
use super::wake::Waker;
use super::{Completion, DriverOptions, DriverStats, Event, Op, Unavailable, is_passing, patience};

/// The one buffer group.
const GROUP: u16 = 0;
/// io_uring_enter(2): wait for completions.
const ENTER_GETEVENTS: u32 = 1;
/// io_uring_enter(2): the argument is `io_uring_getevents_arg`.
const ENTER_EXT_ARG: u32 = 1 << 3;
/// io_uring_enter(2), 6.15: waiting for the network is not waiting for a disk.
const ENTER_NO_IOWAIT: u32 = 1 << 7;
/// How long the end of a driver may wait for the kernel to let go of its buffers.
const DRAIN_MAX: Duration = Duration::from_secs(2);

const ACCEPT: u8 = 1;
const RECV: u8 = 2;
const RECV_INTO: u8 = 3;
const SEND: u8 = 4;
const CONNECT: u8 = 5;
const SHUTDOWN: u8 = 6;
const CANCEL: u8 = 7;
const CLOSE: u8 = 8;
const WAKE: u8 = 9;

fn user_data(op: u8, key: Key) -> u64 {
    u64::from(op) << 56 | u64::from(key.generation()) << 32 | key.index() as u64
}

/// A wish the driver keeps armed.
#[derive(Debug, Default, Clone, Copy)]
struct Stream {
    wanted: bool,
    armed: bool,
    cancelling: bool,
}

#[derive(Debug)]
struct Flying {
    bytes: Vec<u8>,
    sent: usize,
}

#[derive(Debug)]
struct Socket {
    descriptor: OwnedFd,
    /// Entries whose last completion has not come.
    in_flight: u32,
    closing: bool,
    insisted: bool,
    listens: bool,
    accept: Stream,
    recv: Stream,
    starved: bool,
    /// The one-shot receive: wished for, and flying.
    into: Option<Vec<u8>>,
    into_armed: bool,
    send: Option<Flying>,
    shutdown: bool,
    address: Option<Box<SockAddr>>,
}

impl Socket {
    fn new(descriptor: OwnedFd) -> Self {
        Self {
            descriptor,
            in_flight: 0,
            closing: false,
            insisted: false,
            listens: false,
            accept: Stream::default(),
            recv: Stream::default(),
            starved: false,
            into: None,
            into_armed: false,
            send: None,
            shutdown: false,
            address: None,
        }
    }

    fn fd(&self) -> Fd {
        Fd(self.descriptor.as_raw_fd())
    }
}

/// See the module.
pub struct Uring {
    // The ring is dropped first: nothing below may go while the kernel may use it.
    ring: Option<IoUring>,
    buffers: Ring,
    sockets: Table<Socket>,
    pool: Rc<Pool>,
    waker: Waker,
    wake_word: Box<[u8; 8]>,
    /// Entries that found the submission queue full.
    backlog: VecDeque<squeue::Entry>,
    starved: Vec<Key>,
    scratch: Vec<(u64, i32, u32)>,
    /// Entries in flight that belong to no socket: closes, and the read of the wake-up word.
    others: u32,
    ending: bool,
    enter_flags: u32,
    stats: DriverStats,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring")
            .field("sockets", &self.sockets)
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Uring {
    /// Makes the ring.
    ///
    /// # Errors
    /// Why it cannot be had here.
    pub fn new(options: &DriverOptions) -> Result<Self, Unavailable> {
        probe::kernel_is_new_enough()?;
        let refused = |what: &'static str| {
            move |error: io::Error| Unavailable::Refused(format!("{what}: {error}"))
        };
        let ring = probe::build(options).map_err(refused("io_uring_setup"))?;
        let pool = Pool::new(options.buffers, options.buffer_size);
        let mut buffers = Ring::new(Rc::clone(&pool));
        let (address, entries) = buffers.registration();
        // SAFETY: the memory is page-aligned, zeroed, of `entries` entries, and is kept in `self`
        // until the ring is gone.
        unsafe { ring.submitter().register_buf_ring_with_flags(address, entries, GROUP, 0) }
            .map_err(refused("io_uring_register (buffer ring)"))?;
        probe::restrict(&ring).map_err(refused("io_uring_register (restrictions)"))?;
        buffers.publish();
        let no_iowait = ring.params().is_feature_no_iowait();
        let mut driver = Self {
            ring: Some(ring),
            buffers,
            sockets: Table::new(),
            pool,
            waker: Waker::new(false).map_err(refused("eventfd"))?,
            wake_word: Box::new([0; 8]),
            backlog: VecDeque::new(),
            starved: Vec::new(),
            scratch: Vec::new(),
            others: 0,
            ending: false,
            enter_flags: ENTER_EXT_ARG
                | ENTER_GETEVENTS
                | if no_iowait { ENTER_NO_IOWAIT } else { 0 },
            stats: DriverStats::default(),
        };
        driver.arm_wake();
        Ok(driver)
    }

    pub(super) fn adopt(&mut self, descriptor: OwnedFd) -> io::Result<Key> {
        // A non-blocking descriptor makes the ring answer EAGAIN instead of waiting.
        let flags = OFlag::from_bits_retain(fcntl(&descriptor, FcntlArg::F_GETFL)?);
        if flags.contains(OFlag::O_NONBLOCK) {
            fcntl(&descriptor, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
        }
        Ok(self.sockets.insert(Socket::new(descriptor)))
    }

    pub(super) fn push(&mut self, key: Key, op: Op) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        if socket.closing {
            return;
        }
        match op {
            Op::Accept => {
                socket.listens = true;
                socket.accept.wanted = true;
                self.arm_accept(key);
            }
            Op::AcceptStop => {
                socket.accept.wanted = false;
                self.cancel(key, ACCEPT);
            }
            // The cancelled accept is armed again when its end is seen, and arming looks.
            Op::Sweep => self.cancel(key, ACCEPT),
            Op::Recv => {
                socket.recv.wanted = true;
                self.arm_recv(key);
            }
            Op::RecvStop => {
                socket.recv.wanted = false;
                self.cancel(key, RECV);
            }
            Op::RecvInto(buffer) => {
                if socket.into.is_some() || buffer.is_empty() {
                    self.misuse();
                    return;
                }
                socket.into = Some(buffer);
                socket.recv.wanted = false;
                self.cancel(key, RECV);
                self.arm_recv(key);
            }
            Op::Send(bytes) => {
                if socket.send.is_some() || bytes.is_empty() {
                    self.misuse();
                    return;
                }
                socket.send = Some(Flying { bytes, sent: 0 });
                self.arm_send(key);
            }
            Op::Connect(address) => self.connect(key, address),
            Op::ShutdownWrite => {
                socket.shutdown = true;
                self.shutdown_write(key);
            }
        }
    }

    fn misuse(&mut self) {
        debug_assert!(false, "a second operation of this kind, or an empty one");
        self.stats.misused += 1;
    }

    pub(super) fn close(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        if std::mem::replace(&mut socket.closing, true) {
            return;
        }
        if socket.in_flight > 0 {
            self.cancel_all(key);
        } else {
            self.free(key);
        }
    }

    fn cancel_all(&mut self, key: Key) {
        let Some(socket) = self.sockets.get(key) else { return };
        let cancel = opcode::AsyncCancel2::new(CancelBuilder::fd(socket.fd()).all()).build();
        self.submit(key, CANCEL, cancel);
    }

    /// Nothing is in flight: the place becomes free, the descriptor is closed by the ring.
    fn free(&mut self, key: Key) {
        let Some(socket) = self.sockets.remove(key) else { return };
        debug_assert_eq!(socket.in_flight, 0);
        let fd: RawFd = socket.descriptor.into_raw_fd();
        self.others += 1;
        self.enqueue(opcode::Close::new(Fd(fd)).build().user_data(user_data(CLOSE, key)));
    }

    fn cancel(&mut self, key: Key, op: u8) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        let stream = if op == ACCEPT { &mut socket.accept } else { &mut socket.recv };
        if stream.armed && !stream.cancelling {
            stream.cancelling = true;
            self.submit(key, CANCEL, opcode::AsyncCancel::new(user_data(op, key)).build());
        }
    }

    fn arm_accept(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        if socket.closing || !socket.accept.wanted || socket.accept.armed {
            return;
        }
        socket.accept = Stream { wanted: true, armed: true, cancelling: false };
        let accept = opcode::AcceptMulti::new(socket.fd()).flags(libc::SOCK_CLOEXEC).build();
        self.submit(key, ACCEPT, accept);
    }

    /// Arms what is wished for: the one-shot receive first; one of the two at a time.
    fn arm_recv(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        if socket.closing || socket.recv.armed || socket.into_armed {
            return;
        }
        if let Some(buffer) = &mut socket.into {
            let (start, len) = (buffer.as_mut_ptr(), buffer.len().min(u32::MAX as usize) as u32);
            socket.into_armed = true;
            let recv = opcode::Recv::new(socket.fd(), start, len).build();
            self.submit(key, RECV_INTO, recv);
        } else if socket.recv.wanted && !socket.starved {
            socket.recv = Stream { wanted: true, armed: true, cancelling: false };
            let recv = opcode::RecvMulti::new(socket.fd(), GROUP).build();
            self.submit(key, RECV, recv);
        }
    }

    fn arm_send(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        let fd = socket.fd();
        let Some(flying) = &socket.send else { return };
        let rest = &flying.bytes[flying.sent..];
        let len = rest.len().min(i32::MAX as usize) as u32;
        let send = opcode::Send::new(fd, rest.as_ptr(), len).flags(libc::MSG_NOSIGNAL).build();
        self.submit(key, SEND, send);
    }

    /// Ends our stream once nothing is being sent.
    fn shutdown_write(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        if socket.shutdown && socket.send.is_none() {
            socket.shutdown = false;
            let fd = socket.fd();
            self.submit(key, SHUTDOWN, opcode::Shutdown::new(fd, libc::SHUT_WR).build());
        }
    }

    fn connect(&mut self, key: Key, address: SocketAddr) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        if socket.address.is_some() {
            self.misuse();
            return;
        }
        let address = Box::new(SockAddr::from(address));
        let connect =
            opcode::Connect::new(socket.fd(), address.as_ptr().cast(), address.len()).build();
        socket.address = Some(address);
        self.submit(key, CONNECT, connect);
    }

    fn arm_wake(&mut self) {
        self.others += 1;
        let fd = Fd(self.waker.descriptor().as_raw_fd());
        let read = opcode::Read::new(fd, self.wake_word.as_mut_ptr(), 8).build();
        self.enqueue(read.user_data(u64::from(WAKE) << 56));
    }

    /// Queues an entry of a socket and counts it as in flight.
    fn submit(&mut self, key: Key, op: u8, entry: squeue::Entry) {
        if let Some(socket) = self.sockets.get_mut(key) {
            socket.in_flight += 1;
            self.enqueue(entry.user_data(user_data(op, key)));
        }
    }

    fn enqueue(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.try_enqueue(&entry) {
            self.backlog.push_back(entry);
        }
    }

    fn try_enqueue(&mut self, entry: &squeue::Entry) -> bool {
        let Some(ring) = &mut self.ring else { return true };
        for _ in 0..2 {
            // SAFETY: every address in an entry is that of a buffer owned by a `Socket` in the
            // table or by `self`, boxed or in a vector that nobody touches, kept until the entry's
            // last completion; `Drop` waits for those.
            if unsafe { ring.submission().push(entry) }.is_ok() {
                return true;
            }
            self.stats.polls += 1;
            if ring.submit().is_err() {
                return false;
            }
        }
        false
    }

    fn flush_backlog(&mut self) {
        while let Some(entry) = self.backlog.pop_front() {
            if !self.try_enqueue(&entry) {
                self.backlog.push_front(entry);
                return;
            }
        }
    }

    /// Gives buffers back to the kernel, and another try to sockets that found none.
    fn refill(&mut self) {
        if self.buffers.publish() == 0 {
            return;
        }
        for key in std::mem::take(&mut self.starved) {
            if let Some(socket) = self.sockets.get_mut(key) {
                socket.starved = false;
                self.arm_recv(key);
            }
        }
    }

    pub(super) fn poll(
        &mut self,
        completions: &mut Vec<Completion>,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        self.refill();
        self.flush_backlog();
        let asleep = completions.is_empty() && self.waker.fall_asleep();
        let result = self.enter(patience(deadline, !asleep));
        self.waker.rise();
        result?;
        self.harvest(completions);
        Ok(())
    }

    /// Submits, and waits for one completion or as long as told.
    fn enter(&mut self, wait: Option<Duration>) -> io::Result<()> {
        let Some(ring) = &mut self.ring else { return Ok(()) };
        let to_submit = ring.submission().len() as u32;
        let timespec = wait.map(Timespec::from);
        let args = match &timespec {
            Some(timespec) => SubmitArgs::new().timespec(timespec),
            None => SubmitArgs::new(),
        };
        self.stats.polls += 1;
        // SAFETY: `args` (and the time it points to) outlive the call, and the flags say of which
        // type it is; the entries submitted are sound, see `try_enqueue`.
        let result = unsafe { ring.submitter().enter(to_submit, 1, self.enter_flags, Some(&args)) };
        match result {
            Ok(_) => Ok(()),
            // Time is up; a signal; or the completion queue is full: harvest and come again.
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn harvest(&mut self, completions: &mut Vec<Completion>) {
        let Some(ring) = &mut self.ring else { return };
        let mut scratch = std::mem::take(&mut self.scratch);
        let queue = ring.completion();
        self.stats.overflows = u64::from(queue.overflow());
        scratch.extend(queue.map(|entry| (entry.user_data(), entry.result(), entry.flags())));
        for (user_data, result, flags) in scratch.drain(..) {
            if let Some(completion) = self.handle(user_data, result, flags) {
                completions.push(completion);
            }
        }
        self.scratch = scratch;
    }

    fn handle(&mut self, user_data: u64, result: i32, flags: u32) -> Option<Completion> {
        let op = (user_data >> 56) as u8;
        let key = Key::new(user_data as u32, (user_data >> 32) as u32);
        // First reclaim what came with it, whoever it was for.
        let buffer = cqueue::buffer_select(flags)
            .and_then(|id| self.pool.claim(id, usize::try_from(result).unwrap_or(0)));
        let accepted = (op == ACCEPT && result >= 0).then(|| {
            // SAFETY: a fresh descriptor that the kernel made for this completion alone.
            unsafe { OwnedFd::from_raw_fd(result) }
        });
        match op {
            WAKE | CLOSE => {
                self.others -= 1;
                if op == WAKE && !self.ending {
                    self.arm_wake();
                }
                return None;
            }
            _ => {}
        }
        let more = cqueue::more(flags);
        let Some(socket) = self.sockets.get_mut(key) else {
            self.stats.stale += 1;
            return None;
        };
        if !more {
            socket.in_flight -= 1;
        }
        if socket.closing {
            match op {
                SEND => socket.send = None,
                RECV_INTO => socket.into = None,
                _ => {}
            }
            if socket.in_flight == 0 {
                self.free(key);
            } else if op == CANCEL && result <= 0 {
                self.insist(key);
            }
            return None;
        }
        let event = match op {
            ACCEPT => self.on_accept(key, accepted, result, more),
            RECV => self.on_recv(key, buffer, result, more),
            RECV_INTO => self.on_recv_into(key, result),
            SEND => self.on_send(key, result),
            CONNECT => {
                socket.address = None;
                Some(Event::Connected(outcome(result).map(drop)))
            }
            _ => None,
        }?;
        Some(Completion { key, event })
    }

    /// The cancel of a closing socket found nothing and yet something flies: end its stream. Never
    /// a listener's: the guardian holds the same socket, and the next engine serves it.
    fn insist(&mut self, key: Key) {
        let Some(socket) = self.sockets.get_mut(key) else { return };
        if socket.listens || std::mem::replace(&mut socket.insisted, true) {
            return;
        }
        let shutdown = opcode::Shutdown::new(socket.fd(), libc::SHUT_RDWR).build();
        self.submit(key, SHUTDOWN, shutdown);
    }

    fn on_accept(
        &mut self,
        key: Key,
        accepted: Option<OwnedFd>,
        result: i32,
        more: bool,
    ) -> Option<Event> {
        let socket = self.sockets.get_mut(key)?;
        if !more {
            socket.accept.armed = false;
            socket.accept.cancelling = false;
        }
        if let Some(accepted) = accepted {
            self.arm_accept(key);
            return Some(Event::Accepted(accepted));
        }
        let error = io::Error::from_raw_os_error(-result);
        if result == -libc::ECANCELED || is_passing(&error) {
            self.arm_accept(key);
            return None;
        }
        socket.accept.wanted = false;
        Some(Event::AcceptFailed(error))
    }

    fn on_recv(
        &mut self,
        key: Key,
        buffer: Option<Lease>,
        result: i32,
        more: bool,
    ) -> Option<Event> {
        let socket = self.sockets.get_mut(key)?;
        if !more {
            socket.recv.armed = false;
            socket.recv.cancelling = false;
        }
        if result > 0 {
            self.arm_recv(key);
            return buffer.map(Event::Data);
        }
        match -result {
            0 => {}
            libc::ENOBUFS => {
                self.stats.starved += 1;
                socket.starved = true;
                self.starved.push(key);
                // A one-shot receive needs no pool buffer.
                self.arm_recv(key);
                return None;
            }
            libc::ECANCELED | libc::EINTR => {
                self.arm_recv(key);
                return None;
            }
            _ => {}
        }
        socket.recv.wanted = false;
        self.arm_recv(key);
        match -result {
            0 => Some(Event::Eof),
            code => Some(Event::RecvFailed(io::Error::from_raw_os_error(code))),
        }
    }

    fn on_recv_into(&mut self, key: Key, result: i32) -> Option<Event> {
        let socket = self.sockets.get_mut(key)?;
        socket.into_armed = false;
        if result == -libc::EINTR || result == -libc::ECANCELED {
            self.arm_recv(key);
            return None;
        }
        let buffer = socket.into.take()?;
        self.arm_recv(key);
        match outcome(result) {
            Ok(0) => Some(Event::Eof),
            Ok(count) => Some(Event::Filled(buffer, count)),
            Err(error) => Some(Event::RecvFailed(error)),
        }
    }

    fn on_send(&mut self, key: Key, result: i32) -> Option<Event> {
        let socket = self.sockets.get_mut(key)?;
        let flying = socket.send.as_mut()?;
        match outcome(result) {
            Ok(count) => {
                flying.sent += count;
                if flying.sent >= flying.bytes.len() {
                    let bytes = socket.send.take().map(|flying| flying.bytes);
                    self.shutdown_write(key);
                    return bytes.map(Event::Sent);
                }
                self.arm_send(key);
                Some(Event::Progress(count))
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => {
                self.arm_send(key);
                None
            }
            Err(error) => {
                socket.send = None;
                Some(Event::SendFailed(error))
            }
        }
    }

    pub(super) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    pub(super) fn descriptor(&self, key: Key) -> Option<BorrowedFd<'_>> {
        self.sockets.get(key).filter(|socket| !socket.closing).map(|s| s.descriptor.as_fd())
    }

    pub(super) fn held(&self) -> usize {
        self.sockets.len()
    }

    fn flying(&self) -> bool {
        self.held() > 0 || self.others > 0
    }

    pub(super) const fn stats(&self) -> DriverStats {
        self.stats
    }
}

fn outcome(result: i32) -> io::Result<usize> {
    usize::try_from(result).map_err(|_negative| Errno::from_raw(-result).into())
}

impl Drop for Uring {
    /// The kernel may hold our buffers: end everything, and wait for it. If it does not let go in
    /// time the memory is leaked, for that is the lesser evil.
    fn drop(&mut self) {
        self.ending = true;
        self.waker.call();
        let keys: Vec<Key> = self.sockets.keys().collect();
        for key in keys {
            self.close(key);
        }
        let deadline = Instant::now() + DRAIN_MAX;
        let mut ignored = Vec::new();
        while self.flying() && Instant::now() < deadline {
            ignored.clear();
            if self.poll(&mut ignored, Some(deadline)).is_err() {
                break;
            }
        }
        let clean = !self.flying();
        drop(self.ring.take());
        if !clean {
            let empty = Pool::new(1, 1);
            std::mem::forget(std::mem::replace(&mut self.sockets, Table::new()));
            std::mem::forget(std::mem::replace(&mut self.buffers, Ring::new(Rc::clone(&empty))));
            std::mem::forget(std::mem::replace(&mut self.pool, empty));
            std::mem::forget(std::mem::replace(&mut self.wake_word, Box::new([0; 8])));
        }
    }
}
