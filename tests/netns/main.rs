//! The pair as real programs: real veth, real VRRP, real XDP, in namespaces of its own. Each event
//! of the lab's story, in each way of answering ARP; what is asserted is who is master, that no
//! answered write is gone, and an outage far below the peers' (the figures themselves are the
//! lab's). Then faults that one network, one direction, one port or a stranger makes.
//!
//! Replay one: `TANDEM_BIN=target/release/tandem cargo test -p tests --test netns -- --ignored
//! NAME`.

mod adverts;
mod cuts;
mod disk;
mod failover;
mod filters;
mod host;
mod injector;
mod interfaces;
mod keeper;
mod loss;
mod measured;
mod rights;
mod role;
mod rtnl;
mod stop;
mod strangers;
mod table;
mod witness;
