//! Operations on a whole partition: resumable walk, marks of a full sync, sweep, flush.
//!
//! A cursor is a bucket number. An item never changes its bucket and the number of buckets never
//! changes, so whatever happens between two steps, an item that is there all the time is seen.

use super::{Shard, expired};
use crate::replication::Stream;
use crate::store::internal::{ItemHeader, MARKS, Pool};
use crate::store::{Cursor, ItemView, PartitionState, StoreTime, Swept};

impl Shard {
    /// Shows about `budget` items from `cursor` on.
    pub(crate) fn walk(
        &mut self,
        number: usize,
        cursor: Cursor,
        budget: usize,
        now: StoreTime,
        mut f: impl FnMut(&ItemView<'_>, &mut PartitionState, &mut Stream),
    ) -> Option<Cursor> {
        let part = self.parts.get_mut(number)?;
        let (mut seen, mut bucket) = (0, cursor.0);
        while bucket < part.index.buckets() {
            if seen >= budget.max(1) {
                return Some(Cursor(bucket));
            }
            for (entry, _) in part.index.entries(&self.slabs, bucket) {
                seen += 1;
                let Some(item) = self.slabs.item(entry.location) else { continue };
                if expired(item, now) {
                    continue;
                }
                if let Some(view) = self.slabs.view(entry.location) {
                    f(&view, part.state, &mut part.stream);
                }
            }
            // empty buckets cost something too
            seen += 1;
            bucket += 1;
        }
        None
    }

    /// Removes, of one bucket, the items that `which` names; returns how many, and how many it saw.
    fn remove_from_bucket(
        &mut self,
        pool: &Pool,
        number: usize,
        bucket: u32,
        which: impl Fn(&ItemHeader) -> bool,
    ) -> (u64, usize) {
        let Some(part) = self.parts.get(number) else { return (0, 0) };
        let mut seen = 1;
        let mut doomed = Vec::new();
        for (entry, _) in part.index.entries(&self.slabs, bucket) {
            seen += 1;
            if self.slabs.item(entry.location).is_some_and(&which) {
                doomed.push(entry.location);
            }
        }
        if !doomed.is_empty() {
            self.change(pool, |shard| {
                for &location in &doomed {
                    shard.drop_item(location);
                }
            });
        }
        (doomed.len() as u64, seen)
    }

    /// Removes every item, or those with a version of at most `max`.
    pub(crate) fn flush(&mut self, pool: &Pool, number: usize, max: Option<u64>) -> u64 {
        let Some(part) = self.parts.get(number) else { return 0 };
        let (buckets, items) = (part.index.buckets(), part.state.items);
        // no item has a version that the partition has not
        let all = max.is_none_or(|max| max >= part.state.version());
        if all && self.parts.len() == 1 {
            self.empty(pool);
            return items;
        }
        let doomed = |item: &ItemHeader| all || max.is_some_and(|max| item.version <= max);
        (0..buckets).map(|b| self.remove_from_bucket(pool, number, b, doomed).0).sum()
    }

    /// Begins a new generation of marks, which no item has.
    pub(crate) fn clear_marks(&mut self, number: usize) {
        let Some(part) = self.parts.get(number) else { return };
        if part.state.unswept >= MARKS - 1 {
            // all generations are about: make them one
            let (mark, buckets) = (part.state.mark, part.index.buckets());
            for bucket in 0..buckets {
                self.remark(number, bucket, mark);
            }
            if let Some(part) = self.parts.get_mut(number) {
                part.state.unswept = 0;
            }
        }
        let Some(part) = self.parts.get_mut(number) else { return };
        part.state.unswept += 1;
        self.step();
        let Some(part) = self.parts.get_mut(number) else { return };
        part.state.mark = part.state.mark.wrapping_add(1) % MARKS;
    }

    fn remark(&mut self, number: usize, bucket: u32, mark: u8) {
        let Some(part) = self.parts.get(number) else { return };
        let entries = part.index.entries(&self.slabs, bucket);
        let locations: Vec<u32> = entries.map(|(entry, _)| entry.location).collect();
        for location in locations {
            if let Some(item) = self.slabs.item_mut(location) {
                item.set_mark(mark);
            }
        }
    }

    /// Removes the items of older generations, looking at about `budget` from `cursor` on.
    pub(crate) fn sweep_unmarked(
        &mut self,
        pool: &Pool,
        number: usize,
        cursor: Cursor,
        budget: usize,
    ) -> Swept {
        let Some(part) = self.parts.get(number) else { return Swept::default() };
        let (mark, buckets) = (part.state.mark, part.index.buckets());
        let (mut seen, mut removed) = (0, 0);
        for bucket in cursor.0..buckets {
            if seen >= budget.max(1) {
                return Swept { removed, next: Some(Cursor(bucket)) };
            }
            let step = self.remove_from_bucket(pool, number, bucket, |item| item.mark() != mark);
            removed += step.0;
            seen += step.1;
        }
        if let Some(part) = self.parts.get_mut(number) {
            part.state.unswept = 0;
        }
        Swept { removed, next: None }
    }
}
