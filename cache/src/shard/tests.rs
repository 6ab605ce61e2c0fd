//! The store through its facade: limits, classes, eviction, expiry, marks, walks, attach.

mod model;
mod support;
pub(super) mod torn;

use std::collections::BTreeSet;

use self::support::{
    CONFIG, content, copy_region, fill, keys_of_partition, meta, page_header, small_layout, store,
    value,
};
use crate::store::internal::Geometry;
use crate::store::{AttachKind, Cursor, Layout, Meta, PutError, Region, RejectReason, StoreTime};
use crate::{Cache, StoreConfig};

const NOW: StoreTime = StoreTime(1000);

#[test]
fn every_size_comes_back_around_every_boundary() {
    for page_size in [4 << 10, 64 << 10] {
        let geometry = Geometry::new(page_size);
        let config = StoreConfig { item_limit: 200 << 10, ..CONFIG };
        let cache = store(&small_layout(page_size, 512), config);
        let key = b"a-key-of-sixteen";
        let mut sizes = BTreeSet::from([0, 1]);
        let overhead = 24 + key.len();
        for class in 0..geometry.items() as u8 {
            let exact = geometry.chunk(class).saturating_sub(overhead);
            sizes.extend([exact.saturating_sub(1), exact, exact + 1]);
        }
        for pieces in 0..5 {
            let exact = geometry.head_room(key.len()) + pieces * geometry.piece_room();
            sizes.extend([exact - 1, exact, exact + 1]);
        }
        let limit = cache.item_limit() as usize;
        sizes.extend([limit - overhead - 1, limit - overhead]);
        for size in sizes {
            let (before, after) = (value(size as u32, size), value(7, 33));
            cache.lock(b"neighbour").put(meta(1, 0, 7), &[&after], NOW).unwrap();
            let (a, b) = before.split_at(size / 3);
            cache.lock(key).put(meta(2, 0, size as u32), &[a, &[], b], NOW).unwrap();
            let mut locked = cache.lock(key);
            let item = locked.get(NOW).unwrap();
            assert_eq!((item.value.len(), item.version, item.flags), (size, 2, size as u32));
            assert_eq!(item.value.to_vec(), before, "{size} of {page_size}");
            drop(locked);
            assert_eq!(cache.lock(b"neighbour").get(NOW).unwrap().value.to_vec(), after);
            assert_eq!(cache.verify().errors, Vec::<String>::new(), "{size} of {page_size}");
        }
        let too_large = cache.lock(key).put(meta(3, 0, 0), &[&value(0, limit)], NOW);
        assert!(matches!(too_large, Err(PutError::TooLarge { .. })), "{too_large:?}");
        assert!(cache.lock(key).get(NOW).is_some(), "a refused put leaves the old item");
        assert!(cache.lock(key).remove(NOW) && cache.lock(b"neighbour").remove(NOW));
        let counters = cache.counters();
        assert_eq!((counters.items, counters.bytes), (0, 0));
        assert_eq!(counters.pages_free, counters.pages, "an empty store owns no page");
    }
}

#[test]
fn keys_have_limits() {
    let cache = store(&small_layout(4096, 16), CONFIG);
    let longest = [b'k'; 250];
    cache.lock(&longest).put(meta(1, 0, 0), &[&value(0, 4000)], NOW).unwrap();
    assert_eq!(cache.lock(&longest).get(NOW).unwrap().value.to_vec(), value(0, 4000));
    for key in [&[b'k'; 251][..], b""] {
        let refused = cache.lock(key).put(meta(1, 0, 0), &[b"v"], NOW);
        assert_eq!(refused, Err(PutError::KeyLength(key.len())));
    }
}

#[test]
fn an_item_of_typical_size_costs_at_most_36_bytes_all_in() {
    let layout = Layout::for_memory(32 << 20);
    let cache = store(&layout, StoreConfig { shards: None, ..CONFIG });
    let mut n = 0u32;
    while cache.lock(b"x").inner_evictions() == 0 {
        for _ in 0..500 {
            n += 1;
            fill(&cache, format!("key-{n:012}").as_bytes(), 100, NOW);
        }
    }
    let counters = cache.counters();
    assert_eq!(counters.bytes, counters.items * (24 + 16 + 100));
    let overhead = layout.total() as f64 / counters.items as f64 - 116.0;
    println!("{} items in {} B: {overhead:.2} B overhead an item", counters.items, layout.total());
    println!("{} of {} pages for the index", counters.pages_index, counters.pages);
    assert!(overhead <= 36.0, "{overhead} B an item");
}

