//! The built-in demo backend: a small site that counts visits in a session kept in the cache.
//!
//! It stands for a Tomcat with its session manager: it knows the cache only by its address and its
//! protocol, keeps nothing itself, and its session cookie carries a route. What it is not: part of
//! the product's path; it imports neither engine nor guardian.
//!
//! | path | answer |
//! |---|---|
//! | `/` | a page: which backend served, which session, how many visits |
//! | `/text` | the same on one line, for curl |
//! | `/slow?ms=N` | after N milliseconds, at most a minute |
//! | `/bytes?n=N` | N bytes, at most 256 MiB |

mod page;
mod session;

#[cfg(test)]
mod tests;

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Query, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt as _;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use session::{Sessions, Visit};

/// Longest `/slow`, milliseconds.
const SLOW_MAX_MS: u64 = 60_000;
/// Largest `/bytes`.
const BYTES_MAX: usize = 256 << 20;

/// How a demo backend is started.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Args {
    /// Where it listens; without it, standard input is the listening socket.
    #[arg(long)]
    pub listen: Option<SocketAddr>,
    /// Its name: shown on the page, and the route of its sessions.
    #[arg(long)]
    pub name: String,
    /// The cache's memcached address.
    #[arg(long)]
    pub cache: SocketAddr,
}

/// Runs until SIGINT or SIGTERM.
///
/// # Errors
/// There is nothing to listen on, or the runtime not be made.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = match args.listen {
            Some(address) => TcpListener::bind(address)
                .await
                .with_context(|| format!("cannot listen on {address}"))?,
            None => inherited().context("standard input is no listening socket")?,
        };
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            ended = serve(listener, &args.name, args.cache) => ended,
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    })
}

fn inherited() -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Serves on a bound listener, without end.
///
/// # Errors
/// Accepting fails for good.
pub async fn serve(listener: TcpListener, name: &str, cache: SocketAddr) -> anyhow::Result<()> {
    let site = Arc::new(Site { name: name.to_owned(), sessions: Sessions::new(cache) });
    let router = Router::new()
        .route("/", get(index))
        .route("/text", get(text))
        .route("/slow", get(slow))
        .route("/bytes", get(bytes))
        .with_state(site);
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "a connection without TCP_NODELAY");
        }
    });
    Ok(axum::serve(listener, router).await?)
}

struct Site {
    name: String,
    sessions: Sessions,
}

impl Site {
    /// Counts a visit; on success the cookie that names the session and its new server.
    async fn visit(&self, headers: &HeaderMap) -> Result<(Visit, HeaderValue), Response> {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let id = cookies.flat_map(|line| line.split(';')).find_map(session_id);
        match self.sessions.visit(id, &self.name).await {
            Ok(visit) => {
                let cookie = format!("JSESSIONID={}.{}; Path=/; HttpOnly", visit.id, self.name);
                let cookie = HeaderValue::from_str(&cookie);
                cookie.map(|cookie| (visit, cookie)).map_err(|_invalid| {
                    self.unavailable("this backend's name cannot stand in a cookie")
                })
            }
            Err(error) => Err(self.unavailable(&error.to_string())),
        }
    }

    fn unavailable(&self, reason: &str) -> Response {
        let text = format!("backend={} error=\"{reason}\"\n", self.name);
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

/// The session's own part of `JSESSIONID=<id>[.<route>]`: 32 hexadecimal digits, or it is nobody's.
fn session_id(pair: &str) -> Option<&str> {
    let value = pair.trim().strip_prefix("JSESSIONID=")?;
    let id = value.split('.').next()?;
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
}

async fn index(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    match site.visit(&headers).await {
        Ok((visit, cookie)) => {
            let client = headers.get("x-forwarded-for").and_then(|value| value.to_str().ok());
            let page = page::render(&site.name, &visit, client);
            let html = HeaderValue::from_static("text/html; charset=utf-8");
            let fresh = HeaderValue::from_static("no-store");
            ([(CONTENT_TYPE, html), (CACHE_CONTROL, fresh), (SET_COOKIE, cookie)], page)
                .into_response()
        }
        Err(response) => response,
    }
}

async fn text(State(site): State<Arc<Site>>, headers: HeaderMap) -> Response {
    match site.visit(&headers).await {
        Ok((visit, cookie)) => {
            let line =
                format!("backend={} session={} visits={}\n", site.name, visit.id, visit.visits);
            ([(SET_COOKIE, cookie)], line).into_response()
        }
        Err(response) => response,
    }
}

#[derive(Deserialize)]
struct Slow {
    ms: u64,
}

async fn slow(State(site): State<Arc<Site>>, Query(Slow { ms }): Query<Slow>) -> String {
    let ms = ms.min(SLOW_MAX_MS);
    tokio::time::sleep(Duration::from_millis(ms)).await;
    format!("backend={} slept_ms={ms}\n", site.name)
}

#[derive(Deserialize)]
struct Bytes {
    n: usize,
}

async fn bytes(Query(Bytes { n }): Query<Bytes>) -> Response {
    let kind = HeaderValue::from_static("application/octet-stream");
    ([(CONTENT_TYPE, kind)], vec![b'x'; n.min(BYTES_MAX)]).into_response()
}
