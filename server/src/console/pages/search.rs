//! Searching: query, time range, histogram, results, and the raw lines as a download.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::Json;
use axum::extract::{Query as UrlQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::{Frame, encode, html, unwritten};
use crate::answer::{self, Asked, Shape, account_of};
use crate::archive::block::AHEAD_US_MAX;
use crate::bounds::{self, QUERY_LEN_MAX};
use crate::clock;
use crate::console::auth::SignedIn;
use crate::console::chart::{Histogram, bucket_for};
use crate::console::i18n::Language;
use crate::control::container::said_of;
use crate::control::export::{self as control_export, ExportRequest};
use crate::core::Core;
use crate::index::query::Query;
use crate::index::search::{Buckets, Wanted};
use crate::index::turns::Busy;
use crate::present::{View, format_time, rfc3339, severity_name};

#[derive(Clone, Default, Deserialize)]
pub(crate) struct Params {
    #[serde(default)]
    q: String,
    /// How far back: 15m, 1h, 24h, 7d, 30d or all.
    #[serde(default)]
    range: String,
    limit: Option<usize>,
    /// The word of an opening of the second container.
    opening: Option<String>,
}

#[derive(Template)]
#[template(path = "search.html")]
struct SearchPage {
    t: Language,
    frame: Frame,
    q: String,
    range: String,
    ranges: [&'static str; 6],
    problem: Option<String>,
    count: String,
    shown: usize,
    partial: bool,
    damaged: u64,
    took_ms: u128,
    chart: String,
    axis: [String; 3],
    rows: Vec<Row>,
    download: String,
    package: String,
    link: String,
}

struct Row {
    date: String,
    time: String,
    received: String,
    /// That its agent says a time after that, and which.
    claimed: Option<String>,
    host: String,
    agent: String,
    source: String,
    severity: &'static str,
    app: String,
    text: String,
    sequence: u64,
    is_gap: bool,
}

/// The page.
pub(crate) async fn page(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    UrlQuery(params): UrlQuery<Params>,
) -> Response {
    let t = who.language;
    let started = clock::now();
    let range = if RANGES.contains(&params.range.as_str()) {
        params.range.clone()
    } else {
        "1h".to_owned()
    };
    let back = format!("/search?q={}&range={range}", encode(&params.q));
    let mut page = SearchPage {
        t,
        frame: Frame::new(&who, "search", &back),
        q: params.q.clone(),
        range: range.clone(),
        ranges: RANGES,
        problem: None,
        count: String::new(),
        shown: 0,
        partial: false,
        damaged: 0,
        took_ms: 0,
        chart: String::new(),
        axis: Default::default(),
        rows: Vec::new(),
        download: format!("/search/raw?q={}&range={range}", encode(&params.q)),
        package: String::new(),
        link: format!("/downloads?q={}", encode(&params.q)),
    };
    let params = Params {
        range: range.clone(),
        ..params
    };
    let ran = async {
        let (asked, range_us, bucket_us) = ask(&core, &who, &params).await?;
        let wanted = Wanted {
            lines_max: HITS_SHOWN,
            bytes_max: SHOWN_BYTES_MAX,
            histogram: Some(Buckets {
                range_us,
                width_us: bucket_us,
            }),
            count_all: true,
            deadline: None,
        };
        let found = answer::page(&core, asked, wanted).await?;
        anyhow::Ok((found, range_us, bucket_us))
    };
    let (found, range_us, bucket_us) = match ran.await {
        Ok(ran) => ran,
        Err(error) => {
            page.problem = Some(format!("{error:#}"));
            return (status_of(&error), html(&page)).into_response();
        }
    };
    let names = core.agent_names();
    let hits = found.hits.iter();
    let streams = core.archive.streams_among(hits.map(|hit| hit.place.stream));
    page.rows = found
        .hits
        .iter()
        .map(|hit| {
            let view = View::new(hit, &names, &streams);
            Row {
                date: format_time(view.event_us, "%Y-%m-%d"),
                time: format_time(view.event_us, "%H:%M:%S%.3f"),
                received: rfc3339(view.received_us),
                claimed: view.claimed.map(|time| t.with("search.claimed", time)),
                host: view.host,
                agent: view.agent,
                source: view.stream,
                severity: view.severity.map_or("", severity_name),
                app: view.app,
                text: view.text,
                sequence: view.sequence,
                is_gap: view.is_gap,
            }
        })
        .collect();
    let histogram = Histogram {
        counts: &found.histogram,
        range_us,
        bucket_us,
        title: t.text("search.chart"),
    };
    page.chart = histogram.to_svg();
    page.axis = histogram.axis();
    page.package = format!("/export?q={}", encode(&params.q));
    if range != "all" {
        page.package.push_str(&format!("&from_us={}", range_us.0));
        let day = format_time(range_us.0, "%Y-%m-%d");
        page.link.push_str(&format!("&from={day}"));
    }
    page.count = t.number(found.count);
    page.shown = page.rows.len();
    page.partial = found.partial || found.lacking > 0;
    page.damaged = found.damaged;
    page.took_ms = clock::now().duration_since(started).as_millis();
    html(&page)
}

/// The raw lines as a file, newest first.
pub(crate) async fn raw(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    UrlQuery(params): UrlQuery<Params>,
) -> Response {
    let given = async {
        let (asked, _, _) = ask(&core, &who, &params).await?;
        let shape = Shape::Raw {
            words: true,
            to_terminal: false,
        };
        answer::stream(&core, asked, shape, HITS_DOWNLOADED, false).await
    };
    let body = match given.await {
        Ok(body) => body,
        Err(error) => return (status_of(&error), format!("{error:#}\n")).into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"scrinium-search.log\"",
        ),
    ];
    (headers, body).into_response()
}

#[derive(Deserialize)]
pub(crate) struct ExportParams {
    agent: Option<String>,
    path: Option<String>,
    kind: Option<String>,
    q: Option<String>,
    from_us: Option<u64>,
    opening: Option<String>,
}

/// One whole source, or what the search found, as a package for an authority.
pub(crate) async fn export(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    UrlQuery(params): UrlQuery<ExportParams>,
) -> Response {
    let request = ExportRequest {
        from_us: params.from_us,
        agent: params.agent,
        path: params.path,
        kind: params.kind,
        query: params.q,
        opening: params.opening,
        ..ExportRequest::package(who.language)
    };
    let body = match control_export::begin(core, request, &who.actor).await {
        Ok(body) => body,
        Err(error) => return (status_of(&error), format!("{error:#}\n")).into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, "application/x-tar"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"scrinium-package.tar\"",
        ),
    ];
    (headers, body).into_response()
}

