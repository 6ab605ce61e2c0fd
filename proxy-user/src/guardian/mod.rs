//! The guardian process: it owns what must outlive an engine (listening sockets, the store's
//! memory), the role, the address, the link to the other guardian; it starts engines and watches
//! them. What must outlive a guardian it gives to the keeper, and the next guardian gets it back.
//!
//! ```text
//! main thread: tokio, one thread ── signals, engine as a child, health checks, admin server
//!    │ orders ▼        ▲ news
//! role thread: poll loop ── node, peer link, adverts, addresses, engine's messages
//!    ▲ gone
//! watch thread: futex_waitv on every engine thread's seat        disk thread: the state file
//!                                                 witness thread: asks who may go on by silence
//! ```
//! Order of start: configuration, lock, host, ports, memory, role thread, engine. Whatever is wrong
//! is found before the engine starts, and leaves nothing behind. Order of stop: the role is given
//! away, the engine closes its sockets, then addresses, settings and programs go.

mod demo;
mod engine;
mod epoch;
mod fault;
pub mod health;
mod host;
mod legacy;
mod mailbox;
mod peer;
mod rights;
mod role;
mod run;
mod slots;
mod stalls;
mod start;
pub mod status;
pub mod steering;
mod tools;
mod watch;
mod witness;

pub use fault::Fault;
pub use run::run;
pub use tools::{check, keygen, show_status};
pub use witness::serve as serve_witness;
