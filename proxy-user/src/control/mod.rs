//! The boundary between guardian and engine: typed messages on a socket pair (`message`, `channel`)
//! and the shared page that both read without a system call (`shared`).
//!
//! The guardian creates both, passes the socket as the engine's standard input and everything else
//! as descriptors with [`message::ToEngine::Config`]. Neither side ever waits for the other.

pub mod channel;
pub mod counters;
pub mod message;
pub mod role;
pub mod shared;
