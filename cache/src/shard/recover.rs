//! A shard whose guard word is odd: the process that was changing it was killed.
//!
//! Index, counters and free lists are taken for nothing and made anew from the pages: every chunk
//! below a page's `fresh` whose state is LIVE, whose lengths and check fit, whose hash belongs here
//! and whose chain is whole is an item. Of two with the same key the higher version stays.

use super::{KEY_MAX, Shard};
use crate::store::StoreTime;
use crate::store::internal::{LIVE, Pool};

/// By local page and slot: the chunks that belong to something.
struct Kept(Vec<Vec<bool>>);

impl Kept {
    fn set(&mut self, local: u32, slot: u32, kept: bool) {
        let page = self.0.get_mut(local as usize);
        if let Some(chunk) = page.and_then(|page| page.get_mut(slot as usize)) {
            *chunk = kept;
        }
    }

    fn get(&self, local: u32, slot: u32) -> bool {
        self.0.get(local as usize).and_then(|page| page.get(slot as usize)) == Some(&true)
    }
}

impl Shard {
    /// Makes everything anew from the pages; returns how many published items were not whole.
    pub(crate) fn rebuild(&mut self, pool: &Pool) -> u64 {
        self.guard.enter();
        self.slabs.relist();
        self.forget(pool);
        let mut kept = self.nothing_kept();
        let mut dropped = 0;
        for local in 1..self.slabs.locals_end() {
            let fresh = self.slabs.page(local).map_or(0, |p| p.header.fresh.min(p.slots));
            let index = self.slabs.geometry.index_class();
            if self.slabs.page(local).is_none_or(|page| page.class == index) {
                continue;
            }
            for slot in 0..fresh {
                let location = self.slabs.location(local, slot);
                let live = self.slabs.item(location).is_some_and(|item| item.state() == LIVE);
                if live && !self.restore(pool, location, &mut kept) {
                    dropped += 1;
                }
            }
        }
        self.relink(&kept);
        self.slabs.relist();
        self.release_empties(pool);
        self.guard.leave();
        dropped
    }

    /// An empty shard, every page back to the pool: when it cannot be rebuilt, or is flushed.
    pub(crate) fn empty(&mut self, pool: &Pool) {
        self.guard.enter();
        self.step();
        self.forget(pool);
        self.step();
        for local in 1..self.slabs.locals_end() {
            if let Some(page) = self.slabs.remove_page(local) {
                pool.push(page);
                self.step();
            }
        }
        self.slabs.relist();
        self.guard.leave();
    }

    /// Forgets the index, and gives the pages of its further lines back.
    fn forget(&mut self, pool: &Pool) {
        let index = self.slabs.geometry.index_class();
        for local in 1..self.slabs.locals_end() {
            if self.slabs.page(local).is_some_and(|page| page.class == index)
                && let Some(page) = self.slabs.remove_page(local)
            {
                pool.push(page);
            }
        }
        for part in &mut self.parts {
            part.index.clear();
            part.state.items = 0;
            part.state.bytes = 0;
        }
    }

    fn nothing_kept(&self) -> Kept {
        let slots = |local| self.slabs.page(local).map_or(0, |page| page.slots as usize);
        Kept((0..self.slabs.locals_end()).map(|local| vec![false; slots(local)]).collect())
    }

    /// Enters a published item in the index if it is whole; false = it is not, or lost to a newer
    /// one of the same key that is not an ordinary overwrite.
    fn restore(&mut self, pool: &Pool, location: u32, kept: &mut Kept) -> bool {
        let Some((hash, version, size)) = self.whole(location) else { return false };
        let Some(number) = self.part_of(hash) else { return false };
        let Some(view) = self.slabs.view(location) else { return false };
        let Some(part) = self.parts.get(number) else { return false };
        if let Some(other) = part.index.find(&self.slabs, hash, view.key) {
            let older = self.slabs.item(other.location).copied();
            if older.is_some_and(|older| older.version >= version) {
                return true;
            }
            self.keep(kept, other.location, false);
            let Some(part) = self.parts.get_mut(number) else { return false };
            part.index.replace(&mut self.slabs, other, location);
            part.state.bytes -= older.map_or(0, |older| older.size());
        } else {
            if !self.room_in_index(pool, number, hash) {
                return false;
            }
            let Some(part) = self.parts.get_mut(number) else { return false };
            part.index.insert(&mut self.slabs, hash, location);
            part.state.items += 1;
        }
        self.keep(kept, location, true);
        let Some(part) = self.parts.get_mut(number) else { return false };
        part.state.bytes += size;
        part.state.raise_version(version);
        true
    }

    /// Is the item at `location` all there? Its hash, version and size.
    pub(super) fn whole(&self, location: u32) -> Option<(u64, u64, u64)> {
        let item = self.slabs.item(location)?;
        let local = self.slabs.local_of(location);
        let view = self.slabs.view(location)?;
        let hash = self.rules.hash(view.key);
        let class_fits = self.slabs.page(local)?.class == item.class;
        let key_fits = (1..=KEY_MAX).contains(&view.key.len());
        let total = item.value_len as usize;
        let complete = view.value.map(<[u8]>::len).sum::<usize>() == total;
        let checked = item.check == item.expected_check(hash);
        let all = class_fits && key_fits && complete && checked;
        all.then(|| (hash, item.version, item.size()))
    }

    fn room_in_index(&mut self, pool: &Pool, number: usize, hash: u64) -> bool {
        let Some(part) = self.parts.get(number) else { return false };
        if part.index.has_hole(&self.slabs, hash) {
            return true;
        }
        let class = self.slabs.geometry.index_class();
        let line = self.slabs.take(class).or_else(|| {
            let page = pool.pop()?;
            self.slabs.add_page(page, class, StoreTime(0));
            self.slabs.take(class)
        });
        let (Some(line), Some(part)) = (line, self.parts.get_mut(number)) else { return false };
        part.index.add_line(&mut self.slabs, hash, line);
        true
    }

    /// Marks an item's chunks.
    fn keep(&self, kept: &mut Kept, head: u32, keep: bool) {
        let mut set = |at| kept.set(self.slabs.local_of(at), self.slabs.slot_of(at), keep);
        set(head);
        let mut pieces = self.slabs.pieces(head);
        while let Some((piece, _)) = pieces.next_part() {
            set(piece);
        }
    }

    /// Free lists, use counts and earliest expiries anew.
    fn relink(&mut self, kept: &Kept) {
        let index = self.slabs.geometry.index_class();
        for local in 1..self.slabs.locals_end() {
            let Some(page) = self.slabs.page_mut(local) else { continue };
            if page.class == index {
                continue;
            }
            page.rebuild_free(|slot| kept.get(local, slot));
            page.header.min_expiry = 0;
            for slot in 0..page.header.fresh {
                let expiry = match page.item(slot) {
                    Some(item) if item.state() == LIVE => item.expiry,
                    _ => 0,
                };
                page.note_expiry(expiry);
            }
        }
    }
}
