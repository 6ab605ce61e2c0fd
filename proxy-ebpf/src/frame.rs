//! The frame in the driver's buffer, `data..data_end`.

use aya_ebpf::programs::XdpContext;
use proxy_common::{Frame, FrameMut};

/// The first buffer of a frame.
pub struct Packet {
    start: usize,
    end: usize,
}

impl Packet {
    /// The frame that the program was called for.
    #[inline(always)]
    pub fn of(ctx: &XdpContext) -> Self {
        Self { start: ctx.data(), end: ctx.data_end() }
    }

    /// The address of `N` bytes at `offset`, when they are all there. The comparison with `end` is
    /// what lets the verifier accept the access that follows.
    #[inline(always)]
    fn at<const N: usize>(&self, offset: usize) -> Option<usize> {
        let at = self.start + offset;
        if at + N > self.end { None } else { Some(at) }
    }
}

impl Frame for Packet {
    #[inline(always)]
    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.at::<N>(offset)? as *const [u8; N];
        // SAFETY: `at` says that N bytes are there, and [u8; N] needs no alignment.
        Some(unsafe { at.read() })
    }
}

impl FrameMut for Packet {
    #[inline(always)]
    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        let at = self.at::<N>(offset)? as *mut [u8; N];
        // SAFETY: `at` says that N bytes are there; the program owns the buffer while it runs.
        unsafe { at.write(bytes) };
        Some(())
    }
}
