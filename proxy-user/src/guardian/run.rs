//! `tandem run`: the order of start and stop, and the main thread's loop.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::UnixStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant as TokioInstant, MissedTickBehavior, interval, sleep_until};

use super::demo::{Demos, Places};
use super::engine::{Engines, Estate, Next};
use super::epoch::EpochFile;
use super::fault::Fault;
use super::health;
use super::host;
use super::legacy::LegacyFile;
use super::mailbox::{News, Order, Orders, mailbox};
use super::rights;
use super::role::{Parts, RoleThread};
use super::start::{self, Listeners, Lock, PairKey};
use super::status::{self, StatusHandle};
use crate::cli;
use crate::config::Config;
use crate::control::descriptors::{Rank, rank};
use crate::control::keeper::{self, Inherited, KeeperEnd, Lives, ToKeeper};
use crate::control::message::{Identity, Link, ServerState, Snapshot, VERSION};
use crate::control::shared::{Held, Seat, SharedPage};
use crate::telemetry;
use crate::witness::KEY_LABEL;

/// Between two looks at the workers' loop counters.
const TICK: Duration = Duration::from_millis(50);
/// Time to finish the commands that the cache has received, before the role is given away.
const REST_TIME: Duration = Duration::from_millis(100);
/// Time for a killed engine to be gone.
const GRACE: Duration = Duration::from_secs(2);
/// Time to give the role away.
const RESIGN_TIME: Duration = Duration::from_secs(1);

/// Runs a node until it is stopped; `keeper` is the socket of the process that started this one.
///
/// # Errors
/// A wrong configuration, a host that refuses, an engine that cannot start.
pub fn run(options: &cli::Run, keeper: OwnedFd) -> Result<(), Fault> {
    let keeper = KeeperEnd::new(keeper);
    let mut inherited = keeper::inherit(&keeper)
        .map_err(|error| Fault::of("a guardian is started by `tandem run`", error))?;
    let (mut config, text, places) = match &options.config {
        Some(file) => {
            let text = start::text(file, &mut inherited)?;
            (start::parse(&text, file)?, Some(text), None)
        }
        None => {
            let places = Places::bind()?;
            (Config::single(&places.addresses()), None, Some(places))
        }
    };
    start::apply(options, &mut config);
    rights::keep(&config)?;
    let _logs =
        telemetry::init(&config.log).map_err(|error| Fault::of("cannot start logging", error))?;
    if let Some(ended) = &inherited.lives.ended {
        tracing::warn!(ended, "this guardian follows one that died");
    }
    let warnings = start::host(&mut config)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    let node = Node::prepare(config, text, keeper, inherited)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Fault::of("cannot start the runtime", error))?;
    let done = runtime.block_on(node.run(places));
    // Tasks end here, and with them whatever child is left.
    runtime.shutdown_timeout(Duration::from_millis(200));
    done
}

/// Everything that is there before the first thread and child.
struct Node {
    config: Arc<Config>,
    /// The configuration file's text, as opposed to the default node's.
    text: Option<String>,
    keeper: Arc<KeeperEnd>,
    lives: Lives,
    lock: Lock,
    page: SharedPage,
    seat: Held,
    key: PairKey,
    epoch_file: EpochFile,
    page_fd: OwnedFd,
    store: Option<OwnedFd>,
    legacy: LegacyFile,
    listeners: Listeners,
    identity: Option<Identity>,
}

