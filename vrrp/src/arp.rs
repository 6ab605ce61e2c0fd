//! ARP requests, gratuitous ARP and unsolicited Neighbor Advertisement frames, and when to send the
//! latter two.
//!
//! Frames and times only; `io` sends. Unlike keepalived's five at once and five more
//! after five seconds, a burst is dense at first (a switch may have lost the first frames while
//! it relearned its port) and thin for ever after, so that no neighbour stays wrong for long.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use proxy_common::packet::{Arp, Ethernet, OP_REPLY, OP_REQUEST, TYPE_ARP};

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Length of a gratuitous ARP frame, without link padding.
pub const GARP_LENGTH: usize = 42;
/// Length of an unsolicited Neighbor Advertisement frame.
pub const NA_LENGTH: usize = 14 + 40 + 32;

const BROADCAST: Mac = [0xff; 6];

/// The frame keepalived sends: an ARP *request* (operation 1), broadcast, sender and target
/// protocol address the VIP, target hardware address all ones (RFC 826; RFC 5227 §3 explains why
/// a request). Ethernet II, no VLAN tag.
#[must_use]
pub fn gratuitous_arp(mac: Mac, vip: Ipv4Addr) -> [u8; GARP_LENGTH] {
    let mut frame = [0; GARP_LENGTH];
    let parts: [&[u8]; 7] = [
        &BROADCAST,
        &mac,
        // ARP, Ethernet, IPv4, 6 and 4 byte addresses, request
        &[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1],
        &mac,
        &vip.octets(),
        &BROADCAST,
        &vip.octets(),
    ];
    fill(&mut frame, &parts);
    frame
}

/// Who has `target`, tell `own` (RFC 826): to `to` when its Ethernet address is known, else to all.
#[must_use]
pub fn arp_request(
    mac: Mac,
    own: Ipv4Addr,
    target: Ipv4Addr,
    to: Option<Mac>,
) -> [u8; GARP_LENGTH] {
    let mut frame = [0; GARP_LENGTH];
    let parts: [&[u8]; 7] = [
        &to.unwrap_or(BROADCAST),
        &mac,
        &[0x08, 0x06, 0, 1, 0x08, 0x00, 6, 4, 0, 1],
        &mac,
        &own.octets(),
        &[0; 6],
        &target.octets(),
    ];
    fill(&mut frame, &parts);
    frame
}

/// An ARP packet for IPv4 on Ethernet, as heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// Ethernet destination.
    pub to: Mac,
    /// It is a reply, not a request.
    pub is_reply: bool,
    /// Sender hardware address.
    pub sender_mac: Mac,
    /// Sender protocol address.
    pub sender: Ipv4Addr,
    /// Target protocol address.
    pub target: Ipv4Addr,
}

impl Heard {
    /// Reads a frame; `None` if it is no whole ARP request or reply for IPv4 on Ethernet, or its
    /// sender cannot be one (a group, or all zeros).
    #[must_use]
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let ethernet = Ethernet::read(frame).filter(|head| head.ethertype == TYPE_ARP)?;
        let arp = Arp::read(frame, ethernet.payload).ok().flatten()?;
        let is_station = arp.sender_mac[0] & 1 == 0 && arp.sender_mac != [0; 6];
        let is_reply = match arp.operation {
            OP_REQUEST => false,
            OP_REPLY => true,
            _ => return None,
        };
        is_station.then_some(Self {
            to: ethernet.destination,
            is_reply,
            sender_mac: arp.sender_mac,
            sender: arp.sender.into(),
            target: arp.target.into(),
        })
    }
}

/// Unsolicited Neighbor Advertisement for `vip` (RFC 4861 §7.2.6): to ff02::1, from the VIP, hop
/// limit 255, Override set, Solicited clear, Router as given (RFC 9568 §6.4.1 wants it set where
/// the node forwards), with the target link-layer address option.
#[must_use]
pub fn unsolicited_na(mac: Mac, vip: Ipv6Addr, router: bool) -> [u8; NA_LENGTH] {
    const ALL_NODES: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const ICMPV6: u8 = 58;
    let flags = if router { 0xa0 } else { 0x20 };
    let mut icmp = [0; 32];
    let parts: [&[u8]; 4] = [&[136, 0, 0, 0, flags, 0, 0, 0], &vip.octets(), &[2, 1], &mac];
    fill(&mut icmp, &parts);
    let covered = [&vip.octets()[..], &ALL_NODES, &[0, 0, 0, 32, 0, 0, 0, ICMPV6], &icmp];
    let sum = internet_checksum(&covered);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut frame = [0; NA_LENGTH];
    let parts: [&[u8]; 7] = [
        &[0x33, 0x33, 0, 0, 0, 1],
        &mac,
        &[0x86, 0xdd],
        &[0x60, 0, 0, 0, 0, 32, ICMPV6, 255],
        &vip.octets(),
        &ALL_NODES,
        &icmp,
    ];
    fill(&mut frame, &parts);
    frame
}

