//! Who lives on a segment, who of them is to be asked, and what an ARP packet says. Pure: packets
//! and times in, questions and signs out.
//!
//! A host counts as known only when it has answered a question of ours within the last minute, so
//! nobody can fill the segment with hosts that do not exist, and a gateway that has been dead for
//! days is nobody. Hosts that were merely heard are asked in the background until one is known;
//! known ones, and the gateways, are asked each ten seconds.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use vrrp::arp::{Heard, Mac};

use crate::node::Contact;

/// Hosts remembered.
const HOSTS_MAX: usize = 64;
/// Third hosts asked at once.
const ASKED_MAX: usize = 4;
/// How long an answer makes a host known.
const KNOWN: Duration = Duration::from_secs(60);
/// Questions of the background.
const REFRESH: Duration = Duration::from_secs(10);
/// The same while nobody is known.
const SEARCH: Duration = Duration::from_millis(200);
/// A host that is met while nobody is known is asked so soon.
const FIRST: Duration = Duration::from_millis(10);
/// A question is answered within this time, or not at all.
const PATIENCE: Duration = Duration::from_secs(1);
/// Background questions in a row without an answer, after which a host is not known any more.
const MISSES_MAX: u8 = 3;
/// Each so many probes go to everybody, in case a host has another Ethernet address now.
const BROADCAST_EVERY: u32 = 4;

/// What was learned of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::guardian) enum Sign {
    /// A third host answered our question.
    Life,
    /// There is, or there is no longer, a third host to ask.
    Targets(bool),
    /// The peer's address was heard, or somebody claims one of ours.
    Contact(Contact),
}

/// A question to send: who has `address`; to all when `mac` is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) address: Ipv4Addr,
    pub(super) mac: Option<Mac>,
}

/// This node on the segment, as it is now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::guardian) struct Own {
    pub(super) address: Option<Ipv4Addr>,
    pub(super) prefix: u8,
    /// Ethernet addresses of all interfaces of this host.
    pub(super) macs: Vec<Mac>,
    /// Routes by this interface go over them.
    pub(super) gateways: Vec<Ipv4Addr>,
}

impl Own {
    fn has_in_network(&self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix.min(32))).unwrap_or(0);
        let network = |address: Ipv4Addr| u32::from(address) & mask;
        self.address.is_some_and(|own| network(own) == network(address))
    }
}

#[derive(Debug, Clone, Copy)]
struct Host {
    address: Ipv4Addr,
    mac: Option<Mac>,
    /// Heard of, last.
    seen: Instant,
    /// It answered a question, last.
    answered: Option<Instant>,
    asked: Option<Instant>,
    /// Background questions since the last answer.
    misses: u8,
}

impl Host {
    fn is_known(&self, now: Instant) -> bool {
        let recent = self.answered.is_some_and(|at| now < at + KNOWN);
        recent && self.misses < MISSES_MAX
    }
}

/// One segment.
#[derive(Debug)]
pub(super) struct Prober {
    own: Own,
    /// All addresses of all segments that move.
    vips: Vec<Ipv4Addr>,
    /// All addresses of the peer.
    peers: Vec<Ipv4Addr>,
    /// The Ethernet address from which the peer's address was heard last.
    peer_mac: Option<Mac>,
    hosts: Vec<Host>,
    probes: u32,
    refresh_at: Instant,
    told: Option<bool>,
}

impl Prober {
    pub(super) const fn new(now: Instant, vips: Vec<Ipv4Addr>, peers: Vec<Ipv4Addr>) -> Self {
        Self {
            own: Own { address: None, prefix: 0, macs: Vec::new(), gateways: Vec::new() },
            vips,
            peers,
            peer_mac: None,
            hosts: Vec::new(),
            probes: 0,
            refresh_at: now,
            told: None,
        }
    }

    /// The interface is this one now, or has another address, or the routes have changed.
    pub(super) fn rebind(&mut self, now: Instant, own: Own) {
        if self.own != own {
            self.own = own;
            self.refresh_at = now;
            let Self { own, hosts, .. } = self;
            hosts.retain(|host| own.has_in_network(host.address));
            for gateway in self.own.gateways.clone() {
                self.meet(now, gateway, None);
            }
        }
    }

