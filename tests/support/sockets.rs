//! Sockets of another process, as it has them: to do to a connection what only its owner or a box
//! in between can.

use std::fs;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;

/// Duplicates of the TCP sockets of `pid` that lead to `port`.
///
/// # Errors
/// Without the process or the right to trace it, or when there is none.
pub fn leading_to(pid: Pid, port: u16) -> Result<Vec<TcpStream>> {
    // SAFETY: takes two numbers and gives a descriptor or -1.
    let process = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let process = owned(process).context("pidfd_open")?;
    let mut found = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let number: i32 = entry?.file_name().to_string_lossy().parse().context("a descriptor")?;
        // SAFETY: takes three numbers and gives a descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
        // one that was closed meanwhile, or is no TCP socket, or not connected
        let Ok(fd) = owned(fd) else { continue };
        let stream = TcpStream::from(fd);
        if stream.peer_addr().is_ok_and(|peer| peer.port() == port) {
            found.push(stream);
        }
    }
    ensure!(!found.is_empty(), "no connection of {pid} leads to port {port}");
    Ok(found)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made it for us, and nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
