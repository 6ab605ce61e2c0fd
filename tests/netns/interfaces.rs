//! The interface below a running node changes: another Ethernet address, another name, gone and
//! made again. The node follows without a restart.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::eventually;
use tests::topology::{CLIENT, Options, Pair, Side};
use vrrp::io::{AdvertSocket, Netlink};
use vrrp::{Advert, Version};

use crate::role::{mac, owner};

const LIMIT: Duration = Duration::from_secs(15);

fn pair(xdp: &str) -> Result<(Pair, Side)> {
    let mut pair = Pair::build("tandem-test", Options { xdp: xdp.into(), ..Options::default() })?;
    let master = pair.start_both()?;
    Ok((pair, master))
}

/// Whoever is `master` owns the address on the wire, by its interface as it is now.
fn owns(pair: &Pair, master: Side) -> Result<()> {
    eventually("the master's own address on the wire", LIMIT, || {
        let (owner, own) = (owner(pair)?, mac(pair, master)?);
        ensure!(owner == own, "{owner} owns the address, the master has {own}");
        Ok(())
    })
}

/// The other node is master; `side` returns with its changed interface, and takes over when the
/// other's engine dies.
fn returns_and_takes_over(pair: &mut Pair, side: Side) -> Result<()> {
    let other = side.other();
    pair.wait_protected(other)?;
    owns(pair, other)?;
    pair.kill_engine(other)?;
    pair.wait_role(side, &["MASTER", "MASTER_SOLO"], LIMIT)?;
    pair.wait_protected(side)?;
    owns(pair, side)
}

fn another_mac(xdp: &str) -> Result<()> {
    let (pair, master) = pair(xdp)?;
    let node = pair.namespace(master);
    node.ip(&["link", "set", "lan", "address", "02:00:00:00:00:77"])?;
    owns(&pair, master)?;
    ensure!(mac(&pair, master)? == "02:00:00:00:00:77");
    pair.wait_protected(master)
}

fn made_again(xdp: &str) -> Result<()> {
    let (mut pair, master) = pair(xdp)?;
    pair.namespace(master).ip(&["link", "delete", "lan"])?;
    pair.wait_role(master.other(), &["MASTER", "MASTER_SOLO"], LIMIT)?;
    owns(&pair, master.other())?;
    pair.plug_lan(master)?;
    returns_and_takes_over(&mut pair, master)
}

fn renamed(xdp: &str) -> Result<()> {
    let (mut pair, master) = pair(xdp)?;
    let rename = |from: &str, to: &str| -> Result<()> {
        let node = pair.namespace(master);
        node.ip(&["link", "set", from, "down"])?;
        node.ip(&["link", "set", from, "name", to])?;
        node.ip(&["link", "set", to, "up"]).map(drop)
    };
    rename("lan", "other")?;
    pair.wait_role(master.other(), &["MASTER", "MASTER_SOLO"], LIMIT)?;
    owns(&pair, master.other())?;
    rename("other", "lan")?;
    returns_and_takes_over(&mut pair, master)
}

/// The next advert that the client hears from `source`, checked.
fn hears_advert(pair: &Pair, source: Ipv4Addr) -> Result<()> {
    pair.client.run(|| {
        let lan = Netlink::open()?.interface("lan")?;
        let mut socket = AdvertSocket::open(&lan, CLIENT)?;
        eventually(&format!("a good advert from {source}"), LIMIT, || {
            let datagram = socket.receive()?.context("none")?;
            let received = datagram.received();
            Advert::decode(&received, Version::V3)?;
            ensure!(received.source == IpAddr::V4(source), "{received:?}");
            Ok(())
        })
    })
}

/// The interface's own address is another one, and then the old one again.
fn another_address(xdp: &str) -> Result<()> {
    let (pair, master) = pair(xdp)?;
    let node = pair.namespace(master);
    let (old, new) = (master.address(), Ipv4Addr::new(10, 77, 0, 51));
    hears_advert(&pair, old)?;
    for (gone, come) in [(old, new), (new, old)] {
        node.ip(&["address", "add", &format!("{come}/24"), "dev", "lan"])?;
        node.ip(&["address", "delete", &format!("{gone}/24"), "dev", "lan"])?;
        // the kernel takes a network's other addresses away with its first one
        node.ip(&["address", "replace", &format!("{come}/24"), "dev", "lan"])?;
        hears_advert(&pair, come)?;
        ensure!(pair.role(master)?.starts_with("MASTER"), "the role has moved");
    }
    owns(&pair, master)?;
    pair.wait_protected(master)
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn interface_gets_another_address() -> Result<()> {
    another_address("native")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn interface_gets_another_mac_native() -> Result<()> {
    another_mac("native")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn interface_gets_another_mac_off() -> Result<()> {
    another_mac("off")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn interface_made_again_native() -> Result<()> {
    made_again("native")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn interface_made_again_generic() -> Result<()> {
    made_again("generic")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn interface_made_again_off() -> Result<()> {
    made_again("off")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn interface_renamed_generic() -> Result<()> {
    renamed("generic")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn interface_renamed_off() -> Result<()> {
    renamed("off")
}
