//! Chunked transfer coding (RFC 9112 §7.1): strict decoder, plain encoder.
//!
//! Extensions and trailers are checked, bounded and dropped (RFC 9112 §7.1.1: "A recipient MUST
//! ignore unrecognized chunk extensions"; §7.1.2: a recipient that removes the coding may discard
//! trailers). They are never merged into the fields.

use std::ops::Range;

use super::Limits;
use super::fields::{is_token, is_value};

/// Malformed or over its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkError;

/// What a step made of its input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Bytes of the input that are done with.
    pub consumed: usize,
    /// The part of them that is body.
    pub data: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// In the digits of a size; `digits` of them so far.
    Size {
        size: u64,
        digits: u8,
    },
    /// After a `;`, up to the CR.
    Extension {
        size: u64,
    },
    /// After the CR of a size line.
    SizeLf {
        size: u64,
    },
    /// In a chunk's data.
    Data {
        left: u64,
    },
    /// After a chunk's data.
    DataCr,
    DataLf,
    /// At the start of or inside a trailer line; the line itself is in `trailer`.
    Trailer,
    TrailerLf,
    Done,
}

/// Decoder of one body.
#[derive(Debug, Clone)]
pub struct Decoder {
    state: State,
    extensions_left: usize,
    trailers_left: usize,
    /// The trailer line that is being read; bounded by `trailers_left`.
    trailer: Vec<u8>,
}

impl Decoder {
    /// A decoder at the start of a body.
    #[must_use]
    pub const fn new(limits: &Limits) -> Self {
        Self {
            state: State::Size { size: 0, digits: 0 },
            extensions_left: limits.chunk_extensions,
            trailers_left: limits.trailers,
            trailer: Vec::new(),
        }
    }

    /// Whether the last chunk and its trailers have been read.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Reads until one run of data is found, the input ends, or the body ends.
    ///
    /// # Errors
    /// Anything that is not the grammar; the connection cannot be used further.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, ChunkError> {
        let mut at = 0;
        while let Some(&byte) = input.get(at) {
            match self.state {
                State::Done => break,
                State::Data { left } => {
                    let take = usize::try_from(left).unwrap_or(usize::MAX).min(input.len() - at);
                    let left = left - take as u64;
                    self.state = if left == 0 { State::DataCr } else { State::Data { left } };
                    return Ok(Step { consumed: at + take, data: at..at + take });
                }
                _ => self.state = self.framing_byte(byte)?,
            }
            at += 1;
        }
        Ok(Step { consumed: at, data: at..at })
    }

    fn framing_byte(&mut self, byte: u8) -> Result<State, ChunkError> {
        Ok(match (self.state, byte) {
            (State::Size { size, digits }, _) => size_byte(size, digits, byte)?,
            (State::Extension { size }, b'\r') => State::SizeLf { size },
            (State::Extension { size }, _) => {
                self.extensions_left = self.extensions_left.checked_sub(1).ok_or(ChunkError)?;
                if !is_value(&[byte]) {
                    return Err(ChunkError);
                }
                State::Extension { size }
            }
            (State::SizeLf { size: 0 }, b'\n') => State::Trailer,
            (State::SizeLf { size }, b'\n') => State::Data { left: size },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size { size: 0, digits: 0 },
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::Trailer, _) => {
                self.trailers_left = self.trailers_left.checked_sub(1).ok_or(ChunkError)?;
                self.trailer.push(byte);
                State::Trailer
            }
            (State::TrailerLf, b'\n') if self.trailer.is_empty() => State::Done,
            (State::TrailerLf, b'\n') => {
                check_trailer(&self.trailer)?;
                self.trailer.clear();
                State::Trailer
            }
            _ => return Err(ChunkError),
        })
    }
}

/// RFC 9112 §7.1: `chunk-size = 1*HEXDIG`; "recipients MUST anticipate potentially large
/// hexadecimal numerals and prevent parsing errors due to integer conversion overflows".
fn size_byte(size: u64, digits: u8, byte: u8) -> Result<State, ChunkError> {
    match byte {
        b'\r' if digits > 0 => Ok(State::SizeLf { size }),
        b';' if digits > 0 => Ok(State::Extension { size }),
        _ => {
            let digit = char::from(byte).to_digit(16).ok_or(ChunkError)?;
            if digits == 16 || size > (i64::MAX as u64 >> 4) {
                return Err(ChunkError);
            }
            Ok(State::Size { size: size << 4 | u64::from(digit), digits: digits + 1 })
        }
    }
}

fn check_trailer(line: &[u8]) -> Result<(), ChunkError> {
    let colon = memchr::memchr(b':', line).ok_or(ChunkError)?;
    if is_token(&line[..colon]) && is_value(&line[colon + 1..]) { Ok(()) } else { Err(ChunkError) }
}

/// Appends `data` as one chunk; nothing for empty data, which would end the body.
pub fn write_chunk(out: &mut Vec<u8>, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let mut hex = [0; 16];
    let mut at = hex.len();
    let mut left = data.len();
    while left > 0 {
        at -= 1;
        hex[at] = b"0123456789abcdef"[left & 15];
        left >>= 4;
    }
    out.extend_from_slice(&hex[at..]);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}

/// Appends the last chunk, without trailers.
pub fn write_last_chunk(out: &mut Vec<u8>) {
    out.extend_from_slice(b"0\r\n\r\n");
}
