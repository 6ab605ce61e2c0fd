//! What this node is and does, for the status page, `/status.json` and `/metrics`.
//!
//! ```text
//! threads ── setters ─▶ StatusHandle: facts ── read ─▶ Value, a tree ─┬─▶ /status.json
//!            (handle)   (facts: each declared once)                   ├─▶ /metrics  (metrics)
//!                       engine's numbers: the shared page             └─▶ /         (page)
//! ```
//!
//! [`StatusHandle`] is where the guardian's threads leave what they know: each setter is a few
//! atomic stores or one pointer swap and never waits for a reader, so the role thread may call it
//! between two beats. The engine's numbers are read from the shared page when somebody asks,
//! without a system call. A fact is declared in `facts.rs` and nowhere else: JSON, metrics and page
//! are walks that know none by name. Names are part of the program's public face.

mod adverts;
mod connection;
mod fact;
mod facts;
mod handle;
mod html;
mod metrics;
mod page;
mod server;
#[cfg(test)]
mod tests;

pub use adverts::RefusedAdverts;
pub use facts::{ByReason, DiskFacts, Ears, Health, PeerFacts, SegmentFacts, WitnessFacts};
pub use handle::{Check, StatusHandle};
pub use server::serve;