#[test]
fn tiny_items_are_limited_by_memory_not_by_the_index() {
    let layout = Layout::for_memory(1 << 20);
    let cache = store(&layout, CONFIG);
    for n in 0..40_000u32 {
        fill(&cache, &n.to_be_bytes(), 4, NOW);
    }
    let counters = cache.counters();
    // 32 B chunks and about 6.5 B of index: what is left for slack is small
    assert!(counters.items > (1 << 20) / 46, "{counters:?}");
    cache.check_invariants();
}

#[test]
fn small_memory_serves_forty_classes_beside_a_full_one() {
    let layout = Layout::for_memory(64 << 20);
    let cache = store(&layout, StoreConfig { shards: None, ..CONFIG });
    let geometry = Geometry::new(layout.page_size);
    for n in 0..90_000u32 {
        fill(&cache, &n.to_be_bytes(), 800, NOW);
    }
    assert!(cache.counters().evictions > 0);
    let later = StoreTime(NOW.0 + 100);
    let classes: Vec<usize> = (4..44).map(|class| geometry.chunk(class) - 24 - 8).collect();
    let key = |size: usize, n: u32| [(size as u32).to_be_bytes(), n.to_be_bytes()].concat();
    for &size in &classes {
        for n in 0..10 {
            fill(&cache, &key(size, n), size, later);
        }
    }
    for &size in &classes {
        for n in 0..10 {
            assert!(cache.lock(&key(size, n)).get(later).is_some(), "{n} of {size}");
        }
    }
    assert!(cache.counters().page_moves > 0);
}

#[test]
fn what_is_read_outlives_what_is_not() {
    let cache = store(&Layout::for_memory(256 << 10), CONFIG);
    let hot: Vec<[u8; 4]> = (0..50u32).map(u32::to_be_bytes).collect();
    for key in &hot {
        fill(&cache, key, 100, NOW);
    }
    for n in 1000..11_000u32 {
        let now = StoreTime(NOW.0 + n / 100);
        fill(&cache, &n.to_be_bytes(), 100, now);
        if n % 50 == 0 {
            for key in &hot {
                cache.lock(key).get(now);
            }
        }
    }
    let kept = hot.iter().filter(|key| cache.lock(*key).peek(NOW).is_some()).count();
    let counters = cache.counters();
    assert!(kept > 40, "{kept} of 50 hot items kept; {counters:?}");
    assert!(counters.evicted_unfetched > 0 && counters.evicted_bytes >= counters.evictions * 128);
}

