//! The agents: one row each, and one page each.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, Query as UrlQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Form, Json};
use scrinium_protocol::shown;
use scrinium_protocol::sl::message::KeepAlive;
use scrinium_protocol::sl::sources::SourceReport;
use serde::Deserialize;
use serde_json::{Value, json};

use super::configuration::Editor;
use super::{Frame, ago, encode, html, refused};
use crate::agents::Live;
use crate::bounds::{self, NAME_LEN_MAX};
use crate::catalogue::records::AgentRecord;
use crate::clock;
use crate::console::auth::SignedIn;
use crate::console::given::{Given, Taken};
use crate::control::or_said;
use crate::core::Core;
use crate::i18n::Language;
use crate::present::{self, human_bytes, rfc3339, state_of};

#[derive(Template)]
#[template(path = "agents.html")]
struct AgentsPage {
    t: Language,
    frame: Frame,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    site: String,
    state: &'static str,
    host: String,
    os: String,
    version: String,
    address: String,
    last_durable: String,
    last_durable_at: String,
    keep_alive: String,
    backlog: String,
    backlog_age: String,
    cache: Option<Cache>,
    offset: String,
    offset_is_large: bool,
    generation: u64,
    trouble: Option<String>,
    quarantine: Option<QuarantineRow>,
}

/// Who waits for approval.
struct QuarantineRow {
    reason: String,
    host: String,
    address: String,
    since: String,
    since_us: u64,
    approved: bool,
}

/// The agent's disk cache.
struct Cache {
    bytes: u64,
    bytes_max: u64,
    text: String,
    /// When it is full at the present rate, were the link down.
    lasts: String,
}

impl Cache {
    fn new(t: Language, state: &KeepAlive) -> Self {
        let (bytes, bytes_max) = (state.disk_bytes, state.disk_bytes_max);
        let lasts = match state.cache_lasts_s {
            0 => String::new(),
            seconds @ 1..7200 => t.with("lasts.minutes", seconds / 60),
            seconds @ 7200..172_800 => t.with("lasts.hours", seconds / 3600),
            seconds => t.with("lasts.days", seconds / 86_400),
        };
        Self {
            bytes,
            bytes_max,
            text: format!("{} / {}", human_bytes(bytes), human_bytes(bytes_max)),
            lasts,
        }
    }
}

impl Row {
    /// `last_us` is when its last entry became durable.
    fn new(
        t: Language,
        core: &Core,
        agent: &AgentRecord,
        live: &Live,
        last_us: Option<u64>,
    ) -> Self {
        let now = clock::unix_us();
        let last = last_us;
        let state = &live.keep_alive;
        let offset_ms = live.clock_offset_us.map(|offset_us| offset_us / 1000);
        let known = live.state_us > 0;
        Self {
            name: agent.name.clone(),
            site: agent.site.clone(),
            state: state_of(agent, live, core).name(),
            host: agent.host_name.clone(),
            os: agent.os.clone(),
            version: agent.version.clone(),
            address: live
                .address
                .map(|address| address.to_string())
                .unwrap_or_default(),
            last_durable: last.map_or_else(
                || t.text("agents.none_yet").to_owned(),
                |us| ago(t, us, now),
            ),
            last_durable_at: last.map(rfc3339).unwrap_or_default(),
            keep_alive: if live.heard_us > 0 {
                ago(t, live.heard_us, now)
            } else {
                "–".to_owned()
            },
            backlog: if known {
                human_bytes(state.backlog_bytes)
            } else {
                "–".to_owned()
            },
            backlog_age: if state.oldest_us > 0 {
                ago(t, state.oldest_us, now)
            } else {
                String::new()
            },
            cache: known.then(|| Cache::new(t, state)),
            offset: offset_ms.map_or_else(|| "–".to_owned(), |ms| format!("{ms:+} ms")),
            offset_is_large: offset_ms.is_some_and(|ms| ms.unsigned_abs() > OFFSET_MS_MAX),
            generation: agent.generation,
            trouble: live.trouble().map(|said| t.say(&said)).or_else(|| {
                let sources = live.sources_in_trouble();
                (sources > 0).then(|| t.with("agents.attention", sources))
            }),
            quarantine: agent.quarantine.as_ref().map(|seen| QuarantineRow {
                reason: t.say(&seen.reason.clone().into()),
                host: seen.host_name.clone(),
                address: seen.address.clone(),
                since: rfc3339(seen.since_us),
                since_us: seen.since_us,
                approved: seen.approved,
            }),
        }
    }
}

