//! What commands ask about policy: classes, rules, holds, contracts, and what is deleted when.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::Json;
use axum::extract::{Query, State};
use data_encoding::HEXLOWER;
use scrinium_protocol::kdf::sha256;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::waiting::{self, Asked};
use super::{Failure, audit_as, caller, or_said};
use crate::accounts::SignInError;
use crate::accounts::tries::Place;
use crate::agents::check_name;
use crate::archive::retention::{self, Due};
use crate::audit::Actor;
use crate::bounds::{self, NAME_LEN_MAX, REASON_LEN_MAX, REFERENCE_LEN_MAX};
use crate::catalogue::records::{
    ClassChange, HoldRecord, OfficerRecord, PolicySettings, RuleRecord, WaitingAct, WaitingRecord,
};
use crate::clock::{self, Day};
use crate::core::Core;
use crate::ingest::Submission;
use crate::policy::waiting::DELAY_US;
use crate::policy::{GRACE_DAYS, Policy, check_hold};
use crate::present;
use crate::said::{Refused, Said, said};

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
    Class(ClassChange),
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
    /// Who acts. A wrong password is written down.
    pub(super) async fn actor(self, core: &Arc<Core>) -> Result<Actor> {
        let (Some(user), Some(password)) = (self.user, self.password) else {
            return Ok(caller::local());
        };
        let (signed_in, user) = {
            let core = core.clone();
            let check = move || {
                let signed_in = core.accounts.sign_in(&user, &password, Place::Local);
                if let Ok((session, _)) = &signed_in {
                    core.accounts.sign_out(session);
                }
                (signed_in.map(drop), user)
            };
            tokio::task::spawn_blocking(check).await?
        };
        let known: String = user.chars().take(64).collect();
        let (action, text) = match signed_in {
            Ok(()) => return Ok(caller::account(&user)),
            Err(SignInError::Wrong(_)) => (
                "sign-in refused: wrong name or password",
                said!("refused.person", &known),
            ),
            Err(SignInError::TooSoon { seconds }) => (
                "sign-in refused: too many wrong passwords",
                said!("refused.person_soon", &known, seconds),
            ),
        };
        let actor = Actor {
            name: known,
            ..caller::local()
        };
        audit_as(core, &actor, action, json!({})).await?;
        Err(Refused(text).into())
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
            "since": present::rfc3339(hold.since_us), "tenant": hold.tenant, "site": hold.site,
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
        "waiting": waiting::list_json(&core),
    }))
}

pub(super) async fn handle_act(
    State(core): State<Arc<Core>>,
    Json(request): Json<PolicyRequest>,
) -> Result<Json<Value>, Failure> {
    check(&core.policy, &request.act)?;
    let actor = request.person.actor(&core).await?;
    if let Some((act, what)) = what_waits(&core.policy, &request.act)? {
        return match waiting::ask(&core, &actor, act, what).await? {
            Asked::Done(_) => Ok(Json(json!({}))),
            Asked::Waits(waits) => Err(Refused(waiting::explained(&core, &waits)).into()),
        };
    }
    let detail = serde_json::to_value(&request.act)?;
    audit_as(&core, &actor, "policy changed", detail).await?;
    let done = change(&core.policy, request.act, &actor);
    or_said(&core, &actor, "policy changed", done).await?;
    Ok(Json(json!({})))
}

/// Whether the texts of an act keep to their bounds, before anything of it is written down.
fn check(policy: &Policy, act: &Act) -> Result<()> {
    match act {
        Act::Class(change) => check_name("class", &change.name),
        Act::Officer { officer } => {
            bounds::check("--recipient", &officer.recipient, REFERENCE_LEN_MAX)?;
            policy.check_officer(officer)
        }
        Act::Rules { rules } => policy.changed_rules(rules).map(drop),
        Act::Hold { hold } => check_hold(hold),
        Act::Release { name, reason } => {
            bounds::check("hold", name, NAME_LEN_MAX)?;
            bounds::check("--reason", reason, REASON_LEN_MAX)
        }
        Act::Contract { tenant, .. } => check_name("tenant", tenant),
        Act::TwoPersons { .. } => Ok(()),
    }
}

fn change(policy: &Policy, act: Act, actor: &Actor) -> Result<()> {
    match act {
        Act::Class(change) => policy.set_class(policy.changed_class(&change)?.0, false),
        Act::Officer { officer } => policy.set_officer(officer),
        Act::Rules { rules } => policy.set_rules(rules),
        Act::Hold { mut hold } => {
            hold.by.clone_from(&actor.name);
            hold.since_us = clock::unix_us();
            policy.hold(*hold)
        }
        Act::Release { name, .. } => policy.release(&name).map(drop),
        Act::Contract {
            tenant,
            end,
            grace_days,
        } => {
            let grace_days = grace_days.unwrap_or(GRACE_DAYS);
            policy.set_contract(&tenant, end.map(|end| (end, grace_days)))
        }
        Act::TwoPersons { on } => policy.set_settings(PolicySettings { two_persons: on }),
    }
}

