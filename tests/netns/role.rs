//! Who answers for the address, who may write, and what a node leaves behind.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tests::eventually;
use tests::topology::{Options, Pair, Side, VIP};

/// The MAC that the client's kernel holds for the address, after asking anew.
pub(crate) fn owner(pair: &Pair) -> Result<String> {
    pair.client.ip(&["neighbour", "flush", "dev", "lan"])?;
    pair.memcached(&pair.client, VIP)?.stats()?;
    let list = pair.client.ip(&["neighbour", "show", &VIP.to_string()])?;
    let mut words = list.split_whitespace().skip_while(|word| *word != "lladdr");
    Ok(words.nth(1).with_context(|| format!("no lladdr in {list:?}"))?.to_owned())
}

pub(crate) fn mac(pair: &Pair, side: Side) -> Result<String> {
    let link = pair.namespace(side).ip(&["-o", "link", "show", "lan"])?;
    let mut words = link.split_whitespace().skip_while(|word| *word != "link/ether");
    Ok(words.nth(1).with_context(|| format!("no link/ether in {link:?}"))?.to_owned())
}

fn one_answers(xdp: &str) -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options { xdp: xdp.into(), ..Options::default() })?;
    let master = pair.start_both()?;
    ensure!(owner(&pair)? == mac(&pair, master)?, "the master's MAC owns the address");
    pair.kill_engine(master)?;
    pair.wait_role(master.other(), &["MASTER", "MASTER_SOLO"], Duration::from_secs(10))?;
    pair.wait_protected(master.other())?;
    ensure!(owner(&pair)? == mac(&pair, master.other())?, "the new master's MAC owns it");
    Ok(())
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn the_master_alone_answers_arp_native() -> Result<()> {
    one_answers("native")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn the_master_alone_answers_arp_generic() -> Result<()> {
    one_answers("generic")
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn the_master_alone_answers_arp_off() -> Result<()> {
    one_answers("off")
}

/// Both nodes' own addresses read and write the same data: the backup forwards.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_backup_forwards() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    let master = pair.start_both()?;
    let backup = master.other();
    let mut at_backup = pair.memcached(&pair.client, backup.address())?;
    let mut at_master = pair.memcached(&pair.client, VIP)?;
    ensure!(at_backup.set("from-backup", b"1")? == "STORED");
    ensure!(at_master.get("from-backup")?.as_deref() == Some(&b"1"[..]));
    ensure!(at_master.set("from-master", b"2")? == "STORED");
    ensure!(at_backup.get("from-master")?.as_deref() == Some(&b"2"[..]));
    // A connection at the backup outlives the master: it is idle, so nothing of it is in doubt.
    pair.kill_node(master)?;
    pair.wait_role(backup, &["MASTER", "MASTER_SOLO"], Duration::from_secs(10))?;
    ensure!(at_backup.get("from-master")?.as_deref() == Some(&b"2"[..]), "the same connection");
    Ok(())
}

/// Data written before a node came is there after the others' death: the full sync is real.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_late_node_gets_everything() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    pair.start(Side::A)?;
    pair.wait_role(Side::A, &["MASTER_SOLO"], Duration::from_secs(10))?;
    let mut client = pair.memcached(&pair.client, VIP)?;
    for number in 0..2000 {
        let value = vec![b'a' + (number % 26) as u8; 1 + number * 7 % 5000];
        ensure!(client.set(&format!("key{number}"), &value)? == "STORED");
    }
    pair.start(Side::B)?;
    pair.wait_protected(Side::A)?;
    pair.kill_node(Side::A)?;
    pair.wait_role(Side::B, &["MASTER", "MASTER_SOLO"], Duration::from_secs(10))?;
    let mut client = pair.memcached(&pair.client, VIP)?;
    for number in 0..2000 {
        let value = vec![b'a' + (number % 26) as u8; 1 + number * 7 % 5000];
        ensure!(client.get(&format!("key{number}"))? == Some(value), "key{number}");
    }
    Ok(())
}

