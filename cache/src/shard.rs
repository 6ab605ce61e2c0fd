//! One shard: whole partitions, their index and pages, under one lock.
//!
//! What it is: the operations on items, each leaving the region such that a process killed between
//! any two stores leaves nothing wrong behind: an item is written in full while its chunk is
//! PENDING, published by its state byte, then entered in the index, and only then is what it
//! replaces freed. Meanwhile the shard's guard word is odd, and whoever attaches to an odd shard
//! trusts nothing but pages and published items (`recover`). What it is not: the lock itself, which
//! is the facade's.

mod counters;
mod evict;
mod recover;
#[cfg(test)]
mod tests;
mod verify;
mod walk;

use std::hash::Hasher;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use siphasher::sip::SipHasher13;
use zerocopy::FromBytes;

use crate::replication::Stream;
use crate::store::internal::{
    CHAIN_LINK, Entry, Guard, HEADER, Index, ItemHeader, LIVE, PIECE, Pool, Slabs, fixed,
    live_state, order,
};
use crate::store::{Counters, ItemView, Meta, PARTITIONS, PartitionState, PutError, StoreTime};

/// Longest key, in bytes (protocol.txt, "Keys").
pub(crate) const KEY_MAX: usize = 250;
/// Chunks an operation tries to free before it gives up.
const ROUNDS: usize = 64;

/// What the shards share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) pool: Pool,
    pub(crate) shards: Vec<Mutex<Shard>>,
    /// Per shard, the stamp of its oldest page when it last looked; 0 = not known.
    pub(crate) oldest: Vec<AtomicU64>,
}

impl Common {
    /// The shard with the oldest page, but for `number`.
    fn oldest_other(&self, number: u8) -> Option<(usize, u64)> {
        let stamps = self.oldest.iter().enumerate().map(|(n, s)| (n, s.load(Ordering::Relaxed)));
        let others = stamps.filter(|&(n, stamp)| n != usize::from(number) && stamp != 0);
        others.min_by_key(|&(_, stamp)| stamp)
    }
}

/// One partition.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) state: &'static mut PartitionState,
    pub(crate) index: Index,
    pub(crate) stream: Stream,
}

/// What an operation is about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target<'k> {
    /// Number of the partition within its shard.
    pub(crate) part: usize,
    pub(crate) hash: u64,
    pub(crate) key: &'k [u8],
}

/// What every shard of a store is made with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) hash_key: [u8; 16],
    pub(crate) limit: u32,
    pub(crate) evict: bool,
}

impl Rules {
    pub(crate) fn hash(&self, key: &[u8]) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.hash_key);
        hasher.write(key);
        hasher.finish()
    }
}

/// One shard.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) number: u8,
    pub(crate) guard: Guard,
    pub(crate) slabs: Slabs,
    pub(crate) parts: Vec<Part>,
    pub(crate) rules: Rules,
    /// Only the counters; gauges are made when asked for.
    pub(crate) counters: Counters,
    /// Next page that the expiry sweep looks at.
    sweep_at: u32,
    /// Nothing expires before this store time; 0 = not known.
    next_due: u32,
    /// When the age of the oldest page was last told, store time.
    told_at: u32,
    /// Reused by [`Self::extend`].
    scratch: Vec<u8>,
    /// Reused: the chunks of one item.
    chunks: Vec<u32>,
}

impl Shard {
    pub(crate) fn new(
        number: u8,
        guard: Guard,
        slabs: Slabs,
        parts: Vec<Part>,
        rules: Rules,
    ) -> Self {
        let (scratch, chunks) = (Vec::new(), Vec::new());
        let counters = Counters::default();
        let (sweep_at, next_due, told_at) = (1, 0, 0);
        Self {
            number,
            guard,
            slabs,
            parts,
            rules,
            counters,
            sweep_at,
            next_due,
            told_at,
            scratch,
            chunks,
        }
    }

    /// A point between two stores whose order matters.
    #[inline]
    fn step(&self) {
        order();
        #[cfg(test)]
        tests::torn::probe(self);
    }

    /// Runs a change of the shard inside its guard.
    fn change<R>(&mut self, pool: &Pool, f: impl FnOnce(&mut Self) -> R) -> R {
        self.guard.enter();
        self.step();
        let result = f(self);
        self.release_empties(pool);
        self.step();
        self.guard.leave();
        result
    }

