//! Numbers for monitoring, in the format of Prometheus: no names, no words.
//!
//! On the console's port a session sees them. Programs ask on listeners of their own (`listen.metrics`), which are
//! plain HTTP and answer this one path to anybody who reaches them: on loopback, unless somebody chose otherwise. They
//! answer to no name of others: a web page elsewhere that gives its own name this machine's address ("DNS rebinding")
//! would read them in the browser of somebody here.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use scrinium_segment::say;
use scrinium_syslog::accept;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::auth::SignedIn;
use crate::archive::troubles::Trouble;
use crate::clock;
use crate::core::Core;
use crate::disk::Space;
use crate::listener::doors::METRICS_CONNECTION_MAX;

/// For somebody who signed in.
pub(super) async fn page(State(core): State<Arc<Core>>, _who: SignedIn) -> Response {
    answer(&core)
}

/// Serves a listener of its own until the task is dropped.
///
/// `names` are what this machine is called.
pub(crate) async fn serve(core: Arc<Core>, listener: TcpListener, names: Arc<[String]>) {
    if let Some(address) = listener
        .local_addr()
        .ok()
        .filter(|address| !address.ip().is_loopback())
    {
        warn!(%address, "listen.metrics is not on loopback: whoever reaches it reads the server's numbers, without a password or encryption");
    }
    let path = get(
        move |State(core): State<Arc<Core>>, headers: HeaderMap| async move {
            match headers.get(header::HOST).map(HeaderValue::to_str) {
                // Programs of old send none; browsers always do.
                None => answer(&core),
                Some(Ok(host)) if is_own(host, &names) => answer(&core),
                Some(_) => (StatusCode::MISDIRECTED_REQUEST, MISDIRECTED).into_response(),
            }
        },
    );
    let door = core.doors.metrics.clone();
    let router = Router::new().route("/metrics", path).with_state(core);
    let mut tasks = JoinSet::new();
    loop {
        while tasks.try_join_next().is_some() {}
        let (stream, address) = accept(&listener, &door).await;
        let Some(place) = door.admit(address.ip(), clock::now()) else {
            debug!(%address, "a connection that asks for metrics was not admitted");
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tasks.spawn(async move {
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).keep_alive(false);
            let served = http.serve_connection(TokioIo::new(stream), service);
            let served = tokio::time::timeout(METRICS_CONNECTION_MAX, served);
            tokio::select! {
                _ended = served => {}
                () = place.displaced() => {}
            }
        });
    }
}

