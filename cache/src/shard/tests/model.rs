//! Random operations against a map, with so little memory that items are evicted all the time.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::support::{
    CONFIG, content, copy_region, keys_of_partition, meta, small_layout, store, value,
};
use crate::Cache;
use crate::store::{Cursor, Meta, StoreConfig, StoreTime};

#[derive(Clone, Debug)]
enum Operation {
    Put { key: u8, size: usize, lives: u32 },
    Extend { key: u8, prefix: usize, suffix: usize },
    Get { key: u8 },
    Remove { key: u8 },
    Touch { key: u8, lives: u32 },
    Flush { partition: usize },
    Pass { seconds: u32 },
    Maintain,
    Reattach,
}

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0..200usize, 3 => 0..2500usize, 1 => 0..14_000usize]
}

fn lives() -> impl Strategy<Value = u32> {
    prop_oneof![2 => Just(0u32), 1 => 1..40u32]
}

fn operation() -> impl Strategy<Value = Operation> {
    let key = 0..50u8;
    prop_oneof![
        10 => (key.clone(), size(), lives())
            .prop_map(|(key, size, lives)| Operation::Put { key, size, lives }),
        2 => (key.clone(), 0..900usize, 0..900usize)
            .prop_map(|(key, prefix, suffix)| Operation::Extend { key, prefix, suffix }),
        4 => key.clone().prop_map(|key| Operation::Get { key }),
        2 => key.clone().prop_map(|key| Operation::Remove { key }),
        1 => (key, lives()).prop_map(|(key, lives)| Operation::Touch { key, lives }),
        1 => (0..64usize).prop_map(|partition| Operation::Flush { partition }),
        2 => (1..20u32).prop_map(|seconds| Operation::Pass { seconds }),
        1 => Just(Operation::Maintain),
        1 => Just(Operation::Reattach),
    ]
}

/// The store and what should be in it.
struct Pair {
    cache: Cache,
    config: StoreConfig,
    model: BTreeMap<Vec<u8>, (Meta, Vec<u8>)>,
    now: u32,
    writes: u32,
}

impl Pair {
    fn live(&self, key: &[u8]) -> Option<&(Meta, Vec<u8>)> {
        self.model.get(key).filter(|(meta, _)| !meta.expired(StoreTime(self.now)))
    }

    fn expiry(&self, lives: u32) -> u32 {
        if lives == 0 { 0 } else { self.now + lives }
    }

    /// Does one operation to both; true if it wrote an item.
    fn apply(&mut self, operation: &Operation) -> bool {
        let now = StoreTime(self.now);
        self.writes += 1;
        match *operation {
            Operation::Put { key, size, lives } => {
                let (key, bytes) = ([key].to_vec(), value(self.writes, size));
                let meta = meta(self.writes.into(), self.expiry(lives), self.writes);
                self.cache.lock(&key).put(meta, &[&bytes], now).unwrap();
                self.model.insert(key, (meta, bytes));
                return true;
            }
            Operation::Extend { key, prefix, suffix } => {
                let (before, after) = (value(1, prefix), value(2, suffix));
                let meta = meta(self.writes.into(), 0, self.writes);
                let there = self.cache.lock(&[key]).peek(now).is_some();
                let done = self.cache.lock(&[key]).extend(meta, &before, &after, now);
                let Some((_, old)) = self.live(&[key]).cloned() else {
                    assert_eq!(done, Ok(false));
                    return false;
                };
                if done.is_ok() {
                    assert_eq!(done, Ok(there));
                    self.model.insert([key].to_vec(), (meta, [before, old, after].concat()));
                }
                return true;
            }
            Operation::Get { key } => {
                let found = self.cache.lock(&[key]).get(now).map(|item| item.value.to_vec());
                assert_eq!(found.as_ref(), self.live(&[key]).map(|(_, bytes)| bytes));
            }
            Operation::Remove { key } => {
                let there = self.live(&[key]).is_some();
                assert_eq!(self.cache.lock(&[key]).remove(now), there);
                self.model.remove(&[key][..]);
            }
            Operation::Touch { key, lives } => {
                let (there, expiry) = (self.live(&[key]).is_some(), self.expiry(lives));
                let version = u64::from(self.writes);
                assert_eq!(self.cache.lock(&[key]).touch(expiry, version, now), there);
                if let Some((meta, _)) = self.model.get_mut(&[key][..]).filter(|_| there) {
                    (meta.expiry, meta.version) = (expiry, version);
                }
            }
            Operation::Flush { partition } => {
                self.cache.lock_partition(partition).flush(None);
                let cache = &self.cache;
                self.model.retain(|key, _| cache.partition_of(key) != partition);
            }
            Operation::Pass { seconds } => self.now += seconds,
            Operation::Maintain => {
                self.cache.maintain(now, usize::MAX);
                let live = content(&self.cache, now).len() as u64;
                assert_eq!(self.cache.counters().items, live, "nothing expired is left");
            }
            Operation::Reattach => {
                let region = copy_region(&self.cache);
                self.cache = Cache::attach(self.config.clone(), region).unwrap().0;
            }
        }
        false
    }

