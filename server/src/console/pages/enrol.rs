//! Enrolling an agent: a token to copy, and a page that turns green at the first entry.

use std::sync::Arc;

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use axum::{Form, Json};
use data_encoding::HEXLOWER;
use scrinium_protocol::identity::StreamKind;
use scrinium_protocol::token::Token;
use serde::Deserialize;
use serde_json::json;

use super::agents::{PlainForm, act};
use super::{Frame, html, refused};
use crate::agents::{Allowance, NewAgent};
use crate::bounds::{self, NAME_LEN_MAX};
use crate::catalogue::records::FIRST_TENANT;
use crate::console::auth::SignedIn;
use crate::console::given::Taken;
use crate::control::or_said;
use crate::core::Core;
use crate::i18n::Language;
use crate::present::{refusal, rfc3339};

#[derive(Template)]
#[template(path = "enrol.html")]
struct EnrolPage {
    t: Language,
    frame: Frame,
    name: String,
    site: String,
    address: String,
    uses: u32,
    ttl_s: u64,
    ttls: [(u64, &'static str); 4],
    problem: Option<String>,
    made: Option<Made>,
    open: Vec<OpenToken>,
}

struct Made {
    token: String,
    id: String,
    is_for_many: bool,
}

/// A token that still enrols somebody.
struct OpenToken {
    id: String,
    name: String,
    uses: u32,
    uses_max: u32,
    until: String,
}

impl EnrolPage {
    fn new(core: &Core, who: &SignedIn, form: EnrolForm) -> Self {
        let open = core.agents.open_tokens().into_iter().take(TOKENS_SHOWN);
        let open = open.map(|token| OpenToken {
            id: HEXLOWER.encode(&token.id),
            name: token.agent_name,
            uses: token.uses,
            uses_max: token.uses_max,
            until: rfc3339(token.expires_s.saturating_mul(1_000_000)),
        });
        Self {
            t: who.language,
            frame: Frame::new(who, "enrol", "/enrol"),
            name: form.name,
            site: form.site,
            address: form.address,
            uses: form.uses,
            ttl_s: form.ttl_s,
            ttls: TTLS,
            problem: None,
            made: None,
            open: open.collect(),
        }
    }
}

/// The form.
pub(crate) async fn page(State(core): State<Arc<Core>>, who: SignedIn) -> Response {
    let form = EnrolForm {
        address: core.address.clone(),
        uses: 1,
        ttl_s: TTL_S,
        ..EnrolForm::default()
    };
    html(&EnrolPage::new(&core, &who, form))
}

#[derive(Default, Deserialize)]
pub(crate) struct EnrolForm {
    csrf: String,
    name: String,
    #[serde(default)]
    site: String,
    address: String,
    #[serde(default = "once")]
    uses: u32,
    #[serde(default = "an_hour")]
    ttl_s: u64,
}

fn once() -> u32 {
    1
}

fn an_hour() -> u64 {
    TTL_S
}

/// Makes a token and shows it once.
pub(crate) async fn make(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Form(form)): Taken<Form<EnrolForm>>,
) -> Response {
    if !who.session.has_csrf(&form.csrf) {
        return StatusCode::FORBIDDEN.into_response();
    }
    let agent = NewAgent {
        name: form.name.trim(),
        site: form.site.trim(),
        tenant: FIRST_TENANT,
        by: &who.actor.name,
    };
    let allowance = Allowance {
        uses: form.uses,
        ttl_s: form.ttl_s,
    };
    let made = make_token(&core, &who, &agent, form.address.trim(), allowance).await;
    let (made, problem) = match made {
        Ok(token) => (
            Some(Made {
                id: HEXLOWER.encode(&token.id),
                token: token.to_text(),
                is_for_many: token.uses_max > 1,
            }),
            None,
        ),
        Err(error) => (None, Some(refusal(who.language, &error))),
    };
    html(&EnrolPage {
        made,
        problem,
        ..EnrolPage::new(&core, &who, form)
    })
}

/// Makes a token, which is in the audit trail before.
async fn make_token(
    core: &Core,
    who: &SignedIn,
    agent: &NewAgent<'_>,
    address: &str,
    allowance: Allowance,
) -> anyhow::Result<Token> {
    core.agents.check_new(agent, address, allowance)?;
    let detail = json!({
        "agent": agent.name, "site": agent.site, "tenant": agent.tenant, "address": address,
        "ttl_s": allowance.ttl_s, "uses_max": allowance.uses,
    });
    core.audit.note(&who.actor, "token made", detail).await?;
    core.agents
        .make_token(agent, address, *core.noise.public(), allowance)
}

/// Makes a token for the machine that takes the place of an agent whose state is lost, and shows it once.
pub(crate) async fn replace(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Path(name)): Taken<Path<String>>,
    Taken(Form(form)): Taken<Form<PlainForm>>,
) -> Response {
    let checked = bounds::check("agent name", &name, NAME_LEN_MAX);
    if let Err(error) =
        checked.and_then(|()| core.agents.check_replaced(&name, &who.actor.name).map(drop))
    {
        return refused(who.language, &error);
    }
    let detail = json!({ "agent": name, "address": core.address, "ttl_s": TTL_S });
    let action = "agent to be replaced";
    if let Err(refused) = act(&core, &who, &form.csrf, action, detail).await {
        return refused;
    }
    let public = *core.noise.public();
    let made = core
        .agents
        .make_replacement((&name, &who.actor.name), &core.address, public, TTL_S);
    match or_said(&core, &who.actor, action, made).await {
        Ok(token) => {
            let form = EnrolForm {
                name,
                address: core.address.clone(),
                ..EnrolForm::default()
            };
            html(&EnrolPage {
                made: Some(Made {
                    id: HEXLOWER.encode(&token.id),
                    token: token.to_text(),
                    is_for_many: false,
                }),
                ..EnrolPage::new(&core, &who, form)
            })
        }
        Err(error) => refused(who.language, &error),
    }
}

/// Ends a token.
pub(crate) async fn revoke(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Path(token)): Taken<Path<String>>,
    Taken(Form(form)): Taken<Form<PlainForm>>,
) -> Response {
    let Some(id) = id_of(&token) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let detail = json!({ "token": token });
    if let Err(refused) = act(&core, &who, &form.csrf, "token revoked", detail).await {
        return refused;
    }
    let done = core.agents.revoke_token(&id);
    match or_said(&core, &who.actor, "token revoked", done).await {
        Ok(()) => Redirect::to("/enrol").into_response(),
        Err(error) => refused(who.language, &error),
    }
}

fn id_of(token: &str) -> Option<[u8; 16]> {
    let id = HEXLOWER.decode(token.as_bytes()).ok()?;
    id.try_into().ok()
}

/// How far an enrolment is: `waiting`, `connected`, or `receiving` with the first entry of a configured source.
pub(crate) async fn state(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Path(token)): Taken<Path<String>>,
) -> Response {
    let Some(id) = id_of(&token) else {
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
/// How long a token may be valid, in seconds, and the words for it.
const TTLS: [(u64, &str); 4] = [
    (TTL_S, "enrol.hour"),
    (86_400, "enrol.day"),
    (30 * 86_400, "enrol.month"),
    (365 * 86_400, "enrol.year"),
];
/// Tokens listed on the page; `agent tokens` lists all.
const TOKENS_SHOWN: usize = 50;
