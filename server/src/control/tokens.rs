//! Enrolment tokens, by command: made, listed, revoked.

use std::sync::Arc;

use anyhow::Context as _;
use axum::Json;
use axum::extract::State;
use data_encoding::HEXLOWER;
use scrinium_protocol::token::ADDRESS_LEN_MAX;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Failure, audit, caller, or_said};
use crate::agents::{Allowance, NewAgent, route_through};
use crate::bounds::{self, NAME_LEN_MAX};
use crate::core::Core;
use crate::present::rfc3339;

/// What `agent enroll` asks.
#[derive(Default, Deserialize, Serialize)]
pub(crate) struct EnrolRequest {
    pub(crate) name: String,
    pub(crate) site: String,
    pub(crate) tenant: String,
    pub(crate) ttl_s: u64,
    pub(crate) address: Option<String>,
    #[serde(default)]
    pub(crate) proxy: Option<String>,
    /// How many agents.
    pub(crate) uses: u32,
}

/// What `agent revoke-token` asks.
#[derive(Deserialize, Serialize)]
pub(crate) struct RevokeRequest {
    /// As `agent tokens` lists it.
    pub(crate) id: String,
}

pub(super) async fn handle_make(
    State(core): State<Arc<Core>>,
    Json(request): Json<EnrolRequest>,
) -> Result<Json<Value>, Failure> {
    let address = request.address.as_deref().unwrap_or(&core.address);
    let address = &route_through(address, request.proxy.as_deref())?;
    let agent = NewAgent {
        name: &request.name,
        site: &request.site,
        tenant: &request.tenant,
        by: LOCAL,
    };
    let allowance = Allowance {
        uses: request.uses,
        ttl_s: request.ttl_s,
    };
    core.agents.check_new(&agent, address, allowance)?;
    let detail = json!({
        "agent": agent.name, "site": agent.site, "tenant": agent.tenant, "address": address,
        "ttl_s": allowance.ttl_s, "uses_max": allowance.uses,
    });
    audit(&core, "token made", detail).await?;
    let token = core
        .agents
        .make_token(&agent, address, *core.noise.public(), allowance)?;
    Ok(Json(json!({
        "token": token.to_text(), "id": HEXLOWER.encode(&token.id), "expires_s": token.expires_s,
        "uses_max": token.uses_max,
    })))
}

/// What `agent replace` asks.
#[derive(Deserialize, Serialize)]
pub(crate) struct ReplaceRequest {
    pub(crate) name: String,
    pub(crate) ttl_s: u64,
    pub(crate) address: Option<String>,
    #[serde(default)]
    pub(crate) proxy: Option<String>,
}

pub(super) async fn handle_replace(
    State(core): State<Arc<Core>>,
    Json(request): Json<ReplaceRequest>,
) -> Result<Json<Value>, Failure> {
    let ReplaceRequest {
        name,
        ttl_s,
        address,
        proxy,
    } = request;
    bounds::check("agent name", &name, NAME_LEN_MAX)?;
    let address = address.as_deref().unwrap_or(&core.address);
    bounds::check("address", address, ADDRESS_LEN_MAX)?;
    let address = &route_through(address, proxy.as_deref())?;
    core.agents.check_replaced(&name, LOCAL)?;
    let detail = json!({ "agent": name, "address": address, "ttl_s": ttl_s });
    audit(&core, "agent to be replaced", detail).await?;
    let public = *core.noise.public();
    let made = core
        .agents
        .make_replacement((&name, LOCAL), address, public, ttl_s);
    let token = or_said(&core, &caller::local(), "agent to be replaced", made).await?;
    Ok(Json(json!({
        "token": token.to_text(), "id": HEXLOWER.encode(&token.id), "expires_s": token.expires_s,
    })))
}

/// The tokens that still enrol somebody; no secret of theirs.
pub(super) async fn handle_list(State(core): State<Arc<Core>>) -> Json<Value> {
    let tokens = core.agents.open_tokens().into_iter().map(|token| {
        json!({
            "id": HEXLOWER.encode(&token.id), "name": token.agent_name, "site": token.site,
            "tenant": token.tenant, "uses": token.uses, "uses_max": token.uses_max,
            "made": rfc3339(token.made_us), "expires": rfc3339(token.expires_s.saturating_mul(1_000_000)),
        })
    });
    Json(tokens.collect())
}

pub(super) async fn handle_revoke(
    State(core): State<Arc<Core>>,
    Json(request): Json<RevokeRequest>,
) -> Result<Json<Value>, Failure> {
    bounds::check("token id", &request.id, NAME_LEN_MAX)?;
    let id = HEXLOWER.decode(request.id.as_bytes()).ok();
    let id = id.and_then(|id| <[u8; 16]>::try_from(id).ok());
    let id = id.context("a token's id is 32 hexadecimal digits, as `agent tokens` lists it")?;
    audit(&core, "token revoked", json!({ "token": request.id })).await?;
    let done = core.agents.revoke_token(&id);
    or_said(&core, &caller::local(), "token revoked", done).await?;
    Ok(Json(json!({})))
}

/// Who makes tokens by command.
const LOCAL: &str = "";
