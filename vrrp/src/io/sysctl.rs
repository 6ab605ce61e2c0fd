//! IPv4 settings that keep the kernel from answering for the VIP, put back on drop; or, by the next
//! start, after a process that had no time to.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::IoError;
use super::netlink::check_name;

/// The first word of a journal.
const MAGIC: &str = "tandem-sysctls-1";

/// `/proc/sys/net/ipv4/conf/<interface>/...`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfKey {
    /// 1: answer ARP only for addresses of the interface that was asked.
    ArpIgnore,
    /// 2: never tell an address of another interface as the sender of an ARP request.
    ArpAnnounce,
    /// Reverse path filter.
    RpFilter,
    /// Accept datagrams whose source is an own address.
    AcceptLocal,
}

impl ConfKey {
    const ALL: [Self; 4] = [Self::ArpIgnore, Self::ArpAnnounce, Self::RpFilter, Self::AcceptLocal];

    const fn file(self) -> &'static str {
        match self {
            Self::ArpIgnore => "arp_ignore",
            Self::ArpAnnounce => "arp_announce",
            Self::RpFilter => "rp_filter",
            Self::AcceptLocal => "accept_local",
        }
    }
}

/// The settings changed so far, with what they were. Dropping it restores them, last first;
/// do that in the network namespace in which they were set.
#[derive(Debug, Default)]
pub struct Sysctls {
    changed: Vec<Changed>,
    /// Where they are written down before they are made.
    journal: Option<PathBuf>,
}

/// One setting: `before` was found, `after` was set.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Changed {
    interface: String,
    key: ConfKey,
    before: u32,
    after: u32,
}

impl Changed {
    fn path(&self) -> PathBuf {
        path(&self.interface, self.key)
    }

    /// Unless somebody else has changed it meanwhile, or its interface is gone.
    fn restore(&self) -> Result<(), IoError> {
        let path = self.path();
        if read(&path).is_ok_and(|now| now == self.after) {
            fs::write(&path, self.before.to_string())
                .map_err(|e| IoError::new("restore", path.display().to_string(), e))?;
        }
        Ok(())
    }
}

impl Sysctls {
    /// Nothing changed yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { changed: Vec::new(), journal: None }
    }

    /// Nothing changed yet; every change will be written to `journal` first. If that file is there,
    /// its writer was killed: what it had changed, in this network namespace and since this boot,
    /// is restored now.
    ///
    /// # Errors
    /// A setting that could not be restored, or the file that could not be read or removed.
    pub fn with_journal(journal: PathBuf) -> Result<Self, IoError> {
        let fail =
            |e| IoError::new("use the journal of settings", journal.display().to_string(), e);
        match fs::read_to_string(&journal) {
            Ok(text) => {
                let mut left = Self { changed: parse(&text, &place()), journal: None };
                left.restore()?;
                fs::remove_file(&journal).map_err(fail)?;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(fail(e)),
        }
        Ok(Self { changed: Vec::new(), journal: Some(journal) })
    }

    /// Goes on without a journal: its folder cannot be written.
    pub fn forget_journal(&mut self) {
        self.journal = None;
    }

    /// arp_ignore = 1 and arp_announce = 2: the kernel neither answers ARP for a VIP that is on
    /// another interface than the one it was asked by (`lo`, or another NIC of the same segment),
    /// nor leaks it as the sender of its own requests. The kernel takes the larger of an
    /// interface's setting and that of `all`: set for `all` it holds for interfaces that come
    /// later, too.
    ///
    /// # Errors
    /// No such interface, no privilege, read-only /proc. What was set before stays set.
    pub fn hide_foreign_addresses(&mut self, interface: &str) -> Result<(), IoError> {
        self.set(interface, ConfKey::ArpIgnore, 1)?;
        self.set(interface, ConfKey::ArpAnnounce, 2)
    }

    /// Sets one, remembering what it was.
    ///
    /// # Errors
    /// No such interface, no privilege, read-only /proc; a journal that cannot be written.
    pub fn set(&mut self, interface: &str, key: ConfKey, value: u32) -> Result<(), IoError> {
        check_name(interface)?;
        let path = path(interface, key);
        let fail = |e: io::Error| IoError::new("set", format!("{} of {interface}", key.file()), e);
        let before = read(&path).map_err(fail)?;
        if before == value {
            return Ok(());
        }
        self.changed.push(Changed { interface: interface.to_owned(), key, before, after: value });
        let written = self.write_journal();
        let done = written.and_then(|()| fs::write(&path, value.to_string()).map_err(fail));
        if done.is_err() {
            self.changed.pop();
        }
        done
    }

    fn write_journal(&self) -> Result<(), IoError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let mut text = format!("{MAGIC} {}\n", place());
        for Changed { interface, key, before, after } in &self.changed {
            writeln!(text, "{interface} {} {before} {after}", key.file()).ok();
        }
        // not flushed to the disk: a host that lost its power has lost these settings, too
        let next = journal.with_extension("new");
        fs::write(&next, text)
            .and_then(|()| fs::rename(&next, journal))
            .map_err(|e| IoError::new("write down settings in", journal.display().to_string(), e))
    }

    /// Puts everything back. A setting that somebody else has changed meanwhile, or whose
    /// interface is gone, is left alone.
    ///
    /// # Errors
    /// The first that failed; all are tried.
    pub fn restore(&mut self) -> Result<(), IoError> {
        let mut result = Ok(());
        while let Some(changed) = self.changed.pop() {
            let restored = changed.restore();
            result = result.and(restored);
        }
        if result.is_ok()
            && let Some(journal) = &self.journal
        {
            // gone already, or nothing was ever written
            fs::remove_file(journal).ok();
        }
        result
    }
}

