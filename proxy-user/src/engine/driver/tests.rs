//! The same tests under every driver this host has.

use super::*;

/// The drivers this host has; says so when io_uring is not among them.
pub(crate) fn modes() -> Vec<IoMode> {
    match uring::Uring::new(&DriverOptions::default()) {
        Ok(_) => vec![IoMode::Uring, IoMode::Epoll],
        Err(reason) => {
            eprintln!("SKIPPED under io_uring: {reason}");
            vec![IoMode::Epoll]
        }
    }
}
