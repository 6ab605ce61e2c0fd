//! What this kernel gives of io_uring.

use std::io;

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};

use super::{DriverOptions, Unavailable};

/// The oldest kernel on which multishot accept is right under deferred task work.
const KERNEL_MIN: (u32, u32) = (6, 9);

/// Refuses kernels below 6.9.
pub(super) fn kernel_is_new_enough() -> Result<(), Unavailable> {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    if version(&release) < KERNEL_MIN {
        return Err(Unavailable::Kernel(release));
    }
    Ok(())
}

/// The first two numbers of a release such as `6.12.3-arch1`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Builds the ring with the most flags this kernel knows, not running yet: see [`restrict`].
pub(super) fn build(options: &DriverOptions) -> io::Result<IoUring> {
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for level in 0..4 {
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_cqsize(options.completions.max(options.submissions * 4));
        builder.setup_r_disabled();
        if level < 3 {
            builder.setup_submit_all().setup_coop_taskrun();
        }
        if level < 2 {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        if level < 1 {
            builder.setup_no_sqarray();
        }
        match builder.build(options.submissions) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            other => return other,
        }
    }
    Err(last)
}

/// Bounds a ring to the driver's operations for good, and lets it run. What a ring does is no
/// system call that a filter would see.
///
/// # Errors
/// What the kernel says.
pub(super) fn restrict(ring: &IoUring) -> io::Result<()> {
    let operations = [
        opcode::AcceptMulti::CODE,
        opcode::RecvMulti::CODE,
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::Connect::CODE,
        opcode::Shutdown::CODE,
        opcode::AsyncCancel::CODE,
        opcode::Close::CODE,
        // of the wake-up word
        opcode::Read::CODE,
    ];
    let mut allowed: Vec<Restriction> = operations.map(Restriction::sqe_op).into();
    allowed.push(Restriction::sqe_flags_allowed(squeue::Flags::BUFFER_SELECT.bits()));
    let submitter = ring.submitter();
    submitter.register_restrictions(&mut allowed)?;
    submitter.register_enable_rings()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stranger's code cannot have a ring do what it may not do itself.
    #[test]
    #[allow(unsafe_code, reason = "entries are pushed unsafely")]
    fn a_restricted_ring_refuses_other_operations() {
        let options = DriverOptions::default();
        if kernel_is_new_enough().is_err() {
            return;
        }
        let Ok(mut ring) = build(&options) else { return };
        restrict(&ring).unwrap();
        let path = c"/etc/passwd";
        let here = io_uring::types::Fd(libc::AT_FDCWD);
        let eventfd = nix::sys::eventfd::EventFd::new().unwrap();
        let fd = io_uring::types::Fd(std::os::fd::AsRawFd::as_raw_fd(&eventfd));
        for (entry, refused) in [
            (opcode::OpenAt::new(here, path.as_ptr()).build(), true),
            (opcode::Socket::new(libc::AF_PACKET, libc::SOCK_RAW, 0).build(), true),
            (opcode::Nop::new().build(), true),
            (opcode::AsyncCancel::new(7).build().flags(squeue::Flags::IO_LINK), true),
            (opcode::Shutdown::new(fd, libc::SHUT_WR).build(), false),
        ] {
            // SAFETY: the path and the descriptor outlive the completion waited for below.
            unsafe { ring.submission().push(&entry) }.unwrap();
            ring.submit_and_wait(1).unwrap();
            let result = ring.completion().next().unwrap().result();
            assert_eq!(result == -libc::EACCES, refused, "{entry:?} gave {result}");
        }
        let again = restrict(&ring).unwrap_err();
        assert_eq!(again.raw_os_error(), Some(libc::EACCES), "nor be set free again");
    }

    #[test]
    fn releases_are_compared_by_number() {
        for (release, expected) in [
            ("6.18.44-fc-v669", (6, 18)),
            ("6.9.0", (6, 9)),
            ("5.15.0-91-generic", (5, 15)),
            ("7-rc1", (7, 0)),
            ("", (0, 0)),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
        assert!(version("6.8.12") < KERNEL_MIN && version("6.10") > KERNEL_MIN);
    }
}
