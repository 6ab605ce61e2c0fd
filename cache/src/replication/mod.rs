//! Replication: one ordered stream per partition from the primary to its replica.
//!
//! [`stream`] is what a change is appended to, under the shard's lock. [`message`] and [`frame`]
//! are the bytes of a link. Pure: the engine owns the sockets, the channel's encryption and the
//! time, and gives bytes in and out.

pub mod forward;
pub mod frame;
pub mod gate;
pub mod message;
pub mod receiver;
pub mod sender;
pub mod stream;

pub use forward::{ForwardClient, ForwardReply};
pub use gate::{AckMode, Depends, GateRole, GateState, Shared, positions};
pub use receiver::{Receiver, ReceiverConfig, ReceiverCounters, ReceiverEvent};
pub use sender::{LinkLost, Sender, SenderConfig, SenderEvent};
pub use stream::{LinkSession, Stream};

#[cfg(test)]
mod tests;