impl Node {
    fn prepare(
        config: Config,
        text: Option<String>,
        keeper: KeeperEnd,
        mut inherited: Inherited,
    ) -> Result<Self, Fault> {
        let configured = text.is_some();
        let key = start::key(&config, &mut inherited)?;
        let folder = start::state_dir(&config, configured);
        let lock = start::lock(&folder, !configured, inherited.take(start::LOCK))?;
        let epoch_file = EpochFile::open(&folder).map_err(|error| {
            Fault::Runtime(format!(
                "the state file {}: {error}\n  hint: it keeps an epoch from being used twice; if \
                 it cannot be restored, stop both nodes and remove it on both",
                folder.join("epoch").display()
            ))
        })?;
        let identity = rights::identity(&config.engine.user)?;
        if identity.is_none() {
            tracing::info!("not root: the engine runs as the same user");
        }
        let workers = start::workers(&config);
        let listeners = Listeners::create(&config, workers, &mut inherited)?;
        let fault = |error| Fault::of("cannot make shared memory", error);
        let (page, page_fd) = start::page(workers, &mut inherited).map_err(fault)?;
        let seat = page.hold(Seat::Guardian).map_err(fault)?;
        let (store, legacy) = start::store(&config, &mut inherited).map_err(fault)?;
        host::lock_memory();
        let node = Self {
            config: Arc::new(config),
            text,
            keeper: Arc::new(keeper),
            lives: inherited.lives,
            lock,
            page,
            seat,
            key,
            epoch_file,
            page_fd,
            store,
            legacy,
            listeners,
            identity,
        };
        node.leave_with_the_keeper()?;
        Ok(node)
    }

    /// What the next guardian needs, should this one die.
    fn leave_with_the_keeper(&self) -> Result<(), Fault> {
        let fault = |error: std::io::Error| Fault::of("cannot make shared memory", error);
        let key = start::memory(c"tandem-key", self.key.bytes()).map_err(fault)?;
        let name = if self.config.node.pair.is_some() { start::PAIR_KEY } else { start::OWN_KEY };
        let text = self.text.as_ref().map(|text| start::memory(c"tandem-config", text.as_bytes()));
        let text = text.transpose().map_err(fault)?;
        let mut all = vec![
            (start::LOCK.to_owned(), self.lock.as_fd()),
            (keeper::PAGE.to_owned(), self.page_fd.as_fd()),
            (start::LEGACY.to_owned(), self.legacy.as_fd()),
            (name.to_owned(), key.as_fd()),
        ];
        all.extend(text.as_ref().map(|text| (start::CONFIG.to_owned(), text.as_fd())));
        all.extend(self.store.as_ref().map(|store| (start::STORE.to_owned(), store.as_fd())));
        all.extend(self.listeners.names());
        keeper::keep(&self.keeper, &all).map_err(|error| Fault::of("the keeper", error))
    }

    fn snapshot(&self) -> Snapshot {
        let config = &self.config;
        let pair = config.node.pair.as_ref().filter(|_| config.cache.is_some());
        let peers =
            |peers: &[SocketAddr]| peers.iter().map(|peer| start::next_port(*peer)).collect();
        Snapshot {
            version: VERSION,
            node: config.node.name.clone(),
            workers: u16::try_from(self.page.workers()).unwrap_or(1),
            io: config.engine.io,
            generation: 0,
            cache: config.cache.clone(),
            hash_key: self.key.derive_short("tandem item placement 1"),
            http: config.http.clone(),
            upstreams: config.upstreams.clone(),
            listeners: self.listeners.descriptions().to_vec(),
            link: pair.map(|pair| Link {
                side: pair.side,
                cluster: pair.cluster.clone(),
                key: self.key.derive("tandem engines 1"),
                peers: peers(&pair.peers),
            }),
            log: config.log.clone(),
            identity: self.identity,
        }
    }

