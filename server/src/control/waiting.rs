//! Acts that wait: asked for, agreed to, stopped, and done when they are due.
//!
//! Each step is in the audit trail before it is done. One that is cut off by a crash is done again: it stands in the
//! catalogue until the last of it is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Json;
use axum::extract::State;
use scrinium_protocol::identity::AgentId;
use scrinium_segment::fault;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{error, warn};

use super::policy::{Person, roll};
use super::{Failure, audit_as, caller};
use crate::archive::retention::{self, Due, Reason};
use crate::audit::Actor;
use crate::bounds::{self, REASON_LEN_MAX};
use crate::catalogue::records::{PolicySettings, WaitingAct, WaitingRecord};
use crate::clock;
use crate::core::{Core, OWN_NAME};
use crate::duties::keep::{Duty, Plan};
use crate::i18n::Language;
use crate::policy::waiting::{DELAY_H, Doing, is_due, is_settled};
use crate::present::rfc3339;
use crate::said::{Arg, Refused, Said, said};

/// What became of an act that was asked for.
pub(crate) enum Asked {
    Waits(WaitingRecord),
    /// Two persons want it, and it is done. How many entries went with it.
    Done(u64),
}

/// Held while it is decided what becomes of an act.
type Turn<'a> = tokio::sync::MutexGuard<'a, ()>;

/// Why a due act is not done now.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Hindered(Said);

/// Which act, and who stops it or agrees to it.
#[derive(Deserialize, Serialize)]
pub(crate) struct WaitingRequest {
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) reason: String,
    pub(crate) person: Person,
}

/// Has `act` wait, or adds a voice where the same waits already; done at once when two persons want it.
pub(crate) async fn ask(
    core: &Arc<Core>,
    actor: &Actor,
    act: WaitingAct,
    what: Said,
) -> Result<Asked> {
    let waiting = &core.policy.waiting;
    let turn = waiting.turn.lock().await;
    let now_us = clock::unix_us();
    if let Some(same) = waiting.find(&what) {
        return agree_in_turn(core, actor, same, turn).await;
    }
    let needs_two = core.policy.settings().two_persons;
    let made = waiting.make(act, what, needs_two, actor, now_us)?;
    audit_as(core, actor, "asked, and waits", said_of(core, &made)).await?;
    match &made.act {
        // Nobody reads it from now on; with two persons, from the second one on.
        WaitingAct::Agent { agent, .. } if !needs_two => {
            let agent = *agent;
            waiting.put(made.clone(), |made| {
                core.agents.set_aside(agent, |changes| changes.put(made))
            })?;
        }
        WaitingAct::Agent { .. }
        | WaitingAct::Class(_)
        | WaitingAct::Rules { .. }
        | WaitingAct::Officer(_)
        | WaitingAct::Contract { .. }
        | WaitingAct::OnePerson => waiting.save(made.clone())?,
    }
    fault::point("server: act waits");
    Ok(Asked::Waits(made))
}

/// `actor` wants what waits as `id`, too.
pub(crate) async fn agree(core: &Arc<Core>, actor: &Actor, id: &str) -> Result<Asked> {
    let turn = core.policy.waiting.turn.lock().await;
    let waiting = core.policy.waiting.get(id)?;
    if !actor.is_account {
        return Err(Refused(said!("refused.second_person")).into());
    }
    agree_in_turn(core, actor, waiting, turn).await
}

async fn agree_in_turn(
    core: &Arc<Core>,
    actor: &Actor,
    mut waiting: WaitingRecord,
    turn: Turn<'_>,
) -> Result<Asked> {
    let doing = begin(core, &waiting)?;
    audit_as(core, actor, "agreed to what waits", said_of(core, &waiting)).await?;
    waiting.agree(actor, clock::unix_us());
    waiting.is_agreed |= waiting.has_two(|name, since_us| is_own(core, name, since_us));
    core.policy.waiting.save(waiting.clone())?;
    if !waiting.is_agreed {
        return Ok(Asked::Waits(waiting));
    }
    fault::point("server: act agreed");
    Ok(Asked::Done(carry_out(core, &waiting, turn, doing).await?))
}

/// Has an act done by nobody else from here on.
fn begin(core: &Core, waiting: &WaitingRecord) -> Result<Doing, Refused> {
    let begun = core.policy.waiting.begin(&waiting.id);
    begun.map_err(|error| {
        let what = Said::from(waiting.what.clone());
        Refused(said!("refused.what_waits", what, in_words(&error)))
    })
}

