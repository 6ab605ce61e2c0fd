//! The facade: [`Cache`], and one key's or one partition's shard under its lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, MutexGuard};

use crate::replication::Stream;
use crate::shard::{Common, Part, Rules, Shard, Target};
use crate::store::internal::{
    Found, Geometry, Guard, Page, Parts, Pool, Slabs, inspect, make, split,
};
use crate::store::{
    AttachKind, AttachReport, ClassCounters, Counters, Cursor, ItemView, Layout, Meta, PARTITIONS,
    PartitionState, PromoteError, PutError, Region, RegionError, StoreConfig, StoreTime, Swept,
    VerifyReport,
};

/// Slots that the sweep looks at while it holds a shard's lock.
const SWEEP_STEP: usize = 4096;
const ITEM_LIMIT_MIN: u32 = 1 << 10;
const ITEM_LIMIT_MAX: u32 = 128 << 20;

/// The store, shared by all workers: `Arc<Cache>`.
#[derive(Debug)]
pub struct Cache {
    common: Common,
    rules: Rules,
    layout: Layout,
    store_id: u128,
    time_offset: i64,
    solo: &'static AtomicU64,
    /// Shard that the next sweep begins with.
    sweep_from: AtomicUsize,
}

impl Cache {
    /// Makes a new store in `region`, whatever it held.
    ///
    /// # Errors
    /// When the slices do not fit a layout.
    pub fn create(config: StoreConfig, mut region: Region) -> Result<Self, RegionError> {
        make(&mut region, &config, false)?;
        Self::open(&config, region, &mut AttachReport::default())
    }

    /// Takes over the content of `region` if it is whole, else makes a new store in it. Nobody else
    /// may use the region any more. No item is walked, but in shards that were being changed when
    /// their process died.
    ///
    /// # Errors
    /// When the slices do not fit a layout.
    pub fn attach(
        config: StoreConfig,
        mut region: Region,
    ) -> Result<(Self, AttachReport), RegionError> {
        let kind = match inspect(&mut region, &config)? {
            Found::Untouched => {
                make(&mut region, &config, true)?;
                AttachKind::Fresh
            }
            Found::Store => AttachKind::Kept,
            Found::Refused(reason) => {
                make(&mut region, &config, false)?;
                AttachKind::Rejected(reason)
            }
        };
        let mut report = AttachReport { kind, ..AttachReport::default() };
        let cache = Self::open(&config, region, &mut report)?;
        Ok((cache, report))
    }

    fn open(
        config: &StoreConfig,
        region: Region,
        report: &mut AttachReport,
    ) -> Result<Self, RegionError> {
        let parts = split(region)?;
        let layout = parts.layout;
        let quarter = u32::try_from(layout.pages * layout.page_size / 4).unwrap_or(u32::MAX);
        let limit = config.item_limit.clamp(ITEM_LIMIT_MIN, ITEM_LIMIT_MAX).min(quarter);
        let rules = Rules { hash_key: config.hash_key, limit, evict: config.evict };
        let (store_id, time_offset, solo) = (parts.store_id, parts.time_offset, parts.solo);
        let (shards, pool) = assemble(parts, rules, report);
        report.items = shards.iter().map(Shard::items).sum();
        let oldest = shards.iter().map(|_| AtomicU64::new(0)).collect();
        let shards = shards.into_iter().map(Mutex::new).collect();
        let common = Common { pool, shards, oldest };
        let sweep_from = AtomicUsize::new(0);
        Ok(Self { common, rules, layout, store_id, time_offset, solo, sweep_from })
    }

    /// Locks the shard of `key`. Keep it short: other workers wait.
    pub fn lock<'c, 'k>(&'c self, key: &'k [u8]) -> Locked<'c, 'k> {
        let hash = self.rules.hash(key);
        let inner = self.lock_partition((hash % PARTITIONS as u64) as usize);
        let target = Target { part: inner.local, hash, key };
        Locked { inner, target }
    }

