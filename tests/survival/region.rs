//! The whole region as a dead engine left it, attached to in this process and read key by key.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use cache::{AttachKind, Cache, Layout, Region, StoreConfig, StoreTime};

use crate::node::Node;
use crate::workload::Writer;

/// What all checks found together.
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) odd: u64,
    pub(crate) dropped: u64,
    pub(crate) items: u64,
    pub(crate) answered: u64,
}

/// A buffer for copies of the region, used again for each check.
pub(crate) struct Check {
    layout: Layout,
    buffer: Vec<u64>,
}

impl Check {
    pub(crate) fn new(memory: &str) -> Result<Self> {
        let mebibytes: u64 = memory.strip_suffix("MiB").context("MiB")?.parse()?;
        let layout = Layout::for_memory(mebibytes << 20);
        Ok(Self { buffer: vec![0; layout.total().div_ceil(8)], layout })
    }

    /// Copies the region, attaches to the copy, verifies all of it and every writer's keys.
    pub(crate) fn region(
        &mut self,
        node: &Node,
        writers: &[Writer],
        totals: &mut Totals,
    ) -> Result<()> {
        let bytes = self.copy(node)?;
        let region = split(bytes, &self.layout)?;
        let hash_key = region.hash_key().context("no store in the region")?;
        let config = StoreConfig { hash_key, ..StoreConfig::default() };
        let (cache, report) = Cache::attach(config, region)?;
        ensure!(report.kind == AttachKind::Kept, "the region was not taken over: {report:?}");
        let verified = cache.verify();
        ensure!(verified.errors.is_empty(), "verify: {:?}", verified.errors);
        totals.odd += report.odd_shards.len() as u64;
        totals.dropped += report.items_dropped;
        totals.items += verified.items;
        for writer in writers {
            for (number, key) in writer.keys() {
                let mut locked = cache.lock(key.as_bytes());
                let found = locked.peek(StoreTime(1)).map(|item| item.value.to_vec());
                drop(locked);
                writer.judge(number, found.as_deref()).context("in the dead engine's region")?;
                totals.answered += 1;
            }
        }
        Ok(())
    }

    fn copy(&mut self, node: &Node) -> Result<&'static mut [u8]> {
        let length = self.layout.total();
        let pointer = self.buffer.as_mut_ptr().cast::<u8>();
        // SAFETY: the buffer is at least `length` bytes, lives as long as `self`, and the slices
        // made of it end with the `Cache` of this check, before the next call makes new ones.
        let bytes = unsafe { std::slice::from_raw_parts_mut(pointer, length) };
        node.region()?.read_exact(bytes).context("copying the region")?;
        Ok(bytes)
    }
}

fn split(bytes: &'static mut [u8], layout: &Layout) -> Result<Region> {
    ensure!(bytes.len() == layout.total());
    let (header, pages) = bytes.split_at_mut(layout.header_len);
    Ok(Region { header, pages: pages.chunks_exact_mut(layout.page_size).collect() })
}
