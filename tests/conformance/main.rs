//! Conformance: tables of bytes, played over real sockets against a running engine.
//!
//! A row is a sentence of a standard (or "product requirement"), what a client sends, what a
//! backend hears, what the client hears. Nothing here knows the parsers under test.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test: what cannot be made must fail"
)]

mod http1;
mod rig;
