//! What an exchange needs of the configuration: one value for each `[[http]]`, upstreams shared.

use std::sync::Arc;
use std::time::Duration;

use crate::balance::{Pool, Routes};
use crate::config;
use crate::http::Limits;

/// One upstream: its pool, shared by all workers, and its times.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// The servers.
    pub pool: Arc<Pool>,
    /// Time to connect.
    pub connect_timeout: Duration,
    /// Time without a byte of an answer.
    pub reply_timeout: Duration,
    /// Idle connections kept by each worker.
    pub keepalive: u16,
    /// Sessions are looked for.
    pub sticky: bool,
}

impl Upstream {
    /// As configured, every server up.
    #[must_use]
    pub fn new(config: &config::Upstream) -> Self {
        let pool = Arc::new(Pool::new(config));
        Self {
            sticky: pool.is_sticky(),
            pool,
            connect_timeout: config.connect_timeout,
            reply_timeout: config.reply_timeout,
            keepalive: config.keepalive,
        }
    }
}

/// One `[[http]]`.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Sizes.
    pub limits: Limits,
    /// Time for a head, from its first byte; and for a new connection's first byte.
    pub header_timeout: Duration,
    /// Time between two requests.
    pub idle_timeout: Duration,
    /// Time without a byte of a request's body.
    pub body_timeout: Duration,
    /// Time in which the client takes no byte of the answer.
    pub send_timeout: Duration,
    /// Requests on one connection.
    pub requests_max: u32,
    /// Hosts and paths.
    pub routes: Routes,
    /// All upstreams; routes point here by index.
    pub upstreams: Arc<[Upstream]>,
    /// The client is a proxy whose X-Forwarded-* are believed.
    pub trusted: bool,
    /// Texts are kept for the access log.
    pub log: bool,
}

impl Settings {
    /// As configured; what the file does not say has the usual values.
    #[must_use]
    pub fn new(http: &config::Http, upstreams: Arc<[Upstream]>, log: bool) -> Self {
        Self {
            limits: Limits { body: http.body_size_max, ..Limits::default() },
            header_timeout: http.header_timeout,
            idle_timeout: http.idle_timeout,
            body_timeout: Duration::from_secs(60),
            send_timeout: Duration::from_secs(60),
            requests_max: 1_000_000,
            routes: Routes::new(&http.routes),
            upstreams,
            trusted: false,
            log,
        }
    }
}
