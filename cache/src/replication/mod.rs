//! Replication of the store to the peer.

mod stream;

pub use stream::Stream;
