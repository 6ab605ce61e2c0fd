//! A host route to the peer with a small minimum retransmission timeout, so that one lost segment
//! on the link between the nodes (200 ms by default) does not look like a death.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;

use super::IoError;
use super::netlink::{Netlink, What};

/// Marks our route in `ip route` ("proto 112"), so that one left by a killed process is known as
/// ours.
const OURS: RouteProtocol = RouteProtocol::Other(112);
/// RTAX_RTO_MIN, as a bit of the lock mask: TCP heeds the value only when it is locked.
const RTO_MIN_LOCK: u32 = 1 << 13;

/// The route; deleted on drop.
pub struct RtoMinRoute {
    netlink: Netlink,
    route: RouteMessage,
    peer: IpAddr,
    held: bool,
}

impl fmt::Debug for RtoMinRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RtoMinRoute").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl RtoMinRoute {
    /// Copies the way that the kernel takes to `peer` now into a host route with this `rto_min`
    /// (whole milliseconds, at least 1). Connections opened afterwards use it.
    ///
    /// # Errors
    /// No route to the peer; EEXIST if somebody else has made a host route to it; the peer is
    /// an address of this host (EINVAL).
    pub fn add(peer: IpAddr, rto_min: Duration) -> Result<Self, IoError> {
        let object = peer.to_string();
        let mut netlink = Netlink::open()?;
        let find = What { action: "find the route to", object: &object };
        let mut wanted = host_route(peer);
        let answers = netlink.request(RouteNetlinkMessage::GetRoute(wanted.clone()), 0, &find)?;
        let found = answers.into_iter().find_map(|answer| match answer {
            RouteNetlinkMessage::NewRoute(route) => Some(route),
            _ => None,
        });
        let found = found.ok_or_else(|| find.error(Errno::EHOSTUNREACH))?;
        if found.header.kind != RouteType::Unicast {
            return Err(find.error(Errno::EINVAL));
        }
        let gateway = found.attributes.iter().any(|a| matches!(a, RouteAttribute::Gateway(_)));
        wanted.attributes.extend(found.attributes.into_iter().filter(|attribute| {
            use RouteAttribute::{Gateway, Oif, PrefSource};
            matches!(attribute, Gateway(_) | Oif(_) | PrefSource(_))
        }));
        wanted.header = RouteHeader {
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: OURS,
            scope: if gateway { RouteScope::Universe } else { RouteScope::Link },
            kind: RouteType::Unicast,
            ..wanted.header
        };
        let milliseconds = u32::try_from(rto_min.as_millis()).unwrap_or(u32::MAX).max(1);
        wanted.attributes.push(RouteAttribute::Metrics(vec![
            RouteMetric::Lock(RTO_MIN_LOCK),
            RouteMetric::RtoMin(milliseconds),
        ]));
        install(&mut netlink, &wanted, &object)?;
        Ok(Self { netlink, route: wanted, peer, held: true })
    }

    /// Deletes it now.
    ///
    /// # Errors
    /// No privilege. A route that is gone already is no error.
    pub fn remove(&mut self) -> Result<(), IoError> {
        self.held = false;
        let object = self.peer.to_string();
        let what = What { action: "delete the host route to", object: &object };
        let delete = RouteNetlinkMessage::DelRoute(self.route.clone());
        match self.netlink.request(delete, 0, &what) {
            Err(e) if e.errno() != Some(Errno::ESRCH as i32) => Err(e),
            _ => Ok(()),
        }
    }
}

impl Drop for RtoMinRoute {
    fn drop(&mut self) {
        if self.held {
            // nobody is left to tell
            self.remove().ok();
        }
    }
}

impl Netlink {
    /// The IPv4 gateways of routes that leave by this interface, each once, at most `most`.
    ///
    /// # Errors
    /// When the kernel's answer cannot be read.
    pub fn gateways(&mut self, index: u32, most: usize) -> Result<Vec<Ipv4Addr>, IoError> {
        let object = format!("interface {index}");
        let what = What { action: "list the routes of", object: &object };
        let mut all = RouteMessage::default();
        all.header.address_family = AddressFamily::Inet;
        let mut found = Vec::new();
        for answer in self.request(RouteNetlinkMessage::GetRoute(all), NLM_F_DUMP, &what)? {
            let RouteNetlinkMessage::NewRoute(route) = answer else { continue };
            for gateway in gateways_by(&route, index) {
                if found.len() < most && !found.contains(&gateway) {
                    found.push(gateway);
                }
            }
        }
        Ok(found)
    }
}

/// The gateways of one route, be it of several ways, by this interface.
fn gateways_by(route: &RouteMessage, index: u32) -> Vec<Ipv4Addr> {
    let by = |attributes: &[RouteAttribute]| {
        attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => Some(*gateway),
            _ => None,
        })
    };
    let oif = route.attributes.contains(&RouteAttribute::Oif(index));
    let one = by(&route.attributes).filter(|_| oif);
    let ways = route.attributes.iter().filter_map(|attribute| match attribute {
        RouteAttribute::MultiPath(ways) => Some(ways),
        _ => None,
    });
    let several = ways.flatten().filter(|way| way.interface_index == index);
    one.into_iter().chain(several.filter_map(|way| by(&way.attributes))).collect()
}

/// Adds the route; replaces one that is marked as ours, and no other.
fn install(netlink: &mut Netlink, wanted: &RouteMessage, object: &str) -> Result<(), IoError> {
    let what = What { action: "add a host route to", object };
    let new = || RouteNetlinkMessage::NewRoute(wanted.clone());
    match netlink.request(new(), NLM_F_CREATE | NLM_F_EXCL, &what) {
        Err(e) if e.errno() == Some(Errno::EEXIST as i32) => {
            // a delete that names our mark finds ours only
            let mut stale = wanted.clone();
            stale.attributes.retain(|a| matches!(a, RouteAttribute::Destination(_)));
            let delete = RouteNetlinkMessage::DelRoute(stale);
            if netlink.request(delete, 0, &what).is_err() {
                return Err(e);
            }
            netlink.request(new(), NLM_F_CREATE | NLM_F_REPLACE, &what).map(|_| ())
        }
        other => other.map(|_| ()),
    }
}

fn host_route(peer: IpAddr) -> RouteMessage {
    let mut route = RouteMessage::default();
    let (family, prefix, destination) = match peer {
        IpAddr::V4(a) => (AddressFamily::Inet, 32, RouteAddress::Inet(a)),
        IpAddr::V6(a) => (AddressFamily::Inet6, 128, RouteAddress::Inet6(a)),
    };
    route.header.address_family = family;
    route.header.destination_prefix_length = prefix;
    route.attributes.push(RouteAttribute::Destination(destination));
    route
}
