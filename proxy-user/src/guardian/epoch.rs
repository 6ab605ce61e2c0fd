//! The highest epoch this node has seen, on disk: written before an epoch is used. A flush of it is
//! on the way of a takeover, so the file has the form of [`super::slots`].

use std::io;
use std::path::Path;

use super::slots::{Content, Slots, SlotsError};

/// The file, and what it says.
#[derive(Debug)]
pub(super) struct EpochFile {
    slots: Slots,
    persisted: u16,
}

impl EpochFile {
    /// Reads it; a missing file is made, with epoch 0. A damaged one is refused: guessing could use
    /// an epoch twice.
    pub(super) fn open(folder: &Path) -> Result<Self, SlotsError> {
        let slots = Slots::open(&folder.join("epoch"), "tandem-epoch 1")?;
        let Content { serial, text } = slots.newest();
        match u16::try_from(*serial) {
            Ok(persisted) if text.is_empty() => Ok(Self { slots, persisted }),
            _ => Err(SlotsError::Damaged),
        }
    }

    /// What is on disk.
    pub(super) fn persisted(&self) -> u16 {
        self.persisted
    }

    /// Makes the file hold at least `epoch`; when this returns `Ok`, it survives a power loss.
    pub(super) fn persist(&mut self, epoch: u16) -> io::Result<()> {
        if epoch > self.persisted {
            self.slots.write(Content { serial: epoch.into(), text: String::new() })?;
            self.persisted = epoch;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persists_and_never_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EpochFile::open(folder.path()).unwrap();
        assert_eq!(file.persisted(), 0);
        for epoch in [6, 4, 9, 300] {
            file.persist(epoch).unwrap();
        }
        assert_eq!(EpochFile::open(folder.path()).unwrap().persisted(), 300);
    }

    /// The form on disk is API: a node that is upgraded must not refuse its own file.
    #[test]
    fn the_form_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("epoch");
        EpochFile::open(folder.path()).unwrap().persist(300).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let slots: Vec<_> = text.lines().map(str::trim_end).collect();
        assert_eq!(slots, ["tandem-epoch 1 0 e4d547b1", "tandem-epoch 1 300 87dbcd38"]);
    }

    #[test]
    fn what_is_no_epoch_is_refused() {
        for (serial, text) in [(1 << 16, ""), (6, "more")] {
            let folder = tempfile::tempdir().unwrap();
            let mut slots = Slots::open(&folder.path().join("epoch"), "tandem-epoch 1").unwrap();
            slots.write(Content { serial, text: text.to_owned() }).unwrap();
            assert!(matches!(EpochFile::open(folder.path()), Err(SlotsError::Damaged)));
        }
    }
}
