//! Searching: query, time range, histogram, results, and the raw lines as a download.

use std::sync::Arc;
use std::time::Duration;

use askama::Template;
use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::{Frame, encode, html, refused, status_of};
use crate::answer::{self, Asked, LeftOut, Shape, account_of};
use crate::archive::block::AHEAD_US_MAX;
use crate::bounds::{self, QUERY_LEN_MAX};
use crate::clock::{self, DAY_US};
use crate::console::auth::SignedIn;
use crate::console::chart::{Histogram, bucket_for};
use crate::console::given::Given;
use crate::control::container::said_of;
use crate::control::export::{self as control_export, ExportRequest};
use crate::core::Core;
use crate::i18n::Language;
use crate::index::search::{Buckets, Wanted};
use crate::present::{View, format_time, refusal, rfc3339, severity_name};
use crate::said::said;
use crate::times::{Range, Zone};

/// What is searched for, of a page, a download, or a program.
#[derive(Clone, Default)]
struct Params {
    q: String,
    during: During,
    limit: usize,
    /// The word of an opening of the second container.
    opening: Option<String>,
}

/// When what is searched for was collected.
#[derive(Clone)]
enum During {
    /// One of [`RANGES`], until now.
    Last(&'static str),
    Between(Range),
}

impl Default for During {
    fn default() -> Self {
        Self::Last("1h")
    }
}

impl Params {
    /// Reads them, and refuses what has no meaning. The audit trail has what was searched for, not what could not be.
    fn read(given: &Given, limit: usize) -> anyhow::Result<Self> {
        given.only(&["q", "range", "from", "to", "zone", "limit", "opening"])?;
        let range = given.word("range", &RANGES)?;
        let (from, to) = (given.text("from"), given.text("to"));
        let during = if from.is_some() || to.is_some() {
            if range.is_some() {
                return Err(said!("param.either", "range", "from", "to").into());
            }
            let zone = Zone::named("zone", given.text("zone"))?;
            During::Between(Range::parse(("from", from), ("to", to), &zone)?)
        } else {
            During::Last(range.unwrap_or("1h"))
        };
        let most = given.number("limit", HITS_DOWNLOADED)?;
        Ok(Self {
            q: given.text("q").unwrap_or_default().to_owned(),
            during,
            limit: most.map_or(limit, |most| usize::try_from(most).unwrap_or(limit)),
            opening: given.text("opening").map(str::to_owned),
        })
    }

    /// The same as the query of a URL.
    fn to_url(&self) -> String {
        let mut url = format!("q={}", encode(&self.q));
        match &self.during {
            During::Last(range) => url.push_str(&format!("&range={range}")),
            During::Between(range) => {
                for (name, us) in [("from", range.from_us), ("to", range.to_us)] {
                    if let Some(us) = us {
                        url.push_str(&format!("&{name}={}", encode(&rfc3339(us))));
                    }
                }
            }
        }
        url
    }

    fn range(&self) -> &'static str {
        match self.during {
            During::Last(range) => range,
            During::Between(_) => "",
        }
    }
}

