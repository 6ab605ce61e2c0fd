//! The region's shape: how a given amount of memory is divided, and the memory itself.

use zerocopy::IntoBytes;

/// How memory is divided into header (state, index) and pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Layout {
    /// Bytes of the header slice.
    pub header_len: usize,
    /// Bytes of each page.
    pub page_size: usize,
    /// Number of pages.
    pub pages: usize,
    /// Number of shards, a power of two up to 64.
    pub shards: usize,
}

impl Layout {
    /// The layout for `memory` bytes in all, header and index included. At least 256 KiB.
    pub fn for_memory(memory: u64) -> Self {
        let memory = usize::try_from(memory).unwrap_or(usize::MAX).max(256 << 10);
        let page_size = 64 << 10;
        Self { header_len: 64 << 10, page_size, pages: memory / page_size - 1, shards: 4 }
    }

    /// Header and pages, in bytes.
    pub const fn total(&self) -> usize {
        self.header_len + self.page_size * self.pages
    }
}

/// The memory of a store: `&'static mut` slices, so that no two owners ever meet. Position
/// independent: it may be mapped anywhere next time. All slices are aligned to 8 bytes.
#[derive(Debug)]
pub struct Region {
    /// Global state, per partition and per shard state, index.
    pub header: &'static mut [u8],
    /// Pages of one size.
    pub pages: Vec<&'static mut [u8]>,
}

impl Region {
    /// A zeroed region of process memory that is never given back: for tests, simulations, and
    /// stores that need not outlive the process.
    pub fn leaked(layout: &Layout) -> Self {
        let leak = |len: usize| -> &'static mut [u8] {
            Box::leak(vec![0u64; len.div_ceil(8)].into_boxed_slice()).as_mut_bytes()
        };
        Self {
            header: leak(layout.header_len),
            pages: (0..layout.pages).map(|_| leak(layout.page_size)).collect(),
        }
    }
}
