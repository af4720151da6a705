//! Numbers for monitoring, in the format of Prometheus: no names, no words.
//!
//! On the console's port a session sees them. Programs ask on listeners of their own (`listen.metrics`), which are
//! plain HTTP and answer this one path to anybody who reaches them: on loopback, unless somebody chose otherwise.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::auth::SignedIn;
use crate::core::Core;
use crate::listener::accept;

/// For somebody who signed in.
pub(super) async fn page(State(core): State<Arc<Core>>, _who: SignedIn) -> Response {
    answer(&core)
}

/// Serves a listener of its own until the task is dropped.
pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener) {
    if let Some(address) = listener
        .local_addr()
        .ok()
        .filter(|address| !address.ip().is_loopback())
    {
        warn!(%address, "listen.metrics is not on loopback: whoever reaches it reads the server's numbers, without a password or encryption");
    }
    let path = get(|State(core): State<Arc<Core>>| async move { answer(&core) });
    let router = Router::new().route("/metrics", path).with_state(core);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let (stream, address) = accept(&listener).await;
        let Ok(place) = places.clone().try_acquire_owned() else {
            debug!(%address, "more than {CONNECTIONS_MAX} connections ask for metrics: refused one");
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tasks.spawn(async move {
            let _place = place;
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).keep_alive(false);
            let served = http.serve_connection(TokioIo::new(stream), service);
            drop(tokio::time::timeout(CONNECTION_MAX, served).await);
        });
    }
}

fn answer(core: &Core) -> Response {
    let agents = core.agents.list();
    let connected = agents.iter().filter(|(_, live)| live.connected).count();
    let streams = core.archive.streams();
    let entries: u64 = streams.values().map(|stream| stream.entries).sum();
    let (segments, logs) = core.archive.parts();
    let (intervals, sealed_us) = core.evidence.sealed();
    let text = format!(
        "# TYPE scrinium_agents gauge\nscrinium_agents {}\n# TYPE scrinium_agents_connected gauge\nscrinium_agents_connected {connected}\n\
         # TYPE scrinium_streams gauge\nscrinium_streams {}\n# TYPE scrinium_entries_total counter\nscrinium_entries_total {entries}\n\
         # TYPE scrinium_segments gauge\nscrinium_segments {}\n# TYPE scrinium_logs gauge\nscrinium_logs {}\n\
         # TYPE scrinium_intervals_total counter\nscrinium_intervals_total {intervals}\n\
         # TYPE scrinium_last_interval_seconds gauge\nscrinium_last_interval_seconds {}\n",
        agents.len(),
        streams.len(),
        segments.len(),
        logs.len(),
        sealed_us / 1_000_000,
    );
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

/// Connections at once: who monitors makes one every few seconds.
const CONNECTIONS_MAX: usize = 16;
/// From accepting to the end of the answer.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
