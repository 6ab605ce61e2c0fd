//! The service manager: systemd is told that the node serves or stops, and its descriptor store
//! keeps the store's memory across a restart of the unit (an upgrade). Without one nothing happens.

use std::collections::BTreeMap;
use std::os::fd::{BorrowedFd, OwnedFd};

use sd_notify::NotifyState;

use crate::control::keeper::{LASTING, adopt_passed};

/// The variable that names the manager's socket; the guardian must not speak to it.
pub(super) const SOCKET_VARIABLE: &str = "NOTIFY_SOCKET";

/// What the manager has kept from an earlier `tandem run`. What it passes besides is closed.
pub(super) fn kept() -> BTreeMap<String, OwnedFd> {
    let passed = match sd_notify::listen_fds_with_names() {
        Ok(passed) => passed,
        Err(error) => {
            tracing::warn!(%error, "what the service manager kept cannot be used");
            return BTreeMap::new();
        }
    };
    let (numbers, names): (Vec<_>, Vec<_>) = passed.unzip();
    let mut kept: BTreeMap<_, _> = names.into_iter().zip(adopt_passed(numbers)).collect();
    kept.retain(|name, _| name.starts_with(LASTING));
    kept
}

/// Keeps one there, if its name says that it lasts. Only the newest of a name is kept.
pub(super) fn keep(name: &str, descriptor: BorrowedFd<'_>) {
    if !name.starts_with(LASTING) {
        return;
    }
    let forget = [NotifyState::FdStoreRemove, NotifyState::FdName(name)];
    let store = [NotifyState::FdStore, NotifyState::FdName(name)];
    let done =
        sd_notify::notify(&forget).and_then(|()| sd_notify::notify_with_fds(&store, &[descriptor]));
    complain(done);
}

/// The node serves.
pub(super) fn ready() {
    complain(sd_notify::notify(&[NotifyState::Ready]));
}

/// The node was told to stop.
pub(super) fn stopping() {
    complain(sd_notify::notify(&[NotifyState::Stopping]));
}

fn complain(done: std::io::Result<()>) {
    if let Err(error) = done {
        tracing::warn!(%error, "the service manager does not hear");
    }
}
