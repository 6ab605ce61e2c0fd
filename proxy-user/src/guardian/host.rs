//! What the guardian asks of the host for itself.

use nix::sys::mman::{MlockAllFlags, mlockall};

/// Keeps the guardian's pages in memory, those touched so far and later: a swapped-out guardian
/// misses beats. Only as root: with a small RLIMIT_MEMLOCK later allocations would fail.
pub(super) fn lock_memory() {
    if !nix::unistd::geteuid().is_root() {
        tracing::info!("not root: memory is not locked");
        return;
    }
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    let flags = MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault;
    if let Err(error) = mlockall(flags) {
        tracing::info!(%error, "memory is not locked");
    }
}
