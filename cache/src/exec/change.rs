//! delete, touch, gat, incr, decr: changes of an item that must be there.

use super::{Done, Exec, Expiry, id, miss, next, remaining, seen};
use crate::protocol::number;
use crate::replication::Depends;
use crate::replication::message::{Item, Record};
use crate::{ItemView, Locked, Meta, PutError};

/// What became of `incr` or `decr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArithmeticOutcome {
    /// The new number.
    Number(u64),
    /// There is no item.
    NotFound,
    /// The item is no number.
    NonNumeric,
    /// No memory and no eviction allowed.
    NoMemory,
}

const BLANKS: [u8; 64] = [b' '; 64];

impl Exec<'_> {
    /// `delete`: whether there was an item. A change either way, with a record: evictions are
    /// local, so the peer may still hold what this node has evicted, and what a client was told is
    /// not there must not come back with a change of role.
    ///
    /// # Errors
    /// [`super::NotPrimary`].
    pub fn delete(&self, key: &[u8]) -> Done<bool> {
        let mut locked = self.lock(key)?;
        let found = locked.peek(self.now.store).is_some();
        Ok((found, self.delete_locked(&mut locked, key)))
    }

    /// `touch`: whether there was an item.
    ///
    /// # Errors
    /// [`super::NotPrimary`].
    pub fn touch(&self, key: &[u8], exptime: i64) -> Done<bool> {
        let mut locked = self.lock(key)?;
        let Some(version) = locked.get(self.now.store).map(|item| item.version) else {
            return Ok((false, miss(&mut locked)));
        };
        Ok((true, self.touch_locked(&mut locked, key, exptime, version)))
    }

    /// `gat`: shows the item to `f` and gives it a new expiry. The answer depends on the touch.
    ///
    /// # Errors
    /// [`super::NotPrimary`].
    pub fn read_and_touch<T>(
        &self,
        key: &[u8],
        exptime: i64,
        f: impl FnOnce(&ItemView<'_>) -> T,
    ) -> Done<Option<T>> {
        let mut locked = self.lock(key)?;
        let Some((version, shown)) =
            locked.get(self.now.store).map(|item| (item.version, f(&item)))
        else {
            return Ok((None, miss(&mut locked)));
        };
        let depends = self.touch_locked(&mut locked, key, exptime, version);
        Ok((Some(shown), depends))
    }

    /// The item keeps its version, as memcached's keeps its unique; the touch has its own place
    /// in the stream.
    fn touch_locked(
        &self,
        locked: &mut Locked<'_, '_>,
        key: &[u8],
        exptime: i64,
        item_version: u64,
    ) -> Depends {
        let Expiry::At(expiry) = Expiry::from_client(exptime, self.now) else {
            return self.delete_locked(locked, key);
        };
        locked.touch(expiry, item_version, self.now.store);
        let (partition, version) = (id(locked), next(locked));
        let remaining = remaining(expiry, self.now.store);
        self.commit(partition, locked.split(), &Record::Touch { version, remaining, key });
        Depends { partition, version }
    }

    /// `incr` (wraps at 2^64) and `decr` (stops at 0). A shorter number is padded with blanks to
    /// the length of the old one (protocol.txt, "Increment/Decrement").
    ///
    /// # Errors
    /// [`super::NotPrimary`].
    pub fn arithmetic(&self, key: &[u8], delta: u64, up: bool) -> Done<ArithmeticOutcome> {
        let mut locked = self.lock(key)?;
        let now = self.now.store;
        let Some(item) = locked.get(now) else {
            return Ok((ArithmeticOutcome::NotFound, miss(&mut locked)));
        };
        let (length, old, expiry, flags) =
            (item.value.len(), item.version, item.expiry, item.flags);
        // A value in several pieces is far longer than a number; memcached refuses it too.
        let number = item.value.clone().next().filter(|first| first.len() == length);
        let Some(number) = number.and_then(number::stored) else {
            return Ok((ArithmeticOutcome::NonNumeric, seen(&locked, old)));
        };
        let number = if up { number.wrapping_add(delta) } else { number.saturating_sub(delta) };
        let mut digits = itoa::Buffer::new();
        let digits = digits.format(number).as_bytes();
        let blanks = length.saturating_sub(digits.len());
        let many;
        let blanks = match BLANKS.get(..blanks) {
            Some(few) => few,
            None => {
                many = vec![b' '; blanks];
                &many
            }
        };
        let version = next(&mut locked);
        let value = &[digits, blanks];
        match locked.put(Meta { version, expiry, flags }, value, now) {
            Ok(()) => {}
            Err(PutError::NoMemory) => {
                return Ok((ArithmeticOutcome::NoMemory, seen(&locked, old)));
            }
            Err(_) => return Ok((ArithmeticOutcome::NonNumeric, seen(&locked, old))),
        }
        let partition = id(&locked);
        let remaining = remaining(expiry, now);
        let item = Item { version, flags, remaining, key, value };
        self.commit(partition, locked.split(), &Record::Put(item));
        Ok((ArithmeticOutcome::Number(number), Depends { partition, version }))
    }
}
