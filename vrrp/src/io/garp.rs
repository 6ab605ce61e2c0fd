//! Sends ready-made Ethernet frames on one interface: ARP, Neighbor Advertisements.
#![allow(unsafe_code, reason = "no safe crate binds an AF_PACKET socket to an interface")]

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socket};

use super::{Interface, IoError};
use crate::arp::{Mac, gratuitous_arp, unsolicited_na};

/// An AF_PACKET socket bound to one interface. It receives nothing (protocol 0).
#[derive(Debug)]
pub struct FrameSender {
    socket: OwnedFd,
    interface: String,
    mac: Mac,
}

impl FrameSender {
    /// Opens it, with the interface's present MAC as the sender of [`Self::announce`].
    ///
    /// # Errors
    /// Needs `CAP_NET_RAW`; the interface must be an Ethernet one.
    pub fn open(interface: &Interface) -> Result<Self, IoError> {
        let fail = |e: io::Error| {
            IoError::new("open a socket for ARP frames on", interface.name.clone(), e)
        };
        let mac = interface.mac.filter(|_| interface.name != "lo").ok_or_else(|| {
            fail(io::Error::new(io::ErrorKind::Unsupported, "not an Ethernet interface"))
        })?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)
            .map_err(|e| fail(e.into()))?;
        bind_to(&socket, interface.index, 0).map_err(fail)?;
        Ok(Self { socket, interface: interface.name.clone(), mac })
    }

    /// Sends one whole Ethernet frame.
    ///
    /// # Errors
    /// Interface gone or down, queue full.
    pub fn send(&self, frame: &[u8]) -> Result<(), IoError> {
        send(self.socket.as_raw_fd(), frame, MsgFlags::empty())
            .map(|_| ())
            .map_err(|e| IoError::new("send a frame on", self.interface.clone(), e))
    }

    /// One gratuitous ARP, or one unsolicited Neighbor Advertisement, for each address. All are
    /// tried.
    ///
    /// # Errors
    /// The first that failed.
    pub fn announce(&self, addresses: &[IpAddr]) -> Result<(), IoError> {
        let mut result = Ok(());
        for address in addresses {
            let sent = match *address {
                IpAddr::V4(vip) => self.send(&gratuitous_arp(self.mac, vip)),
                IpAddr::V6(vip) => self.send(&unsolicited_na(self.mac, vip, false)),
            };
            result = result.and(sent);
        }
        result
    }

    /// The MAC that [`Self::announce`] announces. If [`super::Monitor`] reports another one (a
    /// bond that changed its port), open a new sender.
    #[must_use]
    pub const fn mac(&self) -> Mac {
        self.mac
    }
}

/// Binds an AF_PACKET socket to an interface; it receives frames of this EtherType (0: none).
pub(super) fn bind_to(socket: &OwnedFd, index: u32, ether_type: u16) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ether_type.to_be(),
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` is an initialised sockaddr_ll of `length` bytes, read during the call only
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
