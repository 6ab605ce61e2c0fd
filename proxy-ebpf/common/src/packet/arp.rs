//! ARP for IPv4 on Ethernet (RFC 826).

use super::{Frame, TYPE_IPV4};
use crate::abi::{Ipv4, Mac};

/// Operation of a request.
pub const OP_REQUEST: u16 = 1;
/// Operation of a reply.
pub const OP_REPLY: u16 = 2;
/// Hardware type Ethernet.
const HARDWARE_ETHERNET: u16 = 1;

/// A whole ARP packet for IPv4 on Ethernet: 28 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// [`OP_REQUEST`], [`OP_REPLY`] or something else.
    pub operation: u16,
    /// Sender hardware address.
    pub sender_mac: Mac,
    /// Sender protocol address.
    pub sender: Ipv4,
    /// Target protocol address.
    pub target: Ipv4,
}

impl Arp {
    /// Reads a packet at `offset`. `Ok(None)`: whole, but not for IPv4 on Ethernet.
    ///
    /// # Errors
    /// The frame ends inside it.
    #[inline(always)]
    pub fn read<F: Frame + ?Sized>(frame: &F, offset: usize) -> Result<Option<Self>, Truncated> {
        let Some(bytes) = frame.bytes::<28>(offset) else { return Err(Truncated) };
        let [h0, h1, p0, p1, hl, pl, o0, o1, s @ .., _, _, _, _, _, _, t0, t1, t2, t3] = bytes;
        let [m0, m1, m2, m3, m4, m5, s0, s1, s2, s3] = s;
        let is_ours = u16::from_be_bytes([h0, h1]) == HARDWARE_ETHERNET
            && u16::from_be_bytes([p0, p1]) == TYPE_IPV4
            && hl == 6
            && pl == 4;
        Ok(is_ours.then_some(Self {
            operation: u16::from_be_bytes([o0, o1]),
            sender_mac: [m0, m1, m2, m3, m4, m5],
            sender: [s0, s1, s2, s3],
            target: [t0, t1, t2, t3],
        }))
    }
}

/// The frame ended inside the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;
