//! The region's shape: how memory is divided, what its header says, and the check of both.
//!
//! ```text
//! header slice   0       RegionHeader: magic, version, sizes, ids, node-solo flag
//!                4096    64 × PartitionState
//!                8192    64 × 64 B, per shard: guard word (odd while its content is changing)
//!                12288   64 × index of a partition (buckets × 128 B)
//!                        per page 64 B: owner (shard, class, number), use, free list
//! pages          chunks, nothing else
//! ```
//!
//! All that attach has to read is in the header slice: a page is not touched for it.

use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::index::{BUCKET, BUCKET_ITEMS, Index};
use super::page::{PAGE_HEADER, Page, PageHeader};
use super::slab::order;
use super::types::{PARTITIONS, PartitionState, RegionError, RejectReason, StoreConfig};

const PARTITIONS_AT: usize = 4096;
const SHARDS_AT: usize = 8192;
const INDEX_AT: usize = 12288;
const MAGIC: u64 = u64::from_le_bytes(*b"TandemSt");
const MAKING: u64 = u64::from_le_bytes(*b"TandemMk");
const LAYOUT_VERSION: u32 = 1;
/// Chunk and index share of an item for which the index is sized.
const TYPICAL_ITEM: usize = 144 + 7;
/// Memory of a shard, at least, when there are fewer than 64.
const SHARD_MEMORY: usize = 15 << 20;
const PAGE_MIN: usize = 4 << 10;
const PAGE_MAX: usize = 1 << 20;

/// How memory is divided into header (state, index) and pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes of the header slice.
    pub header_len: usize,
    /// Bytes of each page: a power of two, 4 KiB to 1 MiB.
    pub page_size: usize,
    /// Number of pages.
    pub pages: usize,
}

impl Layout {
    /// The layout for `memory` bytes in all, header and index included; at least 256 KiB.
    ///
    /// A shard of about 16 MiB or more (64 of them from 1 GiB on) has about 256 pages, so that
    /// every size class of every shard can have some; the page's size follows, 1 MiB from 16 GiB
    /// on.
    pub fn for_memory(memory: u64) -> Self {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX).max(256 << 10);
        let page_size = floor_power(memory / shards_for(memory) / 256).clamp(PAGE_MIN, PAGE_MAX);
        let per_partition = PARTITIONS * BUCKET_ITEMS * TYPICAL_ITEM;
        let buckets = memory.div_ceil(per_partition).min(1 << 24);
        let fixed = INDEX_AT + PARTITIONS * buckets * BUCKET;
        let pages = (memory - fixed) / (page_size + PAGE_HEADER);
        Self { header_len: fixed + pages * PAGE_HEADER, page_size, pages }
    }

    /// Header and pages, in bytes.
    pub const fn total(&self) -> usize {
        self.header_len + self.page_size * self.pages
    }
}

const fn floor_power(n: usize) -> usize {
    if n == 0 { 1 } else { 1 << n.ilog2() }
}

/// Number of shards for that much memory.
pub(super) fn shards_for(memory: usize) -> usize {
    floor_power(memory / SHARD_MEMORY).clamp(1, PARTITIONS)
}

/// The memory of a store: `&'static mut` slices, so that no two owners ever meet. Position
/// independent: each slice may be mapped anywhere next time, but the pages are in the same order.
/// All slices are aligned to 8 bytes.
#[derive(Debug)]
pub struct Region {
    /// Global state, per partition and per shard state, index.
    pub header: &'static mut [u8],
    /// Pages of one size.
    pub pages: Vec<&'static mut [u8]>,
}

impl Region {
    /// A zeroed region of process memory that is never given back: for tests, simulations, and
    /// stores that need not outlive the process.
    pub fn leaked(layout: &Layout) -> Self {
        let leak = |len: usize| -> &'static mut [u8] {
            Box::leak(vec![0u64; len.div_ceil(8)].into_boxed_slice()).as_mut_bytes()
        };
        Self {
            header: leak(layout.header_len),
            pages: (0..layout.pages).map(|_| leak(layout.page_size)).collect(),
        }
    }

    /// The hash key of the store in it, if there is one: for tools that read the region of a node
    /// whose configuration they do not have.
    pub fn hash_key(&self) -> Option<[u8; 16]> {
        let (header, _) = RegionHeader::ref_from_prefix(self.header).ok()?;
        (header.magic == MAGIC).then_some(header.hash_key)
    }

    /// The layout these slices have.
    fn layout(&self) -> Result<Layout, RegionError> {
        let page_size = self.pages.first().map_or(0, |page| page.len());
        let aligned = |bytes: &[u8]| bytes.as_ptr().addr().is_multiple_of(8);
        if !page_size.is_power_of_two() || !(PAGE_MIN..=PAGE_MAX).contains(&page_size) {
            return Err(RegionError::Layout("page size is not a power of two, 4 KiB to 1 MiB"));
        }
        if self.pages.iter().any(|page| page.len() != page_size) {
            return Err(RegionError::Layout("pages differ in size"));
        }
        if !aligned(self.header) || !self.pages.iter().all(|page| aligned(page)) {
            return Err(RegionError::Layout("not aligned to 8 bytes"));
        }
        let index = self.header.len().checked_sub(INDEX_AT + self.pages.len() * PAGE_HEADER);
        if !index.is_some_and(|len| len > 0 && len % (PARTITIONS * BUCKET) == 0) {
            return Err(RegionError::Layout("header does not hold 64 indexes and a page table"));
        }
        if self.pages.len() < 8 {
            return Err(RegionError::Layout("fewer than 8 pages"));
        }
        Ok(Layout { header_len: self.header.len(), page_size, pages: self.pages.len() })
    }
}

