//! The judge: from the facts that a [`Node`] holds to the next step, one at a time.
//!
//! Everything here reads and nothing writes. Each rule is a level ("the peer is silent", "we are
//! told"), asked again after every step and every input, so it does not matter which input made
//! it true. The numbers are those of docs/ARCHITECTURE.md §4.

use std::time::{Duration, Instant};

use super::effects::Strays;
use super::message::{Beat, BootId, Session, Tell};
use super::peer::Peer;
use super::role::{Cause, State};
use super::segment::{Reach, Segment};
use super::silence::{ASK_AGAIN, Ballot, Silence};
use super::{Engine, Fence, Node, Stage};
use crate::config::UnsyncedTakeover;

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Change the state; not into a reign.
    Change(State, Cause),
    /// Begin a promotion: a new epoch, persisted, prepared, then the crown.
    Promote(Cause),
    /// The epoch is persisted: have the engine raised to it, and the addresses on this host.
    Prepare,
    /// All is prepared: become master.
    Crown,
    /// Ask the witness whether this node may go on by the silence that began then.
    Ask(Instant),
    /// The promotion must not go on.
    GiveUp(Cause),
    /// Follow the master's other epoch, in JOIN.
    Follow,
    /// As a replica: end the session, in the state we are in.
    EndSession,
    /// As a master: tell the replica that it is in sync.
    Tell(BootId, Session),
    /// As a master: ask the replica to end its session.
    TellOutOfSync,
}

impl Node {
    /// The next step, `None` when there is nothing to do before the next input.
    pub(super) fn next_step(&self, now: Instant) -> Option<Step> {
        if self.stopping && !matches!(self.state, State::Boot | State::Handover) {
            // only who is replaced at once has anywhere to send what comes for it
            let to = if self.may_resign(now) { State::Handover } else { State::Boot };
            return Some(Step::Change(to, Cause::Operator));
        }
        if let Some(step) = self.promotion_rule(now) {
            return Some(step);
        }
        if self.promotion.is_some() && self.state != State::MasterSolo {
            return None;
        }
        match self.state {
            State::Boot => self.boot_rule(now),
            State::Join | State::Catchup => self.unsynced_rule(now),
            State::Synced => self.synced_rule(now),
            State::MasterSolo => self.reign_rule(now).or_else(|| self.solo_rule(now)),
            State::Master => match self.reign_rule(now) {
                // between two masters nothing is decided but who yields
                None if self.live_master(now).is_some() => None,
                None => self.master_rule(now),
                step => step,
            },
            State::Fenced => self.fenced_rule(now),
            State::Handover => self.handover_rule(now),
        }
    }

    /// Could this node be master now?
    pub(super) fn able(&self, now: Instant) -> bool {
        self.engine == Engine::Up
            && !self.stopping
            && self.foreign.is_none()
            && (self.peer.is_none() || self.reach(now) != Reach::Lost)
            && (self.promotion.is_some() || self.has_epoch())
    }

    /// There is an epoch to use, and no disk that must be waited for in vain.
    fn has_epoch(&self) -> bool {
        let next = self.seen.next(self.side);
        next.is_some_and(|next| next <= self.disk.persisted || self.disk.works())
    }

    /// Every interface of a VIP has carrier.
    pub(super) fn carrier(&self) -> bool {
        self.segments.iter().all(|segment| segment.carrier)
    }

    fn live(&self, now: Instant) -> Option<&Beat> {
        self.peer.as_ref()?.live(now)
    }

    fn live_master(&self, now: Instant) -> Option<&Beat> {
        self.live(now).filter(|beat| beat.state.is_master())
    }

    /// Rule 6: persisted, prepared, crowned; and what ends it before.
    fn promotion_rule(&self, now: Instant) -> Option<Step> {
        let promotion = self.promotion?;
        let persisted = self.disk.persisted >= promotion.epoch;
        if !persisted && !self.disk.works() {
            return Some(Step::GiveUp(Cause::DiskFailed));
        }
        if !self.able(now) {
            return Some(Step::GiveUp(Cause::NotAble));
        }
        let from_synced = self.state == State::Synced;
        let raised = self.state == State::MasterSolo;
        if !from_synced && !raised && self.live_master(now).is_some() {
            return Some(Step::GiveUp(Cause::MasterHeard));
        }
        if from_synced && promotion.cause == Cause::Silent && self.live_master(now).is_some() {
            return Some(Step::GiveUp(Cause::PeerHeard));
        }
        let alone = matches!(promotion.cause, Cause::Unsynced | Cause::Alone);
        if alone && (self.live(now).is_some() || self.is_blocked(now)) {
            return Some(Step::GiveUp(Cause::PeerHeard));
        }
        match promotion.stage {
            Stage::Persisting => persisted.then_some(Step::Prepare),
            Stage::Preparing { engine, address } => (engine && address).then_some(Step::Crown),
        }
    }