/// A wrong key is refused and counted by its reason, and the pair does not form.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_wrong_key_is_refused() -> Result<()> {
    let mut pair = Pair::build("tandem-test", Options::default())?;
    pair.start(Side::A)?;
    pair.wait_role(Side::A, &["MASTER_SOLO"], Duration::from_secs(10))?;
    let key = pair.file("pair.key");
    tests::netns::run("cp", &[&key.to_string_lossy(), &pair.file("old.key").to_string_lossy()])?;
    std::fs::remove_file(&key)?;
    tests::netns::run(&pair.tandem().to_string_lossy(), &["keygen", &key.to_string_lossy()])?;
    pair.start(Side::B)?;
    // side a dials: b cannot read its handshake, and a is refused
    for (side, reason) in [(Side::A, "by_peer"), (Side::B, "wrong_key")] {
        let what = format!("node {} to count what is {reason}", side.name());
        eventually(&what, Duration::from_secs(10), || {
            let refused = &pair.status(side)?["peer"]["refused"];
            ensure!(refused[reason].as_u64().is_some_and(|count| count > 0), "{refused}");
            Ok(())
        })?;
    }
    ensure!(pair.role(Side::A)? == "MASTER_SOLO", "no pair with a stranger");
    Ok(())
}

/// A stop leaves no address, no sysctl and no program behind.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_stop_leaves_nothing_behind() -> Result<()> {
    for xdp in ["auto", "off"] {
        let mut pair =
            Pair::build("tandem-test", Options { xdp: xdp.into(), ..Options::default() })?;
        let before = traces(&pair)?;
        pair.start(Side::A)?;
        pair.wait_role(Side::A, &["MASTER_SOLO"], Duration::from_secs(10))?;
        ensure!(traces(&pair)? != before, "{xdp}: a running node can be seen");
        pair.node(Side::A)?.signal(Signal::SIGTERM)?;
        pair.node(Side::A)?.wait(Duration::from_secs(5))?;
        let after = traces(&pair)?;
        ensure!(after == before, "{xdp}: left behind:\n{after}\nbefore:\n{before}");
    }
    Ok(())
}

/// IPv4 addresses and routes, sysctls and attached programs of node a. Not IPv6: the kernel adds
/// link-local addresses at its own time.
fn traces(pair: &Pair) -> Result<String> {
    let node = pair.namespace(Side::A);
    let addresses = node.ip(&["-4", "-o", "address"])?;
    let programs = node.ip(&["-d", "link", "show", "lan"])?.contains("xdp");
    let routes = node.ip(&["-4", "route", "show", "table", "all"])?;
    let sysctls = node.run(|| {
        let read = |name: &str| {
            std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}")).unwrap_or_default()
        };
        Ok(["lan/arp_ignore", "lan/arp_announce", "all/arp_ignore", "all/arp_announce"].map(read))
    })?;
    let lasting: Vec<&str> =
        addresses.lines().map(|line| line.split("valid_lft").next().unwrap_or(line)).collect();
    Ok(format!("{}\nxdp {programs}\n{routes}\n{sysctls:?}", lasting.join("\n")))
}

/// All processes of the master killed: nothing on that host answers for the address once its
/// lifetime has passed.
#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_dead_node_loses_the_address() -> Result<()> {
    for xdp in ["auto", "off"] {
        let mut pair =
            Pair::build("tandem-test", Options { xdp: xdp.into(), ..Options::default() })?;
        pair.start(Side::A)?;
        pair.wait_role(Side::A, &["MASTER_SOLO"], Duration::from_secs(10))?;
        pair.kill_all(Side::A)?;
        pair.client.ip(&["neighbour", "flush", "dev", "lan"])?;
        eventually("the address to expire", Duration::from_secs(5), || {
            let list = pair.namespace(Side::A).ip(&["-o", "address"])?;
            ensure!(!list.contains(&VIP.to_string()), "{list}");
            Ok(())
        })?;
        ensure!(pair.memcached(&pair.client, VIP).is_err(), "{xdp}: somebody answers");
    }
    Ok(())
}
