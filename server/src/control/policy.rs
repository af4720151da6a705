//! What commands ask about policy: classes, rules, holds, contracts, and what is deleted when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Json;
use axum::extract::{Query, State};
use scrinium_protocol::kdf::sha256;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::{Failure, LOCAL, Refused, audit_as};
use crate::accounts::SignInError;
use crate::archive::retention::{self, Due, Reason};
use crate::catalogue::records::{
    ClassRecord, HoldRecord, OfficerRecord, PolicySettings, RuleRecord,
};
use crate::clock::{self, Day};
use crate::core::Core;
use crate::ingest::Submission;
use crate::policy::GRACE_DAYS;

/// Who acts: an account that proves itself, or whoever may open the socket.
#[derive(Default, Deserialize, Serialize)]
pub(crate) struct Person {
    pub(crate) user: Option<String>,
    pub(crate) password: Option<Zeroizing<String>>,
}

/// One act and who wants it.
#[derive(Deserialize, Serialize)]
pub(crate) struct PolicyRequest {
    pub(crate) act: Act,
    pub(crate) person: Person,
}

/// What can be done to the policy.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Act {
    /// How long a class keeps. What is not given stays, or is as it is in class `general`.
    Class {
        name: String,
        keep_days: Option<u32>,
        floor_days: Option<u32>,
        ceiling_days: Option<u32>,
        operations_days: Option<u32>,
    },
    Officer {
        officer: OfficerRecord,
    },
    Rules {
        rules: Vec<RuleRecord>,
    },
    Hold {
        hold: Box<HoldRecord>,
    },
    Release {
        name: String,
        reason: String,
    },
    Contract {
        tenant: String,
        end: Option<Day>,
        grace_days: Option<u32>,
    },
    TwoPersons {
        on: bool,
    },
}

/// Deletes an agent and everything that is archived of it.
#[derive(Deserialize, Serialize)]
pub(crate) struct DeleteRequest {
    pub(crate) name: String,
    pub(crate) why: String,
    /// What the first answer gave, to say that it was read.
    pub(crate) confirm: Option<String>,
    pub(crate) person: Person,
}

#[derive(Deserialize)]
pub(crate) struct PreviewQuery {
    days: u32,
}

impl Person {
    /// The name of who acts.
    pub(super) async fn name(self, core: &Arc<Core>) -> Result<String> {
        let (Some(user), Some(password)) = (self.user, self.password) else {
            return Ok(LOCAL.to_owned());
        };
        let core = core.clone();
        let (signed_in, user) = tokio::task::spawn_blocking(move || {
            let signed_in = core.accounts.sign_in(&user, &password);
            if let Ok((session, _)) = &signed_in {
                core.accounts.sign_out(session);
            }
            (signed_in, user)
        })
        .await?;
        match signed_in {
            Ok(_) => Ok(user),
            Err(SignInError::Wrong) => {
                Err(Refused(format!("--user '{user}': name or password is wrong")).into())
            }
            Err(SignInError::Locked { minutes }) => {
                Err(Refused(format!("--user '{user}' is locked for {minutes} minutes")).into())
            }
        }
    }
}

/// The whole policy, and what is sealed with what.
pub(super) async fn handle_show(State(core): State<Arc<Core>>) -> Json<Value> {
    let sealed = core.archive.sealed_with().into_iter();
    let sealed: BTreeMap<_, _> = sealed
        .map(|(cipher, (files, bytes))| (cipher, json!({ "files": files, "bytes": bytes })))
        .collect();
    let policy = &core.policy;
    let holds = policy.holds().into_iter().map(|hold| {
        json!({
            "name": hold.name, "reason": hold.reason, "by": hold.by,
            "since": crate::present::rfc3339(hold.since_us), "tenant": hold.tenant, "site": hold.site,
            "agent": hold.agent, "stream": hold.stream, "from": hold.from.to_string(), "to": hold.to.to_string(),
        })
    });
    let contracts = policy.contracts().into_iter().map(|contract| {
        let last = contract.end.plus(contract.grace_days);
        json!({ "tenant": contract.tenant, "end": contract.end.to_string(), "kept_until": last.to_string() })
    });
    Json(json!({
        "cipher": core.archive.cipher().name(),
        "sealed": sealed,
        "classes": policy.classes(),
        "rules": policy.rules(),
        "holds": holds.collect::<Vec<_>>(),
        "officers": policy.officers(),
        "containers": core.archive.keys().containers().len(),
        "contracts": contracts.collect::<Vec<_>>(),
        "two_persons": policy.settings().two_persons,
    }))
}