    /// Starts role thread, engine and servers; runs until the end.
    async fn run(mut self, places: Option<Places>) -> Result<(), Fault> {
        let signals = Signals::new()?;
        let (news, incoming) = unbounded_channel();
        let (orders, inbox) =
            mailbox().map_err(|error| Fault::of("cannot make a mailbox", error))?;
        let snapshot = self.snapshot();
        let status = StatusHandle::new(&self.config, self.page);
        let admin = self.listeners.admin.try_clone();
        let admin = admin.map_err(|error| Fault::of("admin server", error))?;
        let sinks = self.listeners.sinks(&self.config);
        let sinks = sinks.map_err(|error| Fault::of("cannot make listeners", error))?;
        let peer = self.listeners.peer.take();
        let role = RoleThread::start(Parts {
            config: Config::clone(&self.config),
            page: self.page,
            epoch_file: self.epoch_file,
            folder: start::state_dir(&self.config, self.text.is_some()),
            legacy: self.legacy,
            keeper: Arc::clone(&self.keeper),
            witness_key: self.key.derive(KEY_LABEL),
            peer: peer.map(|sockets| (sockets, self.key.derive("tandem guardians 1"))),
            sinks,
            orders: orders.clone(),
            inbox,
            news: news.clone(),
            status: status.clone(),
        })?;
        let estate = Estate {
            page: self.page,
            page_fd: self.page_fd,
            store: self.store,
            listeners: self.listeners,
            snapshot,
            stall_kill: self.config.engine.stall_kill,
            before: self.lives.before,
        };
        status.lives(&self.lives);
        let main = Main {
            engines: Engines::new(estate, orders.clone(), news.clone(), status.clone())?,
            config: self.config,
            configured: self.text.is_some(),
            silent: self.lives.before > 0,
            keeper: self.keeper,
            role,
            orders,
            incoming,
            signals,
            status,
            start_at: None,
            greeted: false,
            may_leave: false,
            rested: false,
            resigned: None,
            hurry: false,
            admin: Some(admin),
            _seat: self.seat,
            _lock: self.lock,
        };
        let demos = match places {
            Some(places) => Some(places.start(main.cache_address())?),
            None => None,
        };
        main.run(demos).await
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Fault> {
        let of = |kind| signal(kind).map_err(|error| Fault::of("cannot handle signals", error));
        Ok(Self {
            interrupt: of(SignalKind::interrupt())?,
            terminate: of(SignalKind::terminate())?,
            hangup: of(SignalKind::hangup())?,
        })
    }

    /// The next wish to stop.
    async fn stop(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.hangup.recv() => {
                    tracing::warn!("SIGHUP: reload is not supported yet; restart to read the file");
                }
            }
        }
    }
}

/// The main thread.
struct Main {
    config: Arc<Config>,
    configured: bool,
    /// An earlier guardian has told the user what is up.
    silent: bool,
    keeper: Arc<KeeperEnd>,
    role: RoleThread,
    orders: Orders,
    incoming: UnboundedReceiver<News>,
    signals: Signals,
    engines: Engines,
    status: StatusHandle,
    start_at: Option<Instant>,
    /// The user was told what is up.
    greeted: bool,
    /// The peer is in sync, or nobody waits for that any more.
    may_leave: bool,
    /// The engine owes nothing to the cache's clients.
    rested: bool,
    /// The node answers nothing any more; true: the other one does.
    resigned: Option<bool>,
    /// A second signal: do not wait.
    hurry: bool,
    admin: Option<TcpListener>,
    _seat: Held,
    _lock: Lock,
}

impl Main {
    /// Where a local client finds the cache.
    fn cache_address(&self) -> SocketAddr {
        let first = self.config.cache.as_ref().and_then(|cache| cache.listen.first().copied());
        reachable(first.unwrap_or_else(|| ([127, 0, 0, 1], 11211).into()))
    }

    async fn run(mut self, demos: Option<Demos>) -> Result<(), Fault> {
        let (told, states) = unbounded_channel();
        let (config, status) = (Arc::clone(&self.config), self.status.clone());
        let checks = tokio::spawn(async move {
            let tell = |states| {
                // Fails only when the node is stopping.
                told.send(states).ok();
            };
            health::run(&config.upstreams, status, tell).await;
        });
        let (stop_admin, admin) = self.serve_admin();
        let ended = match self.engines.start() {
            Ok(()) => self.serve(states).await,
            Err(fault) => Err(fault),
        };
        checks.abort();
        self.status.stopping();
        self.stop().await;
        if let Some(demos) = demos {
            demos.stop().await;
        }
        self.role.join();
        drop(stop_admin);
        if let Some(admin) = admin {
            admin.await.ok();
        }
        ended
    }

