//! Room: which item, and which page, goes when memory is full; and what has expired.
//!
//! Per class a clock: its hand goes over the class's pages in the order they were filled, slot by
//! slot; an item that was used since is spared and counted down, the first that was not goes. The
//! classes' oldest pages are compared every now and then: a page much older than the oldest one of
//! the class in need is emptied and changes its class, or its shard.

use std::sync::atomic::Ordering;

use super::{Common, Shard, expired};
use crate::store::StoreTime;
use crate::store::internal::{LIVE, PIECE, Page, Pool, fixed};

/// Slots that the hand looks at before it no longer spares anything.
const SPARE: usize = 256;
/// Slots that the hand looks at in all.
const LOOK: usize = 1 << 16;
/// Evictions between two comparisons of the classes' ages.
const COMPARE: u32 = 32;
/// Rounds over all shards' locks when no page is left here.
const STEAL_ROUNDS: usize = 1000;

/// Is `a` so much older than `b` that moving a page pays? Ages in seconds << 16.
const fn much_older(a: u64, b: u64) -> bool {
    a > b + b / 2 + (1 << 16)
}

impl Shard {
    /// Frees at least one chunk of `class`, or adds a page to it.
    pub(super) fn make_room(&mut self, common: &Common, class: u8, now: StoreTime) -> bool {
        if !self.rules.evict {
            return self.reclaim_any(&common.pool, now);
        }
        let index = class == self.slabs.geometry.index_class();
        let until = &mut self.slabs.classes[usize::from(class)].until_compare;
        if !index && *until > 0 {
            *until -= 1;
            if self.clock(class, now) {
                return true;
            }
        }
        let oldest = self.slabs.oldest(None);
        self.tell_oldest(common);
        let age = |stamp: u64| fixed(now).saturating_sub(stamp);
        if let Some((other, stamp)) = common.oldest_other(self.number)
            && oldest.is_none_or(|(mine, _)| much_older(age(stamp), age(mine)))
            && self.steal(common, other, class, now)
        {
            return true;
        }
        let own = if index { None } else { self.slabs.oldest(Some(class)) };
        let Some((stamp, local)) = oldest else {
            return self.steal_any(common, class, now);
        };
        let stay = own.is_some_and(|(own, _)| !much_older(age(stamp), age(own)));
        if stay {
            self.slabs.classes[usize::from(class)].until_compare = COMPARE;
            if self.clock(class, now) {
                return true;
            }
        }
        match self.empty_page(local, now) {
            Some(page) => {
                self.counters.page_moves += 1;
                self.slabs.add_page(page, class, now);
                true
            }
            None => false,
        }
    }

    /// Says how old the oldest page is here.
    pub(crate) fn tell_oldest(&self, common: &Common) {
        let oldest = self.slabs.oldest(None);
        if let Some(word) = common.oldest.get(usize::from(self.number)) {
            word.store(oldest.map_or(0, |(stamp, _)| stamp), Ordering::Relaxed);
        }
    }

    /// Takes a page from another shard, if its lock is free at this moment. Never waits: that shard
    /// may be waiting for this one.
    fn steal(&mut self, common: &Common, other: usize, class: u8, now: StoreTime) -> bool {
        let page = common.shards.get(other).and_then(|shard| {
            let mut shard = shard.try_lock()?;
            let page = shard.surrender(now);
            shard.tell_oldest(common);
            page
        });
        let Some(page) = page else { return false };
        self.counters.page_moves += 1;
        self.slabs.add_page(page, class, now);
        true
    }

    /// The same from whichever shard can.
    fn steal_any(&mut self, common: &Common, class: u8, now: StoreTime) -> bool {
        for _ in 0..STEAL_ROUNDS {
            for other in 0..common.shards.len() {
                if other != usize::from(self.number) && self.steal(common, other, class, now) {
                    return true;
                }
            }
            if common.pool.len() > 0 {
                return true;
            }
            std::hint::spin_loop();
        }
        false
    }

    /// Gives the oldest page away.
    fn surrender(&mut self, now: StoreTime) -> Option<Page> {
        let (_, local) = self.slabs.oldest(None)?;
        self.guard.enter();
        let page = self.empty_page(local, now);
        // other pages may have become empty with it (chains); the next change releases them
        self.step();
        self.guard.leave();
        page
    }

    /// Evicts all that a page holds and takes it out.
    fn empty_page(&mut self, local: u32, now: StoreTime) -> Option<Page> {
        let fresh = self.slabs.page(local)?.header.fresh;
        for slot in 0..fresh {
            let location = self.slabs.location(local, slot);
            if let Some(head) = self.head_of(location) {
                self.evict(head, now);
            }
        }
        self.slabs.remove_page(local)
    }

    /// The first chunk of the item that the chunk at `location` belongs to.
    fn head_of(&self, location: u32) -> Option<u32> {
        let item = self.slabs.item(location)?;
        match item.state() {
            LIVE => Some(location),
            PIECE => {
                let (head, _) = item.links();
                self.slabs.item(head).filter(|item| item.state() == LIVE).map(|_| head)
            }
            _ => None,
        }
    }

