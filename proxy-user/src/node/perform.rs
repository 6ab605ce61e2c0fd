//! A step becomes a change of the node and effects, in the order of docs/ARCHITECTURE.md §4 rule 6;
//! and what follows every input: steps until none is left, the lease, the beat.

use std::time::Instant;

use super::claim::{Epoch, Lineage};
use super::effects::{Effect, Event, Lease, Target};
use super::message::{Beat, Tell};
use super::peer::{Control, Peer};
use super::role::{Cause, State, refused};
use super::rules::Step;
use super::{DISK_RETRY, MasterView, Node, Promotion, STEPS_MAX, Stage};

impl Node {
    /// Ends every input.
    pub(super) fn finish(&mut self, now: Instant) {
        self.drain_vrrp(now);
        self.observe(now);
        let mut steps = 0;
        while let Some(step) = self.next_step(now) {
            steps += 1;
            debug_assert!(steps <= STEPS_MAX, "{step:?} again and again in {}", self.state);
            if steps > STEPS_MAX {
                break; // the next beat asks again
            }
            self.take(now, step);
        }
        self.drain_vrrp(now);
        self.observe(now);
        self.persist_seen(now);
        let tick = self.beat_due(now);
        self.renew_lease(now, tick);
        if tick {
            self.send_beat(now);
        }
    }

    fn take(&mut self, now: Instant, step: Step) {
        match step {
            Step::Change(to, cause) => self.change(now, to, cause),
            Step::Promote(cause) => self.promote(cause),
            Step::Prepare => {
                if let Some(promotion) = &mut self.promotion {
                    promotion.stage = Stage::Preparing;
                    let epoch = promotion.epoch;
                    self.push(Effect::PrepareEngine(epoch));
                }
            }
            Step::Crown => self.crown(now),
            Step::GiveUp(cause) => {
                self.give_up_promotion(cause);
                if self.state == State::Synced {
                    self.change(now, State::Boot, Cause::NoMaster);
                }
            }
            Step::Follow => self.follow(),
            Step::EndSession => self.replica.end_session(),
            Step::Tell(boot, session) => self.master.told = Some((boot, session)),
            Step::TellOutOfSync => self.master.out = true,
        }
    }

    /// Enters a state that is not a new reign.
    pub(super) fn change(&mut self, now: Instant, to: State, cause: Cause) {
        let reigned = self.state.is_master();
        if !self.enter(now, to, cause) {
            return;
        }
        match to {
            State::Master => {
                self.master.gate += 1;
                self.master.gated = false;
                self.set_role();
                self.push(Effect::Gate(self.master.gate));
            }
            State::MasterSolo => {
                let hold = self.peer.as_ref().map(|peer| now + peer.config().resync_hold);
                self.master.hold_until = hold;
                self.master.lease_bad_since = None;
                self.master.told = None;
                self.master.out = false;
                self.master.gated = false;
                self.set_role();
            }
            State::Join => {
                self.released = Tell::Nothing;
                self.foreign = false;
                self.follow();
            }
            State::Catchup | State::Synced => self.set_role(),
            State::Boot | State::Fenced | State::Handover => {
                self.replica.receiving = false;
                self.replica.received = false;
                if !reigned {
                    self.set_role(); // else stepping down has
                }
                self.push(Effect::EngineTarget(self.target()));
            }
        }
    }

    /// The part that every change shares: the table, the event, what the old state leaves behind.
    fn enter(&mut self, now: Instant, to: State, cause: Cause) -> bool {
        let from = self.state;
        if let Some(refused) = refused(from, to, cause) {
            debug_assert!(false, "{refused}");
            self.push(Effect::Event(Event::Refused(refused)));
            return false;
        }
        self.state = to;
        self.since = now;
        if from.is_master() && !to.is_master() {
            self.released = match (from, self.master.told) {
                (State::Master, Some((boot, session))) => Tell::InSync(boot, session),
                _ => Tell::Nothing,
            };
            self.give_up_promotion(cause);
            self.master = MasterView { gate: self.master.gate, ..MasterView::default() };
            self.resigning = false;
            self.woken = None;
            self.step_down(now, cause);
        }
        if from == State::Synced || (from == State::Catchup && to != State::Synced) {
            self.replica.end_session();
        }
        if to == State::Synced {
            self.replica.told_by = self.peer.as_ref().and_then(Peer::view).map(|beat| beat.boot);
        }
        let epoch = self.epoch;
        self.push(Effect::Event(Event::RoleChanged { from, to, epoch, cause }));
        if cause == Cause::ForeignMaster {
            self.push(Effect::Event(Event::ForeignMaster));
        }
        true
    }

    /// Rule 6, demotion: role word, XDP stops, VRRP Backup. The beat that says so goes last.
    fn step_down(&mut self, now: Instant, cause: Cause) {
        self.push(Effect::SetRole { state: self.state, epoch: self.epoch });
        self.push(Effect::SetLease(Lease::Expired));
        self.lease = Lease::Expired;
        self.push(Effect::Answer(false));
        for instance in &mut self.vrrp {
            instance.resign(now, cause == Cause::Operator);
        }
        self.drain_vrrp(now);
    }