/// The table of all agents.
pub(crate) async fn page(State(core): State<Arc<Core>>, who: SignedIn) -> Response {
    let t = who.language;
    let last = core.archive.last_of_agents();
    let agents = core.agents.list();
    let rows = agents
        .iter()
        .map(|(agent, live)| Row::new(t, &core, agent, live, last.get(&agent.id).copied()))
        .collect();
    html(&AgentsPage {
        t,
        frame: Frame::new(&who, "agents", "/agents"),
        rows,
    })
}

#[derive(Template)]
#[template(path = "agent.html")]
struct AgentPage {
    t: Language,
    frame: Frame,
    row: Row,
    id: String,
    enrolled: String,
    /// The keys that agent and server sign with, as people compare them.
    key: String,
    server_key: String,
    fingerprint: Vec<(String, String)>,
    integrity_only: bool,
    editor: Editor,
    reports: Vec<ReportRow>,
    reports_more: u32,
    streams: Vec<StreamRow>,
    pages: Option<Pages>,
}

/// How one of its sources does, or something that was found about it.
struct ReportRow {
    source: String,
    state: &'static str,
    word: &'static str,
    files: String,
    path: String,
    cause: String,
}

impl ReportRow {
    fn new(t: Language, row: &SourceReport) -> Self {
        let state = row.state.name();
        Self {
            source: row.source.clone(),
            state: if row.needs_person { "bad" } else { state },
            word: t.text(&format!("source.{state}")),
            files: match row.files {
                0 => String::new(),
                files => t.number(u64::from(files)),
            },
            path: row.path.clone(),
            cause: row.cause.clone(),
        }
    }
}

/// Where one is among the streams of an agent that has more than a page of them.
struct Pages {
    said: String,
    before: Option<usize>,
    after: Option<usize>,
}

impl Pages {
    fn new(t: Language, page: usize, streams: usize) -> Option<Self> {
        let last = streams.div_ceil(STREAMS_SHOWN);
        (last > 1).then(|| Self {
            said: t.with("agents.page", format!("{page} / {last}")),
            before: (page > 1).then(|| page - 1),
            after: (page < last).then(|| page + 1),
        })
    }
}

#[derive(Deserialize)]
pub(crate) struct DetailParams {
    page: Option<usize>,
}

struct StreamRow {
    kind: &'static str,
    name: String,
    entries: String,
    /// Collected by the agent and not yet archived, by its own word.
    missing: u64,
    raw: String,
    last: String,
    query: String,
}

/// One agent: what it is, what it sends.
pub(crate) async fn detail(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Path(name)): Taken<Path<String>>,
    Taken(UrlQuery(params)): Taken<UrlQuery<DetailParams>>,
) -> Response {
    let t = who.language;
    let agents = core.agents.list();
    let Some((agent, live)) = agents.iter().find(|(agent, _)| agent.name == name) else {
        return (StatusCode::NOT_FOUND, t.text("agents.unknown").to_owned()).into_response();
    };
    let now = clock::unix_us();
    let totals = core.archive.totals_of(agent.id);
    let last_page = totals.streams.div_ceil(STREAMS_SHOWN).max(1);
    let page = params.page.unwrap_or(1).clamp(1, last_page);
    let skipped = (page - 1) * STREAMS_SHOWN;
    let (streams, count) = core.archive.page_of(agent.id, skipped, STREAMS_SHOWN);
    let rows: Vec<StreamRow> = streams
        .iter()
        .map(|stream| StreamRow {
            kind: stream.kind.name(),
            name: stream.name.to_string(),
            entries: t.number(stream.entries),
            missing: live
                .marks
                .get(&stream.id)
                .map_or(0, |mark| mark.0.saturating_sub(stream.position.next.0)),
            raw: human_bytes(stream.bytes),
            last: if stream.last_us > 0 {
                ago(t, stream.last_us, now)
            } else {
                "–".to_owned()
            },
            query: format!("agent:{} stream:\"{}\"", agent.name, stream.name),
        })
        .collect();
    html(&AgentPage {
        t,
        frame: Frame::new(&who, "agents", &format!("/agents/{}", encode(&name))),
        row: Row::new(
            t,
            &core,
            agent,
            live,
            Some(totals.last_us).filter(|&us| us > 0),
        ),
        id: agent.id.to_string(),
        enrolled: rfc3339(agent.enrolled_us),
        key: present::signing_key(agent).unwrap_or_else(|| "–".to_owned()),
        server_key: shown::key(&core.signing.verifying_key().to_bytes()),
        fingerprint: agent.fingerprint.clone(),
        integrity_only: agent.integrity_only,
        editor: Editor::new(t, agent, live),
        reports: live
            .sources
            .rows
            .iter()
            .map(|row| ReportRow::new(t, row))
            .collect(),
        reports_more: live.sources.more,
        streams: rows,
        pages: Pages::new(t, page, count),
    })
}