impl Drop for Sysctls {
    fn drop(&mut self) {
        // nobody is left to tell
        self.restore().ok();
    }
}

fn path(interface: &str, key: ConfKey) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv4/conf/{interface}/{}", key.file()))
}

fn read(path: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// Where and since when settings hold: this boot of the kernel, this network namespace.
fn place() -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = fs::read_link("/proc/thread-self/ns/net").unwrap_or_default();
    format!("{} {}", boot.trim(), namespace.display())
}

/// The changes in a journal; none if it is of another place. A line that is not ours is skipped.
fn parse(text: &str, place: &str) -> Vec<Changed> {
    let mut lines = text.lines();
    let ours = lines.next().and_then(|head| head.strip_prefix(MAGIC));
    if ours.map(str::trim) != Some(place) {
        return Vec::new();
    }
    lines.filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Changed> {
    let mut words = line.split(' ');
    let interface = words.next().filter(|name| check_name(name).is_ok())?.to_owned();
    let file = words.next()?;
    let key = ConfKey::ALL.into_iter().find(|key| key.file() == file)?;
    let before = words.next()?.parse().ok()?;
    let after = words.next()?.parse().ok()?;
    words.next().is_none().then_some(Changed { interface, key, before, after })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_is_believed_only_here_and_line_by_line() {
        let text = "tandem-sysctls-1 boot net:[1]\n\
                    all arp_ignore 0 1\n\
                    ../../../etc arp_ignore 0 1\n\
                    eth0 arp_accept 0 1\n\
                    eth0 arp_announce x 2\n\
                    eth0 arp_announce 0 2 3\n\
                    eth0 arp_announce 0 2\n\
                    eth0 arp_anno";
        let changed = |interface: &str, key, before, after| Changed {
            interface: interface.to_owned(),
            key,
            before,
            after,
        };
        let expected =
            [changed("all", ConfKey::ArpIgnore, 0, 1), changed("eth0", ConfKey::ArpAnnounce, 0, 2)];
        assert_eq!(parse(text, "boot net:[1]"), expected);
        assert_eq!(parse(text, "boot net:[2]"), [], "another namespace");
        assert_eq!(parse(text, "other net:[1]"), [], "another boot");
        assert_eq!(parse("", "boot net:[1]"), []);
        assert_eq!(parse("\u{0}\u{1}\n", "boot net:[1]"), []);
    }
}
