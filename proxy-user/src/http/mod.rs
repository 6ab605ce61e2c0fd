//! HTTP/1.1 heads and framing (RFC 9110, RFC 9112): strict parser, strict writer. Pure.
//!
//! What it is: bytes in, a verdict out. A head is either grammar, and then has exactly one
//! canonical form that goes on, or it is refused for a [`Reason`] that has a name, a status and a
//! counter. Nothing is guessed or repaired in silence: a message with two readings never reaches a
//! backend.
//!
//! What it is not: it knows no socket, no clock, no server. `exchange` drives it.
//!
//! ```text
//! client bytes ─▶ RequestParser ─▶ Request ─▶ write_request  ─▶ upstream bytes
//!                   BodyReader  ─▶ data    ─▶ write_chunk    ─▶
//! client bytes ◀─ write_response ◀─ Response ◀─ ResponseParser ◀─ upstream bytes
//! ```
//!
//! The rules against smuggling, in one list (each is a row of `tests.rs`):
//! 1. Lines end in CRLF. A bare LF, a bare CR, a folded line: refused.
//! 2. One framing: `Content-Length` (one field, digits only) or `Transfer-Encoding: chunked` (one
//!    field, alone, HTTP/1.1), never both. Any other coding: 501.
//! 3. One Host, valid, and the target's authority replaces it in absolute form.
//! 4. Chunk sizes are hexadecimal digits that fit 63 bits; extensions and trailers are bounded and
//!    dropped.
//! 5. Fields of this hop, and those that `Connection` names, go no further, except Host, framing
//!    and `X-Forwarded-*`, which a client must not be able to remove.
//! 6. What is written is made from parsed parts, never copied as a block.

pub mod body;
pub mod chunked;
pub mod fields;
pub mod reason;
pub mod request;
pub mod response;
pub mod target;
pub mod writer;

#[cfg(test)]
mod tests;

pub use body::{BodyReader, Framing};
pub use reason::Reason;
pub use request::{Method, Request, RequestParser};
pub use response::{Response, ResponseParser};

/// Sizes above which a head or a body is refused. All in bytes unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest request line or status line, without CRLF. Above: 414.
    pub request_line: usize,
    /// Longest field line, without CRLF. Above: 431.
    pub field_line: usize,
    /// Longest whole head. Above: 431.
    pub head: usize,
    /// Most field lines in a head. Above: 431.
    pub fields: usize,
    /// Longest request body. Above: 413. Responses are not limited.
    pub body: u64,
    /// Most bytes of chunk extensions in one body.
    pub chunk_extensions: usize,
    /// Most bytes of trailer fields in one body.
    pub trailers: usize,
}

impl Default for Limits {
    /// The set-up that is replaced: four buffers of 32 KiB for a head, Tomcat's hundred fields plus
    /// some; bodies to 64 MiB.
    fn default() -> Self {
        Self {
            request_line: 32 << 10,
            field_line: 32 << 10,
            head: 128 << 10,
            fields: 128,
            body: 64 << 20,
            chunk_extensions: 4 << 10,
            trailers: 8 << 10,
        }
    }
}

/// Protocol version of a message; others are refused (505, or 502 from a backend).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// HTTP/1.0
    Http10,
    /// HTTP/1.1
    Http11,
}

/// One arbitrary input through both parsers and both body readers: nothing panics, and what is
/// accepted is accepted again, unchanged, from its canonical form.
#[cfg(fuzzing)]
pub fn fuzz_http1(data: &[u8]) {
    tests_support::canonical_is_stable(data);
}

#[cfg(any(test, fuzzing))]
pub(crate) mod tests_support;
