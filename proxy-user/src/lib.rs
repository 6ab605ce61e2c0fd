//! The `tandem` program: a guardian process (role, VRRP, XDP, health, admin) and an engine process
//! (HTTP balancer, memcached protocol, replication).
//!
//! Arrows inside this crate, checked by `cargo xtask tidy`:
//! `{http, balance, exchange, node, config, witness} <- control <- {guardian, engine} <- main`.
//! `guardian` and `engine` never import each other; `engine` never imports `vrrp`, `guardian` never
//! imports `cache`. `http`, `balance`, `exchange`, `node`, `config` and `witness` are pure: no
//! socket, clock, thread or randomness of their own.

pub mod balance;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod engine;
pub mod exchange;
pub mod guardian;
pub mod http;
pub mod node;
pub mod telemetry;
pub mod witness;