    fn set_role(&mut self) {
        self.push(Effect::SetRole { state: self.state, epoch: self.epoch });
    }

    /// JOIN: follow the master that is heard.
    fn follow(&mut self) {
        let heard = self.peer.as_ref().and_then(Peer::view).map(|beat| beat.epoch);
        let epoch = heard.unwrap_or(self.epoch);
        if epoch != self.epoch {
            // of the same epoch the stream may still be up, and what it brought still counts
            self.epoch = epoch;
            self.replica.receiving = false;
            self.replica.received = false;
        }
        self.replica.end_session();
        self.set_role();
        self.push(Effect::EngineTarget(self.target()));
    }

    pub(super) const fn target(&self) -> Target {
        match self.state {
            State::Join | State::Catchup | State::Synced => Target::Peer(self.epoch),
            State::Master | State::MasterSolo => Target::Here(self.epoch),
            State::Boot | State::Fenced | State::Handover => Target::Nobody,
        }
    }

    fn promote(&mut self, cause: Cause) {
        let Some(epoch) = self.seen.next(self.side) else { return };
        self.seen = epoch;
        self.promotion = Some(Promotion { epoch, cause, stage: Stage::Persisting });
        self.disk.asked = epoch;
        self.push(Effect::Event(Event::Promoting { epoch, cause }));
        self.push(Effect::PersistEpoch(epoch));
    }

    pub(super) fn give_up_promotion(&mut self, cause: Cause) {
        if let Some(promotion) = self.promotion.take() {
            let epoch = promotion.epoch;
            self.push(Effect::Event(Event::PromotionFailed { epoch, cause }));
        }
    }

    /// Rule 6, promotion, its last part: role word, XDP answers, advert, GARP.
    fn crown(&mut self, now: Instant) {
        let Some(Promotion { epoch, cause, .. }) = self.promotion.take() else { return };
        self.epoch = epoch;
        let from = self.state;
        if !self.enter(now, State::MasterSolo, cause) {
            return;
        }
        let lossy = cause == Cause::Unsynced || self.leaves_a_better_claim(now, cause);
        self.lineage = match self.lineage {
            _ if lossy => Lineage::Apart(epoch),
            Lineage::Empty => Lineage::Apart(epoch),
            Lineage::Apart(since) => Lineage::Apart(since),
            Lineage::Shared(_) => Lineage::Shared(epoch),
        };
        self.led = true;
        self.released = Tell::Nothing;
        let gate = self.master.gate;
        self.master = MasterView { gate, ..MasterView::default() };
        self.replica.receiving = false;
        self.replica.received = false;
        self.replica.end_session();
        self.set_role();
        self.renew_lease(now, true);
        self.push(Effect::EngineTarget(self.target()));
        if !from.is_master() {
            self.push(Effect::Answer(true));
            for instance in &mut self.vrrp {
                instance.promote(now);
            }
            self.drain_vrrp(now);
        }
        if lossy {
            self.push(Effect::Event(Event::LossyTakeover { lineage: self.lineage }));
        }
        if epoch.is_alarming() {
            let left = (Epoch::MAX.get() - epoch.get()) / 2;
            self.push(Effect::Event(Event::EpochsLow { left }));
        }
    }

    /// Elected only because the better claim's node cannot serve.
    fn leaves_a_better_claim(&self, now: Instant, cause: Cause) -> bool {
        let better = |beat: &Beat| beat.claim.beats(self.claim());
        cause == Cause::Elected && self.peer(now).is_some_and(better)
    }

    /// Keeps what rules need to remember: since when.
    fn observe(&mut self, now: Instant) {
        if self.foreign && self.vrrp.iter().all(|instance| instance.active_router().is_none()) {
            self.foreign = self.state.is_master();
        }
        let Some(peer) = &self.peer else { return };
        let heard = peer.live(now).is_some();
        let rival = peer.live(now).is_some_and(|beat| beat.state.is_master());
        let shares = peer.live(now).is_some_and(|beat| beat.ready && beat.epoch == self.epoch);
        let woken = self.woken.filter(|w| now < w.until && peer.echoed() < w.number);
        self.woken = woken;
        if heard != self.heard_said {
            self.heard_said = heard;
            self.push(Effect::Event(Event::PeerHeard(heard)));
        }
        if !self.state.is_master() {
            return;
        }
        if shares && let Lineage::Apart(_) = self.lineage {
            self.lineage = Lineage::Shared(self.epoch);
        }
        if heard {
            self.master.advert_since = None;
        }
        let bad = self.state == State::Master && !self.lease_valid(now);
        let since = self.master.lease_bad_since;
        self.master.lease_bad_since = bad.then(|| since.unwrap_or(now));
        if rival != self.master.rival_since.is_some() {
            self.master.rival_since = rival.then_some(now);
            let wins = !rival || self.live_claim_is_worse(now);
            if rival {
                self.push(Effect::Event(Event::SecondMaster { we_win: wins }));
            }
            if wins {
                // at its coming and at its going: who heard it last must hear us after it
                for instance in &mut self.vrrp {
                    instance.reassert(now);
                }
            }
        }
    }

