extern crate std;

use std::vec::Vec;

use proptest::prelude::*;

use super::*;

/// How long the lease is, from the time of an `age_ns` of 0.
const LEASE_NS: u64 = 30_000_000;
const VIP: Ipv4 = [192, 0, 2, 100];
const OURS: Mac = [2, 0, 0, 0, 0, 1];
const CLIENT: Mac = [2, 0, 0, 0, 0, 9];
const CLIENT_IP: Ipv4 = [192, 0, 2, 9];

struct Fixed {
    answers: bool,
    age_ns: u64,
    ifindex: u32,
}

impl Tables for Fixed {
    fn vip(&self, address: Ipv4) -> Option<Vip> {
        let vip = Vip { slot: 3, ifindex: 7, tx_ifindex: 0, vlan: 0, mac: OURS };
        (address == VIP).then_some(vip)
    }
    fn answers(&self, slot: u32) -> bool {
        self.answers && slot == 3
    }
    fn control(&self) -> Control {
        Control { answer_until_ns: 1_000_000_000 + LEASE_NS }
    }
    fn now_ns(&self) -> u64 {
        1_000_000_000 + self.age_ns
    }
    fn ifindex(&self) -> u32 {
        self.ifindex
    }
}

const MASTER: Fixed = Fixed { answers: true, age_ns: 0, ifindex: 7 };
const BACKUP: Fixed = Fixed { answers: false, age_ns: 0, ifindex: 7 };

fn arp(to: Mac, operation: u16, sender: (Mac, Ipv4), target: Ipv4) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(to);
    frame.extend(sender.0);
    frame.extend([0x08, 0x06, 0, 1, 8, 0, 6, 4]);
    frame.extend(operation.to_be_bytes());
    frame.extend(sender.0);
    frame.extend(sender.1);
    frame.extend([0; 6]);
    frame.extend(target);
    frame.resize(60, 0);
    frame
}

fn request() -> Vec<u8> {
    arp([0xff; 6], OP_REQUEST, (CLIENT, CLIENT_IP), VIP)
}

fn tagged(frame: &[u8], tag: u16) -> Vec<u8> {
    let [t0, t1] = tag.to_be_bytes();
    [&frame[..12], &[0x81, 0, t0, t1], &frame[12..]].concat()
}

fn withheld(reason: Reason) -> Verdict {
    let (asker, asker_mac) = (CLIENT_IP, CLIENT);
    Verdict::Withhold(Withheld { reason, ifindex: 7, asker, asker_mac })
}

fn is_reply(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::ArpReply(_))
}

#[test]
fn the_master_turns_a_request_into_a_reply_in_place() {
    let mut frame = request();
    let Verdict::ArpReply(reply) = decide(&frame[..], &MASTER) else { panic!("no reply") };
    reply.write(&mut frame[..]).unwrap();
    let mut expected = arp(CLIENT, OP_REPLY, (OURS, VIP), CLIENT_IP);
    expected[32..38].copy_from_slice(&CLIENT);
    assert_eq!(frame, expected);
}

#[test]
fn a_backup_and_a_node_whose_lease_has_ended_drop_requests() {
    assert_eq!(decide(&request()[..], &BACKUP), withheld(Reason::ArpBackup));
    for (age_ns, valid) in [(0, true), (LEASE_NS - 1, true), (LEASE_NS, false)] {
        let verdict = decide(&request()[..], &Fixed { age_ns, ..MASTER });
        assert_eq!(is_reply(verdict), valid, "{age_ns}");
        assert_eq!(verdict == withheld(Reason::ArpStale), !valid, "{age_ns}");
    }
}

