//! The raw parts of the shared page: mapping, robust list, futex calls, fatal signals, and adopting
//! descriptors that came with a message. The only unsafe code of `control`.
#![allow(unsafe_code, reason = "mapping and robust futexes have no safe interface")]

use std::ffi::CStr;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{Liveness, Page, Seat, SharedPage, Woken};

const WAITERS: u32 = libc::FUTEX_WAITERS;
const OWNER_DIED: u32 = libc::FUTEX_OWNER_DIED;
const TID_MASK: u32 = libc::FUTEX_TID_MASK;
/// A seat given back on purpose; above any thread id (`PID_MAX_LIMIT` is 2^22).
const LEFT: u32 = TID_MASK;
const NAME: &CStr = c"tandem-page";

/// Seats this process holds, for the fatal-signal handler.
static SEATS: [AtomicPtr<AtomicU32>; 72] = [const { AtomicPtr::new(ptr::null_mut()) }; 72];

/// A sealed memfd of the page's size.
pub(super) fn page_memfd() -> io::Result<OwnedFd> {
    let fd = memfd_create(NAME, MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
    let size = i64::try_from(size_of::<Page>()).map_err(io::Error::other)?;
    nix::unistd::ftruncate(&fd, size)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&fd, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(fd)
}

/// Maps the page for the rest of the process's life.
pub(super) fn map_page<F: AsFd>(fd: &F) -> io::Result<&'static Page> {
    let need = size_of::<Page>();
    let seals = fcntl(fd, FcntlArg::F_GET_SEALS)?;
    let size = nix::sys::stat::fstat(fd)?.st_size;
    let sealed = SealFlag::from_bits_truncate(seals).contains(SealFlag::F_SEAL_SHRINK);
    if !sealed || usize::try_from(size).unwrap_or(0) < need {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a shared page"));
    }
    let length = std::num::NonZeroUsize::new(need).ok_or(io::ErrorKind::InvalidInput)?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice; it replaces nothing.
    let memory = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, fd, 0) }?;
    // SAFETY: the mapping is at least `Page` long (checked, and the seal forbids shrinking), page
    // aligned, never unmapped, and `Page` holds only atomics, for which any bytes are valid.
    Ok(unsafe { memory.cast::<Page>().as_ref() })
}

/// The kernel's `struct robust_list_head` (24 bytes) followed by the list's one entry. Atomics: the
/// kernel reads them when the thread ends.
#[repr(C)]
struct RobustList {
    first: AtomicPtr<u8>,
    futex_offset: AtomicUsize,
    pending: AtomicPtr<u8>,
    entry: AtomicPtr<u8>,
}

const HEAD_SIZE: usize = 24;
const _: () = assert!(std::mem::offset_of!(RobustList, entry) == HEAD_SIZE, "kernel layout");

/// A seat held by the thread that took it; dropping it gives the seat back and wakes the watcher.
#[derive(Debug)]
pub struct Held {
    word: &'static AtomicU32,
    list: &'static RobustList,
    /// The kernel's list belongs to one thread: neither Send nor Sync.
    thread: PhantomData<*const ()>,
}

impl std::fmt::Debug for RobustList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RobustList")
    }
}

