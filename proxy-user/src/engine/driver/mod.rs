//! The completion interface to the kernel: descriptors are adopted, operations pushed, completions
//! polled. Two forms behind it, [`uring`] and [`epoll`], which answer the same way; the worker does
//! not know which it has. No futures, no callbacks, one thread.
//!
//! ```text
//!  adopt(fd) -> Key     push(Key, Op)     poll(&mut Vec<Completion>, deadline)     close(Key)
//!                           │                        │                              │
//!                           └─ queued ─▶ one system call for all ─▶ completions     └─ cancelled,
//!                                          drained, closed; the key is dead at once
//! ```
//!
//! Rules both obey:
//! 1. A [`Key`] is place and generation. After [`Driver::close`] no later `poll` gives a completion
//!    of that key: what still comes from the kernel is reclaimed (buffer, accepted descriptor) and
//!    dropped. The place is given away again only when nothing of it is in flight. (Completions of
//!    the batch in hand are the caller's to compare.)
//! 2. Bytes the kernel reads or writes belong to the driver while they fly. An owned buffer given
//!    with an [`Op`] comes back with its completion, and is freed by the driver after `close`.
//! 3. Receiving is a wish, not an operation: after [`Op::Recv`] the driver keeps the socket armed
//!    (multishot that ended, no buffers left) until end of stream, error, or [`Op::RecvStop`].
//!    A socket that found no buffer is parked and armed again when buffers came back.
//! 4. One [`Op::Send`] at a time per key; it is sent whole, partial sends go on by themselves.
//!
//! Accepted connections are plain descriptors, not direct ones: the difference is within noise,
//! and plain ones can be inspected (`getpeername`, TCP options) and handed on.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

pub mod buffers;
pub mod epoll;
mod probe;
mod table;
pub mod uring;
mod wake;

#[cfg(test)]
pub(crate) mod tests;

pub use crate::config::Io as IoMode;
pub use buffers::{Lease, Pool};
pub use table::Key;
pub use wake::Waker;

/// Sizes of a driver.
#[derive(Debug, Clone, Copy)]
pub struct DriverOptions {
    /// Submission queue entries (io_uring); a power of two.
    pub submissions: u32,
    /// Completion queue entries (io_uring): at least four times `submissions`, and in the order of
    /// the connections expected, for an overflow is slow.
    pub completions: u32,
    /// Receive buffers in the pool.
    pub buffers: u16,
    /// Bytes of a receive buffer.
    pub buffer_size: usize,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self { submissions: 512, completions: 8192, buffers: 512, buffer_size: 16 * 1024 }
    }
}

/// What to do with an adopted descriptor.
#[derive(Debug)]
pub enum Op {
    /// Listener: accept until told otherwise.
    Accept,
    /// Listener: accept no more. Connections already taken by the kernel may still come.
    AcceptStop,
    /// Listener: look for waiting connections now, without waiting for a wake-up.
    Sweep,
    /// Receive into pool buffers until told otherwise.
    Recv,
    /// Receive no more. Bytes already taken from the socket may still come.
    RecvStop,
    /// Receive once into this buffer, up to its length (for bodies). Goes before [`Op::Recv`],
    /// which it interrupts: push [`Op::Recv`] again to go back.
    RecvInto(Vec<u8>),
    /// Send all of this. Not empty; none may be in flight.
    Send(Vec<u8>),
    /// Connect this fresh socket.
    Connect(SocketAddr),
    /// Send the end of our stream, after what was sent.
    ShutdownWrite,
}

/// What happened to an adopted descriptor.
#[derive(Debug)]
pub enum Event {
    /// A connection; not adopted yet.
    Accepted(OwnedFd),
    /// Accepting failed for lack of something (descriptors, memory) and has stopped: push
    /// [`Op::Accept`] again after a pause.
    AcceptFailed(io::Error),
    /// The connection stands, or not.
    Connected(io::Result<()>),
    /// Bytes in a pool buffer; never empty.
    Data(Lease),
    /// The first `.1` bytes of the buffer given were received; never 0.
    Filled(Vec<u8>, usize),
    /// The peer will send no more.
    Eof,
    /// Receiving failed (connection reset, ...) and has stopped.
    RecvFailed(io::Error),
    /// So many bytes more of the buffer in flight have been taken by the kernel.
    Progress(usize),
    /// The whole buffer has been taken by the kernel; here it is, for reuse.
    Sent(Vec<u8>),
    /// Sending failed; nothing can be sent any more.
    SendFailed(io::Error),
}

/// One event of one key.
#[derive(Debug)]
pub struct Completion {
    /// Whose.
    pub key: Key,
    /// What.
    pub event: Event,
}

/// What a driver has counted since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DriverStats {
    /// System calls that waited or submitted.
    pub polls: u64,
    /// Times a socket was parked because no receive buffer was left.
    pub starved: u64,
    /// Completions of a generation that is over.
    pub stale: u64,
    /// Completions that found the kernel's queue full (io_uring).
    pub overflows: u64,
    /// Operations that broke the rules above, and were dropped.
    pub misused: u64,
}

