//! A host: power, carrier, clock, state file, a guardian (a real [`Node`] with real VRRP instances)
//! and the shell that feeds it and performs its effects, with time passing in between.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use cache::Cache;
use proxy_user::config::Side;
use proxy_user::node::{
    Answer, Beat, BootId, Contact, ControlEvent, Effect, EngineEvent, Epoch, Event, Lease, Legacy,
    Node, NodeConfig, PeerMessage, Session, State, Tell, Via,
};
use vrrp::{AdvertInterval, Instance, InstanceConfig, Mode, Priority, Received, Vrid};

use crate::clients::CLIENTS;
use crate::engine::Engine;
use crate::network::Use;
use crate::world::{Ev, MS, Mutation, Nanos, US, World};

/// The shared page between guardian and engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    pub(crate) state: State,
    pub(crate) epoch: Epoch,
    pub(crate) lease: Lease,
    pub(crate) guardian_alive: bool,
    /// XDP answers for the VIP.
    pub(crate) answers: bool,
    /// Answers given in MASTER_SOLO.
    pub(crate) alone: u64,
}

const DEAD_PAGE: Page = Page {
    state: State::Boot,
    epoch: Epoch::NONE,
    lease: Lease::Expired,
    guardian_alive: false,
    answers: false,
    alone: 0,
};

/// What waits for the guardian's thread.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Message(PeerMessage, Option<usize>),
    Answered(Answered),
    Control(ControlEvent),
    Engine(EngineEvent),
    Persisted(Epoch, bool),
    Carrier(bool),
    /// From a foreign router, or (false) from the peer.
    Advert(Vec<u8>, bool),
}

/// What a host, or its segment, answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answered {
    /// The addresses stand there, or do not.
    Address(bool),
    /// A third host answered ARP.
    Life,
    /// The peer's kernel did, or somebody answered for the address.
    Contact(Contact),
    /// No guardian listens at the peer's.
    Refused,
    /// The witness, or nobody in time.
    Witness(Answer),
}

pub(crate) struct Guardian {
    pub(crate) life: u64,
    pub(crate) node: Node,
    pub(crate) inbox: VecDeque<Input>,
    effects: VecDeque<Effect>,
    /// When a turn is scheduled.
    turn_at: Option<Nanos>,
    /// The newest beat of the peer that it took in.
    newest: Option<(BootId, u64)>,
}

pub(crate) struct Host {
    pub(crate) powered: bool,
    pub(crate) carrier: bool,
    pub(crate) guardian: Option<Guardian>,
    pub(crate) page: Page,
    pub(crate) engine: Option<Engine>,
    /// The memfd: lives and dies with the guardian.
    pub(crate) store: Option<Arc<Cache>>,
    /// What the last guardian left beside the store.
    pub(crate) legacy: Option<Legacy>,
    /// The state file's content.
    pub(crate) disk: u16,
    pub(crate) disk_broken: bool,
    /// Writes end then, and not before.
    pub(crate) disk_hangs_until: Nanos,
    pub(crate) guardian_paused: Nanos,
    pub(crate) engine_paused: Nanos,
    /// Until then the engine's turns are far apart.
    pub(crate) slow_until: Nanos,
    /// When the last beat of a living peer was handled, and what it said.
    pub(crate) last_beat: Option<(Nanos, State)>,
}

/// Datagrams that wait for a stopped guardian, at most (its socket's buffer).
const INBOX: usize = 256;

pub(crate) fn side_of(host: usize) -> Side {
    if host == 0 { Side::A } else { Side::B }
}

fn address(host: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, if host == 0 { 1 } else { 2 }))
}

/// A router that is not of the pair.
const FOREIGN: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 9));

