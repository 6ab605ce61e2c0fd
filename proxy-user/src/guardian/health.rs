//! Active checks: whether each upstream server takes a TCP connection, at an interval, each at a
//! time of its own.
//!
//! [`Server`] is the rule (pure): so many failures in a row take a server out, so many successes
//! bring it back. [`run`] is its shell, a task on the guardian's runtime: it connects, tells
//! [`StatusHandle`], and on each change tells its caller the states of all servers, which are the
//! engine's message ([`ToEngine::Backends`](crate::control::message::ToEngine::Backends)).
//!
//! Not here: failures of real requests (the engine's `balance`).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::mpsc;

use super::status::{Check, StatusHandle};
use crate::config::{self, Health};
use crate::control::message::ServerState;

/// A server as the checks see it. Up until they say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Server {
    rise: u32,
    fall: u32,
    up: bool,
    /// Checks in a row that speak against `up`.
    against: u32,
    /// Failures in a row.
    fails: u32,
}

impl Server {
    /// Up, by these rules.
    #[must_use]
    pub fn new(health: &Health) -> Self {
        let (rise, fall) = (health.rise.max(1), health.fall.max(1));
        Self { rise, fall, up: true, against: 0, fails: 0 }
    }

    /// Whether it may be used.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        self.up
    }

    /// Failures in a row.
    #[must_use]
    pub const fn fails(&self) -> u32 {
        self.fails
    }

    /// A check was done; whether this has changed [`Self::is_up`].
    pub fn handle(&mut self, passed: bool) -> bool {
        self.fails = if passed { 0 } else { self.fails.saturating_add(1) };
        if passed == self.up {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let enough = if passed { self.rise } else { self.fall };
        if self.against < enough {
            return false;
        }
        self.up = passed;
        self.against = 0;
        true
    }
}

/// What [`run`] found, from the tasks that check.
struct Found {
    upstream: u16,
    server: u16,
    check: Check,
}

/// Checks every server of every upstream that has `health`, until it is dropped. `told` gets the
/// states of all servers, by upstream and server, after each change; nothing before the first. A
/// new engine takes every server for up: tell it the newest. Must run in a tokio runtime.
pub async fn run(
    upstreams: &[config::Upstream],
    status: StatusHandle,
    mut told: impl FnMut(Vec<Vec<ServerState>>),
) {
    let mut rules: Vec<Vec<Server>> = Vec::new();
    let mut tasks = tokio::task::JoinSet::new();
    let (sender, mut found) = mpsc::channel(64);
    for (upstream, config) in (0_u16..).zip(upstreams) {
        let health = config.health.unwrap_or_default();
        rules.push(config.servers.iter().map(|_| Server::new(&health)).collect());
        if config.health.is_none() {
            continue;
        }
        for (server, config) in (0_u16..).zip(&config.servers) {
            let address = config.address;
            tasks.spawn(check_forever(upstream, server, address, health, sender.clone()));
        }
    }
    drop(sender);
    while let Some(Found { upstream, server, check }) = found.recv().await {
        let of = rules.get_mut(usize::from(upstream));
        let Some(rule) = of.and_then(|of| of.get_mut(usize::from(server))) else { continue };
        let changed = rule.handle(check == Check::Passed);
        status.checked(upstream, server, check, rule.is_up(), rule.fails());
        if changed {
            let up = rule.is_up();
            let name = upstreams.get(usize::from(upstream)).map(|upstream| upstream.name.as_str());
            say(
                &status,
                name.unwrap_or_default(),
                server_of(upstreams, upstream, server),
                up,
                check,
            );
            told(states(&rules));
        }
    }
    // Nothing to check: nothing will ever change.
    std::future::pending::<()>().await;
}

fn server_of(
    upstreams: &[config::Upstream],
    upstream: u16,
    server: u16,
) -> Option<&config::Server> {
    upstreams.get(usize::from(upstream))?.servers.get(usize::from(server))
}

fn say(
    status: &StatusHandle,
    upstream: &str,
    server: Option<&config::Server>,
    up: bool,
    check: Check,
) {
    let Some(server) = server else { return };
    let address = server.address;
    let why = match check {
        Check::Passed => "it takes connections".to_owned(),
        Check::TimedOut => "no connection in time".to_owned(),
        Check::Failed(error) => std::io::Error::from_raw_os_error(error).to_string(),
    };
    if up {
        tracing::info!(upstream, %address, "server is up: {why}");
    } else {
        tracing::warn!(upstream, %address, "server is down: {why}");
    }
    let word = if up { "up" } else { "down" };
    status.event(&format!("server {address} of {upstream} is {word}: {why}"));
}

fn states(rules: &[Vec<Server>]) -> Vec<Vec<ServerState>> {
    let state = |server: &Server| if server.up { ServerState::Up } else { ServerState::Down };
    rules.iter().map(|servers| servers.iter().map(state).collect()).collect()
}

async fn check_forever(
    upstream: u16,
    server: u16,
    address: SocketAddr,
    health: Health,
    found: mpsc::Sender<Found>,
) {
    // The first checks come at once but not all together.
    let first = health.interval.min(Duration::from_millis(100));
    let mut next = Instant::now() + first.mul_f64(jitter());
    loop {
        tokio::time::sleep_until(next.into()).await;
        let check = connect(address, health.timeout).await;
        if found.send(Found { upstream, server, check }).await.is_err() {
            return;
        }
        // ±10 %, so that many checkers do not fall into step.
        let interval = health.interval.mul_f64(0.9 + 0.2 * jitter());
        next = (next + interval).max(Instant::now());
    }
}