    /// Number within the shard of the partition of this hash; `None` if it is another shard's.
    fn part_of(&self, hash: u64) -> Option<usize> {
        let partition = (hash % PARTITIONS as u64) as usize;
        let per_shard = self.parts.len();
        (partition / per_shard == usize::from(self.number)).then_some(partition % per_shard)
    }

    fn find(&self, target: Target<'_>) -> Option<Entry> {
        let index = &self.parts.get(target.part)?.index;
        index.find(&self.slabs, target.hash, target.key)
    }

    /// The location of the item, unless absent or expired; an expired one is reclaimed.
    fn live(&mut self, pool: &Pool, target: Target<'_>, now: StoreTime) -> Option<u32> {
        let location = self.find(target)?.location;
        if expired(self.slabs.item(location)?, now) {
            self.counters.expired += 1;
            self.change(pool, |shard| shard.drop_item(location));
            return None;
        }
        Some(location)
    }

    /// The item, counted as used if `used`.
    pub(crate) fn get(
        &mut self,
        pool: &Pool,
        target: Target<'_>,
        now: StoreTime,
        used: bool,
    ) -> Option<ItemView<'_>> {
        let location = self.live(pool, target, now)?;
        if used && let Some(item) = self.slabs.item_mut(location) {
            item.used();
        }
        self.slabs.view(location)
    }

    /// Item, state and stream together.
    pub(crate) fn split_item(
        &mut self,
        target: Target<'_>,
        now: StoreTime,
    ) -> (Option<ItemView<'_>>, &mut PartitionState, &mut Stream) {
        let part = &mut self.parts[target.part];
        let entry = part.index.find(&self.slabs, target.hash, target.key);
        let item = entry.filter(|entry| {
            self.slabs.item(entry.location).is_some_and(|item| !expired(item, now))
        });
        let view = item.and_then(|entry| self.slabs.view(entry.location));
        (view, part.state, &mut part.stream)
    }

    /// Stores an item, whatever is there.
    pub(crate) fn put(
        &mut self,
        common: &Common,
        target: Target<'_>,
        meta: Meta,
        value: &[&[u8]],
        now: StoreTime,
    ) -> Result<(), PutError> {
        let key_len = target.key.len();
        if key_len == 0 || key_len > KEY_MAX {
            return Err(PutError::KeyLength(key_len));
        }
        let len = value.iter().fold(0u64, |sum, part| sum.saturating_add(part.len() as u64));
        let size = len.saturating_add((HEADER + key_len) as u64);
        let limit = self.rules.limit;
        if size > u64::from(limit) {
            return Err(PutError::TooLarge { size, limit });
        }
        self.change(&common.pool, |shard| {
            let mut chunks = std::mem::take(&mut shard.chunks);
            chunks.clear();
            let fits = shard.take_chunks(common, key_len, len as usize, now, &mut chunks)
                && shard.make_hole(common, target, now);
            if fits {
                shard.write(&chunks, target, meta, value, len as u32);
                shard.publish(&chunks, target, now);
            } else {
                for &chunk in &chunks {
                    shard.slabs.give(chunk);
                }
            }
            shard.chunks = chunks;
            if fits { Ok(()) } else { Err(PutError::NoMemory) }
        })
    }

    /// Takes the chunks for an item, first one first; false if there is no room, what was taken is
    /// in `chunks` all the same.
    fn take_chunks(
        &mut self,
        common: &Common,
        key: usize,
        value: usize,
        now: StoreTime,
        chunks: &mut Vec<u32>,
    ) -> bool {
        let geometry = std::sync::Arc::clone(&self.slabs.geometry);
        let mut size = (HEADER + key + value).min(geometry.max_chunk());
        let mut left = match geometry.chained(key, value) {
            true => value - geometry.head_room(key),
            false => 0,
        };
        loop {
            let Some(chunk) = self.obtain(common, geometry.class_for(size), now) else {
                return false;
            };
            chunks.push(chunk);
            self.step();
            if left == 0 {
                return true;
            }
            let part = left.min(geometry.piece_room());
            left -= part;
            size = HEADER + part;
        }
    }

    /// A chunk of `class`, if need be at the cost of other items.
    fn obtain(&mut self, common: &Common, class: u8, now: StoreTime) -> Option<u32> {
        for _ in 0..ROUNDS {
            if let Some(chunk) = self.slabs.take(class) {
                return Some(chunk);
            }
            if let Some(page) = common.pool.pop() {
                self.slabs.add_page(page, class, now);
                self.step();
                continue;
            }
            if !self.make_room(common, class, now) {
                return None;
            }
        }
        None
    }

    /// Makes sure that the index has room for the key.
    fn make_hole(&mut self, common: &Common, target: Target<'_>, now: StoreTime) -> bool {
        let Some(part) = self.parts.get(target.part) else { return false };
        if self.find(target).is_some() || part.index.has_hole(&self.slabs, target.hash) {
            return true;
        }
        let class = self.slabs.geometry.index_class();
        let Some(line) = self.obtain(common, class, now) else { return false };
        self.step();
        let Some(part) = self.parts.get_mut(target.part) else { return false };
        part.index.add_line(&mut self.slabs, target.hash, line);
        true
    }

    /// Writes header, key and value into pending chunks.
    fn write(&mut self, chunks: &[u32], to: Target<'_>, meta: Meta, value: &[&[u8]], len: u32) {
        let mut source = Source { parts: value, at: 0 };
        let chained = chunks.len() > 1;
        let mut left = len as usize;
        for (n, &chunk) in chunks.iter().enumerate() {
            let next = chunks.get(n + 1).copied().unwrap_or(0);
            let local = self.slabs.local_of(chunk);
            let class = self.slabs.page(local).map_or(0, |page| page.class);
            let Some(bytes) = self.slabs.chunk_mut(chunk) else { continue };
            let (head, mut body) = bytes.split_at_mut(HEADER);
            if n == 0 {
                if chained {
                    let (link, rest) = body.split_at_mut(CHAIN_LINK);
                    link.copy_from_slice(&next.to_ne_bytes());
                    body = rest;
                }
                let (key, rest) = body.split_at_mut(to.key.len());
                key.copy_from_slice(to.key);
                body = rest;
            }
            let part = left.min(body.len());
            source.fill(&mut body[..part]);
            left -= part;
            let Ok(header) = ItemHeader::mut_from_bytes(head) else { continue };
            header.class = class;
            if n == 0 {
                *header = ItemHeader { class, state: header.state, ..first_header(to, meta, len) };
                header.check = header.expected_check(to.hash);
            } else {
                header.version = u64::from(chunks[0]) << 32 | u64::from(next);
                header.value_len = part as u32;
                (header.expiry, header.flags, header.key_len) = (0, 0, 0);
            }
        }
        self.step();
    }

    /// Makes written chunks an item, in place of the one with the same key.
    fn publish(&mut self, chunks: &[u32], target: Target<'_>, now: StoreTime) {
        let Some((&head, pieces)) = chunks.split_first() else { return };
        for &piece in pieces {
            if let Some(item) = self.slabs.item_mut(piece) {
                item.state = PIECE;
            }
            self.slabs.settle(piece);
            self.stamp(piece, 0, now);
        }
        self.step();
        let old = self.find(target);
        let before = old.and_then(|old| self.slabs.item(old.location)).copied();
        let Some(part) = self.parts.get_mut(target.part) else { return };
        let (expiry, version) =
            self.slabs.item(head).map_or((0, 0), |item| (item.expiry, item.version));
        // no item may ever have a version that could be given out again
        part.state.raise_version(version);
        self.stamp(head, expiry, now);
        let Some(part) = self.parts.get_mut(target.part) else { return };
        if let Some(item) = self.slabs.item_mut(head) {
            order();
            item.state = live_state(part.state.mark, before.as_ref());
            part.state.bytes += item.size();
        }
        self.slabs.settle(head);
        self.step();
        let Some(part) = self.parts.get_mut(target.part) else { return };
        if let (Some(old), Some(before)) = (old, before) {
            part.index.replace(&mut self.slabs, old, head);
            part.state.bytes = part.state.bytes.saturating_sub(before.size());
            self.step();
            self.free_chunks(old.location);
        } else {
            part.index.insert(&mut self.slabs, target.hash, head);
            part.state.items += 1;
        }
        self.step();
    }

    /// A chunk has been written: its page is younger, and may have to be swept earlier.
    fn stamp(&mut self, location: u32, expiry: u32, now: StoreTime) {
        let local = self.slabs.local_of(location);
        if let Some(page) = self.slabs.page_mut(local) {
            page.stamp_write(fixed(now));
            page.note_expiry(expiry);
        }
        if expiry != 0 {
            self.next_due = self.next_due.min(expiry);
        }
    }

    /// Frees the chunks of an item that the index no longer names.
    fn free_chunks(&mut self, head: u32) {
        let mut rest = Vec::new();
        let mut pieces = self.slabs.pieces(head);
        while let Some((piece, _)) = pieces.next_part() {
            rest.push(piece);
        }
        self.slabs.give(head);
        self.step();
        for piece in rest {
            self.slabs.give(piece);
        }
    }

    /// Removes the item at `location` from index and pages; inside a change.
    fn drop_item(&mut self, location: u32) {
        let Some(view) = self.slabs.view(location) else { return };
        let hash = self.rules.hash(view.key);
        let size = self.slabs.item(location).map_or(0, ItemHeader::size);
        let Some(number) = self.part_of(hash) else { return };
        let Some(part) = self.parts.get_mut(number) else { return };
        if let Some(entry) = part.index.find_location(&self.slabs, hash, location) {
            if let Some(line) = part.index.remove(&mut self.slabs, hash, entry) {
                self.slabs.give(line);
            }
            part.state.items = part.state.items.saturating_sub(1);
            part.state.bytes = part.state.bytes.saturating_sub(size);
        }
        self.step();
        self.free_chunks(location);
        self.step();
    }

    /// Rewrites the item as prefix + value + suffix.
    pub(crate) fn extend(
        &mut self,
        common: &Common,
        target: Target<'_>,
        meta: Meta,
        around: (&[u8], &[u8]),
        now: StoreTime,
    ) -> Result<bool, PutError> {
        let Some(location) = self.live(&common.pool, target, now) else { return Ok(false) };
        let mut old = std::mem::take(&mut self.scratch);
        old.clear();
        for part in self.slabs.view(location).into_iter().flat_map(|view| view.value) {
            old.extend_from_slice(part);
        }
        let result = self.put(common, target, meta, &[around.0, &old, around.1], now);
        if old.capacity() <= 1 << 20 {
            self.scratch = old;
        }
        result.map(|()| true)
    }

    /// Removes the item; false = absent or expired.
    pub(crate) fn remove(&mut self, pool: &Pool, target: Target<'_>, now: StoreTime) -> bool {
        let Some(location) = self.live(pool, target, now) else { return false };
        self.change(pool, |shard| shard.drop_item(location));
        true
    }

    /// Gives the item a new expiry and version: two single stores, either of which may be the last
    /// that a killed process made, so no guard.
    pub(crate) fn touch(
        &mut self,
        pool: &Pool,
        target: Target<'_>,
        (expiry, version): (u32, u64),
        now: StoreTime,
    ) -> bool {
        let Some(location) = self.live(pool, target, now) else { return false };
        self.stamp(location, expiry, now);
        if let Some(part) = self.parts.get_mut(target.part) {
            part.state.raise_version(version);
        }
        order();
        let Some(item) = self.slabs.item_mut(location) else { return false };
        item.expiry = expiry;
        order();
        item.version = version;
        self.step();
        true
    }

    /// Pages in which nothing is left go back to the pool. Those of the index stay: the next item
    /// may need a line, and would have to evict a whole page for it.
    fn release_empties(&mut self, pool: &Pool) {
        let index = self.slabs.geometry.index_class();
        while let Some(local) = self.slabs.empties.pop() {
            let page = self.slabs.page(local);
            let empty = page.is_some_and(|page| page.header.used == 0 && page.class != index);
            if empty && let Some(page) = self.slabs.remove_page(local) {
                pool.push(page);
                self.step();
            }
        }
    }
}

fn expired(item: &ItemHeader, now: StoreTime) -> bool {
    item.state() == LIVE && item.expiry != 0 && item.expiry <= now.0
}

const fn first_header(target: Target<'_>, meta: Meta, len: u32) -> ItemHeader {
    ItemHeader {
        version: meta.version,
        expiry: meta.expiry,
        value_len: len,
        flags: meta.flags,
        key_len: target.key.len() as u8,
        state: 0,
        class: 0,
        check: 0,
    }
}

/// Slices read as one.
struct Source<'a> {
    parts: &'a [&'a [u8]],
    at: usize,
}

impl Source<'_> {
    fn fill(&mut self, mut to: &mut [u8]) {
        while !to.is_empty() {
            let Some((first, rest)) = self.parts.split_first() else { return };
            let from = first.get(self.at..).unwrap_or(&[]);
            if from.is_empty() {
                (self.parts, self.at) = (rest, 0);
                continue;
            }
            let len = from.len().min(to.len());
            let (now, later) = to.split_at_mut(len);
            now.copy_from_slice(&from[..len]);
            self.at += len;
            to = later;
        }
    }
}