    /// A host that somebody else heard (the XDP program, the kernel) at `seen`.
    pub(super) fn note(&mut self, now: Instant, seen: Instant, address: Ipv4Addr, mac: Mac) {
        if self.peers.contains(&address) {
            self.peer_mac = Some(mac);
        }
        if now.saturating_duration_since(seen) < KNOWN {
            self.meet(seen, address, Some(mac));
        }
    }

    /// The peer's Ethernet address on this segment, as last heard.
    pub(super) const fn peer_mac(&self) -> Option<Mac> {
        self.peer_mac
    }

    /// What this packet says.
    pub(super) fn handle_arp(&mut self, now: Instant, heard: &Heard) -> Option<Sign> {
        let Heard { sender, sender_mac, .. } = *heard;
        if self.own.macs.contains(&sender_mac) {
            return None; // our own, over another interface or reflected
        }
        if self.vips.contains(&sender) {
            return Some(Sign::Contact(Contact::Claim));
        }
        if self.peers.contains(&sender) {
            self.peer_mac = Some(sender_mac);
            self.hosts.retain(|host| host.mac != Some(sender_mac));
            return Some(Sign::Contact(Contact::PeerArp));
        }
        self.meet(now, sender, Some(sender_mac));
        let to_us = heard.is_reply && self.own.address == Some(heard.target);
        let host = self.hosts.iter_mut().find(|host| host.address == sender)?;
        if !to_us || host.asked.is_none_or(|at| now >= at + PATIENCE) {
            return None;
        }
        host.answered = Some(now);
        host.misses = 0;
        Some(Sign::Life)
    }

    /// Questions to third hosts, to the peer's own address, and for the virtual ones, now.
    pub(super) fn probe(&mut self, now: Instant) -> Vec<Ask> {
        let mut asks = self.ask_hosts(now, false);
        let Self { own, vips, peers, peer_mac, .. } = self;
        let peers = peers.iter().filter(|peer| own.has_in_network(**peer));
        asks.extend(peers.map(|peer| Ask { address: *peer, mac: *peer_mac }));
        // and whoever else owns our addresses
        let vips = vips.iter().filter(|vip| own.has_in_network(**vip));
        asks.extend(vips.map(|vip| Ask { address: *vip, mac: None }));
        if self.probes.is_multiple_of(BROADCAST_EVERY) {
            asks.iter_mut().for_each(|ask| ask.mac = None);
        }
        self.probes = self.probes.wrapping_add(1);
        asks
    }

    /// Questions of the background, if they are due.
    pub(super) fn refresh(&mut self, now: Instant) -> Vec<Ask> {
        if now < self.refresh_at {
            return Vec::new();
        }
        let asks = self.ask_hosts(now, true);
        let found = self.hosts.iter().any(|host| host.is_known(now));
        // nobody known, and somebody to try
        let search = !found && self.hosts.iter().any(|host| host.misses < MISSES_MAX);
        self.refresh_at = now + if search { SEARCH } else { REFRESH };
        asks
    }

    /// When [`Self::refresh`] is due.
    pub(super) const fn poll_timeout(&self) -> Instant {
        self.refresh_at
    }

    /// Has a third host answered lately?
    pub(super) fn knows(&self, now: Instant) -> bool {
        self.hosts.iter().any(|host| host.is_known(now))
    }

    /// Whether there is a third host to ask, when that has changed.
    pub(super) fn targets(&mut self, now: Instant) -> Option<Sign> {
        let known = self.knows(now);
        (self.told.replace(known) != Some(known)).then_some(Sign::Targets(known))
    }

    /// Gateways and known hosts first, then who was heard last.
    fn ask_hosts(&mut self, now: Instant, background: bool) -> Vec<Ask> {
        let Self { own, hosts, .. } = self;
        hosts.sort_by_key(|host| {
            let gateway = own.gateways.contains(&host.address);
            let tried = host.misses.min(MISSES_MAX);
            let rank = (!host.is_known(now), !gateway, host.answered.is_none(), tried);
            (rank, now.saturating_duration_since(host.seen))
        });
        let asked = hosts.iter_mut().take(ASKED_MAX).map(|host| {
            host.asked = Some(now);
            if background {
                host.misses = host.misses.saturating_add(1);
            }
            Ask { address: host.address, mac: host.mac }
        });
        asked.collect()
    }

