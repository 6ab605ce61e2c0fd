//! What is changed on the host, and that it is put back.

use super::*;

fn spec(index: u32, address: Ipv4Addr) -> AddressSpec {
    AddressSpec { index, address: address.into(), prefix: 32 }
}

const ARP_FILES: [&str; 2] = ["arp_ignore", "arp_announce"];

fn conf(interface: &str, file: &str) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/{file}");
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn interfaces_are_found_as_they_are() {
    Pair::run(|pair| {
        ip("link set va mtu 1400");
        let va = pair.va();
        assert_eq!((va.name.as_str(), va.mtu, va.up, va.carrier), ("va", 1400, true, true));
        assert_eq!(va.mac, Some([2, 0, 0, 0, 0, 0x0a]));
        let mut netlink = Netlink::open().unwrap();
        assert_eq!(netlink.interface_by_index(va.index).unwrap(), va);
        let error = netlink.interface("nosuch0").unwrap_err().to_string();
        assert!(error.contains("nosuch0") && error.contains("no such interface"), "{error}");
        assert!(netlink.interface("../../etc").is_err());
        ip("link set va down");
        let down = netlink.interface("va").unwrap();
        assert!(!down.up && !down.carrier);
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn the_vip_has_a_lifetime_is_renewed_and_removed() {
    Pair::run(|pair| {
        let va = pair.va();
        let mut netlink = Netlink::open().unwrap();
        let vip = spec(va.index, VIP);
        let before = addresses_of(va.index);
        let mut held = VipAddress::add(vip, Lifetime::Seconds(100)).unwrap();
        let listed = netlink.addresses(va.index).unwrap();
        let entry = listed.iter().find(|e| e.spec == vip).expect("listed");
        assert!(matches!(entry.lifetime, Lifetime::Seconds(98..=100)), "{entry:?}");
        assert!(!entry.secondary);
        let first = listed.iter().find(|e| e.spec.address == IpAddr::V4(A)).unwrap();
        assert_eq!((first.lifetime, first.spec.prefix), (Lifetime::Forever, 24));
        assert_eq!(ip("route show table main dev va").lines().count(), 1, "no prefix route");
        // adding is renewing, and renewing puts back what somebody took
        netlink.replace_address(&vip, Lifetime::Seconds(50)).unwrap();
        held.renew().unwrap();
        ip("addr flush dev va to 10.99.0.100");
        assert_eq!(addresses_of(va.index), before);
        held.renew().unwrap();
        assert_eq!(addresses_of(va.index).len(), before.len() + 1);
        assert!(held.remove().unwrap());
        assert!(!held.remove().unwrap(), "gone already");
        assert_eq!(addresses_of(va.index), before);
        // and by dropping
        drop(VipAddress::add(vip, Lifetime::Seconds(100)).unwrap());
        assert_eq!(addresses_of(va.index), before);
        let gone = VipAddress::add(spec(4242, VIP), Lifetime::Forever).unwrap_err().to_string();
        assert!(gone.contains("10.99.0.100/32 on interface 4242"), "{gone}");
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn an_address_that_nobody_renews_expires_and_is_reported() {
    Pair::run(|pair| {
        let va = pair.va();
        let mut monitor = Monitor::open().unwrap();
        let mut held = VipAddress::add(spec(va.index, VIP), Lifetime::Seconds(2)).unwrap();
        let start = now();
        // renewed each half second it outlives its lifetime
        let mut renewed = start;
        while now() - start < Duration::from_millis(2_600) {
            if now() - renewed >= Duration::from_millis(500) {
                held.renew().unwrap();
                renewed = now();
            }
            assert!(addresses_of(va.index).contains(&VIP.into()), "expired under renewal");
            readable(&monitor, Duration::from_millis(20));
            while let Some(event) = monitor.next_event().unwrap() {
                assert!(!matches!(event, MonitorEvent::AddressGone(_)), "{event:?}");
            }
        }
        std::mem::forget(held);
        let gone = loop {
            assert!(readable(&monitor, SOON), "never expired");
            if let Some(MonitorEvent::AddressGone(entry)) = monitor.next_event().unwrap() {
                break entry;
            }
        };
        let after = now() - renewed;
        println!("2 s lifetime: gone {after:?} after the last renewal");
        assert_eq!(gone.spec, spec(va.index, VIP));
        assert!(after > Duration::from_millis(1_900) && after < Duration::from_millis(3_600));
        assert!(!addresses_of(va.index).contains(&VIP.into()));
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn a_vip_on_lo_is_not_answered_for_and_all_is_restored() {
    Pair::run(|pair| {
        // a new namespace inherits the machine's settings
        for (interface, file) in ["all", "va"].iter().flat_map(|i| ARP_FILES.map(|f| (i, f))) {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{interface}/{file}"), "0").unwrap();
        }
        let lo = Netlink::open().unwrap().interface("lo").unwrap();
        let _vip = VipAddress::add(spec(lo.index, VIP), Lifetime::Seconds(100)).unwrap();
        let asked = |expect: bool| {
            pair.enter_b();
            ip("neigh flush dev vb");
            let udp = std::net::UdpSocket::bind((B, 0)).unwrap();
            udp.send_to(b"?", (VIP, 9)).unwrap();
            let wanted = if expect { "02:00:00:00:00:0a" } else { "FAILED" };
            until(wanted, || ip("neigh show 10.99.0.100").contains(wanted));
            pair.enter_a();
        };
        asked(true);
        let mut sysctls = Sysctls::new();
        sysctls.hide_foreign_addresses("va").unwrap();
        assert_eq!(ARP_FILES.map(|file| conf("va", file)), ["1", "2"]);
        asked(false);
        drop(sysctls);
        assert_eq!(ARP_FILES.map(|file| conf("va", file)), ["0", "0"]);
        asked(true);
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn sysctls_restore_only_what_is_still_ours() {
    Pair::run(|_| {
        for (file, value) in [("rp_filter", "2"), ("accept_local", "0"), ("arp_ignore", "0")] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/va/{file}"), value).unwrap();
        }
        let mut sysctls = Sysctls::new();
        sysctls.set("va", ConfKey::RpFilter, 0).unwrap();
        sysctls.set("va", ConfKey::RpFilter, 1).unwrap();
        sysctls.set("va", ConfKey::AcceptLocal, 1).unwrap();
        sysctls.set("va", ConfKey::ArpIgnore, 2).unwrap();
        std::fs::write("/proc/sys/net/ipv4/conf/va/arp_ignore", "3").unwrap();
        let error = sysctls.set("nosuch0", ConfKey::ArpIgnore, 1).unwrap_err().to_string();
        assert!(error.contains("arp_ignore of nosuch0"), "{error}");
        assert!(sysctls.set("../../../kernel", ConfKey::ArpIgnore, 1).is_err());
        sysctls.restore().unwrap();
        assert_eq!(conf("va", "rp_filter"), "2");
        assert_eq!(conf("va", "accept_local"), "0");
        assert_eq!(conf("va", "arp_ignore"), "3", "changed by somebody else");
        // an interface that goes takes its settings with it
        sysctls.set("va", ConfKey::ArpIgnore, 1).unwrap();
        ip("link del va");
        sysctls.restore().unwrap();
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn carrier_and_removal_are_seen() {
    Pair::run(|pair| {
        let va = pair.va();
        let mut monitor = Monitor::open().unwrap();
        let mut expect = |what: &str, wanted: &dyn Fn(&MonitorEvent) -> bool| {
            let start = now();
            loop {
                while let Some(event) = monitor.next_event().unwrap() {
                    if wanted(&event) {
                        println!("{what}: {:?}", now() - start);
                        return;
                    }
                }
                assert!(readable(&monitor, SOON), "no news: {what}");
            }
        };
        let state = |event: &MonitorEvent, up: bool, carrier: bool| match event {
            MonitorEvent::Link(i) => i.index == va.index && i.up == up && i.carrier == carrier,
            _ => false,
        };
        pair.enter_b();
        ip("link set vb down");
        expect("carrier lost", &|e| state(e, true, false));
        ip("link set vb up");
        expect("carrier back", &|e| state(e, true, true));
        pair.enter_a();
        ip("link set va down");
        expect("down", &|e| state(e, false, false));
        ip("addr del 10.99.0.1/24 dev va");
        expect("address gone", &|e| match e {
            MonitorEvent::AddressGone(entry) => entry.spec.address == IpAddr::V4(A),
            _ => false,
        });
        ip("link del va");
        let gone = MonitorEvent::LinkGone { index: va.index, name: "va".into() };
        expect("gone", &|e| *e == gone);
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn lost_news_is_said() {
    Pair::run(|pair| {
        let va = pair.va();
        let mut monitor = Monitor::open().unwrap();
        let mut netlink = Netlink::open().unwrap();
        let vip = spec(va.index, VIP);
        for _ in 0..2_000 {
            netlink.replace_address(&vip, Lifetime::Seconds(9)).unwrap();
        }
        let mut lost = false;
        while let Some(event) = monitor.next_event().unwrap() {
            lost |= event == MonitorEvent::Lost;
        }
        assert!(lost, "2000 events fitted into the queue");
        // and it goes on
        netlink.delete_address(&vip).unwrap();
        assert!(readable(&monitor, SOON));
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn rto_min_is_on_the_peers_route_and_removed_again() {
    Pair::run(|_| {
        let shown = || ip("route show 10.99.0.2");
        let mut route = RtoMinRoute::add(B.into(), Duration::from_millis(5)).unwrap();
        let text = shown();
        assert!(text.contains("dev va") && text.contains("rto_min lock 5ms"), "{text}");
        route.remove().unwrap();
        route.remove().unwrap();
        assert_eq!(shown(), "");
        // one left by a killed process is taken over, somebody else's is not touched
        std::mem::forget(RtoMinRoute::add(B.into(), Duration::from_millis(5)).unwrap());
        let taken = RtoMinRoute::add(B.into(), Duration::from_millis(7)).unwrap();
        assert!(shown().contains("7ms") && shown().lines().count() == 1, "{}", shown());
        drop(taken);
        assert_eq!(shown(), "");
        ip("route add 10.99.0.2 dev va mtu 1300");
        let error = RtoMinRoute::add(B.into(), Duration::from_millis(5)).unwrap_err();
        assert_eq!(error.errno(), Some(libc::EEXIST), "{error}");
        assert!(shown().contains("mtu 1300"));
        // through a gateway
        ip("route add 10.98.0.0/24 via 10.99.0.2");
        let far = RtoMinRoute::add("10.98.0.7".parse().unwrap(), Duration::from_millis(5)).unwrap();
        let text = ip("route show 10.98.0.7");
        assert!(text.contains("via 10.99.0.2") && text.contains("5ms"), "{text}");
        drop(far);
        let error = RtoMinRoute::add("203.0.113.1".parse().unwrap(), Duration::from_millis(5));
        assert!(error.unwrap_err().to_string().contains("no route"));
        assert_eq!(RtoMinRoute::add(A.into(), SOON).unwrap_err().errno(), Some(libc::EINVAL));
    });
}
