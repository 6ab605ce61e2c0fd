//! Tandem's cache: a memcached server and its replication, without a socket, clock or thread.
//!
//! ```text
//! bytes ─▶ protocol ─▶ command ─▶ exec ─▶ Locked (one key, one shard, its lock) ─▶ store (region)
//!                                    └──▶ Stream of the key's partition ─▶ replication ─▶ peer
//! ```
//!
//! [`Cache`] is the store: shared by all workers, a key's shard locked for one operation at a time.
//! Time comes in as [`StoreTime`]; the memory comes in as a [`Region`] that outlives this process.
//! What is not here: connections, timers, the role, the choice of who may be answered.

#![forbid(unsafe_code)]

mod cache;
pub mod command;
pub mod error;
pub mod exec;
pub mod protocol;
pub mod replication;
pub mod session;
mod shard;
pub mod stats;
pub mod store;

pub use cache::{Cache, Locked, LockedPartition};
pub use exec::Now;
pub use session::{Context, Session, Transmit};
pub use store::{
    AttachKind, AttachReport, Counters, Cursor, ItemView, Layout, Meta, PARTITIONS, PartitionState,
    PromoteError, PutError, Region, RegionError, StoreConfig, StoreTime, Value, VerifyReport,
};
