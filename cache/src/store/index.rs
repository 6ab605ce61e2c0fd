//! A partition's hash index: buckets of two 64 B lines of twelve entries, then a chain of further
//! lines taken from pages.
//!
//! Sized when the store is made, for items of about 144 B filling the memory (5.8 B an item, 6.7
//! with the further lines); smaller items only lengthen chains. So an item never changes its
//! bucket, a walk's cursor is a bucket number, and nothing is ever rehashed.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::class::LINE;
use super::slab::Slabs;

/// Entries of a line.
const ENTRIES: usize = 12;
/// Entries of a bucket's own lines that the sizing counts on.
pub(crate) const BUCKET_ITEMS: usize = 22;
/// Bytes of a bucket's own lines.
pub(crate) const BUCKET: usize = 2 * LINE;
/// Lines of a chain at most: a bound for a broken region, beyond any real chain.
const CHAIN_MAX: usize = 1 << 16;

/// Twelve entries. A location of 0 is a hole.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Line {
    locations: [u32; ENTRIES],
    tags: [u8; ENTRIES],
    /// Location of the next line; only in a bucket's second line and after.
    next: u32,
}

const _: () = assert!(size_of::<Line>() == LINE);

impl Line {
    /// One bit for each entry with this tag.
    fn tagged(&self, tag: u8) -> u32 {
        let same = self.tags.map(|other| u32::from(other == tag));
        same.iter().rev().fold(0, |bits, same| bits << 1 | same)
    }
}

/// Where a line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LineAt {
    Own(u32),
    Page(u32),
}

/// Where an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    line: LineAt,
    at: usize,
    pub(crate) location: u32,
}

/// The index of one partition.
#[derive(Debug)]
pub(crate) struct Index {
    lines: &'static mut [Line],
}

const fn tag(hash: u64) -> u8 {
    (hash >> 8) as u8
}

impl Index {
    /// Over the bytes of whole buckets; `None` if they are not that.
    pub(crate) fn new(bytes: &'static mut [u8]) -> Option<Self> {
        let lines = <[Line]>::mut_from_bytes(bytes).ok()?;
        (!lines.is_empty() && lines.len().is_multiple_of(2)).then_some(Self { lines })
    }

    pub(crate) const fn buckets(&self) -> u32 {
        (self.lines.len() / 2) as u32
    }

    pub(crate) const fn bucket_of(&self, hash: u64) -> u32 {
        (((hash >> 32) * self.buckets() as u64) >> 32) as u32
    }

    /// Forgets everything; lines in pages are the caller's to give back.
    pub(crate) fn clear(&mut self) {
        self.lines.as_mut_bytes().fill(0);
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        self.lines.as_bytes()
    }

    fn line<'a>(&'a self, slabs: &'a Slabs, at: LineAt) -> Option<&'a Line> {
        match at {
            LineAt::Own(number) => self.lines.get(number as usize),
            LineAt::Page(location) => Line::ref_from_bytes(slabs.chunk(location)?).ok(),
        }
    }

    fn line_mut<'a>(&'a mut self, slabs: &'a mut Slabs, at: LineAt) -> Option<&'a mut Line> {
        match at {
            LineAt::Own(number) => self.lines.get_mut(number as usize),
            LineAt::Page(location) => Line::mut_from_bytes(slabs.chunk_mut(location)?).ok(),
        }
    }

