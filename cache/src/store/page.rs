//! A page: an owned piece of the region, cut into chunks of one class, with its own free list. Its
//! header is in the region's header slice.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::class::Geometry;
use super::item::{FREE, HEADER, ItemHeader, PENDING};

/// Bytes of a page's header.
pub(crate) const PAGE_HEADER: usize = 64;

const OWNER_MAGIC: u64 = 0x5450;

/// What of a page survives the process. Only `owner` and `fresh` matter to a rebuild, which derives
/// the rest.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Debug)]
#[repr(C)]
pub(crate) struct PageHeader {
    /// 0 = in the pool; else see [`Owner`]. One store gives or takes a page.
    owner: u64,
    /// Mean time of writing of its items, store time << 16.
    pub(crate) stamp: u64,
    /// Slots that were ever used since the page was given; above, bytes are of another life.
    pub(crate) fresh: u32,
    /// First free slot + 1; 0 = none below `fresh`.
    free_head: u32,
    /// Slots in use, pending ones included.
    pub(crate) used: u32,
    /// No item of the page expires before this store time; 0 = none expires.
    pub(crate) min_expiry: u32,
    reserved: [u64; 4],
}

const _: () = assert!(size_of::<PageHeader>() == PAGE_HEADER);

/// To whom a page belongs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    pub(crate) shard: u8,
    pub(crate) class: u8,
    /// Number of the page within the shard, from 1.
    pub(crate) local: u32,
}

/// An owned page, with what is derived from its class.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) header: &'static mut PageHeader,
    pub(crate) body: &'static mut [u8],
    pub(crate) class: u8,
    pub(crate) chunk: usize,
    pub(crate) slots: u32,
    /// Slots taken but not yet published: the page must stay.
    pub(crate) pending: u32,
    /// In its class's list of pages with free slots.
    pub(crate) listed: bool,
}

impl Page {
    /// A page not yet cut.
    pub(crate) const fn new(header: &'static mut PageHeader, body: &'static mut [u8]) -> Self {
        Self { header, body, class: 0, chunk: 0, slots: 0, pending: 0, listed: false }
    }

    /// The owner written in the header: `Ok(None)` = pool, `Err` = nonsense.
    pub(crate) const fn owner(&self) -> Result<Option<Owner>, ()> {
        let word = self.header.owner;
        if word == 0 {
            return Ok(None);
        }
        if word >> 48 != OWNER_MAGIC {
            return Err(());
        }
        let (class, shard) = ((word >> 40) as u8, (word >> 32) as u8);
        Ok(Some(Owner { shard, class, local: word as u32 }))
    }

    /// Writes the owner.
    pub(crate) fn set_owner(&mut self, owner: Option<Owner>) {
        self.header.owner = owner.map_or(0, |o| {
            OWNER_MAGIC << 48
                | u64::from(o.class) << 40
                | u64::from(o.shard) << 32
                | u64::from(o.local)
        });
    }

    /// Empties the page for a new life; not yet owned.
    pub(crate) const fn format(&mut self, stamp: u64) {
        self.header.stamp = stamp;
        self.header.fresh = 0;
        self.header.free_head = 0;
        self.header.used = 0;
        self.header.min_expiry = 0;
        self.pending = 0;
        self.listed = false;
    }

    /// Cuts the page.
    pub(crate) fn set_class(&mut self, geometry: &Geometry, class: u8) {
        self.class = class;
        self.chunk = geometry.chunk(class);
        self.slots = geometry.slots(class);
    }

    /// Is a slot free?
    pub(crate) const fn has_room(&self) -> bool {
        self.header.free_head != 0 || self.header.fresh < self.slots
    }

    pub(crate) fn chunk(&self, slot: u32) -> Option<&[u8]> {
        let at = slot as usize * self.chunk;
        if slot < self.slots { self.body.get(at..at + self.chunk) } else { None }
    }

    pub(crate) fn chunk_mut(&mut self, slot: u32) -> Option<&mut [u8]> {
        let at = slot as usize * self.chunk;
        if slot < self.slots { self.body.get_mut(at..at + self.chunk) } else { None }
    }

