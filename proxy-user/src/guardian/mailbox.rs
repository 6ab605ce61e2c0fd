//! What the guardian's threads say to each other: orders for the role thread, news for the main
//! one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::steering::Report;
use super::watch::Seen;
use crate::control::channel::GuardianEnd;
use crate::control::message::{BackendEvent, Hello};
use crate::node::{Answer, Epoch};

/// Orders for the role thread.
#[derive(Debug)]
pub(super) enum Order {
    /// An engine was started; its messages come by this channel.
    Engine {
        /// Which engine.
        generation: u32,
        /// The guardian's end.
        channel: Arc<GuardianEnd>,
    },
    /// No thread of this engine runs any more.
    EngineGone {
        /// Which engine.
        generation: u32,
    },
    /// The state file was written, or could not be.
    Persisted {
        /// What was to be written.
        epoch: Epoch,
        /// Whether it is on disk.
        ok: bool,
    },
    /// What the netlink thread did, or saw.
    Steering(Report),
    /// The witness answered, or did not.
    Witness(Answer),
    /// The node is to be stopped: say when the role can be given away without a gap, or at the
    /// latest then.
    Leave(Instant),
    /// Give the role away if somebody can take it, and stop answering.
    Resign,
    /// Every socket is closed: remove addresses, settings, programs, and end.
    Clean,
}

/// News for the main thread.
#[derive(Debug)]
pub(super) enum News {
    /// From the watcher.
    Seen(Seen),
    /// The engine serves.
    Up {
        /// Which engine.
        generation: u32,
        /// Its first words.
        hello: Hello,
    },
    /// The engine says that it cannot serve.
    Failed {
        /// Which engine.
        generation: u32,
        /// Its reason.
        reason: String,
    },
    /// The role thread has drawn the consequences of an engine's death: the next may start.
    MayStart {
        /// The dead engine.
        generation: u32,
    },
    /// The engine was reaped.
    Exited {
        /// Which engine.
        generation: u32,
        /// How it ended, in words.
        how: String,
        /// Whether the guardian killed it or somebody else did with SIGKILL.
        killed: bool,
    },
    /// Passive health, for the status page.
    Backend(BackendEvent),
    /// The role can be given away now, or waiting for that is over.
    MayLeave,
    /// The engine owes nothing to the cache's clients.
    Rested,
    /// The node answers nothing any more: the engine may be stopped.
    Resigned {
        /// The other node was given the role.
        handed_over: bool,
    },
    /// The node cannot go on.
    Fatal(String),
}

/// Sends orders; wakes the role thread from its poll.
#[derive(Debug, Clone)]
pub(super) struct Orders {
    sender: mpsc::Sender<Order>,
    wake: Arc<EventFd>,
}

/// The role thread's end.
#[derive(Debug)]
pub(super) struct Inbox {
    receiver: mpsc::Receiver<Order>,
    wake: Arc<EventFd>,
}

/// Sends news to the main thread, from any thread.
pub(super) type NewsSender = tokio::sync::mpsc::UnboundedSender<News>;

pub(super) fn mailbox() -> io::Result<(Orders, Inbox)> {
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let wake = Arc::new(EventFd::from_value_and_flags(0, flags)?);
    let (sender, receiver) = mpsc::channel();
    Ok((Orders { sender, wake: Arc::clone(&wake) }, Inbox { receiver, wake }))
}

impl Orders {
    /// Never blocks; an order to a thread that is gone is dropped.
    pub(super) fn send(&self, order: Order) {
        drop(self.sender.send(order));
        // Full means that it is awake already.
        self.wake.write(1).ok();
    }
}

impl Inbox {
    /// The next order, if there is one.
    pub(super) fn take(&self) -> Option<Order> {
        self.receiver.try_recv().ok()
    }

    /// Before taking orders: forget the wake-ups so far.
    pub(super) fn rearm(&self) {
        self.wake.read().ok();
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
