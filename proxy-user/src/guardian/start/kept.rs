//! What the keeper holds for the next guardian: under which names, and small things as memory.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::control::keeper::LISTENER;
use crate::control::message::Listener;

/// The lock on the state folder: nobody else takes it between two guardians.
pub(in crate::guardian) const LOCK: &str = "lock";
/// The text of the configuration: a guardian that follows a dead one runs what that one ran,
/// whatever somebody has done to the file meanwhile.
pub(in crate::guardian) const CONFIG: &str = "config";
/// The pair's secret, for the same reason.
pub(in crate::guardian) const PAIR_KEY: &str = "pair-key";
/// The secret of a node without a peer: the items' places depend on it, so it lasts as they do.
pub(in crate::guardian) const OWN_KEY: &str = "lasting-key";
/// The store's memory.
pub(in crate::guardian) const STORE: &str = "lasting-store";
/// Where its content comes from.
pub(in crate::guardian) const LEGACY: &str = "lasting-legacy";

/// The name of an engine's listening socket.
pub(in crate::guardian) fn listener(listener: &Listener) -> String {
    format!("{LISTENER}{} {:?} {}", listener.worker, listener.service, listener.address)
}

/// Memory of this name, with this content.
pub(in crate::guardian) fn memory(name: &CStr, content: &[u8]) -> io::Result<OwnedFd> {
    let memory = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
    let mut file = File::from(memory);
    file.write_all(content)?;
    Ok(file.into())
}

/// The content of such memory.
pub(in crate::guardian) fn content(memory: OwnedFd) -> io::Result<Vec<u8>> {
    let mut file = File::from(memory);
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::keeper::LASTING;

    #[test]
    fn what_lasts_has_such_a_name() {
        assert!([OWN_KEY, STORE, LEGACY].iter().all(|name| name.starts_with(LASTING)));
        assert!([LOCK, CONFIG, PAIR_KEY].iter().all(|name| !name.starts_with(LASTING)));
    }

    #[test]
    fn content_comes_back_as_often_as_it_is_asked_for() {
        let kept = memory(c"small", b"text").unwrap();
        for _ in 0..2 {
            assert_eq!(content(kept.try_clone().unwrap()).unwrap(), b"text");
        }
    }
}
