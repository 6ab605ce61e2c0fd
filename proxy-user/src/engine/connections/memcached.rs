//! memcached clients: [`cache::Session`] on the worker.
//!
//! It is no protocol: the session parses, executes and holds answers until their gate opens. Here
//! are the moments at which it is looked at again: input, a send done, acknowledgements, a change
//! of the role. Sessions that wait stand in the worker's waiting list.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use cache::replication::{AckMode, GateRole, GateState};
use cache::stats::{Counters, Figures, Server, Totals};
use cache::{Cache, Context, Now, Session, StoreTime, Transmit};
use nix::sys::resource::{UsageWho, getrusage};
use nix::time::{ClockId, clock_gettime};
use parking_lot::Mutex;

use super::away::Away;
use super::{Close, Ctx, Kind, OUTBOX_HIGH, Protocol};
use crate::config;
use crate::control::counters::Counter;
use crate::control::role::{Role, State};
use crate::control::shared::{Liveness, Seat, SharedPage, monotonic_ns};
use crate::engine::driver::Key;
use crate::engine::link::forward::News;
use crate::engine::worker::{Core, Shared};

/// While answers wait, the gate is looked at this often even if nobody calls: for the lease.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Expired items are looked for this often, by one worker.
const MAINTAIN_EVERY: Duration = Duration::from_millis(100);
/// Items looked at each time.
const MAINTAIN_BUDGET: usize = 2_000;

/// The store and what belongs to it; one for all workers.
#[derive(Debug)]
pub struct CacheService {
    /// The store.
    pub cache: Cache,
    /// What the peer has acknowledged.
    pub acks: cache::replication::Shared,
    counters: Vec<Counters>,
    reset_at: Mutex<Totals>,
    /// Grows with every acknowledgement that arrived.
    news: AtomicU64,
    /// Workers with sessions that wait for one.
    waiting: Vec<AtomicBool>,
    ack_mode: AckMode,
    ack_timeout: Duration,
    port: u16,
    started: Instant,
}

impl CacheService {
    /// For so many workers.
    #[must_use]
    pub fn new(cache: Cache, config: &config::Cache, workers: usize) -> Self {
        Self {
            cache,
            acks: cache::replication::Shared::default(),
            counters: (0..workers).map(|_| Counters::default()).collect(),
            reset_at: Mutex::default(),
            news: AtomicU64::new(0),
            waiting: (0..workers).map(|_| AtomicBool::new(false)).collect(),
            ack_mode: match config.ack {
                config::Ack::Replicated => AckMode::Replicated,
                config::Ack::Local => AckMode::Local,
            },
            ack_timeout: config.ack_timeout,
            port: config.listen.first().map_or(0, std::net::SocketAddr::port),
            started: Instant::now(),
        }
    }

    /// Acknowledgements have come to this worker: sessions that wait on others are to look.
    pub(crate) fn acknowledged(&self, worker: usize, shared: &Shared) {
        self.news.fetch_add(1, Ordering::Release);
        for (other, waiting) in self.waiting.iter().enumerate() {
            if other != worker && waiting.load(Ordering::Acquire) {
                shared.mailboxes[other].wake();
            }
        }
    }

    fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for counters in &self.counters {
            counters.add_to(&mut totals);
        }
        totals
    }

    fn now(&self, instant: Instant) -> Now {
        let seconds = |clock| clock_gettime(clock).map_or(0, |time| time.tv_sec());
        let boot = seconds(ClockId::CLOCK_BOOTTIME).saturating_add(self.cache.time_offset());
        Now {
            instant,
            store: StoreTime(u32::try_from(boot.max(1)).unwrap_or(u32::MAX)),
            wall: u64::try_from(seconds(ClockId::CLOCK_REALTIME)).unwrap_or(0),
        }
    }
}

