//! What workers share with each other and with the engine's main thread: configuration, page,
//! letter-boxes.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use parking_lot::Mutex;

use super::Core;
use crate::control::message::Snapshot;
use crate::control::shared::SharedPage;
use crate::engine::connections::Service;
use crate::engine::driver::Waker;

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The configuration; for the life of the process.
    pub config: Snapshot,
    /// The page shared with the guardian: role, lease, counters.
    pub page: SharedPage,
    /// Client connections that may be open in all workers together.
    pub connections_max: usize,
    /// Open client connections.
    pub connections: AtomicUsize,
    /// One mailbox per worker.
    pub mailboxes: Vec<Mailbox>,
}

impl Shared {
    /// For the workers of the configuration.
    #[must_use]
    pub fn new(config: Snapshot, page: SharedPage, connections_max: usize) -> Self {
        let workers = usize::from(config.workers);
        Self {
            config,
            page,
            connections_max,
            connections: AtomicUsize::new(0),
            mailboxes: (0..workers).map(|_| Mailbox::default()).collect(),
        }
    }

    /// Has every worker make a turn.
    pub fn wake_all(&self) {
        for mailbox in &self.mailboxes {
            mailbox.wake();
        }
    }
}

/// What other threads may ask of a worker.
pub enum Mail {
    /// Listen, and make this of what comes.
    Listen(OwnedFd, Service),
    /// Look for waiting connections on all listeners.
    Sweep,
    /// Stop: no more new connections; until this time the present ones may finish.
    Stop(Instant),
    /// Close all listeners at once.
    Unlisten,
    /// Do this in the worker.
    Task(Box<dyn FnOnce(&mut Core) + Send>),
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listen(..) => "Listen",
            Self::Sweep => "Sweep",
            Self::Stop(_) => "Stop",
            Self::Unlisten => "Unlisten",
            Self::Task(_) => "Task",
        })
    }
}

/// A worker's letter-box.
#[derive(Debug, Default)]
pub struct Mailbox {
    mail: Mutex<Vec<Mail>>,
    waker: OnceLock<Waker>,
}

impl Mailbox {
    /// Puts something in and wakes the worker.
    pub fn post(&self, mail: Mail) {
        self.mail.lock().push(mail);
        self.wake();
    }

    /// Whose worker this is; once.
    pub(super) fn open(&self, waker: Waker) {
        let fresh = self.waker.set(waker).is_ok();
        debug_assert!(fresh, "one worker per mailbox");
    }

    pub(super) fn empty(&self) -> Vec<Mail> {
        std::mem::take(&mut *self.mail.lock())
    }

    /// Has the worker make a turn.
    pub fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }
}
