//! A process killed between any two steps: at each of them the region is copied, attached to, and
//! checked against what had been completed before and the one operation under way.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::support::{
    CONFIG, content, copy_region, copy_shards, fill, meta, page_header, small_layout, store, value,
};
use crate::Cache;
use crate::shard::Shard;
use crate::store::internal::Geometry;
use crate::store::{AttachReport, Layout, Region, StoreTime};

const NOW: StoreTime = StoreTime(1000);

type Hook = Box<dyn FnMut(&Shard)>;

thread_local! {
    static HOOK: RefCell<Option<Hook>> = const { RefCell::new(None) };
}

/// Called by the shard between two stores whose order matters.
pub(crate) fn probe(shard: &Shard) {
    // taken out while it runs: it attaches to copies, which have steps of their own
    let hook = HOOK.with(|hook| hook.borrow_mut().take());
    if let Some(mut hook) = hook {
        hook(shard);
        HOOK.with(|slot| *slot.borrow_mut() = Some(hook));
    }
}

/// Seed of a value and its length.
type Written = (u32, usize);

/// Items as completed operations left them.
type Done = BTreeMap<Vec<u8>, Written>;

#[derive(Default)]
struct World {
    done: Done,
    /// Key of the operation under way, and what it puts there.
    now: Option<(Vec<u8>, Option<Written>)>,
    evictions_before: u64,
    steps: u64,
    checked: u64,
    odd: u64,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(World::default());
}

/// What a rebuild must not rely on, spoilt.
fn spoil(region: &mut Region) {
    for partition in 0..64 {
        region.header[4096 + partition * 64 + 24..][..16].fill(0xee);
    }
    let table = region.header.len() - region.pages.len() * 64;
    region.header[12288..table].fill(0x77);
    for n in 0..region.pages.len() {
        page_header(region, n)[20..32].fill(0x55);
    }
}

fn check_copy(layout: &Layout, shard: &Shard) {
    WORLD.with(|world| {
        let world = &mut *world.borrow_mut();
        world.steps += 1;
        if world.steps % 5 != 0 {
            return;
        }
        world.checked += 1;
        let mut region = copy_shards(layout, &[shard]);
        let odd = shard.guard.is_odd();
        if odd {
            world.odd += 1;
            spoil(&mut region);
        }
        let (cache, report) = Cache::attach(CONFIG, region).unwrap();
        check_attached(world, &cache, &report, odd, shard.counters.evictions);
    });
}

fn check_attached(world: &World, cache: &Cache, report: &AttachReport, odd: bool, evictions: u64) {
    let step = world.steps;
    assert_eq!(report.odd_shards.len(), usize::from(odd), "step {step}: {report:?}");
    assert_eq!((report.items_dropped, report.pages_dropped), (0, 0), "step {step}");
    assert!(report.emptied_shards.is_empty(), "step {step}");
    assert_eq!(cache.verify().errors, Vec::<String>::new(), "step {step}, odd: {odd}");
    let found = content(cache, NOW);
    for (key, (meta, bytes)) in &found {
        assert_eq!(*bytes, value(meta.flags, bytes.len()), "step {step}: wrong bytes");
        let seen = (meta.flags, bytes.len());
        let done = world.done.get(key) == Some(&seen);
        let under_way = world.now.as_ref().is_some_and(|(k, v)| k == key && *v == Some(seen));
        assert!(done || under_way, "step {step}: a value that is neither old nor new");
    }
    let removing = |key: &Vec<u8>| world.now.as_ref().is_some_and(|(k, v)| k == key && v.is_none());
    let missing = world.done.keys().filter(|key| !found.contains_key(*key) && !removing(key));
    let allowed = evictions - world.evictions_before;
    assert!(missing.count() as u64 <= allowed, "step {step}: an item was lost");
    // and the store that was attached works
    for n in 0..3u32 {
        fill(cache, &n.to_be_bytes(), 500, NOW);
    }
    assert_eq!(cache.verify().errors, Vec::<String>::new(), "step {step}, after attach");
}

