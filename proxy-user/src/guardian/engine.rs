//! The engine as a child: start it on the page, the store and the listeners; kill it when one of
//! its threads is gone or hangs; start the next on the same memory and sockets as soon as no thread
//! of the old one can run, without waiting for its reaping.
//!
//! Runs on the main thread: PDEATHSIG is tied to the thread that spawns.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::process::{Child, Command};
use tokio::sync::oneshot;

use super::fault::Fault;
use super::mailbox::{News, NewsSender, Order, Orders};
use super::stalls::Stalls;
use super::start::Listeners;
use super::status::StatusHandle;
use super::watch::{Seen, Watcher};
use crate::control::message::{Hello, ServerState, Snapshot, ToEngine};
use crate::control::restarts::{EARLY, Restarts};
use crate::control::shared::SharedPage;
use crate::control::{
    self,
    channel::{self, GuardianEnd},
};

/// Everything an engine is started with.
#[derive(Debug)]
pub(super) struct Engines {
    page: SharedPage,
    page_fd: OwnedFd,
    store: Option<OwnedFd>,
    listeners: Listeners,
    snapshot: Snapshot,
    orders: Orders,
    news: NewsSender,
    watcher: Watcher,
    current: Option<Current>,
    /// Engines not reaped yet, by generation; what ends them, until it was used.
    living: HashMap<u32, Option<oneshot::Sender<()>>>,
    generation: u32,
    restarts: Restarts,
    stall: Stalls,
    status: StatusHandle,
    /// States of the servers, once a check has changed one; told to each new engine.
    servers: Option<Vec<Vec<ServerState>>>,
}

#[derive(Debug)]
struct Current {
    generation: u32,
    channel: Arc<GuardianEnd>,
    hello: Option<(Hello, Instant)>,
}

/// What must happen next.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Nothing.
    Nothing,
    /// Start an engine after this time.
    StartAfter(Duration),
}

/// What does not change from one engine to the next.
#[derive(Debug)]
pub(super) struct Estate {
    pub(super) page: SharedPage,
    pub(super) page_fd: OwnedFd,
    pub(super) store: Option<OwnedFd>,
    pub(super) listeners: Listeners,
    pub(super) snapshot: Snapshot,
    /// A worker that makes no turn for this long is hung.
    pub(super) stall_kill: Duration,
    /// Guardians before this one; the last left a dead engine on the listeners.
    pub(super) before: u32,
}

impl Engines {
    /// Starts the watcher; no engine yet.
    pub(super) fn new(
        estate: Estate,
        orders: Orders,
        news: NewsSender,
        status: StatusHandle,
    ) -> Result<Self, Fault> {
        let (told, also) = (news.clone(), orders.clone());
        let watcher = Watcher::start(estate.page, move |seen| {
            if let Seen::Gone { generation } = seen {
                also.send(Order::EngineGone { generation });
            }
            drop(told.send(News::Seen(seen)));
        });
        Ok(Self {
            stall: Stalls::new(estate.page, estate.stall_kill),
            page: estate.page,
            page_fd: estate.page_fd,
            store: estate.store,
            listeners: estate.listeners,
            snapshot: estate.snapshot,
            orders,
            news,
            watcher: watcher.map_err(|error| Fault::of("cannot start a thread", error))?,
            current: None,
            living: HashMap::new(),
            generation: estate.before,
            restarts: Restarts::default(),
            status,
            servers: None,
        })
    }

    /// Starts the next engine. Only when [`SharedPage::engine_is_gone`].
    pub(super) fn start(&mut self) -> Result<(), Fault> {
        self.page.reset_engine();
        self.generation += 1;
        let generation = self.generation;
        let fault = |error| Fault::of("cannot make the control socket", error);
        let (ours, theirs) = channel::pair().map_err(fault)?;
        let child = self.spawn(theirs)?;
        self.status.engine_started(child.id().unwrap_or_default());
        let channel = Arc::new(ours);
        self.snapshot.generation = generation - 1;
        let message = ToEngine::Config(Box::new(self.snapshot.clone()));
        let mut fds = vec![self.page_fd.as_fd()];
        fds.extend(self.store.as_ref().map(AsFd::as_fd));
        fds.extend(self.listeners.fds());
        let sent = channel.send_with(&message, &fds);
        sent.map_err(|error| Fault::of("cannot configure the engine", error))?;
        self.orders.send(Order::Engine { generation, channel: Arc::clone(&channel) });
        let (kill, killed) = oneshot::channel();
        self.living.insert(generation, Some(kill));
        tokio::spawn(own(child, generation, killed, self.news.clone()));
        self.current = Some(Current { generation, channel, hello: None });
        tracing::debug!(generation, "engine started");
        Ok(())
    }

    fn spawn(&self, control: OwnedFd) -> Result<Child, Fault> {
        let child = Command::new(control::OWN_PROGRAM)
            .arg0(control::NAME)
            .arg("engine")
            .env(control::PARENT_VARIABLE, std::process::id().to_string())
            .env(control::LEVEL_VARIABLE, &self.snapshot.log.level)
            .stdin(Stdio::from(control))
            // Ctrl-C in the terminal is the guardian's business.
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        child.map_err(|error| Fault::of("cannot start the engine process", error))
    }