/// Why io_uring is not used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unavailable {
    /// The kernel is older than 6.9, where multishot accept could return wrong descriptors.
    Kernel(String),
    /// The kernel refuses: `EPERM` (sysctl `kernel.io_uring_disabled`, seccomp), `ENOSYS`, ...
    Refused(String),
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(release) => {
                write!(f, "io_uring wants kernel 6.9 or newer, this is {release}")
            }
            Self::Refused(reason) => write!(f, "io_uring is refused here: {reason}"),
        }
    }
}

impl std::error::Error for Unavailable {}

/// Either form. See the module.
#[derive(Debug)]
pub enum Driver {
    /// io_uring.
    Uring(Box<uring::Uring>),
    /// epoll by mio.
    Epoll(Box<epoll::Epoll>),
}

impl Driver {
    /// Makes a driver on the thread that will use it; and says why it is not io_uring, if that was
    /// open.
    ///
    /// # Errors
    /// [`IoMode::Uring`] and io_uring is not to be had, or no descriptors are left.
    pub fn new(mode: IoMode, options: &DriverOptions) -> io::Result<(Self, Option<Unavailable>)> {
        let reason = match mode {
            IoMode::Epoll => None,
            IoMode::Auto | IoMode::Uring => match uring::Uring::new(options) {
                Ok(uring) => return Ok((Self::Uring(Box::new(uring)), None)),
                Err(reason) if mode == IoMode::Uring => return Err(io::Error::other(reason)),
                Err(reason) => Some(reason),
            },
        };
        Ok((Self::Epoll(Box::new(epoll::Epoll::new(options)?)), reason))
    }

    /// `"uring"` or `"epoll"`, for logs and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Uring(_) => "uring",
            Self::Epoll(_) => "epoll",
        }
    }

    /// Takes a stream socket or a listener over.
    ///
    /// # Errors
    /// The descriptor cannot be watched or its flags not be set; it is closed.
    pub fn adopt(&mut self, descriptor: OwnedFd) -> io::Result<Key> {
        match self {
            Self::Uring(driver) => driver.adopt(descriptor),
            Self::Epoll(driver) => driver.adopt(descriptor),
        }
    }

    /// Queues an operation; it is done in [`Driver::poll`]. A dead key is ignored.
    pub fn push(&mut self, key: Key, op: Op) {
        match self {
            Self::Uring(driver) => driver.push(key, op),
            Self::Epoll(driver) => driver.push(key, op),
        }
    }

    /// Ends a key: no later `poll` gives a completion of it. What is in flight is cancelled, the
    /// descriptor is closed as soon as nothing is.
    pub fn close(&mut self, key: Key) {
        match self {
            Self::Uring(driver) => driver.close(key),
            Self::Epoll(driver) => driver.close(key),
        }
    }

    /// Does what was queued, waits until something happens, a [`Waker`] calls or the deadline
    /// passes, and appends what happened. Does not wait if `completions` is not empty. `None`
    /// waits without end. May return with nothing.
    ///
    /// # Errors
    /// The kernel refuses to go on; the driver is of no use any more.
    pub fn poll(
        &mut self,
        completions: &mut Vec<Completion>,
        deadline: Option<Instant>,
    ) -> io::Result<()> {
        match self {
            Self::Uring(driver) => driver.poll(completions, deadline),
            Self::Epoll(driver) => driver.poll(completions, deadline),
        }
    }

    /// To call this driver from other threads.
    #[must_use]
    pub fn waker(&self) -> Waker {
        match self {
            Self::Uring(driver) => driver.waker(),
            Self::Epoll(driver) => driver.waker(),
        }
    }

    /// The descriptor of a living key, to ask it for its peer or to set options.
    #[must_use]
    pub fn descriptor(&self, key: Key) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Uring(driver) => driver.descriptor(key),
            Self::Epoll(driver) => driver.descriptor(key),
        }
    }

    /// Descriptors held, those being closed included.
    #[must_use]
    pub fn held(&self) -> usize {
        match self {
            Self::Uring(driver) => driver.held(),
            Self::Epoll(driver) => driver.held(),
        }
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> DriverStats {
        match self {
            Self::Uring(driver) => driver.stats(),
            Self::Epoll(driver) => driver.stats(),
        }
    }
}

/// How long until the deadline; zero if it has passed or must not be waited for.
fn patience(deadline: Option<Instant>, hurry: bool) -> Option<std::time::Duration> {
    if hurry {
        return Some(std::time::Duration::ZERO);
    }
    deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()))
}

/// Accept errors that concern one connection that is gone already, not the listener.
fn is_passing(error: &io::Error) -> bool {
    use nix::errno::Errno as E;
    let Some(code) = error.raw_os_error() else { return false };
    matches!(
        E::from_raw(code),
        E::ECONNABORTED
            | E::EINTR
            | E::EPROTO
            | E::EPERM
            | E::ENETDOWN
            | E::ENOPROTOOPT
            | E::EHOSTDOWN
            | E::ENONET
            | E::EHOSTUNREACH
            | E::EOPNOTSUPP
            | E::ENETUNREACH
    )
}
