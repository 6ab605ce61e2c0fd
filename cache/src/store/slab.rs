//! A shard's pages: which classes they serve, where a chunk is free, which page is oldest.
//!
//! A location is `local page << slot_bits | slot`; local pages number from 1, so 0 is nowhere.
//! Everything here is derived from the page headers on attach; nothing points.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

use super::class::{CHAIN_LINK, Geometry};
use super::item::{HEADER, ItemHeader, LIVE, PIECE};
use super::page::{Owner, Page};
use super::types::StoreTime;
use super::view::{ItemView, Value};

/// Pages nobody owns; last in, first out. Its lock is taken under shard locks, never the other way.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pages: Mutex<Vec<Page>>,
}

impl Pool {
    pub(crate) fn new(pages: Vec<Page>) -> Self {
        Self { pages: Mutex::new(pages) }
    }

    pub(crate) fn pop(&self) -> Option<Page> {
        self.pages.lock().pop()
    }

    /// Takes back a page without an owner.
    pub(crate) fn push(&self, page: Page) {
        self.pages.lock().push(page);
    }

    pub(crate) fn len(&self) -> usize {
        self.pages.lock().len()
    }
}

/// One class's pages within a shard.
#[derive(Debug, Default)]
pub(crate) struct Class {
    /// Its pages, the one that the hand is on first.
    pub(crate) order: VecDeque<u32>,
    /// Next slot of the first page that the hand looks at.
    pub(crate) hand: u32,
    /// Pages that may have room.
    roomy: Vec<u32>,
    /// Items evicted from it.
    pub(crate) evictions: u64,
    /// Evictions to go until the ages of the classes are compared again.
    pub(crate) until_compare: u32,
}

/// The pages of one shard.
#[derive(Debug)]
pub(crate) struct Slabs {
    pub(crate) geometry: Arc<Geometry>,
    shard: u8,
    /// By local number; 0 is unused.
    pages: Vec<Option<Page>>,
    free_locals: Vec<u32>,
    pub(crate) classes: Vec<Class>,
    /// Pages in which nothing is left, to go back to the pool when the operation is done.
    pub(crate) empties: Vec<u32>,
}

/// Compilers keep the order of stores around this; the machine (x86) does by itself.
pub(crate) fn order() {
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}

impl Slabs {
    pub(crate) fn new(geometry: Arc<Geometry>, shard: u8) -> Self {
        let classes = (0..=geometry.items()).map(|_| Class::default()).collect();
        Self {
            geometry,
            shard,
            pages: vec![None],
            free_locals: Vec::new(),
            classes,
            empties: Vec::new(),
        }
    }

    pub(crate) fn location(&self, local: u32, slot: u32) -> u32 {
        local << self.geometry.slot_bits | slot
    }

    pub(crate) fn local_of(&self, location: u32) -> u32 {
        location >> self.geometry.slot_bits
    }

    pub(crate) fn slot_of(&self, location: u32) -> u32 {
        location & ((1 << self.geometry.slot_bits) - 1)
    }

    pub(crate) fn page(&self, local: u32) -> Option<&Page> {
        self.pages.get(local as usize)?.as_ref()
    }

    pub(crate) fn page_mut(&mut self, local: u32) -> Option<&mut Page> {
        self.pages.get_mut(local as usize)?.as_mut()
    }

