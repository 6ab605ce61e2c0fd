//! The gate: which answers may leave. What has been acknowledged, and under which role.
//!
//! An answer depends on versions of partitions. It leaves while the lease is valid and the node is
//! MASTER_SOLO of the epoch it was produced in, or MASTER of that epoch and each of those versions
//! is acknowledged by the peer. Under any other role or epoch it never leaves. The queue that
//! waits is the session's; this is only what it looks at.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Cache, PARTITIONS};

/// The role as far as answers are concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GateRole {
    /// Any state but MASTER and MASTER_SOLO: nothing leaves, nothing is executed.
    #[default]
    Closed,
    /// MASTER: answers wait for the peer.
    Master,
    /// MASTER_SOLO: answers leave at once.
    MasterSolo,
}

/// Whether answers wait for the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AckMode {
    /// Until the peer has applied what they depend on.
    #[default]
    Replicated,
    /// Never: an acknowledged write may be lost with this node.
    Local,
}

/// One look at role, epoch and lease, to be taken anew before each `run` and `poll_transmit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GateState {
    /// Role class of this node.
    pub role: GateRole,
    /// Its epoch, 15 bits.
    pub epoch: u16,
    /// The lease has not run out; read after the turn's input was polled. A node without a peer
    /// always has it.
    pub lease_valid: bool,
    /// From the configuration.
    pub ack_mode: AckMode,
}

impl GateState {
    /// Whether commands may be executed.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.role != GateRole::Closed
    }

    /// Whether answers produced now wait for acknowledgements.
    #[must_use]
    pub fn waits(&self) -> bool {
        self.role == GateRole::Master && self.ack_mode == AckMode::Replicated
    }
}

/// What an answer stands on: it may leave when the peer has `version` of `partition`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depends {
    /// Partition, 0..64.
    pub partition: u8,
    /// Version that was written or seen.
    pub version: u64,
}

/// What workers and links share about replication: one for each cache, beside it.
#[derive(Debug)]
pub struct Shared {
    acked: [AtomicU64; PARTITIONS],
    dirty: AtomicU64,
}

impl Default for Shared {
    fn default() -> Self {
        Self { acked: [const { AtomicU64::new(0) }; PARTITIONS], dirty: AtomicU64::new(0) }
    }
}

impl Shared {
    /// The version that the peer has applied of `partition`.
    #[must_use]
    pub fn acked(&self, partition: u8) -> u64 {
        self.acked[usize::from(partition) % PARTITIONS].load(Ordering::Acquire)
    }

    /// Whether the peer has what an answer stands on.
    #[must_use]
    pub fn has(&self, depends: Depends) -> bool {
        self.acked(depends.partition) >= depends.version
    }

    /// Whether the peer has applied each partition up to what [`positions`] said.
    #[must_use]
    pub fn has_all(&self, positions: &[u64; PARTITIONS]) -> bool {
        self.acked.iter().zip(positions).all(|(acked, at)| acked.load(Ordering::Acquire) >= *at)
    }

    /// Partitions (bit = number) with records that are not yet on their link. A worker that has
    /// executed commands looks here for the links of others that it must wake.
    #[must_use]
    pub fn dirty(&self) -> u64 {
        self.dirty.load(Ordering::Acquire)
    }

    /// Notes that the peer has applied `version` of `partition`. Returns whether that is news.
    pub fn acknowledge(&self, partition: u8, version: u64) -> bool {
        let acked = &self.acked[usize::from(partition) % PARTITIONS];
        acked.fetch_max(version, Ordering::AcqRel) < version
    }

    /// Forgets acknowledgements: what the peer has is unknown, or is being rebuilt.
    pub fn forget(&self, partition: u8) {
        self.acked[usize::from(partition) % PARTITIONS].store(0, Ordering::Release);
    }

    /// Notes that `partition` has a record for its link.
    pub fn mark_dirty(&self, partition: u8) {
        let bit = 1u64 << (partition % 64);
        if self.dirty.load(Ordering::Relaxed) & bit == 0 {
            self.dirty.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Clears and returns the bits of `mask`. To be called before the streams are emptied: a
    /// record appended meanwhile sets its bit again.
    pub fn take_dirty(&self, mask: u64) -> u64 {
        self.dirty.fetch_and(!mask, Ordering::AcqRel) & mask
    }
}

/// The version that each partition is at now. Everything answered so far stands on no later one.
#[must_use]
pub fn positions(cache: &Cache) -> [u64; PARTITIONS] {
    std::array::from_fn(|partition| cache.lock_partition(partition).partition().version())
}