/// Copies the parts one after the other; the callers' arrays are as long as their parts.
fn fill(out: &mut [u8], parts: &[&[u8]]) {
    let bytes = parts.iter().copied().flatten();
    for (to, from) in out.iter_mut().zip(bytes) {
        *to = *from;
    }
}

/// RFC 1071 over parts of even length.
fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.as_chunks::<2>().0);
    let mut sum: u32 = words.map(|w| u32::from(u16::from_be_bytes(*w))).sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// Milliseconds after the start of a burst.
const OFFSETS_MS: [u64; 11] = [0, 1, 3, 10, 30, 100, 300, 1_000, 2_000, 5_000, 10_000];
/// After the burst, for as long as the node is master.
const REFRESH: Duration = Duration::from_secs(60);
/// A start this soon after the last leaves the running burst as it is: six of its frames are
/// still to come, so the last word stays ours, and a quarrelling peer cannot make us flood.
const RESTART_GAP: Duration = Duration::from_millis(100);

/// When to send GARP: 0, 1, 3, 10, 30, 100, 300 ms, 1, 2, 5, 10 s after [`Self::start`], then each
/// 60 s until [`Self::cancel`].
///
/// A shell asks [`Self::poll_timeout`], and at that time sends one frame for each address if
/// [`Self::take_due`] says so. Frames missed by a late thread are not made up for: one is sent,
/// and the schedule goes on.
#[derive(Debug, Clone, Default)]
pub struct GarpBurst {
    running: Option<Running>,
}

#[derive(Debug, Clone, Copy)]
struct Running {
    started: Instant,
    /// Index of the next frame.
    step: usize,
    next: Instant,
}

impl GarpBurst {
    /// No burst.
    #[must_use]
    pub const fn new() -> Self {
        Self { running: None }
    }

    /// Starts a burst, or starts it again; the first frame is due at once. Within 100 ms of the
    /// last start the running burst is left as it is.
    pub fn start(&mut self, now: Instant) {
        if self.running.is_none_or(|r| now >= r.started + RESTART_GAP) {
            self.running = Some(Running { started: now, step: 0, next: now });
        }
    }

    /// Stops: a newer master answers for the addresses.
    pub fn cancel(&mut self) {
        self.running = None;
    }

