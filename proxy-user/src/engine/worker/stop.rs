//! The end of a worker, in two steps that the guardian orders.
//!
//! *Rest*, while the node has the role: commands that were received are executed and answered, each
//! HTTP answer says that its connection ends, what is idle is closed. *Stop*, when the role is
//! gone: what still runs may end within the patience. Where the other node has the address now, it
//! sends here what belongs to connections of this node, so they end as if nothing had happened.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::core::{Core, Slot, Stage};
use crate::control::message::ToGuardian;
use crate::engine::connections::{Closed, Kind};

/// After the address went: clients that have not heard of it yet are still served here.
const LATE: Duration = Duration::from_millis(200);
/// Between two looks at what is still under way.
const LOOK: Duration = Duration::from_millis(10);

/// How a worker is to end.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// What is under way then is cut off.
    until: Instant,
    /// Clients that come until then are waited for.
    late: Instant,
    handed_over: bool,
}

impl Stop {
    /// From now on, within `grace`. See [`crate::control::message::ToEngine::Stop`].
    #[must_use]
    pub fn within(grace: Duration, handed_over: bool) -> Self {
        let now = Instant::now();
        let late = if handed_over { LATE.min(grace) } else { Duration::ZERO };
        Self { until: now + grace, late: now + late, handed_over }
    }
}

impl Core {
    pub(super) fn rest(&mut self) {
        self.resting = true;
        for key in self.keys() {
            // the peer must have what is answered now
            let kind = self.kinds.get(key.index()).and_then(Option::as_ref);
            if !kind.is_some_and(Kind::is_link) {
                self.call(key, |protocol, ctx| protocol.on_stop(ctx));
            }
        }
    }

    pub(super) fn stop(&mut self, stop: Stop) {
        if !self.resting {
            self.rest();
        }
        if !stop.handed_over {
            self.unlisten();
        }
        self.stopping = Some(stop);
    }

    pub(super) fn stop_due(&self) -> Option<Instant> {
        let stop = self.stopping?;
        Some(stop.until.min(self.now + LOOK))
    }

    /// The last of a turn: whether there is another.
    pub(super) fn goes_on(&mut self) -> bool {
        if self.resting && !self.rested && self.locals.memcached.is_rested() {
            self.rested = true;
            if self.shared.unrested.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.shared.events.tell(ToGuardian::Rested);
            }
        }
        let Some(stop) = self.stopping else { return true };
        let late = self.now >= stop.late;
        if self.now >= stop.until || (late && self.is_done()) {
            for key in self.keys() {
                self.end(key, Closed::Stop);
            }
            self.bury();
            return self.open > 0;
        }
        true
    }

    /// Nothing is under way that began before the address went, on any worker; and, now that
    /// nothing new is accepted either, nothing else on this one.
    fn is_done(&mut self) -> bool {
        let busy = self.is_busy(|slot| !slot.late);
        let all = &self.shared.busy;
        all[self.index].store(busy, Ordering::Release);
        if all.iter().any(|worker| worker.load(Ordering::Acquire)) {
            return false;
        }
        self.unlisten();
        self.bury();
        !self.is_busy(|_| true)
    }

    fn is_busy(&self, which: impl Fn(&Slot) -> bool) -> bool {
        self.slots.iter().flatten().filter(|slot| !slot.ending && which(slot)).any(|slot| {
            let kind = self.kinds.get(slot.key.index()).and_then(Option::as_ref);
            let closes = matches!(slot.stage, Stage::Flushing(_) | Stage::Lingering);
            let busy = |kind: &Kind| closes || slot.outbox.len() > 0 || kind.is_busy();
            kind.is_some_and(|kind| !kind.is_link() && busy(kind))
        })
    }

    /// Whether what is accepted now comes to a node that is no longer known to have the address.
    pub(super) fn is_late(&self) -> bool {
        self.stopping.is_some_and(|stop| self.now >= stop.late)
    }
}