    /// The lines of a bucket, in order.
    fn chain<'a>(
        &'a self,
        slabs: &'a Slabs,
        bucket: u32,
    ) -> impl Iterator<Item = (LineAt, &'a Line)> {
        let mut next = Some(LineAt::Own(bucket * 2));
        let lines = std::iter::from_fn(move || {
            let at = next?;
            let line = self.line(slabs, at)?;
            next = match at {
                LineAt::Own(number) if number % 2 == 0 => Some(LineAt::Own(number + 1)),
                _ => (line.next != 0).then_some(LineAt::Page(line.next)),
            };
            Some((at, line))
        });
        lines.take(CHAIN_MAX)
    }

    /// The entries of a bucket, each with its tag.
    pub(crate) fn entries<'a>(
        &'a self,
        slabs: &'a Slabs,
        bucket: u32,
    ) -> impl Iterator<Item = (Entry, u8)> + 'a {
        self.chain(slabs, bucket).flat_map(|(line, content)| {
            (0..ENTRIES).filter_map(move |at| {
                let location = content.locations[at];
                (location != 0).then_some((Entry { line, at, location }, content.tags[at]))
            })
        })
    }

    /// The entry of a key.
    pub(crate) fn find(&self, slabs: &Slabs, hash: u64, key: &[u8]) -> Option<Entry> {
        for (line, content) in self.chain(slabs, self.bucket_of(hash)) {
            let mut tagged = content.tagged(tag(hash));
            while tagged != 0 {
                let at = tagged.trailing_zeros() as usize;
                tagged &= tagged - 1;
                let location = *content.locations.get(at)?;
                if location != 0 && slabs.view(location).is_some_and(|view| view.key == key) {
                    return Some(Entry { line, at, location });
                }
            }
        }
        None
    }

    /// The entry of a location.
    pub(crate) fn find_location(&self, slabs: &Slabs, hash: u64, location: u32) -> Option<Entry> {
        let mut entries = self.entries(slabs, self.bucket_of(hash));
        entries.find(|(entry, _)| entry.location == location).map(|(entry, _)| entry)
    }

    /// Is there a hole for a new entry?
    pub(crate) fn has_hole(&self, slabs: &Slabs, hash: u64) -> bool {
        self.hole(slabs, self.bucket_of(hash)).is_some()
    }

    fn hole(&self, slabs: &Slabs, bucket: u32) -> Option<(LineAt, usize)> {
        let mut lines = self.chain(slabs, bucket);
        lines.find_map(|(line, content)| {
            let at = content.locations.iter().position(|&location| location == 0)?;
            Some((line, at))
        })
    }

    /// Adds a zeroed line from a page to the end of the bucket's chain.
    pub(crate) fn add_line(&mut self, slabs: &mut Slabs, hash: u64, location: u32) {
        let last = self.chain(slabs, self.bucket_of(hash)).last().map(|(at, _)| at);
        if let Some(line) = last.and_then(|at| self.line_mut(slabs, at)) {
            line.next = location;
        }
    }

    /// Adds an entry; false without a hole.
    pub(crate) fn insert(&mut self, slabs: &mut Slabs, hash: u64, location: u32) -> bool {
        let Some((line, at)) = self.hole(slabs, self.bucket_of(hash)) else { return false };
        let Some(line) = self.line_mut(slabs, line) else { return false };
        line.tags[at] = tag(hash);
        line.locations[at] = location;
        true
    }

    /// Points an entry elsewhere.
    pub(crate) fn replace(&mut self, slabs: &mut Slabs, entry: Entry, location: u32) {
        if let Some(line) = self.line_mut(slabs, entry.line) {
            line.locations[entry.at] = location;
        }
    }

    /// Removes an entry. The chain's last entry takes its place, and a line that becomes empty
    /// leaves the chain: it is returned, to be given back.
    pub(crate) fn remove(&mut self, slabs: &mut Slabs, hash: u64, entry: Entry) -> Option<u32> {
        self.replace(slabs, entry, 0);
        let bucket = self.bucket_of(hash);
        let mut before = None;
        let mut last: Option<(LineAt, Line)> = None;
        for (at, line) in self.chain(slabs, bucket) {
            before = last.map(|(at, _)| at);
            last = Some((at, *line));
        }
        let (LineAt::Page(location), mut line) = last? else { return None };
        if entry.line != LineAt::Page(location)
            && let Some(moved) = line.locations.iter().rposition(|&location| location != 0)
        {
            let (tag, to) = (line.tags[moved], line.locations[moved]);
            line.locations[moved] = 0;
            if let Some(hole) = self.line_mut(slabs, entry.line) {
                hole.tags[entry.at] = tag;
                hole.locations[entry.at] = to;
            }
            if let Some(last) = self.line_mut(slabs, LineAt::Page(location)) {
                last.locations[moved] = 0;
            }
        }
        if line.locations.iter().any(|&location| location != 0) {
            return None;
        }
        if let Some(before) = before.and_then(|at| self.line_mut(slabs, at)) {
            before.next = 0;
        }
        Some(location)
    }

    /// Locations of the lines in pages.
    pub(crate) fn page_lines<'a>(
        &'a self,
        slabs: &'a Slabs,
        bucket: u32,
    ) -> impl Iterator<Item = u32> + 'a {
        self.chain(slabs, bucket).filter_map(|(at, _)| match at {
            LineAt::Page(location) => Some(location),
            LineAt::Own(_) => None,
        })
    }

    /// Is `byte` what a key of this hash would be tagged with?
    pub(crate) const fn tag_matches(hash: u64, byte: u8) -> bool {
        tag(hash) == byte
    }
}