    /// Locks the shard of partition `partition` (0..64).
    pub fn lock_partition(&self, partition: usize) -> LockedPartition<'_> {
        let partition = partition % PARTITIONS;
        let per_shard = PARTITIONS / self.common.shards.len();
        let shard = self.common.shards[partition / per_shard].lock();
        LockedPartition { common: &self.common, shard, partition, local: partition % per_shard }
    }

    /// The partition of `key`.
    pub fn partition_of(&self, key: &[u8]) -> usize {
        (self.rules.hash(key) % PARTITIONS as u64) as usize
    }

    /// Identity of the store: random, kept by a region that was attached.
    pub const fn store_id(&self) -> u128 {
        self.store_id
    }

    /// Store time = CLOCK_BOOTTIME + this, in seconds; kept by a region that was attached.
    pub const fn time_offset(&self) -> i64 {
        self.time_offset
    }

    /// Largest item: header (24 B), key and value, in bytes.
    pub const fn item_limit(&self) -> u32 {
        self.rules.limit
    }

    /// Has this node answered without a peer since its last full sync?
    pub fn solo(&self) -> bool {
        self.solo.load(Ordering::SeqCst) != 0
    }

    /// Marks the region; set before the first answer given alone, cleared by a full sync.
    pub fn set_solo(&self, solo: bool) {
        self.solo.store(u64::from(solo), Ordering::SeqCst);
    }

    /// Number of shards: a power of two up to 64.
    pub const fn shards(&self) -> usize {
        self.common.shards.len()
    }

    /// Raises every partition to version `epoch << 48`: records of a lower epoch are refused from
    /// then on. Partitions already in `epoch` stay as they are.
    ///
    /// # Errors
    /// When a partition is already in a higher epoch, or `epoch` has more than 15 bits; partitions
    /// before it have been raised.
    pub fn promote(&self, epoch: u16) -> Result<(), PromoteError> {
        for partition in 0..PARTITIONS {
            let mut locked = self.lock_partition(partition);
            let state = locked.partition();
            if state.epoch() > epoch || epoch >= 1 << 15 {
                return Err(PromoteError { partition, version: state.version() });
            }
            state.raise_version(u64::from(epoch) << PartitionState::SEQ_BITS);
        }
        Ok(())
    }

    /// Reclaims expired items, looking at about `budget` item slots, a few thousand under one lock,
    /// and lets the shards know how old each one's oldest page is; pages move when one is needed.
    /// To be called about once a second, or more often with a smaller budget. Returns the slots
    /// looked at: less than `budget` = nothing is left that has expired.
    pub fn maintain(&self, now: StoreTime, budget: usize) -> usize {
        let mut seen = 0;
        for _ in 0..self.common.shards.len() {
            let number = self.sweep_from.load(Ordering::Relaxed) % self.common.shards.len();
            loop {
                let step = SWEEP_STEP.min(budget.saturating_sub(seen));
                let mut shard = self.common.shards[number].lock();
                let (looked, done) = shard.sweep(&self.common.pool, now, step);
                shard.tell_oldest_timely(&self.common, now);
                drop(shard);
                seen += looked;
                if done {
                    break;
                }
                if seen >= budget {
                    return seen;
                }
            }
            self.sweep_from.store(number + 1, Ordering::Relaxed);
        }
        seen
    }

    /// Counters and gauges of the whole store. Locks each shard for a moment.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters {
            pages: self.layout.pages as u64,
            pages_free: self.common.pool.len() as u64,
            page_size: self.layout.page_size as u64,
            memory: self.layout.total() as u64,
            ..Counters::default()
        };
        for shard in &self.common.shards {
            shard.lock().add_counters(&mut sum);
        }
        sum
    }

    /// The size classes, smallest first.
    pub fn classes(&self) -> Vec<ClassCounters> {
        let mut classes = Vec::new();
        for shard in &self.common.shards {
            shard.lock().add_classes(&mut classes);
        }
        classes
    }

    /// Checks the whole region: every item readable, index, sizes and counters in agreement. Locks
    /// each shard for long: for tests and tools.
    pub fn verify(&self) -> VerifyReport {
        let mut report = VerifyReport::default();
        for shard in &self.common.shards {
            shard.lock().verify(&mut report);
        }
        report
    }

    /// The same in debug builds, as an assertion; nothing in release builds.
    ///
    /// # Panics
    /// When a check does not hold.
    pub fn check_invariants(&self) {
        if cfg!(debug_assertions) {
            let errors = self.verify().errors;
            assert!(errors.is_empty(), "{errors:#?}");
        }
    }
}