/// Whether a request's `Host` is this machine: an address, which no name of others is, or one of its names.
fn is_own(host: &str, names: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or(rest, |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.parse::<IpAddr>().is_ok() || names.iter().any(|own| own.eq_ignore_ascii_case(name))
}

fn answer(core: &Core) -> Response {
    let agents = core.agents.list();
    let connected = agents.iter().filter(|(_, live)| live.connected).count();
    let totals = core.archive.totals();
    let entries = totals.entries;
    let (mut open, mut refused, mut displaced) = (String::new(), String::new(), String::new());
    for (name, door) in core.doors.all() {
        let name = name.to_ascii_lowercase();
        let ((used, _), counts) = (door.used(), door.counts());
        open.push_str(&format!(
            "scrinium_connections{{listener=\"{name}\"}} {used}\n"
        ));
        let count = counts.refused();
        refused.push_str(&format!(
            "scrinium_connections_refused_total{{listener=\"{name}\"}} {count}\n"
        ));
        let count = counts.displaced;
        displaced.push_str(&format!(
            "scrinium_connections_displaced_total{{listener=\"{name}\"}} {count}\n"
        ));
    }
    let unknown = core.unknown_senders.entries();
    let searches = core.turns.searches_waiting();
    let health = health(core);
    let (segments, logs) = core.archive.parts();
    let (intervals, sealed_us) = core.evidence.sealed();
    let text = format!(
        "# TYPE scrinium_agents gauge\nscrinium_agents {}\n# TYPE scrinium_agents_connected gauge\nscrinium_agents_connected {connected}\n\
         # TYPE scrinium_streams gauge\nscrinium_streams {}\n# TYPE scrinium_entries_total counter\nscrinium_entries_total {entries}\n\
         # TYPE scrinium_segments gauge\nscrinium_segments {}\n# TYPE scrinium_logs gauge\nscrinium_logs {}\n\
         # TYPE scrinium_intervals_total counter\nscrinium_intervals_total {intervals}\n\
         # TYPE scrinium_last_interval_seconds gauge\nscrinium_last_interval_seconds {}\n\
         # TYPE scrinium_connections gauge\n{open}# TYPE scrinium_connections_refused_total counter\n{refused}\
         # TYPE scrinium_connections_displaced_total counter\n{displaced}\
         # TYPE scrinium_searches_waiting gauge\nscrinium_searches_waiting {searches}\n\
         # TYPE scrinium_unknown_sender_entries_total counter\nscrinium_unknown_sender_entries_total {unknown}\n{health}",
        agents.len(),
        totals.streams,
        segments.len(),
        logs.len(),
        sealed_us / 1_000_000,
    );
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

const MISDIRECTED: &str = "421: this is not a name of the server; ask by its address, or by a name that its certificate has\n";
/// Whether it does its work, and when each duty was done last.
fn health(core: &Core) -> String {
    let troubles = core.archive.troubles();
    let ready = u8::from(troubles.is_ready());
    let mut text = format!("# TYPE scrinium_ready gauge\nscrinium_ready {ready}\n");
    text.push_str("# TYPE scrinium_trouble gauge\n");
    for trouble in Trouble::ALL {
        let (name, stands) = (trouble.name(), u8::from(troubles.has(trouble)));
        text.push_str(&format!("scrinium_trouble{{kind=\"{name}\"}} {stands}\n"));
    }
    if let Ok(space) = Space::of(core.data_dir()) {
        text.push_str(&format!(
            "# TYPE scrinium_disk_free_bytes gauge\nscrinium_disk_free_bytes {}\n\
             # TYPE scrinium_disk_free_inodes gauge\nscrinium_disk_free_inodes {}\n",
            space.free_bytes, space.free_inodes
        ));
    }
    let alarms = core.alarms.list();
    let open = alarms.iter().filter(|alarm| alarm.is_standing());
    text.push_str(&format!(
        "# TYPE scrinium_alarms_open gauge\nscrinium_alarms_open {}\n\
         # TYPE scrinium_panics_total counter\nscrinium_panics_total {}\n\
         # TYPE scrinium_messages_lost_total counter\nscrinium_messages_lost_total {}\n",
        open.count(),
        say::panics().0,
        say::lost(),
    ));
    let (duties, _) = core.duties.list();
    let (mut rounds, mut fails, mut good) = (String::new(), String::new(), String::new());
    for duty in duties {
        let (name, failing) = (duty.name, u8::from(duty.failures > 0));
        let (done, good_s) = (duty.rounds, duty.good_us / 1_000_000);
        rounds.push_str(&format!(
            "scrinium_duty_rounds_total{{duty=\"{name}\"}} {done}\n"
        ));
        fails.push_str(&format!(
            "scrinium_duty_fails{{duty=\"{name}\"}} {failing}\n"
        ));
        good.push_str(&format!(
            "scrinium_duty_good_seconds{{duty=\"{name}\"}} {good_s}\n"
        ));
    }
    text.push_str(&format!(
        "# TYPE scrinium_duty_rounds_total counter\n{rounds}# TYPE scrinium_duty_fails gauge\n{fails}\
         # TYPE scrinium_duty_good_seconds gauge\n{good}"
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_told_to_no_name_of_others() {
        let names = [
            "logs".to_owned(),
            "logs.example".to_owned(),
            "localhost".to_owned(),
        ];
        for own in [
            "127.0.0.1:9720",
            "192.0.2.1",
            "[::1]:9720",
            "[::1]",
            "localhost:9720",
            "LOGS.example.",
            "logs:80",
        ] {
            assert!(is_own(own, &names), "{own}");
        }
        for other in [
            "",
            "evil.example:9720",
            "127.0.0.1.evil.example",
            "logs.example.evil",
            "[evil",
            "localhost@evil",
            "0x7f000001",
        ] {
            assert!(!is_own(other, &names), "{other}");
        }
    }
}