/// The first bytes of a region.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(crate) struct RegionHeader {
    magic: u64,
    layout_version: u32,
    shards: u32,
    page_size: u64,
    pages: u64,
    header_len: u64,
    time_offset: i64,
    store_id: [u8; 16],
    hash_key: [u8; 16],
}

/// A region taken apart, each part ready for its owner.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) layout: Layout,
    pub(crate) shards: usize,
    pub(crate) store_id: u128,
    pub(crate) time_offset: i64,
    pub(crate) solo: &'static AtomicU64,
    pub(crate) states: Vec<&'static mut PartitionState>,
    pub(crate) guards: Vec<&'static AtomicU64>,
    pub(crate) indexes: Vec<Index>,
    pub(crate) pages: Vec<Page>,
}

/// What is to be done with the content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    /// Nothing was ever written here.
    Untouched,
    /// A whole store.
    Store,
    /// Something else.
    Refused(RejectReason),
}

/// Bytes after the header's fixed part where the node-solo flag is.
const SOLO_AT: usize = 1024;

fn header_of(region: &mut Region) -> Result<&mut RegionHeader, RegionError> {
    match RegionHeader::mut_from_prefix(region.header) {
        Ok((header, _)) => Ok(header),
        Err(_) => Err(RegionError::Layout("header too short")),
    }
}

/// Compares the header with the slices and the configuration.
pub(crate) fn inspect(region: &mut Region, config: &StoreConfig) -> Result<Found, RegionError> {
    let layout = region.layout()?;
    let header = header_of(region)?;
    let refused = match header.magic {
        0 => return Ok(Found::Untouched),
        MAKING => RejectReason::Incomplete,
        MAGIC if header.layout_version != LAYOUT_VERSION => RejectReason::LayoutVersion,
        MAGIC if !header.fits(&layout) => RejectReason::Sizes,
        MAGIC if header.hash_key != config.hash_key => RejectReason::HashKey,
        MAGIC => return Ok(Found::Store),
        _ => RejectReason::Magic,
    };
    Ok(Found::Refused(refused))
}

impl RegionHeader {
    fn fits(&self, layout: &Layout) -> bool {
        let shards = self.shards as usize;
        self.page_size == layout.page_size as u64
            && self.pages == layout.pages as u64
            && self.header_len == layout.header_len as u64
            && shards.is_power_of_two()
            && shards <= PARTITIONS
    }
}

/// Writes an empty store. `untouched` = the memory is known to be all zero.
pub(crate) fn make(
    region: &mut Region,
    config: &StoreConfig,
    untouched: bool,
) -> Result<(), RegionError> {
    let layout = region.layout()?;
    header_of(region)?.magic = MAKING;
    order();
    if !untouched && let Some(rest) = region.header.get_mut(8..) {
        rest.fill(0);
    }
    let default = shards_for(layout.pages * layout.page_size);
    let shards = config.shards.unwrap_or(default);
    if !shards.is_power_of_two() || shards > PARTITIONS {
        return Err(RegionError::Layout("shards must be a power of two up to 64"));
    }
    let header = header_of(region)?;
    header.layout_version = LAYOUT_VERSION;
    header.shards = shards as u32;
    header.page_size = layout.page_size as u64;
    header.pages = layout.pages as u64;
    header.header_len = layout.header_len as u64;
    header.time_offset = config.time_offset;
    header.store_id = config.store_id.to_ne_bytes();
    header.hash_key = config.hash_key;
    order();
    header.magic = MAGIC;
    Ok(())
}

const BAD: RegionError = RegionError::Layout("header cannot be taken apart");

