//! What commands ask about the second container.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Result;
use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::policy::Person;
use super::{Failure, audit_as, caller};
use crate::archive::container::{Access, Opening};
use crate::bounds::{self, ID_LEN_MAX, OPENED_MAX, REASON_LEN_MAX};
use crate::catalogue::records::{Group, StoredSecret};
use crate::clock::{self, Day};
use crate::core::Core;
use crate::present;
use crate::said::{Refused, said};

/// Which days.
#[derive(Deserialize, Serialize)]
pub(crate) struct RangeRequest {
    pub(crate) tenant: String,
    pub(crate) from: Day,
    pub(crate) to: Day,
}

/// A container, and the age file with its key.
#[derive(Deserialize, Serialize)]
pub(crate) struct Container {
    pub(crate) group: Group,
    pub(crate) key: String,
}

/// The containers' keys, opened with the officer's identity elsewhere.
#[derive(Deserialize, Serialize)]
pub(crate) struct OpenRequest {
    pub(crate) purpose: String,
    pub(crate) hours: u64,
    pub(crate) keys: Vec<(Group, StoredSecret)>,
    pub(crate) person: Person,
}

#[derive(Deserialize, Serialize)]
pub(crate) struct CloseRequest {
    pub(crate) opening: String,
}

pub(super) async fn handle_list(
    State(core): State<Arc<Core>>,
    Json(request): Json<RangeRequest>,
) -> Json<Vec<Container>> {
    let containers = core.archive.keys().containers().into_iter();
    let wanted = containers.filter(|(group, _)| {
        group.tenant == request.tenant && (request.from..=request.to).contains(&group.day)
    });
    Json(
        wanted
            .map(|(group, key)| Container { group, key })
            .collect(),
    )
}

pub(super) async fn handle_open(
    State(core): State<Arc<Core>>,
    Json(request): Json<OpenRequest>,
) -> Result<Json<Value>, Failure> {
    let OpenRequest {
        purpose,
        hours,
        keys,
        person,
    } = request;
    let actor = person.actor(&core).await?;
    bounds::check("--purpose", &purpose, REASON_LEN_MAX)?;
    bounds::check_count("days to be opened", keys.len(), OPENED_MAX)?;
    let until_us = clock::unix_us().saturating_add(hours.saturating_mul(3_600_000_000));
    let days: Vec<String> = keys
        .iter()
        .map(|(group, _)| group.day.to_string())
        .collect();
    let detail = json!({
        "purpose": purpose, "until": present::rfc3339(until_us), "containers": days.len(),
        "from": days.iter().min(), "to": days.iter().max(),
    });
    let mut opened = BTreeMap::new();
    for (group, key) in keys {
        if !core.archive.keys().opens(&group, &key.0) {
            audit_as(&core, &actor, "container not opened", detail).await?;
            let text = said!("refused.container_key", group.day.to_string());
            return Err(Refused(text).into());
        }
        opened.insert(group, key.0);
    }
    if opened.is_empty() {
        return Err(Refused(said!("refused.container_none")).into());
    }
    audit_as(&core, &actor, "container opened", detail).await?;
    let word = core
        .archive
        .openings()
        .begin(actor.name, purpose, until_us, opened)?;
    Ok(Json(
        json!({ "opening": word, "until": present::rfc3339(until_us) }),
    ))
}

pub(super) async fn handle_close(
    State(core): State<Arc<Core>>,
    Json(request): Json<CloseRequest>,
) -> Result<Json<Value>, Failure> {
    bounds::check("the word of the opening", &request.opening, ID_LEN_MAX)?;
    audit_as(&core, &caller::local(), "container closed", json!({})).await?;
    let was_open = core.archive.openings().end(&request.opening);
    Ok(Json(json!({ "was_open": was_open })))
}

/// What the audit trail says of who uses an opening.
pub(crate) fn said_of(access: &Access) -> Value {
    match access.opening() {
        Some(Opening { by, purpose, .. }) => json!({ "opened_by": by, "purpose": purpose }),
        None => Value::Null,
    }
}
