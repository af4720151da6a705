//! Signing in and out, and who asks.

use std::net::SocketAddr;
use std::sync::Arc;

use askama::Template;
use axum::Form;
use axum::extract::{FromRequestParts, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use scrinium_syslog::admission::Place;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::i18n::Language;
use super::pages::{Frame, html};
use crate::accounts::{Session, SignInError};
use crate::audit::Actor;
use crate::clock;
use crate::core::Core;

/// The address of the browser whose connection a request came on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// The connection a request came on: that of somebody who is signed in keeps its place.
#[derive(Clone, Debug)]
pub(crate) struct Connection(pub(crate) Arc<Place>);

impl<S: Send + Sync> FromRequestParts<S> for Peer {
    type Rejection = Response;

    /// A request without one is answered to nobody: what it does could not be written down.
    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Response> {
        let peer = parts.extensions.get::<Self>().copied();
        peer.ok_or_else(|| StatusCode::INTERNAL_SERVER_ERROR.into_response())
    }
}

/// A request with a living session; without one the extractor answers with the sign-in page.
pub(crate) struct SignedIn {
    pub(crate) session: Session,
    /// Who that is for the audit trail, with the browser's address.
    pub(crate) actor: Actor,
    pub(crate) id: String,
    pub(crate) language: Language,
}

impl FromRequestParts<Arc<Core>> for SignedIn {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, core: &Arc<Core>) -> Result<Self, Response> {
        let id = cookie(&parts.headers, SESSION_COOKIE)
            .unwrap_or_default()
            .to_owned();
        let Some(session) = core.accounts.session(&id) else {
            if parts.uri.path().starts_with("/api/") || parts.uri.path().ends_with("/state") {
                return Err(StatusCode::UNAUTHORIZED.into_response());
            }
            return Err(Redirect::to("/sign-in").into_response());
        };
        let chosen = core.accounts.language(&session.user);
        let language = chosen.and_then(|code| Language::from_code(&code));
        let Peer(address) = Peer::from_request_parts(parts, core).await?;
        if let Some(Connection(place)) = parts.extensions.get() {
            place.prove(clock::now());
        }
        Ok(Self {
            actor: Actor::signed_in(&session.user, address),
            language: language.unwrap_or_else(|| language_of(&parts.headers)),
            session,
            id,
        })
    }
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    t: Language,
    frame: Frame,
    user: String,
    problem: Option<String>,
}

/// The sign-in page.
pub(crate) async fn sign_in_page(headers: HeaderMap) -> Response {
    let t = language_of(&headers);
    html(&SignInPage {
        t,
        frame: Frame::anonymous(t),
        user: String::new(),
        problem: None,
    })
}

#[derive(Deserialize)]
pub(crate) struct SignInForm {
    user: String,
    password: String,
}

/// Checks name and password.
pub(crate) async fn sign_in(
    State(core): State<Arc<Core>>,
    Peer(address): Peer,
    headers: HeaderMap,
    Form(form): Form<SignInForm>,
) -> Response {
    let t = language_of(&headers);
    if is_foreign(&headers) {
        return (
            StatusCode::FORBIDDEN,
            "this form was sent by another site\n",
        )
            .into_response();
    }
    let (user, password) = (form.user, Zeroizing::new(form.password));
    // Each check costs 19 MiB and some milliseconds: a flood of them waits here, not in memory.
    let Ok(_turn) = CHECKS.acquire().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let checked = {
        let (core, user) = (core.clone(), user.clone());
        tokio::task::spawn_blocking(move || core.accounts.sign_in(&user, &password)).await
    };
    let outcome = checked.unwrap_or(Err(SignInError::Wrong));
    let action = match &outcome {
        Ok(_) => "signed in",
        Err(SignInError::Wrong) => "sign-in refused: wrong name or password",
        Err(SignInError::Locked { .. }) => "sign-in refused: account locked",
    };
    let known: String = user.chars().take(64).collect();
    let actor = Actor::peer(&known, address);
    // A name that nobody can have is not shown in full.
    let detail = match user.len() > known.len() {
        true => json!({ "name_bytes": user.len() }),
        false => json!({}),
    };
    let written = core.audit.note(&actor, action, detail).await.is_ok();
    let problem = match outcome {
        Ok((id, _)) if written => {
            let cookie =
                format!("{SESSION_COOKIE}={id}; Path=/; Secure; HttpOnly; SameSite=Strict");
            let mut response = Redirect::to("/").into_response();
            if let Ok(value) = HeaderValue::from_str(&cookie) {
                response.headers_mut().insert(header::SET_COOKIE, value);
            }
            return response;
        }
        Ok((id, _)) => {
            core.accounts.sign_out(&id);
            t.text("error.unwritable").to_owned()
        }
        Err(SignInError::Wrong) => t.text("sign_in.wrong").to_owned(),
        Err(SignInError::Locked { minutes }) => t.with("sign_in.locked", minutes),
    };
    let page = SignInPage {
        t,
        frame: Frame::anonymous(t),
        user: known,
        problem: Some(problem),
    };
    (StatusCode::UNAUTHORIZED, html(&page)).into_response()
}