    /// Starts the admin server; dropping the sender ends it.
    fn serve_admin(&mut self) -> (oneshot::Sender<()>, Option<JoinHandle<()>>) {
        let (stop, stopped) = oneshot::channel::<()>();
        let status = self.status.clone();
        let task = self.admin.take().map(|listener| {
            tokio::spawn(async move {
                let stopped = async {
                    stopped.await.ok();
                };
                if let Err(error) = status::serve(listener, status, stopped).await {
                    tracing::error!(%error, "the admin server has ended");
                }
            })
        });
        (stop, task)
    }

    /// Until a signal or a fault.
    async fn serve(
        &mut self,
        mut states: UnboundedReceiver<Vec<Vec<ServerState>>>,
    ) -> Result<(), Fault> {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let keeper = watchable(&self.keeper);
        let keeper = keeper.map_err(|error| Fault::of("cannot watch the keeper", error))?;
        loop {
            let start_at = self.start_at.map(TokioInstant::from_std);
            let start = sleep_until(start_at.unwrap_or_else(TokioInstant::now));
            tokio::select! {
                biased;
                Some(news) = self.incoming.recv() => self.take(news)?,
                name = self.signals.stop() => {
                    tracing::info!(signal = name, "stopping; once more to stop at once");
                    return Ok(());
                }
                () = start, if start_at.is_some() => {
                    self.start_at = None;
                    self.engines.start()?;
                }
                Some(states) = states.recv() => self.engines.backends(states),
                // it says nothing once the start is over: this is its end
                _ = keeper.readable() => {
                    return Err(Fault::Runtime("the keeper is gone: the node stops".to_owned()));
                }
                _ = tick.tick() => self.engines.tick(Instant::now()),
            }
        }
    }

    fn take(&mut self, news: News) -> Result<(), Fault> {
        match news {
            News::Seen(seen) => self.engines.handle_seen(seen),
            News::Up { generation, hello } => {
                tracing::info!(io = %hello.io, generation, "engine serves");
                self.engines.handle_up(generation, hello);
                self.greet();
            }
            News::Failed { generation, reason } => {
                tracing::error!(generation, reason, "the engine cannot serve");
                if !self.greeted {
                    return Err(Fault::Runtime(format!("the engine cannot start: {reason}")));
                }
            }
            News::MayStart { generation } => match self.engines.handle_may_start(generation) {
                Next::StartAfter(pause) if pause.is_zero() => self.engines.start()?,
                Next::StartAfter(pause) => {
                    tracing::warn!(?pause, "the engine keeps dying: waiting before the next");
                    self.start_at = Some(Instant::now() + pause);
                }
                Next::Nothing => {}
            },
            News::Exited { generation, how, killed } => {
                self.engines.handle_exited(generation, &how, killed);
            }
            News::Backend(event) => self.status.passive(event),
            News::MayLeave | News::Rested | News::Resigned { .. } => {}
            News::Fatal(reason) => return Err(Fault::Runtime(reason)),
        }
        Ok(())
    }

    /// Waits for the peer to be in sync, gives the role away, lets the engine finish and close its
    /// sockets, removes what is on the host. A second signal skips the waiting.
    async fn stop(&mut self) {
        let patience = self.config.engine.stop_patience;
        self.orders.send(Order::Leave(Instant::now() + patience));
        self.settle(patience + RESIGN_TIME, |main| main.may_leave).await;
        self.engines.rest();
        self.settle(REST_TIME, |main| main.rested || main.engines.none_left()).await;
        self.orders.send(Order::Resign);
        self.settle(RESIGN_TIME, |main| main.resigned.is_some()).await;
        let handed_over = self.resigned == Some(true);
        self.engines.stop(patience, handed_over);
        if !handed_over {
            // whoever waits to be accepted is reset, and connects to the other node
            self.tell_keeper(&ToKeeper::Only { names: Vec::new() });
        }
        self.settle(patience + RESIGN_TIME, |main| main.engines.none_left()).await;
        self.engines.kill_all();
        self.hurry = false;
        self.settle(GRACE, |main| main.engines.none_left()).await;
        self.orders.send(Order::Clean);
    }

