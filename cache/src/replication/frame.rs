//! The outer form of a replication message: length, checksum, kind, partition, version.
//!
//! ```text
//!  0      4      8     9          10         12        20
//!  | len  | crc  |kind | partition| reserved | version | payload ...
//! ```
//! `len` counts the bytes after itself; `crc` is CRC-32C over everything after itself; numbers are
//! little-endian. What the payload means is `message`'s business. Driven by `message` (both ways)
//! and by [`Deframer`], which the two ends of a link feed with what arrives.

use thiserror::Error;

/// Bytes before the payload.
pub const HEADER: usize = 20;

/// Room for everything in the largest message besides an item's value (bytes).
pub const MARGIN: usize = 64 * 1024;

/// What the peer, or the path to it, did wrong. Never the fault of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PeerMisbehaved {
    /// The frame says that it is larger than the negotiated item limit allows.
    #[error("peer sent a frame of {length} bytes, more than {limit}")]
    FrameTooLarge {
        /// Bytes announced.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The frame is shorter than its own header.
    #[error("peer sent a frame of {length} bytes, shorter than a header")]
    FrameTooShort {
        /// Bytes announced.
        length: usize,
    },
    /// The checksum does not match: the peer or the path damaged the frame.
    #[error("frame from the peer fails its checksum")]
    Checksum,
    /// A kind that this protocol version does not have.
    #[error("peer sent an unknown kind of message: {0}")]
    UnknownKind(u8),
    /// A partition number above 63.
    #[error("peer named partition {0}, the last one is 63")]
    NoSuchPartition(u8),
    /// The payload does not have the form of its kind.
    #[error("peer sent a malformed {kind}: {what}")]
    Malformed {
        /// Kind of the message.
        kind: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// A message that may not come at this point or from that end.
    #[error("peer sent {kind} where it may not")]
    Unexpected {
        /// Kind of the message.
        kind: &'static str,
    },
    /// A record's key does not belong to its partition: the hash keys differ.
    #[error("peer sent a key of another partition: the pair's hash keys differ")]
    WrongPartition,
    /// A record of an epoch lower than the partition's.
    #[error("peer sent a record of epoch {got}, this partition is at {have}")]
    StaleEpoch {
        /// The record's epoch.
        got: u16,
        /// The partition's epoch.
        have: u16,
    },
    /// A record is missing, repeated, or names a version that cannot be.
    #[error("peer sent version {got:#x} after {have:#x}")]
    Gap {
        /// The version that came.
        got: u64,
        /// The partition's place in the stream.
        have: u64,
    },
    /// A record over a link that a newer one has replaced for this partition.
    #[error("peer sent a record over a link that was replaced")]
    StaleSession,
    /// A record for a partition whose sync has not begun on this link.
    #[error("peer sent a record before the sync of its partition began")]
    NotBegun,
    /// An item larger than this node's limit.
    #[error("peer sent an item that is larger than this node allows")]
    ItemTooLarge,
    /// A forwarded connection ran past what it may have unanswered.
    #[error("peer forwarded more than it may have unanswered")]
    ForwardOverrun,
}

/// A frame's parts, the payload borrowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What the payload is.
    pub kind: u8,
    /// Partition, 0 for messages without one.
    pub partition: u8,
    /// Version, epoch or request, by kind.
    pub version: u64,
    /// The rest.
    pub payload: &'a [u8],
}

/// Opens a frame at the end of `out` and returns where it starts; [`finish`] closes it.
pub(crate) fn begin(out: &mut Vec<u8>, kind: u8, partition: u8, version: u64) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&[kind, partition, 0, 0]);
    out.extend_from_slice(&version.to_le_bytes());
    start
}

/// Closes the frame opened at `start`: fills in length and checksum.
pub(crate) fn finish(out: &mut [u8], start: usize) {
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    let crc = crc32c::crc32c(&out[start + 8..]);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// The first frame of `bytes` and how many bytes it takes; `None` until it is complete.
///
/// # Errors
/// A frame above `limit` bytes, too short, or failing its checksum.
pub fn split(bytes: &[u8], limit: usize) -> Result<Option<(Frame<'_>, usize)>, PeerMisbehaved> {
    let Some(total) = total_length(bytes, limit)? else { return Ok(None) };
    if bytes.len() < total {
        return Ok(None);
    }
    let crc = le32(&bytes[4..8]);
    if crc32c::crc32c(&bytes[8..total]) != crc {
        return Err(PeerMisbehaved::Checksum);
    }
    let frame = Frame {
        kind: bytes[8],
        partition: bytes[9],
        version: le64(&bytes[12..20]),
        payload: &bytes[HEADER..total],
    };
    Ok(Some((frame, total)))
}

/// The whole frame's length once its first four bytes are there.
fn total_length(bytes: &[u8], limit: usize) -> Result<Option<usize>, PeerMisbehaved> {
    if bytes.len() < 4 {
        return Ok(None);
    }
    let length = le32(&bytes[..4]) as usize;
    if length > limit {
        return Err(PeerMisbehaved::FrameTooLarge { length, limit });
    }
    if length < HEADER - 4 {
        return Err(PeerMisbehaved::FrameTooShort { length });
    }
    Ok(Some(length + 4))
}

/// Little-endian `u32`; zero when there are not four bytes (callers check lengths first).
pub(crate) fn le32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |b| u32::from_le_bytes(*b))
}

