//! The overview: is everything being received, is everything kept.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Form, Json};
use serde_json::json;

use super::agents::{PlainForm, act};
use super::waiting::WaitingRow;
use super::{Frame, ago, html, refused};
use crate::answer::{self, Asked, account_of};
use crate::archive::block::AHEAD_US_MAX;
use crate::archive::container::Access;
use crate::archive::disk_bytes;
use crate::backup;
use crate::catalogue::records::AlarmRecord;
use crate::clock;
use crate::console::auth::SignedIn;
use crate::console::chart::{Histogram, bucket_for};
use crate::console::given::{Given, Taken};
use crate::control::or_said;
use crate::control::status;
use crate::core::{Core, OWN_NAME};
use crate::i18n::Language;
use crate::index::query::Query;
use crate::index::search::{Buckets, Found, Wanted};
use crate::present::{self, AgentState, View, human_bytes, rfc3339, state_of};
use crate::verification;

#[derive(Template)]
#[template(path = "overview.html")]
struct OverviewPage {
    t: Language,
    frame: Frame,
    agents: usize,
    connected: usize,
    states: Vec<(&'static str, usize)>,
    streams: String,
    entries: String,
    raw: String,
    disk: String,
    /// Sealed intervals, and when the last one was.
    intervals: String,
    sealed: String,
    verified: String,
    backup: String,
    last_hour: String,
    chart: String,
    axis: [String; 3],
    latest: Vec<Latest>,
    attention: Vec<(String, &'static str, String)>,
    /// What alarms about the server itself name.
    own_name: &'static str,
    alarms: Vec<AlarmRow>,
    /// What the server cannot do now, and what was met.
    troubles: Vec<(&'static str, String)>,
    /// How many stand besides.
    alarms_more: Option<String>,
    /// What is done after a delay, unless somebody stops it.
    waiting: Vec<WaitingRow>,
    /// What waits for the time to be confirmed, and why; when a person has something to see in it.
    waits: Option<(String, String)>,
    address: String,
}

/// An alarm nobody has acknowledged.
struct AlarmRow {
    id: u64,
    kind: &'static str,
    agent: String,
    text: String,
    last: String,
    times: Option<String>,
}

impl AlarmRow {
    /// The newest, and how many more there are.
    fn standing(t: Language, core: &Core, now: u64) -> (Vec<Self>, usize) {
        let mut alarms = core.alarms.list();
        alarms.retain(AlarmRecord::is_standing);
        let more = alarms.len().saturating_sub(ALARMS_SHOWN);
        let shown = alarms
            .into_iter()
            .map(|alarm| Self {
                id: alarm.id,
                kind: t.text(&format!("alarm.{}", alarm.kind.name())),
                text: alarm.said(t),
                agent: alarm.agent,
                last: ago(t, alarm.last_us, now),
                times: (alarm.count > 1).then(|| t.with("alarm.times", alarm.count)),
            })
            .take(ALARMS_SHOWN);
        (shown.collect(), more)
    }
}

struct Latest {
    ago: String,
    host: String,
    text: String,
}

/// Somebody has seen an alarm.
pub(crate) async fn acknowledge(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Path(id)): Taken<Path<u64>>,
    Taken(Form(form)): Taken<Form<PlainForm>>,
) -> Response {
    let detail = json!({ "id": id });
    if let Err(refused) = act(&core, &who, &form.csrf, "alarm acknowledged", detail).await {
        return refused;
    }
    let done = core.alarms.acknowledge(id, &who.session.user);
    match or_said(&core, &who.actor, "alarm acknowledged", done).await {
        Ok(()) => Redirect::to("/").into_response(),
        Err(error) => refused(who.language, &error),
    }
}

/// The alarms for programs.
pub(crate) async fn alarms_api(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    given: Given,
) -> Response {
    match given.only(&[]) {
        Ok(()) => Json(present::alarms_json(&core, who.language)).into_response(),
        Err(error) => refused(who.language, &error),
    }
}

/// The page.
pub(crate) async fn page(State(core): State<Arc<Core>>, who: SignedIn) -> Response {
    let t = who.language;
    let now = clock::unix_us();
    let agents = core.agents.list();
    let mut states: BTreeMap<&'static str, usize> = BTreeMap::new();
    let mut attention = Vec::new();
    for (agent, live) in &agents {
        let state = state_of(agent, live, &core);
        *states.entry(state.name()).or_default() += 1;
        if !matches!(state, AgentState::Connected | AgentState::Disabled) {
            let detail = live.trouble().map(|said| t.say(&said)).unwrap_or_else(|| {
                if live.heard_us > 0 {
                    ago(t, live.heard_us, now)
                } else {
                    String::new()
                }
            });
            attention.push((agent.name.clone(), state.name(), detail));
        }
    }
    let connected = states.get("connected").copied().unwrap_or(0)
        + states.get("buffering").copied().unwrap_or(0);
    let totals = core.archive.totals();
    let bucket = bucket_for(HOUR_US);
    let from = now.saturating_sub(HOUR_US) / bucket * bucket + bucket;
    let names = core.agent_names();
    let range_us = (from, from + HOUR_US);
    let asked = Asked {
        account: account_of(&who.actor),
        query: Query {
            from_us: Some(from),
            to_us: Some(now.saturating_add(AHEAD_US_MAX)),
            ..Query::default()
        },
        access: Access::operations(),
        time_max: Some(LATEST_TIME_MAX),
    };
    let wanted = Wanted {
        lines_max: LATEST_MAX,
        bytes_max: LATEST_BYTES_MAX,
        histogram: Some(Buckets {
            range_us,
            width_us: bucket,
        }),
        count_all: true,
        deadline: None,
    };
    // The page must not wait for the searches of who looks at it.
    let found = tokio::time::timeout(LATEST_WAIT_MAX, answer::page(&core, asked, wanted)).await;
    let found = match found {
        Ok(Ok(found)) => found,
        Ok(Err(_)) | Err(_) => Found {
            partial: true,
            ..Found::default()
        },
    };
    let hits = found.hits.iter();
    let streams = core.archive.streams_among(hits.map(|hit| hit.place.stream));
    let latest = found.hits.iter().map(|hit| {
        let view = View::new(hit, &names, &streams);
        Latest {
            ago: ago(t, hit.place.time_us, now),
            host: view.host,
            text: view.text,
        }
    });
    let histogram = Histogram {
        counts: &found.histogram,
        range_us,
        bucket_us: bucket,
        title: t.text("overview.received_chart"),
    };
    let (intervals, sealed_us) = core.evidence.sealed();
    let (alarms, more) = AlarmRow::standing(t, &core, now);
    html(&OverviewPage {
        intervals: t.number(intervals),
        verified: match verification::last(&core) {
            Ok(Some(last)) => {
                let text = if last.whole {
                    "overview.verified"
                } else {
                    "overview.not_whole"
                };
                t.with(text, ago(t, last.time_us, now))
            }
            Ok(None) | Err(_) => t.text("overview.not_verified").to_owned(),
        },
        backup: backup_said(t, &core, now),
        sealed: match intervals {
            0 => t.text("overview.not_sealed").to_owned(),
            _ => t.with("overview.sealed", ago(t, sealed_us, now)),
        },
        t,
        frame: Frame::new(&who, "overview", "/"),
        agents: agents.len(),
        connected,
        states: states.into_iter().collect(),
        streams: t.number(totals.streams as u64),
        entries: t.number(totals.entries),
        raw: human_bytes(totals.bytes),
        disk: human_bytes(
            disk_bytes(&core.archive.log_dir()) + disk_bytes(&core.archive.archive_dir()),
        ),
        last_hour: match found.partial {
            true => t.with("overview.at_least", t.number(found.count)),
            false => t.number(found.count),
        },
        chart: histogram.to_svg(),
        axis: histogram.axis(),
        latest: latest.collect(),
        attention,
        own_name: OWN_NAME,
        alarms,
        troubles: troubles_said(t, &core),
        alarms_more: (more > 0).then(|| t.with("alarm.more", more)),
        waiting: WaitingRow::all(t, &core, &who.session.user, now),
        waits: waits_said(t, &core).await,
        address: core.address.clone(),
    })
}

/// What the server cannot do now, since when, and what was met.
fn troubles_said(t: Language, core: &Core) -> Vec<(&'static str, String)> {
    let standing = core.archive.troubles().list().into_iter();
    let standing = standing.map(|standing| {
        let what = t.text(&format!("trouble.{}", standing.trouble.name()));
        (
            what,
            format!("{}: {}", rfc3339(standing.since_us), t.say(&standing.text)),
        )
    });
    standing.collect()
}

/// What waits for the time, and why. That a young server's clock is not confirmed yet, and nothing is due, is no news.
async fn waits_said(t: Language, core: &Arc<Core>) -> Option<(String, String)> {
    let waits = core.time.waits()?;
    let core = core.clone();
    let waiting = tokio::task::spawn_blocking(move || status::waiting(&core));
    let waiting = waiting.await.unwrap_or_default();
    let entries = waiting.iter().map(|waiting| waiting.entries).sum();
    if entries == 0 && !waits.is_news {
        return None;
    }
    let what = if entries > 0 {
        t.with("overview.deletion_waits", t.number(entries))
    } else {
        t.text("overview.deletion_would_wait").to_owned()
    };
    Some((what, t.say(&waits.said)))
}

/// When the last backup was made, or that none was.
fn backup_said(t: Language, core: &Core, now_us: u64) -> String {
    let status = backup::status(core).ok();
    let late = status.as_ref().is_some_and(|status| status.late);
    match status.and_then(|status| status.last) {
        Some(last) if last.made_us > 0 => {
            let text = if late {
                "overview.backup_late"
            } else {
                "overview.backup"
            };
            t.with(text, ago(t, last.made_us, now_us))
        }
        _ => t.text("overview.no_backup").to_owned(),
    }
}

/// Alarms on the overview; the command lists all.
const ALARMS_SHOWN: usize = 20;
const HOUR_US: u64 = 3_600_000_000;
const LATEST_MAX: usize = 8;
const LATEST_BYTES_MAX: usize = 256 << 10;
const LATEST_TIME_MAX: Duration = Duration::from_secs(3);
/// The same with what it waits for its turn.
const LATEST_WAIT_MAX: Duration = Duration::from_secs(5);
