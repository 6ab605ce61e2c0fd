//! A session's answers: bytes in order, and the marks that hold them back.
//!
//! A mark says: from this byte on, nothing leaves before the peer has that version. An answer that
//! depends on what is acknowledged already makes no mark, and neither does one produced in
//! MASTER_SOLO or with `ack = "local"`: such bytes are remembered as a whole, and if the node
//! becomes MASTER before they have left, they wait for everything up to that moment.

use std::collections::VecDeque;
use std::time::Instant;

use super::Context;
use crate::PARTITIONS;
use crate::replication::{Depends, positions};

#[derive(Debug, Clone, Copy)]
struct Mark {
    start: u64,
    depends: Depends,
    since: Instant,
}

/// What the gate says of the bytes that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Open {
    /// This many may leave.
    Bytes(usize),
    /// None ever: another role or epoch.
    Never,
}

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    /// Position of `bytes[0]` in all that was ever produced.
    base: u64,
    marks: VecDeque<Mark>,
    /// Highest version marked per partition, while there are marks: a lower one needs no mark.
    highest: Option<Box<[u64; PARTITIONS]>>,
    /// Epoch under which `bytes` were produced.
    epoch: u16,
    /// Some of `bytes` have no marks although they stand on something.
    unmarked: bool,
    /// First time that the lease, not a mark, held bytes.
    lease_held: Option<Instant>,
}

impl Output {
    /// Bytes that have not left.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Where the next byte will be.
    pub(super) fn position(&self) -> u64 {
        self.base + self.bytes.len() as u64
    }

    /// For writing at the end. The caller has called [`Self::stamp`] for these bytes.
    pub(super) fn writer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// Takes back what was written since `position`, if it has not left. Marks of what is taken
    /// back stay, for what comes in its place: later answers rely on them.
    pub(super) fn take_back(&mut self, position: u64) {
        let Some(keep) = position.checked_sub(self.base) else { return };
        self.bytes.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        for mark in self.marks.iter_mut().rev().take_while(|mark| mark.start > position) {
            mark.start = position;
        }
    }

    /// Says under what epoch bytes are about to be written. False if earlier ones of another
    /// epoch have not left: then no byte of this session ever may.
    pub(super) fn stamp(&mut self, ctx: &Context<'_>) -> bool {
        if self.bytes.is_empty() {
            self.epoch = ctx.gate.epoch;
        }
        self.epoch == ctx.gate.epoch
    }

    /// Says that the bytes from `start` on stand on `depends`.
    pub(super) fn depend(&mut self, start: u64, depends: Depends, ctx: &Context<'_>) {
        if !ctx.gate.waits() {
            self.unmarked = true;
            return;
        }
        if ctx.shared.has(depends) {
            return;
        }
        let highest = self.highest.get_or_insert_with(|| Box::new([0; PARTITIONS]));
        let highest = &mut highest[usize::from(depends.partition) % PARTITIONS];
        if *highest < depends.version {
            *highest = depends.version;
            self.marks.push_back(Mark { start, depends, since: ctx.now.instant });
        }
    }

    /// How many bytes may leave now.
    pub(super) fn open(&mut self, ctx: &Context<'_>) -> Open {
        if self.bytes.is_empty() {
            self.unmarked = false;
            self.unhold();
            return Open::Bytes(0);
        }
        if !ctx.gate.serves() || ctx.gate.epoch != self.epoch {
            return Open::Never;
        }
        if !ctx.gate.lease_valid {
            self.lease_held.get_or_insert(ctx.now.instant);
            return Open::Bytes(0);
        }
        self.lease_held = None;
        if !ctx.gate.waits() {
            self.unhold();
            self.unmarked = true;
            return Open::Bytes(self.bytes.len());
        }
        if self.unmarked {
            self.mark_everything(ctx);
        }
        while self.marks.front().is_some_and(|mark| ctx.shared.has(mark.depends)) {
            self.marks.pop_front();
        }
        match self.marks.front() {
            Some(mark) => {
                Open::Bytes(usize::try_from(mark.start - self.base).unwrap_or(usize::MAX))
            }
            None => {
                self.unhold();
                Open::Bytes(self.bytes.len())
            }
        }
    }

    /// Moves `count` bytes to `out`.
    pub(super) fn give(&mut self, count: usize, out: &mut Vec<u8>) {
        self.base += count as u64;
        if count == self.bytes.len() {
            self.unmarked = false;
            if out.is_empty() {
                std::mem::swap(out, &mut self.bytes);
            } else {
                out.extend_from_slice(&self.bytes);
            }
            self.bytes.clear();
            self.bytes.shrink_to(super::OUTPUT_MARK);
        } else {
            out.extend_from_slice(&self.bytes[..count]);
            self.bytes.drain(..count);
        }
    }

    /// Since when the oldest answer has been held.
    pub(super) fn held_since(&self) -> Option<Instant> {
        let marked = self.marks.front().map(|mark| mark.since);
        marked.into_iter().chain(self.lease_held).min()
    }

    /// The unmarked bytes stand on nothing later than what the partitions are at now.
    fn mark_everything(&mut self, ctx: &Context<'_>) {
        self.unmarked = false;
        let (start, since) = (self.base, ctx.now.instant);
        for (partition, version) in (0..).zip(positions(ctx.cache)) {
            let depends = Depends { partition, version };
            self.marks.push_front(Mark { start, depends, since });
        }
    }

    fn unhold(&mut self) {
        self.marks.clear();
        self.highest = None;
        self.lease_held = None;
    }
}
