//! Ethernet II with at most one 802.1Q tag.

use super::Frame;
use crate::abi::Mac;

/// EtherType of IPv4.
pub const TYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const TYPE_ARP: u16 = 0x0806;
/// EtherType of an 802.1Q tag.
const TYPE_VLAN: u16 = 0x8100;
/// The 12 bits of a tag that name the VLAN (802.1Q §9.6).
const VLAN_MASK: u16 = 0x0fff;

/// The head of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// To whom.
    pub destination: Mac,
    /// EtherType of the payload, behind the tag if there is one.
    pub ethertype: u16,
    /// VLAN of the tag; 0 without one, and for a tag that only carries a priority.
    pub vlan: u16,
    /// Where the payload begins: 14 or 18.
    pub payload: usize,
}

impl Ethernet {
    /// Reads the head; `None` when the frame is shorter.
    #[inline(always)]
    pub fn read<F: Frame + ?Sized>(frame: &F) -> Option<Self> {
        let [d0, d1, d2, d3, d4, d5, _, _, _, _, _, _, t0, t1] = frame.bytes::<14>(0)?;
        let destination = [d0, d1, d2, d3, d4, d5];
        let ethertype = u16::from_be_bytes([t0, t1]);
        if ethertype != TYPE_VLAN {
            return Some(Self { destination, ethertype, vlan: 0, payload: 14 });
        }
        let [v0, v1, t0, t1] = frame.bytes::<4>(14)?;
        Some(Self {
            destination,
            ethertype: u16::from_be_bytes([t0, t1]),
            vlan: u16::from_be_bytes([v0, v1]) & VLAN_MASK,
            payload: 18,
        })
    }
}
