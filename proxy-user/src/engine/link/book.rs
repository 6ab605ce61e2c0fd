//! What the links of a node amount to: pure bookkeeping behind the events of the role machine.
//!
//! Many workers have one link each; the role machine knows one stream. [`Sending`] and
//! [`Receiving`] say when the one becomes the other. They are fed under one lock, so their events
//! come in the order of what happened.

use cache::PARTITIONS;

use crate::control::message::SyncEvent;
use crate::node::Epoch;

/// One version for each partition.
pub(crate) type Positions = [u64; PARTITIONS];

/// What a master waits for after [`crate::control::message::SyncCommand::Gate`].
#[derive(Debug, Clone)]
struct Gate {
    number: u64,
    /// Workers that have not seen the role of this gate.
    unseen: u64,
    /// Where each partition was when the last of them had.
    positions: Option<Box<Positions>>,
}

/// The master's side.
#[derive(Debug, Default)]
pub(crate) struct Sending {
    epoch: Option<Epoch>,
    /// One bit for each worker.
    all: u64,
    up: u64,
    caught: u64,
    told: bool,
    gate: Option<Gate>,
    /// What was not acknowledged when lateness was reported.
    late: Option<Box<Positions>>,
}

/// One bit for each of so many workers.
pub(crate) fn mask(workers: usize) -> u64 {
    if workers >= 64 { u64::MAX } else { (1 << workers) - 1 }
}

impl Sending {
    /// A reign begins (or none: `None`): links of before do not count.
    pub(crate) fn begin(&mut self, epoch: Option<Epoch>, workers: usize) -> Option<SyncEvent> {
        let was_up = self.up != 0;
        *self = Self { epoch, all: mask(workers), ..Self::default() };
        was_up.then_some(SyncEvent::LinksDown)
    }

    /// A worker's link is taken by the peer.
    pub(crate) fn up(&mut self, epoch: u16, worker: usize) {
        if self.is(epoch) {
            self.up |= 1 << worker;
        }
    }

    /// A worker's link is over.
    pub(crate) fn down(&mut self, epoch: u16, worker: usize) -> Option<SyncEvent> {
        let bit = 1 << worker;
        if !self.is(epoch) || self.up & bit == 0 {
            return None;
        }
        self.up &= !bit;
        self.caught &= !bit;
        self.told = false;
        self.late = None;
        Some(SyncEvent::LinksDown)
    }

    /// The peer has the full sync of a worker's link.
    pub(crate) fn caught_up(&mut self, epoch: u16, worker: usize) -> Option<SyncEvent> {
        if !self.is(epoch) || self.up & 1 << worker == 0 {
            return None;
        }
        self.caught |= 1 << worker;
        let epoch = self.epoch?;
        let now =
            self.caught == self.all && !std::mem::replace(&mut self.told, self.caught == self.all);
        now.then_some(SyncEvent::CaughtUp { epoch })
    }

    /// Answers are late, for what stands at these positions. Told once until that is acknowledged.
    pub(crate) fn late(&mut self, epoch: u16, positions: Positions) -> Option<SyncEvent> {
        if !self.is(epoch) || self.late.is_some() {
            return None;
        }
        self.late = Some(Box::new(positions));
        Some(SyncEvent::AckLate { epoch: self.epoch? })
    }

    /// Every worker is to gate, and to say so.
    pub(crate) fn gate(&mut self, number: u64) {
        self.gate = Some(Gate { number, unseen: self.all, positions: None });
    }

    /// Whether acknowledgements are waited for by more than clients.
    pub(crate) fn is_waiting(&self) -> bool {
        self.late.is_some() || self.gate.is_some()
    }

    /// A worker gates. True: it was the last; say where the partitions are by [`Self::gated_at`].
    pub(crate) fn seen(&mut self, worker: usize) -> bool {
        let Some(gate) = &mut self.gate else { return false };
        let before = gate.unseen;
        gate.unseen &= !(1 << worker);
        before != 0 && gate.unseen == 0
    }