fn router(host: usize) -> Instance {
    let vip = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 100));
    let vrid = Vrid::new(51).expect("in range");
    let interval = AdvertInterval::from_duration(std::time::Duration::from_millis(100));
    let mut config =
        InstanceConfig::coupled(vrid, interval.expect("in range"), vec![vip], address(host));
    config.mode = Mode::Coupled { peer: Some(address(1 - host)) };
    config.priority = Priority::DEFAULT;
    Instance::new(config).expect("valid")
}

impl Host {
    pub(crate) const fn new() -> Self {
        Self {
            powered: true,
            carrier: true,
            guardian: None,
            page: DEAD_PAGE,
            engine: None,
            store: None,
            legacy: None,
            disk: 0,
            disk_broken: false,
            disk_hangs_until: 0,
            guardian_paused: 0,
            engine_paused: 0,
            slow_until: 0,
            last_beat: None,
        }
    }

    pub(crate) fn is_paused(&self, now: Nanos) -> bool {
        self.guardian_paused > now || self.engine_paused > now
    }

    /// Role, epoch and sync for the trace.
    pub(crate) fn view(&self) -> String {
        let Some(guardian) = &self.guardian else { return "down".to_owned() };
        let engine = if self.engine.is_some() { "" } else { " engine down" };
        let answers = if self.page.answers { " vip" } else { "" };
        format!("{} {}{answers}{engine}", guardian.node.state(), guardian.node.epoch())
    }
}

impl World {
    pub(crate) fn start_guardian(&mut self, host: usize) {
        if !self.hosts[host].powered || self.hosts[host].guardian.is_some() {
            return;
        }
        self.forget_silent_conns();
        let life = self.new_life();
        let boot = BootId(self.rng.next());
        let config = NodeConfig {
            side: side_of(host),
            boot,
            persisted: Epoch::new(self.hosts[host].disk).unwrap_or_default(),
            peer: Some(self.plan.peer.clone()),
            segments: vec![Some(0)],
            legacy: self.hosts[host].legacy,
        };
        let now = self.clock(host);
        let mut node = Node::new(now, config, vec![router(host)]);
        node.start(now);
        let this = &mut self.hosts[host];
        node.handle_carrier(now, 0, this.carrier);
        node.handle_targets(now, 0, !self.plan.lonely);
        this.page = Page { guardian_alive: true, ..DEAD_PAGE };
        this.last_beat = None;
        this.guardian = Some(Guardian {
            life,
            node,
            inbox: VecDeque::new(),
            effects: VecDeque::new(),
            turn_at: None,
            newest: None,
        });
        if this.store.is_none() {
            self.checker.memory_lost(self.now, host);
        }
        self.note(Some(host), "guardian starts");
        self.collect(host);
        let up = self.rng.range(2 * MS, 15 * MS);
        self.after(up, Ev::EngineUp { host, life });
    }

    /// A host that is back answers RST to what it knows nothing of.
    fn forget_silent_conns(&mut self) {
        let silent = self.conns.iter().filter(|(_, conn)| conn.silent);
        let kinds: Vec<Use> = silent.map(|(kind, _)| *kind).collect();
        for kind in kinds {
            self.break_conn(kind);
        }
    }

    /// Gives an input to a guardian that lives.
    pub(crate) fn tell_guardian(&mut self, host: usize, input: Input) {
        let Some(guardian) = &mut self.hosts[host].guardian else { return };
        let droppable = matches!(input, Input::Message(..) | Input::Advert(..));
        if droppable && guardian.inbox.len() >= INBOX {
            return;
        }
        guardian.inbox.push_back(input);
        self.wake_guardian(host, self.now + 5 * US);
    }

    fn wake_guardian(&mut self, host: usize, at: Nanos) {
        let at = at.max(self.hosts[host].guardian_paused);
        let Some(guardian) = &mut self.hosts[host].guardian else { return };
        if guardian.turn_at.is_some_and(|already| already <= at && already >= self.now) {
            return;
        }
        guardian.turn_at = Some(at);
        self.at(at, Ev::Guardian(host));
    }

