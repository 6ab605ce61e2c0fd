//! `flush_all`, now or later. A later one is state of each partition, replicated like any change
//! and executed by whoever is primary when it is due.

use super::{Exec, Expiry, NotPrimary};
use crate::replication::message::Record;
use crate::{LockedPartition, PARTITIONS, StoreTime};

impl Exec<'_> {
    /// `flush_all`. Returns the version of each partition that the answer depends on.
    ///
    /// # Errors
    /// [`NotPrimary`]; partitions before the one that said so are flushed.
    pub fn flush_all(&self, delay: i64) -> Result<[u64; PARTITIONS], NotPrimary> {
        let at = match Expiry::from_client(delay, self.now) {
            Expiry::At(0) | Expiry::Gone => None,
            Expiry::At(second) => Some(second),
        };
        let mut versions = [0; PARTITIONS];
        for (partition, version) in versions.iter_mut().enumerate() {
            let mut locked = self.lock_partition(partition)?;
            *version = match at {
                None => self.flush_locked(&mut locked),
                Some(second) => self.flush_later(&mut locked, second),
            };
        }
        Ok(versions)
    }

    /// Executes flushes that have become due; commands do it for their own partition. To be
    /// called about once a second by the primary. Returns whether one was due.
    ///
    /// # Errors
    /// [`NotPrimary`].
    pub fn run_due_flushes(&self) -> Result<bool, NotPrimary> {
        let mut any = false;
        for partition in 0..PARTITIONS {
            any |= self.flush_if_due(partition)?;
        }
        Ok(any)
    }

    pub(super) fn flush_if_due(&self, partition: usize) -> Result<bool, NotPrimary> {
        let mut locked = self.lock_partition(partition)?;
        let due = locked.partition().flush_at().is_some_and(|at| at <= self.now.store);
        if due {
            self.flush_locked(&mut locked);
        }
        Ok(due)
    }

    fn lock_partition(&self, partition: usize) -> Result<LockedPartition<'_>, NotPrimary> {
        let mut locked = self.cache.lock_partition(partition);
        if locked.partition().epoch() != self.epoch {
            return Err(NotPrimary);
        }
        Ok(locked)
    }

    fn flush_locked(&self, locked: &mut LockedPartition<'_>) -> u64 {
        let partition = (locked.partition_id() & 63) as u8;
        let state = locked.partition();
        let version = state.version() + 1;
        state.raise_version(version);
        state.raise_last_delete(version);
        state.set_flush_at(None);
        locked.flush(None);
        self.commit(partition, locked.split(), &Record::Flush { version });
        version
    }

    fn flush_later(&self, locked: &mut LockedPartition<'_>, second: u32) -> u64 {
        let partition = (locked.partition_id() & 63) as u8;
        let (state, stream) = locked.split();
        let version = state.version() + 1;
        state.set_flush_at(Some(StoreTime(second)));
        let remaining = second.saturating_sub(self.now.store.0);
        self.commit(partition, (state, stream), &Record::FlushAt { version, remaining });
        version
    }
}
