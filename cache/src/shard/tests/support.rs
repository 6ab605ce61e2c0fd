//! Small stores, recognizable values, and a copy of a store's region as a killed process leaves it.

use std::collections::BTreeMap;

use parking_lot::MutexGuard;
use zerocopy::IntoBytes;

use crate::shard::Shard;
use crate::store::internal::make;
use crate::store::{Cursor, Layout, Meta, PARTITIONS, Region, StoreConfig, StoreTime};
use crate::{Cache, Locked};

pub(crate) const CONFIG: StoreConfig = StoreConfig {
    hash_key: [3; 16],
    store_id: 7,
    item_limit: 64 << 10,
    evict: true,
    time_offset: -4,
    shards: Some(1),
};

/// A store with short chains in its index, so that its further lines are used.
pub(crate) fn small_layout(page_size: usize, pages: usize) -> Layout {
    Layout { header_len: 12288 + PARTITIONS * 128 + pages * 64, page_size, pages }
}

/// The header of page `n`: stamp 8.., fresh 16.., free list 20.., used 24.., earliest expiry 28..;
/// first the owner: number 0..4, shard 4, class 5, 0x5450 (0 = nobody's).
pub(crate) fn page_header(region: &mut Region, n: usize) -> &mut [u8] {
    let at = region.header.len() - region.pages.len() * 64 + n * 64;
    &mut region.header[at..at + 64]
}

pub(crate) fn store(layout: &Layout, config: StoreConfig) -> Cache {
    Cache::create(config, Region::leaked(layout)).unwrap()
}

pub(crate) fn meta(version: u64, expiry: u32, flags: u32) -> Meta {
    Meta { version, expiry, flags }
}

/// Bytes that say what they are: any mixture or shift of two values shows.
pub(crate) fn value(seed: u32, len: usize) -> Vec<u8> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ len as u64;
    let byte = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 56) as u8
    };
    (0..len).map(byte).collect()
}

/// Puts a value that says what it is, with the next version.
pub(crate) fn fill(cache: &Cache, key: &[u8], size: usize, now: StoreTime) {
    let mut locked = cache.lock(key);
    let version = locked.partition().next_version();
    let seed = version as u32;
    locked.put(meta(version, 0, seed), &[&value(seed, size)], now).unwrap();
}

/// Every item that a walk shows: key → meta, value.
pub(crate) fn content(cache: &Cache, now: StoreTime) -> BTreeMap<Vec<u8>, (Meta, Vec<u8>)> {
    let mut all = BTreeMap::new();
    for partition in 0..PARTITIONS {
        let mut cursor = Some(Cursor::START);
        while let Some(at) = cursor {
            cursor = cache.lock_partition(partition).walk(at, 7, now, |item, _, _| {
                let meta = meta(item.version, item.expiry, item.flags);
                let twice = all.insert(item.key.to_vec(), (meta, item.value.to_vec()));
                assert!(twice.is_none(), "seen twice in a still store");
            });
        }
    }
    all
}

pub(crate) fn keys_of_partition(cache: &Cache, partition: usize, count: usize) -> Vec<Vec<u8>> {
    let keys = (0..u32::MAX).map(|n| format!("key-{n}").into_bytes());
    keys.filter(|key| cache.partition_of(key) == partition).take(count).collect()
}

impl Locked<'_, '_> {
    /// Evictions of this shard so far.
    pub(crate) fn inner_evictions(&self) -> u64 {
        self.shard_for_test().counters.evictions
    }
}

/// The region as it is at this moment.
pub(crate) fn copy_region(cache: &Cache) -> Region {
    let shards: Vec<MutexGuard<'_, Shard>> =
        cache.common_for_test().shards.iter().map(|shard| shard.lock()).collect();
    let refs: Vec<&Shard> = shards.iter().map(|shard| &**shard).collect();
    copy_shards(&cache.layout_for_test(), &refs)
}

/// The same from the shards. Pages in the pool hold what an earlier life may have left: anything.
/// Pages are not where they were.
pub(crate) fn copy_shards(layout: &Layout, shards: &[&Shard]) -> Region {
    let mut region = Region::leaked(layout);
    make(&mut region, &StoreConfig { shards: Some(shards.len()), ..CONFIG }, true).unwrap();
    let index_len = (layout.header_len - 12288 - layout.pages * 64) / PARTITIONS;
    let mut next = layout.pages;
    for shard in shards {
        let guard = 8192 + usize::from(shard.number) * 64;
        let odd = u64::from(shard.guard.is_odd());
        region.header[guard..guard + 8].copy_from_slice(&odd.to_ne_bytes());
        for (n, part) in shard.parts.iter().enumerate() {
            let partition = usize::from(shard.number) * shard.parts.len() + n;
            let state = 4096 + partition * 64;
            region.header[state..state + 64].copy_from_slice(part.state.as_bytes());
            let index = 12288 + partition * index_len;
            region.header[index..index + index_len].copy_from_slice(part.index.bytes());
        }
        for local in 1..shard.slabs.locals_end() {
            let Some(page) = shard.slabs.page(local) else { continue };
            next -= 1;
            page_header(&mut region, next).copy_from_slice(page.header.as_bytes());
            region.pages[next].copy_from_slice(page.body);
        }
    }
    for (n, page) in region.pages[..next].iter_mut().enumerate() {
        page.fill(n as u8);
    }
    region
}
