//! A pool of servers with one state for all workers.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::config;

/// Most servers of a pool; the configuration allows no more.
const SERVERS_MAX: usize = 256;

/// Passive removal stops while fewer servers than this would be left: the last ones are kept, since
/// a server that fails now and then serves more than none.
const KEPT_MIN: usize = 1;

/// What an operator wants of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Admin {
    /// Takes requests.
    #[default]
    Up,
    /// Takes requests of its own sessions only.
    Drain,
    /// Takes none.
    Down,
}

/// What became of a request that a server was chosen for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered.
    Ok,
    /// It could not be reached, broke off, or did not answer in time.
    Failed,
    /// Nothing was learned: the client left, or an idle connection had been closed.
    Neutral,
}

/// A server left or entered the set that is used; for log and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Passively removed.
    Removed,
    /// A trial succeeded.
    Returned,
}

/// A chosen server. Each choice is answered by one [`Pool::report`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Position in the pool.
    pub server: u16,
    /// Where it is.
    pub address: SocketAddr,
    /// It is out, and this request is its trial.
    pub trial: bool,
}

/// One request's candidates: what it prefers, and what it has tried.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    tried: [u64; SERVERS_MAX / 64],
    /// The server of the request's session, if it names one.
    preferred: Option<u16>,
}

impl Selection {
    /// A request that prefers the server of its session.
    #[must_use]
    pub const fn sticky(preferred: Option<u16>) -> Self {
        Self { tried: [0; SERVERS_MAX / 64], preferred }
    }

    /// The server of the request's session, if it names one.
    #[must_use]
    pub const fn preferred(&self) -> Option<u16> {
        self.preferred
    }

    fn has_tried(&self, server: usize) -> bool {
        self.tried[server / 64] & (1 << (server % 64)) != 0
    }

    fn mark(&mut self, server: usize) {
        self.tried[server / 64] |= 1 << (server % 64);
    }
}

/// A server as the status page shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerStatus {
    /// Where it is.
    pub address: SocketAddr,
    /// What the active checks say; true without checks.
    pub checked_up: bool,
    /// Passively removed at the moment.
    pub removed: bool,
    /// What the operator wants.
    pub admin: Admin,
    /// Requests at it now, connecting ones too.
    pub in_flight: u32,
    /// Requests given to it.
    pub chosen: u64,
    /// Of these, failed.
    pub failed: u64,
}

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    weight: i64,
    route: Option<Box<[u8]>>,
}

#[derive(Debug, Clone)]
struct Peer {
    /// Smooth weighted round robin: the running and the effective weight.
    current: i64,
    effective: i64,
    /// Failures in the window, and when the last was.
    fails: u32,
    failed_at: Option<Instant>,
    /// When the window or the last trial began.
    checked_at: Option<Instant>,
    checked_up: bool,
    admin: Admin,
    in_flight: u32,
    chosen: u64,
    failed: u64,
}

/// The servers of one upstream and their state.
#[derive(Debug)]
pub struct Pool {
    name: String,
    servers: Vec<Server>,
    max_fails: u32,
    fail_timeout: Duration,
    peers: Mutex<Vec<Peer>>,
}

impl Pool {
    /// A pool as configured, every server up.
    #[must_use]
    pub fn new(config: &config::Upstream) -> Self {
        let server = |server: &config::Server| Server {
            address: server.address,
            weight: i64::from(server.weight.max(1)),
            route: server.route.as_ref().map(|route| route.as_bytes().into()),
        };
        let servers: Vec<Server> = config.servers.iter().take(SERVERS_MAX).map(server).collect();
        let peer = |server: &Server| Peer {
            current: 0,
            effective: server.weight,
            fails: 0,
            failed_at: None,
            checked_at: None,
            checked_up: true,
            admin: Admin::Up,
            in_flight: 0,
            chosen: 0,
            failed: 0,
        };
        let peers = Mutex::new(servers.iter().map(peer).collect());
        let (max_fails, fail_timeout) = (config.max_fails, config.fail_timeout);
        Self { name: config.name.clone(), servers, max_fails, fail_timeout, peers }
    }