    /// Takes news until `done`, but no longer than `limit`.
    async fn settle(&mut self, limit: Duration, done: impl Fn(&Self) -> bool) {
        let until = TokioInstant::now() + limit;
        while !done(self) && !self.hurry {
            tokio::select! {
                biased;
                Some(news) = self.incoming.recv() => match news {
                    News::MayLeave => self.may_leave = true,
                    News::Rested => self.rested = true,
                    News::Resigned { handed_over } => self.resigned = Some(handed_over),
                    News::Exited { generation, how, killed } => {
                        self.engines.handle_exited(generation, &how, killed);
                    }
                    _ => {}
                },
                name = self.signals.stop() => {
                    tracing::info!(signal = name, "stopping at once");
                    self.hurry = true;
                }
                () = sleep_until(until) => return,
            }
        }
    }

    /// Once, when the first engine serves.
    fn greet(&mut self) {
        if std::mem::replace(&mut self.greeted, true) {
            return;
        }
        self.tell_keeper(&ToKeeper::Ready);
        if !self.silent {
            let text = greeting(&self.config, self.configured);
            // A closed standard output is no reason to stop.
            drop(writeln!(std::io::stdout(), "{text}"));
        }
    }

    fn tell_keeper(&self, message: &ToKeeper) {
        if let Err(error) = self.keeper.send(message) {
            tracing::warn!(%error, "the keeper does not hear");
        }
    }
}

/// The keeper's socket, for its readiness alone.
fn watchable(keeper: &KeeperEnd) -> std::io::Result<UnixStream> {
    let socket = rank(keeper.as_fd().try_clone_to_owned()?, Rank::Keeper)?;
    let socket = std::os::unix::net::UnixStream::from(socket);
    socket.set_nonblocking(true)?;
    UnixStream::from_std(socket)
}

/// What is up, and what to try.
fn greeting(config: &Config, configured: bool) -> String {
    let admin = reachable(config.admin.listen);
    let mut lines = vec![format!("tandem node {} is up:", config.node.name)];
    let list =
        |all: &[SocketAddr]| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    for http in &config.http {
        lines.push(format!("  balancer   http://{}/", list(&http.listen)));
    }
    if let Some(cache) = &config.cache {
        lines.push(format!("  memcached  {}", list(&cache.listen)));
    }
    lines.push(format!("  status     http://{admin}/  (also /status.json, /metrics)"));
    if !configured {
        let http = config.http.iter().flat_map(|http| &http.listen).next();
        let cache = config.cache.iter().flat_map(|cache| &cache.listen).next();
        if let (Some(http), Some(cache)) = (http, cache) {
            let (http, cache) = (reachable(*http), reachable(*cache));
            let (host, port) = (cache.ip(), cache.port());
            lines.push("try:".to_owned());
            lines.push(format!(
                "  curl -c jar -b jar http://{http}/    # again and again: who served, how often"
            ));
            let talk = "set k 0 0 5\\r\\nhello\\r\\nget k\\r\\nquit\\r\\n";
            lines.push(format!(
                "  bash -c 'exec 3<>/dev/tcp/{host}/{port}; printf \"{talk}\" >&3; cat <&3'"
            ));
            lines.push(format!("  curl http://{admin}/status.json"));
        }
    }
    lines.push("Ctrl-C stops it.".to_owned());
    lines.join("\n")
}

/// How a client on this host reaches a listener.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        let loopback = match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        address.set_ip(loopback);
    }
    address
}