/// Takes `word` for the calling thread. The thread's former robust list (libc's) is replaced: it
/// holds only robust pthread mutexes, of which this program has none.
pub(super) fn hold(word: &'static AtomicU32) -> io::Result<Held> {
    let seen = word.load(Ordering::Acquire);
    if let Liveness::Alive(tid) = liveness(seen) {
        let reason = format!("seat is held by thread {tid}");
        return Err(io::Error::new(io::ErrorKind::AddrInUse, reason));
    }
    // Leaked: the kernel may read it until the thread is gone.
    let list: &'static RobustList = Box::leak(Box::new(RobustList {
        first: AtomicPtr::new(ptr::null_mut()),
        futex_offset: AtomicUsize::new(0),
        pending: AtomicPtr::new(ptr::null_mut()),
        entry: AtomicPtr::new(ptr::null_mut()),
    }));
    let head = ptr::from_ref(list).cast::<u8>().cast_mut();
    let entry = ptr::from_ref(&list.entry).cast::<u8>().cast_mut();
    list.entry.store(head, Ordering::Relaxed);
    let offset = ptr::from_ref(word).addr().wrapping_sub(entry.addr());
    list.futex_offset.store(offset, Ordering::Relaxed);
    list.first.store(entry, Ordering::Release);
    // SAFETY: `head` is a leaked list head of the kernel's layout, closed in itself.
    let done = unsafe { libc::syscall(libc::SYS_set_robust_list, head, HEAD_SIZE) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let tid = nix::unistd::gettid().as_raw().unsigned_abs();
    word.compare_exchange(seen, tid | (seen & WAITERS), Ordering::SeqCst, Ordering::Relaxed)
        .map_err(|_other| io::Error::new(io::ErrorKind::AddrInUse, "seat was taken meanwhile"))?;
    for place in &SEATS {
        let pointer = ptr::from_ref(word).cast_mut();
        let order = Ordering::AcqRel;
        if place.compare_exchange(ptr::null_mut(), pointer, order, Ordering::Relaxed).is_ok() {
            break;
        }
    }
    Ok(Held { word, list, thread: PhantomData })
}

impl Drop for Held {
    fn drop(&mut self) {
        for place in &SEATS {
            if ptr::eq(place.load(Ordering::Acquire), self.word) {
                place.store(ptr::null_mut(), Ordering::Release);
            }
        }
        self.word.store(LEFT, Ordering::SeqCst);
        wake(self.word);
        // An empty list: the head points to itself.
        let head = ptr::from_ref(self.list).cast::<u8>().cast_mut();
        self.list.first.store(head, Ordering::Release);
    }
}

/// What a seat's word says.
pub(super) fn liveness(word: u32) -> Liveness {
    match word & TID_MASK {
        _ if word & OWNER_DIED != 0 => Liveness::Died,
        0 => Liveness::Empty,
        LEFT => Liveness::Left,
        tid => Liveness::Alive(tid),
    }
}

/// Wakes every waiter of a word, in any process.
pub(super) fn wake(word: &AtomicU32) {
    let operation = libc::FUTEX_WAKE;
    // SAFETY: FUTEX_WAKE only takes the address of a living atomic; it writes nothing.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), operation, i32::MAX) };
}

/// `struct futex_waitv`.
#[repr(C)]
#[derive(Clone, Copy)]
struct WaitEntry {
    value: u64,
    address: u64,
    flags: u32,
    reserved: u32,
}

/// FUTEX_32 without FUTEX_PRIVATE_FLAG: other processes wake it.
const SIZE_U32_SHARED: u32 = 2;

impl WaitEntry {
    fn new(word: &AtomicU32, value: u32) -> Self {
        Self {
            value: u64::from(value),
            address: ptr::from_ref(word).addr() as u64,
            flags: SIZE_U32_SHARED,
            reserved: 0,
        }
    }
}

/// See [`SharedPage::watch`].
pub(super) fn watch(
    page: &SharedPage,
    seats: &[Seat],
    poked: u32,
    until_ns: Option<u64>,
) -> io::Result<Woken> {
    let mut entries = Vec::with_capacity(seats.len() + 1);
    loop {
        let poke = page.poked();
        if poke != poked {
            return Ok(Woken::Poked(poke));
        }
        entries.clear();
        entries.push(WaitEntry::new(&page.0.poke, poked));
        for &seat in seats {
            let Some(word) = page.word(seat) else { continue };
            match watched(word) {
                Ok(value) => entries.push(WaitEntry::new(word, value)),
                Err(liveness) => return Ok(Woken::Seat(seat, liveness)),
            }
        }
        match wait(&entries, until_ns) {
            Ok(()) => {}
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => {}
                Some(libc::ETIMEDOUT) => return Ok(Woken::Timeout),
                _ => return Err(error),
            },
        }
    }
}

