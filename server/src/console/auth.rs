//! Signing in and out, and who asks.

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use askama::Template;
use axum::Form;
use axum::extract::{FromRequestParts, Query as UrlQuery, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use data_encoding::HEXLOWER;
use scrinium_protocol::kdf::sha256;
use scrinium_syslog::admission;
use serde::Deserialize;
use serde_json::json;
use zeroize::Zeroizing;

use super::back::Back;
use super::given::Taken;
use super::pages::{Frame, encode, html};
use super::turns::Turns;
use crate::accounts::devices::LIFE_S;
use crate::accounts::tries::Place;
use crate::accounts::{Asker, PLACES, Session, SignInError};
use crate::audit::Actor;
use crate::clock;
use crate::core::Core;
use crate::i18n::Language;
use crate::refusals::{self, Refusal, What};

/// The address of the browser whose connection a request came on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

/// The connection a request came on: that of somebody who is signed in keeps its place.
#[derive(Clone, Debug)]
pub(crate) struct Connection(pub(crate) Arc<admission::Place>);

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
        let path = parts.uri.path();
        // What watches an enrolment asks by itself, too.
        let is_watch = path.ends_with("/state");
        let asker = match parts.headers.contains_key(REFRESH_HEADER) || is_watch {
            true => Asker::Page,
            false => Asker::Person,
        };
        let Some(session) = core.accounts.session(&id, asker) else {
            if path.starts_with("/api/") || path == "/metrics" || is_watch {
                return Err(StatusCode::UNAUTHORIZED.into_response());
            }
            let wanted = (parts.method == Method::GET).then_some(&parts.uri);
            return Err(Redirect::to(&sign_in_for(wanted)).into_response());
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

/// The sign-in page that leads to what was wanted, when that is a page.
fn sign_in_for(wanted: Option<&Uri>) -> String {
    let wanted = wanted.and_then(|uri| uri.path_and_query());
    let page = wanted.and_then(|wanted| Back::read(wanted.as_str()).other_page());
    page.map_or_else(
        || "/sign-in".to_owned(),
        |page| format!("/sign-in?back={}", encode(page)),
    )
}

#[derive(Template)]
#[template(path = "sign_in.html")]
struct SignInPage {
    t: Language,
    frame: Frame,
    user: String,
    /// Where it leads.
    back: String,
    problem: Option<String>,
}

impl SignInPage {
    fn new(t: Language, back: &str, problem: Option<String>) -> Self {
        let back = Back::read(back).other_page().unwrap_or_default();
        let mut frame = Frame::anonymous(t);
        if !back.is_empty() {
            frame.back = format!("/sign-in?back={}", encode(back));
        }
        Self {
            t,
            frame,
            user: String::new(),
            back: back.to_owned(),
            problem,
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct SignInQuery {
    #[serde(default)]
    back: String,
}

/// The sign-in page.
pub(crate) async fn sign_in_page(
    headers: HeaderMap,
    Taken(UrlQuery(query)): Taken<UrlQuery<SignInQuery>>,
) -> Response {
    html(&SignInPage::new(language_of(&headers), &query.back, None))
}

#[derive(Deserialize)]
pub(crate) struct SignInForm {
    user: String,
    password: String,
    #[serde(default)]
    back: String,
}

/// How a try to sign in ended.
enum Tried {
    In(String),
    Refused(SignInError),
    /// Too many wait for their turn.
    Busy,
}

/// Checks name and password.
pub(crate) async fn sign_in(
    State(core): State<Arc<Core>>,
    Peer(address): Peer,
    headers: HeaderMap,
    Taken(Form(form)): Taken<Form<SignInForm>>,
) -> Response {
    let t = language_of(&headers);
    if is_foreign(&headers) {
        return (
            StatusCode::FORBIDDEN,
            "this form was sent by another site\n",
        )
            .into_response();
    }
    let back = match Back::read(&form.back) {
        Back::Page(page) => page.to_owned(),
        Back::Other => "/".to_owned(),
        Back::Malformed => return malformed(),
    };
    let user = form.user;
    let shown = cookie(&headers, &device_cookie(&user));
    let known = shown.and_then(|shown| core.accounts.known_place(&user, shown));
    let place = known.unwrap_or_else(|| Place::of(address.ip()));
    let tried = try_password(&core, &user, Zeroizing::new(form.password), place).await;
    let (status, problem, wait_s) = match tried {
        Tried::In(id) => {
            let actor = Actor::peer(&user, address);
            if core
                .audit
                .note(&actor, "signed in", json!({}))
                .await
                .is_ok()
            {
                let device = core.accounts.device_cookie(&user, place);
                return signed_in(&back, &id, &user, device.as_deref());
            }
            core.accounts.sign_out(&id);
            let text = t.text("error.unwritable").to_owned();
            (StatusCode::UNAUTHORIZED, text, None)
        }
        Tried::Refused(error) => {
            note_refused(&core, &user, error, address).await;
            match error {
                SignInError::Wrong(_) => {
                    let text = t.text("sign_in.wrong").to_owned();
                    (StatusCode::UNAUTHORIZED, text, None)
                }
                SignInError::TooSoon { seconds } => {
                    let text = t.with("sign_in.too_soon", seconds);
                    (StatusCode::TOO_MANY_REQUESTS, text, Some(seconds))
                }
            }
        }
        Tried::Busy => {
            let text = t.text("sign_in.busy").to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, text, Some(BUSY_S))
        }
    };
    let mut page = SignInPage::new(t, &back, Some(problem));
    page.user = known_part(&user);
    let mut response = (status, html(&page)).into_response();
    if let Some(wait_s) = wait_s {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, wait_s.into());
    }
    response
}

/// Waits for a turn and checks a password, when it may be tried at all.
async fn try_password(
    core: &Arc<Core>,
    user: &str,
    password: Zeroizing<String>,
    place: Place,
) -> Tried {
    static TURNS: LazyLock<Turns> = LazyLock::new(|| Turns::new(PLACES));
    if let Some(seconds) = core.accounts.wait_s(user, place) {
        return Tried::Refused(SignInError::TooSoon { seconds });
    }
    let Some(turn) = TURNS.take(place, place.is_known()).await else {
        return Tried::Busy;
    };
    let check = {
        let (core, user) = (core.clone(), user.to_owned());
        move || {
            // Given back when the work is done, whether the browser still waits or not.
            let _turn = turn;
            core.accounts.sign_in(&user, &password, place)
        }
    };
    match tokio::task::spawn_blocking(check).await {
        Ok(Ok((id, _))) => Tried::In(id),
        Ok(Err(error)) => Tried::Refused(error),
        Err(_) => Tried::Busy,
    }
}

/// Writes a refusal down, and raises an alarm when it is not a person's mistake any more.
async fn note_refused(core: &Core, user: &str, error: SignInError, address: SocketAddr) {
    let (action, is_attack) = match error {
        SignInError::Wrong(failed) => ("sign-in refused: wrong name or password", failed.is_attack),
        SignInError::TooSoon { .. } => ("sign-in refused: too many wrong passwords", false),
    };
    let known = known_part(user);
    // A name that nobody can have is not shown in full.
    let detail = match user.len() > known.len() {
        true => json!({ "name_bytes": user.len() }),
        false => json!({}),
    };
    let refusal = Refusal {
        what: What::SignIn,
        actor: &Actor::peer(&known, address),
        action,
        detail,
        from: address,
    };
    // One that cannot be written down is refused all the same.
    drop(refusals::note(core, refusal).await);
    if is_attack {
        refusals::raise(core, address).await;
    }
}

/// As much of a name as is written down and shown.
fn known_part(user: &str) -> String {
    user.chars().take(64).collect()
}

fn signed_in(back: &str, id: &str, user: &str, device: Option<&str>) -> Response {
    let session = format!("{SESSION_COOKIE}={id}; Path=/; Secure; HttpOnly; SameSite=Strict");
    let device = device.map(|device| {
        format!(
            "{}={device}; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age={LIFE_S}",
            device_cookie(user)
        )
    });
    let mut response = Redirect::to(back).into_response();
    for cookie in [Some(session), device].into_iter().flatten() {
        if let Ok(value) = HeaderValue::from_str(&cookie) {
            response.headers_mut().append(header::SET_COOKIE, value);
        }
    }
    response
}

/// What the cookie is called that says that an account signed in with this browser: several accounts have one each, and
/// none is named.
fn device_cookie(user: &str) -> String {
    let [a, b, c, d, ..] = sha256(&[b"scrinium device cookie", user.as_bytes()]);
    format!("{DEVICE_COOKIE}-{}", HEXLOWER.encode(&[a, b, c, d]))
}

/// What no page of ours sends.
fn malformed() -> Response {
    let text = "this form does not come from a page of this console\n";
    (StatusCode::BAD_REQUEST, text).into_response()
}

#[derive(Deserialize)]
pub(crate) struct CsrfForm {
    pub(crate) csrf: String,
}

/// Ends the session.
pub(crate) async fn sign_out(
    State(core): State<Arc<Core>>,
    who: SignedIn,
    Taken(Form(form)): Taken<Form<CsrfForm>>,
) -> Response {
    if who.session.has_csrf(&form.csrf) {
        core.accounts.sign_out(&who.id);
        core.unsaid.tell(&who.actor, "signed out", json!({})).await;
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
    Taken(Form(form)): Taken<Form<LanguageForm>>,
) -> Response {
    let back = match Back::read(&form.back) {
        Back::Page(page) => page,
        Back::Other => "/",
        Back::Malformed => return malformed(),
    };
    let mut response = Redirect::to(back).into_response();
    if is_foreign(&headers) {
        return response;
    }
    let Some(language) = Language::from_code(&form.language) else {
        return response;
    };
    let session = cookie(&headers, SESSION_COOKIE);
    if let Some(session) = session.and_then(|id| core.accounts.session(id, Asker::Page)) {
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

pub(super) fn language_of(headers: &HeaderMap) -> Language {
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

/// What a page's own script sends with what it asks by itself: no person acted.
const REFRESH_HEADER: &str = "x-scrinium-refresh";
/// When to try again while too many wait, seconds.
const BUSY_S: u64 = 5;
/// The prefix makes browsers refuse the cookie over plain HTTP or from a subdomain.
const SESSION_COOKIE: &str = "__Host-scrinium";
const DEVICE_COOKIE: &str = "__Host-scrinium-device";
const LANGUAGE_COOKIE: &str = "scrinium-language";
