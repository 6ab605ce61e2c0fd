//! VRRP: RFC 9568 (version 3, IPv4 and IPv6) and RFC 3768 (version 2), without a socket or a clock.
//!
//! What it is: packets ([`packet`]), timers ([`timers`]), one virtual router's state machine
//! ([`Instance`]), gratuitous ARP ([`arp`]); and in [`io`] the sockets, addresses and interface
//! settings that a shell needs. What it is not: the owner of the role. In coupled mode (the only
//! one the product uses) an instance never becomes Active by itself: whoever
//! knows where the newest data is calls [`Instance::promote`].
//!
//! ```text
//!                 promote / down timer (plain)
//!   Initialize ──▶ Backup ───────────────────▶ Active
//!       ▲            ▲  ◀──────────────────────  │
//!       └── shutdown ┴─ resign / higher (plain) ─┘
//! ```
//!
//! Who drives it: a shell reads datagrams, gives each to [`Instance::handle_advert`], **drains the
//! socket before** it calls [`Instance::handle_timeout`] (a late thread must not mistake its own
//! lateness for the master's silence), then performs everything [`Instance::poll_output`] returns
//! in that order, and sleeps until [`Instance::poll_timeout`].
//!
//! Glossary: *advert* = ADVERTISEMENT of RFC 9568 §5; *VIP* = virtual router address; *GARP* =
//! gratuitous ARP; *Active* = "Master" of RFC 5798.
#![deny(unsafe_code)]

pub mod arp;
pub mod config;
pub mod fsm;
pub mod io;
pub mod packet;
pub mod timers;

pub use config::{Auth, ConfigError, InstanceConfig, Mode, Priority, Vrid};
pub use fsm::{Counters, Instance, Output, State};
pub use packet::{Advert, ChecksumKind, Received, Refusal, Version};
pub use timers::AdvertInterval;
