//! The engine process: workers, driver, connections.
//!
//! ```text
//! guardian ─▶ [control: main thread] ─▶ mailboxes ─▶ [worker 0] [worker 1] ... one per core
//!                     ▲                                  │ connections: memcached, HTTP, links
//!                     └────────── events ◀───────────────┘ one cache, under short locks
//! ```
//! It obeys: role and lease stand in the shared page, orders come by the control socket. It decides
//! nothing about the pair. [`Assignment`] is the process; [`start::Engine`] the same without a
//! guardian's socket, for tests.

pub mod connections;
mod control;
pub mod driver;
pub mod link;
mod region;
mod rights;
pub mod secure;
pub mod start;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
pub mod worker;

pub use control::{Assignment, EngineError};
