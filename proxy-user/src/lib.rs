//! The `tandem` program: a keeper process (starts the guardian, holds what must outlive it), a
//! guardian process (role, VRRP, XDP, health, admin) and an engine process (HTTP balancer,
//! memcached protocol, replication).
//!
//! Arrows inside this crate, checked by `cargo xtask tidy`:
//! `{http, balance, exchange, node, config, witness} <- control <- {keeper, guardian, engine} <-
//! main`. `keeper`, `guardian` and `engine` never import each other; `engine` never imports `vrrp`,
//! the other two never import `cache`. `http`, `balance`, `exchange`, `node`, `config` and
//! `witness` are pure: no socket, clock, thread or randomness of their own.

pub mod balance;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod engine;
pub mod exchange;
pub mod guardian;
pub mod http;
pub mod keeper;
pub mod node;
pub mod telemetry;
pub mod witness;