    /// To the engine that serves, if one does.
    pub(super) fn send(&self, message: &ToEngine) {
        let serving = self.current.as_ref().filter(|current| current.hello.is_some());
        let Some(current) = serving else { return };
        if let Err(error) = current.channel.send(message) {
            tracing::warn!(%error, "cannot reach the engine");
        }
    }

    /// Tells the servers' states, also to later engines.
    pub(super) fn backends(&mut self, states: Vec<Vec<ServerState>>) {
        self.send(&ToEngine::Backends(states.clone()));
        self.servers = Some(states);
    }

    /// An engine said hello.
    pub(super) fn handle_up(&mut self, generation: u32, hello: Hello) {
        let Some(current) = self.current.as_mut().filter(|one| one.generation == generation) else {
            return;
        };
        self.status.engine_serving(&hello);
        current.hello = Some((hello, Instant::now()));
        self.stall.reset();
        self.watcher.arm(generation);
        if let Some(states) = &self.servers {
            self.send(&ToEngine::Backends(states.clone()));
        }
    }

    /// The watcher saw something.
    pub(super) fn handle_seen(&mut self, seen: Seen) {
        match seen {
            Seen::Lost { generation, seat, liveness } => {
                tracing::warn!(generation, ?seat, ?liveness, "the engine died");
                self.status.engine_ended(&format!("{seat:?}: {liveness:?}"));
                self.kill(generation);
            }
            Seen::Gone { generation } => tracing::debug!(generation, "engine is gone"),
            Seen::Broken => {}
        }
    }

    /// Ends an engine that is not reaped yet.
    pub(super) fn kill(&mut self, generation: u32) {
        if let Some(kill) = self.living.get_mut(&generation).and_then(Option::take) {
            kill.send(()).ok();
        }
    }

    /// The node is about to give its role away: no command may be left half done.
    pub(super) fn rest(&self) {
        self.send(&ToEngine::Rest);
    }

    /// Asks the engine to finish and go; no other can be started afterwards. `handed_over`: the
    /// other node sends here what belongs to this one's connections.
    pub(super) fn stop(&mut self, grace: Duration, handed_over: bool) {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.send(&ToEngine::Stop { grace_ms, handed_over });
        if !handed_over {
            self.listeners.close();
        }
    }

    /// Ends whatever runs.
    pub(super) fn kill_all(&mut self) {
        for kill in self.living.values_mut().filter_map(Option::take) {
            kill.send(()).ok();
        }
    }

    /// The role thread allows the next engine.
    pub(super) fn handle_may_start(&mut self, generation: u32) -> Next {
        if self.current.as_ref().is_none_or(|current| current.generation != generation) {
            return Next::Nothing;
        }
        Next::StartAfter(self.restarts.pause())
    }

    /// An engine was reaped.
    pub(super) fn handle_exited(&mut self, generation: u32, how: &str, killed: bool) {
        self.living.remove(&generation);
        let Some(current) = self.current.as_ref() else { return };
        if current.generation != generation {
            tracing::debug!(generation, how, "the engine before this one was reaped");
            self.status.event(&format!("engine {generation} ended: {how}"));
            self.restarts.count(false);
            self.send(&ToEngine::PredecessorReaped);
            return;
        }
        match &current.hello {
            Some((_, since)) => {
                let crashed = !killed && since.elapsed() < EARLY;
                self.restarts.count(crashed);
            }
            None => {
                tracing::warn!(generation, how, "the engine ended before it could serve");
                self.status.engine_ended(how);
                self.restarts.count(true);
                // Its seats were not watched yet.
                self.orders.send(Order::EngineGone { generation });
            }
        }
    }

    /// Whether no engine is left, also no dying one.
    pub(super) fn none_left(&self) -> bool {
        self.living.is_empty()
    }

    /// Looks for a worker that hangs; the engine is killed then.
    pub(super) fn tick(&mut self, now: Instant) {
        let Some(current) = self.current.as_ref().filter(|one| one.hello.is_some()) else { return };
        let generation = current.generation;
        if let Some((worker, time)) = self.stall.look(now)
            && self.living.get(&generation).is_some_and(Option::is_some)
        {
            tracing::error!(worker, ?time, "a worker hangs: the engine is killed");
            self.kill(generation);
        }
    }
}

/// Waits for a child, kills it when told, tells how it ended.
async fn own(mut child: Child, generation: u32, kill: oneshot::Receiver<()>, news: NewsSender) {
    let (status, killed) = tokio::select! {
        status = child.wait() => (status, false),
        _ = kill => {
            drop(child.start_kill());
            (child.wait().await, true)
        }
    };
    let (how, killed) = match status {
        Ok(status) => {
            use std::os::unix::process::ExitStatusExt;
            if status.signal() == Some(libc::SIGSYS) {
                tracing::error!(
                    generation,
                    "the engine made a system call that is not on its list: a fault in it, or a \
                     stranger's code; the kernel's log may have its number (seccomp, syscall=)"
                );
            }
            (status.to_string(), killed || status.signal() == Some(libc::SIGKILL))
        }
        Err(error) => (error.to_string(), killed),
    };
    drop(news.send(News::Exited { generation, how, killed }));
}