pub(super) async fn handle_act(
    State(core): State<Arc<Core>>,
    Json(request): Json<PolicyRequest>,
) -> Result<Json<Value>, Failure> {
    let detail = serde_json::to_value(&request.act)?;
    let actor = request.person.name(&core).await?;
    audit_as(&core, &actor, "policy changed", detail).await?;
    let policy = &core.policy;
    match request.act {
        Act::Class {
            name,
            keep_days,
            floor_days,
            ceiling_days,
            operations_days,
        } => {
            let classes = policy.classes();
            let named = |name: &str| classes.iter().find(|class| class.name == name);
            let before = named(&name).or_else(|| named(crate::policy::GENERAL_CLASS));
            let before = before.context("the policy has no class 'general'")?;
            let class = ClassRecord {
                keep_days: keep_days.unwrap_or(before.keep_days),
                floor_days: floor_days.unwrap_or(before.floor_days),
                ceiling_days: ceiling_days.unwrap_or(before.ceiling_days),
                operations_days: operations_days.unwrap_or(before.operations_days),
                name,
            };
            let bounds = (class.floor_days, class.ceiling_days);
            let moves = named(&class.name)
                .is_some_and(|before| bounds != (before.floor_days, before.ceiling_days));
            if moves {
                let what = format!(
                    "class {} with floor {} and ceiling {} days",
                    class.name, class.floor_days, class.ceiling_days
                );
                two_persons(&core, &what, &actor)?;
            }
            policy.set_class(class, moves)?;
        }
        Act::Officer { officer } => policy.set_officer(officer)?,
        Act::Rules { rules } => policy.set_rules(rules)?,
        Act::Hold { mut hold } => {
            hold.by = actor;
            hold.since_us = clock::unix_us();
            policy.hold(*hold)?;
        }
        Act::Release { name, .. } => drop(policy.release(&name)?),
        Act::Contract {
            tenant,
            end,
            grace_days,
        } => {
            let grace_days = grace_days.unwrap_or(GRACE_DAYS);
            policy.set_contract(&tenant, end.map(|end| (end, grace_days)))?;
        }
        Act::TwoPersons { on } => {
            if policy.settings().two_persons && !on {
                two_persons(&core, "deleting without a second person", &actor)?;
            }
            policy.set_settings(PolicySettings { two_persons: on })?;
        }
    }
    Ok(Json(json!({})))
}

/// What the next days delete, and what holds keep from it.
pub(super) async fn handle_preview(
    State(core): State<Arc<Core>>,
    Query(query): Query<PreviewQuery>,
) -> Result<Json<Value>, Failure> {
    let days = query.days.min(PREVIEW_DAYS_MAX);
    let rows = tokio::task::spawn_blocking(move || preview(&core, days)).await?;
    Ok(Json(Value::Array(rows)))
}

fn preview(core: &Core, days: u32) -> Vec<Value> {
    let (today, waits) = match core.time.today() {
        Ok(today) => (today, None),
        // What would go today if the clock were right.
        Err(waits) => (core.time.latest_day(), Some(waits.why)),
    };
    let spans = core.time.spans();
    let mut seen = BTreeSet::new();
    let mut rows = Vec::new();
    for day in (0..=days).map(|n| today.plus(n)) {
        for due in retention::due(&core.archive, &core.policy, &spans, day) {
            if seen.insert(due.group.clone()) {
                let waits = waits.as_ref().filter(|_| day == today);
                rows.push(row_of(&due, day, waits));
            }
        }
    }
    rows
}

fn row_of(due: &Due, on: Day, waits: Option<&String>) -> Value {
    json!({
        "on": on.to_string(),
        "tenant": due.group.tenant,
        "class": due.group.class,
        "day": due.group.day.to_string(),
        "reason": due.reason,
        "streams": due.gone.len(),
        "entries": due.entries(),
        "bytes": due.file_bytes(),
        "streams_held": due.kept.len(),
        "waits": waits,
    })
}

