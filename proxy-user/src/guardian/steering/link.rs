//! What rtnetlink says about one interface: number, address, kind, peer, XDP program.

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, LinkXdp};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use proxy_common::abi::Mac;

use super::SteeringError;

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) ifindex: u32,
    pub(super) mac: Mac,
    pub(super) is_veth: bool,
    /// The veth's other end, by name, when it is in this namespace.
    pub(super) peer: Option<String>,
    /// The kernel's number of the XDP program on it.
    pub(super) xdp_program: Option<u32>,
}

/// Asks for the interface `name`.
///
/// # Errors
/// [`SteeringError::Interface`]: no such one, not Ethernet, or netlink failed.
pub(super) fn query(name: &str) -> Result<Link, SteeringError> {
    let refused = |what: String| SteeringError::Interface { interface: name.to_owned(), what };
    let reply = exchange(LinkAttribute::IfName(name.to_owned()), 0).map_err(refused)?;
    let mut link = Link { ifindex: reply.header.index, ..Link::default() };
    let (mut mac, mut peer_index, mut elsewhere) = (None, None, false);
    for attribute in reply.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => mac = Mac::try_from(bytes).ok(),
            LinkAttribute::LinkInfo(info) => {
                link.is_veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
            }
            LinkAttribute::Link(index) => peer_index = Some(index),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Xdp(parts) => {
                link.xdp_program = parts.iter().find_map(|part| match part {
                    LinkXdp::ProgId(id) | LinkXdp::DrvProgId(id) | LinkXdp::SkbProgId(id) => {
                        Some(*id)
                    }
                    _ => None,
                });
            }
            _ => {}
        }
    }
    link.mac = mac.ok_or_else(|| refused("it has no Ethernet address".to_owned()))?;
    if let (true, false, Some(index)) = (link.is_veth, elsewhere, peer_index) {
        link.peer = name_of(index);
    }
    Ok(link)
}

fn name_of(index: u32) -> Option<String> {
    let reply = exchange(LinkAttribute::IfName(String::new()), index).ok()?;
    reply.attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name),
        _ => None,
    })
}

/// One RTM_GETLINK, by number when `index` is not 0, else by the name in `attribute`.
fn exchange(attribute: LinkAttribute, index: u32) -> Result<LinkMessage, String> {
    let mut socket = Socket::new(NETLINK_ROUTE).map_err(|error| format!("netlink: {error}"))?;
    socket.bind_auto().map_err(|error| format!("netlink: {error}"))?;
    socket.connect(&SocketAddr::new(0, 0)).map_err(|error| format!("netlink: {error}"))?;
    let mut message = LinkMessage::default();
    message.header.index = index;
    if index == 0 {
        message.attributes.push(attribute);
    }
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    header.sequence_number = 1;
    let payload = NetlinkPayload::from(RouteNetlinkMessage::GetLink(message));
    let mut request = NetlinkMessage::new(header, payload);
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    socket.send(&bytes, 0).map_err(|error| format!("netlink: {error}"))?;
    let (answer, _) = socket.recv_from_full().map_err(|error| format!("netlink: {error}"))?;
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
        .map_err(|error| format!("netlink: {error}"))?;
    match answer.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => Ok(link),
        NetlinkPayload::Error(error) => Err(error.to_io().to_string()),
        _ => Err("netlink: an unexpected answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_and_a_name_nobody_has_is_refused() {
        let lo = query("lo").unwrap();
        assert_eq!((lo.mac, lo.is_veth, lo.xdp_program), ([0; 6], false, None));
        assert_eq!(name_of(lo.ifindex).as_deref(), Some("lo"));
        let nobody = query("tandem-nobody");
        assert!(matches!(nobody, Err(SteeringError::Interface { .. })), "{nobody:?}");
    }
}
