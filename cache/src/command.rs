//! Commands, whatever protocol they came by: what a client asked for, parsed and checked.
//!
//! Not the execution (`exec`), not the bytes (`protocol`).

/// Longest key (bytes; protocol.txt, "Keys").
pub const KEY_MAX: usize = 250;

/// Longest relative expiry (seconds; protocol.txt, "Expiration times"): 30 days.
pub const RELATIVE_MAX: i64 = 60 * 60 * 24 * 30;

/// How a storage command treats what is there (protocol.txt, "Storage commands").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreVerb {
    /// Store whatever is there.
    Set,
    /// Only if the key is not there.
    Add,
    /// Only if the key is there.
    Replace,
    /// After the existing value; flags and expiry stay.
    Append,
    /// Before the existing value; flags and expiry stay.
    Prepend,
    /// Only if the item's version is this one.
    Cas(u64),
}

/// A storage command without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Store<'a> {
    /// Which.
    pub verb: StoreVerb,
    /// The key.
    pub key: &'a [u8],
    /// The client's flags.
    pub flags: u32,
    /// As the client gave it: 0, relative, absolute or negative.
    pub exptime: i64,
    /// Bytes of value that follow.
    pub length: usize,
    /// No answer is wanted.
    pub noreply: bool,
}

/// The reading commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadVerb {
    /// Value.
    Get,
    /// Value and version.
    Gets,
    /// Touch and value.
    Gat,
    /// Touch, value and version.
    Gats,
}

impl ReadVerb {
    /// Whether the version is part of the answer.
    #[must_use]
    pub fn with_version(self) -> bool {
        matches!(self, Self::Gets | Self::Gats)
    }

    /// Whether the command sets an expiry.
    #[must_use]
    pub fn touches(self) -> bool {
        matches!(self, Self::Gat | Self::Gats)
    }
}

/// What `stats` is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsTopic {
    /// `stats`.
    General,
    /// `stats reset`.
    Reset,
    /// `stats settings`.
    Settings,
    /// `stats items`.
    Items,
    /// `stats slabs`.
    Slabs,
    /// `stats sizes`.
    Sizes,
    /// `stats replication`.
    Replication,
}

/// A command that is complete with its line. Reading commands are not among them: their keys are
/// executed as they come (`session`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request<'a> {
    /// A value follows.
    Store(Store<'a>),
    /// `incr`, `decr`.
    Arithmetic {
        /// The key.
        key: &'a [u8],
        /// How much.
        delta: u64,
        /// `incr`.
        up: bool,
        /// No answer is wanted.
        noreply: bool,
    },
    /// `delete`.
    Delete {
        /// The key.
        key: &'a [u8],
        /// No answer is wanted.
        noreply: bool,
    },
    /// `touch`.
    Touch {
        /// The key.
        key: &'a [u8],
        /// As the client gave it.
        exptime: i64,
        /// No answer is wanted.
        noreply: bool,
    },
    /// `flush_all`.
    FlushAll {
        /// As the client gave it; 0 or less is now.
        delay: i64,
        /// No answer is wanted.
        noreply: bool,
    },
    /// `stats`.
    Stats(StatsTopic),
    /// `version`.
    Version,
    /// `verbosity`: accepted, changes nothing.
    Verbosity {
        /// No answer is wanted.
        noreply: bool,
    },
    /// `quit`.
    Quit,
}
