//! What rtnetlink says about one interface: number, address, kind, peer, XDP program.

use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkXdp};
use proxy_common::abi::Mac;
use vrrp::io::Netlink;

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
    let mut netlink = Netlink::open().map_err(|error| refused(error.to_string()))?;
    let reply = netlink.link(name).map_err(|error| refused(error.to_string()))?;
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
        link.peer = netlink.interface_by_index(index).ok().map(|peer| peer.name);
    }
    Ok(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_and_a_name_nobody_has_is_refused() {
        let lo = query("lo").unwrap();
        assert_eq!((lo.mac, lo.is_veth, lo.xdp_program), ([0; 6], false, None));
        assert!(lo.ifindex > 0);
        let nobody = query("tandem-nobody");
        assert!(matches!(nobody, Err(SteeringError::Interface { .. })), "{nobody:?}");
    }
}