/// Asked once, it tells what would go; asked again with the answer's word, it goes.
pub(super) async fn handle_delete(
    State(core): State<Arc<Core>>,
    Json(request): Json<DeleteRequest>,
) -> Result<Json<Value>, Failure> {
    let DeleteRequest {
        name,
        why,
        confirm,
        person,
    } = request;
    let actor = person.name(&core).await?;
    let agent = core
        .agents
        .find(&name)
        .with_context(|| format!("no agent is named '{name}'"))?;
    if why.trim().is_empty() {
        return Err(anyhow::anyhow!("--reason must not be empty").into());
    }
    let reason = Reason::AgentDeleted {
        by: actor.clone(),
        why: why.clone(),
    };
    let streams = core.archive.streams_of(agent);
    let entries: u64 = streams.iter().map(|stream| stream.entries).sum();
    let bytes: u64 = streams.iter().map(|stream| stream.bytes).sum();
    let word = sha256(&[
        b"scrinium delete v1",
        &agent.0,
        name.as_bytes(),
        why.as_bytes(),
    ]);
    let word = data_encoding::HEXLOWER.encode(word.first_chunk::<4>().unwrap_or(&[0; 4]));
    let spans = core.time.spans();
    let sealed = retention::of_agent(&core.archive, &core.policy, &spans, agent, &reason);
    let mut holding = sealed.err().unwrap_or_default();
    // What came last is not sealed yet.
    let owner = core.policy.owner_of(agent);
    for stream in &streams {
        let day = core.time.day_of_receipt(stream.last_us);
        holding.extend(core.policy.holds_on(&owner, &stream.name, day));
    }
    refuse_held(&name, &holding)?;
    if confirm.as_deref() != Some(&word) {
        return Ok(Json(json!({
            "agent": name, "streams": streams.len(), "entries": entries, "bytes": bytes, "confirm": word,
        })));
    }
    let detail = json!({ "agent": name, "reason": why, "entries": entries, "bytes": bytes });
    audit_as(&core, &actor, "agent deletion", detail).await?;
    let mut by = vec![actor.clone()];
    if core.policy.settings().two_persons {
        by.push(two_persons(
            &core,
            &format!("delete agent {name} ({word})"),
            &actor,
        )?);
    }
    let reason = Reason::AgentDeleted {
        by: by.join(" and "),
        why,
    };
    core.agents.set_enabled(&name, false)?;
    // What its session had submitted is in the log that is finished then.
    for _ in 0..STEPS_MAX {
        if !core.agents.is_connected(agent) {
            break;
        }
        tokio::time::sleep(STEP).await;
    }
    let active = roll(&core).await?;
    let archive = core.archive.clone();
    let policy = core.policy.clone();
    let deleted = core.upkeep.ask(active, move |upkeep| {
        let spans = upkeep.time.spans();
        let due = retention::of_agent(&archive, &policy, &spans, agent, &reason);
        let due = match due {
            Ok(due) => due,
            Err(holding) => return Ok(Err(holding)),
        };
        upkeep.forget(&due)?;
        Ok(Ok(due.iter().map(Due::entries).sum::<u64>()))
    });
    let deleted = match deleted.await? {
        Ok(deleted) => deleted,
        Err(holding) => {
            refuse_held(&name, &holding)?;
            0
        }
    };
    core.agents.remove(agent)?;
    crate::certificates::publish(&core).await?;
    let detail = json!({ "agent": name, "entries": deleted });
    audit_as(&core, &actor, "agent deleted", detail).await?;
    Ok(Json(json!({ "agent": name, "deleted": deleted })))
}

/// Finishes the log that is written now, so that everything before can be sealed; the number of the next.
pub(crate) async fn roll(core: &Arc<Core>) -> Result<u64> {
    let (answer, rolled) = oneshot::channel();
    let queue = core.ingest.clone();
    let send = move || queue.send(Submission::Roll(answer)).is_ok();
    let sent = tokio::task::spawn_blocking(send).await?;
    anyhow::ensure!(sent, "the server stops");
    rolled.await.context("the disk takes no new log now")
}

fn refuse_held(name: &str, holding: &BTreeSet<String>) -> Result<(), Refused> {
    if holding.is_empty() {
        return Ok(());
    }
    let holds: Vec<&str> = holding.iter().map(String::as_str).collect();
    Err(Refused(format!(
        "agent '{name}' is under legal hold ({}); release it first: scrinium-server policy release NAME",
        holds.join(", ")
    )))
}

/// Goes on when somebody else asked for the very same before; returns who.
fn two_persons(core: &Core, what: &str, actor: &str) -> Result<String> {
    let first = core.policy.approve(what, actor, clock::unix_us())?;
    let waits = || {
        Refused(format!(
            "this takes two persons: '{actor}' asked for it now; within seven days somebody else has to ask for the same (--user NAME --password-file FILE)"
        ))
    };
    Ok(first.ok_or_else(waits)?)
}

/// How long a session that was told to end is waited for.
const STEP: Duration = Duration::from_millis(20);
const STEPS_MAX: u32 = 500;
const PREVIEW_DAYS_MAX: u32 = 366;
