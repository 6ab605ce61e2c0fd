//! The pure verdict: what happens to a frame.
//!
//! Nothing is dropped but what this file names; what is not understood is passed, so that Tandem on
//! an interface changes nothing for others. The order of rules:
//!
//! 1. ARP that claims a VIP (sender = VIP) passes; from another MAC while this node answers for the
//!    VIP it is a conflict, and an event.
//! 2. ARP requests for a VIP are answered when this node answers for it and its lease is valid, and
//!    dropped otherwise: then the other node answers. Either way the asker is remembered.
//! 3. UDP to memcached's port on a VIP is dropped.
//! 4. Everything else passes.

use crate::abi::{Asker, Conflict, Control, Ipv4, Mac, Reason, Vip};
use crate::packet::{
    Arp, Ethernet, Frame, FrameMut, HeaderError, Ipv4View, OP_REPLY, OP_REQUEST, PROTOCOL_UDP,
    Ports, TYPE_ARP, TYPE_IPV4,
};

/// The port whose UDP service was the largest amplifier ever seen (up to 51,000-fold).
const MEMCACHED_PORT: u16 = 11211;

/// What a verdict may look at besides the frame.
pub trait Tables {
    /// The entry of an address.
    fn vip(&self, address: Ipv4) -> Option<Vip>;
    /// Whether this node answers for the VIP in `slot`.
    fn answers(&self, slot: u32) -> bool;
    /// The end of this node's lease.
    fn control(&self) -> Control;
    /// Now: CLOCK_MONOTONIC, nanoseconds. Asked only when an answer depends on it.
    fn now_ns(&self) -> u64;
    /// The interface that the frame came in by.
    fn ifindex(&self) -> u32;
}

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Let the kernel have it.
    Pass(Reason),
    /// Let the kernel have it, and tell user space.
    Conflict(Conflict),
    /// Turn the request into its reply and send it back.
    ArpReply(ArpReply),
    /// Drop it: a question that is not answered here.
    Withhold(Withheld),
    /// Drop it.
    Drop(Reason),
}

impl Verdict {
    /// The counter that it raises.
    #[inline(always)]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Pass(reason) | Self::Drop(reason) => *reason,
            Self::Conflict(_) => Reason::ArpConflict,
            Self::ArpReply(_) => Reason::ArpAnswered,
            Self::Withhold(withheld) => withheld.reason,
        }
    }

    /// Who asked for a VIP by this frame, to be remembered; with `now_ns` as the time. Not one that
    /// has no address yet (RFC 5227's probe).
    #[inline(always)]
    pub fn asker(&self, now_ns: u64) -> Option<Asker> {
        let (address, mac, ifindex) = match self {
            Self::ArpReply(reply) => (reply.asker, reply.asker_mac, reply.vip.ifindex),
            Self::Withhold(withheld) => (withheld.asker, withheld.asker_mac, withheld.ifindex),
            Self::Pass(_) | Self::Conflict(_) | Self::Drop(_) => return None,
        };
        let known = u32::from_be_bytes(address) != 0;
        known.then_some(Asker { at_ns: now_ns, ifindex, address, mac, reserved: [0; 2] })
    }
}

/// A question for a VIP that another node answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Withheld {
    /// Why not here.
    pub reason: Reason,
    /// The interface that it came by.
    pub ifindex: u32,
    /// Who asked.
    pub asker: Ipv4,
    /// Who asked.
    pub asker_mac: Mac,
}

/// The answer to a request, to be written over it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArpReply {
    /// The VIP's entry: our MAC, and where the answer leaves.
    pub vip: Vip,
    /// The address asked for.
    pub address: Ipv4,
    /// Who asked.
    pub asker: Ipv4,
    /// Who asked.
    pub asker_mac: Mac,
    /// Where ARP begins in the frame.
    pub offset: usize,
}

impl ArpReply {
    /// Rewrites the request in `frame` into this reply; a tag and the padding stay. `None`: the
    /// frame is not the one that was decided upon.
    #[inline(always)]
    pub fn write<F: FrameMut + ?Sized>(&self, frame: &mut F) -> Option<()> {
        let [a0, a1, a2, a3, a4, a5] = self.asker_mac;
        let [m0, m1, m2, m3, m4, m5] = self.vip.mac;
        let [v0, v1, v2, v3] = self.address;
        let [s0, s1, s2, s3] = self.asker;
        let [o0, o1] = OP_REPLY.to_be_bytes();
        // RFC 826: swap the fields, own hardware address as the sender's, operation = reply.
        frame.put(0, [a0, a1, a2, a3, a4, a5, m0, m1, m2, m3, m4, m5])?;
        frame.put(
            self.offset + 6,
            [
                o0, o1, m0, m1, m2, m3, m4, m5, v0, v1, v2, v3, a0, a1, a2, a3, a4, a5, s0, s1, s2,
                s3,
            ],
        )
    }
}

