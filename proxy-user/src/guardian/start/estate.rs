//! From what the keeper holds, or made anew: configuration, key, shared page, the store's memory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::super::fault::Fault;
use super::super::legacy::LegacyFile;
use super::kept;
use super::key::PairKey;
use crate::config::Config;
use crate::control::keeper::{Inherited, PAGE};
use crate::control::shared::{SharedPage, monotonic_ns};

/// A dead guardian's engine is killed by the kernel; so often it is said that it is still there.
const ENGINE_TIME: Duration = Duration::from_secs(5);

/// The text of the configuration.
pub(in crate::guardian) fn text(file: &Path, inherited: &mut Inherited) -> Result<String, Fault> {
    let kept = inherited.take(kept::CONFIG).map(kept::content);
    match kept.transpose().map(|kept| kept.map(String::from_utf8)) {
        Ok(Some(Ok(text))) => Ok(text),
        _ => super::read(file),
    }
}

/// The secret: the one that was kept, the file's, or a new one for a node without a peer.
pub(in crate::guardian) fn key(
    config: &Config,
    inherited: &mut Inherited,
) -> Result<PairKey, Fault> {
    let name = if config.node.pair.is_some() { kept::PAIR_KEY } else { kept::OWN_KEY };
    let kept = inherited.take(name).and_then(|memory| kept::content(memory).ok());
    match (kept.and_then(|bytes| PairKey::from_bytes(&bytes)), &config.node.pair) {
        (Some(key), _) => Ok(key),
        (None, Some(pair)) => PairKey::read(&pair.key_file),
        (None, None) => PairKey::random(),
    }
}

/// The shared page. One that was kept is taken when the engine of the guardian before is dead:
/// until then it may still write to the store.
pub(in crate::guardian) fn page(
    workers: u16,
    inherited: &mut Inherited,
) -> io::Result<(SharedPage, OwnedFd)> {
    if let Some(memory) = inherited.take(PAGE) {
        let page = SharedPage::open(memory.as_fd())?;
        let time = u64::try_from(ENGINE_TIME.as_nanos()).unwrap_or(u64::MAX);
        while !page.take_over(monotonic_ns().saturating_add(time))? {
            tracing::warn!("the engine of the guardian before this one is still there");
        }
        if page.workers() == usize::from(workers) {
            return Ok((page, memory));
        }
    }
    SharedPage::create(workers)
}

/// The store's memory, if there is a cache, and where its content comes from.
pub(in crate::guardian) fn store(
    config: &Config,
    inherited: &mut Inherited,
) -> io::Result<(Option<OwnedFd>, LegacyFile)> {
    let new = |name| memfd_create(name, MFdFlags::MFD_CLOEXEC).map_err(io::Error::from);
    let kept = (inherited.take(kept::STORE), inherited.take(kept::LEGACY));
    match (&config.cache, kept) {
        (Some(_), (Some(store), Some(legacy))) => Ok((Some(store), LegacyFile::new(legacy))),
        (Some(_), _) => Ok((Some(new(c"tandem-store")?), LegacyFile::new(new(c"tandem-legacy")?))),
        (None, _) => Ok((None, LegacyFile::new(new(c"tandem-legacy")?))),
    }
}
