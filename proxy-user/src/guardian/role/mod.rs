//! The role thread: one poll loop around [`crate::node::Node`]. It takes everything that has
//! arrived (engine, peer, adverts, links, orders), feeds the node, performs its effects in order,
//! and sleeps until the node, an address or the link wants it. Nothing else runs here, nothing here
//! waits.

mod disk;
mod effects;
mod report;

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::epoch::EpochFile;
use super::fault::Fault;
use super::legacy::LegacyFile;
use super::mailbox::{Inbox, News, NewsSender, Order, Orders};
use super::peer::{Input, Introduction, PeerLink};
use super::start::{PeerSockets, Sinks};
use super::status::{RefusedAdverts, StatusHandle, WitnessFacts};
use super::steering::{Carrier, Report, Segments, Sign, Source};
use super::witness::{Asker, WitnessThread};
use crate::config::{Config, Pair, Side};
use crate::control::channel::{ChannelError, GuardianEnd};
use crate::control::counters::Counter;
use crate::control::keeper::{KeeperEnd, LEASE, ToKeeper};
use crate::control::message::{Hello, Secret, ToGuardian};
use crate::control::shared::{SharedPage, monotonic_ns, run_realtime};
use crate::node::{
    BootId, Command, EngineEvent, Epoch, Node, NodeConfig, PeerConfig, State, Target,
};

use disk::Disk;

/// Longest sleep while a program counts our beats.
const XDP_BEAT: Duration = Duration::from_millis(20);
/// Between two snapshots for the status page.
const STATUS_EVERY: Duration = Duration::from_millis(200);
/// Messages of the engine taken in one turn.
const MESSAGES_MAX: usize = 256;
/// SCHED_FIFO priority: above ordinary work, below the kernel's own threads.
const PRIORITY: i32 = 40;

/// What the thread is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) page: SharedPage,
    pub(super) epoch_file: EpochFile,
    /// The state folder.
    pub(super) folder: PathBuf,
    /// What the guardian before this one knew of the store.
    pub(super) legacy: LegacyFile,
    pub(super) keeper: Arc<KeeperEnd>,
    /// Sockets and the key for the guardians' link, with a peer.
    pub(super) peer: Option<(PeerSockets, Secret<32>)>,
    /// Derived from the pair's, for the witness.
    pub(super) witness_key: Secret<32>,
    /// Of the clients' listeners, with a peer.
    pub(super) sinks: Option<Sinks>,
    pub(super) orders: Orders,
    pub(super) inbox: Inbox,
    pub(super) news: NewsSender,
    pub(super) status: StatusHandle,
}

/// The thread.
#[derive(Debug)]
pub(super) struct RoleThread {
    thread: Option<JoinHandle<()>>,
}

impl RoleThread {
    /// Opens everything on this thread (so that a refusal is the start's), then starts the thread.
    pub(super) fn start(parts: Parts) -> Result<Self, Fault> {
        let keeper = Arc::clone(&parts.keeper);
        let vips = parts.config.vips.iter().map(|vip| vip.address.into()).collect();
        let mut role = Role::new(parts)?;
        let told = match role.segments.lease_map() {
            Some(map) => {
                let names = vec![LEASE.to_owned()];
                keeper.send_with(&ToKeeper::Keep { names }, &[map])
            }
            // nothing in the kernel knows of a lease: somebody must take them off
            None => keeper.send(&ToKeeper::Addresses(vips)),
        };
        told.map_err(|error| Fault::of("the keeper", error))?;
        let thread = std::thread::Builder::new().name("role".to_owned());
        let thread = thread.stack_size(512 * 1024).spawn(move || role.run());
        let thread = thread.map_err(|error| Fault::of("cannot start a thread", error))?;
        Ok(Self { thread: Some(thread) })
    }