/// The value to wait for on a held seat, with the bit that makes the kernel wake us at its death.
fn watched(word: &AtomicU32) -> Result<u32, Liveness> {
    loop {
        let seen = word.load(Ordering::Acquire);
        match liveness(seen) {
            Liveness::Alive(_) if seen & WAITERS != 0 => return Ok(seen),
            Liveness::Alive(_) => {
                let marked = seen | WAITERS;
                let order = Ordering::SeqCst;
                if word.compare_exchange(seen, marked, order, Ordering::Relaxed).is_ok() {
                    return Ok(marked);
                }
            }
            other => return Err(other),
        }
    }
}

fn wait(entries: &[WaitEntry], until_ns: Option<u64>) -> io::Result<()> {
    let until = until_ns.map(|ns| libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
    });
    let until = until.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: `entries` is an array of that length in the kernel's layout, whose addresses are
    // living atomics of the mapped page; `until` is null or a living timespec.
    let woken = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            entries.as_ptr(),
            entries.len(),
            0,
            until,
            libc::CLOCK_MONOTONIC,
        )
    };
    if woken < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a fatal signal mark the dying thread's seat and wake its watcher before the signal's own
/// action: a core dump would otherwise delay the news until it is written. Call once, at start.
///
/// # Errors
/// What the kernel says of `sigaction`.
pub fn mark_on_fatal_signals() -> io::Result<()> {
    let fatal = [
        Signal::SIGSEGV,
        Signal::SIGBUS,
        Signal::SIGILL,
        Signal::SIGFPE,
        Signal::SIGABRT,
        Signal::SIGSYS,
    ];
    let flags = SaFlags::SA_ONSTACK | SaFlags::SA_RESETHAND;
    let action = SigAction::new(SigHandler::Handler(on_fatal), flags, SigSet::empty());
    for signal in fatal {
        // SAFETY: the handler only uses atomics and system calls (async-signal-safe).
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

extern "C" fn on_fatal(signal: libc::c_int) {
    // SAFETY: gettid has no arguments and cannot fail.
    let tid = unsafe { libc::syscall(libc::SYS_gettid) };
    let tid = u32::try_from(tid).unwrap_or(0);
    for place in &SEATS {
        let pointer = place.load(Ordering::Acquire);
        // SAFETY: a non-null pointer in SEATS is a seat of the page, which is never unmapped.
        let Some(word) = (unsafe { pointer.as_ref() }) else { continue };
        let seen = word.load(Ordering::Acquire);
        if seen & TID_MASK == tid {
            word.store(OWNER_DIED | (seen & WAITERS), Ordering::SeqCst);
            wake(word);
        }
    }
    // SA_RESETHAND has restored the default action; the signal is blocked until we return, so this
    // one (for signals that were sent rather than caused) is delivered then.
    // SAFETY: raise is async-signal-safe.
    unsafe { libc::raise(signal) };
}

/// Takes ownership of descriptors that arrived with a message.
#[must_use]
pub(in crate::control) fn adopt(descriptors: Vec<RawFd>) -> Vec<OwnedFd> {
    let own = |fd| {
        // SAFETY: the kernel has just installed it for this process with SCM_RIGHTS, and the list
        // it came in is consumed here, so nobody else owns it.
        unsafe { OwnedFd::from_raw_fd(fd) }
    };
    descriptors.into_iter().map(own).collect()
}

/// The same file under a descriptor of at least this number.
///
/// # Errors
/// The limit of descriptors does not allow it; the file is closed then.
pub fn lift(file: OwnedFd, least: RawFd) -> io::Result<OwnedFd> {
    let lifted = fcntl(&file, FcntlArg::F_DUPFD_CLOEXEC(least))?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has its number.
    Ok(unsafe { OwnedFd::from_raw_fd(lifted) })
}

/// SCHED_FIFO for the calling thread; what it spawns is scheduled as usual (reset on fork).
///
/// # Errors
/// EPERM without CAP_SYS_NICE.
pub fn run_realtime(priority: i32) -> io::Result<()> {
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    let parameter = libc::sched_param { sched_priority: priority };
    // SAFETY: `parameter` lives during the call, which only reads it; 0 is the calling thread.
    let done = unsafe { libc::sched_setscheduler(0, policy, &raw const parameter) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
