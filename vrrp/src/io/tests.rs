//! Against a real kernel: two network namespaces and a veth pair for each test. Needs root;
//! `cargo xtask test` runs them, or `cargo test -p vrrp -- --ignored`.

mod host;
mod keepalived;
mod segment;
mod wire;

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};

use super::*;

const A: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const B: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const VIP: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 100);
/// For anything that a kernel does at once; generous, because a test machine may be loaded.
const SOON: Duration = Duration::from_secs(5);

fn now() -> Instant {
    #[expect(clippy::disallowed_methods, reason = "these tests run in real time")]
    Instant::now()
}

/// Two namespaces joined by a veth pair: `va` with 10.99.0.1/24 in the first, `vb` with
/// 10.99.0.2/24 in the second. They live as long as their descriptors (and sockets).
struct Pair {
    a: OwnedFd,
    b: OwnedFd,
}

impl Pair {
    /// Runs `test` on a thread of its own, so that no other test changes namespace. A panic there
    /// is a panic here.
    fn run(test: impl FnOnce(&Self) + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let pair = Self::make();
                pair.enter_a();
                test(&pair);
            });
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn make() -> Self {
        let [b, a] = [(); 2].map(|()| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare: run as root");
            OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap())
        });
        let b_path = format!("/proc/{}/fd/{}", std::process::id(), b.as_raw_fd());
        ip("link add va address 02:00:00:00:00:0a type veth \
             peer name vb address 02:00:00:00:00:0b");
        ip(&format!("link set vb netns {b_path}"));
        ip("addr add 10.99.0.1/24 dev va");
        ip("link set lo up");
        ip("link set va up");
        let pair = Self { a, b };
        pair.enter_b();
        ip("addr add 10.99.0.2/24 dev vb");
        ip("link set lo up");
        ip("link set vb up");
        pair.enter_a();
        until("carrier on va", || Netlink::open().unwrap().interface("va").unwrap().carrier);
        pair
    }

    fn enter_a(&self) {
        setns(&self.a, CloneFlags::CLONE_NEWNET).unwrap();
    }

    fn enter_b(&self) {
        setns(&self.b, CloneFlags::CLONE_NEWNET).unwrap();
    }

    fn va(&self) -> Interface {
        self.enter_a();
        Netlink::open().unwrap().interface("va").unwrap()
    }

    fn vb(&self) -> Interface {
        self.enter_b();
        let found = Netlink::open().unwrap().interface("vb").unwrap();
        self.enter_a();
        found
    }

    /// Every frame that arrives on `vb`.
    fn capture_on_vb(&self) -> Capture {
        self.enter_b();
        let capture = Capture::open();
        self.enter_a();
        capture
    }
}

/// `ip` in the namespace of this thread.
fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

/// Tries until it holds, without a fixed sleep longer than a blink.
fn until(what: &str, mut holds: impl FnMut() -> bool) -> Duration {
    let start = now();
    while !holds() {
        assert!(now() - start < SOON, "not within {SOON:?}: {what}");
        poll(&mut [], PollTimeout::from(1u8)).ok();
    }
    now() - start
}

/// Waits for the descriptor; false after `time`.
fn readable(fd: &impl AsFd, time: Duration) -> bool {
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let time = PollTimeout::try_from(time).unwrap();
    poll(&mut fds, time).unwrap() == 1
}

/// An AF_PACKET socket that sees all that arrives in a namespace (there is one veth in it).
struct Capture(socket2::Socket);

impl Capture {
    fn open() -> Self {
        let protocol = i32::from((libc::ETH_P_ALL as u16).to_be());
        let socket = socket2::Socket::new(
            socket2::Domain::PACKET,
            socket2::Type::RAW.nonblocking(),
            Some(protocol.into()),
        );
        Self(socket.unwrap())
    }

    /// The next frame with this EtherType and the MAC of `va` as its source.
    fn next(&self, ether_type: u16, time: Duration) -> Option<Vec<u8>> {
        let end = now() + time;
        let mut buffer = [0; 2048];
        loop {
            match (&self.0).read(&mut buffer) {
                Ok(n) => {
                    let frame = &buffer[..n];
                    let from_a = frame[6..12] == [2, 0, 0, 0, 0, 0x0a];
                    if from_a && frame[12..14] == ether_type.to_be_bytes() {
                        return Some(frame.to_vec());
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let left = end.saturating_duration_since(now());
                    if left.is_zero() || !readable(&self.0, left) {
                        return None;
                    }
                }
                Err(e) => panic!("{e}"),
            }
        }
    }
}

fn addresses_of(index: u32) -> Vec<IpAddr> {
    let found = Netlink::open().unwrap().addresses(index).unwrap();
    found.iter().map(|entry| entry.spec.address).collect()
}
