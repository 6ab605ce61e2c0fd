//! One deadline per connection, in user space: a heap that tolerates being late.
//!
//! Moving a deadline further away, which every request does, costs nothing: the entry in the heap
//! stays, comes up early, and is put back with the deadline of that moment. Only a nearer deadline
//! adds an entry. Pure: the worker feeds the time.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Instant;

use crate::engine::driver::Key;

/// The two times of one connection; lives beside it.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Deadline {
    due: Option<Instant>,
    /// The earliest entry of this connection in the heap.
    queued: Option<Instant>,
}

/// All connections' entries.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    heap: BinaryHeap<Reverse<(Instant, Key)>>,
}

impl Timers {
    /// Sets or clears a connection's deadline.
    pub(crate) fn set(&mut self, key: Key, slot: &mut Deadline, due: Option<Instant>) {
        slot.due = due;
        if let Some(due) = due
            && slot.queued.is_none_or(|queued| due < queued)
        {
            slot.queued = Some(due);
            self.heap.push(Reverse((due, key)));
        }
    }

    /// When [`Timers::pop`] has something to say at the earliest.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// The next connection whose deadline has passed; it is cleared. `slot` finds a living
    /// connection's times in what is handed through.
    pub(crate) fn pop<S>(
        &mut self,
        now: Instant,
        slots: &mut S,
        slot: impl Fn(&mut S, Key) -> Option<&mut Deadline>,
    ) -> Option<Key> {
        while let Some(Reverse((at, key))) = self.heap.peek().copied()
            && at <= now
        {
            self.heap.pop();
            let Some(deadline) = slot(slots, key) else { continue };
            if deadline.queued != Some(at) {
                continue; // a nearer entry has taken its place
            }
            deadline.queued = None;
            match deadline.due {
                Some(due) if due <= now => {
                    deadline.due = None;
                    return Some(key);
                }
                Some(due) => {
                    deadline.queued = Some(due);
                    self.heap.push(Reverse((due, key)));
                }
                None => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(base: Instant, ms: u64) -> Instant {
        base + Duration::from_millis(ms)
    }

    #[test]
    fn a_deadline_moved_away_fires_only_then() {
        let (base, key) = (Instant::now(), Key::new(3, 1));
        let (mut timers, mut slot) = (Timers::default(), Deadline::default());
        timers.set(key, &mut slot, Some(at(base, 10)));
        timers.set(key, &mut slot, Some(at(base, 50)));
        assert_eq!(timers.heap.len(), 1, "no second entry");
        assert_eq!(timers.pop(at(base, 20), &mut slot, |slot, _| Some(slot)), None);
        assert_eq!(timers.next(), Some(at(base, 50)));
        assert_eq!(timers.pop(at(base, 50), &mut slot, |slot, _| Some(slot)), Some(key));
        assert_eq!(timers.pop(at(base, 60), &mut slot, |slot, _| Some(slot)), None);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_nearer_deadline_fires_once() {
        let (base, key) = (Instant::now(), Key::new(0, 0));
        let (mut timers, mut slot) = (Timers::default(), Deadline::default());
        timers.set(key, &mut slot, Some(at(base, 50)));
        timers.set(key, &mut slot, Some(at(base, 10)));
        assert_eq!(timers.pop(at(base, 10), &mut slot, |slot, _| Some(slot)), Some(key));
        assert_eq!(timers.pop(at(base, 90), &mut slot, |slot, _| Some(slot)), None);
    }

    #[test]
    fn cleared_and_dead_ones_do_not_fire() {
        let base = Instant::now();
        let (mut timers, mut slot) = (Timers::default(), Deadline::default());
        timers.set(Key::new(0, 0), &mut slot, Some(at(base, 5)));
        timers.set(Key::new(0, 0), &mut slot, None);
        assert_eq!(timers.pop(at(base, 9), &mut slot, |slot, _| Some(slot)), None);
        timers.set(Key::new(0, 0), &mut slot, Some(at(base, 10)));
        assert_eq!(timers.pop(at(base, 19), &mut (), |(), _| None), None);
        assert_eq!(timers.next(), None);
    }
}
