//! An engine: the shell over the real cache cores (store, sessions with their gate, the two ends of
//! the replication links, forwarding), one thread that takes turns. What the production engine's
//! workers do with sockets, this does with the world's messages.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cache::replication::{
    AckMode, GateRole, GateState, LinkSession, Receiver, ReceiverConfig, ReceiverEvent, Sender,
    SenderConfig, SenderEvent, Shared, positions,
};
use cache::{Cache, Context, Now, PARTITIONS, Session, StoreTime, Transmit};
use proxy_user::node::{EngineEvent, Epoch, Lease, State, SyncEvent, Target};

use crate::host::Page;
use crate::world::{LINKS, Mutation};

/// What an engine finds in its inbox.
#[derive(Debug, Clone)]
pub(crate) enum Input {
    Prepare(Epoch),
    Gate(u64),
    Target(Target),
    Client { client: usize, conn: u64, bytes: Vec<u8> },
    LinkOpened { link: usize, id: u64 },
    LinkBytes { link: usize, id: u64, bytes: Vec<u8> },
    LinkEnded { link: usize },
}

/// What a turn produced, in order.
#[derive(Debug)]
pub(crate) enum Output {
    Guardian(EngineEvent),
    Client { client: usize, conn: u64, bytes: Vec<u8>, end: bool },
    Link { link: usize, id: u64, bytes: Vec<u8> },
    CloseLinks,
}

/// Lateness of an ack after which answers wait for the replica to be out of sync.
const ACK_TIMEOUT: Duration = Duration::from_millis(20);
/// Bytes of one send on a link.
const BUDGET: usize = 16 * 1024;

enum End {
    /// Connected, but it is not known who is master: what comes is kept.
    Idle(Vec<Vec<u8>>),
    Sender(Box<Sender>),
    Receiver(Box<Receiver>),
}

struct Link {
    id: u64,
    end: End,
    /// Sender: caught up. Receiver: receiving.
    begun: bool,
    /// Receiver: received.
    done: bool,
}

pub(crate) struct Engine {
    pub(crate) life: u64,
    pub(crate) cache: Arc<Cache>,
    pub(crate) inbox: VecDeque<Input>,
    pub(crate) turn_at: Option<u64>,
    shared: Arc<Shared>,
    counters: Arc<cache::stats::Counters>,
    mutation: Mutation,
    target: Target,
    sessions: BTreeMap<(usize, u64), Session>,
    /// Every open client.
    clients: BTreeMap<(usize, u64), ()>,
    links: [Option<Link>; LINKS],
    /// A number per link of this engine.
    number: u64,
    gate: Option<(u64, [u64; PARTITIONS])>,
    late: Option<[u64; PARTITIONS]>,
    out: Vec<Output>,
    /// Answers given in MASTER_SOLO, not told yet.
    alone: u64,
}

struct Nobody;

impl cache::stats::Server for Nobody {
    fn figures(&self) -> cache::stats::Figures {
        unreachable!("no client asks for stats")
    }
    fn reset(&self) {}
}

impl Engine {
    pub(crate) fn new(life: u64, cache: Arc<Cache>, mutation: Mutation) -> Self {
        Self {
            life,
            cache,
            inbox: VecDeque::new(),
            turn_at: None,
            shared: Arc::default(),
            counters: Arc::default(),
            mutation,
            target: Target::Nobody,
            sessions: BTreeMap::new(),
            clients: BTreeMap::new(),
            links: [const { None }; LINKS],
            number: life << 16,
            gate: None,
            late: None,
            out: Vec::new(),
            alone: 0,
        }
    }

    pub(crate) fn take_alone(&mut self) -> u64 {
        std::mem::take(&mut self.alone)
    }

    fn gate_state(&self, page: &Page, now: Instant) -> GateState {
        let role = match page.state {
            _ if !page.guardian_alive => GateRole::Closed,
            State::Master if self.mutation == Mutation::AnswerBeforeAck => GateRole::MasterSolo,
            State::Master => GateRole::Master,
            State::MasterSolo => GateRole::MasterSolo,
            _ => GateRole::Closed,
        };
        let lease_valid = match page.lease {
            Lease::Unlimited => true,
            Lease::Until(until) => now < until,
            Lease::Expired => false,
        };
        GateState { role, epoch: page.epoch.get(), lease_valid, ack_mode: AckMode::Replicated }
    }