/// Role, epoch and lease of this very moment: answers leave under what this says.
#[must_use]
pub fn gate(page: SharedPage, ack_mode: AckMode) -> GateState {
    let role = page.role();
    let serves = role.state.is_master();
    GateState {
        role: match role.state {
            State::Master => GateRole::Master,
            State::MasterSolo => GateRole::MasterSolo,
            _ => GateRole::Closed,
        },
        epoch: role.epoch,
        // A dead guardian renews no lease, and can not end one either.
        lease_valid: serves
            && page.lease_valid(monotonic_ns())
            && !matches!(page.liveness(Seat::Guardian), Liveness::Died),
        ack_mode,
    }
}

impl Server for Shared {
    fn figures(&self) -> Figures {
        let role = self.page.role();
        let usage = getrusage(UsageWho::RUSAGE_SELF).ok();
        let time = |time: nix::sys::time::TimeVal| {
            Duration::from_micros(
                u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0),
            )
        };
        let service = self.cache.as_ref();
        let totals = service.map(|service| service.totals().since(&service.reset_at.lock()));
        Figures {
            pid: std::process::id(),
            uptime: service.map(|service| service.started.elapsed()).unwrap_or_default(),
            rusage_user: usage.map(|usage| time(usage.user_time())).unwrap_or_default(),
            rusage_system: usage.map(|usage| time(usage.system_time())).unwrap_or_default(),
            max_connections: self.connections_max as u64,
            curr_connections: self.connections.load(Ordering::Relaxed) as u64,
            total_connections: self.page.sum(Counter::Accepted),
            rejected_connections: self.page.sum(Counter::ConnectionsRefused),
            threads: self.mailboxes.len() as u64,
            tcp_port: service.map(|service| service.port).unwrap_or_default(),
            role: role.state.as_str(),
            totals: totals.unwrap_or_default(),
            replication: vec![
                ("role", role.state.as_str().to_owned()),
                ("epoch", role.epoch.to_string()),
                ("answers_held", self.page.sum(Counter::AnswersHeld).to_string()),
            ],
        }
    }

    fn reset(&self) {
        if let Some(service) = &self.cache {
            *service.reset_at.lock() = service.totals();
        }
    }
}

/// A worker's part.
#[derive(Debug, Default)]
pub(crate) struct Local {
    /// Sessions with answers that wait for the gate.
    waiting: Vec<Key>,
    /// Clients whose commands wait for a way to the master.
    parked: Vec<Key>,
    role: Option<Role>,
    news: u64,
    ways: u64,
    looked: Option<Instant>,
    /// Since when an answer to a forwarded command waits here.
    held_elsewhere: Option<Instant>,
    now: Option<Now>,
    maintained: Option<Instant>,
    /// Changes made by this worker's clients, as last reported.
    writes: u64,
    /// Clients that the stop waits for.
    finishing: usize,
}

impl Local {
    pub(crate) fn next_turn(&self, now: Instant) -> Option<Instant> {
        let maintain = self.maintained.map(|at| at + MAINTAIN_EVERY);
        let waits = !self.waiting.is_empty() || self.held_elsewhere.is_some();
        let look = waits.then(|| now + LOOK_AGAIN);
        [maintain, look].into_iter().flatten().min()
    }

    /// Whoever was there when the engine began to stop has had what it asked for.
    pub(crate) const fn is_rested(&self) -> bool {
        self.finishing == 0
    }

    /// Has a client called when there is a new way to the master.
    pub(super) fn park(&mut self, key: Key) {
        self.parked.push(key);
    }

    /// It is gone, or found another way.
    pub(super) fn unpark(&mut self, key: Key) {
        self.parked.retain(|other| *other != key);
    }

    /// An answer to the peer's client waits on this worker.
    pub(crate) fn held_elsewhere(&mut self, since: Instant) {
        self.held_elsewhere = Some(self.held_elsewhere.map_or(since, |other| other.min(since)));
    }
}

/// Everything around a session for one call.
pub(crate) fn context<'a>(shared: &'a Shared, worker: usize, now: Now) -> Option<Context<'a>> {
    let service = shared.cache.as_ref()?;
    Some(Context {
        cache: &service.cache,
        shared: &service.acks,
        gate: gate(shared.page, service.ack_mode),
        now,
        counters: service.counters.get(worker)?,
        server: shared,
    })
}