    /// See [`Self::seen`].
    pub(crate) fn gated_at(&mut self, positions: Positions) {
        if let Some(gate) = &mut self.gate {
            gate.positions = Some(Box::new(positions));
        }
    }

    /// Acknowledgements went on: what that completes.
    pub(crate) fn acked(&mut self, acked: impl Fn(usize) -> u64) -> Vec<SyncEvent> {
        let has = |positions: &Positions| (0..PARTITIONS).all(|p| acked(p) >= positions[p]);
        let mut events = Vec::new();
        let caught = self.caught == self.all;
        if caught && self.late.take_if(|positions| has(positions)).is_some() {
            events.extend(self.epoch.map(|epoch| SyncEvent::CaughtUp { epoch }));
        }
        let is_done = |gate: &mut Gate| gate.positions.as_deref().is_some_and(&has);
        if caught && let Some(gate) = self.gate.take_if(is_done) {
            events.push(SyncEvent::Gated { gate: gate.number });
        }
        events
    }

    fn is(&self, epoch: u16) -> bool {
        self.epoch.is_some_and(|own| own.get() == epoch)
    }
}

/// The replica's side.
#[derive(Debug)]
pub(crate) struct Receiving {
    epoch: Option<Epoch>,
    count: u16,
    up: u64,
    received: u64,
    /// The life of each link that counts: a late word of an earlier one does not.
    lives: [u64; 64],
}

impl Default for Receiving {
    fn default() -> Self {
        Self { epoch: None, count: 0, up: 0, received: 0, lives: [0; 64] }
    }
}

impl Receiving {
    /// Another master is followed, or none.
    pub(crate) fn begin(&mut self, epoch: Option<Epoch>) -> Option<SyncEvent> {
        let was_up = self.up != 0;
        *self = Self { epoch, ..Self::default() };
        was_up.then_some(SyncEvent::LinksDown)
    }

    /// Link `index` of `count` is taken.
    pub(crate) fn up(&mut self, epoch: u16, index: u16, count: u16, life: u64) -> Vec<SyncEvent> {
        let Some(own) = self.epoch.filter(|own| own.get() == epoch) else { return Vec::new() };
        let bit = 1u64 << (index % 64);
        let mut events = Vec::new();
        if self.up & bit != 0 || (self.up != 0 && self.count != count) {
            events.push(SyncEvent::LinksDown);
        }
        if self.count != count {
            *self = Self { epoch: Some(own), count, ..Self::default() };
        }
        self.up |= bit;
        self.received &= !bit;
        self.lives[usize::from(index % 64)] = life;
        if self.up == mask(usize::from(count)) {
            events.push(SyncEvent::Receiving { epoch: own });
        }
        events
    }

    /// The full sync of a link is applied.
    pub(crate) fn received(&mut self, index: u16, life: u64) -> Option<SyncEvent> {
        if !self.is(index, life) {
            return None;
        }
        let all = mask(usize::from(self.count));
        self.received |= 1 << (index % 64);
        let epoch = self.epoch?;
        (self.received == all && self.up == all).then_some(SyncEvent::Received { epoch })
    }

    /// A link is over.
    pub(crate) fn down(&mut self, index: u16, life: u64) -> Option<SyncEvent> {
        if !self.is(index, life) {
            return None;
        }
        self.up &= !(1 << (index % 64));
        self.received &= !(1 << (index % 64));
        Some(SyncEvent::LinksDown)
    }

