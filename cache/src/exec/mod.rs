//! Execution: one command on the store, under the lock of its key's shard.
//!
//! Each change takes the partition's next version, changes the store and appends its record to
//! the partition's stream under that one lock. Each outcome says what an answer depends on. No
//! protocol here: `session` turns outcomes into bytes and holds them until their gate is open.
//!
//! The epoch under which the caller serves is checked under the same lock: after a newer primary
//! has begun to write a partition, or this node was promoted again, no late command gets in.

mod change;
mod flush;
mod store;

use std::time::Instant;

use crate::command::RELATIVE_MAX;
use crate::replication::message::{FOREVER, Record};
use crate::replication::{Depends, Shared, Stream};
use crate::{Cache, ItemView, Locked, PartitionState, StoreTime};

pub use change::ArithmeticOutcome;
pub use store::StoreOutcome;

/// One moment, in the three clocks that are needed. Fed in by the shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Monotonic, for how long answers have been held.
    pub instant: Instant,
    /// Store time, for expiry.
    pub store: StoreTime,
    /// Seconds since 1970, for absolute expiry times only.
    pub wall: u64,
}

/// This node is not the primary of the epoch that the caller believes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotPrimary;

/// What an execution gives: the outcome and what an answer that tells it stands on.
pub type Done<T> = Result<(T, Depends), NotPrimary>;

/// When an item goes, in store time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expiry {
    /// At this second; 0 = never.
    At(u32),
    /// It is gone already.
    Gone,
}

impl Expiry {
    /// What a client's exptime means now (protocol.txt, "Expiration times"): 0 never, up to 30
    /// days from now, more is seconds since 1970, negative is gone at once.
    #[must_use]
    pub fn from_client(exptime: i64, now: Now) -> Self {
        let seconds = match exptime {
            0 => return Self::At(0),
            ..0 => return Self::Gone,
            1..=RELATIVE_MAX => exptime,
            _ => exptime.saturating_sub_unsigned(now.wall),
        };
        match u32::try_from(seconds) {
            Ok(0) => Self::Gone,
            Ok(seconds) => Self::At(now.store.0.saturating_add(seconds)),
            Err(_) if seconds < 0 => Self::Gone,
            Err(_) => Self::At(u32::MAX),
        }
    }
}

/// Seconds left of an expiry, as records carry it.
#[must_use]
pub fn remaining(expiry: u32, now: StoreTime) -> u32 {
    if expiry == 0 { FOREVER } else { expiry.saturating_sub(now.0).max(1) }
}

/// The expiry that a record's remaining time means here.
#[must_use]
pub fn expiry_of(remaining: u32, now: StoreTime) -> u32 {
    if remaining == FOREVER { 0 } else { now.0.saturating_add(remaining) }
}

/// Executes commands for one epoch at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Exec<'a> {
    cache: &'a Cache,
    shared: &'a Shared,
    epoch: u16,
    now: Now,
}

impl<'a> Exec<'a> {
    /// For a node that serves `epoch`.
    #[must_use]
    pub fn new(cache: &'a Cache, shared: &'a Shared, epoch: u16, now: Now) -> Self {
        Self { cache, shared, epoch, now }
    }

    /// `get`: shows the item to `f`. The answer depends on the version seen, or for a miss on the
    /// partition's last delete.
    ///
    /// # Errors
    /// [`NotPrimary`].
    pub fn read<T>(&self, key: &[u8], f: impl FnOnce(&ItemView<'_>) -> T) -> Done<Option<T>> {
        let mut locked = self.lock(key)?;
        let partition = id(&locked);
        if let Some(item) = locked.get(self.now.store) {
            let version = item.version;
            return Ok((Some(f(&item)), Depends { partition, version }));
        }
        Ok((None, miss(&mut locked)))
    }

    /// Locks the key's shard, checks the epoch and executes a flush that has become due.
    fn lock<'k>(&self, key: &'k [u8]) -> Result<Locked<'a, 'k>, NotPrimary> {
        let mut locked = self.cache.lock(key);
        if let Some(at) = locked.partition().flush_at()
            && at <= self.now.store
        {
            let partition = locked.partition_id();
            drop(locked);
            self.flush_if_due(partition)?;
            locked = self.cache.lock(key);
        }
        if locked.partition().epoch() != self.epoch {
            return Err(NotPrimary);
        }
        Ok(locked)
    }

    /// Takes a change's version, if the store has not already, and appends its record.
    fn commit(
        &self,
        partition: u8,
        (state, stream): (&mut PartitionState, &mut Stream),
        record: &Record<'_>,
    ) {
        state.raise_version(record.version());
        if stream.append(partition, record) {
            self.shared.mark_dirty(partition);
        }
    }

    /// Removes the key as a change, here and at the peer; it need not be there: the peer may still
    /// hold what was evicted here.
    fn delete_locked(&self, locked: &mut Locked<'_, '_>, key: &[u8]) -> Depends {
        let (partition, version) = (id(locked), next(locked));
        // First, so that no crash leaves a miss that stands on nothing.
        let state = locked.partition();
        state.raise_version(version);
        state.raise_last_delete(version);
        locked.remove(self.now.store);
        self.commit(partition, locked.split(), &Record::Delete { version, key });
        Depends { partition, version }
    }
}

fn id(locked: &Locked<'_, '_>) -> u8 {
    (locked.partition_id() & 63) as u8
}

/// The version that the next change will have. Taken once the store has accepted the change: a
/// version without a record would never be acknowledged.
fn next(locked: &mut Locked<'_, '_>) -> u64 {
    locked.partition().version() + 1
}

fn miss(locked: &mut Locked<'_, '_>) -> Depends {
    Depends { partition: id(locked), version: locked.partition().last_delete() }
}

fn seen(locked: &Locked<'_, '_>, version: u64) -> Depends {
    Depends { partition: id(locked), version }
}
