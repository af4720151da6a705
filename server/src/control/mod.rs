//! The local way in for commands: a small HTTP API on a socket that only the owner may open.
//!
//! A command reaches the running server through the socket; on a stopped server it opens the volume
//! itself and calls the very same routes in its own process.

pub(crate) mod caller;
pub(crate) mod container;
pub(crate) mod export;
pub(crate) mod links;
pub(crate) mod policy;
pub(crate) mod search;
pub(crate) mod status;
pub(crate) mod tokens;
pub(crate) mod waiting;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use scrinium_protocol::shown;
use scrinium_protocol::sl::message::CONFIGURATION_LEN_MAX;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tower::ServiceExt as _;
use tracing::warn;

use crate::archive::upkeep::Upkeep;
use crate::archive::{EVER, verify};
use crate::audit::{Actor, long_text};
use crate::backup;
use crate::backup::target::Location;
use crate::bounds::{
    self, CHECKPOINT_LEN_MAX, CHECKPOINTS_MAX, COMMAND_LEN_MAX, LOCATION_LEN_MAX, NAME_LEN_MAX,
    USER_LEN_MAX,
};
use crate::catalogue::records::SegmentRecord;
use crate::clock::{self, Day};
use crate::core::Core;
use crate::i18n::Language;
use crate::listener::ACCEPT_RETRY;
use crate::notices;
use crate::present;
use crate::said::Refused;
use crate::{times, verification};

/// What `verify` asks.
#[derive(Default, Deserialize, Serialize)]
pub(crate) struct VerifyRequest {
    /// Checkpoints that were kept elsewhere.
    pub(crate) checkpoints: Vec<String>,
    /// What was verified before is not read again.
    pub(crate) only_new: bool,
    /// Collected at or after, and before: Unix µs.
    pub(crate) from_us: Option<u64>,
    pub(crate) to_us: Option<u64>,
}

/// What `backup create` and `backup verify` ask.
#[derive(Deserialize, Serialize)]
pub(crate) struct BackupRequest {
    /// Where the backup lies.
    pub(crate) location: String,
    /// The keys file.
    pub(crate) keys: PathBuf,
    /// What was there before is known to be gone.
    #[serde(default)]
    pub(crate) anew: bool,
}

impl BackupRequest {
    fn check(&self, location: &str) -> Result<()> {
        bounds::check(location, &self.location, LOCATION_LEN_MAX)?;
        bounds::check("--keys", &self.keys.to_string_lossy(), LOCATION_LEN_MAX)
    }
}

/// Every route of the control socket.
pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/search", post(search::handle))
        .route("/export", post(export::handle))
        .route("/links", get(links::handle_list))
        .route("/links/make", post(links::handle_make))
        .route("/links/end", post(links::handle_end))
        .route("/verify", post(handle_verify))
        .route("/policy", get(policy::handle_show).post(policy::handle_act))
        .route("/status", get(status::handle))
        .route("/duties", get(status::handle_duties))
        .route("/compact", post(handle_compact))
        .route("/container/list", post(container::handle_list))
        .route("/container/open", post(container::handle_open))
        .route("/container/close", post(container::handle_close))
        .route("/backup", get(handle_backup_status))
        .route("/backup/create", post(handle_backup))
        .route("/backup/verify", post(handle_backup_verify))
        .route("/policy/preview", get(policy::handle_preview))
        .route("/policy/waiting", get(waiting::handle_list))
        .route("/policy/waiting/agree", post(waiting::handle_agree))
        .route("/policy/waiting/stop", post(waiting::handle_stop))
        .route("/agents/delete", post(policy::handle_delete))
        .route("/agents", get(handle_agents))
        .route("/agents/enroll", post(tokens::handle_make))
        .route("/agents/replace", post(tokens::handle_replace))
        .route("/agents/tokens", get(tokens::handle_list))
        .route("/agents/tokens/revoke", post(tokens::handle_revoke))
        .route("/agents/enabled", post(handle_enabled))
        .route("/agents/approve", post(handle_approve))
        .route("/agents/integrity-only", post(handle_integrity_only))
        .route("/agents/configure", post(handle_configure))
        .route("/alarms", get(handle_alarms))
        .route("/volume", get(handle_volume))
        .route("/alarms/test", post(handle_alarms_test))
        .route("/alarms/acknowledge", post(handle_acknowledge))
        .route("/users/password", post(handle_password))
        .layer(DefaultBodyLimit::max(COMMAND_LEN_MAX))
        .layer(axum::middleware::from_fn(caller::in_language))
        .with_state(core)
}

