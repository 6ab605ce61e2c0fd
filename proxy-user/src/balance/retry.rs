//! Which failed attempts may be made again. A request is never run twice unless HTTP says that
//! running it twice is running it once.
//!
//! | what failed | any method | idempotent only |
//! |---|---|---|
//! | connect (refused, unreachable, timed out) | on another server | |
//! | connection died, no byte of the request written | once, on a fresh connection | |
//! | connection died, no byte of an answer read | | once, on a fresh connection |
//! | anything after the first byte of an answer; no answer in time | never | never |
//!
//! RFC 9110 §9.2.2: "a client can repeat the request automatically if a communication failure
//! occurs before the client is able to read the server's response", for idempotent methods; "A
//! proxy MUST NOT automatically retry non-idempotent requests."

/// A failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// No connection came up.
    Connect,
    /// The connection ended before the answer was complete.
    Died {
        /// At least one byte of an answer had come.
        answer_begun: bool,
        /// At least one byte of the request may have gone.
        written: bool,
        /// The connection had served a request before.
        reused: bool,
    },
    /// No answer in time.
    Silent,
}

/// What is known of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Its method is idempotent.
    pub idempotent: bool,
    /// All of it that was sent is still held.
    pub replayable: bool,
    /// It was made again already after a connection died.
    pub repeated: bool,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// Tell the client.
    No,
    /// The next candidate.
    Another,
    /// A fresh connection; the same server is as good as another.
    Fresh,
}

/// The rule of the table above.
#[must_use]
pub const fn verdict(attempt: Attempt, facts: Facts) -> Retry {
    match attempt {
        _ if !facts.replayable => Retry::No,
        Attempt::Connect => Retry::Another,
        Attempt::Died { answer_begun: true, .. } | Attempt::Silent => Retry::No,
        Attempt::Died { .. } if facts.repeated => Retry::No,
        Attempt::Died { written: true, .. } if !facts.idempotent => Retry::No,
        Attempt::Died { reused: true, .. } => Retry::Fresh,
        Attempt::Died { reused: false, .. } => Retry::Another,
    }
}
