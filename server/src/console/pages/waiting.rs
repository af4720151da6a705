//! What waits before it is done, on the overview: anybody who signs in stops it there, or agrees to it.

use std::sync::Arc;

use axum::Form;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};

use super::agents::PlainForm;
use super::refused;
use crate::console::auth::SignedIn;
use crate::console::given::Taken;
use crate::control::waiting::{self, Asked};
use crate::core::Core;
use crate::i18n::Language;
use crate::present::format_time;

/// One act, as the overview shows it.
pub(super) struct WaitingRow {
    pub(super) id: String,
    pub(super) what: String,
    pub(super) asked: String,
    pub(super) due: String,
    pub(super) hindered: Option<String>,
    /// Whether this user has not said yet that it is wanted.
    pub(super) may_agree: bool,
}

impl WaitingRow {
    /// What waits now.
    pub(super) fn all(t: Language, core: &Core, user: &str, now_us: u64) -> Vec<Self> {
        let waiting = core.policy.waiting.list().into_iter();
        let two_persons = core.policy.settings().two_persons;
        let rows = waiting.map(|waiting| Self {
            asked: t.with("waiting.asked", waiting.wanted_by()),
            due: if waiting.needs_two || two_persons {
                t.text("waiting.needs_two").to_owned()
            } else {
                let hours = waiting.due_us.saturating_sub(now_us).div_ceil(HOUR_US);
                let at = format_time(waiting.due_us, "%Y-%m-%d %H:%M");
                format!("{} ({at} UTC)", t.with("waiting.due", hours))
            },
            may_agree: !waiting
                .voices
                .iter()
                .any(|voice| voice.is_account && voice.by == user),
            hindered: waiting
                .hindered
                .map(|hindered| t.with("waiting.hindered", t.say(&hindered.into()))),
            id: waiting.id,
            what: t.say(&waiting.what.into()),
        });
        rows.collect()
    }
}

/// Ends it without doing it.
pub(crate) async fn stop(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Path(id)): Taken<Path<String>>,
    Taken(Form(form)): Taken<Form<PlainForm>>,
) -> Response {
    if !who.session.has_csrf(&form.csrf) {
        return StatusCode::FORBIDDEN.into_response();
    }
    answer(
        who.language,
        waiting::stop(&core, &who.actor, &id, "").await,
    )
}

/// Says that this user wants it, too.
pub(crate) async fn agree(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Path(id)): Taken<Path<String>>,
    Taken(Form(form)): Taken<Form<PlainForm>>,
) -> Response {
    if !who.session.has_csrf(&form.csrf) {
        return StatusCode::FORBIDDEN.into_response();
    }
    match waiting::agree(&core, &who.actor, &id).await {
        Ok(Asked::Waits(waits)) => {
            let text = waiting::explained(&core, &waits);
            (StatusCode::ACCEPTED, who.language.say(&text)).into_response()
        }
        Ok(Asked::Done(_)) => answer(who.language, Ok(())),
        Err(error) => answer(who.language, Err(error)),
    }
}

fn answer(t: Language, done: anyhow::Result<()>) -> Response {
    match done {
        Ok(()) => Redirect::to("/").into_response(),
        Err(error) => refused(t, &error),
    }
}

const HOUR_US: u64 = 3_600_000_000;
