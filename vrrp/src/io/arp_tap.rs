//! Hears the ARP of one interface, beside the kernel: who lives on the segment, who claims what.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, setsockopt, socket, sockopt,
};

use super::garp::bind_to;
use super::{Interface, IoError};
use crate::arp::Heard;

const ETHERTYPE_ARP: u16 = 0x0806;
/// What waits unread, bytes: some hundreds of frames. A flood beyond it is the kernel's to drop,
/// not ours to read.
const BUFFER: usize = 256 * 1024;

/// An AF_PACKET socket bound to one interface that receives ARP. Non-blocking. It hears nothing of
/// what this host sends, nor what an XDP program took (drops, and answers of its own).
#[derive(Debug)]
pub struct ArpTap {
    socket: OwnedFd,
    interface: String,
}

impl ArpTap {
    /// Opens it.
    ///
    /// # Errors
    /// Needs `CAP_NET_RAW`; no such interface.
    pub fn open(interface: &Interface) -> Result<Self, IoError> {
        let fail = |e: io::Error| IoError::new("hear ARP on", interface.name.clone(), e);
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        // protocol 0: nothing arrives before the socket is bound
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)
            .map_err(|e| fail(e.into()))?;
        setsockopt(&socket, sockopt::RcvBuf, &BUFFER).map_err(|e| fail(e.into()))?;
        bind_to(&socket, interface.index, ETHERTYPE_ARP).map_err(fail)?;
        Ok(Self { socket, interface: interface.name.clone() })
    }

    /// The next packet; `None` if there is none yet. What is no ARP of a station is skipped, up to
    /// a bound.
    ///
    /// # Errors
    /// The interface went down (told once; the socket lives on) or is gone: open it again then.
    pub fn receive(&self) -> Result<Option<Heard>, IoError> {
        const SKIPPED_MAX: usize = 64;
        let mut frame = [0; 64];
        for _ in 0..SKIPPED_MAX {
            match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                Ok(length) => {
                    let heard = frame.get(..length).and_then(Heard::parse);
                    if heard.is_some() {
                        return Ok(heard);
                    }
                }
                Err(Errno::EAGAIN) => return Ok(None),
                Err(Errno::EINTR) => {}
                Err(e) => return Err(IoError::new("hear ARP on", self.interface.clone(), e)),
            }
        }
        Ok(None)
    }
}

impl AsFd for ArpTap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