    /// When the next frame is due; `None` unless running.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.running.map(|r| r.next)
    }

    /// True once for each frame that is due at `now`: send it.
    pub fn take_due(&mut self, now: Instant) -> bool {
        let Some(running) = self.running.as_mut().filter(|r| r.next <= now) else { return false };
        while running.next <= now {
            running.step += 1;
            running.next = match OFFSETS_MS.get(running.step) {
                Some(&offset) => running.started + Duration::from_millis(offset),
                None => running.next.max(now.checked_sub(REFRESH).unwrap_or(now)) + REFRESH,
            };
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn gratuitous_arp_is_keepalived_s_to_the_byte() {
        let frame = gratuitous_arp(MAC, Ipv4Addr::new(10, 99, 0, 100));
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 0x08, 0x06, // Ethernet
            0, 1, 0x08, 0x00, 6, 4, 0, 1, // request
            2, 0, 0, 0, 0, 7, 10, 99, 0, 100, // sender
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 10, 99, 0, 100, // target
        ];
        assert_eq!(frame, expected);
    }

    #[test]
    fn a_request_and_what_is_heard_of_it() {
        let (own, target) = (Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 9));
        let frame = arp_request(MAC, own, target, None);
        let expected = [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7, 0x08, 0x06, // Ethernet
            0, 1, 0x08, 0x00, 6, 4, 0, 1, // request
            2, 0, 0, 0, 0, 7, 10, 99, 0, 1, // sender
            0, 0, 0, 0, 0, 0, 10, 99, 0, 9, // target
        ];
        assert_eq!(frame, expected);
        let other = [2, 0, 0, 0, 0, 9];
        let unicast = arp_request(MAC, own, target, Some(other));
        let heard = Heard { to: other, is_reply: false, sender_mac: MAC, sender: own, target };
        assert_eq!(Heard::parse(&unicast), Some(heard));
        let mut reply = unicast;
        reply[21] = 2;
        assert_eq!(Heard::parse(&reply), Some(Heard { is_reply: true, ..heard }));
    }

    #[test]
    fn what_is_no_arp_of_a_station_is_not_heard() {
        let good = arp_request(MAC, Ipv4Addr::LOCALHOST, Ipv4Addr::LOCALHOST, None);
        let change = |at: usize, value: u8| {
            let mut frame = good;
            frame[at] = value;
            frame.to_vec()
        };
        for (what, frame) in [
            ("IPv4", change(13, 0)),
            ("another hardware", change(15, 6)),
            ("an operation of nobody", change(21, 3)),
            ("a group as sender", change(22, 3)),
            ("cut", good[..41].to_vec()),
            ("nothing", vec![]),
            ("nobody as sender", [&good[..22], &[0; 6], &good[28..]].concat()),
        ] {
            assert_eq!(Heard::parse(&frame), None, "{what}");
        }
    }

    #[test]
    fn unsolicited_na_fields_and_checksum() {
        let vip: Ipv6Addr = "2001:db8::64".parse().unwrap();
        let frame = unsolicited_na(MAC, vip, false);
        assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 7, 0x86, 0xdd]);
        assert_eq!(frame[14..22], [0x60, 0, 0, 0, 0, 32, 58, 255]);
        assert_eq!(frame[22..38], vip.octets());
        assert_eq!(frame[38..54], "ff02::1".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(frame[54..56], [136, 0]);
        assert_eq!(frame[58..62], [0x20, 0, 0, 0], "flags O");
        assert_eq!(frame[62..78], vip.octets());
        assert_eq!(frame[78..], [2, 1, 2, 0, 0, 0, 0, 7]);
        // a right checksum sums to zero with the pseudo-header
        let pseudo = [0, 0, 0, 32, 0, 0, 0, 58];
        assert_eq!(internet_checksum(&[&frame[22..54], &pseudo, &frame[54..]]), 0);
        assert_eq!(unsolicited_na(MAC, vip, true)[58], 0xa0);
    }

    fn t0() -> Instant {
        #[expect(clippy::disallowed_methods, reason = "an Instant has no other source")]
        Instant::now()
    }

    #[test]
    fn burst_follows_its_schedule_then_refreshes_each_minute() {
        let t0 = t0();
        let mut burst = GarpBurst::new();
        assert!(!burst.take_due(t0));
        burst.start(t0);
        let mut seen = Vec::new();
        while seen.len() < 14 {
            let at = burst.poll_timeout().unwrap();
            assert!(burst.take_due(at));
            assert!(!burst.take_due(at), "one frame a deadline");
            seen.push((at - t0).as_millis() as u64);
        }
        assert_eq!(seen[..11], OFFSETS_MS);
        assert_eq!(seen[11..], [70_000, 130_000, 190_000]);
        burst.cancel();
        assert_eq!(burst.poll_timeout(), None);
        assert!(!burst.take_due(t0 + Duration::from_secs(1000)));
    }

    #[test]
    fn a_late_thread_sends_one_frame_and_goes_on() {
        let t0 = t0();
        let mut burst = GarpBurst::new();
        burst.start(t0);
        assert!(burst.take_due(t0 + Duration::from_millis(50)));
        assert_eq!(burst.poll_timeout(), Some(t0 + Duration::from_millis(100)));
        let late = t0 + Duration::from_secs(3600);
        assert!(burst.take_due(late));
        let next = burst.poll_timeout().unwrap();
        assert!(next > late && next <= late + REFRESH);
    }

    #[test]
    fn a_second_start_begins_again_but_not_within_100_ms() {
        let t0 = t0();
        let ms = |n| t0 + Duration::from_millis(n);
        let mut burst = GarpBurst::new();
        burst.start(ms(0));
        assert!(burst.take_due(ms(0)));
        burst.start(ms(99));
        assert_eq!(burst.poll_timeout(), Some(ms(1)));
        burst.start(ms(100));
        assert_eq!(burst.poll_timeout(), Some(ms(100)));
        assert!(burst.take_due(ms(100)));
        assert_eq!(burst.poll_timeout(), Some(ms(101)));
        burst.cancel();
        burst.start(ms(102));
        assert_eq!(burst.poll_timeout(), Some(ms(102)), "a cancelled burst starts at once");
    }
}
