//! The words of the store's interface: times, versions, reports, counters, errors.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Number of partitions of every store: the unit of order. A key's partition is the low six bits of
/// its keyed hash.
pub const PARTITIONS: usize = 64;

/// Store time in seconds: CLOCK_BOOTTIME plus the region's offset, fed in by the shell. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct StoreTime(pub u32);

/// What a record carries besides key and value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Meta {
    /// 0 | epoch:15 | seq:48; the unique that `gets` shows.
    pub version: u64,
    /// Store time in seconds from which the item is gone; 0 = never.
    pub expiry: u32,
    /// The client's flags, opaque.
    pub flags: u32,
}

impl Meta {
    /// Is an item with this expiry gone at `now`?
    pub const fn expired(&self, now: StoreTime) -> bool {
        self.expiry != 0 && self.expiry <= now.0
    }
}

/// How a store is made, and what an existing region must match.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreConfig {
    /// Key of the keyed hash, the same on both nodes.
    pub hash_key: [u8; 16],
    /// Random identity for the store if a new one is made; an attached region keeps its own.
    pub store_id: u128,
    /// Largest item: key + value + 24 B header, in bytes. 1 KiB to 128 MiB, at most a quarter of
    /// the pages.
    pub item_limit: u32,
    /// Evict when full (memcached's default), or refuse with [`PutError::NoMemory`] (its `-M`).
    pub evict: bool,
    /// Store time = CLOCK_BOOTTIME + this, seconds; for a new store, an attached one keeps its own.
    pub time_offset: i64,
    /// Shards of a new store, a power of two up to 64; `None` = by memory (16 MiB a shard).
    pub shards: Option<usize>,
}

impl StoreConfig {
    /// Default of `item_limit`.
    pub const ITEM_LIMIT: u32 = 1 << 20;
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            hash_key: [0; 16],
            store_id: 0,
            item_limit: Self::ITEM_LIMIT,
            evict: true,
            time_offset: 0,
            shards: None,
        }
    }
}

/// What survives of a partition besides its items. Lives in the region.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub struct PartitionState {
    version: u64,
    last_delete: u64,
    flush_at: u32,
    /// Generation of the marks of a full sync, 0..8.
    pub(crate) mark: u8,
    /// Generations begun since the last sweep that went through.
    pub(crate) unswept: u8,
    reserved: [u8; 2],
    /// Items, live or expired but not yet reclaimed.
    pub(crate) items: u64,
    /// Sum of header, key and value of those.
    pub(crate) bytes: u64,
    reserved2: [u64; 3],
}

impl PartitionState {
    /// Bits of the sequence number in a version.
    pub const SEQ_BITS: u32 = 48;

    /// Last used version: 0 | epoch:15 | seq:48.
    pub const fn version(&self) -> u64 {
        self.version
    }

    /// The version's epoch.
    pub const fn epoch(&self) -> u16 {
        (self.version >> Self::SEQ_BITS) as u16
    }

    /// Takes the next version of the current epoch.
    pub const fn next_version(&mut self) -> u64 {
        self.version += 1;
        self.version
    }

    /// Raises the last used version; a lower one changes nothing.
    pub fn raise_version(&mut self, version: u64) {
        self.version = self.version.max(version);
    }

    /// Version of the last delete or flush.
    pub const fn last_delete(&self) -> u64 {
        self.last_delete
    }

    /// Records a delete's or flush's version; a lower one changes nothing.
    pub fn raise_last_delete(&mut self, version: u64) {
        self.last_delete = self.last_delete.max(version);
    }

    /// Store time of a delayed flush, if one is pending.
    pub fn flush_at(&self) -> Option<StoreTime> {
        (self.flush_at != 0).then_some(StoreTime(self.flush_at))
    }

    /// Sets or clears the delayed flush.
    pub fn set_flush_at(&mut self, at: Option<StoreTime>) {
        self.flush_at = at.map_or(0, |t| t.0);
    }
}

/// Position of a resumable walk over one partition; survives any change of the store in between.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor(pub(crate) u32);

impl Cursor {
    /// Before the first item.
    pub const START: Self = Self(0);
}

/// One step of [`crate::LockedPartition::sweep_unmarked`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Items removed in this step.
    pub removed: u64,
    /// Where to go on; `None` = the partition is done.
    pub next: Option<Cursor>,
}