    /// A promotion that nothing proves to be right: not too often, and with the witness's leave.
    fn unproven(&self, now: Instant, since: Instant, cause: Cause) -> Option<Step> {
        if self.damper.until(now).is_some_and(|at| now < at) {
            return None;
        }
        match self.ballot(now, since) {
            Ballot::Granted => Some(Step::Promote(cause)),
            Ballot::Ask => Some(Step::Ask(since)),
            Ballot::Pending | Ballot::Refused => None,
        }
    }

    /// Since when this node could have heard its peer, and has not.
    fn quiet_since(&self) -> Instant {
        let heard = self.peer.as_ref().and_then(Peer::heard_at);
        let carrier = self.segments.iter().map(Segment::carrier_at);
        carrier.chain(heard).chain([self.since]).max().unwrap_or(self.since)
    }

    /// Rule 8.
    fn boot_rule(&self, now: Instant) -> Option<Step> {
        let Some(peer) = &self.peer else {
            let single = self.able(now) && !self.stopping;
            return single.then_some(Step::Promote(Cause::Single));
        };
        if self.stopping {
            return None;
        }
        if self.live_master(now).is_some() {
            return Some(Step::Change(State::Join, Cause::MasterHeard));
        }
        if !self.able(now) {
            return None;
        }
        let config = peer.config();
        let Some(beat) = peer.live(now) else {
            let quiet = self.quiet_since();
            let solo = self.legacy.is_some_and(|legacy| legacy.solo);
            // its own successor, where nobody else was: long enough to hear whoever came since
            let wait = if solo { config.dead_time() * 4 } else { config.boot_wait };
            let due = now >= quiet + wait.max(config.dead_time());
            let goes_on = due && self.reached(now) && !self.is_blocked(now);
            return if goes_on { self.unproven(now, quiet, Cause::Alone) } else { None };
        };
        let waited = now >= self.since + config.engine_wait;
        // who hears us decides by the same two claims; who does not may be promoted alone, if able
        let agrees = peer.hears_us(now) || (!beat.able && waited);
        // a follower hears our BOOT: it takes over or comes to BOOT itself
        let masterless = matches!(beat.state, State::Boot | State::Fenced | State::Handover);
        let elects = masterless && agrees;
        let better = self.claim().beats(beat.claim);
        let wins = if beat.able { better && beat.state == State::Boot } else { better || waited };
        (elects && wins).then_some(Step::Promote(Cause::Elected))
    }

    /// JOIN and CATCHUP: follow the master there is, rule 4; rule 5's last sentence.
    fn unsynced_rule(&self, now: Instant) -> Option<Step> {
        let peer = self.peer.as_ref()?;
        let Some(beat) = peer.live(now) else {
            let heard = peer.heard_at().unwrap_or(self.since);
            let carrier = self.segments.iter().map(Segment::carrier_at);
            let silent = carrier.chain([heard]).max().unwrap_or(heard);
            let dead = peer.config().dead_time();
            let wait = match peer.config().unsynced_takeover {
                UnsyncedTakeover::Never => return None,
                UnsyncedTakeover::Now => dead,
                UnsyncedTakeover::After(wait) => wait.max(dead),
            };
            let due = now >= silent + wait && self.able(now);
            let goes_on = due && self.reached(now) && !self.is_blocked(now);
            return match peer.closed_for_good() {
                true if goes_on => Some(Step::Promote(Cause::Unsynced)),
                false if goes_on => self.unproven(now, silent, Cause::Unsynced),
                _ => None,
            };
        };
        if !beat.state.is_master() {
            return Some(Step::Change(State::Boot, Cause::NoMaster));
        }
        let joined = self.state == State::Join;
        if beat.epoch != self.epoch {
            let raised = Step::Change(State::Join, Cause::EpochRaised);
            return Some(if joined { Step::Follow } else { raised });
        }
        let session = self.replica.session;
        if matches!(beat.tell, Tell::OutOfSync(boot, s) if boot == self.boot && s >= session) {
            return Some(Step::EndSession);
        }
        if joined {
            let up = self.replica.receiving;
            return up.then_some(Step::Change(State::Catchup, Cause::StreamUp));
        }
        if !self.replica.receiving {
            return Some(Step::Change(State::Join, Cause::StreamDown));
        }
        // the lease's mirror: the master heard us so lately that it cannot have given us up since
        let told = self.replica.received
            && self.lease_valid(now)
            && beat.state == State::Master
            && beat.tell == Tell::InSync(self.boot, session);
        told.then_some(Step::Change(State::Synced, Cause::ToldInSync))
    }

