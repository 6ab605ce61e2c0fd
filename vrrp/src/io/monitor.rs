//! News of links and addresses: carrier lost, interface gone, the VIP removed by somebody.
//!
//! News may be late: the kernel reports a link that has changed within the last second in one
//! batch a second. It is one sign among others, never the only one.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

use super::address::{AddressEntry, entry};
use super::netlink::Messages;
use super::{Interface, IoError};

/// Bits of the bind address (linux/rtnetlink.h).
const RTMGRP_LINK: u32 = 0x1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;

/// What has happened. Interfaces of all names are reported; the reader picks its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MonitorEvent {
    /// The interface is now so. Repeated without a change, too.
    Link(Interface),
    /// The interface is gone.
    LinkGone {
        /// Its former index.
        index: u32,
        /// Its former name.
        name: String,
    },
    /// Added or renewed.
    Address(AddressEntry),
    /// Deleted or expired.
    AddressGone(AddressEntry),
    /// Some news was lost or unreadable: ask for the present state.
    Lost,
}

/// A non-blocking socket of news; poll its descriptor, then call [`Self::next_event`] until `None`.
pub struct Monitor {
    socket: Socket,
    pending: VecDeque<MonitorEvent>,
}

impl fmt::Debug for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Monitor").field("pending", &self.pending).finish_non_exhaustive()
    }
}

impl Monitor {
    /// # Errors
    /// When the system is out of descriptors or has no netlink.
    pub fn open() -> Result<Self, IoError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            let groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR;
            socket.bind(&SocketAddr::new(0, groups))?;
            socket.set_non_blocking(true)?;
            Ok(Self { socket, pending: VecDeque::new() })
        };
        open().map_err(|e: io::Error| IoError::new("open", "a monitor of links and addresses", e))
    }

    /// The next event; `None` if there is none yet.
    ///
    /// # Errors
    /// When the socket itself has failed.
    pub fn next_event(&mut self) -> Result<Option<MonitorEvent>, IoError> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Ok(Some(event));
            }
            match self.socket.recv_from_full() {
                Ok((bytes, _)) => self.pending.extend(Messages(&bytes).filter_map(event)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // the queue has overflowed
                Err(e) if e.raw_os_error() == Some(Errno::ENOBUFS as i32) => {
                    return Ok(Some(MonitorEvent::Lost));
                }
                Err(e) => return Err(IoError::new("read", "news of links and addresses", e)),
            }
        }
    }
}

type Message = netlink_packet_core::NetlinkMessage<RouteNetlinkMessage>;

fn event(message: io::Result<Message>) -> Option<MonitorEvent> {
    let Ok(message) = message else { return Some(MonitorEvent::Lost) };
    let NetlinkPayload::InnerMessage(inner) = message.payload else { return None };
    match inner {
        RouteNetlinkMessage::NewLink(link) => {
            // the bridge module reports its ports under a family of its own, without MTU
            let whole = link.header.interface_family == netlink_packet_route::AddressFamily::Unspec;
            whole.then(|| MonitorEvent::Link(Interface::from_message(&link)))
        }
        RouteNetlinkMessage::DelLink(link) => {
            let whole = link.header.interface_family == netlink_packet_route::AddressFamily::Unspec;
            let Interface { index, name, .. } = Interface::from_message(&link);
            whole.then_some(MonitorEvent::LinkGone { index, name })
        }
        RouteNetlinkMessage::NewAddress(address) => entry(&address).map(MonitorEvent::Address),
        RouteNetlinkMessage::DelAddress(address) => entry(&address).map(MonitorEvent::AddressGone),
        _ => None,
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        #[allow(unsafe_code, reason = "netlink-sys 0.8 gives a RawFd only")]
        // SAFETY: the descriptor is open for as long as `self.socket`, which the result borrows
        unsafe {
            BorrowedFd::borrow_raw(self.socket.as_raw_fd())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unreadable_message_is_a_loss_not_silence() {
        let bytes = [0xff; 32];
        let events: Vec<_> = Messages(&bytes).filter_map(event).collect();
        assert_eq!(events, [MonitorEvent::Lost]);
    }
}
