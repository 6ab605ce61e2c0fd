//! What a guardian leaves to the next one on the same store: where the store's content comes from.
//! It lies in memory beside the store, held by the keeper, and counts only as long as the store.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use serde::{Deserialize, Serialize};

use crate::node::Legacy;

/// Magic and version of [`Record`].
const MAGIC: [u8; 8] = *b"tandem\0\x01";
/// Room for a record.
const LEN: usize = 64;

/// One writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The node's own words.
    pub(super) legacy: Legacy,
    /// Answers sent alone, as the shared page counted them then: those after it are not in
    /// [`Legacy::alone`].
    pub(super) counted: u64,
}

/// The memory.
#[derive(Debug)]
pub(super) struct LegacyFile(File);

impl LegacyFile {
    /// On this descriptor; an empty one holds no record.
    pub(super) fn new(memory: OwnedFd) -> Self {
        Self(memory.into())
    }

    /// The last record that is whole.
    pub(super) fn read(&self) -> Option<Record> {
        let mut bytes = [0; LEN];
        self.0.read_exact_at(&mut bytes, 0).ok()?;
        let (head, rest) = bytes.split_at(MAGIC.len());
        let (check, body) = rest.split_at(4);
        let good = head == MAGIC && check == crc32c::crc32c(body).to_le_bytes();
        if !good {
            return None;
        }
        postcard::from_bytes(body).ok()
    }

    /// Replaces the record. One call of the kernel within one page: a killed writer leaves the old
    /// one or the new one.
    pub(super) fn write(&self, record: Record) -> io::Result<()> {
        let mut bytes = [0; LEN];
        let (head, rest) = bytes.split_at_mut(MAGIC.len());
        head.copy_from_slice(&MAGIC);
        let (check, body) = rest.split_at_mut(4);
        postcard::to_slice(&record, body).map_err(io::Error::other)?;
        check.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
        self.0.write_all_at(&bytes, 0)
    }
}

impl AsFd for LegacyFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Alone, Epoch, Lineage};

    #[test]
    fn the_last_word_counts_and_a_spoilt_one_does_not() {
        let file = tempfile::tempfile().unwrap();
        let copy = file.try_clone().unwrap();
        let legacy = LegacyFile::new(file.into());
        assert_eq!(legacy.read(), None, "nothing was written");
        let epoch = |value| Epoch::new(value).unwrap();
        let last = Epoch::MAX;
        for lineage in
            [Lineage::Shared(epoch(4)), Lineage::Fork { base: last, epoch: last }, Lineage::Empty]
        {
            let words = Legacy { lineage, alone: Alone(64), solo: true };
            let record = Record { legacy: words, counted: u64::MAX };
            legacy.write(record).unwrap();
            assert_eq!(LegacyFile::new(copy.try_clone().unwrap().into()).read(), Some(record));
        }
        for at in [0, 9, 13] {
            let mut byte = [0];
            copy.read_exact_at(&mut byte, at).unwrap();
            copy.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert_eq!(legacy.read(), None, "byte {at}");
            copy.write_all_at(&byte, at).unwrap();
        }
        copy.set_len(20).unwrap();
        assert_eq!(legacy.read(), None, "cut off");
    }
}