/// Where a client's commands are executed.
#[derive(Debug)]
enum Mode {
    /// By this node.
    Here(Session),
    /// By the master, over a link.
    Away(Away),
}

/// One client.
#[derive(Debug)]
pub struct Memcached {
    shared: Arc<Shared>,
    mode: Mode,
    waiting: bool,
    paused: bool,
    eof: bool,
    /// The engine stops: closed as soon as nothing is owed.
    leaving: bool,
    /// The stop waits for it.
    finishing: bool,
    /// It came between the engine's rest and the end of its role: not read before that.
    early: bool,
}

impl Memcached {
    /// A new client.
    pub(crate) fn kind(core: &Core) -> Kind {
        Kind::Memcached(Box::new(Self {
            shared: Arc::clone(&core.shared),
            mode: Mode::Here(Session::new()),
            waiting: false,
            paused: false,
            eof: false,
            leaving: core.resting,
            finishing: false,
            early: false,
        }))
    }

    /// Something is owed to it.
    pub(crate) fn is_busy(&self) -> bool {
        match &self.mode {
            Mode::Here(session) => !session.is_at_rest() || session.unsent() > 0,
            Mode::Away(away) => !away.is_idle(),
        }
    }

    /// Closes it, if it is to go and nothing is owed to it.
    fn leave(&self, ctx: &mut Ctx<'_>) {
        if self.leaving && !self.is_busy() {
            ctx.close(Close::Flush);
        }
    }

    /// Takes input, and goes over to where it is to be executed if that has changed. A client that
    /// waits for nothing does not notice; any other is closed, for its commands must not run twice.
    fn feed(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>) {
        let serves = self.shared.page.role().state.is_master();
        match &mut self.mode {
            Mode::Here(session) if serves || !session.is_at_rest() => {
                let now = ctx.core.cache_now();
                if let Some(context) = context(&self.shared, ctx.core.index, now) {
                    session.feed(&context, bytes);
                }
                self.transmit(ctx);
            }
            Mode::Here(_) => {
                let mut away = Away::new(ctx);
                away.feed(bytes, ctx);
                self.mode = Mode::Away(away);
            }
            Mode::Away(away) if serves => {
                if !away.is_at_rest() {
                    ctx.close(Close::Flush);
                    return;
                }
                let parked = away.leave(ctx);
                self.mode = Mode::Here(Session::new());
                if !parked.is_empty() {
                    self.feed(&parked, ctx);
                }
                if !bytes.is_empty() {
                    self.feed(bytes, ctx);
                }
            }
            Mode::Away(away) => away.feed(bytes, ctx),
        }
    }

    /// Sends what may leave, runs what that made room for, and notes what waits.
    fn transmit(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.core.cache_now();
        let Mode::Here(session) = &mut self.mode else { return };
        let state = loop {
            let Some(context) = context(&self.shared, ctx.core.index, now) else {
                ctx.close(Close::Now);
                return;
            };
            let before = ctx.out().len();
            let state = session.poll_transmit(&context, ctx.out());
            if ctx.out().len() > before && context.gate.role == GateRole::MasterSolo {
                // before it leaves: at a heal the side that answered clients alone wins
                ctx.core.page.add(Counter::AnswersAlone, 1);
            }
            if state != Transmit::Idle || !session.wants_run() || ctx.unsent() > OUTBOX_HIGH {
                break state;
            }
            session.run(&context);
        };
        if let Transmit::Close(reason) = state {
            tracing::debug!(%reason, "memcached client closed");
            ctx.close(Close::Flush);
            return;
        }
        if self.eof && session.unsent() == 0 && !session.wants_run() {
            ctx.close(Close::Flush);
            return;
        }
        if state == Transmit::Held && !self.waiting {
            self.waiting = true;
            ctx.core.locals.memcached.waiting.push(ctx.key);
        }
        if self.leaving && session.is_at_rest() && session.unsent() == 0 {
            ctx.close(Close::Flush);
            return;
        }
        let pause = !session.wants_read();
        if pause != self.paused {
            self.paused = pause;
            if pause { ctx.pause() } else { ctx.resume() }
        }
    }

