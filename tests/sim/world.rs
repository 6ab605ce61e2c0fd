//! The world: two hosts, the wires between them, clients, and one queue of events in time. Time
//! jumps from event to event; chance comes from the seed only; every loop is bounded.
//!
//! What it is not: a judge. It tells `checker.rs` what happened and asks nothing.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use crate::checker::Checker;
use crate::clients::{CLIENTS, Client};
use crate::faults::{Fault, Plan};
use crate::host::{Answered, Host};
use crate::network::{Conn, GIVE_UP, Path, Use, retry};
use crate::prng::Prng;
use crate::trace::Trace;
use crate::witness::Witness;
use proxy_user::node::Question;

/// World time: nanoseconds since the run's begin.
pub(crate) type Nanos = u64;
pub(crate) const US: Nanos = 1_000;
pub(crate) const MS: Nanos = 1_000_000;

/// Planted faults: what the checkers must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// None.
    Sound,
    /// The engine lets answers of MASTER leave without the peer's ack.
    AnswerBeforeAck,
    /// The guardian takes its own OutOfSync for the peer's confirmation of it.
    UnconfirmedOutOfSync,
}

/// What a run is made from.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) seed: u64,
    pub(crate) mutation: Mutation,
    /// Use this instead of what the seed would choose.
    pub(crate) plan: Option<Plan>,
    pub(crate) print: bool,
}

/// Something that happens at a time.
#[derive(Debug, Clone)]
pub(crate) enum Ev {
    /// The guardian looks at its inbox and timers.
    Guardian(usize),
    /// The guardian performs its next effects.
    Perform(usize, u64),
    /// The engine's turn.
    Engine(usize),
    /// A datagram arrives at a guardian.
    Datagram { to: usize, path: usize, bytes: Vec<u8> },
    /// A VRRP advert arrives.
    Advert { to: usize, payload: Vec<u8> },
    /// Something that a guardian asked of its host, or of the segment, is answered.
    Answered { host: usize, life: u64, answer: Answered },
    /// A question arrives at the witness.
    Asked { host: usize, life: u64, question: Question },
    /// A foreign router sends its next advert.
    Foreign { until: Nanos, claims: bool },
    /// The head of a connection's queue may arrive.
    Arrive { kind: Use, id: u64, from: usize },
    /// Try to connect.
    Dial(Use),
    /// A write of the state file ends.
    Disk { host: usize, life: u64, epoch: u16 },
    /// A guardian learns of its engine's death.
    EngineDied { host: usize, life: u64 },
    /// An engine is up.
    EngineUp { host: usize, life: u64 },
    /// A guardian starts.
    Start { host: usize },
    /// A client acts.
    Client(usize),
    /// Bytes of a client arrive at an engine.
    ToEngine { host: usize, engine: u64, client: usize, conn: u64, bytes: Vec<u8> },
    /// Bytes (or, empty, the end) of a connection arrive at a client.
    ToClient { client: usize, conn: u64, bytes: Vec<u8>, end: bool },
    /// The plan's next fault.
    Fault(Fault),
    /// A look at the whole.
    Look,
}

/// The run's figures.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) events: u64,
    /// Each time that a node became master: when, and which.
    pub(crate) crowns: Vec<(Nanos, usize)>,
    /// A memory was lost, or a node said that answers are.
    pub(crate) reported: bool,
    /// Keys whose last answer the master of the end does not hold.
    pub(crate) lost: usize,
}

/// See the module's text.
pub(crate) struct World {
    pub(crate) options: Options,
    pub(crate) now: Nanos,
    pub(crate) rng: Prng,
    pub(crate) base: Instant,
    queue: BinaryHeap<Reverse<(Nanos, u64, usize)>>,
    slots: Vec<Option<Ev>>,
    free: Vec<usize>,
    serial: u64,
    pub(crate) lives: u64,
    pub(crate) hosts: [Host; 2],
    pub(crate) paths: Vec<Path>,
    pub(crate) conns: BTreeMap<Use, Conn>,
    pub(crate) clients: Vec<Client>,
    pub(crate) plan: Plan,
    pub(crate) checker: Checker,
    pub(crate) trace: Trace,
    pub(crate) figures: Figures,
    /// Connections that cannot be made until then.
    pub(crate) refused: BTreeMap<Use, Nanos>,
    /// No more faults and no more writes.
    pub(crate) quiet: bool,
    pub(crate) witness: Witness,
    /// The clients' segment is divided: who is on whose side.
    pub(crate) split: Option<[usize; CLIENTS]>,
}

/// Events of one run, at most: a bound, never reached by a sound run.
const EVENTS_MAX: u64 = 2_000_000;
/// Links between the engines.
pub(crate) const LINKS: usize = 2;
const LOOK: Nanos = 10 * MS;

