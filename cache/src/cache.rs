//! The facade: [`Cache`], and one key's or one partition's shard under its lock.

use std::hash::Hasher;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use siphasher::sip::SipHasher13;

use crate::replication::Stream;
use crate::shard::{Partition, Shard, Stored};
use crate::store::{
    AttachReport, ClassCounters, Counters, Cursor, ItemView, Meta, PARTITIONS, PartitionState,
    PromoteError, PutError, Region, RegionError, StoreConfig, StoreTime, Swept, VerifyReport,
};

/// The store, shared by all workers: `Arc<Cache>`.
#[derive(Debug)]
pub struct Cache {
    config: StoreConfig,
    solo: AtomicBool,
    shards: Vec<Mutex<Shard>>,
}

impl Cache {
    /// Makes a new store in `region`, whatever it held.
    ///
    /// # Errors
    /// When the slices do not fit a layout.
    pub fn create(config: StoreConfig, region: Region) -> Result<Self, RegionError> {
        drop(region);
        let partition = || Partition {
            state: PartitionState::empty(),
            stream: Stream::default(),
            items: std::collections::BTreeMap::new(),
        };
        let shard = || Mutex::new(Shard { partitions: (0..16).map(|_| partition()).collect() });
        Ok(Self { config, solo: AtomicBool::new(false), shards: (0..4).map(|_| shard()).collect() })
    }

    /// Takes over the content of `region` if it is whole, else makes a new store in it.
    ///
    /// # Errors
    /// When the slices do not fit a layout.
    pub fn attach(
        config: StoreConfig,
        region: Region,
    ) -> Result<(Self, AttachReport), RegionError> {
        Ok((Self::create(config, region)?, AttachReport::default()))
    }

    /// Locks the shard of `key`. Keep it short: other workers wait.
    pub fn lock<'c, 'k>(&'c self, key: &'k [u8]) -> Locked<'c, 'k> {
        let hash = self.hash(key);
        let partition = (hash & 63) as usize;
        Locked { inner: self.lock_partition(partition), key, hash }
    }

    /// Locks the shard of partition `partition` (0..64).
    pub fn lock_partition(&self, partition: usize) -> LockedPartition<'_> {
        let partition = partition % PARTITIONS;
        let per_shard = PARTITIONS / self.shards.len();
        let shard = self.shards[partition / per_shard].lock();
        LockedPartition { cache: self, shard, partition, local: partition % per_shard }
    }

    /// The partition of `key`.
    pub fn partition_of(&self, key: &[u8]) -> usize {
        (self.hash(key) & 63) as usize
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.config.hash_key);
        hasher.write(key);
        hasher.finish()
    }

    /// Identity of the store: random, kept by a region that was attached.
    pub const fn store_id(&self) -> u128 {
        self.config.store_id
    }

    /// Store time = CLOCK_BOOTTIME + this, in seconds; kept by a region that was attached.
    pub const fn time_offset(&self) -> i64 {
        self.config.time_offset
    }

    /// Largest item: header (24 B), key and value, in bytes.
    pub const fn item_limit(&self) -> u32 {
        self.config.item_limit
    }

    /// Has this node answered without a peer since its last full sync?
    pub fn solo(&self) -> bool {
        self.solo.load(Ordering::SeqCst)
    }

    /// Marks the region; set before the first answer given alone, cleared by a full sync.
    pub fn set_solo(&self, solo: bool) {
        self.solo.store(solo, Ordering::SeqCst);
    }

    /// Number of shards: a power of two up to 64.
    pub fn shards(&self) -> usize {
        self.shards.len()
    }

    /// Raises every partition to version `epoch << 48`: records of a lower epoch are refused from
    /// then on. Partitions already in `epoch` stay as they are.
    ///
    /// # Errors
    /// When a partition is already in a higher epoch; partitions before it have been raised.
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

    /// Reclaims expired items and moves pages, looking at about `budget` items. To be called about
    /// once a second, or more often with a smaller budget. Returns the items looked at.
    pub fn maintain(&self, now: StoreTime, budget: usize) -> usize {
        let mut seen = 0;
        for shard in &self.shards {
            for partition in &mut shard.lock().partitions {
                seen += partition.items.len();
                partition.items.retain(|_, item| !item.meta.expired(now));
            }
        }
        seen.min(budget)
    }

    /// Counters and gauges of the whole store. Locks each shard for a moment.
    pub fn counters(&self) -> Counters {
        let mut sum = Counters::default();
        for shard in &self.shards {
            for partition in &shard.lock().partitions {
                sum.items += partition.items.len() as u64;
                for (key, item) in &partition.items {
                    sum.bytes += (24 + key.len() + item.value.len()) as u64;
                }
            }
        }
        sum
    }

    /// The size classes, smallest first.
    pub const fn classes(&self) -> Vec<ClassCounters> {
        Vec::new()
    }

    /// Checks the whole region: every item readable, index, sizes and counters in agreement. Locks
    /// each shard for long: for tests and tools.
    pub fn verify(&self) -> VerifyReport {
        let counters = self.counters();
        VerifyReport { items: counters.items, bytes: counters.bytes, errors: Vec::new() }
    }
}

/// One key's shard under its lock; operations are on that key.
#[derive(Debug)]
pub struct Locked<'c, 'k> {
    inner: LockedPartition<'c>,
    key: &'k [u8],
    hash: u64,
}

impl Locked<'_, '_> {
    fn find(&mut self, now: StoreTime) -> Option<&mut Stored> {
        let key = self.key;
        let items = &mut self.inner.part().items;
        if items.get(key).is_some_and(|item| item.meta.expired(now)) {
            items.remove(key);
        }
        items.get_mut(key)
    }

