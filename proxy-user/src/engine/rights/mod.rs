//! What the engine, which reads strangers' bytes, may still do when it reads the first of them.
//!
//! ```text
//! one thread:   configuration, descriptors, access log ─▶ [leave_root] no root, no capability
//! all threads:  workers, rings, watch                  ─▶ [bound_calls] seccomp ─▶ listeners
//! ```
//! Whoever takes an engine over is nobody on this host, can start no program, open no file, make
//! no thread and no new kind of socket; a system call off the list ends the process (SIGSYS), and
//! the guardian starts another one on the same memory. Operations that go through a ring are not
//! system calls: the rings that are there take those of the driver and no others
//! (`driver::probe`), and no new one can be made.

mod calls;

use std::io;

use caps::errors::CapsError;
use caps::{CapSet, Capability};
use nix::sys::prctl;
use nix::unistd::{self, Gid, Uid};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

use crate::control;
use crate::control::message::Identity;

/// Why the rights could not be laid down.
#[derive(Debug, thiserror::Error)]
pub enum RightsError {
    /// A user or group cannot be taken.
    #[error("cannot become user {uid}, group {gid}: {error}")]
    Identity {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
        /// The kernel's word.
        error: nix::Error,
    },
    /// Root is left in name only.
    #[error("still root, or still with capabilities")]
    Kept,
    /// A capability set.
    #[error(transparent)]
    Capabilities(#[from] CapsError),
    /// The filter of system calls.
    #[error("seccomp: {0}")]
    Calls(#[from] seccompiler::Error),
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// The calling thread, which must be the only one, becomes `identity` and gives up every
/// capability, for itself and whatever it could execute. `None`: it is nobody special.
///
/// # Errors
/// [`RightsError`]; the process must not go on.
pub(super) fn leave_root(identity: Option<Identity>) -> Result<(), RightsError> {
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for capability in caps::read(None, CapSet::Bounding)? {
            caps::drop(None, CapSet::Bounding, capability)?;
        }
    }
    if let Some(Identity { uid, gid }) = identity {
        let refused = |error| RightsError::Identity { uid, gid, error };
        let (user, group) = (Uid::from_raw(uid), Gid::from_raw(gid));
        unistd::setgroups(&[]).map_err(refused)?;
        unistd::setresgid(group, group, group).map_err(refused)?;
        unistd::setresuid(user, user, user).map_err(refused)?;
    }
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set)?;
    }
    prctl::set_no_new_privs().map_err(io::Error::from)?;
    // Neither a core with clients' data in it, nor another process of that user as its debugger.
    prctl::set_dumpable(false).map_err(io::Error::from)?;
    if identity.is_some()
        && (unistd::getuid().is_root() || unistd::setuid(Uid::from_raw(0)).is_ok())
    {
        return Err(RightsError::Kept);
    }
    // A change of user disarms it.
    control::die_with_parent()?;
    Ok(())
}

/// From here on every thread of the process makes the system calls of the list, or dies with the
/// process.
///
/// # Errors
/// The kernel has no seccomp, or a thread could not be bounded.
pub(super) fn bound_calls() -> Result<(), RightsError> {
    for program in programs()? {
        seccompiler::apply_filter_all_threads(&program)?;
    }
    Ok(())
}

/// The refusal of [`calls::refused`], then the list. Of two filters the stricter word holds.
fn programs() -> Result<[BpfProgram; 2], seccompiler::Error> {
    let architecture = std::env::consts::ARCH.try_into()?;
    let compile = |rules, other, listed| {
        let filter = SeccompFilter::new(rules, other, listed, architecture)?;
        BpfProgram::try_from(filter).map_err(seccompiler::Error::from)
    };
    let refusal = SeccompAction::Errno(libc::EACCES.cast_unsigned());
    Ok([
        compile(calls::refused(), SeccompAction::Allow, refusal)?,
        compile(
            calls::rules(std::process::id())?,
            SeccompAction::KillProcess,
            SeccompAction::Allow,
        )?,
    ])
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use socket2::{Domain, Socket, Type};

    use super::*;

    const CHILD: &str = "TANDEM_TEST_BOUNDED_CHILD";

    /// Not a test of its own: the victim of the tests below, this same binary run again.
    #[test]
    fn child_process() {
        let Ok(how) = std::env::var(CHILD) else { return };
        let elsewhere = std::thread::spawn(|| {
            std::thread::park();
            std::net::UdpSocket::bind("127.0.0.1:0").ok();
        });
        bound_calls().unwrap();
        match how.as_str() {
            "nothing" => {}
            "file" => {
                let refused = std::fs::read("/etc/passwd").unwrap_err();
                assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied);
            }
            "backtrace" => drop(std::backtrace::Backtrace::force_capture().to_string()),
            "program" => drop(Command::new("/bin/true").status()),
            "thread" => drop(std::thread::spawn(|| {})),
            "raw socket" => drop(Socket::new(Domain::PACKET, Type::RAW, None)),
            "datagram" => drop(Socket::new(Domain::IPV4, Type::DGRAM, None)),
            "local socket" => drop(Socket::new(Domain::UNIX, Type::STREAM, None)),
            "listener" => drop(std::net::TcpListener::bind("127.0.0.1:0")),
            "signal" => drop(nix::sys::signal::kill(unistd::getppid(), None)),
            "ring" => drop(io_uring::IoUring::new(8)),
            "debugger" => drop(nix::sys::ptrace::traceme()),
            "new code" => {
                let size = std::num::NonZeroUsize::new(4096).unwrap();
                use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
                let code = ProtFlags::PROT_READ | ProtFlags::PROT_EXEC;
                // SAFETY: a new mapping at an address of the kernel's choice.
                let _mapped = unsafe { mmap_anonymous(None, size, code, MapFlags::MAP_PRIVATE) };
            }
            "other thread" => {
                elsewhere.thread().unpark();
                elsewhere.join().ok();
            }
            other => panic!("{other}"),
        }
        // Past the test harness, whose ways are not the engine's.
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGABRT).unwrap();
    }

    fn end(how: &str) -> Option<i32> {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "engine::rights::tests::child_process", "--nocapture"])
            .env(CHILD, how)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        status.unwrap().signal()
    }

    #[test]
    fn what_is_not_listed_ends_the_process() {
        for how in ["nothing", "file", "backtrace"] {
            assert_eq!(end(how), Some(libc::SIGABRT), "{how}");
        }
        for how in [
            "program",
            "thread",
            "raw socket",
            "datagram",
            "local socket",
            "listener",
            "signal",
            "ring",
            "debugger",
            "new code",
            "other thread",
        ] {
            assert_eq!(end(how), Some(libc::SIGSYS), "{how}");
        }
    }
}
