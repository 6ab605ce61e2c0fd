//! Per-interface IPv4 settings that keep the kernel from answering for the VIP, put back on drop.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::IoError;
use super::netlink::check_name;

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
}

#[derive(Debug)]
struct Changed {
    path: PathBuf,
    before: String,
    after: String,
}

impl Sysctls {
    /// Nothing changed yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { changed: Vec::new() }
    }

    /// arp_ignore = 1 and arp_announce = 2: the kernel neither answers ARP for a VIP that is on
    /// another interface (`lo`), nor leaks it as the sender of its own requests. The kernel takes
    /// the larger of this and `conf/all`.
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
    /// No such interface, no privilege, read-only /proc.
    pub fn set(&mut self, interface: &str, key: ConfKey, value: u32) -> Result<(), IoError> {
        check_name(interface)?;
        let path = PathBuf::from(format!("/proc/sys/net/ipv4/conf/{interface}/{}", key.file()));
        let fail = |e: io::Error| IoError::new("set", format!("{} of {interface}", key.file()), e);
        let before = fs::read_to_string(&path).map_err(fail)?.trim().to_owned();
        let after = value.to_string();
        if before != after {
            fs::write(&path, &after).map_err(fail)?;
            self.changed.push(Changed { path, before, after });
        }
        Ok(())
    }

    /// Puts everything back. A setting that somebody else has changed meanwhile, or whose
    /// interface is gone, is left alone.
    ///
    /// # Errors
    /// The first that failed; all are tried.
    pub fn restore(&mut self) -> Result<(), IoError> {
        let mut result = Ok(());
        while let Some(Changed { path, before, after }) = self.changed.pop() {
            let ours = fs::read_to_string(&path).is_ok_and(|now| now.trim() == after);
            if ours {
                let restored = fs::write(&path, before)
                    .map_err(|e| IoError::new("restore", path.display().to_string(), e));
                result = result.and(restored);
            }
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
