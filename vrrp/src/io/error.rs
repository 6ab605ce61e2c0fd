//! One error for everything that touches the host: what failed, where, why, and the way out.

use std::fmt;
use std::io;

use nix::errno::Errno;

/// A refused or failed operation on the host. `Display` is a whole sentence for an operator.
#[derive(Debug)]
pub struct IoError {
    action: &'static str,
    object: String,
    source: io::Error,
}

impl IoError {
    /// `action` in the infinitive ("add the address"), `object` what it was done to, by name
    /// ("192.0.2.1/32 on eth0"; may be empty).
    pub(crate) fn new(
        action: &'static str,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self { action, object: object.into(), source: source.into() }
    }

    /// The system's error number, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// What the operator can do; empty where nothing better than the error itself is known.
    #[must_use]
    pub fn hint(&self) -> &'static str {
        match self.source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => {
                "needs CAP_NET_ADMIN and CAP_NET_RAW: run as root"
            }
            Some(Errno::ENODEV | Errno::ENXIO) => "no such interface: see `ip link`",
            Some(Errno::EADDRNOTAVAIL) => "no such address on the interface: see `ip addr`",
            Some(Errno::ENETDOWN) => "the interface is down: `ip link set dev ... up`",
            Some(Errno::EROFS) => "/proc/sys is read-only here, as in an unprivileged container",
            Some(Errno::ENOENT) => "no such interface or setting: see `ip link`",
            Some(Errno::ENETUNREACH | Errno::EHOSTUNREACH) => "no route to it: see `ip route`",
            Some(Errno::EMSGSIZE) => "larger than the interface's MTU",
            _ => "",
        }
    }
}

impl fmt::Display for IoError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}", self.action)?;
        if !self.object.is_empty() {
            write!(f, " {}", self.object)?;
        }
        write!(f, ": {}", self.source)?;
        match self.hint() {
            "" => Ok(()),
            hint => write!(f, " ({hint})"),
        }
    }
}

impl std::error::Error for IoError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_names_action_object_cause_and_way_out() {
        let error = IoError::new("add the address", "192.0.2.1/32 on eth7", Errno::ENODEV);
        assert_eq!(
            error.to_string(),
            "cannot add the address 192.0.2.1/32 on eth7: No such device (os error 19) \
             (no such interface: see `ip link`)"
        );
        assert_eq!(error.errno(), Some(19));
        let odd = IoError::new("read the answer", "", io::Error::other("broken"));
        assert_eq!(odd.to_string(), "cannot read the answer: broken");
    }
}