/// Whether an account is a person's own since long enough before `since_us`.
fn is_own(core: &Core, name: &str, since_us: u64) -> bool {
    core.accounts.changed_us(name).is_some_and(|changed_us| {
        let jumped_us = core.time.spans().jumped_between_us(changed_us, since_us);
        is_settled(changed_us, since_us, jumped_us)
    })
}

/// Ends what waits as `id` without doing it; an agent that was set aside is there again.
pub(crate) async fn stop(core: &Arc<Core>, actor: &Actor, id: &str, reason: &str) -> Result<()> {
    bounds::check("--reason", reason, REASON_LEN_MAX)?;
    let _turn = core.policy.waiting.turn.lock().await;
    let waiting = core.policy.waiting.get(id)?;
    let _doing = begin(core, &waiting)?;
    let mut detail = said_of(core, &waiting);
    if let Some(detail) = detail.as_object_mut() {
        detail.insert("reason".into(), reason.into());
    }
    audit_as(core, actor, "stopped what waits", detail).await?;
    end(core, &waiting)
}

/// What waits goes without being done.
fn end(core: &Core, waiting: &WaitingRecord) -> Result<()> {
    let acts = &core.policy.waiting;
    match &waiting.act {
        WaitingAct::Agent { agent, enabled, .. } if core.agents.is_set_aside(*agent) => {
            acts.take(waiting, |remove| {
                core.agents
                    .bring_back(*agent, *enabled, |changes| remove(changes))
            })
        }
        WaitingAct::Agent { .. }
        | WaitingAct::Class(_)
        | WaitingAct::Rules { .. }
        | WaitingAct::Officer(_)
        | WaitingAct::Contract { .. }
        | WaitingAct::OnePerson => acts.end(waiting),
    }
}

/// Does what is due.
pub(crate) struct WhatWaits {
    core: Arc<Core>,
    /// What could not be done is left alone for a while.
    tried: BTreeMap<String, Instant>,
}

impl WhatWaits {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            tried: BTreeMap::new(),
        }
    }
}

impl Duty for WhatWaits {
    async fn round(&mut self) -> Result<()> {
        let (core, tried) = (&self.core, &mut self.tried);
        tried.retain(|_, at: &mut Instant| clock::now().duration_since(*at) < RETRY_INTERVAL);
        let mut list = core.policy.waiting.list();
        // What is done at once does not wait behind what takes long.
        list.sort_by_key(|waiting| takes_long(&waiting.act));
        for waiting in list {
            if tried.contains_key(&waiting.id) {
                continue;
            }
            let turn = core.policy.waiting.turn.lock().await;
            // It may have been stopped meanwhile, or somebody does it.
            let Ok(waiting) = core.policy.waiting.get(&waiting.id) else {
                continue;
            };
            let two_persons = core.policy.settings().two_persons;
            if !is_due(&waiting, core.time.passed_us(waiting.since_us), two_persons) {
                continue;
            }
            let Ok(doing) = core.policy.waiting.begin(&waiting.id) else {
                continue;
            };
            if let Err(error) = carry_out(core, &waiting, turn, doing).await {
                let error = format!("{error:#}");
                error!(
                    error,
                    id = waiting.id,
                    "what is due could not be done; it is tried again while it waits"
                );
                tried.insert(waiting.id, clock::now());
            }
        }
        Ok(())
    }
}

/// Whether an act is not done in the turn in which it was decided: what it destroys may be in the hands of a compaction, which takes
/// hours, and nobody else waits for that. What is asked of the policy is checked against what holds, so it is done in the turn.
fn takes_long(act: &WaitingAct) -> bool {
    matches!(act, WaitingAct::Agent { .. })
}

/// Does it; returns how many entries went. What hinders it is kept with it, and said.
async fn carry_out(
    core: &Arc<Core>,
    waiting: &WaitingRecord,
    turn: Turn<'_>,
    _doing: Doing,
) -> Result<u64> {
    let mut turn = Some(turn);
    if takes_long(&waiting.act) {
        turn = None;
    }
    let done = do_it(core, waiting).await;
    drop(turn);
    let Err(error) = &done else {
        return done;
    };
    let hindered = Arg::from(in_words(error));
    let still_waits = core.policy.waiting.get(&waiting.id).is_ok();
    if still_waits && waiting.hindered.as_ref() != Some(&hindered) {
        let error = format!("{error:#}");
        warn!(error, id = waiting.id, "what waits cannot be done now");
        core.policy.waiting.save(WaitingRecord {
            hindered: Some(hindered),
            ..waiting.clone()
        })?;
    }
    done
}