    pub(crate) fn guardian_turn(&mut self, host: usize) {
        let now = self.clock(host);
        let this = &mut self.hosts[host];
        let Some(guardian) = &mut this.guardian else { return };
        if guardian.turn_at.is_some_and(|at| at > self.now) {
            return; // a later turn replaced this one
        }
        guardian.turn_at = None;
        if this.guardian_paused > self.now {
            let at = this.guardian_paused;
            return self.wake_guardian(host, at);
        }
        if !guardian.effects.is_empty() {
            return; // performing: the last effect wakes us
        }
        guardian.node.handle_alone(this.page.alone);
        match guardian.inbox.pop_front() {
            Some(input) => {
                if let Input::Message(PeerMessage::Beat(beat), _) = &input {
                    let before = guardian.newest;
                    let fresh = before.is_none_or(|(boot, n)| boot != beat.boot || n < beat.number);
                    if fresh {
                        guardian.newest = Some((beat.boot, beat.number));
                        this.last_beat = Some((self.now, beat.state));
                        self.checker.heard(self.now, host);
                    }
                }
                Self::feed(&mut guardian.node, host, now, input);
            }
            None if guardian.node.poll_timeout().is_some_and(|at| at <= now) => {
                guardian.node.handle_timeout(now);
            }
            None => {}
        }
        self.collect(host);
    }

    fn feed(node: &mut Node, host: usize, now: Instant, input: Input) {
        match input {
            Input::Message(message, path) => {
                let via = path.map(|path| Via { ours: path, theirs: path });
                node.handle_message(now, &message, via);
            }
            Input::Answered(Answered::Address(there)) => node.handle_address(now, there),
            Input::Answered(Answered::Refused) => {
                node.handle_control(now, ControlEvent::Refused);
            }
            Input::Answered(Answered::Witness(answer)) => node.handle_witness(now, answer),
            Input::Answered(Answered::Life) => node.handle_life(now, 0),
            Input::Answered(Answered::Contact(contact)) => node.handle_contact(now, 0, contact),
            Input::Control(event) => node.handle_control(now, event),
            Input::Engine(event) => node.handle_engine(now, event),
            Input::Persisted(epoch, ok) => node.handle_epoch_persisted(now, epoch, ok),
            Input::Carrier(up) => node.handle_carrier(now, 0, up),
            Input::Advert(payload, foreign) => {
                let from = if foreign { FOREIGN } else { address(1 - host) };
                let received = Received::multicast(from, 255, &payload);
                // a refusal is counted by the instance
                let _refused = node.handle_advert(now, 0, &received).err();
            }
        }
    }

    /// Takes the node's effects and begins to perform them.
    fn collect(&mut self, host: usize) {
        let Some(guardian) = &mut self.hosts[host].guardian else { return };
        while let Some(effect) = guardian.node.poll_effect() {
            guardian.effects.push_back(effect);
        }
        let life = guardian.life;
        if guardian.effects.is_empty() {
            self.rest(host);
        } else {
            self.perform(host, life);
        }
    }

    /// Nothing to perform: the next input, or the next timer.
    fn rest(&mut self, host: usize) {
        let Some(guardian) = &self.hosts[host].guardian else { return };
        if !guardian.inbox.is_empty() {
            return self.wake_guardian(host, self.now + US);
        }
        if let Some(at) = guardian.node.poll_timeout() {
            let jitter = self.rng.range(0, self.plan.jitter);
            let at = self.world_time(host, at) + jitter;
            self.wake_guardian(host, at.max(self.now + US));
        }
    }

