//! The pages, one file each.

pub(crate) mod agents;
pub(crate) mod configuration;
pub(crate) mod downloads;
pub(crate) mod enrol;
pub(crate) mod overview;
pub(crate) mod search;
pub(crate) mod waiting;

use askama::Template;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use tracing::error;

use super::assets;
use super::auth::SignedIn;
use crate::audit::NotWritten;
use crate::i18n::Language;
use crate::index::turns::Busy;
use crate::present::refusal;

/// What every page shows around its content.
pub(crate) struct Frame {
    pub(crate) language: &'static str,
    pub(crate) user: String,
    pub(crate) csrf: String,
    /// Which entry of the navigation is this page's.
    pub(crate) here: &'static str,
    /// Where a change of language leads back to.
    pub(crate) back: String,
    pub(crate) style: String,
    pub(crate) script: String,
    pub(crate) icon: String,
    pub(crate) version: &'static str,
}

impl Frame {
    fn new(who: &SignedIn, here: &'static str, back: &str) -> Self {
        Self {
            user: who.session.user.clone(),
            csrf: who.session.csrf.clone(),
            here,
            back: back.to_owned(),
            ..Self::anonymous(who.language)
        }
    }

    pub(crate) fn anonymous(language: Language) -> Self {
        Self {
            language: language.code(),
            user: String::new(),
            csrf: String::new(),
            here: "",
            back: "/sign-in".to_owned(),
            style: assets::url("style.css"),
            script: assets::url("app.js"),
            icon: assets::url("icon.svg"),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

/// Renders a page.
pub(crate) fn html(page: &impl Template) -> Response {
    match page.render() {
        Ok(text) => Html(text).into_response(),
        Err(problem) => {
            error!(%problem, "a page could not be rendered");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// A refusal of what is no page, in the words of who asked.
pub(super) fn refused(t: Language, error: &anyhow::Error) -> Response {
    (status_of(error), format!("{}\n", refusal(t, error))).into_response()
}

/// That there is no place now, or that nothing can be written down, is no fault of what was asked.
pub(super) fn status_of(error: &anyhow::Error) -> StatusCode {
    match error.is::<Busy>() || matches!(error.downcast_ref(), Some(NotWritten::Unavailable)) {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

/// Percent-encodes a segment of a path or the value of a query parameter.
pub(crate) fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

/// How long ago, in the words of the language.
pub(crate) fn ago(t: Language, us: u64, now_us: u64) -> String {
    let seconds = now_us.saturating_sub(us) / 1_000_000;
    match seconds {
        0..60 => t.with("ago.seconds", seconds),
        60..3600 => t.with("ago.minutes", seconds / 60),
        3600..86_400 => t.with("ago.hours", seconds / 3600),
        _ => t.with("ago.days", seconds / 86_400),
    }
}