#[derive(Deserialize)]
pub(crate) struct CsrfForm {
    pub(crate) csrf: String,
}

/// Ends the session.
pub(crate) async fn sign_out(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Form(form): Form<CsrfForm>,
) -> Response {
    if who.session.has_csrf(&form.csrf) {
        core.accounts.sign_out(&who.id);
        drop(core.audit.note(&who.actor, "signed out", json!({})).await);
    }
    Redirect::to("/sign-in").into_response()
}

#[derive(Deserialize)]
pub(crate) struct LanguageForm {
    language: String,
    #[serde(default)]
    back: String,
}

/// Changes the language, before or after signing in. Harmless, so it needs no token.
pub(crate) async fn language(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    Form(form): Form<LanguageForm>,
) -> Response {
    let back = if form.back.starts_with('/')
        && !form.back.starts_with("//")
        && !form.back.contains('\\')
    {
        form.back.as_str()
    } else {
        "/"
    };
    let mut response = Redirect::to(back).into_response();
    if is_foreign(&headers) {
        return response;
    }
    let Some(language) = Language::from_code(&form.language) else {
        return response;
    };
    if let Some(session) = cookie(&headers, SESSION_COOKIE).and_then(|id| core.accounts.session(id))
    {
        drop(core.accounts.set_language(&session.user, language.code()));
    }
    let cookie = format!(
        "{LANGUAGE_COOKIE}={}; Path=/; Secure; SameSite=Strict; Max-Age=31536000",
        language.code()
    );
    if let Ok(value) = HeaderValue::from_str(&cookie) {
        response.headers_mut().insert(header::SET_COOKIE, value);
    }
    response
}

fn language_of(headers: &HeaderMap) -> Language {
    let chosen = cookie(headers, LANGUAGE_COOKIE).and_then(Language::from_code);
    chosen.unwrap_or_else(|| {
        let accepted = headers
            .get(header::ACCEPT_LANGUAGE)
            .and_then(|value| value.to_str().ok());
        Language::accepted(accepted.unwrap_or_default())
    })
}

/// Whether a browser says that another site made this request.
fn is_foreign(headers: &HeaderMap) -> bool {
    let site = headers
        .get("sec-fetch-site")
        .and_then(|value| value.to_str().ok());
    !matches!(site, None | Some("same-origin" | "none"))
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok());
    lines.flat_map(|line| line.split(';')).find_map(|pair| {
        let (key, value) = pair.trim().split_once('=')?;
        (key == name).then_some(value)
    })
}

/// Passwords checked at once.
static CHECKS: Semaphore = Semaphore::const_new(2);
/// The prefix makes browsers refuse the cookie over plain HTTP or from a subdomain.
const SESSION_COOKIE: &str = "__Host-scrinium";
const LANGUAGE_COOKIE: &str = "scrinium-language";