    /// Performs effects until one that takes time, or a pause.
    pub(crate) fn perform(&mut self, host: usize, life: u64) {
        loop {
            let this = &mut self.hosts[host];
            let Some(guardian) = this.guardian.as_mut().filter(|g| g.life == life) else { return };
            if this.guardian_paused > self.now {
                let at = this.guardian_paused;
                return self.at(at, Ev::Perform(host, life));
            }
            let Some(effect) = guardian.effects.pop_front() else { break };
            let slow = !matches!(
                effect,
                Effect::Event(_) | Effect::SendBeat(_) | Effect::Vrrp { .. } | Effect::SetLease(_)
            );
            self.perform_one(host, effect);
            if slow {
                let delay = self.rng.range(US, 20 * US);
                return self.after(delay, Ev::Perform(host, life));
            }
        }
        self.rest(host);
    }

    fn perform_one(&mut self, host: usize, effect: Effect) {
        match effect {
            Effect::PersistEpoch(epoch) => {
                let delay = self.rng.range(50 * US, 2 * MS);
                let at = (self.now + delay).max(self.hosts[host].disk_hangs_until);
                let life = self.life_of(host);
                self.at(at, Ev::Disk { host, life, epoch: epoch.get() });
            }
            Effect::SetRole { state, epoch } => {
                self.role_changes(host, state, epoch);
            }
            Effect::SetLease(lease) => {
                self.hosts[host].page.lease = lease;
                self.look_at_leases();
                self.wake_engine(host);
            }
            Effect::Answer(answers) => self.hosts[host].page.answers = answers,
            Effect::Vrrp { output, .. } => self.vrrp_output(host, &output),
            Effect::SendBeat(beat) => {
                self.maybe_forge_confirmation(host, &beat);
                let bytes = PeerMessage::Beat(beat).encode();
                for path in 0..self.paths.len() {
                    if self.is_cut(path, host) {
                        continue;
                    }
                    for delay in self.paths[path].clone().datagram(&mut self.rng, host) {
                        let bytes = bytes.clone();
                        self.after(delay, Ev::Datagram { to: 1 - host, path, bytes });
                    }
                }
                if let Some(id) = self.conns.get(&Use::Control).map(|conn| conn.id) {
                    self.send(Use::Control, id, host, bytes);
                }
            }
            Effect::PrepareEngine(epoch) => {
                self.tell_engine(host, crate::engine::Input::Prepare(epoch));
            }
            Effect::Gate(gate) => self.tell_engine(host, crate::engine::Input::Gate(gate)),
            Effect::EngineTarget(target) => {
                self.tell_engine(host, crate::engine::Input::Target(target));
            }
            Effect::Address(there) => {
                let delay = self.rng.range(50 * US, 400 * US);
                self.answer_later(host, delay, Answered::Address(there));
            }
            Effect::Probe { .. } => self.probe(host),
            // no connection of a client is played here
            Effect::Strays(_) => {}
            Effect::AskWitness(question) => {
                let life = self.life_of(host);
                self.ask_witness(host, life, question);
            }
            Effect::Remember(legacy) => self.hosts[host].legacy = Some(legacy),
            Effect::Event(event) => self.event(host, event),
        }
    }

    fn life_of(&self, host: usize) -> u64 {
        self.hosts[host].guardian.as_ref().map_or(0, |g| g.life)
    }

    fn answer_later(&mut self, host: usize, delay: Nanos, answer: Answered) {
        let life = self.life_of(host);
        self.after(delay, Ev::Answered { host, life, answer });
    }

    pub(crate) fn host_answered(&mut self, host: usize, life: u64, answer: Answered) {
        if self.life_of(host) == life {
            self.tell_guardian(host, Input::Answered(answer));
        }
    }

    /// ARP requests to third hosts, to the peer, and for the address itself.
    fn probe(&mut self, host: usize) {
        let there = self.rng.range(50 * US, 300 * US);
        if self.segment_answers(host) {
            self.answer_later(host, there, Answered::Life);
        }
        let other = 1 - host;
        if !self.hosts[other].powered || self.is_cut(0, host) || self.is_cut(0, other) {
            return;
        }
        let back = there + self.rng.range(50 * US, 300 * US);
        self.answer_later(host, back, Answered::Contact(Contact::PeerArp));
        if self.answers_arp(other) {
            self.answer_later(host, back, Answered::Contact(Contact::Claim));
        }
    }