    fn live_claim_is_worse(&self, now: Instant) -> bool {
        self.peer(now).is_some_and(|beat| self.claim().beats(beat.claim))
    }

    fn drain_vrrp(&mut self, now: Instant) {
        for index in 0..self.vrrp.len() {
            while let Some(output) = self.vrrp[index].poll_output() {
                match &output {
                    vrrp::Output::Superseded { .. } => self.foreign = true,
                    vrrp::Output::PeerContact { source, priority }
                        if self.state.is_master() && self.peer(now).is_none() =>
                    {
                        let config = self.vrrp[index].config();
                        let stronger = (*priority, *source) > (config.priority, config.source);
                        self.advert_of_unheard_peer(now, stronger);
                    }
                    _ => {}
                }
                self.push(Effect::Vrrp { instance: index, output });
            }
        }
    }

    /// No beat comes through, and yet the peer is master on this segment: RFC 9568's order decides,
    /// as between strangers; after a while, in which a beat may come first.
    fn advert_of_unheard_peer(&mut self, now: Instant, stronger: bool) {
        let Some(peer) = &self.peer else { return };
        let wait = peer.config().asymmetry_wait;
        let since = *self.master.advert_since.get_or_insert(now);
        self.foreign |= stronger && now >= since + wait;
    }

    pub(super) fn see(&mut self, epoch: Epoch) {
        self.seen = self.seen.max(epoch);
    }

    /// Rule 10: seen epochs are persisted too.
    fn persist_seen(&mut self, now: Instant) {
        let due = match self.disk.failed {
            Some(retry) if now >= retry => {
                self.disk.failed = Some(now + DISK_RETRY);
                true
            }
            Some(_) => false,
            None => self.seen > self.disk.asked,
        };
        if due {
            self.disk.asked = self.seen;
            self.push(Effect::PersistEpoch(self.seen));
        }
    }

    /// Rule 2, and its like for MASTER_SOLO: a node that did not run lets nothing leave until it
    /// has looked around.
    fn renew_lease(&mut self, now: Instant, tick: bool) {
        let lease = match (self.state, &self.peer) {
            (State::Master, Some(peer)) => peer.lease().map_or(Lease::Expired, Lease::Until),
            (State::MasterSolo, None) => Lease::Unlimited,
            (State::MasterSolo, Some(_)) if self.woken.is_some() => Lease::Expired,
            (State::MasterSolo, Some(peer)) => match self.lease {
                Lease::Until(until) if !tick && until > now + peer.config().beat => self.lease,
                _ => Lease::Until(now + peer.config().lease_time()),
            },
            _ => Lease::Expired,
        };
        if lease != self.lease {
            self.lease = lease;
            self.push(Effect::SetLease(lease));
        }
    }

    fn beat_due(&self, now: Instant) -> bool {
        self.peer.is_some()
            && (now >= self.beat_at
                || self.last_beat.is_none_or(|last| self.beat(last.number, last.echo) != last))
    }

    fn beat(&self, number: u64, echo: Option<super::Echo>) -> Beat {
        let tell = match (self.state, self.master.told) {
            (State::Master, Some((boot, session))) if self.master.out => {
                Tell::OutOfSync(boot, session)
            }
            (State::Master, Some((boot, session))) => Tell::InSync(boot, session),
            _ => self.released,
        };
        Beat {
            boot: self.boot,
            number,
            state: self.state,
            epoch: self.epoch,
            seen: self.seen,
            claim: self.claim(),
            able: self.able(),
            carrier: self.carrier(),
            echo,
            session: self.replica.session,
            ready: self.replica.received && self.state.is_follower(),
            tell,
        }
    }

    fn send_beat(&mut self, now: Instant) {
        let follows = self.state.is_follower();
        let decided = self.promotion.is_some() && !self.state.is_master();
        let last_echo = self.last_beat.and_then(|beat| beat.echo);
        let Some(peer) = &mut self.peer else { return };
        let number = peer.number_beat(now);
        // an echo promises not to take over for T_dead: none once that is decided
        let echo = if decided { last_echo } else { peer.echo() };
        let config = peer.config();
        let interval = match peer.control() {
            // whoever of us lives must be heard within the grace
            Control::Closed(_) => config.grace / 4,
            // a follower answers each beat of its master; its own pace is for when they are lost
            _ if follows => config.beat * 5 / 4,
            _ => config.beat,
        };
        self.beat_at = now + interval;
        let beat = self.beat(number, echo);
        self.last_beat = Some(beat);
        self.push(Effect::SendBeat(beat));
    }
}
