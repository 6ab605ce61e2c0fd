//! Receive buffers shared by all connections of a worker, and the ring that lends them to the
//! kernel.
//!
//! A buffer is owned by exactly one of: nobody (free), the kernel, a [`Lease`]. The pool knows
//! which, so that a number that the kernel should not have sent cannot alias a buffer. Driven by
//! the two drivers; nothing here makes a system call. One of the engine's two unsafe modules.
#![allow(unsafe_code, reason = "memory shared with the kernel has no safe type")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;

/// Alignment of all memory here: the kernel wants the ring on a page of its own.
const PAGE: usize = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Nobody,
    Kernel,
    Lease,
}

/// Zeroed, page-aligned memory of a fixed size.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    layout: Layout,
}

impl Memory {
    fn new(bytes: usize) -> Self {
        let layout = Layout::from_size_align(bytes.max(PAGE), PAGE).unwrap_or(Layout::new::<u8>());
        // SAFETY: the layout's size is not zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        Self { start, layout }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// The buffers. All have the same size; single-threaded.
#[derive(Debug)]
pub struct Pool {
    memory: Memory,
    size: usize,
    owners: RefCell<Vec<Owner>>,
    free: RefCell<Vec<u16>>,
    leased: Cell<usize>,
}

impl Pool {
    /// `count` buffers (rounded up to a power of two, at most 32768) of `size` bytes.
    #[must_use]
    pub fn new(count: u16, size: usize) -> Rc<Self> {
        let count = count.clamp(1, 1 << 15).next_power_of_two();
        Rc::new(Self {
            memory: Memory::new(usize::from(count) * size),
            size,
            owners: RefCell::new(vec![Owner::Nobody; usize::from(count)]),
            free: RefCell::new((0..count).rev().collect()),
            leased: Cell::new(0),
        })
    }

    /// How many buffers there are: a power of two.
    #[must_use]
    pub fn count(&self) -> usize {
        self.owners.borrow().len()
    }

    /// Buffers that a [`Lease`] holds now.
    #[must_use]
    pub fn leased(&self) -> usize {
        self.leased.get()
    }

    /// Whether any buffer is nobody's.
    pub(super) fn has_free(&self) -> bool {
        !self.free.borrow().is_empty()
    }

    fn at(&self, id: u16) -> NonNull<u8> {
        // SAFETY: callers pass ids below `count`, so the offset stays inside the allocation.
        unsafe { self.memory.start.add(usize::from(id) * self.size) }
    }

    fn lease(self: &Rc<Self>, id: u16, len: usize) -> Lease {
        self.owners.borrow_mut()[usize::from(id)] = Owner::Lease;
        self.leased.set(self.leased.get() + 1);
        Lease { pool: Rc::clone(self), id, len: len.min(self.size) }
    }

    /// Takes a buffer back from the kernel, which wrote `len` bytes into it. `None`: it is not the
    /// kernel's; nothing of it may be read.
    pub(super) fn claim(self: &Rc<Self>, id: u16, len: usize) -> Option<Lease> {
        if self.owners.borrow().get(usize::from(id)) != Some(&Owner::Kernel) {
            return None;
        }
        Some(self.lease(id, len))
    }

    /// Lets `read` fill a free buffer. `None`: all are taken.
    pub(super) fn fill<E>(
        self: &Rc<Self>,
        read: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Option<Result<Lease, E>> {
        let id = self.free.borrow_mut().pop()?;
        // SAFETY: the buffer is nobody's (it was on the free list) and initialised (zeroed), and
        // nothing else can reach it until this borrow ends.
        let buffer = unsafe { std::slice::from_raw_parts_mut(self.at(id).as_ptr(), self.size) };
        Some(match read(buffer) {
            Ok(len) => Ok(self.lease(id, len)),
            Err(error) => {
                self.free.borrow_mut().push(id);
                Err(error)
            }
        })
    }
}

/// Received bytes in a pool buffer, which goes back when this is dropped. Consume it in the turn
/// in which it came: a lease held is a buffer that other connections wait for.
#[derive(Debug)]
pub struct Lease {
    pool: Rc<Pool>,
    id: u16,
    len: usize,
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `len` ≤ the buffer's size, the memory lives as long as the pool we hold, it is
        // initialised, and while its owner is `Lease` neither kernel nor `fill` writes to it.
        unsafe { std::slice::from_raw_parts(self.pool.at(self.id).as_ptr(), self.len) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.pool.owners.borrow_mut()[usize::from(self.id)] = Owner::Nobody;
        self.pool.free.borrow_mut().push(self.id);
        self.pool.leased.set(self.pool.leased.get() - 1);
    }
}

/// The provided-buffer ring: how free buffers of a [`Pool`] are offered to the kernel.
#[derive(Debug)]
pub(super) struct Ring {
    memory: Memory,
    pool: Rc<Pool>,
    tail: u16,
}

impl Ring {
    pub(super) fn new(pool: Rc<Pool>) -> Self {
        let memory = Memory::new(pool.count() * size_of::<BufRingEntry>());
        Self { memory, pool, tail: 0 }
    }

    /// What the registration wants: address and number of entries. The memory lives as long as
    /// `self`.
    pub(super) fn registration(&self) -> (u64, u16) {
        (self.memory.start.as_ptr() as u64, self.pool.count() as u16)
    }

    /// Offers all free buffers to the kernel; how many.
    pub(super) fn publish(&mut self) -> usize {
        let mut free = self.pool.free.borrow_mut();
        if free.is_empty() {
            return 0;
        }
        let count = free.len();
        let mask = self.pool.count() as u16 - 1;
        let entries = self.memory.start.cast::<BufRingEntry>();
        let mut owners = self.pool.owners.borrow_mut();
        for id in free.drain(..) {
            owners[usize::from(id)] = Owner::Kernel;
            // SAFETY: the masked index is below the number of entries allocated.
            let place = unsafe { entries.add(usize::from(self.tail & mask)) };
            // SAFETY: aligned and zeroed memory; the kernel does not read entries at or beyond the
            // published tail, and at most `count` are ahead of it, for each id is offered once.
            let entry = unsafe { &mut *place.as_ptr() };
            entry.set_addr(self.pool.at(id).as_ptr() as u64);
            entry.set_len(self.pool.size as u32);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
        }
        // SAFETY: `entries` is the first entry of the ring, as the function demands.
        let tail = unsafe { BufRingEntry::tail(entries.as_ptr()) };
        // SAFETY: the tail is an aligned u16 inside our memory, shared with the kernel, which only
        // loads it.
        let tail = unsafe { &*tail.cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_has_one_owner() {
        let pool = Pool::new(2, 64);
        let fill = |byte: u8| {
            pool.fill(|buffer| {
                buffer[0] = byte;
                Ok::<_, ()>(1)
            })
        };
        let first = fill(1).unwrap().unwrap();
        let second = fill(2).unwrap().unwrap();
        assert!(fill(3).is_none(), "both are leased");
        assert_eq!((&*first, &*second), (&[1u8][..], &[2u8][..]));
        assert_eq!(pool.leased(), 2);
        drop(first);
        assert!(pool.has_free());
        let third = fill(4).unwrap().unwrap();
        assert_eq!(&*third, [4]);
        assert!(pool.claim(0, 1).is_none(), "leased, not the kernel's");
        assert!(pool.claim(77, 1).is_none(), "no such buffer");
    }

    #[test]
    fn a_failed_read_gives_the_buffer_back() {
        let pool = Pool::new(1, 64);
        assert_eq!(pool.fill(|_| Err::<usize, _>(7)).unwrap().unwrap_err(), 7);
        assert!(pool.has_free());
    }

    #[test]
    fn what_is_published_can_be_claimed_once() {
        let pool = Pool::new(4, 64);
        let mut ring = Ring::new(Rc::clone(&pool));
        assert_eq!(ring.publish(), 4);
        assert!(!pool.has_free());
        let lease = pool.claim(3, 1000).unwrap();
        assert_eq!(lease.len(), 64, "a length beyond the buffer is cut");
        assert!(pool.claim(3, 1).is_none());
        drop(lease);
        assert_eq!(ring.publish(), 1);
    }
}
