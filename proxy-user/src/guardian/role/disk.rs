//! The thread that writes the state file: an fsync may take long, and no beat waits for it.

use std::io;
use std::sync::mpsc;

use super::super::epoch::EpochFile;
use super::super::mailbox::{Order, Orders};
use crate::node::Epoch;

/// Writes what it is told, in order.
#[derive(Debug)]
pub(super) struct Disk {
    wanted: mpsc::Sender<Epoch>,
}

impl Disk {
    /// Starts the thread; it ends when this is dropped.
    pub(super) fn start(mut file: EpochFile, orders: Orders) -> io::Result<Self> {
        let (wanted, wishes) = mpsc::channel::<Epoch>();
        let thread = std::thread::Builder::new().name("disk".to_owned());
        thread.stack_size(64 * 1024).spawn(move || {
            for epoch in wishes {
                let done = file.persist(epoch.get());
                if let Err(error) = &done {
                    tracing::error!(%error, %epoch, "cannot write the state file");
                }
                orders.send(Order::Persisted { epoch, ok: done.is_ok() });
            }
        })?;
        Ok(Self { wanted })
    }

    /// Answered by [`Order::Persisted`].
    pub(super) fn persist(&self, epoch: Epoch) {
        self.wanted.send(epoch).ok();
    }
}