/// Serves the control socket until the task is dropped.
pub(crate) async fn run(core: Arc<Core>, listener: UnixListener) {
    let router = router(core);
    let mut tasks = JoinSet::new();
    let mut said_at = None;
    loop {
        while tasks.try_join_next().is_some() {}
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                let now = clock::now();
                if said_at.is_none_or(|at| now.duration_since(at) >= SAID_EVERY) {
                    warn!(%error, "no command can be taken; trying again");
                    said_at = Some(now);
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
        };
        let service = hyper_util::service::TowerToHyperService::new(router.clone());
        tasks.spawn(async move {
            let http = hyper::server::conn::http1::Builder::new();
            let user = caller::user_of(&stream);
            let connection = http.serve_connection(TokioIo::new(stream), service);
            let served = caller::serving(user, connection).await;
            if let Err(error) = served {
                warn!(%error, "a command's connection broke");
            }
        });
    }
}

/// Binds the control socket of a data directory, mode 0600.
pub(crate) fn bind(dir: &Path) -> Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = socket_path(dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    // The directory is 0700 already; the socket says so itself too.
    let listener =
        UnixListener::bind(&path).with_context(|| format!("binding {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn socket_path(dir: &Path) -> PathBuf {
    dir.join("control.sock")
}

/// A command's way to the server.
pub(crate) enum Client {
    Socket(PathBuf),
    InProcess(Router),
}

impl Client {
    /// Connects to the server that runs on `dir`; `None` when none does.
    pub(crate) async fn connect(dir: &Path) -> Option<Self> {
        let path = socket_path(dir);
        UnixStream::connect(&path).await.ok()?;
        Some(Self::Socket(path))
    }

    /// Posts `body` to `route`; the response is a success, or the error it names.
    pub(crate) async fn post(&self, route: &str, body: &impl Serialize) -> Result<Response> {
        let body = Body::from(serde_json::to_vec(body)?);
        self.send(
            Request::post(route)
                .header("content-type", "application/json")
                .header("host", "local")
                .header("accept-language", Language::of_environment().code())
                // The end of an answer says what was left out of it.
                .header("te", "trailers")
                .body(body)?,
        )
        .await
    }

    pub(crate) async fn get(&self, route: &str) -> Result<Response> {
        self.send(
            Request::get(route)
                .header("host", "local")
                .header("accept-language", Language::of_environment().code())
                .body(Body::empty())?,
        )
        .await
    }

    async fn send(&self, request: Request<Body>) -> Result<Response> {
        let response = match self {
            Self::InProcess(router) => match router.clone().oneshot(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
            Self::Socket(path) => {
                let stream = UnixStream::connect(path)
                    .await
                    .context("the server stopped")?;
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(connection);
                sender.send_request(request).await?.map(Body::new)
            }
        };
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let text = response.into_body().collect().await?.to_bytes();
        let text = String::from_utf8_lossy(&text).into_owned();
        if status == StatusCode::FORBIDDEN {
            return Err(Refused(text.into()).into());
        }
        bail!("{text}");
    }
}

/// Reads a whole JSON response.
pub(crate) async fn json_of(response: Response) -> Result<Value> {
    let bytes = response.into_body().collect().await?.to_bytes();
    Ok(serde_json::from_slice(&bytes)?)
}

/// Copies a streamed response; an error in the middle is an error here.
pub(crate) async fn copy_to(response: Response, out: &mut (dyn Write + Send)) -> Result<u64> {
    let broken_off = "the export is not complete; the server's own log says why";
    let (copied, _) = copy_all(response, broken_off, out).await?;
    Ok(copied)
}

async fn copy_all(
    response: Response,
    broken_off: &'static str,
    out: &mut (dyn Write + Send),
) -> Result<(u64, HeaderMap)> {
    let mut body = response.into_body();
    let mut copied = 0;
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.context(broken_off)?;
        match frame.into_data() {
            Ok(data) => {
                out.write_all(&data)?;
                copied += data.len() as u64;
            }
            Err(frame) => trailers.extend(frame.into_trailers().unwrap_or_default()),
        }
    }
    Ok((copied, trailers))
}

async fn handle_verify(
    State(core): State<Arc<Core>>,
    Json(request): Json<VerifyRequest>,
) -> Result<Json<verify::Report>, Failure> {
    bounds::check_count("--checkpoint", request.checkpoints.len(), CHECKPOINTS_MAX)?;
    for checkpoint in &request.checkpoints {
        bounds::check_len("a checkpoint", checkpoint, CHECKPOINT_LEN_MAX)?;
    }
    let extent = match (request.from_us, request.to_us) {
        (None, None) if request.only_new => verification::Extent::New,
        (None, None) => verification::Extent::All,
        (from, to) => {
            times::check_order(("--from", from), ("--to", to))?;
            let last = to.map_or(EVER.1, |to| to.saturating_sub(1));
            verification::Extent::Range(from.unwrap_or(EVER.0), last)
        }
    };
    let report = {
        let core = core.clone();
        let verify = move || verification::run(&core, extent, &request.checkpoints);
        tokio::task::spawn_blocking(verify).await??
    };
    audit(
        &core,
        "verify",
        json!({ "whole": report.whole, "findings": report.findings.len() }),
    )
    .await?;
    Ok(Json(report))
}

async fn handle_backup(
    State(core): State<Arc<Core>>,
    Json(request): Json<BackupRequest>,
) -> Result<Json<backup::Done>, Failure> {
    request.check("--to")?;
    let BackupRequest {
        location,
        keys,
        anew,
    } = request;
    let detail = json!({ "to": location, "keys": keys, "anew": anew });
    audit(&core, "backup", detail).await?;
    let to = Location::parse(&location).context("--to")?;
    let order = backup::Order {
        to,
        keys,
        by_hand: true,
        anew,
    };
    let done = backup::create(&core, order).await;
    Ok(Json(
        or_said(&core, &caller::local(), "backup", done).await?,
    ))
}

async fn handle_backup_status(
    State(core): State<Arc<Core>>,
) -> Result<Json<backup::Status>, Failure> {
    Ok(Json(backup::status(&core)?))
}

async fn handle_backup_verify(
    State(core): State<Arc<Core>>,
    Json(request): Json<BackupRequest>,
) -> Result<Json<backup::Done>, Failure> {
    request.check("--from")?;
    let BackupRequest { location, keys, .. } = request;
    let from = Location::parse(&location).context("--from")?;
    let verify = {
        let core = core.clone();
        move || backup::verify(&core, &from, &keys)
    };
    let done = tokio::task::spawn_blocking(verify).await??;
    let detail = json!({ "generation": done.generation, "findings": done.findings.len() });
    audit(&core, "backup verified", detail).await?;
    Ok(Json(done))
}

/// Seals what came so far and compacts all of it, today's too.
async fn handle_compact(State(core): State<Arc<Core>>) -> Result<Json<Value>, Failure> {
    audit(&core, "compact", json!({})).await?;
    let active = policy::roll(&core).await?;
    let (archive, seconds) = (core.archive.clone(), clock::now());
    let work = move |upkeep: &Upkeep| {
        let today = Day::of(clock::unix_us());
        while upkeep.compact_some(today.plus(1))? {}
        upkeep.remove_what_nobody_reads()
    };
    core.upkeep.ask(active, work).await?;
    let (segments, _) = archive.parts();
    let sum =
        |of: fn(&SegmentRecord) -> u64| segments.iter().map(|segment| of(segment)).sum::<u64>();
    Ok(Json(json!({
        "segments": segments.len(),
        "entries": sum(|segment| segment.entries),
        "bytes": sum(|segment| segment.bytes),
        "bytes_on_disk": sum(|segment| segment.len),
        "seconds": clock::now().duration_since(seconds).as_secs_f64(),
    })))
}

async fn handle_agents(State(core): State<Arc<Core>>) -> Json<Value> {
    Json(present::agents_json(&core))
}

async fn handle_enabled(
    State(core): State<Arc<Core>>,
    Json(request): Json<BTreeMap<String, Value>>,
) -> Result<Json<Value>, Failure> {
    let name = request
        .get("name")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let enabled = request
        .get("enabled")
        .and_then(Value::as_bool)
        .unwrap_or(true);
    bounds::check("agent name", name, NAME_LEN_MAX)?;
    audit(
        &core,
        "agent enabled",
        json!({ "agent": name, "enabled": enabled }),
    )
    .await?;
    let done = core.agents.set_enabled(name, enabled);
    or_said(&core, &caller::local(), "agent enabled", done).await?;
    Ok(Json(json!({})))
}

/// What commands about one agent ask.
#[derive(Deserialize, Serialize)]
pub(crate) struct AgentRequest {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) allow: bool,
    #[serde(default)]
    pub(crate) text: String,
}

async fn handle_approve(
    State(core): State<Arc<Core>>,
    Json(request): Json<AgentRequest>,
) -> Result<Json<Value>, Failure> {
    bounds::check("agent name", &request.name, NAME_LEN_MAX)?;
    audit(&core, "agent approved", json!({ "agent": request.name })).await?;
    let done = core.agents.approve(&request.name, None);
    or_said(&core, &caller::local(), "agent approved", done).await?;
    Ok(Json(json!({})))
}

async fn handle_integrity_only(
    State(core): State<Arc<Core>>,
    Json(request): Json<AgentRequest>,
) -> Result<Json<Value>, Failure> {
    let AgentRequest { name, allow, .. } = request;
    bounds::check("agent name", &name, NAME_LEN_MAX)?;
    let detail = json!({ "agent": name, "allowed": allow });
    audit(&core, "sending in clear", detail).await?;
    let done = core.agents.set_integrity_only(&name, allow);
    or_said(&core, &caller::local(), "sending in clear", done).await?;
    Ok(Json(json!({})))
}

async fn handle_configure(
    State(core): State<Arc<Core>>,
    Json(request): Json<AgentRequest>,
) -> Result<Json<Value>, Failure> {
    let AgentRequest { name, text, .. } = request;
    bounds::check("agent name", &name, NAME_LEN_MAX)?;
    bounds::check_len("the configuration", &text, CONFIGURATION_LEN_MAX)?;
    let detail = json!({ "agent": name, "configuration": long_text(&text) });
    audit(&core, "agent configured", detail).await?;
    let done = core.agents.configure(&name, &text);
    let version = or_said(&core, &caller::local(), "agent configured", done).await?;
    Ok(Json(json!({ "version": version })))
}

async fn handle_alarms(State(core): State<Arc<Core>>) -> Json<Value> {
    Json(present::alarms_json(&core, caller::language()))
}

/// Sends a test by every channel; it is no alarm, and an act.
async fn handle_alarms_test(
    State(core): State<Arc<Core>>,
) -> Result<Json<Vec<notices::Tested>>, Failure> {
    audit(&core, "alarms tested", json!({})).await?;
    let done = notices::test(&core).await;
    Ok(Json(
        or_said(&core, &caller::local(), "alarms tested", done).await?,
    ))
}

/// What others know the server by.
async fn handle_volume(State(core): State<Arc<Core>>) -> Json<Value> {
    let key = core.signing.verifying_key().to_bytes();
    Json(json!({ "server_key": shown::key(&key) }))
}

async fn handle_acknowledge(
    State(core): State<Arc<Core>>,
    Json(request): Json<BTreeMap<String, u64>>,
) -> Result<Json<Value>, Failure> {
    let id = request.get("id").copied().unwrap_or_default();
    audit(&core, "alarm acknowledged", json!({ "id": id })).await?;
    let done = core.alarms.acknowledge(id, "local");
    or_said(&core, &caller::local(), "alarm acknowledged", done).await?;
    Ok(Json(json!({})))
}

async fn handle_password(
    State(core): State<Arc<Core>>,
    Json(request): Json<BTreeMap<String, String>>,
) -> Result<Json<Value>, Failure> {
    let text = |key: &str| request.get(key).cloned().unwrap_or_default();
    let (name, password) = (text("name"), zeroize::Zeroizing::new(text("password")));
    bounds::check("user name", &name, USER_LEN_MAX)?;
    audit(&core, "password set", json!({ "user": name })).await?;
    let done = {
        let core = core.clone();
        let set = move || core.accounts.set_password(&name, &password);
        tokio::task::spawn_blocking(set).await?
    };
    or_said(&core, &caller::local(), "password set", done).await?;
    Ok(Json(json!({})))
}

async fn audit(core: &Core, action: &str, detail: Value) -> Result<()> {
    audit_as(core, &caller::local(), action, detail).await
}

/// Writes down what `actor` does; it must not be done when that fails.
pub(crate) async fn audit_as(
    core: &Core,
    actor: &Actor,
    action: &str,
    detail: Value,
) -> Result<()> {
    Ok(core.audit.note(actor, action, detail).await?)
}

/// Writes down that an act, which is in the trail already, was not done after all.
pub(crate) async fn or_said<T>(
    core: &Core,
    actor: &Actor,
    action: &str,
    done: Result<T>,
) -> Result<T> {
    if let Err(error) = &done {
        let detail = json!({ "action": action, "problem": format!("{error:#}") });
        audit_as(core, actor, "not done", detail).await?;
    }
    done
}

/// Who acts through the socket and names no account.
const LOCAL: &str = "local command";
/// That no command can be taken is logged so often at most.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// An error as the command prints it.
pub(crate) struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = if self.0.is::<Refused>() {
            StatusCode::FORBIDDEN
        } else {
            StatusCode::UNPROCESSABLE_ENTITY
        };
        (status, present::refusal(caller::language(), &self.0)).into_response()
    }
}
