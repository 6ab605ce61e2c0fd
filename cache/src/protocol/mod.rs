//! Protocols: bytes to commands and outcomes to bytes. The text protocol is here; the binary one
//! will stand beside it. Nothing here touches the store.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod number;
pub mod text;
