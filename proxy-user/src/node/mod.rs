//! The role machine: the only owner of role and epoch.
//!
//! What it is: two nodes' worth of rules (docs/ARCHITECTURE.md §4) without a socket, a clock, a
//! thread or a log line. What it is not: a performer. `guardian` feeds it and performs its effects;
//! `tests/sim` does the same with two of them and a hostile world.
//!
//! | file | what |
//! |---|---|
//! | `role.rs` | the states, and every change between them that is allowed, as data |
//! | `claim.rs` | epochs, and who has the better claim to be master |
//! | `message.rs` | the beat: what one guardian says to the other |
//! | `peer.rs` | what is known of the other node |
//! | `rules.rs` | facts in, the next step out: the judge |
//! | `perform.rs` | a step becomes effects, in order |
//! | `effects.rs` | inputs, effects and events as data |

mod claim;
mod effects;
mod message;
mod peer;
mod perform;
mod role;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

pub use claim::{Claim, Epoch, EpochTooLarge, Lineage};
pub use effects::{
    Command, ControlEvent, Effect, EngineEvent, Event, Lease, NodeConfig, PeerConfig, SyncEvent,
    Target,
};
pub use message::{
    Beat, BootId, Echo, MESSAGE_MAX, MessageError, PeerMessage, Session, Tell, WIRE_VERSION,
};
pub use role::{Cause, Refused, State, TRANSITIONS, refused};

use peer::{Heard, Peer};

/// Steps that one input can cause, at most: BOOT to JOIN and the like. A bound, never reached.
const STEPS_MAX: usize = 8;
/// After a failed write of the state file: when to try again.
const DISK_RETRY: Duration = Duration::from_millis(250);

/// A node of a pair, or a single one.
///
/// Calling order, by one thread:
/// 1. [`Node::new`], then [`Node::start`] once.
/// 2. For each thing that happened, one `handle_*`. **All that has arrived comes before**
///    [`Node::handle_timeout`], above all after a pause: a late thread must not mistake its own
///    lateness for the peer's silence. `now` never goes back and runs through pauses
///    (CLOCK_BOOTTIME), and is read after the input was.
/// 3. After each, [`Node::poll_effect`] until `None`, each performed before the next. Effects that
///    end in an input (`PersistEpoch`, `PrepareEngine`, `Gate`) are started, not waited for.
/// 4. [`Node::poll_timeout`] says when to call [`Node::handle_timeout`].
#[derive(Debug)]
pub struct Node {
    side: crate::config::Side,
    boot: BootId,
    state: State,
    /// Of our reign, or of the reign we follow or followed.
    epoch: Epoch,
    /// Highest known, ours in preparation included.
    seen: Epoch,
    lineage: Lineage,
    led: bool,
    disk: Disk,
    engine: Engine,
    /// Per VRRP instance.
    carriers: Vec<bool>,
    stopping: bool,
    resigning: bool,
    promotion: Option<Promotion>,
    master: MasterView,
    replica: ReplicaView,
    peer: Option<Peer>,
    /// What our last reign left behind: said in beats until the next role.
    released: Tell,
    vrrp: Vec<vrrp::Instance>,
    /// A foreign router outranks us and has not fallen silent.
    foreign: bool,
    /// When the present state was entered, our own stalls taken out.
    since: Instant,
    last_now: Option<Instant>,
    /// In MASTER_SOLO after a stall: no lease until then, or until the peer echoes a beat of
    /// after the stall.
    woken: Option<Woken>,
    beat_at: Instant,
    last_beat: Option<Beat>,
    lease: Lease,
    heard_said: bool,
    effects: VecDeque<Effect>,
}

