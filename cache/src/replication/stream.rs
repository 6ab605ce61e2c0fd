//! One partition's stream: the records that are not yet on the link.
//!
//! It lives inside the shard, under its lock, beside the store that it describes: every change of
//! the store appends here before the lock is given back, so the order of the stream is the order
//! of the changes. It is not the link: `sender` takes from it, and while no sender is attached
//! nothing is kept. It also holds which link may write this partition on a replica.

use crate::replication::message::{self, Record};

/// Identity of one link's life. A later one is greater: compared as a pair (epoch, number).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkSession {
    /// Epoch of the primary that opened it.
    pub epoch: u16,
    /// Number that grows with each link that this primary opens.
    pub number: u64,
}

/// The stream was taken from by a sender that no longer owns it, or lost records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamLost {
    /// The peer was slower than the backlog allows; records were dropped.
    Overrun,
    /// A newer sender has attached.
    Replaced,
}

/// Pending records of one partition, encoded. See the module's text.
#[derive(Debug, Default)]
pub struct Stream {
    pending: Vec<u8>,
    limit: usize,
    attached: Option<LinkSession>,
    overrun: bool,
    source: Option<LinkSession>,
}

impl Stream {
    /// Starts to keep records, for the sender of `session`, at most `limit` bytes of them.
    /// A partition that is sent accepts records of no link.
    pub fn attach(&mut self, session: LinkSession, limit: usize) {
        *self = Self { limit, attached: Some(session), ..Self::default() };
    }

    /// Stops keeping records, if `session` is still the one attached.
    pub fn detach(&mut self, session: LinkSession) {
        if self.attached == Some(session) {
            *self = Self { source: self.source, ..Self::default() };
        }
    }

    /// Whether a sender wants records. Without one, callers need not build them.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.attached.is_some() && !self.overrun
    }

    /// Appends a record. Returns whether it was kept (then the partition is to be marked dirty).
    /// A record beyond the limit drops the whole backlog and marks it overrun: then the sender
    /// is told, by the same mark, and full-syncs again.
    pub fn append(&mut self, partition: u8, record: &Record<'_>) -> bool {
        if !self.is_attached() {
            return false;
        }
        message::encode_record(&mut self.pending, partition, record);
        if self.pending.len() > self.limit {
            self.pending = Vec::new();
            self.overrun = true;
        }
        true
    }

    /// Moves all pending records to `out`: at most the backlog's limit.
    ///
    /// # Errors
    /// [`StreamLost`] when `session` is not attached any more or records were dropped.
    pub fn take(&mut self, session: LinkSession, out: &mut Vec<u8>) -> Result<(), StreamLost> {
        if self.attached != Some(session) {
            return Err(StreamLost::Replaced);
        }
        if self.overrun {
            return Err(StreamLost::Overrun);
        }
        out.extend_from_slice(&self.pending);
        self.pending.clear();
        self.pending.shrink_to(64 * 1024);
        Ok(())
    }

    /// Bytes that wait for the sender.
    #[must_use]
    pub fn backlog(&self) -> usize {
        self.pending.len()
    }

    /// The link whose records this partition accepts (replica side).
    #[must_use]
    pub fn source(&self) -> Option<LinkSession> {
        self.source
    }

    /// Accepts records of `session` from now on. Returns false, changing nothing, when a newer
    /// link already has the partition.
    #[must_use]
    pub fn accept_from(&mut self, session: LinkSession) -> bool {
        if self.source.is_some_and(|have| have > session) {
            return false;
        }
        self.source = Some(session);
        true
    }
}
