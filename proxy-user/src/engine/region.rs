//! The store's memory: the guardian's memfd, mapped and divided once.
//!
//! It is not the store: [`cache::Cache`] makes sense of it. The mapping is never undone; the pages
//! are owned values from here on. The engine's only unsafe outside the driver.
#![allow(unsafe_code, reason = "mapped memory becomes slices here, and only here")]

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;

use cache::store::{Layout, Region};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap};
use nix::sys::stat::fstat;
use nix::unistd::ftruncate;

/// Bytes made present in one step, in the background.
const PREFAULT_STEP: usize = 4 << 20;
/// The first answers come before pre-faulting: after a crash one core still tears the predecessor's
/// memory down, and the other is needed to serve.
const PREFAULT_AFTER: std::time::Duration = std::time::Duration::from_millis(500);

/// A mapped region, and what should be said about it.
#[derive(Debug)]
pub(crate) struct Mapped {
    /// The memory, divided.
    pub(crate) region: Region,
    /// Something the operator should know.
    pub(crate) note: Option<String>,
    whole: Whole,
}

/// Where the mapping is, for advice only.
#[derive(Debug, Clone, Copy)]
struct Whole {
    start: usize,
    len: usize,
}

impl Whole {
    fn advise(self, offset: usize, len: usize, advice: MmapAdvise) -> io::Result<()> {
        let address = NonNull::new((self.start + offset) as *mut c_void);
        let address = address.ok_or(io::ErrorKind::InvalidInput)?;
        // SAFETY: the range lies in our mapping, which is never undone, and the advices given
        // (dump, huge pages, populate) change no byte of it.
        unsafe { madvise(address, len, advice) }.map_err(io::Error::from)
    }
}

/// Maps a store of `memory` bytes; sizes the descriptor if it is empty. One of another size is
/// emptied: its layout would not fit.
///
/// # Errors
/// What the kernel says.
pub(crate) fn map(descriptor: &OwnedFd, memory: u64) -> io::Result<Mapped> {
    let layout = Layout::for_memory(memory);
    let total = layout.total();
    let wanted = i64::try_from(total).map_err(io::Error::other)?;
    let mut note = None;
    let found = fstat(descriptor)?.st_size;
    if found != wanted {
        if found != 0 {
            note = Some(format!("memory of {found} bytes emptied: {wanted} are configured"));
            ftruncate(descriptor, 0)?;
        }
        ftruncate(descriptor, wanted)?;
    }
    let length = NonZeroUsize::new(total).ok_or(io::ErrorKind::InvalidInput)?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let start = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, descriptor, 0) }?;
    let whole = Whole { start: start.as_ptr() as usize, len: total };
    // SAFETY: `total` readable and writable bytes that stay mapped until the process ends. This
    // function is called once for a descriptor, so nobody else in this process has them; the
    // engine before us runs no code any more (its seats in the shared page say so), and the
    // guardian never maps them.
    let bytes = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>().as_ptr(), total) };
    let (header, rest) = bytes.split_at_mut(layout.header_len);
    let pages = rest.chunks_exact_mut(layout.page_size).take(layout.pages).collect();
    whole.advise(0, total, MmapAdvise::MADV_DONTDUMP)?;
    if whole.advise(0, total, MmapAdvise::MADV_HUGEPAGE).is_err() && note.is_none() {
        note = Some("no huge pages on this host".to_owned());
    }
    Ok(Mapped { region: Region { header, pages }, note, whole })
}

impl Mapped {
    /// Makes all pages present, in the background: the first writers need not.
    pub(crate) fn prefault(&self) {
        let whole = self.whole;
        let work = move || {
            std::thread::sleep(PREFAULT_AFTER);
            for offset in (0..whole.len).step_by(PREFAULT_STEP) {
                let len = PREFAULT_STEP.min(whole.len - offset);
                if let Err(error) = whole.advise(offset, len, MmapAdvise::MADV_POPULATE_WRITE) {
                    tracing::info!(%error, "the store is not pre-faulted");
                    return;
                }
            }
        };
        let spawned = std::thread::Builder::new().name("prefault".into()).spawn(work);
        if let Err(error) = spawned {
            tracing::info!(%error, "the store is not pre-faulted");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::*;

    #[test]
    fn the_memory_outlives_its_mapping_and_is_divided_without_overlap() {
        let memory = 8 << 20;
        let descriptor = memfd_create("store", MFdFlags::MFD_CLOEXEC).unwrap();
        let again = descriptor.as_fd().try_clone_to_owned().unwrap();
        let layout = Layout::for_memory(memory);
        let first = map(&descriptor, memory).unwrap();
        assert_eq!(first.region.header.len(), layout.header_len);
        assert_eq!(first.region.pages.len(), layout.pages);
        first.prefault();
        let mut region = first.region;
        region.header.fill(1);
        for (number, page) in region.pages.iter_mut().enumerate() {
            assert_eq!(page.len(), layout.page_size);
            page.fill((number % 200) as u8 + 2);
        }
        assert!(region.header.iter().all(|byte| *byte == 1), "a page overlaps the header");
        drop(region);
        let second = map(&again, memory).unwrap();
        assert_eq!(second.region.header[0], 1);
        for (number, page) in second.region.pages.iter().enumerate() {
            assert_eq!(page[layout.page_size - 1], (number % 200) as u8 + 2);
        }
        let other = map(&again, memory * 2).unwrap();
        assert!(other.note.unwrap().contains("emptied"));
        assert_eq!(other.region.header[0], 0);
    }
}
