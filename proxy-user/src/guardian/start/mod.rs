//! Before anything runs: configuration, key, state folder, lock, host, ports. Nothing here leaves a
//! trace when it refuses.

mod estate;
mod kept;
mod key;
mod listeners;
mod preflight;
mod strays;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use super::fault::Fault;
use crate::cli;
use crate::config::{self, Config};

pub(super) use estate::{key, page, store, text};
pub(super) use kept::{CONFIG, LEGACY, LOCK, OWN_KEY, PAIR_KEY, STORE, memory};
pub(super) use key::{PairKey, keygen};
pub(super) use listeners::{Listeners, PeerSockets, next_port};
pub(super) use preflight::{Lock, host, lock};
pub(super) use strays::Sinks;

/// Reads a configuration file.
pub(super) fn load(file: &Path) -> Result<Config, Fault> {
    parse(&read(file)?, file)
}

/// The text of a configuration file.
pub(super) fn read(file: &Path) -> Result<String, Fault> {
    std::fs::read_to_string(file)
        .map_err(|error| Fault::Usage(format!("{}: {error}", file.display())))
}

/// The text of this file; relative paths in it are meant from its folder.
pub(super) fn parse(text: &str, file: &Path) -> Result<Config, Fault> {
    let mut config = config::parse(text, &file.display().to_string())?;
    let folder = file.parent().unwrap_or_else(|| Path::new(""));
    if let Some(pair) = &mut config.node.pair {
        pair.key_file = folder.join(&pair.key_file);
    }
    if let Some(state) = &mut config.node.state_dir {
        *state = folder.join(&state);
    }
    Ok(config)
}

/// Options given on the command line win over the file.
pub(super) fn apply(options: &cli::Run, config: &mut Config) {
    if let Some(io) = options.io {
        config.engine.io = io.into();
    }
    if options.workers.is_some() {
        config.engine.workers = options.workers;
    }
}

/// How many workers: as configured, else one for each core this process may use.
pub(super) fn workers(config: &Config) -> u16 {
    let cores = || {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        u16::try_from(cores.min(64)).unwrap_or(64)
    };
    config.engine.workers.unwrap_or_else(cores)
}

/// Where the epoch and the lock live. Without a file and without a folder in it, a node still needs
/// a place: /var/lib for a configured node, /run (or the user's own) for the default one.
pub(super) fn state_dir(config: &Config, configured: bool) -> PathBuf {
    if let Some(folder) = &config.node.state_dir {
        return folder.clone();
    }
    if configured && nix::unistd::geteuid().is_root() {
        return PathBuf::from("/var/lib/tandem").join(&config.node.name);
    }
    if nix::unistd::geteuid().is_root() {
        return PathBuf::from("/run/tandem");
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let fallback = || std::env::temp_dir().join(format!("tandem-{}", nix::unistd::geteuid()));
    own.map_or_else(fallback, |folder| folder.join("tandem")).join(&config.node.name)
}