/// Why a put was refused. The old item, if any, is untouched.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PutError {
    /// Above the item limit (memcached: `SERVER_ERROR object too large for cache`).
    #[error("item of {size} B is above the limit of {limit} B")]
    TooLarge {
        /// Header, key and value, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u32,
    },
    /// Key empty or longer than 250 B.
    #[error("key of {0} B")]
    KeyLength(usize),
    /// No memory and no eviction allowed, or every page is busy (memcached: `SERVER_ERROR out of
    /// memory storing object`).
    #[error("out of memory storing object")]
    NoMemory,
}

/// The slices given cannot hold a store.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegionError {
    /// Header or pages are not what [`crate::Layout`] asks for.
    #[error("region does not fit its layout: {0}")]
    Layout(&'static str),
}

/// Why the content of a region was not taken over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RejectReason {
    /// The first word is neither zero nor ours.
    #[error("not a Tandem store")]
    Magic,
    /// Written by another version of the layout.
    #[error("another layout version")]
    LayoutVersion,
    /// Page size, number of pages, shards or index size differ.
    #[error("other sizes")]
    Sizes,
    /// Written with another hash key.
    #[error("another hash key")]
    HashKey,
    /// The process that made it died before it was done.
    #[error("never completed")]
    Incomplete,
}

/// What attach found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AttachKind {
    /// An all-zero region: a new store was made.
    #[default]
    Fresh,
    /// The content was kept.
    Kept,
    /// The content was refused: a new store was made, with a new id.
    Rejected(RejectReason),
}

/// What attach found and did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AttachReport {
    /// Kept or new.
    pub kind: AttachKind,
    /// Shards whose guard word was odd: rebuilt by walking their pages.
    pub odd_shards: Vec<u32>,
    /// Shards that could not be rebuilt and are now empty. To be said loudly.
    pub emptied_shards: Vec<u32>,
    /// Items kept in all shards.
    pub items: u64,
    /// Items that failed their check in a rebuild and were dropped.
    pub items_dropped: u64,
    /// Pages whose ownership made no sense and that went back to the pool.
    pub pages_dropped: u64,
}

/// A higher epoch was found while promoting; nothing above it may be refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("partition {partition} is already at version {version:#x}")]
pub struct PromoteError {
    /// The partition.
    pub partition: usize,
    /// Its last used version.
    pub version: u64,
}

/// Counters of the whole store since this process attached, and gauges of now.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counters {
    /// Gauge: items stored, expired ones not yet reclaimed included.
    pub items: u64,
    /// Gauge: header, key and value of those, in bytes.
    pub bytes: u64,
    /// Items evicted.
    pub evictions: u64,
    /// Header, key and value of those, in bytes.
    pub evicted_bytes: u64,
    /// Of those, items never read since they were written.
    pub evicted_unfetched: u64,
    /// Seconds since the last pass over the page of the item evicted last.
    pub evicted_age: u32,
    /// The smallest such age of all evictions, in seconds; 0 without an eviction.
    pub youngest_evicted_age: u32,
    /// Expired items found on access.
    pub expired: u64,
    /// Expired items reclaimed by the sweep or when room was needed.
    pub reclaimed: u64,
    /// Gauge: pages of the region.
    pub pages: u64,
    /// Gauge: pages in the pool.
    pub pages_free: u64,
    /// Gauge: pages that hold overflow of the index.
    pub pages_index: u64,
    /// Pages that moved between classes or shards while in use.
    pub page_moves: u64,
    /// Size of one page, in bytes.
    pub page_size: u64,
    /// Size of header, index and pages, in bytes.
    pub memory: u64,
}

/// One size class, summed over the shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ClassCounters {
    /// Bytes of one chunk.
    pub chunk: u32,
    /// Pages it has.
    pub pages: u64,
    /// Chunks in use.
    pub used: u64,
    /// Chunks free in its pages.
    pub free: u64,
    /// Items evicted from it.
    pub evictions: u64,
}

/// Result of a full check of the region.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VerifyReport {
    /// Items found by way of the index.
    pub items: u64,
    /// Header, key and value of those, in bytes.
    pub bytes: u64,
    /// What does not hold; empty = all is well. At most 100 lines.
    pub errors: Vec<String>,
}

impl VerifyReport {
    /// Did every check hold?
    pub const fn is_ok(&self) -> bool {
        self.errors.is_empty()
    }
}
