//! Why the guardian (or a small verb) gave up: one sentence for the user, and whose fault it is.

use std::path::Path;

use crate::config::Problems;

/// A sentence that says what is wrong and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The configuration is wrong: exit code 2.
    #[error("{0}")]
    Config(#[from] Problems),
    /// An option, a file's content or a file's mode is wrong: exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The host refuses, or something failed while running: exit code 1.
    #[error("{0}")]
    Runtime(String),
}

impl Fault {
    /// Whether the user's input is to blame, rather than the host.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Runtime(_))
    }

    /// A runtime fault: what was tried, and the error.
    #[must_use]
    pub fn of(what: impl std::fmt::Display, error: impl std::fmt::Display) -> Self {
        Self::Runtime(format!("{what}: {error}"))
    }

    /// As [`Self::of`], for a file.
    pub(super) fn file(what: &str, path: &Path, error: impl std::fmt::Display) -> Self {
        Self::Runtime(format!("{what} {}: {error}", path.display()))
    }
}