    pub(crate) fn item(&self, slot: u32) -> Option<&ItemHeader> {
        let (header, _) = ItemHeader::ref_from_prefix(self.chunk(slot)?).ok()?;
        Some(header)
    }

    pub(crate) fn item_mut(&mut self, slot: u32) -> Option<&mut ItemHeader> {
        let (header, _) = ItemHeader::mut_from_prefix(self.chunk_mut(slot)?).ok()?;
        Some(header)
    }

    /// Takes a free slot. `line` = a line of the index, which has no state byte and comes zeroed.
    pub(crate) fn take(&mut self, line: bool, order: impl Fn()) -> Option<u32> {
        let head = self.header.free_head;
        let slot = if head != 0 {
            let slot = head - 1;
            self.header.free_head = self.free_link(slot)?;
            slot
        } else if self.header.fresh < self.slots {
            let slot = self.header.fresh;
            // what an earlier life left there must not be taken for an item
            self.chunk_mut(slot)?.get_mut(..HEADER)?.fill(0);
            order();
            self.header.fresh += 1;
            slot
        } else {
            return None;
        };
        if line {
            self.chunk_mut(slot)?.fill(0);
        } else {
            self.item_mut(slot)?.state = PENDING;
            self.pending += 1;
        }
        self.header.used += 1;
        Some(slot)
    }

    fn free_link(&self, slot: u32) -> Option<u32> {
        let (link, _) = u32::read_from_prefix(self.chunk(slot)?).ok()?;
        (link <= self.slots).then_some(link)
    }

    /// Gives a slot back; says how many are still in use.
    pub(crate) fn give(&mut self, slot: u32, line: bool, order: impl Fn()) -> u32 {
        if !line && let Some(item) = self.item_mut(slot) {
            let was_pending = item.state() == PENDING;
            item.state = FREE;
            order();
            if was_pending {
                self.pending = self.pending.saturating_sub(1);
            }
        }
        self.link_free(slot);
        self.header.used = self.header.used.saturating_sub(1);
        self.header.used
    }

    /// Puts a slot at the head of the free list.
    fn link_free(&mut self, slot: u32) {
        let link = self.header.free_head;
        if let Some(chunk) = self.chunk_mut(slot)
            && let Some(first) = chunk.first_chunk_mut::<4>()
        {
            *first = link.to_ne_bytes();
            self.header.free_head = slot + 1;
        }
    }

    /// Makes the free list anew: every slot that `keep` does not name becomes free.
    pub(crate) fn rebuild_free(&mut self, mut keep: impl FnMut(u32) -> bool) {
        self.header.fresh = self.header.fresh.min(self.slots);
        self.header.free_head = 0;
        self.header.used = 0;
        self.pending = 0;
        for slot in (0..self.header.fresh).rev() {
            if keep(slot) {
                self.header.used += 1;
            } else {
                if let Some(item) = self.item_mut(slot) {
                    item.state = FREE;
                }
                self.link_free(slot);
            }
        }
    }

    /// Free slots below `fresh`, by walking the list; `None` if the list is broken.
    pub(crate) fn count_free(&self) -> Option<u32> {
        let (mut at, mut count) = (self.header.free_head, 0);
        while at != 0 {
            count += 1;
            if count > self.header.fresh || at > self.header.fresh {
                return None;
            }
            at = self.free_link(at - 1)?;
        }
        Some(count)
    }

    /// The page's mean time of writing, store time << 16, moves towards `now`.
    pub(crate) fn stamp_write(&mut self, now: u64) {
        let share = u64::from(self.slots.max(1));
        let stamp = self.header.stamp;
        self.header.stamp = stamp + (now.saturating_sub(stamp) / share).max(u64::from(now > stamp));
    }

    /// An item of the page now expires at `expiry`.
    pub(crate) fn note_expiry(&mut self, expiry: u32) {
        let min = &mut self.header.min_expiry;
        if expiry != 0 && (*min == 0 || expiry < *min) {
            *min = expiry;
        }
    }
}