    /// One turn: everything that has arrived, then whatever may leave. `now` was read after the
    /// arrivals were taken.
    pub(crate) fn turn(&mut self, page: &Page, now: Instant, seconds: u64) -> Vec<Output> {
        let gate = self.gate_state(page, now);
        let inputs = std::mem::take(&mut self.inbox);
        let cache = Arc::clone(&self.cache);
        let shared = Arc::clone(&self.shared);
        let counters = Arc::clone(&self.counters);
        let store = StoreTime(u32::try_from(seconds).unwrap_or(u32::MAX));
        let ctx = Context {
            cache: &cache,
            shared: &shared,
            gate,
            now: Now { instant: now, store, wall: 1_800_000_000 + seconds },
            counters: &counters,
            server: &Nobody,
        };
        for input in inputs {
            self.handle(&ctx, input);
        }
        self.keep_sessions(&ctx);
        self.transmit_links(&ctx);
        self.transmit_clients(&ctx);
        self.report(&ctx, page);
        std::mem::take(&mut self.out)
    }

    /// Something waits for time to pass.
    pub(crate) fn wants_time(&self) -> bool {
        self.oldest_held().is_some() || self.gate.is_some() || self.late.is_some()
    }

    fn handle(&mut self, ctx: &Context<'_>, input: Input) {
        match input {
            Input::Prepare(epoch) => {
                if self.cache.promote(epoch.get()).is_ok() {
                    self.out.push(Output::Guardian(EngineEvent::Prepared(epoch)));
                }
            }
            Input::Gate(gate) => self.gate = Some((gate, positions(&self.cache))),
            Input::Target(target) => self.retarget(ctx, target),
            Input::Client { client, conn, bytes } => self.client(ctx, client, conn, &bytes),
            Input::LinkOpened { link, id } => {
                self.links[link] =
                    Some(Link { id, end: End::Idle(Vec::new()), begun: false, done: false });
                self.open_end(ctx, link);
            }
            Input::LinkBytes { link, id, bytes } => {
                if self.links[link].as_ref().is_some_and(|l| l.id == id) {
                    self.link_bytes(ctx, link, bytes);
                }
            }
            Input::LinkEnded { link } => self.lose_links(Some(link)),
        }
    }

    fn retarget(&mut self, ctx: &Context<'_>, target: Target) {
        if self.target == target {
            return;
        }
        self.target = target;
        self.gate = None;
        self.late = None;
        let engaged =
            |link: &Option<Link>| link.as_ref().is_some_and(|l| !matches!(l.end, End::Idle(_)));
        if self.links.iter().any(engaged) {
            self.lose_links(None);
        } else {
            (0..LINKS).for_each(|link| self.open_end(ctx, link));
        }
    }

    /// An idle end becomes what the target asks for.
    fn open_end(&mut self, ctx: &Context<'_>, link: usize) {
        let target = self.target;
        let Some(this) = &mut self.links[link] else { return };
        let End::Idle(kept) = &mut this.end else { return };
        let kept = std::mem::take(kept);
        let (cluster, node) = ("sim".to_owned(), "n".to_owned());
        this.end = match target {
            Target::Nobody => End::Idle(kept.clone()),
            Target::Here(epoch) => {
                self.number += 1;
                let config = SenderConfig {
                    cluster,
                    node,
                    link_index: link as u16,
                    link_count: LINKS as u16,
                    session: LinkSession { epoch: epoch.get(), number: self.number },
                    backlog: 64 * 1024,
                };
                End::Sender(Box::new(Sender::new(config, ctx)))
            }
            Target::Peer(epoch) => {
                let config = ReceiverConfig { cluster, node, epoch: epoch.get() };
                End::Receiver(Box::new(Receiver::new(config, &self.cache)))
            }
        };
        if target != Target::Nobody {
            for bytes in kept {
                self.link_bytes(ctx, link, bytes);
            }
        }
    }

