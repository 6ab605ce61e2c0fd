//! Choice of a server: pools, weights, passive and active health, stickiness, retry rules. Pure.
//!
//! What it is: one [`Pool`] per upstream, shared by all workers, so that every worker sees the same
//! turn, the same failures and the same load. Time is passed in; the lock is held for a few dozen
//! instructions and never across anything that waits.
//!
//! What it is not: it opens no connection and checks no server itself. The exchange asks for
//! candidates and reports what became of them; the guardian's active checks arrive by
//! [`Pool::set_up`].

pub mod pool;
pub mod retry;
pub mod routes;
pub mod sticky;

#[cfg(test)]
mod tests;

pub use pool::{Admin, Change, Choice, Outcome, Pool, Selection, ServerStatus};
pub use retry::{Attempt, Retry};
pub use routes::Routes;
