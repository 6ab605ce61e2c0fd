//! Who lives on a segment, and what is left behind by whom.

use std::path::PathBuf;

use super::*;
use crate::arp::{Heard, arp_request, gratuitous_arp};

const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 0x0a];
const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 0x0b];

fn next(tap: &ArpTap) -> Heard {
    loop {
        assert!(readable(tap, SOON), "nothing heard");
        match tap.receive() {
            Ok(Some(heard)) => return heard,
            Ok(None) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_neighbour_answers_our_request_and_its_own_claims_are_heard() {
    Pair::run(|pair| {
        let va = pair.va();
        let (tap, frames) = (ArpTap::open(&va).unwrap(), FrameSender::open(&va).unwrap());
        for to in [None, Some(MAC_B)] {
            frames.send(&arp_request(MAC_A, A, B, to)).unwrap();
            let reply =
                Heard { to: MAC_A, is_reply: true, sender_mac: MAC_B, sender: B, target: A };
            // its own questions may be heard before
            while next(&tap) != reply {}
        }
        let vb = pair.vb();
        pair.enter_b();
        FrameSender::open(&vb).unwrap().send(&gratuitous_arp(MAC_B, VIP)).unwrap();
        pair.enter_a();
        let claim = loop {
            let heard = next(&tap);
            if heard.sender == VIP {
                break heard;
            }
        };
        assert_eq!((claim.sender_mac, claim.target, claim.is_reply), (MAC_B, VIP, false));
        assert_eq!(tap.receive().unwrap(), None, "our own requests are not heard");
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_tap_lives_through_down_and_up_and_ends_with_its_interface() {
    Pair::run(|pair| {
        let va = pair.va();
        let (tap, frames) = (ArpTap::open(&va).unwrap(), FrameSender::open(&va).unwrap());
        ip("link set va down");
        let down = until_error(&tap);
        assert_eq!(down.errno(), Some(libc::ENETDOWN), "{down}");
        ip("link set va up");
        until("an answer again", || {
            frames.send(&arp_request(MAC_A, A, B, None)).ok();
            readable(&tap, Duration::from_millis(50))
        });
        ip("link del va");
        until_error(&tap);
        assert!(frames.send(&arp_request(MAC_A, A, B, None)).is_err());
    });
}

fn until_error(tap: &ArpTap) -> IoError {
    loop {
        assert!(readable(tap, SOON), "no error");
        if let Err(error) = tap.receive() {
            return error;
        }
    }
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn gateways_are_those_of_routes_by_the_interface() {
    Pair::run(|pair| {
        let index = pair.va().index;
        ip("link add other type veth peer name other2");
        ip("addr add 10.98.0.1/24 dev other");
        ip("link set other2 up");
        ip("link set other up");
        let mut netlink = Netlink::open().unwrap();
        let mut gateways = || netlink.gateways(index, 4).unwrap();
        assert_eq!(gateways(), [] as [Ipv4Addr; 0]);
        ip("route add default via 10.99.0.7");
        ip("route add 203.0.113.0/24 via 10.98.0.7");
        ip("route add 198.51.100.0/24 via 10.99.0.7");
        assert_eq!(gateways(), [Ipv4Addr::new(10, 99, 0, 7)], "each once, by this interface");
        ip("route add 192.0.2.0/24 nexthop via 10.98.0.7 nexthop via 10.99.0.8");
        assert_eq!(gateways(), [Ipv4Addr::new(10, 99, 0, 7), Ipv4Addr::new(10, 99, 0, 8)]);
        assert_eq!(netlink.gateways(index, 1).unwrap().len(), 1);
    });
}

fn conf(interface: &str, file: &str) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/{file}");
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

/// A journal in the target's own temporary folder.
fn journal(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("{name}-{}", std::process::id()))
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn settings_of_a_killed_process_are_restored_by_the_next() {
    Pair::run(|_| {
        let path = journal("tandem-sysctls");
        for file in ["arp_ignore", "arp_announce"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/all/{file}"), "0").unwrap();
        }
        let both = || ["arp_ignore", "arp_announce"].map(|file| conf("all", file));
        let start = || {
            let mut settings = Sysctls::with_journal(path.clone()).unwrap();
            settings.hide_foreign_addresses("all").unwrap();
            settings
        };
        std::mem::forget(start());
        assert_eq!(both(), ["1", "2"]);
        // the next finds what the killed one had found
        let mut second = start();
        assert_eq!(both(), ["1", "2"]);
        second.restore().unwrap();
        assert_eq!(both(), ["0", "0"]);
        assert!(!path.exists(), "nothing is left to do");
        // a journal of another namespace is not believed
        std::fs::write(&path, "tandem-sysctls-1 elsewhere net:[1]\nall arp_ignore 2 0\n").unwrap();
        drop(Sysctls::with_journal(path.clone()).unwrap());
        assert_eq!(both(), ["0", "0"]);
        assert!(!path.exists());
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_second_nic_on_the_segment_is_silent_about_the_address() {
    Pair::run(|pair| {
        // both of the node's interfaces end in one bridge of the other namespace
        for file in ["arp_ignore", "arp_announce"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/all/{file}"), "0").unwrap();
        }
        let b = format!("/proc/{}/fd/{}", std::process::id(), pair.b.as_raw_fd());
        ip("link add va2 type veth peer name vb2");
        ip(&format!("link set vb2 netns {b}"));
        ip("link set va2 up");
        pair.enter_b();
        ip("link add sw type bridge");
        ip("addr del 10.99.0.2/24 dev vb");
        for port in ["vb", "vb2"] {
            ip(&format!("link set {port} master sw"));
            ip(&format!("link set {port} up"));
        }
        ip("addr add 10.99.0.2/24 dev sw");
        ip("link set sw up");
        pair.enter_a();
        let lo = Netlink::open().unwrap().interface("lo").unwrap();
        let spec = AddressSpec { index: lo.index, address: VIP.into(), prefix: 32 };
        let _vip = VipAddress::add(spec, Lifetime::Seconds(100)).unwrap();
        let asked = |wanted: &str| {
            pair.enter_b();
            until("asked", || {
                ip("neigh flush dev sw");
                let udp = std::net::UdpSocket::bind((B, 0)).unwrap();
                udp.send_to(b"?", (VIP, 9)).unwrap();
                until("answered or given up", || {
                    let shown = ip("neigh show 10.99.0.100");
                    shown.contains("lladdr") || shown.contains("FAILED")
                });
                ip("neigh show 10.99.0.100").contains(wanted)
            });
            pair.enter_a();
        };
        asked("lladdr");
        let mut settings = Sysctls::new();
        settings.hide_foreign_addresses("all").unwrap();
        asked("FAILED");
    });
}
