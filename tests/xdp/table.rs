//! Each row: a sentence, who the node is, a frame in, what becomes of it. Run in the kernel and in
//! user space; both must do what the row says. Then random frames, where both must agree.

use anyhow::Result;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use proxy_common::abi::{Conflict, Ipv4, Reason};
use proxy_user::guardian::steering::monotonic_ns;

use crate::fixtures::{
    CLIENT, CLIENT_IP, EVERYBODY, Kernel, Node, OURS, PEER, Twin, VIP, VIP_ELSEWHERE,
    VIP_REDIRECTED, VIP_TAGGED, arp, ipv4, request, tagged,
};

const DROP: u32 = 1;
const PASS: u32 = 2;
const TX: u32 = 3;
const REDIRECT: u32 = 4;
const UDP: u8 = 17;
const TCP: u8 = 6;

struct Row {
    what: &'static str,
    node: Node,
    frame: Vec<u8>,
    action: u32,
    reason: Reason,
    /// The frame afterwards; `None`: unchanged.
    out: Option<Vec<u8>>,
}

fn row(
    what: &'static str,
    node: Node,
    frame: Vec<u8>,
    (action, reason): (u32, Reason),
    out: Option<Vec<u8>>,
) -> Row {
    Row { what, node, frame, action, reason, out }
}

fn reply(address: Ipv4) -> Vec<u8> {
    arp(CLIENT, 2, (OURS, address), (CLIENT, CLIENT_IP))
}

fn answered() -> Vec<Row> {
    use Node::Master;
    let sent = (TX, Reason::ArpAnswered);
    let probe = arp(EVERYBODY, 1, (CLIENT, [0; 4]), ([0; 6], VIP));
    let defence = arp(CLIENT, 2, (OURS, VIP), (CLIENT, [0; 4]));
    let unicast = arp(OURS, 1, (CLIENT, CLIENT_IP), ([0; 6], VIP));
    let bare = request(VIP)[..42].to_vec();
    vec![
        row("the master answers", Master, request(VIP), sent, Some(reply(VIP))),
        row("a request without padding too", Master, bare, sent, Some(reply(VIP)[..42].to_vec())),
        row("one sent to us alone too", Master, unicast, sent, Some(reply(VIP))),
        row("a probe is answered (RFC 5227)", Master, probe, sent, Some(defence)),
        row(
            "an answer keeps its VLAN tag",
            Master,
            tagged(&request(VIP_TAGGED), 0x2005),
            sent,
            Some(tagged(&reply(VIP_TAGGED), 0x2005)),
        ),
        row(
            "where the interface needs it, the answer is redirected",
            Master,
            request(VIP_REDIRECTED),
            (REDIRECT, Reason::ArpAnswered),
            Some(reply(VIP_REDIRECTED)),
        ),
    ]
}

fn silent() -> Vec<Row> {
    use Node::{Backup, Ended, Master};
    let other = (PASS, Reason::ArpOther);
    let claim = |mac, operation| arp(EVERYBODY, operation, (mac, VIP), ([0; 6], VIP));
    let group = arp(EVERYBODY, 1, ([0x03, 0, 0, 0, 0, 9], CLIENT_IP), ([0; 6], VIP));
    let flooded = arp(PEER, 1, (CLIENT, CLIENT_IP), ([0; 6], VIP));
    let mut ipv6_in_arp = request(VIP);
    ipv6_in_arp[16..18].copy_from_slice(&[0x86, 0xdd]);
    let claimed = (PASS, Reason::ArpClaim);
    let conflict = (PASS, Reason::ArpConflict);
    vec![
        row("a backup keeps silent", Backup, request(VIP), (DROP, Reason::ArpBackup), None),
        row(
            "and a master whose lease has ended",
            Ended,
            request(VIP),
            (DROP, Reason::ArpStale),
            None,
        ),
        row("another address is not ours", Master, request([192, 0, 2, 7]), other, None),
        row("nor one of another interface", Master, request(VIP_ELSEWHERE), other, None),
        row("nor one of another VLAN", Master, tagged(&request(VIP), 5), other, None),
        row("nor untagged one of a VLAN", Master, request(VIP_TAGGED), other, None),
        row("a reply asks nothing", Master, reply([192, 0, 2, 7]), other, None),
        row("a group cannot ask", Master, group, other, None),
        row("nor a frame flooded to us", Master, flooded, other, None),
        row("ARP of another protocol", Master, ipv6_in_arp, other, None),
        row("cut inside ARP", Master, request(VIP)[..41].to_vec(), (PASS, Reason::Short), None),
        row("a second master, by request", Master, claim(PEER, 1), conflict, None),
        row("a second master, by reply", Master, claim(PEER, 2), conflict, None),
        row("the master's claim, to a backup", Backup, claim(PEER, 2), claimed, None),
        row("our own claim", Master, claim(OURS, 2), claimed, None),
    ]
}

