//! What a station that is neither node may do to the pair: adverts for its address, and more
//! connections than anybody needs.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use vrrp::config::GROUP_V4;
use vrrp::{Advert, AdvertInterval, Auth, ChecksumKind, Priority, Version, Vrid};

use crate::topology::{CLIENT, VIP};

/// IP protocol of VRRP.
pub const VRRP: u8 = 112;
/// The pair's virtual router.
const VRID: u8 = 51;
/// Connections that a flood holds open at once.
const HELD: usize = 400;

/// An advert for the pair's address, as the client would send it.
///
/// # Errors
/// When the crate cannot encode it: our mistake.
pub fn advert(priority: u8) -> Result<Vec<u8>> {
    let advert = Advert {
        version: Version::V3,
        vrid: Vrid::new(VRID).context("not 0")?,
        priority: Priority::new(priority),
        interval: AdvertInterval::from_centiseconds(10).context("not 0")?,
        addresses: vec![IpAddr::V4(VIP)],
        auth: Auth::None,
    };
    let (from, to) = (IpAddr::V4(CLIENT), IpAddr::V4(GROUP_V4));
    Ok(advert.encode(from, to, ChecksumKind::PseudoHeader)?)
}

/// Sends one VRRP payload to the group from the client's LAN address; on a thread in its namespace.
///
/// # Errors
/// Needs CAP_NET_RAW.
pub fn multicast(payload: &[u8], ttl: u32) -> Result<()> {
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(i32::from(VRRP))))?;
    socket.set_multicast_if_v4(&CLIENT)?;
    socket.set_multicast_ttl_v4(ttl)?;
    socket.bind(&SockAddr::from(SocketAddr::from((CLIENT, 0))))?;
    let group = SockAddr::from(SocketAddr::from((GROUP_V4, 0)));
    socket.send_to(payload, &group).map(drop).context("sending an advert")
}

/// Connects to `ports` of `address` in turn, as fast as it goes, holds the newest few hundred open
/// and sends a few bytes of nonsense on every other one; gives how many connections were made.
#[must_use]
pub fn flood(address: Ipv4Addr, ports: &[u16], time: Duration) -> u64 {
    let mut held = std::collections::VecDeque::new();
    let mut made = 0;
    let end = Instant::now() + time;
    for port in ports.iter().cycle() {
        if Instant::now() >= end {
            break;
        }
        let to = SocketAddr::from((address, *port));
        let Ok(mut stream) = TcpStream::connect_timeout(&to, Duration::from_millis(50)) else {
            continue;
        };
        made += 1;
        // A connection that was closed at once is as good.
        if made % 2 == 0 && stream.write_all(&[0xff; 40]).is_err() {
            continue;
        }
        held.push_back(stream);
        if held.len() > HELD {
            held.pop_front();
        }
    }
    made
}