/// Makes the shards and the pool of a region that was taken apart.
fn assemble(parts: Parts, rules: Rules, report: &mut AttachReport) -> (Vec<Shard>, Pool) {
    let geometry = Arc::new(Geometry::new(parts.layout.page_size));
    let per_shard = PARTITIONS / parts.shards;
    let mut guards = parts.guards.into_iter().map(Guard::new);
    let mut partitions = parts.states.into_iter().zip(parts.indexes).map(|(state, index)| Part {
        state,
        index,
        stream: Stream::default(),
    });
    let mut shards = Vec::with_capacity(parts.shards);
    for (number, guard) in (0..parts.shards as u8).zip(&mut guards) {
        let own = partitions.by_ref().take(per_shard).collect();
        let slabs = Slabs::new(Arc::clone(&geometry), number);
        shards.push(Shard::new(number, guard, slabs, own, rules));
    }
    let (free, broken) = hand_out(parts.pages, &mut shards, report);
    let pool = Pool::new(free);
    for (shard, broken) in shards.iter_mut().zip(broken) {
        let number = u32::from(shard.number);
        if broken {
            shard.empty(&pool);
            report.emptied_shards.push(number);
        } else if shard.guard.is_odd() {
            report.items_dropped += shard.rebuild(&pool);
            report.odd_shards.push(number);
        } else {
            shard.slabs.relist();
        }
    }
    (shards, pool)
}

/// Gives each page to the shard that it names; returns the rest, and which shards' pages contradict
/// each other.
fn hand_out(
    pages: Vec<Page>,
    shards: &mut [Shard],
    report: &mut AttachReport,
) -> (Vec<Page>, Vec<bool>) {
    let (mut free, mut broken) = (Vec::new(), vec![false; shards.len()]);
    let count = pages.len();
    for mut page in pages {
        let (number, refused) = match page.owner() {
            Ok(None) => (None, Some(page)),
            Ok(Some(owner)) => {
                let number = usize::from(owner.shard);
                match shards.get_mut(number) {
                    Some(shard) => match shard.slabs.adopt(page, owner, count) {
                        Ok(()) => continue,
                        Err(page) => (Some(number), Some(page)),
                    },
                    None => (Some(number), Some(page)),
                }
            }
            Err(()) => (Some(usize::MAX), Some(page)),
        };
        let Some(refused) = refused else { continue };
        page = refused;
        if let Some(number) = number {
            report.pages_dropped += 1;
            page.set_owner(None);
            match broken.get_mut(number) {
                Some(broken) => *broken = true,
                // whose it was cannot be known: each has to look what it misses
                None => shards.iter_mut().for_each(|shard| shard.guard.distrust()),
            }
        }
        free.push(page);
    }
    (free, broken)
}

/// One key's shard under its lock; operations are on that key.
#[derive(Debug)]
pub struct Locked<'c, 'k> {
    inner: LockedPartition<'c>,
    target: Target<'k>,
}

impl Locked<'_, '_> {
    /// The key's hash, low six bits = partition.
    pub const fn hash(&self) -> u64 {
        self.target.hash
    }