#[derive(Template)]
#[template(path = "search.html")]
struct SearchPage {
    t: Language,
    frame: Frame,
    q: String,
    range: &'static str,
    /// From when to when, if it is none of the ranges.
    between: Option<String>,
    ranges: [&'static str; 6],
    problem: Option<String>,
    count: String,
    shown: usize,
    /// What is missing in the number and the lines, a sentence each.
    left_out: Vec<String>,
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
pub(crate) async fn page(State(core): State<Arc<Core>>, who: SignedIn, given: Given) -> Response {
    let t = who.language;
    let started = clock::now();
    let read = Params::read(&given, HITS_SHOWN);
    let params = read.as_ref().cloned().unwrap_or_else(|_| Params {
        q: given.text("q").unwrap_or_default().to_owned(),
        ..Params::default()
    });
    let url = params.to_url();
    let mut page = SearchPage {
        t,
        frame: Frame::new(&who, "search", &format!("/search?{url}")),
        q: params.q.clone(),
        range: params.range(),
        between: None,
        ranges: RANGES,
        problem: None,
        count: String::new(),
        shown: 0,
        left_out: Vec::new(),
        took_ms: 0,
        chart: String::new(),
        axis: Default::default(),
        rows: Vec::new(),
        download: format!("/search/raw?{url}"),
        package: String::new(),
        link: format!("/downloads?q={}", encode(&params.q)),
    };
    let ran = async {
        read?;
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
            page.problem = Some(refusal(t, &error));
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
    let to_second = |us| encode(&format_time(us, "%Y-%m-%dT%H:%M:%SZ"));
    let bounds = match &params.during {
        During::Last("all") => (None, None),
        During::Last(_) => (Some(range_us.0), Some(range_us.1)),
        During::Between(range) => (range.from_us, range.to_us),
    };
    for (name, us) in [("from", bounds.0), ("to", bounds.1)] {
        if let Some(us) = us {
            page.package.push_str(&format!("&{name}_us={us}"));
            page.link.push_str(&format!("&{name}={}", to_second(us)));
        }
    }
    page.between = match &params.during {
        During::Last(_) => None,
        During::Between(range) => {
            let shown = |us: Option<u64>| us.map_or_else(|| "…".to_owned(), rfc3339);
            let (from, to) = (shown(range.from_us), shown(range.to_us));
            Some(t.say(&said!("search.between", from, to)))
        }
    };
    page.count = t.number(found.count);
    page.shown = page.rows.len();
    page.left_out = LeftOut::of(&found, Some(SEARCH_MAX)).sentences(t);
    page.took_ms = clock::now().duration_since(started).as_millis();
    html(&page)
}

/// The raw lines as a file, newest first.
pub(crate) async fn raw(State(core): State<Arc<Core>>, who: SignedIn, given: Given) -> Response {
    let t = who.language;
    let begun = async {
        // All of it, however much and however long: it streams.
        let params = Params::read(&given, usize::MAX)?;
        let (mut asked, _, _) = ask(&core, &who, &params).await?;
        asked.time_max = None;
        let shape = Shape::Raw {
            words: Some(t),
            to_terminal: false,
        };
        answer::stream(&core, asked, shape, params.limit, false).await
    };
    let body = match begun.await {
        Ok(body) => body,
        Err(error) => return refused(t, &error),
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

/// One whole source, or what the search found, as a package for an authority.
pub(crate) async fn export(State(core): State<Arc<Core>>, who: SignedIn, given: Given) -> Response {
    let t = who.language;
    let begun = async {
        given.only(&["agent", "path", "kind", "q", "from_us", "to_us", "opening"])?;
        let text = |name| given.text(name).map(str::to_owned);
        let agent = text("agent");
        let request = ExportRequest {
            from_us: given.number("from_us", u64::MAX)?,
            to_us: given.number("to_us", u64::MAX)?,
            // An empty query is everything.
            query: text("q").or_else(|| agent.is_none().then(String::new)),
            agent,
            path: text("path"),
            kind: text("kind"),
            opening: text("opening"),
            ..ExportRequest::package(t)
        };
        control_export::begin(core, request, &who.actor).await
    };
    let body = match begun.await {
        Ok(body) => body,
        Err(error) => return refused(t, &error),
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
pub(crate) async fn api(State(core): State<Arc<Core>>, who: SignedIn, given: Given) -> Response {
    let begun = async {
        let params = Params::read(&given, HITS_SHOWN)?;
        let (asked, _, _) = ask(&core, &who, &params).await?;
        answer::stream(&core, asked, Shape::Api, params.limit, true).await
    };
    match begun.await {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => {
            let body = Json(json!({ "error": refusal(who.language, &error) }));
            (status_of(&error), body).into_response()
        }
    }
}

/// What is asked, and the range and the width of a bucket of its chart; every search is in the audit trail first.
async fn ask(
    core: &Arc<Core>,
    who: &SignedIn,
    params: &Params,
) -> anyhow::Result<(Asked, (u64, u64), u64)> {
    bounds::check("q", &params.q, QUERY_LEN_MAX)?;
    let mut query = core.read_query(&params.q)?;
    let openings = core.archive.openings();
    let access = openings.access(params.opening.as_deref())?;
    let mut detail = json!({
        "query": params.q, "container": said_of(&access), "range": params.range(),
    });
    if let (During::Between(range), Some(detail)) = (&params.during, detail.as_object_mut()) {
        detail.insert("from".into(), json!(range.from_us.map(rfc3339)));
        detail.insert("to".into(), json!(range.to_us.map(rfc3339)));
        detail.remove("range");
    }
    core.audit.note(&who.actor, "search", detail).await?;
    let now = clock::unix_us();
    let (from, to) = match &params.during {
        During::Between(range) => {
            (query.from_us, query.to_us) = (range.from_us, range.to_us);
            let oldest = || core.archive.oldest_us().unwrap_or(now);
            let to = range.to_us.unwrap_or(now);
            (range.from_us.unwrap_or_else(oldest).min(to), to)
        }
        During::Last(range) => {
            let span_us = match *range {
                "15m" => 900_000_000,
                "24h" => DAY_US,
                "7d" => 7 * DAY_US,
                "30d" => 30 * DAY_US,
                "all" => {
                    let oldest = core.archive.oldest_us().unwrap_or(now);
                    now.saturating_sub(oldest)
                }
                _ => 3_600_000_000,
            };
            (now.saturating_sub(span_us), now)
        }
    };
    let span_us = to.saturating_sub(from).max(SPAN_MIN_US);
    let bucket_us = bucket_for(span_us);
    let to = (to / bucket_us + 1) * bucket_us;
    let from = to.saturating_sub(span_us.div_ceil(bucket_us) * bucket_us);
    if let During::Last(range) = params.during {
        if range != "all" {
            query.from_us = Some(from);
        }
        // Nothing that is said to be of the future is shown for ever.
        query.to_us = Some(to.max(now.saturating_add(AHEAD_US_MAX)));
    }
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
/// Entries that a program is given in one answer, if it asks for so many.
const HITS_DOWNLOADED: u64 = 100_000;
/// A chart shows no shorter time, µs.
const SPAN_MIN_US: u64 = 60_000_000;
/// A search that takes longer gives what it has, and says so.
const SEARCH_MAX: Duration = Duration::from_secs(20);