async fn do_it(core: &Arc<Core>, waiting: &WaitingRecord) -> Result<u64> {
    let policy = &core.policy;
    // Who wanted it does it; the server only waited for the time.
    let actor = Actor::of(&waiting.wanted_by());
    if let WaitingAct::Agent { .. } = &waiting.act {
        return delete_agent(core, &actor, waiting).await;
    }
    if let Some(problem) = why_not(core, &waiting.act) {
        // It is no longer what was asked for, and will not be.
        let mut detail = said_of(core, waiting);
        if let Some(detail) = detail.as_object_mut() {
            detail.insert("problem".into(), problem.to_string().into());
        }
        audit_as(core, &Actor::of(OWN_NAME), "not done", detail).await?;
        policy.waiting.end(waiting)?;
        return Err(Hindered(problem).into());
    }
    audit_as(core, &actor, "policy changed", said_of(core, waiting)).await?;
    match &waiting.act {
        WaitingAct::Class(change) => policy.set_class(policy.changed_class(change)?.0, true)?,
        WaitingAct::Rules { rules, .. } => policy.set_rules(rules.clone())?,
        WaitingAct::Officer(officer) => policy.set_officer(officer.clone())?,
        WaitingAct::Contract {
            tenant,
            end,
            grace_days,
        } => policy.set_contract(tenant, Some((*end, *grace_days)))?,
        WaitingAct::OnePerson => policy.set_settings(PolicySettings { two_persons: false })?,
        WaitingAct::Agent { .. } => {}
    }
    fault::point("server: waiting act done");
    policy.waiting.end(waiting)?;
    Ok(0)
}

/// Why an act can no longer be done.
fn why_not(core: &Core, act: &WaitingAct) -> Option<Said> {
    let policy = &core.policy;
    let problem = match act {
        WaitingAct::Class(change) => policy.changed_class(change).err(),
        WaitingAct::Rules { rules, before } => {
            let now = policy.rules();
            if now != *before && now != *rules {
                return Some(said!("waiting.rules_changed"));
            }
            policy.changed_rules(rules).err()
        }
        WaitingAct::Officer(_)
        | WaitingAct::Contract { .. }
        | WaitingAct::OnePerson
        | WaitingAct::Agent { .. } => None,
    };
    problem.map(|problem| in_words(&problem))
}

/// Destroys the keys of everything that is there of an agent, and forgets it.
async fn delete_agent(core: &Arc<Core>, actor: &Actor, waiting: &WaitingRecord) -> Result<u64> {
    let WaitingAct::Agent {
        agent, name, why, ..
    } = &waiting.act
    else {
        return Ok(0);
    };
    let (agent, name) = (*agent, name.clone());
    refuse_held(core, agent, &name)?;
    audit_as(core, actor, "agent deletion", said_of(core, waiting)).await?;
    if !core.agents.is_set_aside(agent) && core.agents.get(agent).is_some() {
        core.agents.set_aside(agent, |_| Ok(()))?;
    }
    // What its session had submitted is in the log that is finished then.
    for _ in 0..STEPS_MAX {
        if !core.agents.is_connected(agent) {
            break;
        }
        tokio::time::sleep(STEP).await;
    }
    let reason = Reason::AgentDeleted {
        by: waiting.wanted_by(),
        why: why.clone(),
    };
    let active = roll(core).await?;
    let (archive, policy) = (core.archive.clone(), core.policy.clone());
    let deleted = core.upkeep.ask(active, move |upkeep| {
        let spans = upkeep.time.spans();
        let due = match retention::of_agent(&archive, &policy, &spans, agent, &reason) {
            Ok(due) => due,
            Err(holding) => return Ok(Err(holding)),
        };
        upkeep.forget(&due)?;
        Ok(Ok(due.iter().map(Due::entries).sum::<u64>()))
    });
    let deleted = deleted.await?;
    let deleted = deleted.map_err(|holding| held(&name, &holding))?;
    fault::point("server: agent's keys destroyed");
    let acts = &core.policy.waiting;
    acts.take(waiting, |remove| {
        core.agents.remove(agent, |changes| remove(changes))
    })?;
    crate::certificates::publish(core).await?;
    let detail = json!({ "agent": name, "entries": deleted, "id": waiting.id });
    audit_as(core, actor, "agent deleted", detail).await?;
    Ok(deleted)
}