    fn link_bytes(&mut self, ctx: &Context<'_>, link: usize, bytes: Vec<u8>) {
        let Some(this) = &mut self.links[link] else { return };
        match &mut this.end {
            End::Idle(kept) => return kept.push(bytes),
            End::Sender(sender) => sender.handle_bytes(ctx, &bytes),
            End::Receiver(receiver) => {
                receiver.handle_bytes(&self.cache, ctx.now.store, &bytes);
            }
        }
        self.link_events(ctx, link);
    }

    fn link_events(&mut self, ctx: &Context<'_>, link: usize) {
        let mut lost = false;
        let Some(this) = &mut self.links[link] else { return };
        match &mut this.end {
            End::Idle(_) => {}
            End::Sender(sender) => {
                while let Some(event) = sender.poll_event() {
                    lost |= matches!(event, SenderEvent::Lost(_));
                    this.begun |= matches!(event, SenderEvent::CaughtUp);
                }
            }
            End::Receiver(receiver) => {
                while let Some(event) = receiver.poll_event() {
                    match event {
                        ReceiverEvent::Receiving { .. } => this.begun = true,
                        ReceiverEvent::Received { .. } => this.done = true,
                        ReceiverEvent::Lost(_) => lost = true,
                        ReceiverEvent::Pong(_) => {}
                        ReceiverEvent::Reply(reply) => {
                            let (client, conn) = key_of(reply.connection);
                            let end = reply.close;
                            if self.clients.contains_key(&(client, conn)) {
                                let bytes = reply.bytes;
                                self.out.push(Output::Client { client, conn, bytes, end });
                            }
                            if end {
                                self.clients.remove(&(client, conn));
                            }
                        }
                    }
                }
            }
        }
        if lost {
            // what it still has to say (a refusal) goes first
            let id = this.id;
            let mut bytes = Vec::new();
            match &mut this.end {
                End::Sender(sender) => {
                    sender.poll_transmit(ctx, &mut bytes, BUDGET);
                }
                End::Receiver(receiver) => {
                    receiver.poll_transmit(&mut bytes);
                }
                End::Idle(_) => {}
            }
            if !bytes.is_empty() {
                self.out.push(Output::Link { link, id, bytes });
            }
            self.lose_links(None);
        }
        self.sync_progress();
    }

    fn sync_progress(&mut self) {
        let all = |f: fn(&Link) -> bool, links: &[Option<Link>]| {
            links.iter().all(|link| link.as_ref().is_some_and(f))
        };
        let event = match self.target {
            Target::Here(epoch) if all(|l| l.begun && !l.done, &self.links) => {
                SyncEvent::CaughtUp { epoch }
            }
            Target::Peer(epoch) if all(|l| l.begun && l.done, &self.links) => {
                for link in self.links.iter_mut().flatten() {
                    link.begun = false; // said once
                }
                self.out.push(sync(SyncEvent::Receiving { epoch }));
                return self.out.push(sync(SyncEvent::Received { epoch }));
            }
            _ => return,
        };
        for link in self.links.iter_mut().flatten() {
            link.done = true; // said once
        }
        self.out.push(sync(event));
    }

    /// The stream as a whole is over. `gone`: the link that is closed already.
    fn lose_links(&mut self, gone: Option<usize>) {
        if let Some(gone) = gone
            && self.links[gone].is_none()
        {
            return; // closed by ourselves
        }
        let mut over = Vec::new();
        for link in self.links.iter_mut() {
            match link.take().map(|link| link.end) {
                Some(End::Sender(mut sender)) => sender.close(&self.cache),
                Some(End::Receiver(mut receiver)) => over.extend(receiver.forward().end()),
                Some(End::Idle(_)) | None => {}
            }
        }
        for connection in over {
            let (client, conn) = key_of(connection);
            self.end_client(client, conn);
        }
        self.gate = None;
        self.late = None;
        self.out.push(Output::CloseLinks);
        self.out.push(sync(SyncEvent::LinksDown));
    }

    fn end_client(&mut self, client: usize, conn: u64) {
        self.sessions.remove(&(client, conn));
        if self.clients.remove(&(client, conn)).is_some() {
            self.out.push(Output::Client { client, conn, bytes: Vec::new(), end: true });
        }
    }