/// Little-endian `u64`; zero when there are not eight bytes (callers check lengths first).
pub(crate) fn le64(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b))
}

/// Cuts arriving bytes into frames; keeps only the incomplete tail, at most one frame.
#[derive(Debug)]
pub struct Deframer {
    carry: Vec<u8>,
    limit: usize,
}

impl Deframer {
    /// A deframer for items of at most `item_limit` bytes.
    #[must_use]
    pub fn new(item_limit: usize) -> Self {
        Self { carry: Vec::new(), limit: item_limit + MARGIN }
    }

    /// Gives each complete frame in what was kept plus `bytes` to `each`, in order.
    ///
    /// # Errors
    /// A damaged frame, or the first error of `each`. After an error the link must be closed.
    pub fn feed<F>(&mut self, mut bytes: &[u8], mut each: F) -> Result<(), PeerMisbehaved>
    where
        F: FnMut(Frame<'_>) -> Result<(), PeerMisbehaved>,
    {
        while !self.carry.is_empty() && !bytes.is_empty() {
            let want = total_length(&self.carry, self.limit)?.unwrap_or(4) - self.carry.len();
            let (now, later) = bytes.split_at(want.min(bytes.len()));
            self.carry.extend_from_slice(now);
            bytes = later;
            if let Some((frame, _)) = split(&self.carry, self.limit)? {
                each(frame)?;
                self.carry.clear();
                self.carry.shrink_to(MARGIN);
            }
        }
        while let Some((frame, used)) = split(bytes, self.limit)? {
            each(frame)?;
            bytes = &bytes[used..];
        }
        self.carry.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let start = begin(&mut out, kind, 7, 42);
        out.extend_from_slice(payload);
        finish(&mut out, start);
        out
    }

    #[test]
    fn incomplete_is_none_at_each_length() {
        let bytes = frame(3, b"hello");
        for cut in 0..bytes.len() {
            assert_eq!(split(&bytes[..cut], 1000), Ok(None), "cut at {cut}");
        }
        let (got, used) = split(&bytes, 1000).unwrap().unwrap();
        assert_eq!((got.kind, got.partition, got.version, got.payload), (3, 7, 42, &b"hello"[..]));
        assert_eq!(used, bytes.len());
    }

    #[test]
    fn each_flipped_bit_is_noticed() {
        let bytes = frame(3, b"hello");
        for bit in 32..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(split(&bad, 1000), Err(PeerMisbehaved::Checksum), "bit {bit}");
        }
    }

    #[test]
    fn lengths_are_bounded() {
        let mut bytes = frame(3, b"");
        bytes[..4].copy_from_slice(&2000u32.to_le_bytes());
        let refused = PeerMisbehaved::FrameTooLarge { length: 2000, limit: 1000 };
        assert_eq!(split(&bytes, 1000), Err(refused));
        bytes[..4].copy_from_slice(&15u32.to_le_bytes());
        assert_eq!(split(&bytes, 1000), Err(PeerMisbehaved::FrameTooShort { length: 15 }));
    }

    #[test]
    fn deframer_does_not_mind_the_cuts() {
        let all: Vec<u8> = (0..20u8).flat_map(|n| frame(n, &vec![n; usize::from(n) * 9])).collect();
        for step in 1..60 {
            let mut deframer = Deframer::new(4096);
            let mut kinds = Vec::new();
            for piece in all.chunks(step) {
                let each = |f: Frame<'_>| {
                    assert_eq!(f.payload, vec![f.kind; usize::from(f.kind) * 9]);
                    kinds.push(f.kind);
                    Ok(())
                };
                deframer.feed(piece, each).unwrap();
            }
            assert_eq!(kinds, (0..20).collect::<Vec<_>>(), "step {step}");
            assert!(deframer.carry.is_empty());
        }
    }
}