#[test]
fn who_asks_for_a_vip_is_remembered_whoever_answers() {
    let client = Asker { at_ns: 5, ifindex: 7, address: CLIENT_IP, mac: CLIENT, reserved: [0; 2] };
    let stale = Fixed { age_ns: LEASE_NS, ..MASTER };
    for tables in [&MASTER, &BACKUP, &stale] {
        assert_eq!(decide(&request()[..], tables).asker(5), Some(client));
        let probe = arp([0xff; 6], OP_REQUEST, (CLIENT, [0; 4]), VIP);
        assert_eq!(decide(&probe[..], tables).asker(5), None, "it has no address yet");
        let claim = arp([0xff; 6], OP_REPLY, (CLIENT, VIP), VIP);
        assert_eq!(decide(&claim[..], tables).asker(5), None, "a claim asks nothing");
        let other = arp([0xff; 6], OP_REQUEST, (CLIENT, CLIENT_IP), [192, 0, 2, 7]);
        assert_eq!(decide(&other[..], tables).asker(5), None, "nor is another address ours");
    }
}

#[test]
fn only_the_vips_own_interface_and_vlan_answer() {
    let elsewhere = Fixed { ifindex: 8, ..MASTER };
    assert_eq!(decide(&request()[..], &elsewhere), Verdict::Pass(Reason::ArpOther));
    let other_vlan = tagged(&request(), 5);
    assert_eq!(decide(&other_vlan[..], &MASTER), Verdict::Pass(Reason::ArpOther));
    // VLAN 0 is a priority tag: the frame belongs to no VLAN (802.1Q §6.9), and its tag stays.
    let mut priority = tagged(&request(), 0xe000);
    let Verdict::ArpReply(reply) = decide(&priority[..], &MASTER) else { panic!("no reply") };
    reply.write(&mut priority[..]).unwrap();
    assert_eq!(priority[12..16], [0x81, 0, 0xe0, 0]);
    assert_eq!(priority[24..26], OP_REPLY.to_be_bytes());
}

#[test]
fn a_claim_by_another_is_a_conflict_for_the_master_only() {
    let other: Mac = [2, 0, 0, 0, 0, 2];
    for operation in [OP_REQUEST, OP_REPLY] {
        let claim = arp([0xff; 6], operation, (other, VIP), VIP);
        let conflict = Conflict { vip: VIP, ifindex: 7, mac: other, reserved: [0; 2] };
        assert_eq!(decide(&claim[..], &MASTER), Verdict::Conflict(conflict));
        assert_eq!(decide(&claim[..], &BACKUP), Verdict::Pass(Reason::ArpClaim));
        let echo = arp([0xff; 6], operation, (OURS, VIP), VIP);
        assert_eq!(decide(&echo[..], &MASTER), Verdict::Pass(Reason::ArpClaim));
    }
}

#[test]
fn a_probe_of_somebody_who_wants_the_address_is_answered() {
    // RFC 5227 §2.1.1: sender protocol address all zeros; the owner must defend the address.
    let probe = arp([0xff; 6], OP_REQUEST, (CLIENT, [0; 4]), VIP);
    assert!(is_reply(decide(&probe[..], &MASTER)));
}

#[test]
fn what_is_no_request_to_us_passes() {
    let unicast_to_us = arp(OURS, OP_REQUEST, (CLIENT, CLIENT_IP), VIP);
    assert!(is_reply(decide(&unicast_to_us[..], &MASTER)));
    let mut not_ethernet = request();
    not_ethernet[15] = 6;
    for (what, frame) in [
        ("a reply", arp(OURS, OP_REPLY, (CLIENT, CLIENT_IP), VIP)),
        ("another target", arp([0xff; 6], OP_REQUEST, (CLIENT, CLIENT_IP), [192, 0, 2, 7])),
        ("a group as sender", arp([0xff; 6], OP_REQUEST, ([1, 0, 0, 0, 0, 9], CLIENT_IP), VIP)),
        ("flooded to us", arp([2, 0, 0, 0, 0, 7], OP_REQUEST, (CLIENT, CLIENT_IP), VIP)),
        ("another hardware type", not_ethernet),
    ] {
        assert_eq!(decide(&frame[..], &MASTER), Verdict::Pass(Reason::ArpOther), "{what}");
    }
}

