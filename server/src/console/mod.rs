//! The console: server-rendered pages over HTTPS, and the API they share with everybody else.
//!
//! ```text
//! browser ═TLS═▶ [tls] ─▶ router ─▶ [auth] who ─▶ [pages] what ─▶ templates, [chart], [i18n]
//! ```
//!
//! No page but the sign-in, its assets and the health checks answers without a session; the numbers for monitoring
//! have a listener of their own ([metrics]). No inline
//! script or style: the content security policy forbids them.

mod assets;
mod auth;
mod back;
mod chart;
mod given;
pub(crate) mod metrics;
mod pages;
mod progress;
pub(crate) mod tls;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use scrinium_syslog::{accept, limit_send_buffer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;
use tracing::debug;

use self::progress::Progress;
use crate::clock;
use crate::core::Core;

/// Serves the console until the task is dropped.
pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener, tls: TlsAcceptor) {
    let router = router(core.clone());
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let (stream, address) = accept(&listener, &core.doors.console).await;
        let Some(place) = core.doors.console.admit(address.ip(), clock::now()) else {
            debug!(%address, "a connection to the console was not admitted");
            continue;
        };
        if let Err(error) = limit_send_buffer(&stream, SEND_BUFFER) {
            debug!(%address, %error, "a connection to the console broke at once");
            continue;
        }
        let place = Arc::new(place);
        // Whoever acts is written down with the address of the connection, and has a place kept from then on.
        let peer = (auth::Peer(address), auth::Connection(place.clone()));
        let service = router
            .clone()
            .map_request(move |mut request: hyper::Request<Incoming>| {
                request.extensions_mut().insert(peer.0);
                request.extensions_mut().insert(peer.1.clone());
                request
            });
        let (tls, service) = (tls.clone(), TowerToHyperService::new(service));
        tasks.spawn(async move {
            let stream = Progress::new(stream, place.clone());
            let served = async {
                let accepted = tokio::time::timeout(TLS_HANDSHAKE_MAX, tls.accept(stream)).await;
                let Ok(Ok(stream)) = accepted else {
                    return;
                };
                let mut http = hyper::server::conn::http1::Builder::new();
                http.timer(TokioTimer::new())
                    .header_read_timeout(HEADERS_MAX)
                    .max_buf_size(BUFFER_MAX);
                if let Err(error) = http.serve_connection(TokioIo::new(stream), service).await {
                    debug!(%error, "a browser's connection broke");
                }
            };
            // Boxed: what TLS and HTTP need is not kept twice by the task.
            let served = Box::pin(served);
            tokio::select! {
                () = served => {}
                () = place.displaced() => debug!(%address, "a connection to the console made room for another"),
            }
        });
    }
}

fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/", get(pages::overview::page))
        .route("/sign-in", get(auth::sign_in_page).post(auth::sign_in))
        .route("/sign-out", post(auth::sign_out))
        .route("/language", post(auth::language))
        .route("/agents", get(pages::agents::page))
        .route("/agents/{name}", get(pages::agents::detail))
        .route("/agents/{name}/enabled", post(pages::agents::set_enabled))
        .route("/agents/{name}/approve", post(pages::agents::approve))
        .route(
            "/agents/{name}/configuration",
            post(pages::configuration::send),
        )
        .route(
            "/alarms/{id}/acknowledge",
            post(pages::overview::acknowledge),
        )
        .route("/waiting/{id}/stop", post(pages::waiting::stop))
        .route("/waiting/{id}/agree", post(pages::waiting::agree))
        .route("/enrol", get(pages::enrol::page).post(pages::enrol::make))
        .route("/enrol/{token}/state", get(pages::enrol::state))
        .route("/enrol/{token}/revoke", post(pages::enrol::revoke))
        .route("/agents/{name}/replace", post(pages::enrol::replace))
        .route("/search", get(pages::search::page))
        .route("/search/raw", get(pages::search::raw))
        .route("/export", get(pages::search::export))
        .route(
            "/downloads",
            get(pages::downloads::page).post(pages::downloads::make),
        )
        .route("/downloads/{id}", get(pages::downloads::fetch))
        .route("/downloads/{id}/end", post(pages::downloads::end))
        .route("/api/v1/search", get(pages::search::api))
        .route("/api/v1/agents", get(pages::agents::api))
        .route("/api/v1/alarms", get(pages::overview::alarms_api))
        .route("/assets/{name}", get(assets::serve))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics::page))
        .fallback(not_found)
        .layer(DefaultBodyLimit::max(FORM_LEN_MAX))
        .layer(axum::middleware::from_fn(body_in_time))
        .layer(axum::middleware::from_fn(headers))
        .with_state(core)
}

/// Whether entries are archived, sealed, proven and deleted; anybody may ask, so it names no file and no error.
async fn ready(State(core): State<Arc<Core>>) -> Response {
    let stoppers = core.archive.troubles().stoppers();
    if stoppers.is_empty() {
        return "ready\n".into_response();
    }
    let lines = stoppers
        .iter()
        .map(|trouble| format!("{}\n", trouble.sentence()));
    let text = format!("not ready\n{}", lines.collect::<String>());
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn not_found(headers: HeaderMap) -> Response {
    let t = auth::language_of(&headers);
    let text = format!("{}\n", t.text("refused.no_page"));
    (StatusCode::NOT_FOUND, text).into_response()
}

/// Takes the whole of a form before anything is done with it. One that does not come in time, or is too long, ends the
/// connection.
async fn body_in_time(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let t = auth::language_of(&parts.headers);
    let body = axum::body::to_bytes(body, FORM_LEN_MAX);
    let (status, text) = match tokio::time::timeout(BODY_MAX, body).await {
        Ok(Ok(bytes)) => return next.run(Request::from_parts(parts, bytes.into())).await,
        Ok(Err(error)) if is_too_long(&error) => {
            (StatusCode::PAYLOAD_TOO_LARGE, "refused.form_long")
        }
        Ok(Err(_)) => (StatusCode::BAD_REQUEST, "refused.form_broken"),
        Err(_) => (StatusCode::REQUEST_TIMEOUT, "refused.form_late"),
    };
    let text = format!("{}\n", t.text(text));
    (status, [(header::CONNECTION, "close")], text).into_response()
}

fn is_too_long(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Headers every answer carries.
async fn headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CSP),
        (header::STRICT_TRANSPORT_SECURITY, "max-age=31536000"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

const CSP: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";
const TLS_HANDSHAKE_MAX: Duration = Duration::from_secs(10);
const HEADERS_MAX: Duration = Duration::from_secs(10);
/// A form comes within so long: 192 KiB do at 3 KiB/s.
const BODY_MAX: Duration = Duration::from_secs(60);
/// What the kernel holds of an answer, doubled by it. One can write again when a third of it was taken, well before the
/// deadline of [`Progress`].
const SEND_BUFFER: usize = 128 << 10;
/// What one connection may have waiting in memory, each way; a request's head is not longer.
const BUFFER_MAX: usize = 64 << 10;
/// A configuration of which every byte is escaped.
const FORM_LEN_MAX: usize = 192 << 10;