    /// The gate may have moved, or the role: what waits, and since when.
    fn look(&mut self, ctx: &mut Ctx<'_>) -> Option<Instant> {
        self.waiting = false;
        let serves = self.shared.page.role().state.is_master();
        if !serves && std::mem::take(&mut self.early) {
            ctx.resume();
        }
        match &self.mode {
            Mode::Here(session) if !serves && session.is_at_rest() => return None,
            Mode::Here(session) if !serves && session.unsent() == 0 => {
                // Half a command, whose other half would come to another session.
                ctx.close(Close::Flush);
                return None;
            }
            Mode::Here(_) => self.transmit(ctx),
            Mode::Away(_) if serves => self.feed(&[], ctx),
            Mode::Away(_) => {}
        }
        match &self.mode {
            Mode::Here(session) => session.oldest_held_since(),
            Mode::Away(_) => None,
        }
    }

    /// Something came of what was forwarded.
    pub(crate) fn on_news(&mut self, client: u64, news: News, ctx: &mut Ctx<'_>) {
        let eof = self.eof;
        if let Mode::Away(away) = &mut self.mode
            && away.is(client)
        {
            away.on_news(news, ctx);
            if eof && away.is_idle() {
                ctx.close(Close::Flush);
            }
        }
        self.leave(ctx);
    }
}

impl Protocol for Memcached {
    fn on_open(&mut self, ctx: &mut Ctx<'_>) {
        if self.leaving && self.shared.page.role().state.is_master() {
            self.early = true;
            ctx.pause();
        }
    }

    fn on_data(&mut self, bytes: &[u8], ctx: &mut Ctx<'_>) {
        self.feed(bytes, ctx);
    }

    fn on_sent(&mut self, ctx: &mut Ctx<'_>) {
        if let Mode::Here(session) = &self.mode
            && (session.wants_run() || self.paused)
        {
            self.transmit(ctx);
        }
    }

    /// A peer that has sent its end still wants its answers, those that wait too.
    fn on_eof(&mut self, ctx: &mut Ctx<'_>) {
        self.eof = true;
        match &self.mode {
            Mode::Here(_) => self.transmit(ctx),
            Mode::Away(away) if away.is_idle() => ctx.close(Close::Flush),
            Mode::Away(_) => {}
        }
    }

    /// There may be a way for what is parked.
    fn on_poke(&mut self, ctx: &mut Ctx<'_>) {
        if matches!(self.mode, Mode::Away(_)) {
            self.feed(&[], ctx);
        }
    }

    fn on_stop(&mut self, ctx: &mut Ctx<'_>) {
        self.leaving = true;
        self.finishing = true;
        ctx.core.locals.memcached.finishing += 1;
        self.leave(ctx);
    }

    fn on_close(&mut self, _reason: &super::Closed, ctx: &mut Ctx<'_>) {
        if std::mem::take(&mut self.finishing) {
            ctx.core.locals.memcached.finishing -= 1;
        }
        if let Mode::Away(away) = &mut self.mode {
            away.leave(ctx);
        }
    }
}

/// Once a turn: sessions that wait, after news; all of them, after a change of the role.
pub(crate) fn on_turn(core: &mut Core) {
    let shared = Arc::clone(&core.shared);
    let Some(service) = &shared.cache else { return };
    let mut oldest = core.locals.memcached.held_elsewhere.take();
    for key in look_at(core, service, shared.page.role()) {
        let since = core.with(key, |kind, ctx| match kind {
            Kind::Memcached(client) => client.look(ctx),
            _ => None,
        });
        oldest = [oldest, since.flatten()].into_iter().flatten().min();
    }
    let waits = !core.locals.memcached.waiting.is_empty();
    service.waiting[core.index].store(waits, Ordering::Release);
    let ways = shared.streams.ways();
    if std::mem::replace(&mut core.locals.memcached.ways, ways) != ways {
        for key in std::mem::take(&mut core.locals.memcached.parked) {
            core.poke(key);
        }
    }
    report_late(core, service, oldest);
    maintain(core, service);
}

