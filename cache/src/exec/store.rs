//! The storage commands: set, add, replace, append, prepend, cas.

use super::{Done, Exec, Expiry, id, miss, next, remaining, seen};
use crate::command::{Store, StoreVerb};
use crate::replication::Depends;
use crate::replication::message::{Item, Record};
use crate::{Locked, Meta, PutError};

/// What became of a storage command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreOutcome {
    /// It was stored.
    Stored,
    /// The condition of add, replace, append or prepend does not hold.
    NotStored,
    /// cas: the item has another version.
    Exists,
    /// cas: there is no item.
    NotFound,
    /// The item is above the limit; after `set` the old one is gone too, so that nobody reads
    /// what the client meant to replace.
    TooLarge,
    /// No memory and no eviction allowed.
    NoMemory,
}

/// What is known of the item that is there.
#[derive(Clone, Copy)]
struct Current {
    version: u64,
    expiry: u32,
    flags: u32,
}

impl Exec<'_> {
    /// Executes a storage command with its value.
    ///
    /// # Errors
    /// [`super::NotPrimary`].
    pub fn store(&self, store: &Store<'_>, value: &[u8]) -> Done<StoreOutcome> {
        let mut locked = self.lock(store.key)?;
        if store.verb == StoreVerb::Set {
            return Ok(self.put(&mut locked, store, value));
        }
        // Counts as a use: `add` on a key that is there is how session managers touch it.
        let current = locked.get(self.now.store).map(|item| Current {
            version: item.version,
            expiry: item.expiry,
            flags: item.flags,
        });
        Ok(match (store.verb, current) {
            (StoreVerb::Add, Some(item)) => (StoreOutcome::NotStored, seen(&locked, item.version)),
            (StoreVerb::Cas(_), None) => (StoreOutcome::NotFound, miss(&mut locked)),
            (StoreVerb::Cas(unique), Some(item)) if unique != item.version => {
                (StoreOutcome::Exists, seen(&locked, item.version))
            }
            (StoreVerb::Replace | StoreVerb::Append | StoreVerb::Prepend, None) => {
                (StoreOutcome::NotStored, miss(&mut locked))
            }
            (StoreVerb::Append, Some(item)) => {
                self.extend(&mut locked, store.key, item, b"", value)
            }
            (StoreVerb::Prepend, Some(item)) => {
                self.extend(&mut locked, store.key, item, value, b"")
            }
            _ => self.put(&mut locked, store, value),
        })
    }

    /// A storage command whose value is too large to be taken in at all: says so, and takes the
    /// old item away if it was a `set`.
    ///
    /// # Errors
    /// [`super::NotPrimary`].
    pub fn refuse_too_large(&self, store: &Store<'_>) -> Done<StoreOutcome> {
        let mut locked = self.lock(store.key)?;
        let depends = self.drop_old(&mut locked, store);
        Ok((StoreOutcome::TooLarge, depends))
    }

    fn put(
        &self,
        locked: &mut Locked<'_, '_>,
        store: &Store<'_>,
        value: &[u8],
    ) -> (StoreOutcome, Depends) {
        let now = self.now.store;
        let expiry = match Expiry::from_client(store.exptime, self.now) {
            Expiry::At(expiry) => expiry,
            Expiry::Gone => return (StoreOutcome::Stored, self.delete_locked(locked, store.key)),
        };
        let version = next(locked);
        let meta = Meta { version, expiry, flags: store.flags };
        match locked.put(meta, &[value], now) {
            Ok(()) => {}
            Err(PutError::NoMemory) => {
                return (StoreOutcome::NoMemory, self.drop_old(locked, store));
            }
            Err(PutError::TooLarge { .. } | PutError::KeyLength(_)) => {
                return (StoreOutcome::TooLarge, self.drop_old(locked, store));
            }
        }
        let remaining = remaining(expiry, now);
        let value = &[value];
        let item = Item { version, flags: store.flags, remaining, key: store.key, value };
        let partition = id(locked);
        self.commit(partition, locked.split(), &Record::Put(item));
        (StoreOutcome::Stored, Depends { partition, version })
    }

    /// memcached: what cannot be appended for its size is NOT_STORED, the item stays as it is.
    fn extend(
        &self,
        locked: &mut Locked<'_, '_>,
        key: &[u8],
        current: Current,
        prefix: &[u8],
        suffix: &[u8],
    ) -> (StoreOutcome, Depends) {
        let now = self.now.store;
        let version = next(locked);
        let meta = Meta { version, expiry: current.expiry, flags: current.flags };
        match locked.extend(meta, prefix, suffix, now) {
            Ok(true) => {}
            Ok(false) => return (StoreOutcome::NotStored, miss(locked)),
            Err(PutError::NoMemory) => {
                return (StoreOutcome::NoMemory, seen(locked, current.version));
            }
            Err(_) => return (StoreOutcome::NotStored, seen(locked, current.version)),
        }
        let partition = id(locked);
        let (item, state, stream) = locked.split_item(now);
        let parts: Vec<&[u8]> = match &item {
            Some(item) if stream.is_attached() => item.value.clone().collect(),
            _ => Vec::new(),
        };
        let remaining = remaining(current.expiry, now);
        let item = Item { version, flags: current.flags, remaining, key, value: &parts };
        self.commit(partition, (state, stream), &Record::Put(item));
        (StoreOutcome::Stored, Depends { partition, version })
    }

    fn drop_old(&self, locked: &mut Locked<'_, '_>, store: &Store<'_>) -> Depends {
        if store.verb == StoreVerb::Set {
            return self.delete_locked(locked, store.key);
        }
        match locked.peek(self.now.store).map(|item| item.version) {
            Some(version) => seen(locked, version),
            None => miss(locked),
        }
    }
}