    /// Rule 5.
    fn synced_rule(&self, now: Instant) -> Option<Step> {
        if self.engine != Engine::Up {
            return Some(Step::Change(State::Join, Cause::EngineDied));
        }
        if self.replica.given_up {
            return Some(Step::Change(State::Catchup, Cause::Stalled));
        }
        let peer = self.peer.as_ref()?;
        let beat = peer.view()?;
        let told = beat.tell == Tell::InSync(self.boot, self.replica.session);
        let takeover =
            |cause, otherwise| Some(if self.able(now) { Step::Promote(cause) } else { otherwise });
        let boot = Step::Change(State::Boot, Cause::NoMaster);
        if self.replica.told_by != Some(beat.boot) {
            return takeover(Cause::Rebooted, boot);
        }
        if !beat.state.is_master() {
            return if told { takeover(Cause::Resigned, boot) } else { Some(boot) };
        }
        if beat.epoch != self.epoch {
            return Some(Step::Change(State::Join, Cause::EpochRaised));
        }
        if beat.state == State::MasterSolo || !told {
            return Some(Step::Change(State::Catchup, Cause::ToldOutOfSync));
        }
        if peer.closed_for_good() {
            return takeover(Cause::Closed, boot);
        }
        if peer.live(now).is_some() {
            return None;
        }
        self.synced_silence(now, peer.heard_at()?)
    }

    /// T4: the master is silent on every path.
    fn synced_silence(&self, now: Instant, heard: Instant) -> Option<Step> {
        match self.silence(now, self.backup_patience()) {
            Silence::Undecided => None,
            Silence::Filtered => Some(Step::Change(State::Join, Cause::NoBeats)),
            Silence::Isolated => Some(Step::Change(State::Fenced, Cause::Isolated)),
            Silence::Gone if !self.able(now) => Some(Step::Change(State::Join, Cause::NotAble)),
            Silence::Gone if self.ballot(now, heard) == Ballot::Refused => {
                Some(Step::Change(State::Fenced, Cause::Refused))
            }
            Silence::Gone => self.unproven(now, heard, Cause::Silent),
        }
    }

    /// MASTER and MASTER_SOLO: rule 9, and who else may end a reign.
    fn reign_rule(&self, now: Instant) -> Option<Step> {
        if self.foreign.is_some() {
            return Some(Step::Change(State::Fenced, Cause::ForeignMaster));
        }
        if self.unwitnessed && self.was_refused() {
            return Some(Step::Change(State::Fenced, Cause::Refused));
        }
        let rival = self.live_master(now)?;
        if rival.claim.beats(self.claim()) {
            return Some(Step::Change(State::Fenced, Cause::BetterClaim));
        }
        let peer = self.peer.as_ref()?;
        // nothing of ours is at stake, and it may not hear us at all
        if self.state == State::Master && !peer.hears_us(now) {
            return Some(Step::Change(State::Fenced, Cause::Unheard));
        }
        // it will never yield if it does not hear us; and only one of us can know that
        let since = peer.echo_heard_at().max(self.master.rival_since)?;
        let unheard = now >= since + peer.config().asymmetry_wait;
        unheard.then_some(Step::Change(State::Fenced, Cause::Unheard))
    }

