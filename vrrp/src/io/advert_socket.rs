//! Adverts on the wire: a raw socket of protocol 112 on one interface, IPv4.

use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};

use super::{Interface, IoError};
use crate::config::GROUP_V4;
use crate::packet::{HOP_LIMIT, MAX_LENGTH, PROTOCOL, Received};

/// "Internetwork control" of RFC 791, as keepalived and routers mark adverts.
const TOS: u32 = 0xc0;
/// Before all of Linux's default traffic.
const SOCKET_PRIORITY: u32 = 6;
/// The longest IPv4 header.
const MAX_IP_HEADER: usize = 60;

/// Sends and receives adverts on one interface: group 224.0.0.18 joined, TTL 255, TOS 0xC0, no
/// loopback to ourselves, nothing from other interfaces. Non-blocking.
#[derive(Debug)]
pub struct AdvertSocket {
    socket: Socket,
    interface: String,
    buffer: Box<[u8; MAX_IP_HEADER + MAX_LENGTH]>,
}

/// One received datagram, header parsed. [`Self::received`] is what an instance wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagram<'a> {
    /// IP source.
    pub source: Ipv4Addr,
    /// IP destination.
    pub destination: Ipv4Addr,
    /// TTL as it arrived.
    pub ttl: u8,
    /// IP payload.
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// For [`crate::Instance::handle_advert`].
    #[must_use]
    pub const fn received(&self) -> Received<'a> {
        Received {
            source: IpAddr::V4(self.source),
            destination: IpAddr::V4(self.destination),
            hop_limit: self.ttl,
            payload: self.payload,
        }
    }

    /// Reads what a raw socket delivers: the IP header, then the payload. `None` if it is no
    /// whole IPv4 datagram of protocol 112.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let header = bytes.first_chunk::<20>()?;
        let header_length = usize::from(header[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let whole = header[0] >> 4 == 4 && header_length >= 20 && header[9] == PROTOCOL;
        let payload = bytes.get(header_length..total).filter(|_| whole)?;
        let address =
            |at: usize| Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]);
        Some(Self { source: address(12), destination: address(16), ttl: header[8], payload })
    }
}

impl AdvertSocket {
    /// Opens it; adverts leave from `source`, which must be an address of the interface.
    ///
    /// # Errors
    /// Needs `CAP_NET_RAW`; no such interface; `source` is not there.
    pub fn open(interface: &Interface, source: Ipv4Addr) -> Result<Self, IoError> {
        let object = format!("{} with source {source}", interface.name);
        Self::open_socket(interface, source)
            .map(|socket| Self {
                socket,
                interface: interface.name.clone(),
                buffer: Box::new([0; _]),
            })
            .map_err(|e| IoError::new("open a VRRP socket on", object, e))
    }

    fn open_socket(interface: &Interface, source: Ipv4Addr) -> io::Result<Socket> {
        let protocol = Protocol::from(i32::from(PROTOCOL));
        let socket = Socket::new(Domain::IPV4, Type::RAW.nonblocking(), Some(protocol))?;
        socket.bind_device(Some(interface.name.as_bytes()))?;
        // the multicast source; binding to it instead would refuse what is sent to the group
        socket.set_multicast_if_v4(&source)?;
        socket.set_multicast_loop_v4(false)?;
        socket.set_multicast_all_v4(false)?;
        socket.set_multicast_ttl_v4(u32::from(HOP_LIMIT))?;
        socket.set_ttl_v4(u32::from(HOP_LIMIT))?;
        socket.set_tos_v4(TOS)?;
        // after TOS, which sets a priority of its own
        socket.set_priority(SOCKET_PRIORITY)?;
        let index = InterfaceIndexOrAddress::Index(interface.index);
        socket.join_multicast_v4_n(&GROUP_V4, &index)?;
        Ok(socket)
    }

    /// Sends one VRRP message to the group. Never waits.
    ///
    /// # Errors
    /// Interface gone or down, queue full.
    pub fn send(&self, payload: &[u8]) -> Result<(), IoError> {
        let group = SocketAddr::from((GROUP_V4, 0)).into();
        self.socket
            .send_to(payload, &group)
            .map(|_| ())
            .map_err(|e| IoError::new("send an advert on", self.interface.clone(), e))
    }

    /// The next datagram; `None` if there is none yet. What is no IPv4 datagram of protocol 112
    /// is skipped, longer than any advert is cut (and so refused for its length).
    ///
    /// # Errors
    /// When the socket itself has failed. It survives its interface's going down and up, not its
    /// removal: open it again then.
    pub fn receive(&mut self) -> Result<Option<Datagram<'_>>, IoError> {
        let length = loop {
            match (&self.socket).read(&mut self.buffer[..]) {
                Ok(length) if Datagram::parse(&self.buffer[..length]).is_some() => break length,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => {
                    return Err(IoError::new("receive adverts on", self.interface.clone(), e));
                }
            }
        };
        Ok(Datagram::parse(&self.buffer[..length]))
    }
}

impl AsFd for AdvertSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TTL 255, TOS 0xC0, protocol 112, 10.99.0.1 to the group, as captured from keepalived.
    const HEADER: [u8; 20] =
        [0x45, 0xc0, 0, 32, 0, 1, 0, 0, 255, 112, 0, 0, 10, 99, 0, 1, 224, 0, 0, 18];

    fn datagram() -> Vec<u8> {
        [&HEADER[..], b"twelve bytes"].concat()
    }

    #[test]
    fn the_header_is_read() {
        let bytes = datagram();
        let got = Datagram::parse(&bytes).unwrap();
        assert_eq!(got.source, Ipv4Addr::new(10, 99, 0, 1));
        assert_eq!(got.destination, GROUP_V4);
        assert_eq!((got.ttl, got.payload), (255, &b"twelve bytes"[..]));
        assert_eq!(got.received().hop_limit, 255);
        // options are stepped over, what follows the total length is padding
        let mut options = [&HEADER[..], &[1; 4], b"payload", b"padding"].concat();
        options[0] = 0x46;
        options[3] = 31;
        assert_eq!(Datagram::parse(&options).unwrap().payload, b"payload");
    }

    #[test]
    fn anything_else_is_none() {
        let change = |at: usize, value: u8| {
            let mut bytes = datagram();
            bytes[at] = value;
            bytes
        };
        for (what, bytes) in [
            ("version 6", change(0, 0x65)),
            ("header of 16 bytes", change(0, 0x44)),
            ("header longer than the datagram", change(0, 0x4f)),
            ("total above what came", change(3, 33)),
            ("total below the header", change(3, 19)),
            ("another protocol", change(9, 17)),
            ("cut", datagram()[..31].to_vec()),
            ("cut in the header", datagram()[..19].to_vec()),
            ("nothing", vec![]),
        ] {
            assert_eq!(Datagram::parse(&bytes), None, "{what}");
        }
    }
}