/// Cuts `bytes` off the front of `rest`.
fn cut(rest: &mut &'static mut [u8], bytes: usize) -> Result<&'static mut [u8], RegionError> {
    let (front, back) = std::mem::take(rest).split_at_mut_checked(bytes).ok_or(BAD)?;
    *rest = back;
    Ok(front)
}

fn atomic(bytes: &'static mut [u8]) -> Result<&'static AtomicU64, RegionError> {
    let (atomic, _) = AtomicU64::mut_from_prefix(bytes).map_err(|_unfit| BAD)?;
    Ok(atomic)
}

/// Takes a region apart that [`inspect`] or [`make`] found good.
pub(crate) fn split(region: Region) -> Result<Parts, RegionError> {
    let layout = region.layout()?;
    let mut rest = region.header;
    let mut fixed = cut(&mut rest, PARTITIONS_AT)?;
    let (header, _) = RegionHeader::read_from_prefix(fixed).map_err(|_short| BAD)?;
    cut(&mut fixed, SOLO_AT)?;
    let solo = atomic(fixed)?;
    let mut states_bytes = cut(&mut rest, SHARDS_AT - PARTITIONS_AT)?;
    let mut guards_bytes = cut(&mut rest, INDEX_AT - SHARDS_AT)?;
    let index_len = (rest.len() - layout.pages * PAGE_HEADER) / PARTITIONS;
    let (mut states, mut guards, mut indexes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PARTITIONS {
        let state = cut(&mut states_bytes, size_of::<PartitionState>())?;
        states.push(PartitionState::mut_from_bytes(state).map_err(|_unfit| BAD)?);
        guards.push(atomic(cut(&mut guards_bytes, 64)?)?);
        indexes.push(Index::new(cut(&mut rest, index_len)?).ok_or(BAD)?);
    }
    let headers = <[PageHeader]>::mut_from_bytes(rest).map_err(|_unfit| BAD)?;
    let pages = headers.iter_mut().zip(region.pages).map(|(header, body)| Page::new(header, body));
    Ok(Parts {
        layout,
        shards: header.shards as usize,
        store_id: u128::from_ne_bytes(header.store_id),
        time_offset: header.time_offset,
        solo,
        states,
        guards,
        indexes,
        pages: pages.collect(),
    })
}

/// The guard of a shard: odd while what it guards may be half changed.
#[derive(Debug)]
pub(crate) struct Guard {
    word: &'static AtomicU64,
    depth: u32,
}

impl Guard {
    pub(crate) const fn new(word: &'static AtomicU64) -> Self {
        Self { word, depth: 0 }
    }

    /// What it guards is not to be trusted, whatever the word said.
    pub(crate) fn distrust(&mut self) {
        let word = self.word.load(Ordering::Relaxed);
        self.word.store(word | 1, Ordering::Relaxed);
    }

    /// Was it left odd?
    pub(crate) fn is_odd(&self) -> bool {
        self.word.load(Ordering::Relaxed) % 2 == 1
    }

    /// A change begins; may nest.
    pub(crate) fn enter(&mut self) {
        self.depth += 1;
        if self.depth == 1 {
            let word = self.word.load(Ordering::Relaxed);
            self.word.store(word | 1, Ordering::Release);
            order();
        }
    }

    /// A change is complete.
    pub(crate) fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
        if self.depth == 0 {
            order();
            let word = self.word.load(Ordering::Relaxed);
            self.word.store((word | 1).wrapping_add(1), Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_uses_what_it_is_given() {
        for memory in [256 << 10, 1 << 20, 5_000_000, 64 << 20, 1 << 30, 16 << 30, 256 << 30] {
            let layout = Layout::for_memory(memory);
            let total = layout.total() as u64;
            assert!(total <= memory && total + layout.page_size as u64 + 64 > memory, "{layout:?}");
            assert!(layout.pages >= 48, "{layout:?}");
        }
        assert_eq!(Layout::for_memory(16 << 30).page_size, 1 << 20);
        let gigabyte = Layout::for_memory(1 << 30);
        assert_eq!(gigabyte.page_size, 64 << 10);
        assert_eq!(shards_for(gigabyte.pages * gigabyte.page_size), 64);
    }

    #[test]
    fn slices_that_are_no_store_are_refused() {
        let layout = Layout::for_memory(1 << 20);
        let reason = |change: &dyn Fn(&mut Region)| {
            let mut region = Region::leaked(&layout);
            change(&mut region);
            inspect(&mut region, &StoreConfig::default()).err()
        };
        assert_eq!(reason(&|_| ()), None);
        assert!(reason(&|r| r.pages.clear()).is_some());
        assert!(reason(&|r| r.pages.truncate(7)).is_some());
        assert!(reason(&|r| cut_header(r)).is_some());
        assert!(
            reason(&|r| {
                let odd = std::mem::take(&mut r.pages[3]);
                r.pages[3] = &mut odd[8..];
            })
            .is_some()
        );
    }

    fn cut_header(region: &mut Region) {
        let header = std::mem::take(&mut region.header);
        let len = header.len() - 8;
        region.header = &mut header[..len];
    }
}