/// The same for programs.
pub(crate) async fn api(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    UrlQuery(params): UrlQuery<Params>,
) -> Response {
    let limit = params.limit.unwrap_or(HITS_SHOWN).min(HITS_DOWNLOADED);
    let given = async {
        let (asked, _, _) = ask(&core, &who, &params).await?;
        answer::stream(&core, asked, Shape::Api, limit, true).await
    };
    match given.await {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            let body = Json(json!({ "error": format!("{error:#}") }));
            (status_of(&error), body).into_response()
        }
    }
}

/// That there is no place now is no fault of what was asked.
pub(super) fn status_of(error: &anyhow::Error) -> StatusCode {
    match error.is::<Busy>() {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

/// What is asked, and the range and the width of a bucket of its chart; every search is in the audit trail first.
async fn ask(
    core: &Arc<Core>,
    who: &SignedIn,
    params: &Params,
) -> anyhow::Result<(Asked, (u64, u64), u64)> {
    bounds::check("q", &params.q, QUERY_LEN_MAX)?;
    let mut query = Query::parse(&params.q)?;
    let openings = core.archive.openings();
    let access = openings.access(params.opening.as_deref())?;
    let range = &*params.range;
    let detail = json!({
        "query": params.q, "range": range, "container": said_of(&access),
    });
    let written = core.audit.note(&who.actor, "search", detail).await;
    written.map_err(|problem| anyhow::anyhow!(unwritten(who.language, problem)))?;
    let now = clock::unix_us();
    let span_us = match range {
        "15m" => 900_000_000,
        "24h" => 86_400_000_000,
        "7d" => 7 * 86_400_000_000,
        "30d" => 30 * 86_400_000_000,
        "all" => {
            let oldest = core.archive.oldest_us().unwrap_or(now);
            now.saturating_sub(oldest).max(60_000_000)
        }
        _ => 3_600_000_000,
    };
    let bucket_us = bucket_for(span_us);
    let to = (now / bucket_us + 1) * bucket_us;
    let from = to.saturating_sub(span_us.div_ceil(bucket_us) * bucket_us);
    if range != "all" {
        query.from_us = Some(from);
    }
    // Nothing that is said to be of the future is shown for ever.
    query.to_us = Some(to.max(now.saturating_add(AHEAD_US_MAX)));
    let asked = Asked {
        account: account_of(&who.actor),
        query,
        access,
        time_max: Some(SEARCH_MAX),
    };
    Ok((asked, (from, to), bucket_us))
}

const RANGES: [&str; 6] = ["15m", "1h", "24h", "7d", "30d", "all"];
const HITS_SHOWN: usize = 200;
/// Bytes of the lines on the page: it is made as a whole.
const SHOWN_BYTES_MAX: usize = 2 << 20;
const HITS_DOWNLOADED: usize = 100_000;
/// A search that takes longer gives what it has, and says so.
const SEARCH_MAX: Duration = Duration::from_secs(20);
