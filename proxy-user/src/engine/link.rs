//! The streams between the engines of a pair.

use parking_lot::Mutex;

use crate::control::message::{SyncCommand, Target};
use crate::engine::worker::Shared;

/// What is known about the streams by all workers.
#[derive(Debug)]
pub struct Streams {
    target: Mutex<Target>,
}

impl Default for Streams {
    fn default() -> Self {
        Self { target: Mutex::new(Target::Nobody) }
    }
}

impl Streams {
    /// The role machine's order.
    pub fn order(&self, command: SyncCommand, shared: &Shared) {
        if let SyncCommand::Target(target) = command {
            *self.target.lock() = target;
        }
        shared.wake_all();
    }
}
