//! The IPv4 header (RFC 791) and the ports behind it.

use super::Frame;
use crate::abi::Ipv4;

/// Protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// The 13 bits of a fragment's offset.
const FRAGMENT_OFFSET_MASK: u16 = 0x1fff;

/// What is needed of an IPv4 header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4View {
    /// Destination address.
    pub destination: Ipv4,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Whether this is a fragment other than a datagram's first: it has no ports.
    pub later_fragment: bool,
    /// Length of the header: 20 to 60 bytes.
    pub header_length: usize,
}

/// Why a header is not one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// The frame ends inside it.
    Truncated,
    /// The version is not 4, the header length below 20, or the total length below the header's.
    Malformed,
}

impl Ipv4View {
    /// Reads a header at `offset`. Its checksum is left to the stack that will deliver it.
    ///
    /// # Errors
    /// See [`HeaderError`].
    #[inline(always)]
    pub fn read<F: Frame + ?Sized>(frame: &F, offset: usize) -> Result<Self, HeaderError> {
        let Some(bytes) = frame.bytes::<20>(offset) else { return Err(HeaderError::Truncated) };
        let [vi, _, l0, l1, _, _, f0, f1, _, protocol, _, _, _, _, _, _, d0, d1, d2, d3] = bytes;
        let header_length = usize::from(vi & 0x0f) * 4;
        let total_length = usize::from(u16::from_be_bytes([l0, l1]));
        if vi >> 4 != 4 || header_length < 20 || total_length < header_length {
            return Err(HeaderError::Malformed);
        }
        Ok(Self {
            destination: [d0, d1, d2, d3],
            protocol,
            later_fragment: u16::from_be_bytes([f0, f1]) & FRAGMENT_OFFSET_MASK != 0,
            header_length,
        })
    }
}

/// The ports of a UDP datagram or a TCP segment: in both the first four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// From where.
    pub source: u16,
    /// To where.
    pub destination: u16,
}

impl Ports {
    /// Reads them at `offset`; `None` when the frame ends before.
    #[inline(always)]
    pub fn read<F: Frame + ?Sized>(frame: &F, offset: usize) -> Option<Self> {
        let [s0, s1, d0, d1] = frame.bytes::<4>(offset)?;
        Some(Self {
            source: u16::from_be_bytes([s0, s1]),
            destination: u16::from_be_bytes([d0, d1]),
        })
    }
}
