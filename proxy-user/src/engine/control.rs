//! The engine's main thread: the guardian's orders in, reports out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::connections::AccessSink;
use super::rights::{self, RightsError};
use super::start::{Engine, Start, StartError};
use super::worker::{Events, Mail, Shared, Stop};
use crate::control::channel::{ChannelError, EngineEnd};
use crate::control::message::{self, Snapshot, ToEngine, ToGuardian};
use crate::control::shared::{Liveness, Seat, SharedPage, Woken, mark_on_fatal_signals};

/// The guardian configures its engine at once.
const CONFIG_TIME: Duration = Duration::from_secs(10);
/// Longest wait for an order before the guardian is looked at.
const LISTEN_TIME: Duration = Duration::from_secs(1);

/// Why an engine ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The guardian's socket.
    #[error("control socket: {0}")]
    Channel(#[from] ChannelError),
    /// What came was not a configuration of this version.
    #[error("the guardian is of another version")]
    Version,
    /// See there.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The kernel does not take the rights away.
    #[error("rights: {0}")]
    Rights(#[from] RightsError),
    /// The kernel.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What the guardian told an engine to be, and the way back to it.
#[derive(Debug)]
pub struct Assignment {
    channel: Arc<EngineEnd>,
    snapshot: Snapshot,
    /// As in [`ToEngine::Config`].
    descriptors: Vec<OwnedFd>,
    access_log: Option<AccessSink>,
    /// In a process of its own, whose rights are to be laid down.
    confined: bool,
}

impl Assignment {
    /// Waits for the configuration at the other end of `control`; opens what it names.
    ///
    /// # Errors
    /// See [`EngineError`].
    pub fn receive(control: OwnedFd) -> Result<Self, EngineError> {
        let channel = Arc::new(EngineEnd::new(control));
        let (message, descriptors) = channel.recv(CONFIG_TIME)?;
        let ToEngine::Config(snapshot) = message else { return Err(EngineError::Version) };
        if snapshot.version != message::VERSION || descriptors.is_empty() {
            return Err(EngineError::Version);
        }
        let access_log = AccessSink::open(&snapshot.log.access).map_err(StartError::Io);
        let access_log = access_log.map_err(|error| refuse(&channel, error))?;
        Ok(Self { channel, snapshot: *snapshot, descriptors, access_log, confined: false })
    }

    /// For the engine's own process, while it has one thread: lays down every right that the
    /// workers need not have. System calls are bounded by [`Assignment::run`].
    ///
    /// # Errors
    /// The kernel refuses; the engine must not run then.
    pub fn confine(&mut self) -> Result<(), EngineError> {
        let done = rights::leave_root(self.snapshot.identity);
        done.map_err(|error| refuse(&self.channel, error))?;
        self.confined = true;
        Ok(())
    }

    /// Starts the engine and obeys until told to stop.
    ///
    /// # Errors
    /// See [`EngineError`]. The guardian's death is an error: the listeners are closed then.
    pub fn run(mut self) -> Result<(), EngineError> {
        let channel = self.channel;
        let page = SharedPage::open(self.descriptors.remove(0).as_fd())?;
        mark_on_fatal_signals()?;
        let seat = page.hold(Seat::Engine)?;
        let store = (self.snapshot.cache.is_some() && !self.descriptors.is_empty())
            .then(|| self.descriptors.remove(0));
        let start = Start {
            snapshot: self.snapshot,
            page,
            store,
            listeners: self.descriptors,
            access_log: self.access_log,
        };
        let teller = Arc::clone(&channel);
        let events = Events::new(move |event| tell(&teller, &event));
        let prepared = Engine::prepare(start, events);
        let mut engine = prepared.map_err(|error| refuse(&channel, error))?;
        watch_guardian(page, Arc::clone(engine.shared()))?;
        let stopping = hear_while_stopping(Arc::clone(&channel), Arc::clone(engine.shared()))?;
        if self.confined {
            // Every thread and ring is there, and no stranger yet.
            rights::bound_calls().map_err(|error| refuse(&channel, error))?;
        }
        engine.open().map_err(|error| refuse(&channel, error))?;
        channel.send(&ToGuardian::Hello(engine.hello().clone()))?;
        match obey(&channel, engine.shared()) {
            Ok(()) => {
                // Where the master is now, and the last word, may still come.
                stopping.send(()).ok();
                engine.join();
            }
            Err(error) => {
                // Nobody answers for the address any more, so neither do we. The sockets are closed
                // first, so that their FIN leaves while the address is still there.
                engine.stop(Duration::ZERO);
                return Err(error);
            }
        }
        channel.send(&ToGuardian::Stopped)?;
        drop(seat);
        Ok(())
    }
}

/// A thread that obeys while the main one waits for the workers' end; it begins when told to. It is
/// made with all others: once system calls are bounded there can be no new one.
fn hear_while_stopping(
    channel: Arc<EngineEnd>,
    shared: Arc<Shared>,
) -> io::Result<mpsc::Sender<()>> {
    let (begin, begun) = mpsc::channel();
    let hear = move || {
        if begun.recv().is_ok() {
            drop(obey(&channel, &shared));
        }
    };
    std::thread::Builder::new().name("orders".into()).spawn(hear)?;
    Ok(begin)
}

/// Tells the guardian why this engine cannot serve.
fn refuse(channel: &EngineEnd, error: impl Into<EngineError>) -> EngineError {
    let error = error.into();
    tell(channel, &ToGuardian::Failed { reason: error.to_string() });
    error
}

/// Events are few; a guardian that does not take them is stuck, and will be told by its own watch.
fn tell(channel: &EngineEnd, event: &ToGuardian) {
    if let Err(error) = channel.send(event) {
        tracing::warn!(%error, ?event, "the guardian does not hear");
    }
}

/// Does what is ordered until told to stop; the workers have been told then.
fn obey(channel: &EngineEnd, shared: &Arc<Shared>) -> Result<(), EngineError> {
    loop {
        let message = match channel.recv(LISTEN_TIME) {
            Ok((message, _)) => message,
            Err(ChannelError::Io(error)) if error.kind() == io::ErrorKind::TimedOut => continue,
            Err(error) => return Err(error.into()),
        };
        match message {
            ToEngine::Config(_) => tracing::warn!("a second configuration is ignored"),
            ToEngine::Role(_) => shared.wake_all(),
            ToEngine::Backends(states) => shared.set_backends(&states),
            ToEngine::Prepare { epoch } => prepare(channel, shared, epoch),
            ToEngine::Sync(command) => shared.streams.order(command, shared),
            ToEngine::PredecessorReaped => shared.post(|| Mail::SweepUntil(None)),
            ToEngine::Rest => shared.post(|| Mail::Rest),
            ToEngine::Stop { grace_ms, handed_over } => {
                let grace = Duration::from_millis(grace_ms.into());
                shared.post(|| Mail::Stop(Stop::within(grace, handed_over)));
                return Ok(());
            }
        }
    }
}

/// Raises every partition; from then on records of a lower epoch are refused.
fn prepare(channel: &EngineEnd, shared: &Shared, epoch: u16) {
    let promoted = shared.cache.as_ref().map_or(Ok(()), |service| service.cache.promote(epoch));
    match promoted {
        Ok(()) => tell(channel, &ToGuardian::Prepared { epoch }),
        // Not prepared: the role machine gives this promotion up.
        Err(error) => tracing::error!(%error, epoch, "cannot be promoted"),
    }
}

/// Learns of the guardian's death at its first moment, from its seat in the page. A seat that was
/// given back is no death: then the socket says what happens.
fn watch_guardian(page: SharedPage, shared: Arc<Shared>) -> io::Result<()> {
    let watch = move || {
        let mut poked = page.poked();
        loop {
            match page.watch(&[Seat::Guardian], poked, None) {
                Ok(Woken::Seat(_, Liveness::Died)) => break,
                Ok(Woken::Seat(_, Liveness::Empty | Liveness::Left)) => return,
                Ok(Woken::Poked(count)) => poked = count,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "the guardian's death will be noticed late");
                    return;
                }
            }
        }
        tracing::error!("the guardian is dead");
        shared.post(|| Mail::Stop(Stop::within(Duration::ZERO, false)));
    };
    std::thread::Builder::new().name("watch".into()).spawn(watch).map(drop)
}
