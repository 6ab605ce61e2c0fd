//! What workers share with each other and with the engine's main thread: configuration, page,
//! letter-boxes.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Instant;

use parking_lot::Mutex;

use super::{Core, Stop};
use crate::control::message::{ServerState, Snapshot, ToGuardian};
use crate::control::shared::SharedPage;
use crate::engine::connections::Service;
use crate::engine::connections::http::Balancer;
use crate::engine::connections::memcached::CacheService;
use crate::engine::driver::Waker;
use crate::engine::link::Streams;

/// Where workers report what the guardian must know. Called on their threads; must not block.
pub struct Events(Box<dyn Fn(ToGuardian) + Send + Sync>);

impl Events {
    /// Reports go to this function.
    #[must_use]
    pub fn new(tell: impl Fn(ToGuardian) + Send + Sync + 'static) -> Self {
        Self(Box::new(tell))
    }

    /// Reports.
    pub fn tell(&self, event: ToGuardian) {
        (self.0)(event);
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Events")
    }
}

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
    /// The store, if there is one.
    pub cache: Option<CacheService>,
    /// The streams between the engines.
    pub streams: Streams,
    /// To the guardian.
    pub events: Events,
    /// The HTTP balancer: upstreams, settings, log.
    pub http: Balancer,
    /// Per worker: something is under way there, while it stops.
    pub(super) busy: Vec<AtomicBool>,
    /// Workers with commands of the cache's clients to be finished, before the role goes.
    pub(super) unrested: AtomicUsize,
}

impl Shared {
    /// For the workers of the configuration.
    #[must_use]
    pub fn new(
        config: Snapshot,
        page: SharedPage,
        connections_max: usize,
        cache: Option<CacheService>,
        events: Events,
    ) -> Self {
        let workers = usize::from(config.workers);
        let http = Balancer::new(&config);
        Self {
            config,
            page,
            connections_max,
            connections: AtomicUsize::new(0),
            mailboxes: (0..workers).map(|_| Mailbox::default()).collect(),
            busy: (0..workers).map(|_| AtomicBool::new(true)).collect(),
            unrested: AtomicUsize::new(workers),
            cache,
            streams: Streams::default(),
            events,
            http,
        }
    }

    /// Active checks have a new view of the servers.
    pub fn set_backends(&self, states: &[Vec<ServerState>]) {
        self.http.set_backends(states);
    }

    /// The same to every worker.
    pub fn post(&self, mail: impl Fn() -> Mail) {
        for mailbox in &self.mailboxes {
            mailbox.post(mail());
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
    /// Until then, look for waiting connections on all listeners each millisecond; `None`: no more.
    SweepUntil(Option<Instant>),
    /// Finish what was received and close what is idle; see [`super::stop`].
    Rest,
    /// The same, and then end.
    Stop(Stop),
    /// Close all listeners at once.
    Unlisten,
    /// Do this in the worker.
    Task(Box<dyn FnOnce(&mut Core) + Send>),
}

impl fmt::Debug for Mail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listen(..) => "Listen",
            Self::SweepUntil(_) => "SweepUntil",
            Self::Rest => "Rest",
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
