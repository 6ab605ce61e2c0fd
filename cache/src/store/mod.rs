//! The store: a position-independent region of pages that outlives the process using it.
//!
//! What it is: memory layout, allocation, index, eviction, expiry, and the check on attach. What it
//! is not: the memcached protocol or replication; those work through [`crate::Locked`].

mod region;
mod types;
mod view;

pub use region::{Layout, Region};
pub use types::{
    AttachKind, AttachReport, ClassCounters, Counters, Cursor, Meta, PARTITIONS, PartitionState,
    PromoteError, PutError, RegionError, RejectReason, StoreConfig, StoreTime, Swept, VerifyReport,
};
pub use view::{ItemView, Value};
