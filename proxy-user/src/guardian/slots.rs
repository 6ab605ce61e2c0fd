//! A small state that survives a power loss: a file of two slots of 512 bytes, each one line,
//! `NAME SERIAL[ TEXT] CHECK`; the slot with the higher serial counts.
//!
//! The older slot is overwritten in place and `fdatasync`ed: one flush without a change of the
//! file's shape (ext4: 1.9 ms, against 7 ms for write, rename and two fsyncs). A crash in the
//! middle can spoil only the slot that was being written, whose content was not used yet.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A sector: written as a whole or not at all by every disk.
const SLOT: usize = 512;

/// Why the file could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum SlotsError {
    /// What the kernel says.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Neither slot is what this module writes: damaged, or of another program.
    #[error("it is damaged")]
    Damaged,
}

/// What a slot holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Content {
    /// Grows with each write; 0: nothing was written yet.
    pub(super) serial: u64,
    /// Printable ASCII; may be empty.
    pub(super) text: String,
}

/// The file, and what it says.
#[derive(Debug)]
pub(super) struct Slots {
    file: File,
    name: &'static str,
    newest: Content,
    /// The slot to write next: the one that does not hold `newest`.
    next: usize,
}

impl Slots {
    /// Reads the file `path`, whose lines begin with `name`; a missing one is made, with serial 0.
    /// A damaged one is refused: guessing could bring back what was replaced.
    pub(super) fn open(path: &Path, name: &'static str) -> Result<Self, SlotsError> {
        match fs::read(path) {
            Ok(bytes) => {
                let file = OpenOptions::new().write(true).open(path)?;
                let (newest, next) = parse(name, &bytes).ok_or(SlotsError::Damaged)?;
                Ok(Self { file, name, newest, next })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let newest = Content::default();
                Ok(Self { file: make(path, name)?, name, newest, next: 1 })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What is on disk.
    pub(super) fn newest(&self) -> &Content {
        &self.newest
    }

    /// Writes what is newer; when this returns `Ok`, it survives a power loss. What is not newer is
    /// not written.
    pub(super) fn write(&mut self, content: Content) -> io::Result<()> {
        if content.serial <= self.newest.serial {
            return Ok(());
        }
        let slot = slot(self.name, &content).ok_or(io::ErrorKind::InvalidInput)?;
        let at = u64::try_from(self.next * SLOT).map_err(io::Error::other)?;
        self.file.write_all_at(&slot, at)?;
        self.file.sync_data()?;
        self.newest = content;
        self.next = 1 - self.next;
        Ok(())
    }
}

#[cfg(test)]
impl Slots {
    /// On a full disk: `/dev/full` refuses every write.
    pub(super) fn full() -> Self {
        let file = OpenOptions::new().write(true).open("/dev/full").unwrap();
        Self { file, name: "tandem-test 1", newest: Content::default(), next: 1 }
    }
}

/// Makes the file, both slots with serial 0: whole under its name, or not there.
fn make(path: &Path, name: &str) -> io::Result<File> {
    let empty = slot(name, &Content::default()).ok_or(io::ErrorKind::InvalidInput)?;
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(&[empty, empty].concat())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()?;
    Ok(file)
}

/// A line, filled up with spaces; `None`: it does not fit, or would not be one line.
fn slot(name: &str, content: &Content) -> Option<[u8; SLOT]> {
    let Content { serial, text } = content;
    let gap = if text.is_empty() { "" } else { " " };
    let body = format!("{name} {serial}{gap}{text}");
    let line = format!("{body} {:08x}", check(&body));
    if line.len() >= SLOT || !line.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return None;
    }
    let mut slot = [b' '; SLOT];
    slot[SLOT - 1] = b'\n';
    for (to, from) in slot.iter_mut().zip(line.bytes()) {
        *to = from;
    }
    Some(slot)
}

/// FNV-1a: finds torn and flipped bytes, which is all that is asked.
fn check(body: &str) -> u32 {
    body.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The newest content and the slot that does not hold it.
fn parse(name: &str, bytes: &[u8]) -> Option<(Content, usize)> {
    if bytes.len() != 2 * SLOT {
        return None;
    }
    let (first, second) = bytes.split_at(SLOT);
    match (parse_slot(name, first), parse_slot(name, second)) {
        (Some(first), Some(second)) if second.serial > first.serial => Some((second, 0)),
        (Some(first), _) => Some((first, 1)),
        (None, Some(second)) => Some((second, 0)),
        (None, None) => None,
    }
}

fn parse_slot(name: &str, bytes: &[u8]) -> Option<Content> {
    let line = std::str::from_utf8(bytes).ok()?.trim_end();
    let (body, _) = line.strip_prefix(name)?.strip_prefix(' ')?.rsplit_once(' ')?;
    let (serial, text) = body.split_once(' ').unwrap_or((body, ""));
    let content = Content { serial: serial.parse().ok()?, text: text.to_owned() };
    (bytes == slot(name, &content)?).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "tandem-test 1";

    fn content(serial: u64, text: &str) -> Content {
        Content { serial, text: text.to_owned() }
    }

    fn open(path: &Path) -> Result<Slots, SlotsError> {
        Slots::open(path, NAME)
    }

    #[test]
    fn the_newest_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut slots = open(&path).unwrap();
        assert_eq!(slots.newest(), &Content::default());
        for (serial, text) in [(6, "six"), (4, "older"), (9, "a b  c"), (300, "")] {
            slots.write(content(serial, text)).unwrap();
        }
        assert_eq!(open(&path).unwrap().newest(), &content(300, ""));
        slots.write(content(u64::MAX, "a b  c")).unwrap();
        assert_eq!(open(&path).unwrap().newest(), &content(u64::MAX, "a b  c"));
        assert!(!path.with_extension("new").exists());
        assert_eq!(fs::read(&path).unwrap().len(), 2 * SLOT);
    }

    /// Whatever a crash left of the slot being written, the one before it stands.
    #[test]
    fn a_torn_write_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let mut slots = open(&path).unwrap();
        slots.write(content(6, "old")).unwrap();
        let before = fs::read(&path).unwrap();
        slots.write(content(300, "a new text")).unwrap();
        let after = fs::read(&path).unwrap();
        let new = (0..2).find(|at| before[at * SLOT..][..SLOT] != after[at * SLOT..][..SLOT]);
        let start = new.unwrap() * SLOT;
        for cut in 0..SLOT {
            let mut torn = before.clone();
            torn[start..start + cut].copy_from_slice(&after[start..start + cut]);
            fs::write(&path, &torn).unwrap();
            let serial = open(&path).unwrap().newest().serial;
            assert!(serial == 6 || torn == after, "{cut}: {serial}");
            let mut slots = open(&path).unwrap();
            slots.write(content(301, "next")).unwrap();
            assert_eq!(open(&path).unwrap().newest(), &content(301, "next"));
        }
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let of = |serial, text| slot(NAME, &content(serial, text)).unwrap();
        let whole = [of(8, "eight"), of(6, "")].concat();
        for bytes in [&whole[..SLOT], &whole[1..], &[0; 2 * SLOT], b"", b"6\n"] {
            fs::write(&path, bytes).unwrap();
            assert!(matches!(open(&path), Err(SlotsError::Damaged)));
        }
        for at in 0..SLOT {
            let mut flipped = whole.clone();
            flipped[at] ^= 1;
            flipped[SLOT + at] ^= 1;
            fs::write(&path, &flipped).unwrap();
            assert!(open(&path).is_err(), "bit flipped at {at}");
        }
        fs::write(&path, whole).unwrap();
        assert_eq!(open(&path).unwrap().newest(), &content(8, "eight"));
        assert!(Slots::open(&path, "tandem-other 1").is_err(), "of another program");
    }

    #[test]
    fn a_failed_write_changes_nothing() {
        let mut full = Slots { newest: content(2, ""), ..Slots::full() };
        let error = full.write(content(4, "")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        for text in [" ".repeat(SLOT).as_str(), "two\nlines", "\u{e9}"] {
            let error = full.write(content(4, text)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{text:?}");
        }
        assert_eq!((full.newest(), full.next), (&content(2, ""), 1));
        assert!(open(Path::new("/no/such/folder/state")).is_err());
    }
}
