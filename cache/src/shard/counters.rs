//! What a shard adds to the store's figures.

use super::Shard;
use crate::store::{ClassCounters, Counters};

impl Shard {
    /// Items, expired ones not yet reclaimed included.
    pub(crate) fn items(&self) -> u64 {
        self.parts.iter().map(|part| part.state.items).sum()
    }

    /// Adds counters and gauges.
    pub(crate) fn add_counters(&self, sum: &mut Counters) {
        let own = &self.counters;
        sum.items += self.items();
        sum.bytes += self.parts.iter().map(|part| part.state.bytes).sum::<u64>();
        if own.evictions > 0 {
            let youngest = own.youngest_evicted_age;
            sum.youngest_evicted_age = match sum.evictions {
                0 => youngest,
                _ => sum.youngest_evicted_age.min(youngest),
            };
            sum.evicted_age = sum.evicted_age.max(own.evicted_age);
        }
        sum.evictions += own.evictions;
        sum.evicted_bytes += own.evicted_bytes;
        sum.evicted_unfetched += own.evicted_unfetched;
        sum.expired += own.expired;
        sum.reclaimed += own.reclaimed;
        sum.page_moves += own.page_moves;
        let index = usize::from(self.slabs.geometry.index_class());
        sum.pages_index += self.slabs.classes[index].order.len() as u64;
    }

    /// Adds the item classes.
    pub(crate) fn add_classes(&self, sum: &mut Vec<ClassCounters>) {
        let geometry = &self.slabs.geometry;
        sum.resize(geometry.items(), ClassCounters::default());
        for (number, (class, sum)) in self.slabs.classes.iter().zip(sum).enumerate() {
            sum.chunk = geometry.chunk(number as u8) as u32;
            sum.pages += class.order.len() as u64;
            sum.evictions += class.evictions;
            for page in class.order.iter().filter_map(|&local| self.slabs.page(local)) {
                sum.used += u64::from(page.header.used);
                sum.free += u64::from(page.slots.saturating_sub(page.header.used));
            }
        }
    }
}
