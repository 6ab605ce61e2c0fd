//! One shard: whole partitions under one lock.

use std::collections::BTreeMap;

use crate::replication::Stream;
use crate::store::{ItemView, Meta, PartitionState, Value};

/// One partition in memory.
#[derive(Debug)]
pub(crate) struct Partition {
    pub(crate) state: PartitionState,
    pub(crate) stream: Stream,
    pub(crate) items: BTreeMap<Vec<u8>, Stored>,
}

#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) meta: Meta,
    pub(crate) mark: u8,
    pub(crate) value: Vec<u8>,
}

impl Stored {
    pub(crate) fn view<'a>(&'a self, key: &'a [u8]) -> ItemView<'a> {
        ItemView {
            key,
            version: self.meta.version,
            expiry: self.meta.expiry,
            flags: self.meta.flags,
            value: Value::contiguous(&self.value),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) partitions: Vec<Partition>,
}
