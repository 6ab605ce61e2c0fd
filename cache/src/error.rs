//! What a client is told when a command cannot be done, and why a connection is closed.

/// Refusal of a command; the connection goes on. The texts are memcached's (protocol.txt, "Error
/// strings"; where that is silent, what memcached 1.6 sends).
///
/// Clients of the Java family drop the connection on any of these lines, so they are given only
/// where memcached gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such command, or not this number of words.
    #[error("ERROR")]
    Unknown,
    /// A word of the line is not what it should be.
    #[error("CLIENT_ERROR bad command line format")]
    Format,
    /// `delete` with a second word that is not `0` or `noreply`.
    #[error("CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]")]
    DeleteUsage,
    /// The expiry of `touch`, `gat`, `flush_all` is not a number.
    #[error("CLIENT_ERROR invalid exptime argument")]
    Exptime,
    /// The amount of `incr`, `decr` is not a number of 64 bits.
    #[error("CLIENT_ERROR invalid numeric delta argument")]
    Delta,
    /// `incr`, `decr` of something else than a number.
    #[error("CLIENT_ERROR cannot increment or decrement non-numeric value")]
    NonNumeric,
    /// No line end after the value.
    #[error("CLIENT_ERROR bad data chunk")]
    DataChunk,
    /// Item above the limit.
    #[error("SERVER_ERROR object too large for cache")]
    TooLarge,
    /// No memory and no eviction allowed.
    #[error("SERVER_ERROR out of memory storing object")]
    NoMemory,
}

impl Refusal {
    /// The line, without its end.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Unknown => "ERROR",
            Self::Format => "CLIENT_ERROR bad command line format",
            Self::DeleteUsage => {
                "CLIENT_ERROR bad command line format.  Usage: delete <key> [noreply]"
            }
            Self::Exptime => "CLIENT_ERROR invalid exptime argument",
            Self::Delta => "CLIENT_ERROR invalid numeric delta argument",
            Self::NonNumeric => "CLIENT_ERROR cannot increment or decrement non-numeric value",
            Self::DataChunk => "CLIENT_ERROR bad data chunk",
            Self::TooLarge => "SERVER_ERROR object too large for cache",
            Self::NoMemory => "SERVER_ERROR out of memory storing object",
        }
    }
}

/// Why a session wants its connection closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CloseReason {
    /// The client said `quit`.
    #[error("client quit")]
    Quit,
    /// A command line without end.
    #[error("client sent a line of more than {LINE_MAX} bytes")]
    LineTooLong,
    /// The caller fed on although the session did not want to read.
    #[error("more input than a session holds")]
    InputOverrun,
    /// Answers were produced under a role or epoch that is not this node's any more.
    #[error("answers of an earlier role or epoch are never sent")]
    RoleChanged,
    /// The store is not this node's to serve in this epoch.
    #[error("not the primary of this epoch")]
    NotPrimary,
}

/// Longest command line but for reading commands (bytes).
pub const LINE_MAX: usize = 2048;