fn begin(cache: &Cache, key: &[u8], puts: Option<Written>) {
    let evictions = cache.counters().evictions;
    WORLD.with(|world| {
        let world = &mut *world.borrow_mut();
        world.evictions_before = evictions;
        world.now = Some((key.to_vec(), puts));
    });
}

fn finish(cache: &Cache) {
    let found = content(cache, NOW);
    let sizes = found.into_iter().map(|(key, (meta, bytes))| (key, (meta.flags, bytes.len())));
    WORLD.with(|world| {
        let world = &mut *world.borrow_mut();
        world.done = sizes.collect();
        world.now = None;
    });
}

fn play(cache: &Cache, operations: u32, mut seed: u32) {
    for n in 1..=operations {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let key = format!("key-{}", (seed >> 20) % 60).into_bytes();
        let size = match (seed >> 8) % 8 {
            0..4 => (seed >> 12) as usize % 120,
            4..7 => (seed >> 12) as usize % 1500,
            _ => (seed >> 12) as usize % 12_000,
        };
        let version = cache.lock(&key).partition().next_version();
        match (seed >> 4) % 8 {
            0 => {
                begin(cache, &key, None);
                cache.lock(&key).remove(NOW);
            }
            1 => {
                begin(cache, &key, None);
                cache.lock(&key).touch(0, version, NOW);
            }
            _ => {
                begin(cache, &key, Some((n, size)));
                cache.lock(&key).put(meta(version, 0, n), &[&value(n, size)], NOW).unwrap();
            }
        }
        finish(cache);
    }
}

#[test]
fn a_kill_between_any_two_steps_loses_nothing_and_invents_nothing() {
    let layout = small_layout(4096, 16);
    let cache = store(&layout, CONFIG);
    HOOK.with(|hook| *hook.borrow_mut() = Some(Box::new(move |shard| check_copy(&layout, shard))));
    play(&cache, 900, 20_261_122);
    HOOK.with(|hook| *hook.borrow_mut() = None);
    let evictions = cache.counters().evictions;
    WORLD.with(|world| {
        let world = world.borrow();
        println!("{} copies checked, {} odd, {evictions} evictions", world.checked, world.odd);
        assert!(world.checked > 500 && world.odd > 300 && evictions > 100);
    });
}

#[test]
fn a_damaged_item_in_an_odd_shard_is_dropped_and_counted() {
    let layout = small_layout(4096, 32);
    let cache = store(&layout, CONFIG);
    for n in 0..40u32 {
        fill(&cache, &n.to_be_bytes(), 60, NOW);
    }
    fill(&cache, b"chained", 9000, NOW);
    let whole = content(&cache, NOW);
    let geometry = Geometry::new(4096);
    let attach = |damage: &dyn Fn(&mut [u8], u8) -> bool| {
        let mut region = copy_region(&cache);
        region.header[8192] = 1;
        let damaged = (0..region.pages.len()).any(|n| {
            let (owned, class) =
                (page_header(&mut region, n)[7] != 0, page_header(&mut region, n)[5]);
            owned && damage(region.pages[n], class)
        });
        assert!(damaged);
        let (attached, report) = Cache::attach(CONFIG, region).unwrap();
        assert_eq!(attached.verify().errors, Vec::<String>::new());
        assert_eq!(report.odd_shards, [0]);
        (content(&attached, NOW), report.items_dropped)
    };
    let at = |page: &[u8], class: u8, state: u8, key_len: u8| {
        let size = geometry.chunk(class);
        let mut chunks = (0..=4096 - size).step_by(size);
        chunks.find(|&at| page[at + 21] & 3 == state && page[at + 20] == key_len)
    };
    // a key that is not the one it was written with
    let (left, dropped) = attach(&|page, class| {
        let Some(at) = at(page, class, 2, 4) else { return false };
        page[at + 27] ^= 0x40;
        true
    });
    assert_eq!((left.len(), dropped), (whole.len() - 1, 1));
    // a chain whose second chunk was never published
    let (left, dropped) = attach(&|page, class| {
        let Some(at) = at(page, class, 3, 0) else { return false };
        page[at + 21] = 0;
        true
    });
    assert_eq!((left.len(), dropped), (whole.len() - 1, 1));
    assert!(!left.contains_key(&b"chained"[..]));
}