#[derive(Deserialize)]
pub(crate) struct EnabledForm {
    csrf: String,
    enabled: bool,
}

/// Enables or disables an agent.
pub(crate) async fn set_enabled(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Path(name)): Taken<Path<String>>,
    Taken(Form(form)): Taken<Form<EnabledForm>>,
) -> Response {
    let detail = json!({ "agent": name, "enabled": form.enabled });
    if let Err(error) = bounds::check("agent name", &name, NAME_LEN_MAX) {
        return outcome(who.language, Err(error), &name);
    }
    if let Err(refused) = act(&core, &who, &form.csrf, "agent enabled", detail).await {
        return refused;
    }
    let done = core.agents.set_enabled(&name, form.enabled);
    let done = or_said(&core, &who.actor, "agent enabled", done).await;
    outcome(who.language, done, &name)
}

#[derive(Deserialize)]
pub(crate) struct PlainForm {
    pub(super) csrf: String,
}

#[derive(Deserialize)]
pub(crate) struct ApproveForm {
    csrf: String,
    /// What the person saw.
    since_us: u64,
}

/// Lets in what waits in quarantine.
pub(crate) async fn approve(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Path(name)): Taken<Path<String>>,
    Taken(Form(form)): Taken<Form<ApproveForm>>,
) -> Response {
    let detail = json!({ "agent": name });
    if let Err(error) = bounds::check("agent name", &name, NAME_LEN_MAX) {
        return outcome(who.language, Err(error), &name);
    }
    if let Err(refused) = act(&core, &who, &form.csrf, "agent approved", detail).await {
        return refused;
    }
    let done = core.agents.approve(&name, Some(form.since_us));
    let done = or_said(&core, &who.actor, "agent approved", done).await;
    outcome(who.language, done, &name)
}

/// Writes down what `who` is about to do; the answer when that must not go on.
pub(super) async fn act(
    core: &Core,
    who: &SignedIn,
    csrf: &str,
    action: &str,
    detail: Value,
) -> Result<(), Response> {
    if !who.session.has_csrf(csrf) {
        return Err(StatusCode::FORBIDDEN.into_response());
    }
    let written = core.audit.note(&who.actor, action, detail).await;
    written.map_err(|problem| refused(who.language, &problem.into()))
}

pub(super) fn outcome(t: Language, done: anyhow::Result<()>, name: &str) -> Response {
    match done {
        Ok(()) => Redirect::to(&format!("/agents/{}", encode(name))).into_response(),
        Err(error) => refused(t, &error),
    }
}

/// The same for programs.
pub(crate) async fn api(State(core): State<Arc<Core>>, who: SignedIn, given: Given) -> Response {
    match given.only(&[]) {
        Ok(()) => Json(present::agents_json(&core)).into_response(),
        Err(error) => refused(who.language, &error),
    }
}

/// Streams on one page of an agent.
const STREAMS_SHOWN: usize = 200;
/// Clocks further apart than this are said.
const OFFSET_MS_MAX: u64 = 2_000;
