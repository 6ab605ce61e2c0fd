//! Waking a worker from another thread: an eventfd behind a three-state word, so that a worker
//! that is awake costs its callers no system call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};

const AWAKE: u8 = 0;
const ASLEEP: u8 = 1;
const NOTIFIED: u8 = 2;

/// Wakes one driver out of its `poll`. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: AtomicU8,
    event: EventFd,
}

impl Waker {
    /// # Errors
    /// No descriptor left.
    pub(super) fn new(nonblocking: bool) -> io::Result<Self> {
        let mut flags = EfdFlags::EFD_CLOEXEC;
        flags.set(EfdFlags::EFD_NONBLOCK, nonblocking);
        let event = EventFd::from_value_and_flags(0, flags)?;
        Ok(Self { shared: Arc::new(Shared { state: AtomicU8::new(AWAKE), event }) })
    }

    /// The worker's present or next `poll` returns at once. What the caller wrote before is seen
    /// by the worker after.
    pub fn wake(&self) {
        if self.shared.state.swap(NOTIFIED, Ordering::AcqRel) == ASLEEP {
            self.call();
        }
    }

    /// Makes the descriptor readable.
    pub(super) fn call(&self) {
        // It can only fail when the counter is full, and then it is readable anyway.
        if let Err(error) = self.shared.event.write(1) {
            debug_assert_eq!(error, nix::errno::Errno::EAGAIN);
        }
    }

    /// Before sleeping: false when a wake came since [`Waker::rise`]; then do not sleep.
    pub(super) fn fall_asleep(&self) -> bool {
        self.shared
            .state
            .compare_exchange(AWAKE, ASLEEP, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// After `poll`.
    pub(super) fn rise(&self) {
        self.shared.state.swap(AWAKE, Ordering::AcqRel);
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }

    /// Empties the counter (non-blocking descriptor only).
    pub(super) fn drain(&self) {
        if let Err(error) = self.shared.event.read() {
            debug_assert_eq!(error, nix::errno::Errno::EAGAIN);
        }
    }
}
