//! From a configuration and descriptors to running workers, and back.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cache::store::{AttachKind, AttachReport, StoreConfig};
use cache::{Cache, PARTITIONS};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::connections::memcached::CacheService;
use super::connections::{AccessSink, Service};
use super::driver::{Driver, DriverOptions, IoMode};
use super::region;
use super::worker::{Events, Mail, Shared, Stop, Worker};
use crate::control::message::{self, Hello, Listener, Snapshot, StoreReport};
use crate::control::shared::{Seat, SharedPage};

/// Client connections open at once, in all workers together.
const CONNECTIONS_MAX: usize = 16_384;
/// How long listeners are swept at most after the start behind a dead engine: its ring takes
/// wake-ups until it is reaped, which the guardian tells.
const SWEEP_TIME: Duration = Duration::from_secs(10);
/// Time for all workers to come up.
const START_TIME: Duration = Duration::from_secs(10);

/// What the guardian hands to an engine.
#[derive(Debug)]
pub struct Start {
    /// The configuration.
    pub snapshot: Snapshot,
    /// The shared page.
    pub page: SharedPage,
    /// The store's memory, if there is a cache.
    pub store: Option<OwnedFd>,
    /// One for each of the snapshot's listeners, in that order.
    pub listeners: Vec<OwnedFd>,
    /// Where the access log goes, if there is one.
    pub access_log: Option<AccessSink>,
}

/// Why an engine does not start: a sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store's memory cannot be used.
    #[error("the store's memory cannot be used: {0}")]
    Store(String),
    /// Messages and descriptors do not fit together.
    #[error("descriptors do not fit the configuration")]
    Descriptors,
    /// A worker cannot begin.
    #[error("worker {0}: {1}")]
    Worker(usize, String),
    /// No thread, no memory.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A running engine. Dropping it does not stop it: [`Engine::stop`] does.
#[derive(Debug)]
pub struct Engine {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    hello: Hello,
    /// Until [`Engine::open`].
    posts: Vec<(Listener, OwnedFd)>,
}

impl Engine {
    /// [`Engine::prepare`] and [`Engine::open`].
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub fn start(start: Start, events: Events) -> Result<Self, StartError> {
        let mut engine = Self::prepare(start, events)?;
        engine.open()?;
        Ok(engine)
    }

    /// Attaches the store and starts the workers; they have their drivers, and nobody to serve.
    /// `events` is called on their threads.
    ///
    /// # Errors
    /// See [`StartError`]; nothing runs then.
    pub fn prepare(start: Start, events: Events) -> Result<Self, StartError> {
        let Start { snapshot, page, store, listeners, access_log } = start;
        let workers = usize::from(snapshot.workers);
        if listeners.len() != snapshot.listeners.len() || workers == 0 {
            return Err(StartError::Descriptors);
        }
        let (service, report) = match (&snapshot.cache, store) {
            (Some(config), Some(descriptor)) => {
                let (cache, report) = attach(config, &snapshot, &descriptor)?;
                (Some(CacheService::new(cache, config, workers)), Some(report))
            }
            (None, _) => (None, None),
            (Some(_), None) => return Err(StartError::Descriptors),
        };
        let mode = snapshot.io;
        let posts: Vec<_> = snapshot.listeners.clone().into_iter().zip(listeners).collect();
        let shared = Arc::new(Shared::new(snapshot, page, CONNECTIONS_MAX, service, events));
        shared.http.start_log(access_log)?;
        let (threads, io) = spawn(&shared, mode)?;
        let hello = Hello { version: message::VERSION, io, store: report };
        Ok(Self { shared, threads, hello, posts })
    }

    /// Hands the listeners out: from here on strangers are read.
    ///
    /// # Errors
    /// A listener of a worker that does not exist.
    pub fn open(&mut self) -> Result<(), StartError> {
        for (listener, descriptor) in std::mem::take(&mut self.posts) {
            let mailbox = self.shared.mailboxes.get(usize::from(listener.worker));
            let mailbox = mailbox.ok_or(StartError::Descriptors)?;
            mailbox.post(Mail::Listen(descriptor, Service::of(&listener)));
        }
        if self.shared.config.generation > 0 {
            let until = Instant::now() + SWEEP_TIME;
            self.shared.post(|| Mail::SweepUntil(Some(until)));
        }
        Ok(())
    }

    /// What the guardian is told first.
    #[must_use]
    pub const fn hello(&self) -> &Hello {
        &self.hello
    }

    /// What the workers share.
    #[must_use]
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Stops: no new connections, the present ones may finish within `grace`; then waits for the
    /// workers.
    pub fn stop(self, grace: Duration) {
        self.shared.post(|| Mail::Stop(Stop::within(grace, false)));
        self.join();
    }

    /// Waits for the workers, which were told to stop.
    pub fn join(self) {
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
        self.shared.http.finish_log();
    }
}

