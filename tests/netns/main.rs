//! The pair as real programs: real veth, real VRRP, real XDP, in namespaces of its own. Each event
//! of the lab's story, in each way of answering ARP; what is asserted is who is master, that no
//! answered write is gone, and an outage far below the peers' (the figures themselves are the
//! lab's).
//!
//! Replay one: `TANDEM_BIN=target/release/tandem cargo test -p tests --test netns -- --ignored
//! NAME`.

mod failover;
mod loss;
mod role;