    /// Is there a client that this host's segment leads to and back from?
    fn segment_answers(&self, host: usize) -> bool {
        let this = &self.hosts[host];
        let there = (0..CLIENTS - 2).any(|client| self.same_side(host, client));
        this.carrier
            && this.powered
            && self.paths[0].ports[host].works()
            && there
            && !self.plan.lonely
    }

    /// The planted fault: what was asked of the peer is taken for done.
    fn maybe_forge_confirmation(&mut self, host: usize, beat: &Beat) {
        let now = self.clock(host);
        let asked = matches!(beat.tell, Tell::OutOfSync(..));
        if self.options.mutation != Mutation::UnconfirmedOutOfSync || !asked {
            return;
        }
        let Some(guardian) = &self.hosts[host].guardian else { return };
        let Some(view) = guardian.node.peer(now).copied() else { return };
        let forged = Beat { session: Session(view.session.0 + 1), number: view.number + 1, ..view };
        self.tell_guardian(host, Input::Message(PeerMessage::Beat(forged), None));
    }

    fn role_changes(&mut self, host: usize, state: State, epoch: Epoch) {
        let before = self.hosts[host].page;
        self.hosts[host].page.state = state;
        self.hosts[host].page.epoch = epoch;
        if state.is_master() && !before.state.is_master() {
            self.figures.crowns.push((self.now, host));
        }
        if state.is_master() && (epoch != before.epoch || !before.state.is_master()) {
            let disk = self.hosts[host].disk;
            self.checker.crowned(self.now, host, epoch.get(), disk);
        }
        self.checker.role(self.now, host, state, epoch.get());
        self.look_at_leases();
        self.wake_engine(host);
    }

    fn event(&mut self, host: usize, event: Event) {
        self.note(Some(host), &format!("{event:?}"));
        match event {
            Event::RoleChanged { from, to, cause, .. } => {
                let last = self.hosts[host].last_beat;
                let wait = self.plan.peer.dead_time();
                self.checker.changed(self.now, host, from, to, cause, last, wait);
                if to == State::Synced {
                    self.became_synced(host);
                }
            }
            Event::LossyTakeover { .. } | Event::ForkLost(_) => self.figures.reported = true,
            Event::Refused(refused) => self.checker.complain(self.now, format!("{refused}")),
            _ => {}
        }
    }

    fn vrrp_output(&mut self, host: usize, output: &vrrp::Output) {
        match output {
            vrrp::Output::SendAdvert { payload, .. } if !self.is_cut(0, host) => {
                let delay = self.rng.range(50 * US, 300 * US);
                self.after(delay, Ev::Advert { to: 1 - host, payload: payload.clone() });
            }
            vrrp::Output::Garp { .. } if self.hosts[host].carrier => {
                if !self.paths[0].ports[host].mute {
                    self.clients_learn(host);
                }
                if !self.is_cut(0, host) {
                    let claim = Answered::Contact(Contact::Claim);
                    self.answer_later(1 - host, 100 * US, claim);
                }
            }
            _ => {}
        }
    }

    pub(crate) fn advert_arrives(&mut self, to: usize, payload: Vec<u8>) {
        if self.hosts[to].carrier {
            self.tell_guardian(to, Input::Advert(payload, false));
        }
    }

