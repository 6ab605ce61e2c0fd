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
//! | `segment.rs` | what is known of the addresses' segments: do we reach them? |
//! | `question.rs` | what is asked of a witness |
//! | `silence.rs` | what silence means: evidence in, a verdict out |
//! | `rules.rs` | facts in, the next step out: the judge |
//! | `perform.rs` | a step becomes effects, in order |
//! | `inputs.rs` | what a stall, the engine and its streams change |
//! | `effects.rs` | inputs, effects and events as data |

mod claim;
mod effects;
mod inputs;
mod message;
mod peer;
mod perform;
mod question;
mod role;
mod rules;
mod segment;
mod silence;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

pub use claim::{Alone, Claim, Epoch, EpochTooLarge, Lineage};
pub use effects::{
    Command, ControlEvent, Effect, EngineEvent, Event, Lease, Legacy, NodeConfig, PeerConfig,
    Strays, SyncEvent, Target,
};
pub use message::{
    Beat, BootId, Echo, MESSAGE_MAX, MessageError, Paths, PeerMessage, Session, Tell, Via,
    WIRE_VERSION,
};
pub use question::{Answer, Question};
pub use role::{Cause, Refused, State, TRANSITIONS, refused};
pub use segment::{Contact, Reach};

use peer::{Heard, Peer};
use segment::Segment;
use silence::{Damper, Vote};

/// Steps that one input can cause, at most: BOOT to JOIN and the like. A bound, never reached.
const STEPS_MAX: usize = 8;
/// After a failed write of the state file: when to try again.
const DISK_RETRY: Duration = Duration::from_millis(250);
/// A write of the state file that takes longer: the disk hangs.
const DISK_HUNG: Duration = Duration::from_millis(80);

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
    alone: AloneCount,
    legacy: Option<Legacy>,
    remembered: Option<Legacy>,
    disk: Disk,
    engine: Engine,
    /// Per VRRP instance.
    segments: Vec<Segment>,
    /// The addresses stand on this host.
    address: bool,
    leaving: bool,
    stopping: bool,
    promotion: Option<Promotion>,
    /// Why FENCED was entered, if by silence.
    fence: Fence,
    vote: Option<Vote>,
    questions: u64,
    /// The witness's generation that both nodes know.
    generation: u64,
    /// The generation at which the register holds this reign; 0 = it does not.
    registered: u64,
    /// This reign goes on by silence, without the witness's word (it could not be reached).
    unwitnessed: bool,
    damper: Damper,
    reach_said: Reach,
    peer_reach_said: Reach,
    blocked_said: bool,
    master: MasterView,
    replica: ReplicaView,
    peer: Option<Peer>,
    /// What our last reign left behind: said in beats until the next role.
    released: Tell,
    vrrp: Vec<vrrp::Instance>,
    /// A foreign router outranks us and answers for an address: when that was last so.
    foreign: Option<Instant>,
    /// One outranks us by its adverts alone: said.
    foreign_adverts: Option<Instant>,
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
    strays: Strays,
    effects: VecDeque<Effect>,
}

#[derive(Debug)]
struct Disk {
    /// The state file holds at least this: so far epochs may be used.
    persisted: Epoch,
    /// Asked for, and since when unanswered.
    asked: Epoch,
    asked_at: Option<Instant>,
    failed: Option<Instant>,
    hung: bool,
}

impl Disk {
    /// Whatever is asked is written, and soon.
    const fn works(&self) -> bool {
        self.failed.is_none() && !self.hung
    }
}

/// Answers given alone: what the shell counts, from where.
#[derive(Debug, Default)]
struct AloneCount {
    /// Of the fork that was there before this guardian.
    before: Alone,
    base: u64,
    total: u64,
}

impl AloneCount {
    fn level(&self) -> Alone {
        self.before.max(Alone::of(self.total - self.base))
    }

    /// The peer holds everything now.
    fn shared(&mut self) {
        self.before = Alone::default();
        self.base = self.total;
    }
}