    fn solo_rule(&self, now: Instant) -> Option<Step> {
        let peer = self.peer.as_ref()?;
        if let Engine::Down { since } = self.engine {
            let given_up = now >= since + peer.config().engine_wait;
            return given_up.then_some(Step::Change(State::Boot, Cause::EngineDied));
        }
        if self.promotion.is_some() {
            return None;
        }
        if self.seen > self.epoch && self.able(now) && self.live_master(now).is_none() {
            return Some(Step::Promote(Cause::EpochRaised));
        }
        // who cannot be reached has no time: the peer must be able to take over
        let hurry = self.leaving || self.reach(now) == Reach::Lost;
        let held = !hurry && self.master.hold_until.is_some_and(|until| now < until);
        let ready = self.follower_ready(now).is_some() && self.lease_valid(now);
        let in_time = self.master.caught_up && !self.master.late;
        (in_time && ready && !held).then_some(Step::Change(State::Master, Cause::CaughtUp))
    }

    /// Rules 3 and 4.
    fn master_rule(&self, now: Instant) -> Option<Step> {
        let peer = self.peer.as_ref()?;
        let solo = |cause| Some(Step::Change(State::MasterSolo, cause));
        if let Some(step) = self.segment_rule(now) {
            return Some(step);
        }
        if self.told_is_void() {
            return solo(if self.master.out { Cause::OutOfSync } else { Cause::PeerGone });
        }
        if self.engine != Engine::Up {
            // rule 7
            return match self.master.told {
                Some(_) => Some(Step::Change(State::Boot, Cause::EngineDied)),
                None => solo(Cause::OutOfSync),
            };
        }
        if peer.closed_for_good() {
            return solo(Cause::PeerGone);
        }
        if peer.live(now).is_none() {
            return self.master_silence(now);
        }
        let wait = peer.config().lease_wait;
        let unleased = self.master.lease_bad_since.is_some_and(|since| now >= since + wait);
        let failing = unleased || self.master.late || !self.master.caught_up;
        match self.master.told {
            Some(_) if failing && !self.master.out && !self.may_be_cut_off(now) => {
                Some(Step::TellOutOfSync)
            }
            Some(_) => None,
            None if failing => solo(Cause::OutOfSync),
            None => match self.follower_ready(now) {
                None => solo(Cause::OutOfSync),
                Some((boot, session)) => self.master.gated.then_some(Step::Tell(boot, session)),
            },
        }
    }

    /// The addresses cannot be reached here, and the peer, in sync, is reached there: hand over.
    fn segment_rule(&self, now: Instant) -> Option<Step> {
        if self.reach(now) != Reach::Lost || !self.may_resign(now) {
            return None;
        }
        let view = self.live(now)?;
        let boot = |cause| Some(Step::Change(State::Boot, cause));
        match view.reach {
            _ if !view.carrier => None,
            Reach::Whole if self.carrier() => boot(Cause::SegmentLost),
            Reach::Whole | Reach::Unknown if !self.carrier() => boot(Cause::CarrierLost),
            _ => None,
        }
    }

    /// The stream may be late because this node's segment is dying, and then it must be handed over
    /// in sync: a moment's patience, in which every answer is held.
    fn may_be_cut_off(&self, now: Instant) -> bool {
        let Some(peer) = &self.peer else { return false };
        let time = peer.config().dead_time() * 2;
        self.segments.iter().any(|segment| {
            let late = segment.path.is_some_and(|path| peer.is_late_on(now, path));
            segment.is_undecided(now, time) || (late && segment.has_targets() && !segment.doubts())
        })
    }

    /// Rule 3c: the replica is silent on every path.
    fn master_silence(&self, now: Instant) -> Option<Step> {
        let peer = self.peer.as_ref()?;
        let solo = Some(Step::Change(State::MasterSolo, Cause::Silent));
        if self.master.told.is_none() {
            return solo; // nobody can take over: nothing to find out
        }
        let fenced = |cause| Some(Step::Change(State::Fenced, cause));
        let heard = peer.heard_at()?;
        match self.silence(now, peer.config().hung_time()) {
            Silence::Isolated => fenced(Cause::Isolated),
            Silence::Undecided => None,
            Silence::Filtered if now < heard + peer.config().hung_time() => None,
            Silence::Gone | Silence::Filtered => match self.ballot(now, heard) {
                Ballot::Granted => solo,
                Ballot::Ask => Some(Step::Ask(heard)),
                Ballot::Pending => None,
                Ballot::Refused => fenced(Cause::Refused),
            },
        }
    }

