//! Bounds-checked views of a frame. Each reads what it needs in one piece and keeps no reference.

mod arp;
mod checksum;
mod eth;
mod ipv4;

pub use arp::{Arp, OP_REPLY, OP_REQUEST, Truncated};
pub use checksum::internet_checksum;
pub use eth::{Ethernet, TYPE_ARP, TYPE_IPV4};
pub use ipv4::{HeaderError, Ipv4View, PROTOCOL_UDP, Ports};

/// A frame that can be read. In the kernel an implementation compares with `data_end` on each read,
/// which is what its verifier wants to see; in user space it is a slice.
pub trait Frame {
    /// `N` bytes at `offset`; `None` beyond the end.
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

/// A frame that can be rewritten in place.
pub trait FrameMut: Frame {
    /// Writes `bytes` at `offset`; `None`, and nothing written, beyond the end.
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;
}

impl Frame for [u8] {
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

impl FrameMut for [u8] {
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        *self.get_mut(offset..)?.first_chunk_mut()? = bytes;
        Some(())
    }
}
