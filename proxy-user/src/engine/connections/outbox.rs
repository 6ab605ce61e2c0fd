//! What a connection has to send: one buffer being filled, one in flight. All answers written in
//! one turn leave with one operation.

/// Buffers with more room than this are not kept for reuse.
const KEPT_MAX: usize = 1 << 20;
/// Room of all spare buffers kept by a worker. Not keeping the large ones would be dear: each new
/// one is fresh pages from the kernel.
const SPARES_MAX: usize = 16 << 20;

/// Empty buffers for reuse, shared by a worker's connections: an idle connection holds none.
#[derive(Debug, Default)]
pub(crate) struct Spares {
    buffers: Vec<Vec<u8>>,
    room: usize,
}

impl Spares {
    pub(crate) fn take(&mut self) -> Vec<u8> {
        let Some(buffer) = self.buffers.pop() else { return Vec::with_capacity(4096) };
        self.room -= buffer.capacity();
        buffer
    }

    pub(crate) fn give(&mut self, mut buffer: Vec<u8>) {
        let room = buffer.capacity();
        if (1..=KEPT_MAX).contains(&room) && self.room + room <= SPARES_MAX {
            buffer.clear();
            self.room += room;
            self.buffers.push(buffer);
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    /// Written by the protocol; through a layer it is plain text.
    pub(crate) filling: Vec<u8>,
    /// Bytes of the buffer the driver holds that the kernel has not taken.
    flying: usize,
    in_flight: bool,
}

impl Outbox {
    /// Bytes the kernel has not taken.
    pub(crate) fn len(&self) -> usize {
        self.filling.len() + self.flying
    }

    pub(crate) const fn in_flight(&self) -> bool {
        self.in_flight
    }

    /// The buffer goes to the driver.
    pub(crate) fn launch(&mut self, bytes: usize) {
        debug_assert!(!self.in_flight);
        self.in_flight = true;
        self.flying = bytes;
    }

    pub(crate) fn progress(&mut self, bytes: usize) {
        self.flying = self.flying.saturating_sub(bytes);
    }

    /// The driver has given the buffer back, or up.
    pub(crate) fn land(&mut self) {
        self.in_flight = false;
        self.flying = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsent_bytes_are_counted_wherever_they_are() {
        let mut outbox = Outbox::default();
        outbox.filling.extend_from_slice(b"abcdef");
        assert_eq!(outbox.len(), 6);
        let flying = std::mem::take(&mut outbox.filling);
        outbox.launch(flying.len());
        outbox.filling.extend_from_slice(b"gh");
        assert_eq!(outbox.len(), 8);
        outbox.progress(4);
        assert_eq!(outbox.len(), 4);
        outbox.land();
        assert_eq!((outbox.len(), outbox.in_flight()), (2, false));
    }

    #[test]
    fn large_buffers_are_not_hoarded() {
        let mut spares = Spares::default();
        spares.give(Vec::with_capacity(KEPT_MAX + 1));
        spares.give(Vec::new());
        assert!(spares.buffers.is_empty());
        spares.give(vec![1; 100]);
        assert!(spares.take().is_empty(), "given out empty");
        assert_eq!(spares.room, 0);
        for _ in 0..20 {
            spares.give(Vec::with_capacity(KEPT_MAX));
        }
        assert!(spares.room <= SPARES_MAX, "{}", spares.room);
    }
}
