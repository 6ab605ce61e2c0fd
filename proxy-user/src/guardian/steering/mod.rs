//! The steering room: this node's virtual addresses on the wire. Who answers for them, where they
//! stand, who is told, who lives beside them.
//!
//! The address stands on `lo` of the node that is master, and only while it is; the kernel is told
//! not to answer ARP for it (`arp_ignore`); the XDP program answers on the node that was told to
//! with [`Steering::answer`], until the end of its lease, and drops requests on the other. So a
//! promotion is one map write, and no program (the guardian died: its link goes with it) means that
//! nobody answers. In mode `off` the address stands on the interface and the kernel answers.
//!
//! ```text
//!  role thread: [Segments] ── adverts, gratuitous ARP, probes ─▶ [Port] one interface as it is
//!     │  ▲          └── answer, lease, askers ─▶ [Steering] the program's maps
//!   wishes, orders      (Prober) who lives on the segment     (SlotTable)
//!     ▼  │
//!  netlink thread: [Host] addresses, ports, [XdpHooks], routes, settings: all that may wait for
//!                         the kernel's network lock, which others may hold for 200 ms
//! ```
//!
//! Driven by the guardian's role thread, in the order of its effects ([`Segments`]). It has no rule
//! of its own: what it hears goes to the node as [`Sign`]s, what it does the node decided.

mod answerer;
mod host;
mod link;
mod loader;
mod memory;
mod neighbours;
mod port;
mod probes;
mod relay;
mod segments;
mod slots;
mod xdp;

pub use answerer::{AttachReport, Attached, Conflict, Counters, Mode, Steering, SteeringError};
pub use loader::{OBJECT_VARIABLE, find_object};
pub use memory::MemorySteering;
pub use proxy_common::abi::{Asker, Mac, Reason};
pub use slots::Place;
pub use xdp::{XdpHooks, XdpMaps, load, load_from};

pub use crate::control::shared::monotonic_ns;
pub(super) use host::Report;
pub(super) use probes::Sign;
pub(super) use segments::{Carrier, Segments, Source};