/// What no single person does at once (ADR 9), and its sentence: who asks for the same says the same.
fn what_waits(policy: &Policy, act: &Act) -> Result<Option<(WaitingAct, Said)>> {
    Ok(match act {
        Act::Class(change) => {
            let (class, why) = policy.changed_class(change)?;
            why.map(|why| {
                let what = said!(
                    "waiting.class",
                    why,
                    u64::from(class.keep_days),
                    u64::from(class.floor_days),
                    u64::from(class.ceiling_days),
                    u64::from(class.operations_days)
                );
                (WaitingAct::Class(change.clone()), what)
            })
        }
        Act::Rules { rules } => policy.changed_rules(rules)?.map(|why| {
            let text = serde_json::to_string(rules).unwrap_or_default();
            let digest = HEXLOWER.encode(&sha256(&[text.as_bytes()]));
            let act = WaitingAct::Rules {
                rules: rules.clone(),
                before: policy.rules(),
            };
            let digest = digest.get(..16).unwrap_or_default();
            (act, said!("waiting.rules", why, digest))
        }),
        Act::Officer { officer } => {
            let before = policy.officers().into_iter();
            let mut before = before.filter(|before| before.tenant == officer.tenant);
            policy.check_officer(officer)?;
            before.next().filter(|before| before != officer).map(|_| {
                let OfficerRecord { tenant, recipient } = officer;
                let what = said!("waiting.officer", tenant, recipient);
                (WaitingAct::Officer(officer.clone()), what)
            })
        }
        Act::Contract {
            tenant,
            end: Some(end),
            grace_days,
        } => {
            let grace_days = grace_days.unwrap_or(GRACE_DAYS);
            let last = end.plus(grace_days);
            let soonest = Day::of(clock::unix_us().saturating_add(DELAY_US));
            (last < soonest).then(|| {
                let act = WaitingAct::Contract {
                    tenant: tenant.clone(),
                    end: *end,
                    grace_days,
                };
                let what = said!(
                    "waiting.contract",
                    tenant,
                    end.to_string(),
                    last.to_string()
                );
                (act, what)
            })
        }
        Act::TwoPersons { on: false } if policy.settings().two_persons => {
            Some((WaitingAct::OnePerson, said!("waiting.one_person")))
        }
        Act::Contract { .. } | Act::TwoPersons { .. } | Act::Hold { .. } | Act::Release { .. } => {
            None
        }
    })
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

/// Asked once, it tells what would go; asked again with the answer's word, nobody reads it any more, and its keys are
/// destroyed after the delay.
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
    let actor = person.actor(&core).await?;
    bounds::check("agent name", &name, NAME_LEN_MAX)?;
    bounds::check("--reason", &why, REASON_LEN_MAX)?;
    if why.trim().is_empty() {
        return Err(anyhow::anyhow!("--reason must not be empty").into());
    }
    let agent = core.agents.find(&name).ok_or_else(|| {
        let waiting = core.policy.waiting.list().into_iter();
        let mut removed = waiting.filter(|waiting| {
            matches!(&waiting.act, WaitingAct::Agent { name: removed, .. } if *removed == name)
        });
        match removed.next() {
            Some(waiting) => waiting::explained(&core, &waiting),
            None => said!("refused.no_agent", &name),
        }
    })?;
    let streams = core.archive.streams_of(agent);
    let entries: u64 = streams.iter().map(|stream| stream.entries).sum();
    let bytes: u64 = streams.iter().map(|stream| stream.bytes).sum();
    let word = sha256(&[
        b"scrinium delete v1",
        &agent.0,
        name.as_bytes(),
        why.as_bytes(),
    ]);
    let word = HEXLOWER.encode(word.first_chunk::<4>().unwrap_or(&[0; 4]));
    waiting::refuse_held(&core, agent, &name)?;
    if confirm.as_deref() != Some(&word) {
        return Ok(Json(json!({
            "agent": name, "streams": streams.len(), "entries": entries, "bytes": bytes, "confirm": word,
        })));
    }
    let enabled = core.agents.get(agent).is_some_and(|agent| agent.enabled);
    let what = said!("waiting.agent", &name, &word, entries, &why);
    // More may have come since the first person said it.
    let same = |waiting: &WaitingRecord| matches!(&waiting.act, WaitingAct::Agent { agent: id, why: said, .. } if *id == agent && *said == why);
    let known = core.policy.waiting.list().into_iter().find(same);
    let what = known.map_or(what, |known| known.what.into());
    let act = WaitingAct::Agent {
        agent,
        name: name.clone(),
        why,
        enabled,
    };
    match waiting::ask(&core, &actor, act, what).await? {
        Asked::Done(deleted) => Ok(Json(json!({ "agent": name, "deleted": deleted }))),
        Asked::Waits(waits) if waits.needs_two => {
            Err(Refused(waiting::explained(&core, &waits)).into())
        }
        Asked::Waits(waits) => Ok(Json(json!({
            "agent": name, "waits": waits.id, "due": present::rfc3339(waits.due_us),
            "said": caller::language().say(&waiting::explained(&core, &waits)),
        }))),
    }
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

const PREVIEW_DAYS_MAX: u32 = 366;
