//! Packages for an authority: a link for each, for 31 days.

use std::sync::Arc;

use anyhow::Result;
use askama::Template;
use axum::Form;
use axum::extract::{Path, Query as UrlQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::{Frame, ago, html, refused};
use crate::catalogue::records::LinkRecord;
use crate::clock::{self, DAY_US};
use crate::console::auth::SignedIn;
use crate::console::given::Taken;
use crate::control::export::ExportRequest;
use crate::core::Core;
use crate::i18n::Language;
use crate::links::{self, Fetched};
use crate::present::{format_time, refusal};
use crate::times::{self, Zone};

#[derive(Template)]
#[template(path = "downloads.html")]
struct DownloadsPage {
    t: Language,
    frame: Frame,
    form: Wish,
    problem: Option<String>,
    rows: Vec<Row>,
}

struct Row {
    path: String,
    subject: String,
    range: String,
    authority: String,
    reference: String,
    /// Only a recipient can read it.
    sealed: bool,
    made: String,
    by: String,
    left: String,
    days: u64,
    over: bool,
    downloads: u64,
    last: String,
}

/// What is asked for, as the form has it: an empty field is none.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct Wish {
    csrf: String,
    q: String,
    agent: String,
    path: String,
    kind: String,
    /// Days, both included, or times: the first one is included, the second is not.
    from: String,
    to: String,
    authority: String,
    reference: String,
    purpose: String,
    recipient: String,
}

impl Wish {
    fn is_source(&self) -> bool {
        !self.agent.is_empty()
    }

    fn request(&self, language: Language) -> Result<ExportRequest> {
        let given = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
        let from = moment(language.text("downloads.from"), &self.from, 0)?;
        let to = moment(language.text("downloads.to"), &self.to, DAY_US)?;
        Ok(ExportRequest {
            query: (!self.is_source()).then(|| self.q.clone()),
            agent: given(&self.agent),
            path: given(&self.path),
            kind: given(&self.kind),
            from_us: from,
            to_us: to,
            authority: given(&self.authority),
            reference: given(&self.reference),
            purpose: given(&self.purpose),
            recipient: given(&self.recipient),
            ..ExportRequest::package(language)
        })
    }
}

/// A time in UTC as a form has it: a day, whose end is `day_us` after its beginning, or a time to the second.
fn moment(field: &str, text: &str, day_us: u64) -> Result<Option<u64>> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(day) = text.parse::<clock::Day>() {
        return Ok(Some(day.begin_us() + day_us));
    }
    let zone = Zone::named(field, None)?;
    Ok(Some(times::parse(field, text, &zone)?.us))
}

/// The page; what another page knows is filled in.
pub(crate) async fn page(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(UrlQuery(wish)): Taken<UrlQuery<Wish>>,
) -> Response {
    show(&core, &who, wish, None)
}

/// Makes a link.
pub(crate) async fn make(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Form(wish)): Taken<Form<Wish>>,
) -> Response {
    if !who.session.has_csrf(&wish.csrf) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let made = match wish.request(who.language) {
        Ok(request) => links::make(&core, request, &who.actor).await,
        Err(error) => Err(error),
    };
    match made {
        Ok(_) => Redirect::to("/downloads").into_response(),
        Err(error) => {
            let page = show(&core, &who, wish, Some(refusal(who.language, &error)));
            (StatusCode::UNPROCESSABLE_ENTITY, page).into_response()
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct Opened {
    opening: Option<String>,
}

/// What a link gives, while it does.
pub(crate) async fn fetch(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Path(id)): Taken<Path<String>>,
    Taken(UrlQuery(Opened { opening })): Taken<UrlQuery<Opened>>,
) -> Response {
    let link = core.links.list().into_iter().find(|link| link.id == id);
    match links::fetch(core, &id, opening, &who.actor).await {
        Ok(Fetched::Package(body)) => {
            let name = link.map_or("scrinium", |link| link.request.file_name());
            let disposition = format!("attachment; filename=\"{name}\"");
            let headers = [
                (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
                (header::CONTENT_DISPOSITION, disposition),
            ];
            (headers, body).into_response()
        }
        Ok(Fetched::Over) => {
            let text = who.language.text("downloads.gone");
            (StatusCode::GONE, format!("{text}\n")).into_response()
        }
        Ok(Fetched::Unknown) => StatusCode::NOT_FOUND.into_response(),
        Err(error) => refused(who.language, &error),
    }
}

#[derive(Deserialize)]
pub(crate) struct EndForm {
    csrf: String,
}

/// Ends a link before its time.
pub(crate) async fn end(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Path(id)): Taken<Path<String>>,
    Taken(Form(form)): Taken<Form<EndForm>>,
) -> Response {
    if !who.session.has_csrf(&form.csrf) {
        return StatusCode::FORBIDDEN.into_response();
    }
    match links::end(&core, &id, &who.actor).await {
        Ok(_) => Redirect::to("/downloads").into_response(),
        Err(error) => refused(who.language, &error),
    }
}

fn show(core: &Core, who: &SignedIn, form: Wish, problem: Option<String>) -> Response {
    let t = who.language;
    let now_us = clock::unix_us();
    let links = core.links.list();
    html(&DownloadsPage {
        t,
        frame: Frame::new(who, "downloads", "/downloads"),
        form,
        problem,
        rows: links.iter().map(|link| row(t, link, now_us)).collect(),
    })
}

fn row(t: Language, link: &LinkRecord, now_us: u64) -> Row {
    let day = |us: u64| format_time(us, "%Y-%m-%d %H:%M:%S");
    let request = &link.request;
    let begin = request.from_us.map_or_else(|| "…".to_owned(), day);
    let end = request.to_us.map_or_else(|| "…".to_owned(), day);
    let left_us = link.end_us.saturating_sub(now_us);
    Row {
        path: link.path(),
        subject: request.subject(),
        range: format!("{begin} – {end}"),
        authority: request.authority.clone().unwrap_or_default(),
        reference: request.reference.clone().unwrap_or_default(),
        sealed: request.recipient.is_some(),
        made: day(link.made_us),
        by: link.by.clone(),
        left: match left_us {
            0 => t.with("downloads.over", day(link.end_us)),
            1..DAY_US => t.with("downloads.hours", left_us.div_ceil(HOUR_US)),
            _ => t.with("downloads.days", left_us.div_ceil(DAY_US)),
        },
        days: left_us.div_ceil(DAY_US),
        over: link.is_over(now_us),
        downloads: link.downloads,
        last: match link.last_us {
            0 => String::new(),
            last_us => ago(t, last_us, now_us),
        },
    }
}

const HOUR_US: u64 = 3_600_000_000;