/// Opens and closes a connection.
async fn connect(address: SocketAddr, timeout: Duration) -> Check {
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Err(_elapsed) => Check::TimedOut,
        Ok(Err(error)) => Check::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
        // Dialling a local port that nobody listens on, the kernel may pick that port for our end:
        // such a socket is connected to itself.
        Ok(Ok(stream)) if stream.local_addr().is_ok_and(|ours| ours == address) => {
            Check::Failed(libc::ECONNREFUSED)
        }
        Ok(Ok(_stream)) => Check::Passed,
    }
}

/// 0 to 1, from the system's randomness; the middle without.
fn jitter() -> f64 {
    getrandom::u32().map_or(0.5, |random| f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::net::TcpListener;

    use super::*;
    use crate::config::{Config, Upstream};
    use crate::control::shared::SharedPage;

    const LIMIT: Duration = Duration::from_secs(10);

    #[test]
    fn rise_and_fall() {
        let rule = |rise, fall| Server::new(&Health { rise, fall, ..Health::default() });
        // rise, fall, checks (+ passed, - failed), whether it is up after each
        for (rise, fall, checks, up) in [
            (2, 3, "--+---", "uuuuud"),
            (2, 1, "-+-++", "ddddu"),
            (1, 1, "-+-+", "dudu"),
            (3, 2, "--+++", "udddu"),
            (0, 0, "-+", "du"),
        ] {
            let mut server = rule(rise, fall);
            let mut was = true;
            for (check, expected) in checks.chars().zip(up.chars()) {
                let changed = server.handle(check == '+');
                assert_eq!(server.is_up(), expected == 'u', "{rise} {fall} {checks}");
                assert_eq!(changed, server.is_up() != was);
                was = server.is_up();
            }
        }
    }

    #[test]
    fn fails_are_counted_in_a_row() {
        let mut server = Server::new(&Health { fall: 9, ..Health::default() });
        for _ in 0..3 {
            assert!(!server.handle(false));
        }
        assert_eq!(server.fails(), 3);
        assert!(!server.handle(true));
        assert_eq!(server.fails(), 0);
    }

    fn upstream(addresses: &[SocketAddr]) -> Upstream {
        let health = Health {
            interval: Duration::from_millis(5),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 2,
        };
        let servers = addresses.iter();
        let servers = servers.map(|&address| config::Server { address, weight: 1, route: None });
        Upstream {
            name: "u".into(),
            servers: servers.collect(),
            health: Some(health),
            ..Upstream::default()
        }
    }

    /// A server dies and returns on the same port; its neighbour stays up.
    #[test]
    fn a_server_dies_and_returns() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let kept = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let lost = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addresses = [kept.local_addr().unwrap(), lost.local_addr().unwrap()];
            let mut config = Config::single(&addresses);
            config.upstreams = vec![upstream(&addresses)];
            let (page, _fd) = SharedPage::create(1).unwrap();
            let status = StatusHandle::new(&config, page);
            let told = Arc::new(Mutex::new(Vec::new()));
            let (seen, shown) = (Arc::clone(&told), status.clone());
            let upstreams = config.upstreams.clone();
            tokio::spawn(async move {
                run(&upstreams, shown, move |states| seen.lock().unwrap().push(states)).await;
            });
            drop(lost);
            let server =
                |status: &StatusHandle| status.json().unwrap()["backends"][0]["servers"][1].clone();
            let up = |status: &StatusHandle| server(status)["up"] == true;
            eventually(|| !up(&status)).await;
            assert!(server(&status)["reason"].as_str().unwrap().contains("refused"));
            let again = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let again = again.unwrap();
            again.set_reuse_address(true).unwrap();
            again.bind(&addresses[1].into()).unwrap();
            again.listen(8).unwrap();
            eventually(|| up(&status)).await;
            let (u, d) = (ServerState::Up, ServerState::Down);
            assert_eq!(*told.lock().unwrap(), [vec![vec![u, d]], vec![vec![u, u]]]);
            assert_eq!(status.json().unwrap()["events"].as_array().unwrap().len(), 2);
        });
    }

    #[test]
    fn a_silent_server_times_out() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let check = runtime.block_on(async {
            // A full backlog: the kernel drops further SYNs.
            let silent = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
            let silent = silent.unwrap();
            silent.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
            silent.listen(0).unwrap();
            let address = silent.local_addr().unwrap().as_socket().unwrap();
            let mut kept = Vec::new();
            let until = Instant::now() + LIMIT;
            loop {
                assert!(Instant::now() < until, "the backlog takes everything");
                let opened = TcpStream::connect(address);
                match tokio::time::timeout(Duration::from_millis(50), opened).await {
                    Ok(stream) => kept.push(stream.unwrap()),
                    Err(_elapsed) => break connect(address, Duration::from_millis(20)).await,
                }
            }
        });
        assert_eq!(check, Check::TimedOut);
    }

    async fn eventually(mut done: impl FnMut() -> bool) {
        let until = Instant::now() + LIMIT;
        while !done() {
            assert!(Instant::now() < until, "not within {LIMIT:?}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
