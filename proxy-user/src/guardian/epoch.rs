//! The highest epoch this node has seen, on disk: written before an epoch is used.
//!
//! One line, `tandem-epoch 1 EPOCH CHECK`, replaced as a whole: a new file is written, fsync'ed,
//! renamed over the old one, and the folder fsync'ed. So a crash leaves the old or the new one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Why the file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum EpochError {
    /// What the kernel says.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Not what this module writes: damaged, or of another program.
    #[error("it is damaged: {0:?}")]
    Damaged(String),
}

/// The file, and what it says.
#[derive(Debug)]
pub(super) struct EpochFile {
    path: PathBuf,
    persisted: u16,
}

impl EpochFile {
    /// Reads it; a missing file is epoch 0, a damaged one is refused: guessing could use an epoch
    /// twice.
    pub(super) fn open(folder: &Path) -> Result<Self, EpochError> {
        let path = folder.join("epoch");
        let persisted = match fs::read(&path) {
            Ok(bytes) => parse(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { path, persisted })
    }

    /// What is on disk.
    pub(super) fn persisted(&self) -> u16 {
        self.persisted
    }

    /// Makes the file hold at least `epoch`; when this returns `Ok`, it survives a power loss.
    pub(super) fn persist(&mut self, epoch: u16) -> io::Result<()> {
        if epoch <= self.persisted {
            return Ok(());
        }
        let folder = self.path.parent().unwrap_or_else(|| Path::new("/"));
        let fresh = self.path.with_extension("new");
        let written = write(&fresh, line(epoch).as_bytes())
            .and_then(|()| fs::rename(&fresh, &self.path))
            .and_then(|()| File::open(folder)?.sync_all());
        if let Err(error) = written {
            drop(fs::remove_file(&fresh));
            return Err(error);
        }
        self.persisted = epoch;
        Ok(())
    }
}

fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn line(epoch: u16) -> String {
    let body = format!("tandem-epoch 1 {epoch}");
    let check = check(&body);
    format!("{body} {check:08x}\n")
}

/// FNV-1a: finds torn and flipped bytes, which is all that is asked.
fn check(body: &str) -> u32 {
    body.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

fn parse(bytes: &[u8]) -> Result<u16, EpochError> {
    let damaged = || EpochError::Damaged(String::from_utf8_lossy(bytes).chars().take(40).collect());
    let text = std::str::from_utf8(bytes).map_err(|_error| damaged())?;
    let number = text.strip_prefix("tandem-epoch 1 ").and_then(|rest| rest.split(' ').next());
    let epoch = number.and_then(|number| number.parse::<u16>().ok()).ok_or_else(damaged)?;
    if text == line(epoch) { Ok(epoch) } else { Err(damaged()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn persists_and_never_goes_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EpochFile::open(folder.path()).unwrap();
        assert_eq!(file.persisted(), 0);
        file.persist(6).unwrap();
        file.persist(4).unwrap();
        assert_eq!(EpochFile::open(folder.path()).unwrap().persisted(), 6);
        assert!(!folder.path().join("epoch.new").exists());
    }

    #[test]
    fn torn_or_damaged_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("epoch");
        let whole = line(300);
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let refused = EpochFile::open(folder.path());
            assert!(matches!(refused, Err(EpochError::Damaged(_))), "{cut}: {refused:?}");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone().into_bytes();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert!(EpochFile::open(folder.path()).is_err(), "bit flipped at {at}");
        }
        fs::write(&path, whole).unwrap();
        assert_eq!(EpochFile::open(folder.path()).unwrap().persisted(), 300);
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        let mut file = EpochFile::open(&state).unwrap();
        file.persist(2).unwrap();
        // As a full disk does: the new file cannot be made; here because a folder has its name.
        fs::create_dir(state.join("epoch.new")).unwrap();
        assert!(file.persist(4).is_err());
        assert_eq!(file.persisted(), 2);
        assert_eq!(EpochFile::open(&state).unwrap().persisted(), 2);
        fs::remove_dir(state.join("epoch.new")).unwrap();
        file.persist(4).unwrap();
        assert_eq!(EpochFile::open(&state).unwrap().persisted(), 4);
    }

    #[test]
    fn a_full_disk_changes_nothing() {
        // /dev/full refuses every write as a full disk does.
        let full = write(Path::new("/dev/full"), b"x");
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