    /// Evicts an item, or reclaims it if it has expired.
    fn evict(&mut self, location: u32, now: StoreTime) {
        let local = self.slabs.local_of(location);
        let (Some(item), Some(page)) = (self.slabs.item(location), self.slabs.page(local)) else {
            return;
        };
        let (size, fetched) = (item.size(), item.fetched());
        let age = (fixed(now).saturating_sub(page.header.stamp) >> 16) as u32;
        if expired(item, now) {
            self.counters.reclaimed += 1;
        } else {
            let class = usize::from(page.class);
            let counters = &mut self.counters;
            let youngest = counters.youngest_evicted_age;
            counters.youngest_evicted_age =
                if counters.evictions == 0 { age } else { youngest.min(age) };
            counters.evictions += 1;
            counters.evicted_bytes += size;
            counters.evicted_unfetched += u64::from(!fetched);
            counters.evicted_age = age;
            self.slabs.classes[class].evictions += 1;
        }
        self.drop_item(location);
    }

    /// Moves the hand of `class` until a chunk of it is free.
    fn clock(&mut self, class: u8, now: StoreTime) -> bool {
        for looked in 0..LOOK {
            let list = &mut self.slabs.classes[usize::from(class)];
            let Some(&local) = list.order.front() else { return false };
            let slot = list.hand;
            let Some(page) = self.slabs.page_mut(local) else { return false };
            if slot >= page.header.fresh {
                if page.pending == 0 {
                    page.header.stamp = fixed(now);
                }
                let list = &mut self.slabs.classes[usize::from(class)];
                list.order.rotate_left(1);
                list.hand = 0;
                continue;
            }
            self.slabs.classes[usize::from(class)].hand += 1;
            let location = self.slabs.location(local, slot);
            let Some(head) = self.head_of(location) else { continue };
            let Some(item) = self.slabs.item_mut(head) else { continue };
            let spare = item.frequency() > 0 && !expired(item, now) && looked < SPARE;
            if !spare {
                self.evict(head, now);
                return true;
            }
            if head == location {
                item.passed();
            }
        }
        false
    }

    /// Without eviction: only what has expired makes room.
    fn reclaim_any(&mut self, pool: &Pool, now: StoreTime) -> bool {
        let before = self.counters.reclaimed;
        for local in 1..self.slabs.locals_end() {
            if self.is_due(local, now) {
                self.sweep_page(local, now);
            }
        }
        self.release_empties(pool);
        self.counters.reclaimed > before
    }

    /// Does something in this page expire by now?
    fn is_due(&self, local: u32, now: StoreTime) -> bool {
        let page = self.slabs.page(local);
        page.is_some_and(|page| (1..=now.0).contains(&page.header.min_expiry))
    }

    /// Reclaims expired items, looking at about `budget` slots; returns how many it looked at, and
    /// whether every page was considered.
    pub(crate) fn sweep(&mut self, pool: &Pool, now: StoreTime, budget: usize) -> (usize, bool) {
        if self.next_due > now.0 {
            return (0, true);
        }
        let mut seen = 0;
        for _ in 0..self.slabs.locals_end() {
            if self.sweep_at >= self.slabs.locals_end() {
                self.sweep_at = 1;
            }
            let local = self.sweep_at;
            if self.is_due(local, now) {
                if seen >= budget {
                    return (seen, false);
                }
                seen += self.change(pool, |shard| shard.sweep_page(local, now));
            }
            self.sweep_at += 1;
        }
        let expiries = self.slabs.locals().filter_map(|local| self.slabs.page(local));
        let expiries = expiries.map(|page| page.header.min_expiry).filter(|&expiry| expiry != 0);
        self.next_due = expiries.min().unwrap_or(u32::MAX);
        (seen, true)
    }

    /// Says how old the oldest page is here, once a second.
    pub(crate) fn tell_oldest_timely(&mut self, common: &Common, now: StoreTime) {
        if self.told_at != now.0 {
            self.told_at = now.0;
            self.tell_oldest(common);
        }
    }

    /// Reclaims the expired items of a page and finds out when the next one expires.
    fn sweep_page(&mut self, local: u32, now: StoreTime) -> usize {
        let Some(page) = self.slabs.page(local) else { return 0 };
        if page.class == self.slabs.geometry.index_class() {
            return 0;
        }
        let fresh = page.header.fresh;
        let mut min = 0;
        for slot in 0..fresh {
            let location = self.slabs.location(local, slot);
            let Some(item) = self.slabs.item(location) else { continue };
            if expired(item, now) {
                self.counters.reclaimed += 1;
                self.drop_item(location);
            } else if item.state() == LIVE && item.expiry != 0 {
                min = if min == 0 { item.expiry } else { item.expiry.min(min) };
            }
        }
        if let Some(page) = self.slabs.page_mut(local) {
            page.header.min_expiry = min;
        }
        fresh as usize
    }
}
