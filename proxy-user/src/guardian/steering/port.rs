//! Everything that is bound to one interface as it is now. When the interface is made again, or
//! gets another Ethernet or own address, a new one is opened and this one is dropped.

use std::net::{IpAddr, Ipv4Addr};

use vrrp::arp::Mac;
use vrrp::io::{AdvertSocket, ArpTap, FrameSender, Interface, IoError, Netlink};

use super::probes::Own;
use super::slots::Place;

/// Gateways that count.
const GATEWAYS_MAX: usize = 2;

/// What makes a port another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) index: u32,
    mac: Option<Mac>,
    /// Adverts and questions leave from here.
    pub(super) source: Ipv4Addr,
    pub(super) prefix: u8,
}

/// The sockets of one virtual address's interface.
#[derive(Debug)]
pub(in crate::guardian) struct Port {
    pub(super) identity: Identity,
    pub(super) socket: AdvertSocket,
    pub(super) frames: FrameSender,
    pub(super) tap: ArpTap,
    pub(super) own: Own,
    pub(super) carrier: bool,
    /// Where the program answers, if one does.
    pub(super) place: Option<Place>,
}

/// The interface of this name, with its first address that is not one of `vips`; `None` if it has
/// none.
pub(super) fn look(
    netlink: &mut Netlink,
    name: &str,
    vips: &[Ipv4Addr],
) -> Result<(Interface, Option<Identity>), IoError> {
    let interface = netlink.interface(name)?;
    let addresses = netlink.addresses(interface.index)?;
    let own = addresses.iter().find_map(|entry| match entry.spec.address {
        IpAddr::V4(own) if !vips.contains(&own) => Some((own, entry.spec.prefix)),
        _ => None,
    });
    let identity = own.map(|(source, prefix)| Identity {
        index: interface.index,
        mac: interface.mac,
        source,
        prefix,
    });
    Ok((interface, identity))
}

impl Port {
    /// Opens its sockets.
    pub(super) fn open(
        netlink: &mut Netlink,
        interface: &Interface,
        identity: Identity,
        place: Option<Place>,
    ) -> Result<Self, IoError> {
        Ok(Self {
            identity,
            socket: AdvertSocket::open(interface, identity.source)?,
            frames: FrameSender::open(interface)?,
            tap: ArpTap::open(interface)?,
            own: own(netlink, identity)?,
            carrier: interface.carrier,
            place,
        })
    }

    pub(super) fn mac(&self) -> Mac {
        self.frames.mac()
    }
}

/// What the prober must know of this host.
pub(super) fn own(netlink: &mut Netlink, identity: Identity) -> Result<Own, IoError> {
    let mut macs: Vec<Mac> = netlink.interfaces()?.iter().filter_map(|one| one.mac).collect();
    macs.retain(|mac| *mac != [0; 6]);
    macs.sort_unstable();
    macs.dedup();
    Ok(Own {
        address: Some(identity.source),
        prefix: identity.prefix,
        macs,
        gateways: netlink.gateways(identity.index, GATEWAYS_MAX)?,
    })
}