impl World {
    pub(crate) fn new(options: Options) -> Self {
        let mut rng = Prng::new(options.seed);
        let plan = options.plan.clone().unwrap_or_else(|| Plan::draw(&mut rng));
        let base = Instant::now();
        let hosts = [Host::new(), Host::new()];
        let clients = Client::all();
        let mut world = Self {
            trace: Trace::new(options.print),
            checker: Checker::new(plan.evicts),
            paths: plan.paths.clone(),
            options,
            now: 0,
            rng,
            base,
            queue: BinaryHeap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            serial: 0,
            lives: 0,
            hosts,
            conns: BTreeMap::new(),
            clients,
            plan,
            figures: Figures::default(),
            refused: BTreeMap::new(),
            quiet: false,
            witness: Witness::default(),
            split: None,
        };
        world.schedule_begin();
        world
    }

    fn schedule_begin(&mut self) {
        for host in 0..2 {
            let at = self.plan.starts[host];
            self.at(at, Ev::Start { host });
        }
        let dials = [Use::Control, Use::Link(0), Use::Link(1)];
        for kind in dials {
            self.at(MS, Ev::Dial(kind));
        }
        for client in 0..self.clients.len() {
            let at = self.rng.range(MS, 50 * MS);
            self.at(at, Ev::Client(client));
        }
        for (at, fault) in self.plan.faults.clone() {
            self.at(at, Ev::Fault(fault));
        }
        self.at(LOOK, Ev::Look);
    }

