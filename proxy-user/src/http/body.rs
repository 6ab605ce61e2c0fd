//! Body framing (RFC 9112 §6): what of the bytes is body, and where it ends.

use std::ops::Range;

use super::Limits;
use super::chunked::Decoder;

/// How a body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Framing {
    /// There is none.
    None,
    /// After so many bytes.
    Length(u64),
    /// By the last chunk.
    Chunked,
    /// With the connection; responses only.
    UntilClose,
}

/// Why a body cannot be read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyError {
    /// Chunked coding that is not grammar or over its limits.
    Malformed,
    /// Longer than the limit.
    TooLarge,
    /// The connection ended before the body did.
    Truncated,
}

/// What was read of an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// Bytes that are done with; the rest, if any, is not of this body or is for the next call.
    pub consumed: usize,
    /// The part of them that is body.
    pub data: Range<usize>,
}

#[derive(Debug, Clone)]
enum State {
    Done,
    Length(u64),
    Chunked(Decoder),
    UntilClose,
}

/// Reads one body from its framing.
#[derive(Debug, Clone)]
pub struct BodyReader {
    state: State,
    /// Bytes of body that are still allowed.
    allowed: u64,
}

impl BodyReader {
    /// A reader at the start of a body of at most `limit` bytes.
    #[must_use]
    pub const fn new(framing: Framing, limit: u64, limits: &Limits) -> Self {
        let state = match framing {
            Framing::None | Framing::Length(0) => State::Done,
            Framing::Length(length) => State::Length(length),
            Framing::Chunked => State::Chunked(Decoder::new(limits)),
            Framing::UntilClose => State::UntilClose,
        };
        Self { state, allowed: limit }
    }

    /// Whether the body is complete.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match &self.state {
            State::Done => true,
            State::Chunked(decoder) => decoder.is_done(),
            State::Length(_) | State::UntilClose => false,
        }
    }

    /// Bytes of body still to come; `None` when only its end will tell.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        match &self.state {
            State::Done => Some(0),
            State::Length(left) => Some(*left),
            State::Chunked(decoder) if decoder.is_done() => Some(0),
            State::Chunked(_) | State::UntilClose => None,
        }
    }

    /// Takes this many bytes if all of them are body and are not the last of it.
    pub fn pass(&mut self, bytes: usize) -> bool {
        match &mut self.state {
            State::Length(left) if *left > bytes as u64 && self.allowed > bytes as u64 => {
                *left -= bytes as u64;
                self.allowed -= bytes as u64;
                true
            }
            _ => false,
        }
    }

    /// Takes the next run of body from `input`. Call again with the rest until nothing is consumed
    /// or the body is done.
    ///
    /// # Errors
    /// `Malformed` or `TooLarge`.
    pub fn read(&mut self, input: &[u8]) -> Result<Taken, BodyError> {
        let taken = match &mut self.state {
            State::Done => Taken { consumed: 0, data: 0..0 },
            State::Length(left) => {
                let take = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= take as u64;
                if *left == 0 {
                    self.state = State::Done;
                }
                Taken { consumed: take, data: 0..take }
            }
            State::Chunked(decoder) => {
                let step = decoder.step(input).map_err(|_malformed| BodyError::Malformed)?;
                Taken { consumed: step.consumed, data: step.data }
            }
            State::UntilClose => Taken { consumed: input.len(), data: 0..input.len() },
        };
        self.allowed =
            self.allowed.checked_sub(taken.data.len() as u64).ok_or(BodyError::TooLarge)?;
        Ok(taken)
    }

    /// The connection has ended.
    ///
    /// # Errors
    /// `Truncated` when that is not the body's end.
    pub fn handle_eof(&mut self) -> Result<(), BodyError> {
        if matches!(self.state, State::UntilClose) {
            self.state = State::Done;
        }
        if self.is_done() { Ok(()) } else { Err(BodyError::Truncated) }
    }
}