fn udp(destination: Ipv4, port: u16, change: impl FnOnce(&mut Vec<u8>)) -> Verdict {
    let mut frame = Vec::new();
    frame.extend(OURS);
    frame.extend(CLIENT);
    frame.extend([0x08, 0, 0x45, 0, 0, 36, 0, 0, 0, 0, 64, PROTOCOL_UDP, 0, 0]);
    frame.extend(CLIENT_IP);
    frame.extend(destination);
    frame.extend([0x9c, 0x40]);
    frame.extend(port.to_be_bytes());
    frame.extend([0, 16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    change(&mut frame);
    decide(&frame[..], &MASTER)
}

#[test]
fn udp_to_memcached_on_a_vip_is_dropped_and_nothing_else_is() {
    let same = |_: &mut Vec<u8>| {};
    let options = |frame: &mut Vec<u8>| {
        frame[14] = 0x46;
        frame.splice(34..34, [1, 1, 1, 0]);
    };
    assert_eq!(udp(VIP, 11211, same), Verdict::Drop(Reason::UdpMemcached));
    assert_eq!(udp(VIP, 11211, options), Verdict::Drop(Reason::UdpMemcached));
    assert_eq!(udp(VIP, 11211, |f| *f = tagged(f, 5)), Verdict::Drop(Reason::UdpMemcached));
    assert_eq!(udp(VIP, 53, same), Verdict::Pass(Reason::Ipv4Vip));
    assert_eq!(udp(CLIENT_IP, 11211, same), Verdict::Pass(Reason::Ipv4Other));
    assert_eq!(udp(VIP, 11211, |f| f[23] = 6), Verdict::Pass(Reason::Ipv4Vip), "TCP");
    assert_eq!(udp(VIP, 11211, |f| f[21] = 1), Verdict::Pass(Reason::Ipv4Fragment));
    assert_eq!(udp(VIP, 11211, |f| f[20] = 0x20), Verdict::Drop(Reason::UdpMemcached), "first");
    assert_eq!(udp(VIP, 11211, |f| f[14] = 0x44), Verdict::Pass(Reason::Ipv4Malformed));
    assert_eq!(udp(VIP, 11211, |f| f[14] = 0x65), Verdict::Pass(Reason::Ipv4Malformed));
    assert_eq!(udp(VIP, 11211, |f| f[17] = 19), Verdict::Pass(Reason::Ipv4Malformed));
    assert_eq!(udp(VIP, 11211, |f| f.truncate(37)), Verdict::Pass(Reason::Short));
    assert_eq!(udp(VIP, 11211, |f| f.truncate(33)), Verdict::Pass(Reason::Short));
}

#[test]
fn a_frame_cut_anywhere_is_passed_as_short() {
    for length in 0..42 {
        assert_eq!(decide(&request()[..length], &MASTER), Verdict::Pass(Reason::Short), "{length}");
    }
    assert!(is_reply(decide(&request()[..42], &MASTER)));
    assert_eq!(decide(&[0_u8; 14][..], &MASTER), Verdict::Pass(Reason::OtherProtocol));
}

fn nearly_arp() -> impl Strategy<Value = Vec<u8>> {
    let flips = prop::collection::vec((0_usize..64, any::<u8>()), 0..4);
    (flips, 0_usize..80, any::<bool>()).prop_map(|(flips, length, vlan)| {
        let mut frame = if vlan { tagged(&request(), 0) } else { request() };
        for (at, value) in flips {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(length);
        frame
    })
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict(frame in prop::collection::vec(any::<u8>(), 0..200)) {
        decide(&frame[..], &MASTER).reason();
    }

    #[test]
    fn a_reply_keeps_the_length_goes_to_the_asker_and_names_our_address(frame in nearly_arp()) {
        let verdict = decide(&frame[..], &MASTER);
        if let Verdict::ArpReply(reply) = verdict {
            let mut answer = frame.clone();
            prop_assert!(reply.write(&mut answer[..]).is_some());
            prop_assert_eq!(answer.len(), frame.len());
            prop_assert_eq!(&answer[..6], &reply.asker_mac[..]);
            prop_assert_eq!(&answer[6..12], &OURS[..]);
            let again = decide(&answer[..], &Fixed { ifindex: 7, ..MASTER });
            prop_assert_eq!(again, Verdict::Pass(Reason::ArpClaim));
        }
        prop_assert!(!is_reply(decide(&frame[..], &BACKUP)));
    }
}
