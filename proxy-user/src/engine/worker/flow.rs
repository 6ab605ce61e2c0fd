//! Bytes on their way between driver, layer and protocol.

use std::time::Duration;

use super::core::{Core, Stage, slot_mut};
use crate::engine::connections::{Closed, OUTBOX_HIGH, OUTBOX_LOW};
use crate::engine::driver::{Key, Op};

/// Time for the rest of the answers of a connection being closed; each byte taken starts it anew.
pub(super) const FLUSH_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the peer's end after ours; see `Close::Linger`.
const LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// Size of one large read.
const BULK: usize = 64 * 1024;
/// Buffers for large reads kept for reuse.
const BULK_SPARES_MAX: usize = 16;

impl Core {
    // ---- receiving ----

    /// Brings the driver's wish to receive in line with what is wanted.
    pub(super) fn receive(&mut self, key: Key) {
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        let wanted = match slot.stage {
            Stage::Connecting => false,
            Stage::Open => !slot.hold.any(),
            Stage::Flushing(_) | Stage::Lingering => true,
        } && !slot.eof;
        if wanted == slot.receiving {
            return;
        }
        slot.receiving = wanted;
        let op = match (wanted, slot.bulk) {
            (_, true) if slot.bulk_flying => return,
            (true, true) => {
                slot.bulk_flying = true;
                Op::RecvInto(self.bulk_spares.pop().unwrap_or_else(|| vec![0; BULK]))
            }
            (true, false) => Op::Recv,
            (false, _) => Op::RecvStop,
        };
        self.driver.push(key, op);
    }

    pub(super) fn on_data(&mut self, key: Key, bytes: &[u8]) {
        let Some(slot) = self.slot_mut(key) else { return };
        match slot.stage {
            Stage::Flushing(_) | Stage::Lingering => return,
            // Also when it may go on but what was kept has not been delivered yet: order.
            _ if slot.hold.any() || !slot.kept.is_empty() => {
                slot.kept.extend_from_slice(bytes);
                return;
            }
            _ => {}
        }
        self.deliver(key, bytes);
    }

    /// Through the layer, if there is one, to the protocol.
    pub(super) fn deliver(&mut self, key: Key, bytes: &[u8]) {
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        let Some(mut layer) = slot.layer.take() else {
            self.call(key, |protocol, ctx| protocol.on_data(bytes, ctx));
            return;
        };
        let mut plain = std::mem::take(&mut self.plain);
        let mut reply = self.spares.take();
        plain.clear();
        let result = layer.open(bytes, &mut plain, &mut reply);
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        slot.layer = Some(layer);
        slot.wire.extend_from_slice(&reply);
        self.spares.give(reply);
        self.mark(key);
        if !plain.is_empty() {
            self.call(key, |protocol, ctx| protocol.on_data(&plain, ctx));
        }
        self.plain = plain;
        if let Err(error) = result {
            self.end(key, Closed::Layer(error));
        }
    }

    pub(super) fn on_eof(&mut self, key: Key) {
        let Some(slot) = self.slot_mut(key) else { return };
        slot.eof = true;
        slot.receiving = false;
        self.tell_eof(key);
    }

    pub(super) fn tell_eof(&mut self, key: Key) {
        let Some(slot) = self.slot_mut(key) else { return };
        if slot.stage == Stage::Lingering {
            self.end(key, Closed::Local);
        } else if slot.stage == Stage::Open && slot.kept.is_empty() && !slot.hold.any() {
            slot.eof_told = true;
            self.call(key, |protocol, ctx| protocol.on_eof(ctx));
        }
    }

    // ---- sending ----

    /// Gives a dirty connection's bytes to the driver; one send at a time.
    pub(super) fn flush(&mut self, key: Key) {
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        slot.dirty = false;
        if slot.stage == Stage::Connecting || slot.stage == Stage::Lingering {
            return;
        }
        if !slot.outbox.in_flight() {
            let bytes = match &mut slot.layer {
                None => std::mem::take(&mut slot.outbox.filling),
                Some(layer) => {
                    let mut wire = std::mem::take(&mut slot.wire);
                    if let Err(error) = layer.seal(&mut slot.outbox.filling, &mut wire) {
                        self.end(key, Closed::Layer(error));
                        return;
                    }
                    wire
                }
            };
            if bytes.is_empty() {
                self.spares.give(bytes);
            } else {
                slot.outbox.launch(bytes.len());
                self.driver.push(key, Op::Send(bytes));
            }
        }
        self.after_flush(key);
    }

    pub(super) fn after_flush(&mut self, key: Key) {
        let now = self.now;
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        let unsent = slot.outbox.len();
        match slot.stage {
            Stage::Flushing(linger) if !slot.outbox.in_flight() => {
                if !linger || slot.eof {
                    self.end(key, Closed::Local);
                    return;
                }
                slot.stage = Stage::Lingering;
                self.timers.set(key, &mut slot.deadline, Some(now + LINGER_TIMEOUT));
                self.driver.push(key, Op::ShutdownWrite);
            }
            _ => {}
        }
        if unsent > OUTBOX_HIGH && !slot.hold.by_outbox && !slot.eager {
            slot.hold.by_outbox = true;
        } else if unsent <= OUTBOX_LOW && slot.hold.by_outbox {
            slot.hold.by_outbox = false;
            if !slot.hold.any() {
                self.resumed.push(key);
            }
        }
        self.receive(key);
    }

    pub(super) fn on_progress(&mut self, key: Key, bytes: usize) {
        let now = self.now;
        let Some(slot) = slot_mut(&mut self.slots, key) else { return };
        slot.outbox.progress(bytes);
        if matches!(slot.stage, Stage::Flushing(_)) {
            self.timers.set(key, &mut slot.deadline, Some(now + FLUSH_TIMEOUT));
        }
    }

    pub(super) fn on_sent(&mut self, key: Key, buffer: Vec<u8>) {
        self.keep(buffer);
        let Some(slot) = self.slot_mut(key) else { return };
        slot.outbox.land();
        let open = slot.stage == Stage::Open;
        self.mark(key);
        if open {
            self.call(key, |protocol, ctx| protocol.on_sent(ctx));
        }
    }
}

impl Core {
    /// A large read has come. Where nothing stands between, the protocol may take the buffer and
    /// leave another.
    pub(super) fn on_filled(&mut self, key: Key, mut buffer: Vec<u8>, len: usize) {
        let mut open = false;
        if let Some(slot) = self.slot_mut(key) {
            slot.receiving = false;
            slot.bulk_flying = false;
            open = slot.stage == Stage::Open && !slot.hold.any() && slot.kept.is_empty();
            open &= slot.layer.is_none();
        }
        buffer.truncate(len);
        if open {
            self.call(key, |protocol, ctx| protocol.on_bulk(&mut buffer, ctx));
        } else {
            self.on_data(key, &buffer);
        }
        self.keep(buffer);
        self.receive(key);
    }

    /// Keeps a buffer for reuse: a large one that is mostly filled for large reads, which want
    /// their whole length written once.
    fn keep(&mut self, mut buffer: Vec<u8>) {
        let large = buffer.len() >= BULK / 2 && buffer.capacity() <= 2 * BULK;
        if large && self.bulk_spares.len() < BULK_SPARES_MAX {
            buffer.resize(BULK, 0);
            self.bulk_spares.push(buffer);
        } else {
            self.spares.give(buffer);
        }
    }
}