    /// Local numbers in use.
    pub(crate) fn locals(&self) -> impl Iterator<Item = u32> + '_ {
        (1..self.pages.len() as u32).filter(|&local| self.page(local).is_some())
    }

    /// One above the highest local number.
    pub(crate) const fn locals_end(&self) -> u32 {
        self.pages.len() as u32
    }

    pub(crate) fn chunk(&self, location: u32) -> Option<&[u8]> {
        self.page(self.local_of(location))?.chunk(self.slot_of(location))
    }

    pub(crate) fn chunk_mut(&mut self, location: u32) -> Option<&mut [u8]> {
        let (local, slot) = (self.local_of(location), self.slot_of(location));
        self.page_mut(local)?.chunk_mut(slot)
    }

    pub(crate) fn item(&self, location: u32) -> Option<&ItemHeader> {
        self.page(self.local_of(location))?.item(self.slot_of(location))
    }

    pub(crate) fn item_mut(&mut self, location: u32) -> Option<&mut ItemHeader> {
        let (local, slot) = (self.local_of(location), self.slot_of(location));
        self.page_mut(local)?.item_mut(slot)
    }

    /// Takes a free chunk of `class` from its pages.
    pub(crate) fn take(&mut self, class: u8) -> Option<u32> {
        let line = class == self.geometry.index_class();
        loop {
            let local = *self.classes[usize::from(class)].roomy.last()?;
            let page = self.pages.get_mut(local as usize).and_then(Option::as_mut);
            let page = page.filter(|page| page.class == class && page.listed);
            if let Some(page) = page {
                if let Some(slot) = page.take(line, order) {
                    return Some(self.location(local, slot));
                }
                page.listed = false;
            }
            self.classes[usize::from(class)].roomy.pop();
        }
    }

    /// Gives a chunk back.
    pub(crate) fn give(&mut self, location: u32) {
        let (local, slot) = (self.local_of(location), self.slot_of(location));
        let index = self.geometry.index_class();
        let Some(page) = self.page_mut(local) else { return };
        let class = page.class;
        let left = page.give(slot, class == index, order);
        if left == 0 {
            self.empties.push(local);
        }
        self.list(local);
    }

    /// Lists a page among those with room.
    fn list(&mut self, local: u32) {
        let Some(page) = self.pages.get_mut(local as usize).and_then(Option::as_mut) else {
            return;
        };
        if !page.listed && page.has_room() {
            page.listed = true;
            self.classes[usize::from(page.class)].roomy.push(local);
        }
    }

    /// A pending chunk has been published.
    pub(crate) fn settle(&mut self, location: u32) {
        let local = self.local_of(location);
        if let Some(page) = self.page_mut(local) {
            page.pending = page.pending.saturating_sub(1);
        }
    }

    /// Takes over a page from the pool for `class`.
    pub(crate) fn add_page(&mut self, mut page: Page, class: u8, now: StoreTime) {
        let local = self.free_locals.pop().unwrap_or(self.pages.len() as u32);
        page.format(fixed(now));
        page.set_class(&self.geometry, class);
        order();
        page.set_owner(Some(Owner { shard: self.shard, class, local }));
        order();
        self.place(page, local);
        self.classes[usize::from(class)].order.push_back(local);
        self.list(local);
    }

    fn place(&mut self, page: Page, local: u32) {
        while self.pages.len() <= local as usize {
            self.pages.push(None);
        }
        self.pages[local as usize] = Some(page);
    }

    /// On attach: a page that says it is ours. Gives it back if its words make no sense.
    pub(crate) fn adopt(&mut self, mut page: Page, owner: Owner, max: usize) -> Result<(), Page> {
        let taken = self.page(owner.local).is_some();
        let local_ok = owner.local != 0 && owner.local as usize <= max;
        if taken || !local_ok || !self.geometry.valid(owner.class) {
            return Err(page);
        }
        page.set_class(&self.geometry, owner.class);
        if page.header.fresh > page.slots {
            return Err(page);
        }
        self.place(page, owner.local);
        Ok(())
    }

    /// On attach, once all pages are there: the lists.
    pub(crate) fn relist(&mut self) {
        for class in &mut self.classes {
            *class = Class::default();
        }
        self.empties.clear();
        self.free_locals = (1..self.pages.len() as u32)
            .rev()
            .filter(|&local| self.pages[local as usize].is_none())
            .collect();
        let mut locals: Vec<(u64, u32)> = self
            .locals()
            .map(|local| (self.page(local).map_or(0, |page| page.header.stamp), local))
            .collect();
        locals.sort_unstable();
        for (_, local) in locals {
            if let Some(page) = self.page_mut(local) {
                page.listed = false;
                let (class, empty) = (page.class, page.header.used == 0);
                self.classes[usize::from(class)].order.push_back(local);
                if empty {
                    self.empties.push(local);
                }
            }
            self.list(local);
        }
    }

    /// Takes a page out; whatever it holds is lost, so it must hold nothing that is referred to.
    pub(crate) fn remove_page(&mut self, local: u32) -> Option<Page> {
        let mut page = self.pages.get_mut(local as usize)?.take()?;
        page.set_owner(None);
        order();
        self.free_locals.push(local);
        let class = &mut self.classes[usize::from(page.class)];
        if class.order.front() == Some(&local) {
            class.hand = 0;
        }
        class.order.retain(|&other| other != local);
        class.roomy.retain(|&other| other != local);
        page.listed = false;
        Some(page)
    }

    /// The page of an item class with the oldest content, none of it being written: (stamp, local).
    pub(crate) fn oldest(&self, class: Option<u8>) -> Option<(u64, u32)> {
        let index = self.geometry.index_class();
        let fits = |page: &Page| {
            page.pending == 0 && page.class != index && class.is_none_or(|c| c == page.class)
        };
        let numbered = self.pages.iter().enumerate().skip(1);
        let stamps = numbered.filter_map(|(local, page)| {
            let page = page.as_ref().filter(|page| fits(page))?;
            Some((page.header.stamp, local as u32))
        });
        stamps.min()
    }

    /// The locations of an item's chunks after the first, in order. Bounded by the value's length.
    pub(crate) fn pieces(&self, head: u32) -> Pieces<'_> {
        let next = self.item(head).map_or(0, |item| self.chain_start(head, item));
        Pieces { slabs: self, head, next, left: self.locals_end() as usize * 2 }
    }

    fn chain_start(&self, head: u32, item: &ItemHeader) -> u32 {
        if !self.geometry.chained(usize::from(item.key_len), item.value_len as usize) {
            return 0;
        }
        let link = self.chunk(head).and_then(|chunk| chunk.get(HEADER..HEADER + CHAIN_LINK));
        link.and_then(|link| link.first_chunk::<4>()).map_or(0, |link| u32::from_ne_bytes(*link))
    }

    /// The item at `location`, if there is a live one whose lengths make sense.
    pub(crate) fn view(&self, location: u32) -> Option<ItemView<'_>> {
        let chunk = self.chunk(location)?;
        let item = self.item(location).filter(|item| item.state() == LIVE)?;
        let (key_len, value_len) = (usize::from(item.key_len), item.value_len as usize);
        let chained = self.geometry.chained(key_len, value_len);
        let start = if chained { HEADER + CHAIN_LINK } else { HEADER };
        let key = chunk.get(start..start + key_len)?;
        let rest = chunk.get(start + key_len..)?;
        let value = if chained {
            let first = rest.get(..self.geometry.head_room(key_len).min(value_len))?;
            Value::chained(first, value_len, self.pieces(location))
        } else {
            Value::contiguous(rest.get(..value_len)?)
        };
        let (version, expiry, flags) = (item.version, item.expiry, item.flags);
        Some(ItemView { key, version, expiry, flags, value })
    }
}

/// Store time as page stamps have it.
pub(crate) const fn fixed(now: StoreTime) -> u64 {
    (now.0 as u64) << 16
}

/// Walk over a chain.
#[derive(Clone, Debug)]
pub(crate) struct Pieces<'a> {
    slabs: &'a Slabs,
    head: u32,
    next: u32,
    left: usize,
}

impl<'a> Pieces<'a> {
    /// The next chunk's location and its part of the value; `None` at the end, or where the chain
    /// is broken.
    pub(crate) fn next_part(&mut self) -> Option<(u32, &'a [u8])> {
        let location = self.next;
        self.left = self.left.checked_sub(1)?;
        if location == 0 {
            return None;
        }
        let item = self.slabs.item(location).filter(|item| item.state() == PIECE)?;
        let (head, next) = item.links();
        if head != self.head {
            return None;
        }
        self.next = next;
        let part = self.slabs.chunk(location)?.get(HEADER..)?.get(..item.value_len as usize)?;
        Some((location, part))
    }
}
