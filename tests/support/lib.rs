//! Support shared by the test suites and the lab: network namespaces as values, the two-node
//! topology, child processes by pid, small clients, and waiting for a condition with a deadline.
//!
//! Nothing here sleeps for a guess of time: [`eventually()`] polls until a deadline. Everything
//! that is made is undone on drop, and only what this process made.

pub mod clients;
pub mod crowd;
pub mod ethtool;
pub mod eventually;
pub mod filter;
pub mod netns;
pub mod probe;
pub mod process;
pub mod random;
pub mod rights;
pub mod slow;
pub mod sockets;
pub mod stall;
pub mod stranger;
mod switch;
pub mod third;
pub mod topology;
pub mod watch;
pub mod wire;

pub use eventually::eventually;