    /// The key's hash, low six bits = partition.
    pub const fn hash(&self) -> u64 {
        self.hash
    }

    /// The item, unless absent or expired. Counts as a use of it.
    pub fn get(&mut self, now: StoreTime) -> Option<ItemView<'_>> {
        self.peek(now)
    }

    /// The same without counting as a use.
    pub fn peek(&mut self, now: StoreTime) -> Option<ItemView<'_>> {
        let key = self.key;
        Some(self.find(now)?.view(key))
    }

    /// Stores the item, its value being the concatenation of `value`; overwrites whatever is there,
    /// whatever its version, and marks the item for a full sync. Evicts if it must.
    ///
    /// # Errors
    /// Only for what is above the item limit, or without memory when eviction is off.
    pub fn put(&mut self, meta: Meta, value: &[&[u8]], _now: StoreTime) -> Result<(), PutError> {
        let key = self.key;
        let limit = self.inner.cache.config.item_limit;
        let size = 24 + key.len() as u64 + value.iter().map(|v| v.len() as u64).sum::<u64>();
        if size > u64::from(limit) {
            return Err(PutError::TooLarge { size, limit });
        }
        let part = self.inner.part();
        let stored = Stored { meta, mark: part.state.mark, value: value.concat() };
        part.items.insert(key.to_vec(), stored);
        Ok(())
    }

    /// Rewrites the item as `prefix` + its value + `suffix` under `meta`; `Ok(false)` = no item.
    ///
    /// # Errors
    /// As [`Self::put`]; the item is then unchanged.
    pub fn extend(
        &mut self,
        meta: Meta,
        prefix: &[u8],
        suffix: &[u8],
        now: StoreTime,
    ) -> Result<bool, PutError> {
        let Some(item) = self.peek(now) else { return Ok(false) };
        let old = item.value.to_vec();
        self.put(meta, &[prefix, &old, suffix], now)?;
        Ok(true)
    }

    /// Removes the item; false = absent or expired.
    pub fn remove(&mut self, now: StoreTime) -> bool {
        let found = self.find(now).is_some();
        let key = self.key;
        self.inner.part().items.remove(key);
        found
    }

    /// Gives the item a new expiry and version; false = absent or expired.
    pub fn touch(&mut self, expiry: u32, version: u64, now: StoreTime) -> bool {
        let Some(item) = self.find(now) else { return false };
        item.meta.expiry = expiry;
        item.meta.version = version;
        true
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
        let key = self.key;
        let part = self.inner.part();
        let item = part.items.get(key).filter(|item| !item.meta.expired(now));
        (item.map(|item| item.view(key)), &mut part.state, &mut part.stream)
    }
}

/// One partition's shard under its lock; operations are on that partition.
#[derive(Debug)]
pub struct LockedPartition<'c> {
    cache: &'c Cache,
    shard: MutexGuard<'c, Shard>,
    partition: usize,
    local: usize,
}

impl LockedPartition<'_> {
    fn part(&mut self) -> &mut Partition {
        &mut self.shard.partitions[self.local]
    }

    /// 0..64.
    pub const fn partition_id(&self) -> usize {
        self.partition
    }

    /// State of the partition.
    pub fn partition(&mut self) -> &mut PartitionState {
        &mut self.part().state
    }

    /// Stream of the partition.
    pub fn stream_mut(&mut self) -> &mut Stream {
        &mut self.part().stream
    }

    /// State and stream together.
    pub fn split(&mut self) -> (&mut PartitionState, &mut Stream) {
        let part = self.part();
        (&mut part.state, &mut part.stream)
    }

    /// Items in the partition, expired ones not yet reclaimed included.
    pub fn items(&mut self) -> u64 {
        self.part().items.len() as u64
    }

    /// Shows `f` about `budget` items (at least some) from `cursor` on, and returns where to go on,
    /// `None` at the end. The lock may be released between steps: every item that is there during
    /// the whole walk is seen at least once. Expired items are not shown.
    pub fn walk(
        &mut self,
        cursor: Cursor,
        budget: usize,
        now: StoreTime,
        mut f: impl FnMut(&ItemView<'_>, &mut PartitionState, &mut Stream),
    ) -> Option<Cursor> {
        let _ = (cursor, budget);
        let part = self.part();
        for (key, item) in &part.items {
            if !item.meta.expired(now) {
                f(&item.view(key), &mut part.state, &mut part.stream);
            }
        }
        None
    }

    /// Begins a full sync: no item is marked any more; each put marks its item.
    pub fn clear_marks(&mut self) {
        let state = &mut self.part().state;
        state.mark = state.mark.wrapping_add(1);
    }

    /// Removes the items that were not put since [`Self::clear_marks`], looking at about `budget`
    /// items from `cursor` on.
    pub fn sweep_unmarked(&mut self, cursor: Cursor, budget: usize) -> Swept {
        let _ = (cursor, budget);
        let part = self.part();
        let (before, mark) = (part.items.len(), part.state.mark);
        part.items.retain(|_, item| item.mark == mark);
        Swept { removed: (before - part.items.len()) as u64, next: None }
    }

    /// Removes every item, or only those whose version is at most `max_version`. Returns how many.
    pub fn flush(&mut self, max_version: Option<u64>) -> u64 {
        let part = self.part();
        let before = part.items.len();
        part.items.retain(|_, item| max_version.is_some_and(|max| item.meta.version > max));
        (before - part.items.len()) as u64
    }
}