#[derive(Debug)]
struct Disk {
    /// The state file holds at least this.
    persisted: Epoch,
    /// Asked for.
    asked: Epoch,
    failed: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Engine {
    Up,
    Down { since: Instant },
}

#[derive(Debug, Clone, Copy)]
struct Promotion {
    epoch: Epoch,
    cause: Cause,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Persisting,
    Preparing,
    Prepared,
}

#[derive(Debug, Clone, Copy)]
struct Woken {
    until: Instant,
    /// A beat with this number or a later one, echoed, ends it.
    number: u64,
}

/// What a master knows of its replica.
#[derive(Debug, Default)]
struct MasterView {
    caught_up: bool,
    late: bool,
    gate: u64,
    gated: bool,
    /// It may believe that it is in sync, in this session.
    told: Option<(BootId, Session)>,
    /// It was asked to end that session.
    out: bool,
    hold_until: Option<Instant>,
    lease_bad_since: Option<Instant>,
    /// Another master is heard, since then.
    rival_since: Option<Instant>,
    /// Adverts of the peer are heard, but no beat, since then.
    advert_since: Option<Instant>,
}

/// What a replica knows of its own sync.
#[derive(Debug, Default)]
struct ReplicaView {
    session: Session,
    /// The stream of the followed epoch is up.
    receiving: bool,
    /// Its full sync is applied.
    received: bool,
    /// Who told us that we are in sync.
    told_by: Option<BootId>,
    /// We did not run for `T_dead`: the master may have gone solo without our word (rule 3c).
    given_up: bool,
}

impl ReplicaView {
    const fn end_session(&mut self) {
        self.session = Session(self.session.0 + 1);
        self.told_by = None;
        self.given_up = false;
    }
}

impl Node {
    /// A node in BOOT whose engine is down. `vrrp`: one coupled instance per VIP group.
    #[must_use]
    pub fn new(now: Instant, config: NodeConfig, vrrp: Vec<vrrp::Instance>) -> Self {
        Self {
            side: config.side,
            boot: config.boot,
            state: State::Boot,
            epoch: Epoch::NONE,
            seen: config.persisted,
            lineage: Lineage::Empty,
            led: false,
            disk: Disk { persisted: config.persisted, asked: config.persisted, failed: None },
            engine: Engine::Down { since: now },
            carriers: vec![true; vrrp.len()],
            stopping: false,
            resigning: false,
            promotion: None,
            master: MasterView::default(),
            replica: ReplicaView { session: Session(1), ..ReplicaView::default() },
            peer: config.peer.map(Peer::new),
            released: Tell::Nothing,
            vrrp,
            foreign: false,
            since: now,
            last_now: None,
            woken: None,
            beat_at: now,
            last_beat: None,
            lease: Lease::Expired,
            heard_said: false,
            effects: VecDeque::new(),
        }
    }

    /// The first call: role word, no lease, no answer, VRRP in Backup, the first beat.
    pub fn start(&mut self, now: Instant) {
        self.push(Effect::SetRole { state: self.state, epoch: self.epoch });
        self.push(Effect::SetLease(Lease::Expired));
        self.push(Effect::Answer(false));
        self.push(Effect::EngineTarget(Target::Nobody));
        for instance in &mut self.vrrp {
            instance.startup(now);
        }
        self.finish(now);
    }

    /// Present state.
    #[must_use]
    pub const fn state(&self) -> State {
        self.state
    }

    /// The reign of this node, or the one that it follows.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// The highest epoch that this node knows of.
    #[must_use]
    pub const fn seen(&self) -> Epoch {
        self.seen
    }

    /// Its claim to be master.
    #[must_use]
    pub const fn claim(&self) -> Claim {
        Claim { lineage: self.lineage, led: self.led, side: self.side }
    }

    /// The peer's newest beat, if it was heard within `T_dead`.
    #[must_use]
    pub fn peer(&self, now: Instant) -> Option<&Beat> {
        self.peer.as_ref()?.live(now)
    }

    /// The virtual routers, for their counters.
    #[must_use]
    pub fn vrrp(&self) -> &[vrrp::Instance] {
        &self.vrrp
    }

    /// A beat arrived on any path, the control connection included; paths are alike here.
    pub fn handle_beat(&mut self, now: Instant, beat: &Beat) {
        self.wake(now);
        let Some(peer) = &mut self.peer else { return };
        if beat.claim.side == self.side || beat.boot == self.boot {
            return self.finish(now); // our own beat, reflected, or a pair with one side
        }
        let heard = peer.hear(now, self.boot, beat);
        if heard != Heard::Old {
            self.see(beat.seen.max(beat.epoch));
            if heard == Heard::NewBoot {
                self.push(Effect::Event(Event::PeerBoot(beat.boot)));
                self.beat_at = now; // the sooner it can echo, the sooner it is believed
            } else if beat.state.is_master() && self.state.is_follower() {
                self.beat_at = now; // an echo at once makes the master's lease long
            }
        }
        self.finish(now);
    }

    /// Something happened to the control connection.
    pub fn handle_control(&mut self, now: Instant, event: ControlEvent) {
        self.wake(now);
        if let Some(peer) = &mut self.peer {
            peer.handle_control(now, event);
            self.beat_at = now; // on both sides: whoever lives says so within the grace
        }
        self.finish(now);
    }

