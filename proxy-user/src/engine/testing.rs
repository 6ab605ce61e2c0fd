//! What several of the engine's tests need.

use crate::config::{Config, Io};
use crate::control::message::{Secret, Snapshot, VERSION};

/// A configuration without listeners.
pub(crate) fn snapshot(workers: u16) -> Snapshot {
    let config = Config::single(&["127.0.0.1:1".parse().unwrap()]);
    Snapshot {
        version: VERSION,
        node: config.node.name,
        workers,
        io: Io::Auto,
        generation: 0,
        cache: config.cache,
        hash_key: Secret([7; 16]),
        http: config.http,
        upstreams: config.upstreams,
        listeners: Vec::new(),
        link: None,
        log: config.log,
    }
}
