//! What leaves the host, byte by byte, and what arrives.

use super::*;
use crate::config::{InstanceConfig, Vrid};
use crate::{AdvertInterval, Instance, Output, Priority, State};

fn instance(source: Ipv4Addr) -> Instance {
    let vrid = Vrid::new(51).unwrap();
    let interval = AdvertInterval::from_centiseconds(10).unwrap();
    let config = InstanceConfig {
        priority: Priority::new(200),
        ..InstanceConfig::coupled(vrid, interval, vec![VIP.into()], source.into())
    };
    Instance::new(config).unwrap()
}

fn promotion_advert() -> Vec<u8> {
    let mut instance = instance(A);
    instance.startup(now());
    instance.promote(now());
    std::iter::from_fn(|| instance.poll_output())
        .find_map(|output| match output {
            Output::SendAdvert { payload, .. } => Some(payload),
            _ => None,
        })
        .unwrap()
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn an_advert_leaves_with_the_bytes_of_the_rfc() {
    Pair::run(|pair| {
        let capture = pair.capture_on_vb();
        let socket = AdvertSocket::open(&pair.va(), A).unwrap();
        socket.send(&promotion_advert()).unwrap();
        // IGMP joins of the group are IP too
        let frame = loop {
            let frame = capture.next(0x0800, SOON).expect("no advert on the wire");
            if frame[23] == 112 {
                break frame;
            }
        };
        assert_eq!(frame[..6], [0x01, 0, 0x5e, 0, 0, 0x12], "group MAC");
        assert_eq!(frame[14..16], [0x45, 0xc0], "version, header length, TOS");
        assert_eq!(frame[16..18], [0, 32], "total length");
        assert_eq!(frame[22..24], [255, 112], "TTL, protocol");
        assert_eq!(frame[26..34], [10, 99, 0, 1, 224, 0, 0, 18]);
        // as captured from keepalived with the same settings
        let advert = [0x31, 0x33, 0xc8, 0x01, 0x00, 0x0a, 0x11, 0x07, 0x0a, 0x63, 0x00, 0x64];
        assert_eq!(frame[34..46], advert);
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn an_advert_arrives_at_the_other_node_and_not_at_ourselves() {
    Pair::run(|pair| {
        let mut a = AdvertSocket::open(&pair.va(), A).unwrap();
        let vb = pair.vb();
        pair.enter_b();
        let mut b = AdvertSocket::open(&vb, B).unwrap();
        pair.enter_a();
        a.send(&promotion_advert()).unwrap();
        assert!(readable(&b, SOON), "nothing arrived");
        let datagram = b.receive().unwrap().unwrap();
        assert_eq!((datagram.source, datagram.ttl), (A, 255));
        assert_eq!(datagram.destination, crate::config::GROUP_V4);
        let mut backup = instance(B);
        backup.startup(now());
        assert_eq!(backup.handle_advert(now(), &datagram.received()), Ok(()));
        assert_eq!(backup.state(), State::Backup);
        assert_eq!(backup.active_router(), Some(A.into()));
        assert_eq!(b.receive().unwrap(), None);
        assert_eq!(a.receive().unwrap(), None, "our own advert came back");
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn other_ttls_and_protocols_are_told_apart() {
    Pair::run(|pair| {
        let va = pair.va();
        let mut a = AdvertSocket::open(&va, A).unwrap();
        pair.enter_b();
        let forged = socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::RAW,
            Some(socket2::Protocol::from(112)),
        )
        .unwrap();
        forged.set_multicast_if_v4(&B).unwrap();
        forged.set_multicast_ttl_v4(254).unwrap();
        let group = std::net::SocketAddr::from((crate::config::GROUP_V4, 0)).into();
        forged.send_to(&promotion_advert(), &group).unwrap();
        pair.enter_a();
        assert!(readable(&a, SOON));
        let datagram = a.receive().unwrap().unwrap();
        let mut ours = instance(A);
        ours.startup(now());
        let got = ours.handle_advert(now(), &datagram.received());
        assert_eq!(got, Err(crate::Refusal::HopLimit(254)));
        // longer than any advert: cut, therefore no whole datagram, therefore skipped
        forged.set_multicast_ttl_v4(255).unwrap();
        forged.send_to(&[0x31; 6000], &group).unwrap();
        forged.send_to(&[0x31; 8], &group).unwrap();
        assert!(readable(&a, SOON));
        until("the short one", || match a.receive().unwrap() {
            Some(datagram) => {
                assert_eq!(datagram.payload.len(), 8);
                true
            }
            None => false,
        });
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn gratuitous_arp_leaves_and_is_believed() {
    Pair::run(|pair| {
        let capture = pair.capture_on_vb();
        pair.enter_b();
        // a stale neighbour entry, as after a failover
        ip("neigh replace 10.99.0.100 lladdr 02:00:00:00:00:99 dev vb nud stale");
        pair.enter_a();
        let sender = FrameSender::open(&pair.va()).unwrap();
        sender.announce(&[VIP.into()]).unwrap();
        let frame = capture.next(0x0806, SOON).expect("no ARP on the wire");
        assert_eq!(frame, crate::arp::gratuitous_arp([2, 0, 0, 0, 0, 0x0a], VIP));
        pair.enter_b();
        until("the neighbour's new MAC", || {
            ip("neigh show 10.99.0.100").contains("02:00:00:00:00:0a")
        });
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn an_unsolicited_advertisement_is_believed() {
    Pair::run(|pair| {
        let vip: std::net::Ipv6Addr = "2001:db8::64".parse().unwrap();
        pair.enter_b();
        ip("addr add 2001:db8::2/64 dev vb nodad");
        ip("neigh replace 2001:db8::64 lladdr 02:00:00:00:00:99 dev vb nud stale");
        pair.enter_a();
        let sender = FrameSender::open(&pair.va()).unwrap();
        sender.announce(&[vip.into()]).unwrap();
        pair.enter_b();
        until("the neighbour's new MAC", || {
            ip("neigh show 2001:db8::64").contains("02:00:00:00:00:0a")
        });
    });
}

#[test]
#[ignore = "needs CAP_NET_ADMIN: cargo xtask test"]
fn what_cannot_work_is_said_with_the_way_out() {
    Pair::run(|pair| {
        let va = pair.va();
        let error = AdvertSocket::open(&va, VIP).unwrap_err().to_string();
        assert!(error.contains("va with source 10.99.0.100"), "{error}");
        assert!(error.contains("no such address"), "{error}");
        let gone = Interface { name: "nosuch0".into(), index: 4242, ..va };
        let error = AdvertSocket::open(&gone, A).unwrap_err().to_string();
        assert!(error.contains("nosuch0") && error.contains("no such interface"), "{error}");
        let error = FrameSender::open(&gone).unwrap_err().to_string();
        assert!(error.contains("nosuch0") && error.contains("no such interface"), "{error}");
        let lo = Netlink::open().unwrap().interface("lo").unwrap();
        let error = FrameSender::open(&lo).unwrap_err().to_string();
        assert!(error.contains("not an Ethernet interface"), "{error}");
        // a socket whose interface goes down says so, and works again when it is back
        let va = pair.va();
        let mut socket = AdvertSocket::open(&va, A).unwrap();
        ip("link set va down");
        assert!(socket.send(&[0; 8]).is_err());
        while let Err(e) = socket.receive() {
            assert_eq!(e.errno(), Some(libc::ENETDOWN), "{e}");
        }
        ip("link set va up");
        until("sending again", || socket.send(&promotion_advert()).is_ok());
    });
}
