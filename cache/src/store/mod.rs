//! The store: a position-independent region of pages that outlives the process using it.
//!
//! What it is: the region's layout, pages and their chunks, the index. What it is not: operations
//! on items (`shard`), locks (`cache`), the memcached protocol or replication, which work through
//! [`crate::Locked`].

mod class;
mod index;
mod item;
mod page;
mod region;
mod slab;
mod types;
mod view;

/// What `shard` and `cache` build on.
pub(crate) mod internal {
    pub(crate) use super::class::{CHAIN_LINK, Geometry};
    pub(crate) use super::index::{Entry, Index};
    pub(crate) use super::item::{HEADER, ItemHeader, LIVE, MARKS, PENDING, PIECE, live_state};
    pub(crate) use super::page::Page;
    pub(crate) use super::region::{Found, Guard, Parts, inspect, make, split};
    pub(crate) use super::slab::{Pool, Slabs, fixed, order};
}

pub use region::{Layout, Region};
pub use types::{
    AttachKind, AttachReport, ClassCounters, Counters, Cursor, Meta, PARTITIONS, PartitionState,
    PromoteError, PutError, RegionError, RejectReason, StoreConfig, StoreTime, Swept, VerifyReport,
};
pub use view::{ItemView, Value};