    /// The item, unless absent or expired. Counts as a use of it.
    pub fn get(&mut self, now: StoreTime) -> Option<ItemView<'_>> {
        self.inner.shard.get(&self.inner.common.pool, self.target, now, true)
    }

    /// The same without counting as a use.
    pub fn peek(&mut self, now: StoreTime) -> Option<ItemView<'_>> {
        self.inner.shard.get(&self.inner.common.pool, self.target, now, false)
    }

    /// Stores the item, its value being the concatenation of `value`; overwrites whatever is there,
    /// whatever its version, and marks the item for a full sync. Raises the partition's version to
    /// the item's if that is higher. Evicts if it must.
    ///
    /// # Errors
    /// Only for what is above the item limit, or without memory when eviction is off or every page
    /// is being written to at this moment.
    pub fn put(&mut self, meta: Meta, value: &[&[u8]], now: StoreTime) -> Result<(), PutError> {
        self.inner.shard.put(self.inner.common, self.target, meta, value, now)
    }

    /// Rewrites the item as `prefix` + its value + `suffix` under `meta`; `Ok(false)` = no item.
    ///
    /// # Errors
    /// As [`Self::put`]; the item is then unchanged, unless it had to be evicted.
    pub fn extend(
        &mut self,
        meta: Meta,
        prefix: &[u8],
        suffix: &[u8],
        now: StoreTime,
    ) -> Result<bool, PutError> {
        let around = (prefix, suffix);
        self.inner.shard.extend(self.inner.common, self.target, meta, around, now)
    }

    /// Removes the item; false = absent or expired.
    pub fn remove(&mut self, now: StoreTime) -> bool {
        self.inner.shard.remove(&self.inner.common.pool, self.target, now)
    }

    /// Gives the item a new expiry and version; false = absent or expired. Raises the partition's
    /// version to the item's if that is higher.
    pub fn touch(&mut self, expiry: u32, version: u64, now: StoreTime) -> bool {
        self.inner.shard.touch(&self.inner.common.pool, self.target, (expiry, version), now)
    }

    /// The key's partition, 0..64.
    pub const fn partition_id(&self) -> usize {
        self.inner.partition
    }

    /// State of the key's partition.
    pub fn partition(&mut self) -> &mut PartitionState {
        self.inner.partition()
    }

    /// Stream of the key's partition.
    pub fn stream_mut(&mut self) -> &mut Stream {
        self.inner.stream_mut()
    }

    /// State and stream together.
    pub fn split(&mut self) -> (&mut PartitionState, &mut Stream) {
        self.inner.split()
    }

    /// Item (not counted as a use), state and stream together, to append the item's record.
    pub fn split_item(
        &mut self,
        now: StoreTime,
    ) -> (Option<ItemView<'_>>, &mut PartitionState, &mut Stream) {
        self.inner.shard.split_item(self.target, now)
    }
}

/// One partition's shard under its lock; operations are on that partition.
#[derive(Debug)]
pub struct LockedPartition<'c> {
    common: &'c Common,
    shard: MutexGuard<'c, Shard>,
    partition: usize,
    local: usize,
}

impl LockedPartition<'_> {
    fn part(&mut self) -> &mut Part {
        &mut self.shard.parts[self.local]
    }

    /// 0..64.
    pub const fn partition_id(&self) -> usize {
        self.partition
    }

    /// State of the partition.
    pub fn partition(&mut self) -> &mut PartitionState {
        self.part().state
    }

    /// Stream of the partition.
    pub fn stream_mut(&mut self) -> &mut Stream {
        &mut self.part().stream
    }

    /// State and stream together.
    pub fn split(&mut self) -> (&mut PartitionState, &mut Stream) {
        let part = self.part();
        (part.state, &mut part.stream)
    }

    /// Items in the partition, expired ones not yet reclaimed included.
    pub fn items(&mut self) -> u64 {
        self.part().state.items
    }

    /// Shows `f` about `budget` items (at least some) from `cursor` on, and returns where to go on,
    /// `None` at the end. The lock may be released between steps: every item that is there during
    /// the whole walk is seen at least once. Expired items are not shown.
    pub fn walk(
        &mut self,
        cursor: Cursor,
        budget: usize,
        now: StoreTime,
        f: impl FnMut(&ItemView<'_>, &mut PartitionState, &mut Stream),
    ) -> Option<Cursor> {
        self.shard.walk(self.local, cursor, budget, now, f)
    }

    /// Begins a full sync: no item is marked any more; each put marks its item. Takes longer, as
    /// long as a walk, when seven syncs in a row were begun but never swept.
    pub fn clear_marks(&mut self) {
        self.shard.clear_marks(self.local);
    }

    /// Removes the items that were not put since [`Self::clear_marks`], looking at about `budget`
    /// items from `cursor` on.
    pub fn sweep_unmarked(&mut self, cursor: Cursor, budget: usize) -> Swept {
        self.shard.sweep_unmarked(&self.common.pool, self.local, cursor, budget)
    }

    /// Removes every item, or only those whose version is at most `max_version`. Returns how many.
    pub fn flush(&mut self, max_version: Option<u64>) -> u64 {
        self.shard.flush(&self.common.pool, self.local, max_version)
    }
}

#[cfg(test)]
impl Cache {
    pub(crate) const fn common_for_test(&self) -> &Common {
        &self.common
    }

    pub(crate) const fn layout_for_test(&self) -> Layout {
        self.layout
    }
}

#[cfg(test)]
impl Locked<'_, '_> {
    pub(crate) fn shard_for_test(&self) -> &Shard {
        &self.inner.shard
    }
}