    /// Waits for its end (after [`Order::Clean`]).
    pub(super) fn join(&mut self) {
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The engine as the role thread knows it.
#[derive(Debug)]
struct Engine {
    generation: u32,
    channel: Arc<GuardianEnd>,
    /// It has said hello, and the node knows.
    up: bool,
    /// Nothing comes any more.
    closed: bool,
}

struct Role {
    node: Node,
    segments: Segments,
    link: Option<PeerLink>,
    page: SharedPage,
    disk: Disk,
    legacy: LegacyFile,
    /// Answers that the page had counted when the guardian before this one wrote its legacy.
    counted: u64,
    sinks: Option<Sinks>,
    witness: Option<WitnessThread>,
    /// What it said last, for the status page.
    witness_facts: WitnessFacts,
    inbox: Inbox,
    news: NewsSender,
    engine: Option<Engine>,
    target: Target,
    /// One moment in both clocks; the page counts nanoseconds.
    clock: (u64, Instant),
    status: StatusHandle,
    status_at: Instant,
    refused: RefusedAdverts,
    /// The node waits to be stopped, until then.
    leaving: Option<Instant>,
    resigning: bool,
    done: bool,
    /// Per address: probes sent, and answers of third hosts.
    asked: Vec<(u64, u64)>,
    disk_failures: u64,
    /// Somebody owns our addresses: the likely causes that were said, each once; see
    /// [`PeerLink::likely_cause`].
    blocked_by: Vec<(&'static str, bool)>,
    /// Paths to the peer.
    paths: usize,
}

impl std::fmt::Debug for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Role").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Role {
    fn new(parts: Parts) -> Result<Self, Fault> {
        let Parts { config, page, epoch_file, folder, peer, .. } = parts;
        let Parts { sinks, orders, inbox, news, status, .. } = parts;
        let record = parts.legacy.read();
        // The page's clock first: a lease computed from the pair is never too long.
        let clock = (monotonic_ns(), Instant::now());
        let now = clock.1;
        let boot = boot_id()?;
        let (segments, instances) = Segments::open(now, &config, &folder, &orders, &status)?;
        let persisted = Epoch::new(epoch_file.persisted()).ok_or_else(|| {
            Fault::Runtime("the state file holds an epoch beyond the last one".to_owned())
        })?;
        let pair = config.node.pair.as_ref();
        let node = NodeConfig {
            side: pair.map_or(Side::A, |pair| pair.side),
            boot,
            persisted,
            peer: pair.map(|pair| peer_config(&config, pair)),
            segments: instances.iter().map(|one| segment_path(&config, one)).collect(),
            legacy: record.map(|record| record.legacy),
        };
        let link = pair.zip(peer).map(|(pair, (sockets, key))| {
            let us = introduction(&config, pair, boot);
            PeerLink::new(now, us, key, pair.peers.clone(), sockets)
        });
        let mut node = Node::new(now, node, instances);
        node.start(now);
        for carrier in segments.carriers() {
            status.carrier(carrier.instance, carrier.up);
            node.handle_carrier(now, carrier.instance, carrier.up);
        }
        let witness = witness(&config, boot, parts.witness_key, &orders)?;
        let witness_facts =
            WitnessFacts { configured: witness.is_some(), ..WitnessFacts::default() };
        status.witness(witness_facts.clone());
        let disk = Disk::start(epoch_file, orders)
            .map_err(|error| Fault::of("cannot start a thread", error))?;
        let mut role = Self {
            node,
            segments,
            link,
            page,
            disk,
            legacy: parts.legacy,
            // of another page it says nothing
            counted: record.map_or(0, |record| record.counted).min(page.sum(Counter::AnswersAlone)),
            sinks,
            witness,
            witness_facts,
            inbox,
            news,
            engine: None,
            target: Target::Nobody,
            clock,
            status,
            status_at: now,
            refused: RefusedAdverts::default(),
            leaving: None,
            resigning: false,
            done: false,
            asked: vec![(0, 0); config.vips.len()],
            disk_failures: 0,
            blocked_by: Vec::new(),
            paths: config.node.pair.as_ref().map_or(0, |pair| pair.peers.len()),
        };
        role.perform(now);
        Ok(role)
    }

    fn run(&mut self) {
        realtime();
        while !self.done {
            if let Err(error) = self.sleep() {
                drop(self.news.send(News::Fatal(format!("the role thread cannot poll: {error}"))));
                return;
            }
            self.segments.beat();
            self.page.set_guardian_turn(monotonic_ns());
            self.turn();
        }
    }

    /// Everything that has arrived, then the node's own deadlines.
    fn turn(&mut self) {
        let alone = self.page.sum(Counter::AnswersAlone);
        self.node.handle_alone(alone.saturating_sub(self.counted));
        self.take_orders();
        self.take_engine();
        self.take_peer();
        self.take_adverts();
        self.take_signs();
        let changes = self.segments.links();
        self.carriers(&changes);
        let now = Instant::now();
        if self.node.poll_timeout().is_some_and(|at| at <= now) {
            self.node.handle_timeout(now);
            self.perform(now);
        }
        self.segments.tick(now);
        if self.leaving.take_if(|at| *at <= now || !self.node.awaits_replica(now)).is_some() {
            drop(self.news.send(News::MayLeave));
        }
        if self.resigning && !self.node.state().is_master() {
            self.resigning = false;
            let handed_over = self.node.state() == State::Handover;
            if !handed_over {
                self.sinks = None; // the listeners are closed
            }
            drop(self.news.send(News::Resigned { handed_over }));
        }
        if now >= self.status_at {
            self.publish(now);
        }
    }

    /// Until something arrives or is due.
    fn sleep(&self) -> io::Result<()> {
        let now = Instant::now();
        let link = self.link.as_ref();
        let timers = [
            self.node.poll_timeout(),
            self.segments.poll_timeout(),
            link.and_then(PeerLink::poll_timeout),
            self.segments.has_program().then(|| now + XDP_BEAT),
            Some(self.status_at),
        ];
        let wake = timers.into_iter().flatten().min().unwrap_or(now);
        let mut fds = vec![PollFd::new(self.inbox.as_fd(), PollFlags::POLLIN)];
        let engine = self.engine.as_ref().filter(|engine| !engine.closed);
        fds.extend(engine.map(|one| PollFd::new(one.channel.as_fd(), PollFlags::POLLIN)));
        let peer = link.into_iter().flat_map(PeerLink::interests);
        fds.extend(peer.map(|(fd, flags)| PollFd::new(fd, flags)));
        fds.extend(self.segments.interests().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        let time = TimeSpec::from_duration(wake.saturating_duration_since(now));
        match ppoll(&mut fds, Some(time), None) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn take_orders(&mut self) {
        self.inbox.rearm();
        while let Some(order) = self.inbox.take() {
            let now = Instant::now();
            match order {
                Order::Engine { generation, channel } => {
                    self.engine = Some(Engine { generation, channel, up: false, closed: false });
                }
                Order::EngineGone { generation } => self.engine_gone(now, generation),
                Order::Persisted { epoch, ok } => {
                    self.node.handle_epoch_persisted(now, epoch, ok);
                }
                Order::Witness(answer) => self.node.handle_witness(now, answer),
                Order::Steering(report) => self.take_report(now, report),
                Order::Leave(latest) => {
                    self.leaving = Some(latest);
                    self.node.handle_command(now, Command::Leave);
                }
                Order::Resign => {
                    self.resigning = true;
                    self.node.handle_command(now, Command::Stop);
                }
                Order::Clean => {
                    self.segments.answer(false);
                    self.done = true;
                }
            }
            self.perform(now);
        }
    }

    /// No thread of this engine runs any more.
    fn engine_gone(&mut self, now: Instant, generation: u32) {
        // What it said before it died still counts: a confirmation may be among it.
        self.take_engine();
        let Some(engine) = self.engine.take_if(|engine| engine.generation == generation) else {
            return;
        };
        if engine.up {
            self.node.handle_engine(now, EngineEvent::Died);
            self.perform(now);
        }
        drop(self.news.send(News::MayStart { generation }));
    }

    fn take_engine(&mut self) {
        for _ in 0..MESSAGES_MAX {
            let Some(engine) = self.engine.as_mut().filter(|engine| !engine.closed) else { return };
            let generation = engine.generation;
            let message = match engine.channel.try_recv() {
                Ok(Some((message, _))) => message,
                Ok(None) => return,
                Err(ChannelError::Message(error)) => {
                    tracing::error!(%error, "the engine sent what we do not know");
                    continue;
                }
                Err(_) => {
                    engine.closed = true;
                    return;
                }
            };
            self.take_message(generation, message);
        }
    }

    fn take_message(&mut self, generation: u32, message: ToGuardian) {
        let now = Instant::now();
        match message {
            ToGuardian::Hello(hello) => self.engine_up(now, generation, hello),
            ToGuardian::Failed { reason } => {
                drop(self.news.send(News::Failed { generation, reason }));
            }
            ToGuardian::Prepared { epoch } => {
                if let Some(epoch) = Epoch::new(epoch) {
                    self.node.handle_engine(now, EngineEvent::Prepared(epoch));
                }
            }
            ToGuardian::Sync(event) => {
                self.status.sync_event(&event);
                self.node.handle_engine(now, EngineEvent::Sync(event));
            }
            ToGuardian::Backend(event) => drop(self.news.send(News::Backend(event))),
            ToGuardian::Rested => drop(self.news.send(News::Rested)),
            ToGuardian::Stopped => {}
        }
        self.perform(now);
    }

    fn engine_up(&mut self, now: Instant, generation: u32, hello: Hello) {
        let store = hello.store.as_ref();
        let fresh = store.is_none_or(|store| store.fresh);
        let data_epoch = store.and_then(|store| Epoch::new(store.epoch)).unwrap_or(Epoch::NONE);
        if let Some(engine) = &mut self.engine {
            engine.up = true;
        }
        // The watcher must be armed before the node relies on this engine.
        drop(self.news.send(News::Up { generation, hello }));
        self.tell_role();
        self.tell_target();
        self.node.handle_engine(now, EngineEvent::Up { fresh, data_epoch });
    }

    fn take_peer(&mut self) {
        let Some(link) = &mut self.link else { return };
        let inputs = link.turn(Instant::now());
        // read after the receive: what arrived while others were taken in is not old
        let now = Instant::now();
        for input in inputs {
            match input {
                Input::Message(message, via) => self.node.handle_message(now, &message, via),
                Input::Control(event) => self.node.handle_control(now, event),
                Input::Heard(path) => self.status.path_heard(path, None),
            }
            self.perform(now);
        }
    }

    fn take_adverts(&mut self) {
        let now = Instant::now();
        let node = &mut self.node;
        self.segments.adverts(|instance, received| {
            if let Err(refusal) = node.handle_advert(now, instance, received) {
                tracing::debug!(%refusal, "advert refused");
            }
        });
        self.perform(now);
    }

    /// What the netlink thread did, or saw.
    fn take_report(&mut self, now: Instant, report: Report) {
        let changes = self.segments.report(now, report);
        if changes.present {
            self.node.handle_address(now, true);
        }
        if let Some(Source { instance, source, peer }) = changes.source {
            self.node.handle_source(now, instance, source, peer);
        }
        self.carriers(&changes.carriers);
    }

    fn carriers(&mut self, changes: &[Carrier]) {
        for carrier in changes {
            let now = Instant::now();
            self.status.carrier(carrier.instance, carrier.up);
            self.node.handle_carrier(now, carrier.instance, carrier.up);
            self.perform(now);
        }
    }

    /// What was heard on the addresses' segments.
    fn take_signs(&mut self) {
        let now = Instant::now();
        for event in self.segments.signs(now) {
            match event.sign {
                Sign::Life => {
                    if let Some((_, answers)) = self.asked.get_mut(event.instance) {
                        *answers += 1;
                    }
                    self.node.handle_life(now, event.instance);
                }
                Sign::Targets(known) => self.node.handle_targets(now, event.instance, known),
                Sign::Contact(contact) => self.node.handle_contact(now, event.instance, contact),
            }
            self.perform(now);
        }
    }
}

/// Which path to the peer is the segment of this virtual router.
fn segment_path(config: &Config, instance: &vrrp::Instance) -> Option<usize> {
    let vrrp::Mode::Coupled { peer: Some(peer) } = instance.config().mode else { return None };
    config.node.pair.as_ref()?.peers.iter().position(|path| path.ip() == peer)
}

fn peer_config(config: &Config, pair: &Pair) -> PeerConfig {
    PeerConfig {
        beat: pair.heartbeat,
        dead_after: pair.dead_after,
        boot_wait: pair.boot_wait,
        unsynced_takeover: pair.unsynced_takeover,
        lonely: pair.lonely_segment,
        witness: config.witness.as_ref().map(|witness| witness.unreachable),
        ..PeerConfig::default()
    }
}

fn introduction(config: &Config, pair: &Pair, boot: BootId) -> Introduction {
    Introduction {
        cluster: pair.cluster.clone(),
        side: pair.side,
        boot: boot.0,
        name: config.node.name.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        heartbeat_us: u64::try_from(pair.heartbeat.as_micros()).unwrap_or(u64::MAX),
        dead_after: pair.dead_after,
    }
}

/// The thread that asks the witness, if there is one.
fn witness(
    config: &Config,
    boot: BootId,
    key: Secret<32>,
    orders: &Orders,
) -> Result<Option<WitnessThread>, Fault> {
    let Some((witness, pair)) = config.witness.as_ref().zip(config.node.pair.as_ref()) else {
        return Ok(None);
    };
    let us = Asker { side: pair.side, boot, cluster: pair.cluster.clone(), key };
    let orders = orders.clone();
    let tell = move |answer| orders.send(Order::Witness(answer));
    let thread = WitnessThread::start(witness, &us, tell);
    thread.map(Some).map_err(|error| Fault::of("cannot ask the witness", error))
}

fn boot_id() -> Result<BootId, Fault> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes).map_err(|error| Fault::of("random bytes", error))?;
    Ok(BootId(u64::from_be_bytes(bytes)))
}

/// SCHED_FIFO for the calling thread, children excluded; without the right it goes on without.
fn realtime() {
    if let Err(error) = run_realtime(PRIORITY) {
        tracing::info!(%error, "no SCHED_FIFO: load on this host may delay beats");
    }
}