/// What keeps a node in FENCED that went there by silence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fence {
    None,
    /// Until somebody answers.
    Isolated,
    /// Until the peer is heard, or the witness says otherwise.
    Refused,
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
    /// The state file must hold the epoch first.
    Persisting,
    /// Engine and address are being prepared; true: done.
    Preparing { engine: bool, address: bool },
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
            // until the engine says what it found
            lineage: config.legacy.map_or(Lineage::Empty, |legacy| legacy.lineage),
            alone: AloneCount {
                before: config.legacy.map(|legacy| legacy.alone).unwrap_or_default(),
                ..AloneCount::default()
            },
            legacy: config.legacy,
            remembered: config.legacy,
            disk: Disk {
                persisted: config.persisted,
                asked: config.persisted,
                asked_at: None,
                failed: None,
                hung: false,
            },
            engine: Engine::Down { since: now },
            segments: (0..vrrp.len())
                .map(|index| Segment::new(now, config.segments.get(index).copied().flatten()))
                .collect(),
            address: vrrp.is_empty(),
            leaving: false,
            stopping: false,
            promotion: None,
            fence: Fence::None,
            vote: None,
            questions: 0,
            generation: 0,
            registered: 0,
            unwitnessed: false,
            damper: Damper::default(),
            reach_said: Reach::Whole,
            peer_reach_said: Reach::Whole,
            blocked_said: false,
            master: MasterView::default(),
            replica: ReplicaView { session: Session(1), ..ReplicaView::default() },
            peer: config.peer.map(Peer::new),
            released: Tell::Nothing,
            vrrp,
            foreign: None,
            foreign_adverts: None,
            since: now,
            last_now: None,
            woken: None,
            beat_at: now,
            last_beat: None,
            lease: Lease::Expired,
            heard_said: false,
            strays: Strays::Refused,
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
    pub fn claim(&self) -> Claim {
        Claim { lineage: self.lineage, alone: self.alone.level(), side: self.side }
    }

    /// The peer's newest beat, if it was heard within `T_dead`.
    #[must_use]
    pub fn peer(&self, now: Instant) -> Option<&Beat> {
        self.peer.as_ref()?.live(now)
    }

    /// How far this node reaches the segments of its addresses.
    #[must_use]
    pub fn reach(&self, now: Instant) -> Reach {
        let Some(peer) = &self.peer else {
            let lost = self.segments.iter().any(|segment| !segment.carrier);
            return if lost { Reach::Lost } else { Reach::Whole };
        };
        let (beat, dead) = (peer.config().beat, peer.config().dead_time());
        let all = self.segments.iter().map(|segment| segment.reach(now, beat, dead));
        all.min().unwrap_or(Reach::Whole)
    }

    /// The paths on which the peer is heard.
    #[must_use]
    pub fn heard_on(&self, now: Instant) -> Paths {
        self.peer.as_ref().map(|peer| peer.heard_on(now)).unwrap_or_default()
    }

    /// Whether the segment of `instance` is reached, and whether there is a third host to ask.
    #[must_use]
    pub fn segment(&self, now: Instant, instance: usize) -> Option<(Reach, bool)> {
        let config = self.peer.as_ref().map(Peer::config);
        let segment = self.segments.get(instance)?;
        let reach = config.map(|config| segment.reach(now, config.beat, config.dead_time()));
        Some((reach.unwrap_or(Reach::Unknown), segment.has_targets()))
    }

    /// Promotions that may follow without a write of the state file.
    #[must_use]
    pub fn epochs_reserved(&self) -> u16 {
        self.disk.persisted.get().saturating_sub(self.seen.get()) / 2
    }

    /// The state file is written when asked.
    #[must_use]
    pub const fn disk_works(&self) -> bool {
        self.disk.works()
    }

    /// The witness's generation that both nodes know; 0 = none.
    #[must_use]
    pub const fn generation(&self) -> u64 {
        self.generation
    }

    /// It is master, and could hand over without a gap if it waited until the peer is in sync.
    #[must_use]
    pub fn awaits_replica(&self, now: Instant) -> bool {
        let follows = self.peer(now).is_some_and(|beat| beat.state.is_follower());
        self.state.is_master() && follows && !self.may_resign(now)
    }

    /// The virtual routers, for their counters.
    #[must_use]
    pub fn vrrp(&self) -> &[vrrp::Instance] {
        &self.vrrp
    }

    /// A beat arrived: by one of our paths, or (`None`) on the control connection.
    pub fn handle_beat(&mut self, now: Instant, beat: &Beat, via: Option<Via>) {
        self.wake(now);
        let Some(peer) = &mut self.peer else { return };
        if beat.claim.side == self.side || beat.boot == self.boot {
            return self.finish(now); // our own beat, reflected, or a pair with one side
        }
        let heard = peer.hear(now, self.boot, beat, via);
        if heard != Heard::Old {
            self.see(beat.seen.max(beat.epoch));
            self.generation = self.generation.max(beat.generation);
            if beat.asks {
                self.beat_at = now;
            }
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

    /// A message arrived: by one of our paths, or (`None`) on the control connection.
    pub fn handle_message(&mut self, now: Instant, message: &PeerMessage, via: Option<Via>) {
        match message {
            PeerMessage::Beat(beat) => self.handle_beat(now, beat, via),
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
                    && let Stage::Preparing { engine, .. } = &mut promotion.stage
                {
                    *engine = true;
                }
            }
            EngineEvent::Sync(event) => self.synced(event),
        }
        self.finish(now);
    }

    /// The interface of VRRP instance `instance` gained or lost carrier.
    pub fn handle_carrier(&mut self, now: Instant, instance: usize, up: bool) {
        self.wake(now);
        if let Some(segment) = self.segments.get_mut(instance) {
            segment.handle_carrier(now, up);
        }
        self.finish(now);
    }

    /// The interface of `instance` has another address of its own: adverts leave from it, the
    /// peer's come from `peer`, and `path` is the peer's address on this segment.
    pub fn handle_source(
        &mut self,
        now: Instant,
        instance: usize,
        source: IpAddr,
        (peer, path): (Option<IpAddr>, Option<usize>),
    ) {
        self.wake(now);
        if let Some(router) = self.vrrp.get_mut(instance) {
            router.set_source(source);
            router.set_peer(peer);
        }
        if let Some(segment) = self.segments.get_mut(instance) {
            segment.path = path;
        }
        self.finish(now);
    }

    /// A third host has answered our ARP request on the segment of `instance`.
    pub fn handle_life(&mut self, now: Instant, instance: usize) {
        self.wake(now);
        let beat = self.peer.as_ref().map(|peer| peer.config().beat).unwrap_or_default();
        if let Some(segment) = self.segments.get_mut(instance) {
            segment.handle_life(now, beat);
        }
        self.finish(now);
    }

    /// There is (or is no longer) a third host known on the segment of `instance`: its gateway, or
    /// a host seen in the last minute.
    pub fn handle_targets(&mut self, now: Instant, instance: usize, known: bool) {
        self.wake(now);
        if let Some(segment) = self.segments.get_mut(instance) {
            segment.handle_targets(known);
        }
        self.finish(now);
    }

    /// The peer's host, or another station that answers for our address, was heard on the segment
    /// of `instance`.
    pub fn handle_contact(&mut self, now: Instant, instance: usize, contact: Contact) {
        self.wake(now);
        if let Some(segment) = self.segments.get_mut(instance) {
            segment.handle_contact(now, contact);
        }
        self.finish(now);
    }

    /// The addresses stand on this host, or do not any more.
    pub fn handle_address(&mut self, now: Instant, present: bool) {
        self.wake(now);
        self.address = present;
        if let Some(promotion) = &mut self.promotion
            && let Stage::Preparing { address, .. } = &mut promotion.stage
        {
            *address |= present;
        }
        self.finish(now);
    }

    /// So many answers were given to clients in MASTER_SOLO, in all since the shell began to count.
    /// Told before each beat; changes nothing by itself.
    pub fn handle_alone(&mut self, total: u64) {
        self.alone.total = self.alone.total.max(total);
    }

    /// The witness answered, or did not.
    pub fn handle_witness(&mut self, now: Instant, answer: Answer) {
        self.wake(now);
        self.answered(answer);
        self.finish(now);
    }

    /// The state file holds at least `epoch`, or (`ok` false) could not be written.
    pub fn handle_epoch_persisted(&mut self, now: Instant, epoch: Epoch, ok: bool) {
        self.wake(now);
        let worked = self.disk.works();
        if ok {
            self.disk.persisted = self.disk.persisted.max(epoch);
            self.disk.failed = None;
        } else {
            self.disk.failed = Some(now + DISK_RETRY);
            self.disk.asked = self.disk.persisted;
        }
        if !ok || epoch >= self.disk.asked {
            self.disk.asked_at = None;
            self.disk.hung = false;
        }
        self.say_disk(worked);
        self.finish(now);
    }

    /// An operator's wish.
    pub fn handle_command(&mut self, now: Instant, command: Command) {
        self.wake(now);
        match command {
            Command::Leave => self.leaving = true,
            Command::Stop => self.stopping = true,
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
        let probe = self
            .peer
            .as_ref()
            .and_then(|_| self.segments.iter().filter_map(Segment::next_probe).min());
        let hung = self.disk.asked_at.filter(|_| !self.disk.hung).map(|at| at + DISK_HUNG);
        let deadline = self.next_deadline(now);
        [beat, vrrp, probe, self.disk.failed, hung, deadline].into_iter().flatten().min()
    }

    fn push(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }
}