    /// A station of this network that is neither ours nor the peer's.
    fn meet(&mut self, now: Instant, address: Ipv4Addr, mac: Option<Mac>) {
        let theirs = self.vips.contains(&address) || self.peers.contains(&address);
        let peers = mac.is_some() && mac == self.peer_mac;
        let ours = self.own.address == Some(address)
            || mac.is_some_and(|mac| self.own.macs.contains(&mac));
        if theirs || ours || peers || !self.own.has_in_network(address) {
            return;
        }
        if let Some(host) = self.hosts.iter_mut().find(|host| host.address == address) {
            host.mac = mac.or(host.mac);
            if now > host.seen + KNOWN {
                host.misses = 0; // it was away: worth another try
            }
            host.seen = host.seen.max(now);
            return;
        }
        if self.hosts.len() >= HOSTS_MAX {
            let Self { own, hosts, .. } = self;
            let worth = |host: &Host| {
                let gateway = own.gateways.contains(&host.address);
                (gateway, host.answered, host.seen)
            };
            let least = hosts.iter().enumerate().min_by_key(|(_, host)| worth(host));
            if let Some((index, _)) = least {
                hosts.swap_remove(index);
            }
        }
        let host = Host { address, mac, seen: now, answered: None, asked: None, misses: 0 };
        self.hosts.push(host);
        if self.told != Some(true) {
            self.refresh_at = self.refresh_at.min(now + FIRST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
    const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
    const MS: Duration = Duration::from_millis(1);

    fn mac(last: u8) -> Mac {
        [2, 0, 0, 0, 0, last]
    }

    fn host(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    fn own(gateways: &[Ipv4Addr]) -> Own {
        Own { address: Some(OWN), prefix: 24, macs: vec![mac(1)], gateways: gateways.to_vec() }
    }

    fn prober(now: Instant, gateways: &[Ipv4Addr]) -> Prober {
        let mut prober = Prober::new(now, vec![VIP], vec![PEER, Ipv4Addr::new(10, 9, 0, 2)]);
        prober.rebind(now, own(gateways));
        prober
    }

    fn heard(sender: Ipv4Addr, sender_mac: Mac, is_reply: bool) -> Heard {
        Heard { to: mac(1), is_reply, sender_mac, sender, target: OWN }
    }

    fn reply(last: u8) -> Heard {
        heard(host(last), mac(last), true)
    }

    #[test]
    fn who_is_who_by_one_packet() {
        let t = Instant::now();
        let claim = Some(Sign::Contact(Contact::Claim));
        let peer = Some(Sign::Contact(Contact::PeerArp));
        for (what, packet, expected) in [
            ("another's claim", heard(VIP, mac(9), false), claim),
            ("another's answer for it", heard(VIP, mac(9), true), claim),
            ("the peer's claim", heard(VIP, mac(2), false), claim),
            ("our own claim, seen again", heard(VIP, mac(1), false), None),
            ("the peer asks", heard(PEER, mac(2), false), peer),
            ("the peer answers", heard(PEER, mac(2), true), peer),
            ("our own question, seen again", heard(OWN, mac(1), false), None),
            ("an answer to a question of the kernel", reply(9), None),
            ("a question", heard(host(9), mac(9), false), None),
        ] {
            assert_eq!(prober(t, &[]).handle_arp(t, &packet), expected, "{what}");
        }
    }

    #[test]
    fn a_life_is_an_answer_to_our_question_within_its_time() {
        let t = Instant::now();
        let mut prober = prober(t, &[]);
        assert_eq!(prober.targets(t), Some(Sign::Targets(false)));
        prober.handle_arp(t, &heard(host(9), mac(9), false));
        assert_eq!(prober.targets(t), None, "heard is not known");
        let probe = prober.probe(t);
        let asked = [host(9), PEER, VIP].map(|address| Ask { address, mac: None });
        assert_eq!(probe, asked, "the first goes to everybody");
        assert_eq!(prober.probe(t)[0].mac, Some(mac(9)), "the second to it alone");
        assert_eq!(prober.handle_arp(t + 1_000 * MS, &reply(9)), None, "too late");
        prober.probe(t + 1_000 * MS);
        let to_others = Heard { target: host(7), ..reply(9) };
        assert_eq!(prober.handle_arp(t + 1_001 * MS, &to_others), None);
        assert_eq!(prober.handle_arp(t + 1_001 * MS, &reply(9)), Some(Sign::Life));
        assert_eq!(prober.targets(t + 1_001 * MS), Some(Sign::Targets(true)));
        assert_eq!(prober.targets(t + 1_002 * MS), None);
        assert_eq!(prober.targets(t + 61_001 * MS), Some(Sign::Targets(false)), "a minute ago");
        // and it is still asked
        assert_eq!(prober.probe(t + 62_000 * MS)[0].address, host(9));
    }

    #[test]
    fn neither_the_peer_nor_we_are_third_hosts() {
        let t = Instant::now();
        let mut prober = prober(t, &[]);
        // a second address of the peer's, heard before and after its Ethernet address is known
        prober.handle_arp(t, &heard(host(22), mac(2), false));
        assert_eq!(prober.probe(t).len(), 3);
        prober.handle_arp(t, &heard(PEER, mac(2), true));
        prober.handle_arp(t, &heard(host(23), mac(2), true));
        for (address, mac) in [(OWN, mac(1)), (host(40), mac(1)), (VIP, mac(9)), (PEER, mac(2))] {
            prober.note(t, t, address, mac);
        }
        prober.note(t, t, Ipv4Addr::new(10, 0, 1, 9), mac(9));
        prober.note(t + KNOWN, t, host(9), mac(9));
        let asked: Vec<_> = prober.probe(t).iter().map(|ask| ask.address).collect();
        assert_eq!(asked, [PEER, VIP]);
        assert_eq!(prober.handle_arp(t, &heard(host(22), mac(2), true)), None);
    }

    #[test]
    fn a_gateway_is_asked_at_once_and_each_ten_seconds_while_it_answers() {
        let t = Instant::now();
        let mut prober = prober(t, &[GATEWAY]);
        let gateway = |mac| [Ask { address: GATEWAY, mac }];
        assert_eq!(prober.refresh(t), gateway(None));
        assert_eq!(prober.refresh(t), []);
        assert_eq!(prober.handle_arp(t + MS, &reply(254)), Some(Sign::Life));
        assert_eq!(prober.targets(t + MS), Some(Sign::Targets(true)));
        assert_eq!(prober.refresh(t + SEARCH), gateway(Some(mac(254))));
        assert_eq!(prober.handle_arp(t + SEARCH, &reply(254)), Some(Sign::Life));
        assert_eq!(prober.poll_timeout(), t + SEARCH + REFRESH);
        // it is gone: after three questions it is not known, long before the minute is over
        let at = |n: u32| t + SEARCH + REFRESH * n;
        assert_eq!((1..=3).map(|n| prober.refresh(at(n)).len()).sum::<usize>(), 3);
        assert_eq!(prober.targets(at(3)), Some(Sign::Targets(false)));
        // and one that never answers is searched for in vain, slower and slower
        let asked = (0..3_000).map(|n| prober.refresh(at(4) + MS * 10 * n).len()).sum::<usize>();
        assert!(asked <= 5, "{asked}");
    }

    #[test]
    fn strangers_cannot_drive_out_a_host_that_answers() {
        let t = Instant::now();
        let mut prober = prober(t, &[]);
        prober.note(t, t, host(9), mac(9));
        prober.probe(t);
        assert_eq!(prober.handle_arp(t, &reply(9)), Some(Sign::Life));
        for i in 0..200_u8 {
            let forged = heard(host(i), [2, 0, 0, 0, 1, i], false);
            prober.handle_arp(t + MS, &forged);
        }
        assert!(prober.hosts.len() <= HOSTS_MAX);
        let probe = prober.probe(t + MS);
        assert_eq!(probe.len(), ASKED_MAX + 2);
        assert_eq!(probe[0].address, host(9));
    }

    #[test]
    fn another_network_forgets_the_old_one_s_hosts() {
        let t = Instant::now();
        let mut prober = prober(t, &[]);
        prober.note(t, t, host(9), mac(9));
        let moved = Own { address: Some(Ipv4Addr::new(10, 9, 0, 1)), ..own(&[]) };
        prober.rebind(t, moved);
        let asked: Vec<_> = prober.probe(t).iter().map(|ask| ask.address).collect();
        assert_eq!(asked, [Ipv4Addr::new(10, 9, 0, 2)], "the peer's address there");
    }
}