    /// A stronger router's advert, and (if it `claims`) its gratuitous ARP, to both hosts.
    pub(crate) fn foreign_advert(&mut self, until: Nanos, claims: bool) {
        let mut router = router(0);
        let mut config = router.config().clone();
        (config.source, config.priority) = (FOREIGN, Priority::new(254));
        config.mode = Mode::Coupled { peer: None };
        if let Ok(foreign) = Instance::new(config) {
            router = foreign;
        }
        router.startup(self.clock(0));
        router.promote(self.clock(0));
        let outputs = std::iter::from_fn(|| router.poll_output());
        let adverts = outputs.filter_map(|output| match output {
            vrrp::Output::SendAdvert { payload, .. } => Some(payload),
            _ => None,
        });
        let payload = adverts.last().expect("a promoted router speaks");
        for host in 0..2 {
            if self.hosts[host].carrier && !self.paths[0].ports[host].deaf {
                self.tell_guardian(host, Input::Advert(payload.clone(), true));
                if claims {
                    let claim = Answered::Contact(Contact::Claim);
                    self.tell_guardian(host, Input::Answered(claim));
                }
            }
        }
        if self.now + 100 * MS < until && !self.quiet {
            self.after(100 * MS, Ev::Foreign { until, claims });
        }
    }

    pub(crate) fn guardian_hears(&mut self, host: usize, bytes: &[u8], path: Option<usize>) {
        if let Ok(message) = PeerMessage::decode(bytes) {
            self.tell_guardian(host, Input::Message(message, path));
        }
    }

    pub(crate) fn control_opened(&mut self, host: usize) {
        self.tell_guardian(host, Input::Control(ControlEvent::Connected));
    }

    pub(crate) fn control_ended(&mut self, host: usize, by_peer: bool) {
        let event = if by_peer { ControlEvent::ClosedByPeer } else { ControlEvent::Lost };
        self.tell_guardian(host, Input::Control(event));
        if by_peer {
            self.ask_port(host);
        }
    }

    /// Is there a guardian that listens? The peer's kernel says so, if it is reached.
    fn ask_port(&mut self, host: usize) {
        let other = 1 - host;
        let path =
            (0..self.paths.len()).find(|path| !self.is_cut(*path, 0) && !self.is_cut(*path, 1));
        if path.is_some() && self.hosts[other].powered && self.hosts[other].guardian.is_none() {
            let round = self.rng.range(100 * US, 600 * US);
            self.answer_later(host, round, Answered::Refused);
        }
    }

    pub(crate) fn disk_done(&mut self, host: usize, life: u64, epoch: u16) {
        let this = &mut self.hosts[host];
        if this.guardian.as_ref().is_none_or(|g| g.life != life) {
            return;
        }
        let ok = !this.disk_broken;
        if ok {
            this.disk = this.disk.max(epoch);
        }
        let epoch = Epoch::new(epoch).unwrap_or_default();
        self.tell_guardian(host, Input::Persisted(epoch, ok));
    }

    /// The guardian's process ends: the kernel marks its futex, closes its connection, takes its
    /// XDP link and kills the engine. `keeps`: the keeper still has the store.
    pub(crate) fn kill_guardian(&mut self, host: usize, keeps: bool) {
        if self.hosts[host].guardian.take().is_none() {
            return;
        }
        self.hosts[host].page = DEAD_PAGE;
        self.checker.role(self.now, host, State::Boot, 0);
        self.kill_engine(host, 500 * US);
        self.hosts[host].guardian_paused = 0;
        self.close(Use::Control, host, 300 * US);
        if !keeps {
            self.lose_store(host);
        }
    }

    /// The power is cut: nothing more is said.
    pub(crate) fn kill_host(&mut self, host: usize) {
        self.host_fell_silent(host);
        self.hosts[host].powered = false;
        self.hosts[host].guardian = None;
        self.hosts[host].page = DEAD_PAGE;
        self.hosts[host].engine = None;
        self.hosts[host].guardian_paused = 0;
        self.hosts[host].engine_paused = 0;
        self.checker.role(self.now, host, State::Boot, 0);
        self.lose_store(host);
    }

    pub(crate) fn lose_store(&mut self, host: usize) {
        self.hosts[host].store = None;
        self.hosts[host].legacy = None;
        self.figures.reported = true;
        self.checker.memory_lost(self.now, host);
    }
}