/// Decides what happens to `frame`.
#[inline(always)]
pub fn decide<F: Frame + ?Sized, T: Tables>(frame: &F, tables: &T) -> Verdict {
    let Some(eth) = Ethernet::read(frame) else { return Verdict::Pass(Reason::Short) };
    match eth.ethertype {
        TYPE_ARP => decide_arp(frame, &eth, tables),
        TYPE_IPV4 => decide_ipv4(frame, &eth, tables),
        _ => Verdict::Pass(Reason::OtherProtocol),
    }
}

#[inline(always)]
fn decide_arp<F: Frame + ?Sized, T: Tables>(frame: &F, eth: &Ethernet, tables: &T) -> Verdict {
    let arp = match Arp::read(frame, eth.payload) {
        Ok(Some(arp)) => arp,
        Ok(None) => return Verdict::Pass(Reason::ArpOther),
        Err(_) => return Verdict::Pass(Reason::Short),
    };
    if let Some(vip) = here(arp.sender, eth, tables) {
        let is_ours = arp.sender_mac == vip.mac;
        if !is_ours && tables.answers(vip.slot) && tables.control().may_answer(tables.now_ns()) {
            return Verdict::Conflict(Conflict {
                vip: arp.sender,
                ifindex: vip.ifindex,
                mac: arp.sender_mac,
                reserved: [0; 2],
            });
        }
        return Verdict::Pass(Reason::ArpClaim);
    }
    let Some(vip) = here(arp.target, eth, tables) else {
        return Verdict::Pass(Reason::ArpOther);
    };
    // A reply would go to the sender's address: never to a group, never for a frame that was sent
    // to another station and reached us by flooding.
    let to_us = is_group(eth.destination) || eth.destination == vip.mac;
    if arp.operation != OP_REQUEST || is_group(arp.sender_mac) || !to_us {
        return Verdict::Pass(Reason::ArpOther);
    }
    let withhold = |reason| {
        let (asker, asker_mac) = (arp.sender, arp.sender_mac);
        Verdict::Withhold(Withheld { reason, ifindex: vip.ifindex, asker, asker_mac })
    };
    if !tables.answers(vip.slot) {
        return withhold(Reason::ArpBackup);
    }
    if !tables.control().may_answer(tables.now_ns()) {
        return withhold(Reason::ArpStale);
    }
    Verdict::ArpReply(ArpReply {
        vip,
        address: arp.target,
        asker: arp.sender,
        asker_mac: arp.sender_mac,
        offset: eth.payload,
    })
}

#[inline(always)]
fn decide_ipv4<F: Frame + ?Sized, T: Tables>(frame: &F, eth: &Ethernet, tables: &T) -> Verdict {
    let ip = match Ipv4View::read(frame, eth.payload) {
        Ok(ip) => ip,
        Err(HeaderError::Truncated) => return Verdict::Pass(Reason::Short),
        Err(HeaderError::Malformed) => return Verdict::Pass(Reason::Ipv4Malformed),
    };
    if tables.vip(ip.destination).is_none() {
        return Verdict::Pass(Reason::Ipv4Other);
    }
    if ip.later_fragment {
        return Verdict::Pass(Reason::Ipv4Fragment);
    }
    if ip.protocol != PROTOCOL_UDP {
        return Verdict::Pass(Reason::Ipv4Vip);
    }
    match Ports::read(frame, eth.payload + ip.header_length) {
        Some(ports) if ports.destination == MEMCACHED_PORT => Verdict::Drop(Reason::UdpMemcached),
        Some(_) => Verdict::Pass(Reason::Ipv4Vip),
        None => Verdict::Pass(Reason::Short),
    }
}

/// The VIP's entry, when `address` is one that is answered for on this interface and VLAN.
#[inline(always)]
fn here<T: Tables>(address: Ipv4, eth: &Ethernet, tables: &T) -> Option<Vip> {
    let vip = tables.vip(address)?;
    (vip.ifindex == tables.ifindex() && vip.vlan == eth.vlan).then_some(vip)
}

/// Whether `mac` is a group address (multicast, broadcast): its first byte is odd.
#[inline(always)]
fn is_group(mac: Mac) -> bool {
    let [first, ..] = mac;
    first & 1 == 1
}

#[cfg(test)]
mod tests;
