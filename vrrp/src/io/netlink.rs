//! A synchronous rtnetlink socket: one request, all its answers.

use std::io;
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike};

use super::IoError;
use crate::arp::Mac;

/// The kernel answers rtnetlink requests before `send` returns; this only bounds a kernel's bug.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A dump is made again if the table changed meanwhile, this often.
const DUMP_ATTEMPTS: usize = 4;

/// A socket for requests. Belongs to the network namespace it was opened in.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl std::fmt::Debug for Netlink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Netlink").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// What is wanted of a request besides its bytes: for the error's sentence.
pub(super) struct What<'a> {
    pub(super) action: &'static str,
    pub(super) object: &'a str,
}

impl What<'_> {
    pub(super) fn error(&self, source: impl Into<io::Error>) -> IoError {
        IoError::new(self.action, self.object, source)
    }
}

impl Netlink {
    /// # Errors
    /// When the system is out of descriptors or has no netlink.
    pub fn open() -> Result<Self, IoError> {
        let fail = |e: io::Error| IoError::new("open", "a netlink socket", e);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(fail)?;
        socket.bind_auto().map_err(fail)?;
        let timeout = TimeVal::milliseconds(ANSWER_TIMEOUT.as_millis() as i64);
        setsockopt(&socket, sockopt::ReceiveTimeout, &timeout).map_err(|e| fail(e.into()))?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and collects its answers.
    pub(super) fn request(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
        what: &What<'_>,
    ) -> Result<Vec<RouteNetlinkMessage>, IoError> {
        let dump = flags & NLM_F_DUMP == NLM_F_DUMP;
        let mut packet = NetlinkMessage::from(message);
        packet.header.flags = NLM_F_REQUEST | flags | if dump { 0 } else { NLM_F_ACK };
        for _ in 0..DUMP_ATTEMPTS {
            self.sequence = self.sequence.wrapping_add(1);
            packet.header.sequence_number = self.sequence;
            packet.finalize();
            let mut bytes = vec![0; packet.buffer_len()];
            packet.serialize(&mut bytes);
            let kernel = SocketAddr::new(0, 0);
            self.socket.send_to(&bytes, &kernel, 0).map_err(|e| what.error(e))?;
            if let Some(answers) = self.answers(what)? {
                return Ok(answers);
            }
        }
        Err(what.error(io::Error::from(io::ErrorKind::Interrupted)))
    }

    /// `None`: the dump was interrupted by a change.
    fn answers(&self, what: &What<'_>) -> Result<Option<Vec<RouteNetlinkMessage>>, IoError> {
        let mut answers = Vec::new();
        let mut consistent = true;
        loop {
            let (bytes, _) = self.socket.recv_from_full().map_err(|e| what.error(e))?;
            for message in Messages(&bytes) {
                let message = message.map_err(|e| what.error(e))?;
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                consistent &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                    NetlinkPayload::Done(_) => return Ok(consistent.then_some(answers)),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(what.error(error.to_io()));
                    }
                    NetlinkPayload::Error(_) => return Ok(Some(answers)),
                    _ => {}
                }
            }
        }
    }

    /// The interface of this name: index, MAC, MTU, carrier.
    ///
    /// # Errors
    /// Not there, or the name is no interface name.
    pub fn interface(&mut self, name: &str) -> Result<Interface, IoError> {
        self.link(name).map(|link| Interface::from_message(&link))
    }

    /// All that the kernel says of the interface of this name: for what [`Interface`] leaves out.
    ///
    /// # Errors
    /// As [`Self::interface`].
    pub fn link(&mut self, name: &str) -> Result<LinkMessage, IoError> {
        let what = What { action: "find the interface", object: name };
        check_name(name)?;
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.one_link(message, &what)
    }

    /// All interfaces of this network namespace.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn interfaces(&mut self) -> Result<Vec<Interface>, IoError> {
        let what = What { action: "list the interfaces", object: "" };
        let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.request(all, NLM_F_DUMP, &what)?;
        let links = answers.iter().filter_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(Interface::from_message(link)),
            _ => None,
        });
        Ok(links.collect())
    }

    /// The interface of this index.
    ///
    /// # Errors
    /// Not there.
    pub fn interface_by_index(&mut self, index: u32) -> Result<Interface, IoError> {
        let object = format!("number {index}");
        let what = What { action: "find the interface", object: &object };
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.one_link(message, &what).map(|link| Interface::from_message(&link))
    }

    fn one_link(&mut self, message: LinkMessage, what: &What<'_>) -> Result<LinkMessage, IoError> {
        let answers = self.request(RouteNetlinkMessage::GetLink(message), 0, what)?;
        let link = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewLink(link) => Some(link),
            _ => None,
        });
        link.ok_or_else(|| what.error(nix::errno::Errno::ENODEV))
    }
}

/// One network interface, as it was when asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// Index, as the kernel numbers it.
    pub index: u32,
    /// Ethernet address; `None` where it has another kind or none (all zeros on `lo`).
    pub mac: Option<Mac>,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// Administratively up.
    pub up: bool,
    /// Up, and the link has a carrier.
    pub carrier: bool,
}

impl Interface {
    pub(super) fn from_message(message: &LinkMessage) -> Self {
        let flags = message.header.flags;
        let mut found = Self {
            name: String::new(),
            index: message.header.index,
            mac: None,
            mtu: 0,
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::Up | LinkFlags::LowerUp),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => found.name.clone_from(name),
                LinkAttribute::Address(mac) => found.mac = Mac::try_from(mac.as_slice()).ok(),
                LinkAttribute::Mtu(mtu) => found.mtu = *mtu,
                _ => {}
            }
        }
        found
    }
}

/// Linux's rule (1 to 15 bytes, no slash, no white space, not "." or ".."), so that a name can
/// also stand in a path.
pub(super) fn check_name(name: &str) -> Result<(), IoError> {
    let good = (1..16).contains(&name.len())
        && name != "."
        && name != ".."
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/');
    if good {
        Ok(())
    } else {
        let why = io::Error::new(io::ErrorKind::InvalidInput, "no name of an interface");
        Err(IoError::new("use the interface", format!("{name:?}"), why))
    }
}

/// Iterates over the messages in one datagram from the kernel.
pub(super) struct Messages<'a>(pub(super) &'a [u8]);

impl Iterator for Messages<'_> {
    type Item = io::Result<NetlinkMessage<RouteNetlinkMessage>>;

    fn next(&mut self) -> Option<Self::Item> {
        let length = usize::try_from(u32::from_ne_bytes(*self.0.first_chunk()?)).ok()?;
        let message = NetlinkMessage::deserialize(self.0)
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()));
        // lengths are aligned to 4; a length below a header's would never end
        let step = length.max(16).next_multiple_of(4);
        self.0 = self.0.get(step..).unwrap_or_default();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_the_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "eth 0", "sixteen-letters-", "e\u{301}", "a\n"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        for good in ["lo", "eth0.100", "fifteen-letters", "br-12@x"] {
            assert!(check_name(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn garbage_from_a_socket_ends() {
        for bytes in [&[0u8; 64][..], &[0xff; 64], &[16, 0, 0, 0], &[1, 2], &[]] {
            assert!(Messages(bytes).take(100).count() < 10);
        }
    }
}
