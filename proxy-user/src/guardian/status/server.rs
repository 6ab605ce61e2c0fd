//! The admin server: status page, `/status.json`, `/metrics` (OpenMetrics text), `/healthz`.
//!
//! It only reads: GET and HEAD, one answer made from one reading of the facts. It has no login, so
//! it listens on the loopback address unless told otherwise. It runs on the guardian's
//! single-threaded runtime, beside the main thread's other tasks; the role thread never waits for
//! it. Its clients are strangers: at most [`CONNECTIONS_MAX`](super::connection::CONNECTIONS_MAX)
//! at one time, each with bounded requests and bounded patience.

#[cfg(test)]
mod tests;

use std::future::{Future, IntoFuture as _};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use prometheus_client::registry::Registry;

use super::facts::Health;
use super::handle::StatusHandle;
use super::{connection, metrics, page};

/// Media type of `/metrics`.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// How long open requests may take to end after `stop`.
const GRACE: Duration = Duration::from_millis(500);

#[derive(Clone)]
struct Admin {
    status: StatusHandle,
    registry: Arc<Registry>,
}

/// Serves on `listener` until `stop` is ready; running answers get a moment to end. Must run in a
/// tokio runtime with time and I/O.
///
/// # Errors
/// The listener cannot be used.
pub async fn serve(
    listener: std::net::TcpListener,
    status: StatusHandle,
    stop: impl Future<Output = ()> + Send + 'static,
) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = connection::Door::new(tokio::net::TcpListener::from_std(listener)?);
    let (stopping, stopped) = tokio::sync::oneshot::channel::<()>();
    let signal = async move {
        stop.await;
        drop(stopping);
    };
    let serving = axum::serve(listener, router(status)).with_graceful_shutdown(signal);
    let patience = async {
        // Ends by the drop.
        drop(stopped.await);
        tokio::time::sleep(GRACE).await;
    };
    tokio::select! {
        served = serving.into_future() => Ok(served?),
        () = patience => Ok(()),
    }
}

fn router(status: StatusHandle) -> Router {
    let registry = Arc::new(metrics::registry(status.clone()));
    let only = |route: MethodRouter<Admin>| route.fallback(method_not_allowed);
    Router::new()
        .route("/", only(get(show_page)))
        .route("/status.json", only(get(show_json)))
        .route("/metrics", only(get(show_metrics)))
        .route("/healthz", only(get(show_health)))
        .fallback(not_found)
        .layer(map_response(guard))
        .with_state(Admin { status, registry })
}

async fn show_page(State(admin): State<Admin>) -> Response {
    let (Ok(high), Ok(low)) = (getrandom::u64(), getrandom::u64()) else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "no randomness\n").into_response();
    };
    let nonce = format!("{high:016x}{low:016x}");
    let policy = format!(
        "default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; \
         connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    );
    let html = page::render(&admin.status.read(), &nonce);
    let mut response = with_type("text/html; charset=utf-8", html);
    if let Ok(policy) = HeaderValue::try_from(policy) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

async fn show_json(State(admin): State<Admin>) -> Response {
    match serde_json::to_string_pretty(&admin.status.read()) {
        Ok(json) => with_type("application/json", json + "\n"),
        Err(error) => internal(&error),
    }
}

async fn show_metrics(State(admin): State<Admin>) -> Response {
    let mut text = String::with_capacity(32 << 10);
    match prometheus_client::encoding::text::encode(&mut text, &admin.registry) {
        Ok(()) => with_type(OPEN_METRICS, text),
        Err(error) => internal(&error),
    }
}

async fn show_health(State(admin): State<Admin>) -> Response {
    let health = admin.status.health();
    let code = match health {
        Health::Serving => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    (code, format!("{}\n", health.word())).into_response()
}

async fn not_found(uri: Uri) -> Response {
    tracing::debug!(path = uri.path(), "admin: no such page");
    let text = "not found: there are /, /status.json, /metrics and /healthz\n";
    (StatusCode::NOT_FOUND, text).into_response()
}

async fn method_not_allowed() -> Response {
    let allow = [(header::ALLOW, "GET, HEAD")];
    (StatusCode::METHOD_NOT_ALLOWED, allow, "only GET and HEAD\n").into_response()
}

fn internal(error: &dyn std::error::Error) -> Response {
    tracing::error!("admin: {error}");
    (StatusCode::INTERNAL_SERVER_ERROR, "cannot be shown; see the log\n").into_response()
}

fn with_type(kind: &'static str, body: String) -> Response {
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}

/// Headers that every answer has: nothing is kept, framed, sniffed or read by another site.
async fn guard(mut response: Response) -> Response {
    let all = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ];
    let headers = response.headers_mut();
    for (name, value) in all {
        headers.insert(name, HeaderValue::from_static(value));
    }
    let policy = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");
    headers.entry(header::CONTENT_SECURITY_POLICY).or_insert(policy);
    response
}
