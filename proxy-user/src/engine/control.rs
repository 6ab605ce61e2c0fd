//! The engine's main thread: the guardian's orders in, reports out.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use super::start::{Engine, Start, StartError};
use super::worker::{Events, Mail, Shared, Stop};
use crate::control::channel::{ChannelError, EngineEnd};
use crate::control::message::{self, ToEngine, ToGuardian};
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
    /// The kernel.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The engine process, driven by the guardian at the other end of `control`. Returns when it was
/// told to stop.
///
/// # Errors
/// See [`EngineError`]. The guardian's death is an error: the listeners are closed then.
pub fn run(control: OwnedFd) -> Result<(), EngineError> {
    let channel = Arc::new(EngineEnd::new(control));
    let (message, mut descriptors) = channel.recv(CONFIG_TIME)?;
    let ToEngine::Config(snapshot) = message else { return Err(EngineError::Version) };
    if snapshot.version != message::VERSION || descriptors.is_empty() {
        return Err(EngineError::Version);
    }
    let page = SharedPage::open(descriptors.remove(0).as_fd())?;
    mark_on_fatal_signals()?;
    let seat = page.hold(Seat::Engine)?;
    let store =
        (snapshot.cache.is_some() && !descriptors.is_empty()).then(|| descriptors.remove(0));
    let start = Start { snapshot: *snapshot, page, store, listeners: descriptors };
    let teller = Arc::clone(&channel);
    let events = Events::new(move |event| tell(&teller, &event));
    let engine = match Engine::start(start, events) {
        Ok(engine) => engine,
        Err(error) => {
            channel.send(&ToGuardian::Failed { reason: error.to_string() })?;
            return Err(error.into());
        }
    };
    channel.send(&ToGuardian::Hello(engine.hello().clone()))?;
    watch_guardian(page, Arc::clone(engine.shared()))?;
    let shared = Arc::clone(engine.shared());
    match obey(&channel, &shared) {
        Ok(()) => {
            // Where the master is now, and the last word, may still come.
            let heard = Arc::clone(&channel);
            let rest = move || drop(obey(&heard, &shared));
            std::thread::Builder::new().name("orders".into()).spawn(rest)?;
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