#[test]
fn without_eviction_a_full_store_refuses_until_something_expires() {
    let cache = store(&small_layout(4096, 16), StoreConfig { evict: false, ..CONFIG });
    let mut stored = 0u32;
    let refused = loop {
        let expiry = if stored < 50 { 1100 } else { 0 };
        let key = stored.to_be_bytes();
        match cache.lock(&key).put(meta(1, expiry, stored), &[&value(stored, 500)], NOW) {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(refused, PutError::NoMemory);
    assert_eq!(u64::from(stored), cache.counters().items);
    assert!(cache.verify().is_ok(), "a refused put leaves nothing behind");
    for n in 100_000..100_020u32 {
        fill(&cache, &n.to_be_bytes(), 500, StoreTime(1100));
    }
    assert_eq!(cache.counters().evictions, 0);
    assert!(cache.counters().reclaimed >= 20);
}

#[test]
fn the_sweep_reclaims_what_has_expired_and_nothing_else() {
    let cache = store(&small_layout(4096, 256), StoreConfig { shards: Some(4), ..CONFIG });
    for n in 0..2000u32 {
        let expiry = if n % 2 == 0 { 0 } else { 1010 + n % 10 };
        let key = n.to_be_bytes();
        cache.lock(&key).put(meta(1, expiry, n), &[&value(n, 60)], NOW).unwrap();
    }
    assert_eq!(cache.maintain(StoreTime(1009), 1 << 20), 0, "nothing is due");
    cache.maintain(StoreTime(1015), 1 << 20);
    assert_eq!(cache.counters().items, 1000 + 400, "1011, 1013, 1015 are gone");
    let mut steps = 0;
    while cache.maintain(StoreTime(1020), 500) >= 500 {
        steps += 1;
    }
    assert!(steps > 1, "a small budget takes several steps");
    let counters = cache.counters();
    assert_eq!((counters.items, counters.reclaimed, counters.expired), (1000, 1000, 0));
    cache.check_invariants();
}

#[test]
fn touch_and_expiry_work_to_the_second() {
    let cache = store(&small_layout(4096, 16), CONFIG);
    cache.lock(b"k").put(meta(5, 1010, 0), &[b"v"], NOW).unwrap();
    assert!(cache.lock(b"k").touch(1001, 6, NOW));
    assert!(cache.lock(b"k").get(NOW).is_some_and(|item| (item.version, item.expiry) == (6, 1001)));
    assert!(cache.lock(b"k").get(StoreTime(1001)).is_none());
    assert_eq!(cache.counters().expired, 1);
    assert!(!cache.lock(b"k").touch(0, 7, NOW) && !cache.lock(b"k").remove(NOW));
    cache.lock(b"k").put(meta(8, 1, 0), &[b"v"], NOW).unwrap();
    assert!(!cache.lock(b"k").remove(NOW), "an expired item is not there to be removed");
    assert_eq!(cache.lock(b"k").partition().version(), 8);
}

#[test]
fn extend_adds_on_both_sides_also_across_chunks() {
    let cache = store(&small_layout(4096, 64), CONFIG);
    assert_eq!(cache.lock(b"k").extend(meta(1, 0, 0), b"a", b"b", NOW), Ok(false));
    let mut expected = b"middle".to_vec();
    cache.lock(b"k").put(meta(1, 0, 0), &[&expected], NOW).unwrap();
    for n in 2..60u32 {
        let (prefix, suffix) = (value(n, n as usize * 3), value(n + 99, n as usize * 5));
        assert_eq!(cache.lock(b"k").extend(meta(n.into(), 0, 0), &prefix, &suffix, NOW), Ok(true));
        expected = [prefix, expected, suffix].concat();
        assert_eq!(cache.lock(b"k").get(NOW).unwrap().value.to_vec(), expected);
    }
    cache.check_invariants();
}

#[test]
fn a_sync_sweeps_what_it_did_not_name_however_often_it_was_begun() {
    let cache = store(&small_layout(4096, 256), CONFIG);
    let keys = keys_of_partition(&cache, 5, 200);
    for begun in 1..=20 {
        for key in &keys {
            fill(&cache, key, 40, NOW);
        }
        let named = &keys[..120];
        for round in 0..begun {
            cache.lock_partition(5).clear_marks();
            for key in named.iter().skip(round) {
                fill(&cache, key, 40, NOW);
            }
        }
        let (mut cursor, mut removed) = (Cursor::START, 0);
        loop {
            let step = cache.lock_partition(5).sweep_unmarked(cursor, 10);
            removed += step.removed;
            match step.next {
                Some(next) => cursor = next,
                None => break,
            }
        }
        assert_eq!(removed, 80 + begun as u64 - 1, "begun {begun} times");
        assert_eq!(cache.lock_partition(5).items(), 120 - (begun as u64 - 1));
        cache.check_invariants();
    }
}

#[test]
fn a_flush_takes_a_partition_or_what_is_old_in_it() {
    for shards in [1, 64] {
        flush_with(shards);
    }
}

fn flush_with(shards: usize) {
    let config = StoreConfig { shards: Some(shards), ..CONFIG };
    let cache = store(&small_layout(4096, 256), config);
    let (flushed, other) = (keys_of_partition(&cache, 3, 90), keys_of_partition(&cache, 4, 10));
    for (version, key) in (1..).zip(flushed.iter().chain(&other)) {
        cache.lock(key).put(meta(version, 0, 0), &[b"v"], NOW).unwrap();
    }
    assert_eq!(cache.lock_partition(3).flush(Some(40)), 40);
    assert!(cache.lock(&flushed[39]).get(NOW).is_none());
    assert!(cache.lock(&flushed[40]).get(NOW).is_some());
    assert_eq!(cache.lock_partition(3).flush(None), 50);
    assert_eq!(cache.counters().items, 10);
    cache.check_invariants();
    for key in &flushed {
        fill(&cache, key, 3000, NOW);
    }
    assert_eq!(cache.lock_partition(3).items(), 90);
    cache.check_invariants();
}

#[test]
fn promotion_raises_every_partition_once_and_never_lowers() {
    let cache = store(&small_layout(4096, 16), CONFIG);
    cache.promote(3).unwrap();
    assert_eq!(cache.lock(b"k").partition().next_version(), (3 << 48) + 1);
    cache.promote(3).unwrap();
    assert_eq!(cache.lock(b"k").partition().version(), (3 << 48) + 1);
    cache.promote(4).unwrap();
    assert!((0..64).all(|p| cache.lock_partition(p).partition().version() == 4 << 48));
    assert_eq!(cache.promote(3).unwrap_err().version, 4 << 48);
    assert!(cache.promote(1 << 15).is_err());
}

#[test]
fn attach_keeps_a_whole_store_and_refuses_anything_else() {
    let layout = small_layout(4096, 64);
    let (fresh, report) = Cache::attach(CONFIG, Region::leaked(&layout)).unwrap();
    assert_eq!((report.kind, fresh.store_id()), (AttachKind::Fresh, CONFIG.store_id));
    for n in 0..3000u32 {
        fill(&fresh, &n.to_be_bytes(), 20 + n as usize % 300, NOW);
    }
    fresh.set_solo(true);
    let before = content(&fresh, NOW);
    let other = StoreConfig { store_id: 99, time_offset: 5, ..CONFIG };
    let (kept, report) = Cache::attach(other.clone(), copy_region(&fresh)).unwrap();
    assert_eq!((report.kind, report.items), (AttachKind::Kept, before.len() as u64));
    assert_eq!((report.odd_shards.len(), report.pages_dropped), (0, 0));
    assert_eq!(content(&kept, NOW), before);
    assert_eq!((kept.store_id(), kept.time_offset()), (CONFIG.store_id, CONFIG.time_offset));
    assert!(kept.verify().is_ok());
    // it goes on living
    for n in 3000..6000u32 {
        fill(&kept, &n.to_be_bytes(), 20 + n as usize % 300, NOW);
    }
    assert!(kept.verify().is_ok());

    let refusal = |config: &StoreConfig, change: &dyn Fn(&mut Region)| {
        let mut region = copy_region(&fresh);
        change(&mut region);
        let (cache, report) = Cache::attach(config.clone(), region).unwrap();
        assert!(content(&cache, NOW).is_empty() && cache.verify().is_ok());
        assert_eq!(cache.store_id(), config.store_id);
        assert!(!cache.solo());
        report.kind
    };
    let rejected = AttachKind::Rejected;
    let key = StoreConfig { hash_key: [9; 16], ..other.clone() };
    assert_eq!(refusal(&key, &|_| ()), rejected(RejectReason::HashKey));
    assert_eq!(refusal(&other, &|r| r.header[0] ^= 1), rejected(RejectReason::Magic));
    assert_eq!(refusal(&other, &|r| r.header[8] ^= 1), rejected(RejectReason::LayoutVersion));
    assert_eq!(refusal(&other, &|r| r.header[12] = 3), rejected(RejectReason::Sizes));
    let making = |r: &mut Region| r.header[..8].copy_from_slice(b"TandemMk");
    assert_eq!(refusal(&other, &making), rejected(RejectReason::Incomplete));
}

#[test]
fn a_page_that_contradicts_costs_its_shard_and_nothing_else() {
    let cache = store(&small_layout(4096, 64), StoreConfig { shards: Some(4), ..CONFIG });
    for n in 0..300u32 {
        fill(&cache, &n.to_be_bytes(), 100, NOW);
    }
    let whole = content(&cache, NOW);
    let mut region = copy_region(&cache);
    let second = |n: &usize| page_header(&mut region, *n)[0] == 2;
    let twin = (0..64).find(second).unwrap();
    let broken = usize::from(page_header(&mut region, twin)[4]);
    page_header(&mut region, twin)[0] = 1;
    let (attached, report) = Cache::attach(CONFIG, region).unwrap();
    assert_eq!(report.emptied_shards, [broken as u32]);
    assert_eq!(report.pages_dropped, 1);
    let left = content(&attached, NOW);
    let expected = whole.into_iter().filter(|(key, _)| attached.partition_of(key) / 16 != broken);
    assert_eq!(left, expected.collect());
    assert!(attached.verify().is_ok());

    let mut region = copy_region(&cache);
    page_header(&mut region, twin)[6] ^= 0xff;
    let (attached, report) = Cache::attach(CONFIG, region).unwrap();
    assert_eq!((report.odd_shards.len(), report.pages_dropped), (4, 1));
    assert!(attached.verify().is_ok(), "{:?}", attached.verify());
    assert!(attached.counters().items > 200);
}

#[test]
fn workers_on_all_shards_leave_a_sound_store() {
    let cache = store(&small_layout(4096, 64), StoreConfig { shards: Some(4), ..CONFIG });
    std::thread::scope(|scope| {
        for worker in 0..4u32 {
            let cache = &cache;
            scope.spawn(move || {
                let mut seed = worker + 1;
                for _ in 0..4000 {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    let (key, size) = ((seed >> 16) % 400, (seed >> 8) as usize % 3000);
                    let key = key.to_be_bytes();
                    match seed >> 29 {
                        0..4 => fill(cache, &key, size, NOW),
                        4..7 => {
                            if let Some(item) = cache.lock(&key).get(NOW) {
                                assert_eq!(
                                    item.value.to_vec(),
                                    value(item.flags, item.value.len())
                                );
                            }
                        }
                        _ => _ = cache.lock(&key).remove(NOW),
                    }
                }
            });
        }
    });
    assert!(cache.counters().page_moves > 0, "{:?}", cache.counters());
    assert_eq!(cache.verify().errors, Vec::<String>::new());
}

#[test]
fn meta_expires_at_its_second() {
    let at = |expiry| Meta { expiry, ..Meta::default() }.expired(NOW);
    assert_eq!([at(0), at(999), at(1000), at(1001)], [false, true, true, false]);
}