/// Refuses what a legal hold forbids, of what is sealed and of what came last.
pub(crate) fn refuse_held(core: &Core, agent: AgentId, name: &str) -> Result<(), Refused> {
    let reason = Reason::AgentDeleted {
        by: String::new(),
        why: String::new(),
    };
    let spans = core.time.spans();
    let sealed = retention::of_agent(&core.archive, &core.policy, &spans, agent, &reason);
    let mut holding = sealed.err().unwrap_or_default();
    let owner = core.policy.owner_of(agent);
    for stream in core.archive.streams_of(agent) {
        let day = core.time.day_of_receipt(stream.last_us);
        holding.extend(core.policy.holds_on(&owner, &stream.name, day));
    }
    if holding.is_empty() {
        return Ok(());
    }
    Err(held(name, &holding))
}

fn held(name: &str, holding: &BTreeSet<String>) -> Refused {
    let holds: Vec<&str> = holding.iter().map(String::as_str).collect();
    Refused(said!("refused.held", name, holds.join(", ")))
}

/// An error as it is kept with an act, for readers of any language.
fn in_words(error: &anyhow::Error) -> Said {
    let refused = error.downcast_ref().map(|Refused(said)| said);
    let hindered = error.downcast_ref().map(|Hindered(said)| said);
    let said = refused.or(hindered).or_else(|| error.downcast_ref());
    said.cloned()
        .unwrap_or_else(|| Said::from(format!("{error:#}")))
}

/// What the trail says of an act that waits, in English.
fn said_of(core: &Core, waiting: &WaitingRecord) -> Value {
    said_to(Language::En, core, waiting)
}

/// The same in the words of who asks.
fn said_to(t: Language, core: &Core, waiting: &WaitingRecord) -> Value {
    json!({
        "id": waiting.id, "what": t.say(&waiting.what.clone().into()), "act": waiting.act, "wanted_by": waiting.wanted_by(),
        "asked": rfc3339(waiting.since_us), "due": due_of(core, waiting),
    })
}

/// When it is done; none when time alone does not do it.
fn due_of(core: &Core, waiting: &WaitingRecord) -> Option<String> {
    let needs_two = waiting.needs_two || core.policy.settings().two_persons;
    (!needs_two).then(|| rfc3339(waiting.due_us))
}

/// What waits, for commands and programs.
pub(crate) fn list_json(core: &Core) -> Value {
    let waiting = core.policy.waiting.list().into_iter().map(|waiting| {
        let t = caller::language();
        let mut said = said_to(t, core, &waiting);
        if let Some(said) = said.as_object_mut() {
            let hindered = waiting.hindered.map(|hindered| t.say(&hindered.into()));
            said.insert("hindered".into(), hindered.into());
        }
        said
    });
    Value::Array(waiting.collect())
}

/// What is answered to who asked for something that waits.
pub(crate) fn explained(core: &Core, waiting: &WaitingRecord) -> Said {
    let WaitingRecord { id, what, .. } = waiting;
    let when = match due_of(core, waiting) {
        Some(due) => said!("waiting.when", DELAY_H, due),
        None => said!("waiting.two_persons"),
    };
    let settled = waiting
        .voices
        .iter()
        .filter(|voice| voice.is_account && is_own(core, &voice.by, waiting.since_us));
    said!(
        "waiting.explained",
        Said::from(what.clone()),
        id,
        when,
        settled.count(),
        DELAY_H
    )
}

pub(super) async fn handle_list(State(core): State<Arc<Core>>) -> Json<Value> {
    Json(list_json(&core))
}

pub(super) async fn handle_agree(
    State(core): State<Arc<Core>>,
    Json(request): Json<WaitingRequest>,
) -> Result<Json<Value>, Failure> {
    let actor = request.person.actor(&core).await?;
    match agree(&core, &actor, &request.id).await? {
        Asked::Done(deleted) => Ok(Json(json!({ "done": true, "deleted": deleted }))),
        Asked::Waits(waiting) => Err(Refused(explained(&core, &waiting)).into()),
    }
}

pub(super) async fn handle_stop(
    State(core): State<Arc<Core>>,
    Json(request): Json<WaitingRequest>,
) -> Result<Json<Value>, Failure> {
    let actor = request.person.actor(&core).await?;
    stop(&core, &actor, &request.id, &request.reason).await?;
    Ok(Json(json!({})))
}

/// How long a session that was told to end is waited for.
const STEP: Duration = Duration::from_millis(20);
const STEPS_MAX: u32 = 500;
pub(crate) const PLAN: Plan = Plan {
    point: "duty: waiting acts",
    every: Duration::from_secs(5),
    long: Duration::from_secs(600),
    raises: false,
};
/// How long one that could not be done is left alone.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