    /// Puts an event at a time, not before now.
    pub(crate) fn at(&mut self, at: Nanos, event: Ev) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[slot] = Some(event);
        self.serial += 1;
        self.queue.push(Reverse((at.max(self.now), self.serial, slot)));
    }

    /// Puts an event `delay` from now.
    pub(crate) fn after(&mut self, delay: Nanos, event: Ev) {
        self.at(self.now + delay, event);
    }

    /// A number that no other life has.
    pub(crate) fn new_life(&mut self) -> u64 {
        self.lives += 1;
        self.lives
    }

    /// Runs to the end of the plan; the checker holds what it found.
    pub(crate) fn run(&mut self) {
        let end = self.plan.end;
        while self.step(end) {}
    }

    fn step(&mut self, end: Nanos) -> bool {
        let Some(Reverse((at, _, slot))) = self.queue.pop() else { return false };
        let Some(event) = self.slots[slot].take() else { return true };
        self.free.push(slot);
        if at > end || self.checker.complaint().is_some() {
            return false;
        }
        self.now = at;
        self.figures.events += 1;
        assert!(self.figures.events < EVENTS_MAX, "seed {}: endless", self.options.seed);
        self.dispatch(event);
        true
    }

    fn dispatch(&mut self, event: Ev) {
        match event {
            Ev::Guardian(host) => self.guardian_turn(host),
            Ev::Perform(host, life) => self.perform(host, life),
            Ev::Engine(host) => self.engine_turn(host),
            Ev::Datagram { to, path, bytes } => self.guardian_hears(to, &bytes, Some(path)),
            Ev::Answered { host, life, answer } => self.host_answered(host, life, answer),
            Ev::Asked { host, life, question } => self.witness_asked(host, life, question),
            Ev::Foreign { until, claims } => self.foreign_advert(until, claims),
            Ev::Advert { to, payload } => self.advert_arrives(to, payload),
            Ev::Arrive { kind, id, from } => self.arrive(kind, id, from),
            Ev::Dial(kind) => self.dial(kind),
            Ev::Disk { host, life, epoch } => self.disk_done(host, life, epoch),
            Ev::EngineDied { host, life } => self.engine_death_learned(host, life),
            Ev::EngineUp { host, life } => self.engine_up(host, life),
            Ev::Start { host } => self.start_guardian(host),
            Ev::Client(client) => self.client_acts(client),
            Ev::ToEngine { host, engine, client, conn, bytes } => {
                self.client_bytes_arrive(host, engine, client, conn, bytes);
            }
            Ev::ToClient { client, conn, bytes, end } => {
                self.client_hears(client, conn, &bytes, end);
            }
            Ev::Fault(fault) => self.apply_fault(fault),
            Ev::Look => self.look(),
        }
    }

    /// A row of the trace.
    pub(crate) fn note(&mut self, host: Option<usize>, what: &str) {
        let (who, view) = match host {
            Some(host) => (["a", "b"][host], self.hosts[host].view()),
            None => ("-", String::new()),
        };
        self.trace.row(self.now, who, &view, what);
    }

    /// A host's clock at world time `now`.
    pub(crate) fn clock(&self, host: usize) -> Instant {
        let clock = &self.plan.clocks[host];
        let drift = (i128::from(self.now) * i128::from(clock.ppm) / 1_000_000) as i64;
        let nanos = self.now.saturating_add_signed(drift) + clock.offset;
        self.base + Duration::from_nanos(nanos)
    }

    /// World time at which a host's clock shows `at`; a little after rather than before.
    pub(crate) fn world_time(&self, host: usize, at: Instant) -> Nanos {
        let clock = &self.plan.clocks[host];
        let local = at.saturating_duration_since(self.base).as_nanos() as u64;
        let local = i128::from(local.saturating_sub(clock.offset));
        let world = local * 1_000_000 / i128::from(1_000_000 + clock.ppm);
        u64::try_from(world).unwrap_or(0) + 1
    }

    /// Is a wire's direction of no use: cut, or a carrier is missing on the clients' segment?
    pub(crate) fn is_cut(&self, path: usize, from: usize) -> bool {
        let segment = path == 0 && self.hosts.iter().any(|host| !host.carrier);
        !self.paths[path].passes(from) || segment
    }

    fn dial(&mut self, kind: Use) {
        self.after(40 * MS, Ev::Dial(kind));
        let refused = self.refused.get(&kind).is_some_and(|until| self.now < *until);
        if refused || self.conns.contains_key(&kind) {
            return;
        }
        let ready = |host: &Host| match kind {
            Use::Control => host.guardian.is_some(),
            Use::Link(_) => host.engine.is_some(),
        };
        if !self.hosts.iter().all(|host| ready(host) && !host.is_paused(self.now)) {
            return;
        }
        let usable = |path: &usize| !self.is_cut(*path, 0) && !self.is_cut(*path, 1);
        let Some(path) = (0..self.paths.len()).find(usable) else { return };
        let id = self.new_life();
        self.conns.insert(kind, Conn::new(id, path));
        match kind {
            Use::Control => (0..2).for_each(|host| self.control_opened(host)),
            Use::Link(link) => (0..2).for_each(|host| self.link_opened(host, link, id)),
        }
    }

    /// Sends on a connection, if there is one of that id.
    pub(crate) fn send(&mut self, kind: Use, id: u64, from: usize, bytes: Vec<u8>) {
        let Some(conn) = self.conns.get_mut(&kind).filter(|conn| conn.id == id) else { return };
        if conn.closed[from] {
            return; // of an end that died before its successor could know of it
        }
        let path = &self.paths[conn.path];
        let at = conn.send(&mut self.rng, path, self.now, from, bytes);
        self.at(at, Ev::Arrive { kind, id, from });
    }

    /// One end of a connection is gone; the other learns it after what was sent before, if the
    /// host still speaks.
    pub(crate) fn close(&mut self, kind: Use, from: usize, delay: Nanos) {
        let Some(conn) = self.conns.get_mut(&kind) else { return };
        conn.closed[from] = true;
        let last = conn.queue[from].back().map_or(0, |(at, _)| *at);
        let at = last.max(self.now + delay + 100 * US);
        conn.queue[from].push_back((at, Vec::new()));
        let id = conn.id;
        self.at(at, Ev::Arrive { kind, id, from });
    }

    fn arrive(&mut self, kind: Use, id: u64, from: usize) {
        let now = self.now;
        let Some(conn) = self.conns.get(&kind).filter(|conn| conn.id == id) else { return };
        if conn.silent {
            return self.break_conn(kind); // given up; or a host that is back knows nothing of it
        }
        let Some((at, _)) = conn.queue[from].front() else { return };
        if *at > now {
            return; // its own event comes
        }
        let stuck = self.is_cut(conn.path, from) || !self.hosts[1 - from].powered;
        let Some(conn) = self.conns.get_mut(&kind) else { return };
        if stuck {
            let since = *conn.stalled[from].get_or_insert(now);
            if now >= since + GIVE_UP {
                return self.break_conn(kind);
            }
            return self.at(retry(now), Ev::Arrive { kind, id, from });
        }
        conn.stalled[from] = None;
        let Some((_, bytes)) = conn.queue[from].pop_front() else { return };
        if bytes.is_empty() {
            return self.end_arrives(kind, from);
        }
        match kind {
            Use::Control => self.guardian_hears(1 - from, &bytes, None),
            Use::Link(link) => self.link_bytes(1 - from, link, id, bytes),
        }
    }

    /// The end sent by `from` has arrived.
    fn end_arrives(&mut self, kind: Use, from: usize) {
        self.conns.remove(&kind);
        match kind {
            Use::Control => self.control_ended(1 - from, true),
            Use::Link(link) => (0..2).for_each(|host| self.link_ended(host, link)),
        }
    }

    /// Both ends lose a connection: given up, or reset by something in between.
    pub(crate) fn break_conn(&mut self, kind: Use) {
        if self.conns.remove(&kind).is_none() {
            return;
        }
        match kind {
            Use::Control => (0..2).for_each(|host| self.control_ended(host, false)),
            Use::Link(link) => (0..2).for_each(|host| self.link_ended(host, link)),
        }
    }

    /// A host says nothing any more: the other end gives its connections up in time.
    pub(crate) fn host_fell_silent(&mut self, host: usize) {
        let mut silent = Vec::new();
        for (kind, conn) in &mut self.conns {
            conn.silent = true;
            conn.closed[host] = true;
            let (kind, id) = (*kind, conn.id);
            silent.push(Ev::Arrive { kind, id, from: host });
        }
        for event in silent {
            self.after(GIVE_UP, event);
        }
    }

    fn look(&mut self) {
        self.after(LOOK, Ev::Look);
        self.look_at_all();
    }
}