    /// HANDOVER: clients' commands go to whoever is master now.
    fn handover_rule(&self, now: Instant) -> Option<Step> {
        let beat = self.live_master(now)?;
        (beat.epoch != self.epoch).then_some(Step::Follow)
    }

    /// What becomes of segments to the addresses that belong to no connection of this node.
    pub(super) fn strays(&self, now: Instant) -> Strays {
        if self.state == State::Handover {
            return Strays::Dropped;
        }
        let reigns = self.state.is_master() || self.promotion.is_some();
        let hands_over = |peer: &Peer| {
            // a lost beat or two must not break what it still finishes
            let heard = peer.heard_at().is_some_and(|at| now < at + peer.config().hung_time());
            let view = peer.view().filter(|_| heard && !peer.closed_for_good());
            view.is_some_and(|beat| beat.state == State::Handover)
        };
        match self.peer.as_ref().is_some_and(hands_over) {
            true if reigns => Strays::Relayed,
            _ => Strays::Refused,
        }
    }

    fn fenced_rule(&self, now: Instant) -> Option<Step> {
        if self.live_master(now).is_some() {
            return Some(Step::Change(State::Join, Cause::MasterHeard));
        }
        // back when somebody is heard again, and not before
        let fenced = match self.fence {
            _ if self.foreign.is_some() || !self.carrier() => true,
            _ if self.live(now).is_some() => false,
            Fence::None => false,
            Fence::Isolated => !self.reached(now),
            Fence::Refused if now < self.since + ASK_AGAIN => true,
            Fence::Refused => match self.ballot(now, self.since) {
                Ballot::Ask => return Some(Step::Ask(self.since)),
                ballot => ballot != Ballot::Granted,
            },
        };
        (!fenced).then_some(Step::Change(State::Boot, Cause::Cleared))
    }

    /// The replica's session, if its store is complete in our epoch.
    fn follower_ready(&self, now: Instant) -> Option<(BootId, Session)> {
        let beat = self.live(now)?;
        let ready = beat.state == State::Catchup && beat.ready && beat.epoch == self.epoch;
        ready.then_some((beat.boot, beat.session))
    }

    /// The replica shows that nothing we told it holds any more.
    pub(super) fn told_is_void(&self) -> bool {
        let (Some((boot, session)), Some(peer)) = (self.master.told, &self.peer) else {
            return false;
        };
        peer.view().is_some_and(|beat| beat.boot != boot || beat.session > session)
    }

    /// The peer is in sync by our word, knows it, and can serve.
    pub(super) fn may_resign(&self, now: Instant) -> bool {
        let in_sync = self.state == State::Master && self.master.told.is_some() && !self.master.out;
        let takes = |beat: &Beat| beat.state == State::Synced && beat.able;
        let fresh = self.lease_valid(now);
        in_sync && fresh && !self.told_is_void() && self.live(now).is_some_and(takes)
    }

    /// Rule 2.
    pub(super) fn lease_valid(&self, now: Instant) -> bool {
        let lease = self.peer.as_ref().and_then(Peer::lease);
        lease.is_some_and(|until| now < until)
    }

    /// When a rule that needs precision may fire by time alone; slower ones are asked again with
    /// every beat.
    pub(super) fn next_deadline(&self, now: Instant) -> Option<Instant> {
        let peer = self.peer.as_ref()?;
        let lease = peer.lease().filter(|until| *until > now && self.state == State::Master);
        let wait: Duration = peer.config().lease_wait;
        let unleased = self.master.lease_bad_since.map(|since| since + wait);
        let unleased = unleased.filter(|at| *at > now);
        let dead = peer.config().dead_time();
        let lost = self.segments.iter().filter_map(|segment| segment.lost_at(dead));
        let lost = lost.flat_map(|at| [at, at + dead]).filter(|at| *at > now).min();
        let damped = self.damper.until(now).filter(|at| *at > now);
        let patience =
            [self.backup_patience(), dead + self.backup_patience() - peer.config().hung_time()];
        let patient = peer.heard_at().into_iter().flat_map(|at| patience.map(|time| at + time));
        let patient = patient.filter(|at| *at > now).min();
        let times = [peer.next_change(now), lease, unleased, lost, damped, patient];
        times.into_iter().flatten().min()
    }
}
