//! Takes TCP segments to given addresses off an interface, beside the kernel, and sends them on to
//! another station of the same segment.
#![allow(unsafe_code, reason = "no safe crate sets these options of AF_PACKET sockets")]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::{BPF_ABS, BPF_B, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socket, sockopt,
};
use socket2::{SockFilter, SockRef};

use super::IoError;
use super::garp::bind_to;

const ETHERTYPE_IPV4: u16 = 0x0800;
/// What waits unread, bytes: a burst of a busy gigabit for some milliseconds.
const BUFFER: usize = 8 << 20;
/// In front of each frame: how it is to be cut into segments, and whether its checksum is still to
/// be computed (`virtio_net_hdr`). Taken as it came, and given back so.
pub const HEADER: usize = 10;

/// An AF_PACKET socket for one interface. Non-blocking. It hears nothing of what this host sends.
#[derive(Debug)]
pub struct SegmentTap {
    socket: OwnedFd,
    interface: String,
}

impl SegmentTap {
    /// Opens it for IPv4 TCP frames to this host's Ethernet address and one of `addresses`.
    ///
    /// # Errors
    /// Needs `CAP_NET_RAW`; no such interface.
    pub fn open(interface: &str, index: u32, addresses: &[Ipv4Addr]) -> Result<Self, IoError> {
        let open = || -> io::Result<OwnedFd> {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            // protocol 0: nothing arrives before the filter stands and the socket is bound
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)?;
            // beyond the limit for others, where the right is there
            let forced = setsockopt(&socket, sockopt::RcvBufForce, &BUFFER);
            forced.or_else(|_| setsockopt(&socket, sockopt::RcvBuf, &BUFFER))?;
            switch_on(&socket, libc::PACKET_VNET_HDR)?;
            switch_on(&socket, libc::PACKET_IGNORE_OUTGOING)?;
            SockRef::from(&socket).attach_filter(&filter(addresses))?;
            bind_to(&socket, index, ETHERTYPE_IPV4)?;
            Ok(socket)
        };
        let socket = open().map_err(|e| IoError::new("tap", interface.to_owned(), e))?;
        Ok(Self { socket, interface: interface.to_owned() })
    }

    /// The next frame, behind its [`HEADER`]: its length with that, or `None` if there is none yet.
    /// A buffer of 64 KiB and a little takes any.
    ///
    /// # Errors
    /// The interface went down or is gone.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<Option<usize>, IoError> {
        match recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(length) => Ok(Some(length)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(None),
            Err(e) => Err(IoError::new("tap", self.interface.clone(), e)),
        }
    }

    /// Sends a frame behind its [`HEADER`].
    ///
    /// # Errors
    /// Interface gone or down, queue full.
    pub fn send(&self, frame: &[u8]) -> Result<(), IoError> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .map(|_| ())
            .map_err(|e| IoError::new("relay a frame on", self.interface.clone(), e))
    }
}

impl AsFd for SegmentTap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn switch_on(socket: &OwnedFd, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    let value = (&raw const on).cast();
    // SAFETY: `value` points to an int of `length` bytes, read during the call only
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, value, length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Passes frames to this host, of TCP, to one of the addresses: whole.
fn filter(addresses: &[Ipv4Addr]) -> Vec<SockFilter> {
    let addresses = addresses.get(..addresses.len().min(200)).unwrap_or_default();
    let many = addresses.len() as u8;
    let load = |size: u32, at: u32| SockFilter::new((BPF_LD | size | BPF_ABS) as u16, 0, 0, at);
    let equal =
        |jt: u8, jf: u8, k: u32| SockFilter::new((BPF_JMP | BPF_JEQ | BPF_K) as u16, jt, jf, k);
    let give = |k: u32| SockFilter::new(BPF_RET as u16, 0, 0, k);
    let kind = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    let mut filter = vec![
        load(BPF_B, kind),
        equal(0, many + 5, u32::from(libc::PACKET_HOST)),
        load(BPF_H, 12),
        equal(0, many + 3, u32::from(ETHERTYPE_IPV4)),
        load(BPF_B, 14 + 9),
        equal(0, many + 1, libc::IPPROTO_TCP as u32),
        load(BPF_W, 14 + 16),
    ];
    for (index, address) in (1u8..).zip(addresses) {
        filter.push(equal(many - index + 1, 0, u32::from(*address)));
    }
    filter.extend([give(0), give(u32::MAX)]);
    filter
}