/// The sessions whose gate may have moved since the last turn.
fn look_at(core: &mut Core, service: &CacheService, role: Role) -> Vec<Key> {
    let now = core.now;
    let news = service.news.load(Ordering::Acquire);
    let local = &mut core.locals.memcached;
    if local.role.replace(role) != Some(role) {
        local.waiting.clear();
        if role.state == State::MasterSolo && !service.cache.solo() {
            service.cache.set_solo(true);
        }
        return core.keys();
    }
    let is_news = std::mem::replace(&mut local.news, news) != news;
    let is_old = local.looked.is_none_or(|at| now >= at + LOOK_AGAIN);
    if local.waiting.is_empty() || !(is_news || is_old) {
        return Vec::new();
    }
    local.looked = Some(now);
    std::mem::take(&mut local.waiting)
}

fn report_late(core: &Core, service: &CacheService, oldest: Option<Instant>) {
    core.page.set(Counter::AnswersHeld, core.locals.memcached.waiting.len() as u64);
    match oldest.map(|since| core.now.saturating_duration_since(since).as_nanos()) {
        Some(age) => {
            let age = u64::try_from(age).unwrap_or(u64::MAX);
            core.page.set_held_since(Some(monotonic_ns().saturating_sub(age)));
        }
        None if core.locals.memcached.waiting.is_empty() => core.page.set_held_since(None),
        None => {}
    }
    let late = oldest.is_some_and(|since| core.now.duration_since(since) > service.ack_timeout);
    let role = core.shared.page.role();
    if late && role.state == State::Master {
        core.shared.streams.late(&core.shared, service, role.epoch);
    }
}

/// Expiry and figures: the first worker's, a bounded bit each time.
fn maintain(core: &mut Core, service: &CacheService) {
    if core.index != 0 {
        return report(core, service);
    }
    let due = core.locals.memcached.maintained.is_none_or(|at| core.now >= at + MAINTAIN_EVERY);
    if !due {
        return;
    }
    core.locals.memcached.maintained = Some(core.now);
    let now = core.cache_now();
    service.cache.maintain(now.store, MAINTAIN_BUDGET);
    let counters = service.cache.counters();
    core.page.set(Counter::CacheItems, counters.items);
    core.page.set(Counter::CacheBytes, counters.bytes);
    core.page.set(Counter::CacheEvictions, counters.evictions);
    core.page.set(Counter::CacheExpired, counters.expired);
    report(core, service);
}

/// What this worker's clients did, for the guardian.
fn report(core: &mut Core, service: &CacheService) {
    use cache::stats::Counter as C;
    let Some(own) = service.counters.get(core.index) else { return };
    let writes = [C::CmdSet, C::CmdFlush, C::DeleteHits, C::IncrHits, C::DecrHits, C::TouchHits];
    let writes = writes.iter().map(|counter| own.value(*counter)).sum();
    let before = std::mem::replace(&mut core.locals.memcached.writes, writes);
    if core.shared.config.link.is_some() && core.shared.page.role().state == State::MasterSolo {
        core.page.add(Counter::AnswersUnprotected, writes - before);
    }
    let commands = [
        C::CmdGet,
        C::CmdSet,
        C::CmdTouch,
        C::CmdFlush,
        C::DeleteHits,
        C::DeleteMisses,
        C::IncrHits,
        C::IncrMisses,
        C::DecrHits,
        C::DecrMisses,
    ];
    let commands = commands.iter().map(|counter| own.value(*counter)).sum();
    core.page.set(Counter::CacheCommands, commands);
    core.page.set(Counter::CacheGets, own.value(C::CmdGet));
    core.page.set(Counter::CacheHits, own.value(C::GetHits));
    core.page.set(Counter::CacheSets, own.value(C::CmdSet));
}

impl Core {
    /// The cache's clocks, read once a turn.
    pub(crate) fn cache_now(&mut self) -> Now {
        if let Some(now) = self.locals.memcached.now
            && now.instant == self.now
        {
            return now;
        }
        let now = self.shared.cache.as_ref().map(|service| service.now(self.now));
        let now = now.unwrap_or(Now { instant: self.now, store: StoreTime(1), wall: 0 });
        self.locals.memcached.now = Some(now);
        now
    }
}