fn ip() -> Vec<Row> {
    use Node::{Backup, Master};
    let guarded = (DROP, Reason::UdpMemcached);
    let passed = (PASS, Reason::Ipv4Vip);
    let to = |port| (VIP, port);
    let mut version_6 = ipv4(UDP, to(11211), 0, &[]);
    version_6[14] = 0x65;
    let mut short_header = ipv4(UDP, to(11211), 0, &[]);
    short_header[14] = 0x44;
    let long = ipv4(UDP, to(11211), 0, &[1; 40]);
    let malformed = (PASS, Reason::Ipv4Malformed);
    let mut lldp = request(VIP);
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    let twice = tagged(&tagged(&ipv4(UDP, to(11211), 0, &[]), 5), 6);
    let alien = (PASS, Reason::OtherProtocol);
    vec![
        row("UDP to memcached", Master, ipv4(UDP, to(11211), 0, &[]), guarded, None),
        row("on a backup too", Backup, ipv4(UDP, to(11211), 0, &[]), guarded, None),
        row("behind all the options there can be", Master, long.clone(), guarded, None),
        row("cut behind those options", Master, long[..75].to_vec(), (PASS, Reason::Short), None),
        row("in a VLAN", Master, tagged(&ipv4(UDP, to(11211), 0, &[]), 5), guarded, None),
        row("a first fragment", Master, ipv4(UDP, to(11211), 0x2000, &[]), guarded, None),
        row(
            "a later fragment has no ports",
            Master,
            ipv4(UDP, to(11211), 1, &[]),
            (PASS, Reason::Ipv4Fragment),
            None,
        ),
        row("UDP to another port", Master, ipv4(UDP, to(53), 0, &[]), passed, None),
        row("TCP to memcached", Master, ipv4(TCP, to(11211), 0, &[]), passed, None),
        row(
            "UDP to another address",
            Master,
            ipv4(UDP, (CLIENT_IP, 11211), 0, &[]),
            (PASS, Reason::Ipv4Other),
            None,
        ),
        row("no IPv4 inside", Master, version_6, malformed, None),
        row("a header of 16 bytes", Master, short_header, malformed, None),
        row("neither ARP nor IPv4", Master, lldp, alien, None),
        row("two tags", Master, twice, alien, None),
    ]
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test"]
fn every_row_of_the_table_in_the_kernel_and_in_user_space() -> Result<()> {
    let mut kernel = Kernel::load()?;
    for Row { what, node, frame, action, reason, out } in
        [answered(), silent(), ip()].into_iter().flatten()
    {
        kernel.set(node)?;
        let expected = ((action, out.unwrap_or_else(|| frame.clone())), reason);
        assert_eq!(Twin(node).run(&frame), expected, "user space: {what}");
        assert_eq!(kernel.run(&frame)?, expected, "kernel: {what}");
    }
    Ok(())
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test"]
fn a_conflict_is_told_with_its_claimant_and_a_full_ring_is_counted() -> Result<()> {
    let mut kernel = Kernel::load()?;
    kernel.set(Node::Master)?;
    let claim = arp(EVERYBODY, 2, (PEER, VIP), ([0; 6], VIP));
    kernel.run(&claim)?;
    let expected = Conflict { vip: VIP, ifindex: 1, mac: PEER, reserved: [0; 2] };
    assert_eq!(kernel.conflict(), Some(expected));
    assert_eq!(kernel.conflict(), None);
    // 64 KiB of records with an 8-byte head each.
    kernel.cost_ns(&claim, 64 * 1024 / 24 + 100)?;
    let told = std::iter::from_fn(|| kernel.conflict()).count();
    assert!((2_600..=2_731).contains(&told), "{told} fit into the ring");
    assert!(kernel.count_of(Reason::EventLost)? >= 100);
    Ok(())
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test"]
fn who_asks_is_remembered_by_master_and_backup() -> Result<()> {
    for node in [Node::Master, Node::Backup, Node::Ended] {
        let mut kernel = Kernel::load()?;
        kernel.set(node)?;
        kernel.run(&request([192, 0, 2, 7]))?;
        assert_eq!(kernel.askers()?, [], "{node:?}: it asked for another address");
        let before = monotonic_ns();
        kernel.run(&request(VIP))?;
        let askers = kernel.askers()?;
        let [asker] = askers[..] else { panic!("{node:?}: {askers:?}") };
        assert_eq!((asker.address, asker.mac, asker.ifindex), (CLIENT_IP, CLIENT, 1));
        assert!((before..=monotonic_ns()).contains(&asker.at_ns), "{node:?}: {asker:?}");
    }
    Ok(())
}

fn frames() -> impl Strategy<Value = Vec<u8>> {
    let good = [answered(), silent(), ip()].into_iter().flatten().map(|row| row.frame);
    let flips = prop::collection::vec((0_usize..80, any::<u8>()), 0..4);
    (prop::sample::select(good.collect::<Vec<_>>()), flips, 14_usize..90).prop_map(
        |(mut frame, flips, length)| {
            for (at, value) in flips {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = value;
                }
            }
            frame.truncate(length);
            frame
        },
    )
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test"]
fn kernel_and_user_space_agree_on_frames_nobody_meant() -> Result<()> {
    let mut kernel = Kernel::load()?;
    for node in [Node::Master, Node::Backup, Node::Ended] {
        kernel.set(node)?;
        let kernel = std::cell::RefCell::new(&mut kernel);
        let config = Config { cases: 1_000, failure_persistence: None, ..Config::default() };
        TestRunner::new(config).run(&frames(), |frame| {
            let there = kernel.borrow_mut().run(&frame);
            let there = there.map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
            prop_assert_eq!(there, Twin(node).run(&frame));
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
#[ignore = "needs CAP_BPF: cargo xtask test"]
fn the_cost_of_a_frame_is_shown_beside_the_methods_floor() -> Result<()> {
    let mut kernel = Kernel::load()?;
    kernel.set(Node::Backup)?;
    let mut best = |frame: &[u8]| -> Result<u128> {
        let mut best = u128::MAX;
        for _ in 0..5 {
            best = best.min(kernel.cost_ns(frame, 100_000)?);
        }
        Ok(best)
    };
    let mut lldp = request(VIP);
    lldp[12..14].copy_from_slice(&[0x88, 0xcc]);
    let floor = best(&lldp)?;
    let other = best(&ipv4(TCP, (CLIENT_IP, 80), 0, &[]))?;
    let vip = best(&ipv4(TCP, (VIP, 80), 0, &[]))?;
    let dropped = best(&request(VIP))?;
    println!(
        "ns per frame: other protocol {floor}, IPv4 to others {other}, TCP to the VIP {vip}, ARP \
         dropped by a backup {dropped}"
    );
    // A bound for mistakes (a loop, a missed inline), not for speed: the machine may be loaded.
    assert!(vip < 2_000 && dropped < 2_000, "{vip} {dropped}");
    Ok(())
}