    /// Everything that is there is right, and nothing is missing that was not evicted.
    fn compare(&mut self, evicted: u64, wrote: bool) {
        let now = StoreTime(self.now);
        self.model.retain(|_, (meta, _)| !meta.expired(now));
        let found = content(&self.cache, now);
        let missing: BTreeSet<Vec<u8>> =
            self.model.keys().filter(|key| !found.contains_key(*key)).cloned().collect();
        self.model.retain(|key, _| !missing.contains(key));
        assert_eq!(found, self.model);
        // a write may have evicted the very item that it replaced
        let missing = missing.len() as u64;
        assert!(missing <= evicted && evicted <= missing + u64::from(wrote), "{missing} {evicted}");
        assert_eq!(self.cache.verify().errors, Vec::<String>::new());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_a_map_that_forgets_only_what_it_counts(
        operations in proptest::collection::vec(operation(), 1..150),
        shards in 0..3u32,
    ) {
        let config = StoreConfig { shards: Some(1 << shards), ..CONFIG };
        let cache = store(&small_layout(4096, 24), config.clone());
        let mut pair = Pair { cache, config, model: BTreeMap::new(), now: 1000, writes: 0 };
        for operation in &operations {
            let reattach = matches!(operation, Operation::Reattach);
            let before = if reattach { 0 } else { pair.cache.counters().evictions };
            let wrote = pair.apply(operation);
            let evicted = pair.cache.counters().evictions - before;
            pair.compare(evicted, wrote);
        }
    }

    #[test]
    fn a_walk_sees_whatever_stays_while_everything_else_changes(
        budget in 1..40usize,
        changes in proptest::collection::vec((0..300usize, 0..3u8, 0..300usize), 20..200),
        per_step in 1..20usize,
    ) {
        let layout = crate::store::Layout::for_memory(2 << 20);
        let cache = store(&layout, CONFIG);
        let keys = keys_of_partition(&cache, 9, 400);
        let (stay, move_about) = keys.split_at(100);
        let now = StoreTime(1000);
        let mut version = 0;
        let mut put = |key: &[u8], size| {
            version += 1;
            cache.lock(key).put(meta(version, 0, 1), &[&value(1, size)], now).unwrap();
        };
        for key in &keys {
            put(key, 30);
        }
        let mut changes = changes.chunks(per_step);
        let mut seen = BTreeSet::new();
        let mut cursor = Some(Cursor::START);
        while let Some(at) = cursor {
            let mut partition = cache.lock_partition(9);
            cursor = partition.walk(at, budget, now, |item, _, _| {
                seen.insert(item.key.to_vec());
            });
            drop(partition);
            for &(n, what, size) in changes.next().unwrap_or(&[]) {
                match what {
                    0 => _ = cache.lock(&move_about[n]).remove(now),
                    1 => put(&move_about[n], size),
                    _ => put(&stay[n % 100], size),
                }
            }
        }
        prop_assert!(stay.iter().all(|key| seen.contains(key)));
    }
}
