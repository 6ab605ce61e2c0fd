//! A step becomes a change of the node and effects, in the order of docs/ARCHITECTURE.md §4 rule 6;
//! and what follows every input: steps until none is left, the lease, the beat.

use std::time::{Duration, Instant};

use super::claim::{Epoch, Lineage};
use super::effects::{Effect, Event, Lease, Legacy, Target};
use super::message::{Beat, Tell};
use super::peer::{Control, Peer};
use super::role::{Cause, State, refused};
use super::rules::Step;
use super::{DISK_HUNG, DISK_RETRY, Fence, MasterView, Node, Promotion, STEPS_MAX, Stage};

/// A foreign router that answered for an address is believed for so long.
const CLAIM: Duration = Duration::from_millis(500);
/// After a foreign router fell silent (by its own interval): the addresses are free.
const FOREIGN_QUIET: Duration = Duration::from_millis(100);
/// Adverts of a stronger router come this far apart at most, for one alarm.
const FOREIGN_EPISODE: Duration = Duration::from_secs(10);

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
        self.probe(now);
        self.steer_strays(now);
        self.register(now);
        self.remember(now);
        let tick = self.beat_due(now);
        self.renew_lease(now, tick);
        if tick {
            self.send_beat(now);
        }
    }

    fn take(&mut self, now: Instant, step: Step) {
        match step {
            Step::Change(to, cause) => self.change(now, to, cause),
            Step::Promote(cause) => self.promote(now, cause),
            Step::Prepare => {
                let there = self.address;
                if let Some(promotion) = &mut self.promotion {
                    promotion.stage = Stage::Preparing { engine: false, address: there };
                    let epoch = promotion.epoch;
                    self.push(Effect::PrepareEngine(epoch));
                    if !there {
                        self.push(Effect::Address(true));
                    }
                }
            }
            Step::Ask(since) => self.ask(now, since, false),
            Step::Crown => self.crown(now),
            Step::GiveUp(cause) => {
                self.give_up_promotion(cause);
                if self.state == State::Synced && cause != Cause::PeerHeard {
                    self.change(now, State::Boot, Cause::NoMaster);
                }
            }
            Step::Follow => self.follow(),
            Step::EndSession => self.replica.end_session(),
            Step::Tell(boot, session) => {
                self.master.told = Some((boot, session));
                // it has acked whatever was answered alone
                self.alone.shared();
            }
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
                if cause == Cause::Silent {
                    self.lineage = self.lineage.forked(self.epoch);
                    self.unwitnessed = !self.was_granted();
                    if self.unwitnessed {
                        self.registered = 0;
                    }
                }
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
                self.foreign = None;
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
        self.fence = match cause {
            Cause::Isolated => Fence::Isolated,
            Cause::Refused => Fence::Refused,
            _ => Fence::None,
        };
        if from.is_master() && !to.is_master() {
            self.released = match (from, self.master.told) {
                (State::Master, Some((boot, session))) => Tell::InSync(boot, session),
                _ => Tell::Nothing,
            };
            self.give_up_promotion(cause);
            self.master = MasterView { gate: self.master.gate, ..MasterView::default() };
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
        self.steer_strays(now);
        self.push(Effect::Answer(false));
        for instance in &mut self.vrrp {
            instance.resign(now, cause == Cause::Operator);
        }
        self.drain_vrrp(now);
        self.leave_address();
    }

    fn steer_strays(&mut self, now: Instant) {
        let strays = self.strays(now);
        if std::mem::replace(&mut self.strays, strays) != strays {
            self.push(Effect::Strays(strays));
        }
    }

    /// The addresses go last: the connections on them are closed first.
    fn leave_address(&mut self) {
        if !self.vrrp.is_empty() && self.state != State::Handover {
            self.push(Effect::Address(false));
        }
    }

    fn set_role(&mut self) {
        self.push(Effect::SetRole { state: self.state, epoch: self.epoch });
    }

    /// JOIN, HANDOVER: follow the master that is heard.
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
            // until the next master is heard nothing can be forwarded, and no client is sent away
            State::Handover if self.epoch.is_of(self.side) => Target::Here(self.epoch),
            State::Handover => Target::Peer(self.epoch),
            State::Boot | State::Fenced => Target::Nobody,
        }
    }

    fn promote(&mut self, now: Instant, cause: Cause) {
        let Some(epoch) = self.seen.next(self.side) else { return };
        self.seen = epoch;
        self.promotion = Some(Promotion { epoch, cause, stage: Stage::Persisting });
        self.push(Effect::Event(Event::Promoting { epoch, cause }));
        self.steer_strays(now); // before the first packet comes here
        if !cause.is_proof() {
            self.damper.count(now);
            if let Some(at) = self.damper.until(now) {
                let pause = at.saturating_duration_since(now);
                self.push(Effect::Event(Event::Damped(pause)));
            }
        }
    }

    pub(super) fn give_up_promotion(&mut self, cause: Cause) {
        if let Some(promotion) = self.promotion.take() {
            let epoch = promotion.epoch;
            self.push(Effect::Event(Event::PromotionFailed { epoch, cause }));
            if !self.state.is_master() && promotion.stage != Stage::Persisting {
                self.leave_address();
            }
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
            lineage if cause.is_proof() => lineage.continued(epoch),
            lineage => lineage.forked(epoch),
        };
        self.legacy = None;
        if cause.is_proof() || !self.was_granted() {
            self.registered = 0;
        }
        self.unwitnessed = false;
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
        let quiet = |since: &Instant| now < *since + FOREIGN_QUIET;
        if self.foreign.is_some() && self.vrrp.iter().any(|one| one.active_router().is_some()) {
            self.foreign = Some(now);
        }
        self.foreign = self.foreign.filter(quiet);
        self.foreign_adverts = self.foreign_adverts.filter(|since| now < *since + FOREIGN_EPISODE);
        self.watch_disk(now);
        self.observe_segments(now);
        let Some(peer) = &self.peer else { return };
        let heard = peer.live(now).is_some();
        let rival = peer.live(now).is_some_and(|beat| beat.state.is_master());
        // an old beat may have waited on a connection through a whole division
        let fresh = peer.live(now).filter(|_| self.lease_valid(now));
        let shares = fresh.is_some_and(|beat| beat.ready && beat.epoch == self.epoch);
        let woken = self.woken.filter(|w| now < w.until && peer.echoed() < w.number);
        self.woken = woken;
        if heard != self.heard_said {
            self.heard_said = heard;
            self.push(Effect::Event(Event::PeerHeard(heard)));
        }
        if !self.state.is_master() {
            return;
        }
        if shares {
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

    fn observe_segments(&mut self, now: Instant) {
        let Some(peer) = &self.peer else { return };
        let missed = peer.missed_two(now);
        for segment in &mut self.segments {
            let proved = segment.path.map_or(!missed, |path| peer.proves(now, path));
            segment.observe(now, !proved);
        }
        let peers = peer.live(now).map(|beat| beat.reach);
        let reach = self.reach(now);
        if reach != self.reach_said {
            self.reach_said = reach;
            self.push(Effect::Event(Event::Reach(reach)));
        }
        if let Some(reach) = peers.filter(|reach| *reach != self.peer_reach_said) {
            self.peer_reach_said = reach;
            self.push(Effect::Event(Event::PeerReach(reach)));
        }
        let waits = matches!(self.state, State::Boot | State::Join | State::Catchup);
        let blocked = waits && self.is_blocked(now);
        if blocked != self.blocked_said {
            self.blocked_said = blocked;
            self.push(Effect::Event(Event::Blocked(blocked)));
        }
    }

    /// Asks on segments in doubt.
    fn probe(&mut self, now: Instant) {
        let Some(peer) = &self.peer else { return };
        let (beat, dead) = (peer.config().beat, peer.config().dead_time());
        for instance in 0..self.segments.len() {
            if self.segments[instance].take_probe(now, beat, dead) {
                self.push(Effect::Probe { instance });
            }
        }
    }

    /// What the next guardian on this store must know.
    fn remember(&mut self, now: Instant) {
        let alone = self.peer(now).is_none();
        let legacy = Legacy {
            lineage: self.lineage,
            alone: self.alone.level(),
            solo: self.state == State::MasterSolo && alone,
        };
        // before the engine is up nothing is known of the store
        let known = self.engine == super::Engine::Up || self.lineage != Lineage::Empty;
        if known && self.remembered != Some(legacy) {
            self.remembered = Some(legacy);
            self.push(Effect::Remember(legacy));
        }
    }

    fn watch_disk(&mut self, now: Instant) {
        let worked = self.disk.works();
        self.disk.hung |= self.disk.asked_at.is_some_and(|at| now >= at + DISK_HUNG);
        self.say_disk(worked);
    }

    pub(super) fn say_disk(&mut self, worked: bool) {
        match (worked, self.disk.works()) {
            (true, false) => self.push(Effect::Event(Event::DiskFailed)),
            (false, true) => self.push(Effect::Event(Event::DiskRecovered)),
            _ => {}
        }
    }

    fn drain_vrrp(&mut self, now: Instant) {
        for index in 0..self.vrrp.len() {
            while let Some(output) = self.vrrp[index].poll_output() {
                match &output {
                    vrrp::Output::Superseded { .. } => self.superseded(now, index),
                    vrrp::Output::PeerContact { source, priority } => {
                        self.segments[index].handle_peer_advert(now);
                        let config = self.vrrp[index].config();
                        let stronger = (*priority, *source) > (config.priority, config.source);
                        self.advert_of_peer(now, index, stronger);
                    }
                    _ => {}
                }
                self.push(Effect::Vrrp { instance: index, output });
            }
        }
    }

    /// A foreign router outranks us, by what it says. It is believed when it answers for an address
    /// (it is asked) and no peer is there to say otherwise; else it is somebody's noise.
    fn superseded(&mut self, now: Instant, index: usize) {
        let since = now.checked_sub(CLAIM).unwrap_or(now);
        let answers = self.segments[index].claimed_after(since);
        if answers && self.peer(now).is_none() {
            self.foreign = Some(now);
            return;
        }
        if self.foreign_adverts.replace(now).is_none() {
            self.push(Effect::Event(Event::ForeignAdverts));
        }
        if self.peer(now).is_none() {
            self.push(Effect::Probe { instance: index });
        }
    }

    /// No beat comes through, and yet the peer is master on this segment, and its host is there
    /// (so these are not a dead one's adverts, sent again by somebody): RFC 9568's order decides,
    /// as between strangers; after a while, in which a beat may come first.
    fn advert_of_peer(&mut self, now: Instant, index: usize, stronger: bool) {
        let Some(peer) = &self.peer else { return };
        if !self.state.is_master() || peer.live(now).is_some() {
            return;
        }
        let wait = peer.config().asymmetry_wait;
        let lately = now.checked_sub(wait).unwrap_or(now);
        if !self.segments[index].peer_host_after(lately) {
            self.master.advert_since = None;
            return;
        }
        let since = *self.master.advert_since.get_or_insert(now);
        if stronger && now >= since + wait {
            self.foreign = Some(now);
        }
    }

    pub(super) fn see(&mut self, epoch: Epoch) {
        self.seen = self.seen.max(epoch);
    }

    /// Rule 10: the state file is kept ahead of the highest epoch known, so that no promotion waits
    /// for it; without a reserve it holds that epoch at least.
    fn persist_seen(&mut self, now: Instant) {
        let due = match self.disk.failed {
            Some(retry) if now >= retry => {
                self.disk.failed = Some(now + DISK_RETRY);
                true
            }
            Some(_) => false,
            None => self.seen.wants_reserve(self.disk.asked),
        };
        if due {
            let wanted = self.seen.reserve();
            self.disk.asked = wanted;
            self.disk.asked_at.get_or_insert(now);
            self.push(Effect::PersistEpoch(wanted));
        }
    }

    /// Rule 2, and its like for MASTER_SOLO: a node that did not run lets nothing leave until it
    /// has looked around.
    fn renew_lease(&mut self, now: Instant, tick: bool) {
        let lease = match (self.state, &self.peer) {
            (State::Master, Some(peer)) => peer.lease().map_or(Lease::Expired, Lease::Until),
            (State::MasterSolo, None) => Lease::Unlimited,
            (State::MasterSolo, Some(_)) if self.woken.is_some() => Lease::Expired,
            // nothing is answered beside another master: one of the two yields
            (State::MasterSolo, Some(peer))
                if peer.live(now).is_some_and(|beat| beat.state.is_master()) =>
            {
                Lease::Expired
            }
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
                || self.last_beat.is_none_or(|last| self.beat(now, last.number, last.echo) != last))
    }

    fn beat(&self, now: Instant, number: u64, echo: Option<super::Echo>) -> Beat {
        let peer = self.peer.as_ref();
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
            able: self.able(now),
            disk: self.disk.works(),
            carrier: self.carrier(),
            reach: self.reach(now),
            hears: peer.map(|peer| peer.hears(now)).unwrap_or_default(),
            asks: peer.is_some_and(|peer| {
                peer.missed_two(now) || matches!(peer.control(), Control::Closed(_))
            }),
            echo,
            session: self.replica.session,
            ready: self.replica.received && self.state.is_follower(),
            tell,
            generation: self.generation,
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
            // whoever of us lives must be heard soon
            Control::Closed(at) if now < at + config.dead_time() => config.ask,
            // a follower answers each beat of its master; its own pace is for when they are lost
            _ if follows => config.beat * 5 / 4,
            _ => config.beat,
        };
        self.beat_at = now + interval;
        let beat = self.beat(now, number, echo);
        self.last_beat = Some(beat);
        self.push(Effect::SendBeat(beat));
    }
}
