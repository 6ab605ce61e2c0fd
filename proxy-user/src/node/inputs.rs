//! What changes by an input before any rule is asked: a stall of ours, the engine coming and going,
//! the streams.

use std::time::Instant;

use super::effects::{Effect, Event, SyncEvent, Target};
use super::{Cause, Engine, Epoch, Lineage, Node, State, Woken};

impl Node {
    /// Takes a stall of ours out of every measure of the peer's silence.
    pub(super) fn wake(&mut self, now: Instant) {
        let last = self.last_now.replace(now);
        let (Some(last), Some(peer)) = (last, &mut self.peer) else { return };
        let usual = peer.config().beat * 2;
        let stall = now.saturating_duration_since(last).saturating_sub(usual);
        if stall.is_zero() {
            return;
        }
        // the master hears nothing of us since our last beat, and may have given us up
        let dead = peer.config().dead_time();
        let unheard = peer.last_sent_at().is_some_and(|at| now >= at + dead);
        self.replica.given_up |= self.state == State::Synced && unheard;
        peer.shift(stall);
        self.since += stall;
        let times = [
            &mut self.master.hold_until,
            &mut self.master.lease_bad_since,
            &mut self.master.rival_since,
            &mut self.master.advert_since,
        ];
        for at in times.into_iter().flatten() {
            *at += stall;
        }
        if let Engine::Down { since } = &mut self.engine {
            *since += stall;
        }
        self.segments.iter_mut().for_each(|segment| segment.shift(stall));
        if self.state == State::MasterSolo && stall > usual / 2 {
            let until = now + peer.config().dead_time();
            self.woken = Some(Woken { until, number: peer.last_sent() + 1 });
        }
        self.push(Effect::Event(Event::Stalled(stall)));
    }

    pub(super) fn engine_up(&mut self, now: Instant, fresh: bool, data_epoch: Epoch) {
        self.see(data_epoch);
        self.engine = Engine::Up;
        self.replica.receiving = false;
        self.replica.received = false;
        if fresh {
            self.lineage = Lineage::Empty;
            self.alone.shared();
        } else if self.lineage == Lineage::Empty && data_epoch != Epoch::NONE {
            // it outlived its guardian, which left no word about it
            self.lineage = Lineage::Apart(data_epoch);
        }
        self.legacy = self.legacy.filter(|_| !fresh);
        if self.state.is_master() {
            if fresh {
                self.change(now, State::Boot, Cause::StoreLost);
            } else {
                // the role is kept: the new engine attaches to the same reign
                self.push(Effect::PrepareEngine(self.epoch));
                self.push(Effect::SetRole { state: self.state, epoch: self.epoch });
                self.push(Effect::EngineTarget(Target::Here(self.epoch)));
            }
        } else {
            self.push(Effect::EngineTarget(self.target()));
        }
    }

    pub(super) fn engine_died(&mut self, now: Instant) {
        if self.engine == Engine::Up {
            self.engine = Engine::Down { since: now };
        }
        self.replica.receiving = false;
        self.replica.received = false;
        self.replica.end_session();
        self.master.caught_up = false;
        self.master.gated = false;
        self.give_up_promotion(Cause::EngineDied);
    }

    pub(super) fn synced(&mut self, event: SyncEvent) {
        let ours = self.state.is_master();
        let follows = self.state.is_follower();
        match event {
            SyncEvent::LinksDown => {
                self.master.caught_up = false;
                self.replica.receiving = false;
                self.replica.received = false;
                if self.state != State::Synced {
                    self.replica.end_session();
                }
            }
            SyncEvent::Receiving { epoch } if follows && epoch == self.epoch => {
                self.replica.receiving = true;
                self.replica.received = false;
                if self.lineage == Lineage::Empty {
                    self.lineage = Lineage::Apart(epoch); // from now on it holds something
                }
            }
            SyncEvent::Received { epoch }
                if follows && epoch == self.epoch && self.replica.receiving =>
            {
                self.replica.received = true;
                self.lineage = Lineage::Shared(epoch);
                let lost = self.alone.level();
                self.alone.shared();
                if lost.any() {
                    self.push(Effect::Event(Event::ForkLost(lost)));
                }
            }
            SyncEvent::CaughtUp { epoch } if ours && epoch == self.epoch => {
                self.master.caught_up = true;
                self.master.late = false;
            }
            SyncEvent::AckLate { epoch } if ours && epoch == self.epoch => {
                self.master.caught_up = false;
                self.master.late = true;
            }
            SyncEvent::Gated { gate } if gate == self.master.gate => {
                self.master.gated = self.state == State::Master;
            }
            _ => {} // of another epoch or role: overtaken
        }
    }
}
