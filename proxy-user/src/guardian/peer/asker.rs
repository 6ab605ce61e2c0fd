//! "Does a guardian listen at your host?": asked of the peer's kernel when the control connection
//! came to an orderly end, which a kernel sends for a process that died, and a box in between may
//! forge. A connection that is *refused* is the kernel's own word that nobody listens; one that is
//! accepted proves nothing (a dying process's listener takes a last one) and is asked again. So is
//! one that is refused by ICMP: that is a filter's word (nftables' `reject`), and connect(2) gives
//! the same error for it; only the socket's error queue tells them apart, for a reset leaves
//! nothing there. A filter that answers with resets is beyond telling apart: the connection's end
//! and the silence of all beats must come to it, which is a box that forges three things.
//!
//! The other side sees connections that end without a byte, and counts nothing.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

/// Between two questions on a path.
const AGAIN: Duration = Duration::from_millis(1);
/// A question under way for longer is asked anew.
const PATIENCE: Duration = Duration::from_millis(8);
/// After that long, silence is for other rules.
const LIMIT: Duration = Duration::from_millis(60);

/// Questions under way, one a path.
#[derive(Debug)]
pub(super) struct Asker {
    until: Instant,
    paths: Vec<Question>,
}

#[derive(Debug)]
struct Question {
    to: SocketAddr,
    socket: Option<Socket>,
    again: Instant,
}

impl Asker {
    /// Asks at once, on every path.
    pub(super) fn start(now: Instant, paths: &[SocketAddr]) -> Self {
        let ask = |to: &SocketAddr| Question { to: *to, socket: dial(*to), again: now + AGAIN };
        Self { until: now + LIMIT, paths: paths.iter().map(ask).collect() }
    }

    /// The sockets whose connecting is waited for: writable when it is decided.
    pub(super) fn interests(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.paths.iter().filter_map(|path| path.socket.as_ref()).map(AsFd::as_fd)
    }

    /// When [`Self::turn`] is due without any news.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let paths = self.paths.iter().map(|path| match path.socket {
            None => path.again,
            Some(_) => path.again + PATIENCE,
        });
        paths.chain([self.until]).min()
    }

    /// It was asked for long enough.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        now >= self.until
    }

    /// True when the peer's kernel has refused: no guardian listens there.
    pub(super) fn turn(&mut self, now: Instant) -> bool {
        self.paths.iter_mut().any(|path| path.turn(now))
    }
}

impl Question {
    fn turn(&mut self, now: Instant) -> bool {
        let Some(socket) = &self.socket else {
            if now >= self.again {
                self.again = now + AGAIN;
                self.socket = dial(self.to);
            }
            return false;
        };
        match socket.take_error() {
            Ok(Some(error)) => {
                let refused = error.kind() == io::ErrorKind::ConnectionRefused;
                let by_kernel = refused && !by_icmp(socket);
                self.socket = None;
                by_kernel
            }
            // accepted: asked again
            Ok(None) if socket.peer_addr().is_ok() => {
                self.socket = None;
                self.again = now + AGAIN;
                false
            }
            // under way: a lost segment is not waited for, another question is as good
            Ok(None) if now >= self.again + PATIENCE => {
                self.socket = None;
                false
            }
            Ok(None) => false,
            Err(_) => {
                self.socket = None;
                false
            }
        }
    }
}

/// Whether ICMP had a part in a refusal (ip(7), IP_RECVERR): its message waits in the error queue.
/// A reset puts nothing there. What cannot be read is no proof either.
fn by_icmp(socket: &Socket) -> bool {
    let mut packet = [0; 64];
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), &mut packet, flags) != Err(Errno::EAGAIN)
}

/// Starts to connect; `None`: not on this path now.
fn dial(to: SocketAddr) -> Option<Socket> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).ok()?;
    socket.set_nonblocking(true).ok()?;
    // without it a filter's word could not be told from the kernel's: then nothing is asked
    let told = match to {
        SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4RecvErr, &true),
        SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvErr, &true),
    };
    told.ok()?;
    match socket.connect(&to.into()) {
        Ok(()) => Some(socket),
        // on loopback a refusal comes at once; the error is read by the next question
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Some(socket),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn ask(to: SocketAddr) -> bool {
        let mut asker = Asker::start(Instant::now(), &[to]);
        loop {
            let now = Instant::now();
            if asker.turn(now) {
                return true;
            }
            if asker.is_over(now) {
                return false;
            }
        }
    }

    /// A namespace of its own for this thread, whose filter refuses `to`'s port in these words.
    fn filtered(to: SocketAddr, refusal: &str) {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("unshare: run as root");
        let run = |words: &[&str]| {
            let done = std::process::Command::new(words[0]).args(&words[1..]).output().unwrap();
            assert!(done.status.success(), "{words:?}: {done:?}");
        };
        run(&["ip", "link", "set", "dev", "lo", "up"]);
        let port = to.port();
        run(&["nft", "add table inet filter"]);
        run(&["nft", "add chain inet filter in { type filter hook input priority 0; }"]);
        run(&["nft", &format!("add rule inet filter in tcp dport {port} {refusal}")]);
    }

    /// A refusal that a filter makes by ICMP looks like the kernel's own to connect(2).
    #[test]
    #[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
    fn a_refusal_by_icmp_is_no_proof() {
        for to in ["127.0.0.1:7700", "[::1]:7700"] {
            let to: SocketAddr = to.parse().unwrap();
            let asked = std::thread::spawn(move || {
                filtered(to, "reject");
                let refused = std::net::TcpStream::connect(to).unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
                let listens = TcpListener::bind(to).unwrap();
                let with = ask(to);
                drop(listens);
                [with, ask(to)]
            });
            assert_eq!(asked.join().unwrap(), [false; 2], "{to}");
            // the probe works: nobody listens, and no filter says so
            let asked = std::thread::spawn(move || {
                filtered(to, "counter");
                ask(to)
            });
            assert!(asked.join().unwrap(), "{to}");
        }
    }

    #[test]
    fn a_closed_port_refuses_and_a_listener_does_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        assert!(!ask(to), "somebody listens, even if nobody accepts");
        drop(listener);
        assert!(ask(to), "the kernel says that nobody does");
    }
}