    /// Its name in the configuration.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of servers.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.servers.len()
    }

    /// Whether it has no server.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.servers.is_empty()
    }

    /// Address of a server.
    #[must_use]
    pub fn address(&self, server: u16) -> Option<SocketAddr> {
        self.servers.get(usize::from(server)).map(|server| server.address)
    }

    /// Whether any server has a route, so that sessions are looked for at all.
    #[must_use]
    pub fn is_sticky(&self) -> bool {
        self.servers.iter().any(|server| server.route.is_some())
    }

    /// The first of these routes that names a server which is up; drained servers keep theirs.
    #[must_use]
    pub fn routed<'a>(
        &self,
        now: Instant,
        routes: impl IntoIterator<Item = &'a [u8]>,
    ) -> Option<u16> {
        let peers = self.peers.lock();
        routes.into_iter().find_map(|route| {
            let named = |server: &Server| server.route.as_deref() == Some(route);
            let at = self.servers.iter().position(named)?;
            let peer = &peers[at];
            let up = peer.checked_up && peer.admin != Admin::Down && !self.is_out(peer, now);
            up.then_some(at as u16)
        })
    }

    /// The next candidate for this request, or `None` when none is left: a server is never offered
    /// twice. The session's own server comes first.
    pub fn next(&self, now: Instant, selection: &mut Selection) -> Option<Choice> {
        let mut peers = self.peers.lock();
        let sticky = selection.preferred.map(usize::from).filter(|&at| {
            at < peers.len()
                && !selection.has_tried(at)
                && peers[at].checked_up
                && peers[at].admin != Admin::Down
                && !self.is_out(&peers[at], now)
        });
        let at = match sticky {
            Some(at) => at,
            None => self.round_robin(&mut peers, now, selection)?,
        };
        selection.mark(at);
        let trial = self.max_fails > 0 && peers[at].fails >= self.max_fails;
        let peer = &mut peers[at];
        if trial || self.window_is_over(peer, now) {
            peer.checked_at = Some(now);
        }
        peer.in_flight += 1;
        peer.chosen += 1;
        Some(Choice { server: at as u16, address: self.servers[at].address, trial })
    }

    /// Takes the same server again, on purpose: an idle connection to it was dead, which says
    /// nothing of the server.
    pub fn again(&self, server: u16) -> Option<Choice> {
        let mut peers = self.peers.lock();
        let peer = peers.get_mut(usize::from(server))?;
        peer.in_flight += 1;
        let address = self.servers[usize::from(server)].address;
        Some(Choice { server, address, trial: false })
    }

    /// What became of a choice.
    pub fn report(&self, now: Instant, server: u16, outcome: Outcome) -> Option<Change> {
        let mut peers = self.peers.lock();
        let at = usize::from(server);
        let peer = peers.get_mut(at)?;
        peer.in_flight = peer.in_flight.saturating_sub(1);
        match outcome {
            Outcome::Neutral => None,
            Outcome::Ok => self.succeeded(peer),
            Outcome::Failed => self.failed(peer, self.servers[at].weight, now),
        }
    }

    /// The verdict of the active checks.
    pub fn set_up(&self, server: u16, up: bool) {
        if let Some(peer) = self.peers.lock().get_mut(usize::from(server)) {
            if up && !peer.checked_up {
                // It was proved alive just now: old failures say nothing any more.
                peer.fails = 0;
            }
            peer.checked_up = up;
        }
    }

    /// The wish of the operator.
    pub fn set_admin(&self, server: u16, admin: Admin) {
        if let Some(peer) = self.peers.lock().get_mut(usize::from(server)) {
            peer.admin = admin;
        }
    }

    /// Every server's state, in order.
    #[must_use]
    pub fn status(&self, now: Instant) -> Vec<ServerStatus> {
        let peers = self.peers.lock();
        let status = |(server, peer): (&Server, &Peer)| ServerStatus {
            address: server.address,
            checked_up: peer.checked_up,
            removed: self.is_out(peer, now),
            admin: peer.admin,
            in_flight: peer.in_flight,
            chosen: peer.chosen,
            failed: peer.failed,
        };
        self.servers.iter().zip(peers.iter()).map(status).collect()
    }

    /// Smooth weighted round robin over what is up and untried: each gains its weight, the largest
    /// is taken and pays the total. {5,1,1} gives a a b a c a a.
    fn round_robin(
        &self,
        peers: &mut [Peer],
        now: Instant,
        selection: &Selection,
    ) -> Option<usize> {
        let usable = |peer: &Peer| peer.checked_up && peer.admin == Admin::Up;
        let in_use = |peer: &&Peer| usable(peer) && !self.is_out(peer, now);
        let ignore_removal = peers.iter().filter(in_use).count() < KEPT_MIN;
        let mut total = 0;
        let mut best: Option<usize> = None;
        for at in 0..peers.len() {
            let peer = &mut peers[at];
            let out = self.is_out(peer, now) && !ignore_removal;
            if selection.has_tried(at) || !usable(peer) || out {
                continue;
            }
            let weight = self.servers[at].weight;
            // Without this a server whose weight failures took away would not come back alone.
            let gain = peer.effective.max(i64::from(ignore_removal));
            peer.current += gain;
            total += gain;
            if peer.effective < weight {
                peer.effective += 1;
            }
            if best.is_none_or(|best| peers[at].current > peers[best].current) {
                best = Some(at);
            }
        }
        let best = best?;
        peers[best].current -= total;
        Some(best)
    }

    /// Passively removed, and not yet due for a trial.
    fn is_out(&self, peer: &Peer, now: Instant) -> bool {
        self.max_fails > 0 && peer.fails >= self.max_fails && !self.window_is_over(peer, now)
    }

    fn window_is_over(&self, peer: &Peer, now: Instant) -> bool {
        peer.checked_at.is_none_or(|at| now.saturating_duration_since(at) > self.fail_timeout)
    }

    /// Failures are forgotten by a success of a request that was given after the last of them.
    fn succeeded(&self, peer: &mut Peer) -> Option<Change> {
        let fresh = match (peer.failed_at, peer.checked_at) {
            (Some(failed), Some(checked)) => failed < checked,
            _ => true,
        };
        let was_out = self.max_fails > 0 && peer.fails >= self.max_fails;
        if !fresh {
            return None;
        }
        peer.fails = 0;
        was_out.then_some(Change::Returned)
    }

    fn failed(&self, peer: &mut Peer, weight: i64, now: Instant) -> Option<Change> {
        peer.failed += 1;
        let was_out = self.max_fails > 0 && peer.fails >= self.max_fails;
        peer.fails = peer.fails.saturating_add(1);
        peer.failed_at = Some(now);
        peer.checked_at = Some(now);
        if self.max_fails == 0 {
            return None;
        }
        peer.effective = (peer.effective - weight / i64::from(self.max_fails)).max(0);
        (!was_out && peer.fails >= self.max_fails).then_some(Change::Removed)
    }
}
