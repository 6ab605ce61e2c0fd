//! The sockets, addresses and interface settings that a VRRP shell needs. Linux only.
//!
//! What it is: thin, synchronous, each call one or a few system calls; sockets that wait are
//! non-blocking and give their descriptor for the shell's poll loop ([`AdvertSocket`], [`ArpTap`],
//! [`Monitor`]). What it is not: a thread or a loop (the guardian's), or a decision (the owner's
//! of [`crate::Instance`]).
//!
//! Every change made to the host is a value that undoes it on drop, or earlier by a method that
//! reports errors: [`VipAddress`], [`Sysctls`], [`RtoMinRoute`]. All calls act in the network
//! namespace of the calling thread; sockets stay in the one they were opened in.

mod address;
mod advert_socket;
mod arp_tap;
mod error;
mod garp;
mod monitor;
mod netlink;
mod route;
mod segment_tap;
mod sysctl;

pub use address::{AddressEntry, AddressSpec, Lifetime, VipAddress};
pub use advert_socket::{AdvertSocket, Datagram};
pub use arp_tap::ArpTap;
pub use error::IoError;
pub use garp::FrameSender;
pub use monitor::{Monitor, MonitorEvent};
pub use netlink::{Interface, Netlink};
pub use route::RtoMinRoute;
pub use segment_tap::{HEADER, SegmentTap};
pub use sysctl::{ConfKey, Sysctls};

#[cfg(test)]
mod tests;