    fn is(&self, index: u16, life: u64) -> bool {
        self.up & 1 << (index % 64) != 0 && self.lives[usize::from(index % 64)] == life
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(value: u16) -> Epoch {
        Epoch::new(value).unwrap()
    }

    #[test]
    fn a_stream_is_caught_up_when_every_link_is() {
        let mut book = Sending::default();
        assert_eq!(book.begin(Some(epoch(4)), 2), None);
        book.up(4, 0);
        assert_eq!(book.caught_up(4, 0), None);
        book.up(4, 1);
        assert_eq!(book.caught_up(2, 1), None, "of another epoch");
        assert_eq!(book.caught_up(4, 1), Some(SyncEvent::CaughtUp { epoch: epoch(4) }));
        assert_eq!(book.caught_up(4, 1), None, "told once");
        assert_eq!(book.down(4, 0), Some(SyncEvent::LinksDown));
        assert_eq!(book.down(4, 0), None);
        book.up(4, 0);
        assert_eq!(book.caught_up(4, 0), Some(SyncEvent::CaughtUp { epoch: epoch(4) }));
        assert_eq!(book.begin(None, 2), Some(SyncEvent::LinksDown));
    }

    #[test]
    fn a_gate_holds_what_was_answered_before_it() {
        let mut book = Sending::default();
        book.begin(Some(epoch(4)), 2);
        for worker in 0..2 {
            book.up(4, worker);
            book.caught_up(4, worker);
        }
        book.gate(7);
        assert!(!book.seen(1));
        assert!(book.acked(|_| u64::MAX).is_empty(), "a worker has not seen it");
        assert!(!book.seen(1), "the same again");
        assert!(book.seen(0));
        let mut positions = [5; PARTITIONS];
        positions[9] = 6;
        book.gated_at(positions);
        assert!(book.acked(|_| 5).is_empty());
        assert_eq!(book.acked(|_| 6), [SyncEvent::Gated { gate: 7 }]);
        assert!(book.acked(|_| 6).is_empty() && !book.is_waiting());
    }

    #[test]
    fn a_gate_waits_for_a_link_that_broke() {
        let mut book = Sending::default();
        book.begin(Some(epoch(4)), 1);
        book.up(4, 0);
        book.caught_up(4, 0);
        book.gate(1);
        assert!(book.seen(0));
        book.gated_at([1; PARTITIONS]);
        book.down(4, 0);
        assert!(book.acked(|_| 9).is_empty(), "acks of a link that is over");
    }

    #[test]
    fn lateness_ends_when_what_was_late_is_acknowledged() {
        let mut book = Sending::default();
        book.begin(Some(epoch(4)), 1);
        book.up(4, 0);
        book.caught_up(4, 0);
        assert_eq!(book.late(3, [0; PARTITIONS]), None);
        let late = book.late(4, [8; PARTITIONS]);
        assert_eq!(late, Some(SyncEvent::AckLate { epoch: epoch(4) }));
        assert_eq!(book.late(4, [9; PARTITIONS]), None, "told once");
        assert!(book.acked(|_| 7).is_empty());
        assert_eq!(book.acked(|_| 8), [SyncEvent::CaughtUp { epoch: epoch(4) }]);
    }

    #[test]
    fn receiving_is_all_links_and_a_replacement_is_a_break() {
        let mut book = Receiving::default();
        book.begin(Some(epoch(4)));
        assert!(book.up(4, 0, 2, 10).is_empty());
        assert_eq!(book.received(0, 10), None);
        assert_eq!(book.up(4, 1, 2, 11), [SyncEvent::Receiving { epoch: epoch(4) }]);
        assert_eq!(book.received(1, 11), Some(SyncEvent::Received { epoch: epoch(4) }));
        let again = book.up(4, 1, 2, 12);
        assert_eq!(again, [SyncEvent::LinksDown, SyncEvent::Receiving { epoch: epoch(4) }]);
        assert_eq!(book.down(1, 11), None, "the one that was replaced");
        assert_eq!(book.received(1, 11), None);
        assert_eq!(book.received(1, 12), Some(SyncEvent::Received { epoch: epoch(4) }));
        assert_eq!(book.down(0, 10), Some(SyncEvent::LinksDown));
        assert!(book.up(6, 0, 2, 13).is_empty(), "another epoch");
    }

    #[test]
    fn a_master_that_came_back_with_other_workers_begins_anew() {
        let mut book = Receiving::default();
        book.begin(Some(epoch(4)));
        book.up(4, 0, 1, 1);
        let again = book.up(4, 0, 2, 2);
        assert_eq!(again, [SyncEvent::LinksDown]);
        assert_eq!(book.up(4, 1, 2, 3), [SyncEvent::Receiving { epoch: epoch(4) }]);
    }
}