/// The store in the guardian's memory.
fn attach(
    config: &crate::config::Cache,
    snapshot: &Snapshot,
    descriptor: &OwnedFd,
) -> Result<(Cache, StoreReport), StartError> {
    let unusable = |error: &dyn std::fmt::Display| StartError::Store(error.to_string());
    let mapped = region::map(descriptor, config.memory).map_err(|error| unusable(&error))?;
    let mut store_id = [0; 16];
    getrandom::fill(&mut store_id).map_err(|error| unusable(&error))?;
    let store = StoreConfig {
        hash_key: snapshot.hash_key.0,
        store_id: u128::from_le_bytes(store_id),
        item_limit: config.item_size_max,
        ..StoreConfig::default()
    };
    mapped.prefault();
    let (cache, found) = Cache::attach(store, mapped.region).map_err(|error| unusable(&error))?;
    let report = report(&cache, &found, mapped.note);
    Ok((cache, report))
}

fn report(cache: &Cache, found: &AttachReport, note: Option<String>) -> StoreReport {
    let mut notes: Vec<String> = note.into_iter().collect();
    if let AttachKind::Rejected(reason) = found.kind {
        notes.push(format!("memory rejected: {reason}"));
    }
    if !found.emptied_shards.is_empty() {
        notes.push(format!("{} shards could not be rebuilt", found.emptied_shards.len()));
    }
    let epoch = (0..PARTITIONS).map(|p| cache.lock_partition(p).partition().epoch()).max();
    StoreReport {
        fresh: found.kind != AttachKind::Kept,
        epoch: epoch.unwrap_or(0),
        items: found.items,
        shards_rebuilt: found.odd_shards.len() as u32,
        items_dropped: found.items_dropped,
        note: (!notes.is_empty()).then(|| notes.join("; ")),
    }
}

type Running = (Vec<JoinHandle<()>>, String);

/// Starts the workers and waits until each holds its seat and has its driver.
fn spawn(shared: &Arc<Shared>, mode: IoMode) -> Result<Running, StartError> {
    let (ready, is_ready) = mpsc::channel();
    let workers = shared.mailboxes.len();
    let mut threads = Vec::with_capacity(workers);
    for index in 0..workers {
        let (shared, ready) = (Arc::clone(shared), ready.clone());
        let name = format!("worker-{index}");
        let body = move || work(index, shared, mode, &ready);
        threads.push(std::thread::Builder::new().name(name).spawn(body)?);
    }
    let mut io = String::new();
    for _ in 0..workers {
        match is_ready.recv_timeout(START_TIME) {
            Ok((_, Ok(name))) => io = name,
            Ok((index, Err(reason))) => return Err(StartError::Worker(index, reason)),
            Err(_) => return Err(StartError::Worker(0, "does not come up".into())),
        }
    }
    Ok((threads, io))
}

type Ready = mpsc::Sender<(usize, Result<String, String>)>;

/// A worker's thread.
fn work(index: usize, shared: Arc<Shared>, mode: IoMode, ready: &Ready) {
    let begin = || {
        pin(index);
        let seat = Seat::Worker(u16::try_from(index).unwrap_or(u16::MAX));
        let held = shared.page.hold(seat).map_err(|error| format!("no seat: {error}"))?;
        let (driver, reason) =
            Driver::new(mode, &DriverOptions::default()).map_err(|error| error.to_string())?;
        let io = match reason {
            Some(reason) => format!("{} ({reason})", driver.name()),
            None => driver.name().to_owned(),
        };
        let worker = Worker::new(index, Arc::clone(&shared), driver);
        Ok((held, worker.map_err(|error| error.to_string())?, io))
    };
    match begin() {
        Err(reason) => drop(ready.send((index, Err(reason)))),
        Ok((held, mut worker, io)) => {
            if ready.send((index, Ok(io))).is_ok()
                && let Err(error) = worker.run()
            {
                // Nothing more can be done on this thread: its end is seen by the guardian, and is
                // the engine's end.
                tracing::error!(%error, index, "the driver is broken");
                std::process::abort();
            }
            drop(worker);
            drop(held);
        }
    }
}

/// One core for each worker, of those the process may use. Not being able to is no failure.
fn pin(index: usize) {
    let this = Pid::from_raw(0);
    let Ok(allowed) = sched_getaffinity(this) else { return };
    let cores: Vec<usize> =
        (0..CpuSet::count()).filter(|core| allowed.is_set(*core) == Ok(true)).collect();
    let mut own = CpuSet::new();
    let chosen = cores.get(index % cores.len().max(1)).map(|core| own.set(*core));
    if chosen.is_some_and(|set| set.is_ok())
        && let Err(error) = sched_setaffinity(this, &own)
    {
        tracing::debug!(%error, index, "not pinned");
    }
}
