//! Enrolling an agent: a token to copy, and a page that turns green at the first entry.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Form, Json};
use data_encoding::HEXLOWER;
use scrinium_protocol::identity::StreamKind;
use scrinium_protocol::token::Token;
use serde::Deserialize;
use serde_json::json;

use super::{Frame, html, unwritten};
use crate::agents::NewAgent;
use crate::catalogue::records::FIRST_TENANT;
use crate::console::auth::SignedIn;
use crate::console::i18n::Language;
use crate::core::Core;

#[derive(Template)]
#[template(path = "enrol.html")]
struct EnrolPage {
    t: Language,
    frame: Frame,
    name: String,
    site: String,
    address: String,
    problem: Option<String>,
    made: Option<Made>,
}

struct Made {
    token: String,
    id: String,
}

/// The form.
pub(crate) async fn page(State(core): State<Arc<Core>>, who: SignedIn) -> Response {
    html(&EnrolPage {
        t: who.language,
        frame: Frame::new(&who, "enrol", "/enrol"),
        name: String::new(),
        site: String::new(),
        address: core.address.clone(),
        problem: None,
        made: None,
    })
}

#[derive(Deserialize)]
pub(crate) struct EnrolForm {
    csrf: String,
    name: String,
    #[serde(default)]
    site: String,
    address: String,
}

/// Makes a token and shows it once.
pub(crate) async fn make(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Form(form): Form<EnrolForm>,
) -> Response {
    if !who.session.has_csrf(&form.csrf) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let t = who.language;
    let agent = NewAgent {
        name: form.name.trim(),
        site: form.site.trim(),
        tenant: FIRST_TENANT,
        by: &who.actor.name,
    };
    let made = make_token(&core, &who, &agent, form.address.trim()).await;
    let (made, problem) = match made {
        Ok(token) => (
            Some(Made {
                id: HEXLOWER.encode(&token.id),
                token: token.to_text(),
            }),
            None,
        ),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    html(&EnrolPage {
        t,
        frame: Frame::new(&who, "enrol", "/enrol"),
        name: form.name,
        site: form.site,
        address: form.address,
        problem,
        made,
    })
}

/// Makes a token, which is in the audit trail before.
async fn make_token(
    core: &Core,
    who: &SignedIn,
    agent: &NewAgent<'_>,
    address: &str,
) -> anyhow::Result<Token> {
    core.agents.check_new(agent, address, TTL_S)?;
    let detail = json!({
        "agent": agent.name, "site": agent.site, "tenant": agent.tenant, "address": address, "ttl_s": TTL_S,
    });
    let written = core.audit.note(&who.actor, "token made", detail).await;
    written.map_err(|problem| anyhow::anyhow!(unwritten(who.language, problem)))?;
    core.agents
        .make_token(agent, address, *core.noise.public(), TTL_S)
}

/// How far an enrolment is: `waiting`, `connected`, or `receiving` with the first entry of a configured source.
pub(crate) async fn state(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Path(token): Path<String>,
) -> Response {
    let id = HEXLOWER
        .decode(token.as_bytes())
        .ok()
        .and_then(|id| <[u8; 16]>::try_from(id).ok());
    let Some(id) = id else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let t = who.language;
    let Some(agent) = core.agents.enrolled_with(&id) else {
        return Json(json!({ "state": "waiting", "text": t.text("enrol.waiting") }))
            .into_response();
    };
    // What the agent says of itself shows that it runs, not that it collects.
    let streams = core.archive.streams_of(agent.id).into_iter();
    let mut collected = streams.filter(|stream| stream.kind != StreamKind::Agent);
    if collected.any(|stream| stream.last_us > 0) {
        return Json(
            json!({ "state": "receiving", "text": t.with("enrol.receiving", &agent.name) }),
        )
        .into_response();
    }
    Json(json!({ "state": "connected", "text": t.with("enrol.connected", &agent.name) }))
        .into_response()
}

const TTL_S: u64 = 3600;