    /// A message arrived on the control connection.
    pub fn handle_message(&mut self, now: Instant, message: &PeerMessage) {
        match message {
            PeerMessage::Beat(beat) => self.handle_beat(now, beat),
            PeerMessage::Bye => {
                self.wake(now);
                if let Some(peer) = &mut self.peer {
                    peer.handle_bye();
                }
                self.finish(now);
            }
        }
    }

    /// Something happened to the engine.
    pub fn handle_engine(&mut self, now: Instant, event: EngineEvent) {
        self.wake(now);
        match event {
            EngineEvent::Up { fresh, data_epoch } => self.engine_up(now, fresh, data_epoch),
            EngineEvent::Died => self.engine_died(now),
            EngineEvent::Prepared(epoch) => {
                if let Some(promotion) = &mut self.promotion
                    && promotion.epoch == epoch
                {
                    promotion.stage = Stage::Prepared;
                }
            }
            EngineEvent::Sync(event) => self.synced(event),
        }
        self.finish(now);
    }

    /// The interface of VRRP instance `instance` gained or lost carrier.
    pub fn handle_carrier(&mut self, now: Instant, instance: usize, up: bool) {
        self.wake(now);
        if let Some(carrier) = self.carriers.get_mut(instance) {
            *carrier = up;
        }
        self.finish(now);
    }

    /// The state file holds at least `epoch`, or (`ok` false) could not be written.
    pub fn handle_epoch_persisted(&mut self, now: Instant, epoch: Epoch, ok: bool) {
        self.wake(now);
        if ok {
            self.disk.persisted = self.disk.persisted.max(epoch);
            if self.disk.failed.take().is_some() {
                self.push(Effect::Event(Event::DiskRecovered));
            }
        } else {
            if self.disk.failed.replace(now + DISK_RETRY).is_none() {
                self.push(Effect::Event(Event::DiskFailed));
            }
            self.disk.asked = self.disk.persisted;
        }
        self.finish(now);
    }

    /// An operator's wish.
    pub fn handle_command(&mut self, now: Instant, command: Command) {
        self.wake(now);
        match command {
            Command::Stop => self.stopping = true,
            Command::Resign if self.may_resign(now) => self.resigning = true,
            Command::Resign => self.push(Effect::Event(Event::ResignRefused)),
        }
        self.finish(now);
    }

    /// A VRRP datagram arrived on the interface of `instance`.
    ///
    /// # Errors
    /// Why it was dropped; nothing has changed but the instance's counter.
    pub fn handle_advert(
        &mut self,
        now: Instant,
        instance: usize,
        received: &vrrp::Received<'_>,
    ) -> Result<(), vrrp::Refusal> {
        self.wake(now);
        let Some(router) = self.vrrp.get_mut(instance) else { return Ok(()) };
        router.handle_advert(now, received)?;
        self.finish(now);
        Ok(())
    }

    /// Time passed. Whatever had arrived was handled before.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.wake(now);
        for instance in &mut self.vrrp {
            instance.handle_timeout(now);
        }
        self.finish(now);
    }

    /// The next effect, to be performed before the one after it.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Self::handle_timeout`] is due at the latest; `None`: an input must come first.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let now = self.last_now?;
        let beat = self.peer.is_some().then_some(self.beat_at);
        let vrrp = self.vrrp.iter().filter_map(vrrp::Instance::poll_timeout).min();
        [beat, vrrp, self.disk.failed, self.next_deadline(now)].into_iter().flatten().min()
    }

    fn push(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    /// Takes a stall of ours out of every measure of the peer's silence.
    fn wake(&mut self, now: Instant) {
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
        if self.state == State::MasterSolo && stall > usual / 2 {
            let until = now + peer.config().dead_time();
            self.woken = Some(Woken { until, number: peer.last_sent() + 1 });
        }
        self.push(Effect::Event(Event::Stalled(stall)));
    }

    fn engine_up(&mut self, now: Instant, fresh: bool, data_epoch: Epoch) {
        self.see(data_epoch);
        self.engine = Engine::Up;
        self.replica.receiving = false;
        self.replica.received = false;
        if fresh {
            self.lineage = Lineage::Empty;
            self.led = false;
        } else if self.lineage == Lineage::Empty && data_epoch != Epoch::NONE {
            self.lineage = Lineage::Shared(data_epoch);
        }
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

    fn engine_died(&mut self, now: Instant) {
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

    fn synced(&mut self, event: SyncEvent) {
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
                self.led = false;
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