    fn client(&mut self, ctx: &Context<'_>, client: usize, conn: u64, bytes: &[u8]) {
        let key = (client, conn);
        if bytes.is_empty() {
            self.sessions.remove(&key);
            self.clients.remove(&key);
            return;
        }
        self.clients.insert(key, ());
        if ctx.gate.serves() {
            self.sessions.entry(key).or_default().feed(ctx, bytes);
            return;
        }
        let link = &mut self.links[client % LINKS];
        match link.as_mut().map(|link| &mut link.end) {
            Some(End::Receiver(receiver)) if receiver.can_forward() => {
                receiver.forward().send(connection_of(client, conn), bytes);
            }
            _ => self.end_client(client, conn),
        }
    }

    /// A session that belongs to another role: closed unless nobody would notice its end.
    fn keep_sessions(&mut self, ctx: &Context<'_>) {
        if ctx.gate.serves() {
            return;
        }
        let sessions = std::mem::take(&mut self.sessions);
        for ((client, conn), session) in sessions {
            if !session.is_at_rest() {
                self.end_client(client, conn);
            }
        }
    }

    fn transmit_clients(&mut self, ctx: &Context<'_>) {
        let mut ended = Vec::new();
        for ((client, conn), session) in &mut self.sessions {
            let mut bytes = Vec::new();
            session.run(ctx);
            let transmit = session.poll_transmit(ctx, &mut bytes);
            if !bytes.is_empty() {
                self.alone += u64::from(ctx.gate.role == GateRole::MasterSolo);
                let (client, conn) = (*client, *conn);
                self.out.push(Output::Client { client, conn, bytes, end: false });
            }
            if matches!(transmit, Transmit::Close(_)) {
                ended.push((*client, *conn));
            }
        }
        for (client, conn) in ended {
            self.end_client(client, conn);
        }
    }

    fn transmit_links(&mut self, ctx: &Context<'_>) {
        for index in 0..LINKS {
            // a bounded number of sends a turn; nothing here is large
            for _ in 0..64 {
                let Some(link) = &mut self.links[index] else { break };
                let (id, mut bytes) = (link.id, Vec::new());
                let more = match &mut link.end {
                    End::Idle(_) => false,
                    End::Sender(sender) => sender.poll_transmit(ctx, &mut bytes, BUDGET),
                    End::Receiver(receiver) => {
                        receiver.poll_transmit(&mut bytes);
                        false
                    }
                };
                if !bytes.is_empty() {
                    self.out.push(Output::Link { link: index, id, bytes });
                }
                self.link_events(ctx, index);
                if !more {
                    break;
                }
            }
        }
    }

    fn oldest_held(&self) -> Option<Instant> {
        let sessions = self.sessions.values().filter_map(Session::oldest_held_since);
        let links = self.links.iter().flatten().filter_map(|link| match &link.end {
            End::Sender(sender) => sender.oldest_held_since(),
            _ => None,
        });
        sessions.chain(links).min()
    }

    /// What the guardian must know of the replica.
    fn report(&mut self, ctx: &Context<'_>, page: &Page) {
        let now = ctx.now.instant;
        let epoch = page.epoch;
        if let Some((gate, at)) = &self.gate
            && page.state == State::Master
            && ctx.shared.has_all(at)
        {
            let gate = *gate;
            self.gate = None;
            self.out.push(sync(SyncEvent::Gated { gate }));
        }
        let overdue = self.oldest_held().is_some_and(|since| now >= since + ACK_TIMEOUT);
        if overdue && page.state == State::Master && self.late.is_none() {
            self.late = Some(positions(&self.cache));
            self.out.push(sync(SyncEvent::AckLate { epoch }));
        }
        if let Some(at) = &self.late
            && ctx.shared.has_all(at)
        {
            self.late = None;
            self.out.push(sync(SyncEvent::CaughtUp { epoch }));
        }
    }
}

const fn sync(event: SyncEvent) -> Output {
    Output::Guardian(EngineEvent::Sync(event))
}

fn connection_of(client: usize, conn: u64) -> u64 {
    conn << 8 | client as u64
}

const fn key_of(connection: u64) -> (usize, u64) {
    ((connection & 0xff) as usize, connection >> 8)
}
