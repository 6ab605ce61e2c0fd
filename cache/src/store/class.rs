//! Size classes: into what chunks a page is cut.
//!
//! Eight classes a doubling up to 512 B, where every byte of slack is a large part of an item;
//! above, as many chunks as fill the page, each time a fifth fewer (a factor of 1.25, until whole
//! numbers a page are coarser). An item above the largest class (half a page) is a chain of chunks.

use super::item::HEADER;

/// Smallest chunk, in bytes.
const MIN_CHUNK: usize = 32;
/// Up to here eight classes a doubling.
const FINE: usize = 512;

/// Sizes that follow from the page size.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    /// Chunk size of each item class, ascending; the index's class follows the last.
    chunks: Vec<u32>,
    /// Bytes of a page, a power of two.
    pub(crate) page_size: usize,
    /// Low bits of a location that number the slot.
    pub(crate) slot_bits: u32,
}

/// Bytes of one line of the index.
pub(crate) const LINE: usize = 64;

impl Geometry {
    pub(crate) fn new(page_size: usize) -> Self {
        let mut chunks = Vec::new();
        let mut size = MIN_CHUNK;
        while size < FINE && size <= page_size / 2 {
            chunks.push(size as u32);
            size += ((1usize << size.ilog2()) / 8).max(8);
        }
        let mut per_page = page_size / FINE;
        while per_page >= 2 {
            let size = ((page_size / per_page) & !7) as u32;
            if chunks.last().is_none_or(|&last| last < size) {
                chunks.push(size);
            }
            per_page = (per_page - 1).min((per_page * 4).div_ceil(5));
        }
        let slot_bits = (page_size / MIN_CHUNK).next_power_of_two().ilog2();
        Self { chunks, page_size, slot_bits }
    }

    /// Number of item classes.
    pub(crate) const fn items(&self) -> usize {
        self.chunks.len()
    }

    /// The class of the index's lines.
    pub(crate) const fn index_class(&self) -> u8 {
        self.chunks.len() as u8
    }

    /// Is this a class at all?
    pub(crate) const fn valid(&self, class: u8) -> bool {
        class as usize <= self.chunks.len()
    }

    /// Bytes of a chunk of `class`.
    pub(crate) fn chunk(&self, class: u8) -> usize {
        self.chunks.get(usize::from(class)).map_or(LINE, |&chunk| chunk as usize)
    }

    /// Chunks in a page of `class`.
    pub(crate) fn slots(&self, class: u8) -> u32 {
        (self.page_size / self.chunk(class)) as u32
    }

    /// The largest chunk: half a page.
    pub(crate) fn max_chunk(&self) -> usize {
        self.chunks.last().map_or(0, |&chunk| chunk as usize)
    }

    /// The smallest class that holds `size` bytes; the largest if none does.
    pub(crate) fn class_for(&self, size: usize) -> u8 {
        let at = self.chunks.partition_point(|&chunk| (chunk as usize) < size);
        at.min(self.chunks.len() - 1) as u8
    }

    /// Is an item of this key and value length a chain?
    pub(crate) fn chained(&self, key: usize, value: usize) -> bool {
        HEADER + key + value > self.max_chunk()
    }

    /// Bytes of the value in a chain's first chunk.
    pub(crate) fn head_room(&self, key: usize) -> usize {
        self.max_chunk() - HEADER - CHAIN_LINK - key
    }

    /// Bytes of the value in each chunk but the last of those that follow.
    pub(crate) fn piece_room(&self) -> usize {
        self.max_chunk() - HEADER
    }
}

/// Bytes before the key of a chain's first chunk: the location of the next.
pub(crate) const CHAIN_LINK: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_grow_by_a_quarter_at_most_and_fill_the_page() {
        for page_size in [4 << 10, 16 << 10, 64 << 10, 1 << 20] {
            let geometry = Geometry::new(page_size);
            assert!(geometry.items() < 200, "{} classes", geometry.items());
            for pair in geometry.chunks.windows(2) {
                assert!(pair[0] < pair[1] && pair[1] % 8 == 0);
                let wide_enough = pair[1] <= pair[0] + pair[0] / 4 + 8;
                // the last steps of a page are as coarse as whole chunks a page are
                let last = geometry.page_size / pair[1] as usize <= 3;
                assert!(wide_enough || last, "{page_size}: {pair:?}");
            }
            for class in 0..=geometry.index_class() {
                let used = geometry.slots(class) as usize * geometry.chunk(class);
                assert!(used <= page_size);
                assert!(geometry.slots(class) <= 1 << geometry.slot_bits);
            }
        }
    }

    #[test]
    fn the_class_of_a_size_is_the_smallest_that_holds_it() {
        let geometry = Geometry::new(64 << 10);
        assert_eq!(geometry.chunk(geometry.class_for(25)), 32);
        assert_eq!(geometry.chunk(geometry.class_for(140)), 144);
        for class in 0..geometry.items() as u8 {
            let size = geometry.chunk(class);
            assert_eq!(geometry.class_for(size), class);
            assert_eq!(geometry.class_for(size - 7), class);
        }
        assert_eq!(geometry.max_chunk(), 32 << 10);
    }
}
