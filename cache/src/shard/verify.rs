//! A full check of a shard: for tests and tools, after a kill or at any other time.

use std::collections::HashSet;

use super::Shard;
use crate::store::VerifyReport;
use crate::store::internal::{Index, LIVE, PENDING, PIECE};

/// Lines of a report at most.
const ERRORS_MAX: usize = 100;

fn fault(report: &mut VerifyReport, text: impl FnOnce() -> String) {
    if report.errors.len() < ERRORS_MAX {
        report.errors.push(text());
    }
}

impl Shard {
    /// Adds what is found to `report`.
    pub(crate) fn verify(&self, report: &mut VerifyReport) {
        let mut used = HashSet::new();
        for number in 0..self.parts.len() {
            self.verify_part(number, &mut used, report);
        }
        for local in 1..self.slabs.locals_end() {
            self.verify_page(local, &used, report);
        }
        if self.guard.is_odd() {
            fault(report, || format!("shard {}: guard is odd", self.number));
        }
    }

    fn verify_part(&self, number: usize, used: &mut HashSet<u32>, report: &mut VerifyReport) {
        let Some(part) = self.parts.get(number) else { return };
        let (mut items, mut bytes) = (0, 0);
        let name = format!("shard {} partition {number}", self.number);
        for bucket in 0..part.index.buckets() {
            for line in part.index.page_lines(&self.slabs, bucket) {
                if !used.insert(line) {
                    fault(report, || format!("{name}: line {line:#x} twice"));
                }
            }
            for (entry, tag) in part.index.entries(&self.slabs, bucket) {
                let at = entry.location;
                let Some((hash, version, size)) = self.whole(at) else {
                    fault(report, || format!("{name}: no whole item at {at:#x}"));
                    continue;
                };
                let placed = part.index.bucket_of(hash) == bucket && Index::tag_matches(hash, tag);
                if !placed || self.part_of(hash) != Some(number) {
                    fault(report, || format!("{name}: item at {at:#x} in the wrong place"));
                }
                if version > part.state.version() {
                    fault(report, || format!("{name}: version {version:#x} was never used"));
                }
                self.use_chunks(at, used, report);
                items += 1;
                bytes += size;
            }
        }
        if (items, bytes) != (part.state.items, part.state.bytes) {
            let counted = (part.state.items, part.state.bytes);
            fault(report, || format!("{name}: {items} items, {bytes} B, counted {counted:?}"));
        }
        report.items += items;
        report.bytes += bytes;
    }

    fn use_chunks(&self, head: u32, used: &mut HashSet<u32>, report: &mut VerifyReport) {
        let mut pieces = self.slabs.pieces(head);
        let mut at = head;
        loop {
            if !used.insert(at) {
                fault(report, || format!("shard {}: chunk {at:#x} twice", self.number));
            }
            match pieces.next_part() {
                Some((next, _)) => at = next,
                None => return,
            }
        }
    }

    fn verify_page(&self, local: u32, used: &HashSet<u32>, report: &mut VerifyReport) {
        let Some(page) = self.slabs.page(local) else { return };
        let name = format!("shard {} page {local} class {}", self.number, page.class);
        let index = page.class == self.slabs.geometry.index_class();
        let mut in_use = 0;
        for slot in 0..page.header.fresh.min(page.slots) {
            let named = used.contains(&self.slabs.location(local, slot));
            in_use += u32::from(named);
            let state = page.item(slot).map_or(0, |item| item.state());
            if !index && (matches!(state, LIVE | PIECE | PENDING) != named) {
                fault(report, || format!("{name}: slot {slot} state {state}, named: {named}"));
            }
            let expiry = page.item(slot).map_or(0, |item| item.expiry);
            let min = page.header.min_expiry;
            if !index && state == LIVE && expiry != 0 && (min == 0 || expiry < min) {
                fault(report, || format!("{name}: slot {slot} expires before the page does"));
            }
        }
        let (fresh, counted) = (page.header.fresh, page.header.used);
        if in_use != counted || page.pending != 0 || fresh > page.slots {
            fault(report, || format!("{name}: {in_use} in use, counted {counted}, fresh {fresh}"));
        }
        if page.count_free() != Some(fresh.saturating_sub(counted)) {
            fault(report, || format!("{name}: free list {:?}", page.count_free()));
        }
    }
}
