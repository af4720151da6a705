//! Alarms: what a person must hear of, kept until a person says so, or until it is over by itself.
//!
//! ```text
//! raise ─▶ stands ─▶ again: counted, with the text of now ─▶ seen by somebody
//!            │                                             └▶ over by itself
//!            └─▶ [news] ─▶ mail, webhook, syslog
//! ```
//!
//! An alarm is kept as a sentence of the catalogue ([`Said`]) and worded for whoever reads it. Every alarm is an entry of the audit stream too, where nobody can take it back. While the disk takes nothing, alarms are
//! kept in memory, shown, and written when it takes something again ([`Alarms::write_down`]).

mod kind;
pub(crate) mod news;

use core::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;
use serde_json::{Value, json};
use tracing::{error, warn};

pub(crate) use self::kind::{AlarmKind, Severity};
use self::news::{Change, News};
use crate::archive::troubles::{Trouble, Troubles};
use crate::audit::Audit;
use crate::bounds::ALARM_LEN_MAX;
use crate::catalogue::Catalogue;
use crate::catalogue::records::AlarmRecord;
use crate::clock;
use crate::core::OWN_NAME;
use crate::i18n::Language;
use crate::said::{Said, said};
use crate::waits;

/// An alarm to be raised.
#[derive(Clone, Debug)]
pub(crate) struct Raise {
    pub(crate) kind: AlarmKind,
    /// Name of the agent; empty when it is none's.
    pub(crate) agent: String,
    pub(crate) text: Said,
    /// While one of the same kind, agent and key stands, it is counted and not repeated.
    pub(crate) key: String,
}

/// All alarms.
pub(crate) struct Alarms {
    catalogue: Arc<Catalogue>,
    audit: Audit,
    /// Whether the archive takes entries now.
    troubles: Arc<Troubles>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    alarms: BTreeMap<u64, AlarmRecord>,
    /// What was not taken for mail, webhooks and syslog yet.
    news: BTreeMap<AlarmKind, News>,
    /// Alarms that the catalogue does not have as they are.
    unwritten: BTreeSet<u64>,
    /// What the trail does not have yet: action and detail.
    unsaid: VecDeque<(&'static str, Value)>,
    /// What found no room there.
    unsaid_lost: u64,
}

impl Alarms {
    pub(crate) fn load(
        catalogue: Arc<Catalogue>,
        audit: Audit,
        troubles: Arc<Troubles>,
    ) -> Result<Self> {
        let alarms = catalogue.load::<AlarmRecord>()?;
        let state = State {
            alarms: alarms.into_iter().map(|alarm| (alarm.id, alarm)).collect(),
            ..State::default()
        };
        Ok(Self {
            catalogue,
            audit,
            troubles,
            state: Mutex::new(state),
        })
    }

    /// Raises an alarm; counts it when the same one stands already.
    pub(crate) async fn raise(&self, raise: Raise) {
        self.raise_of(raise, None).await;
    }

    /// The same of what came from an address: whatever addresses it comes from, it is one alarm.
    pub(crate) async fn raise_from(&self, raise: Raise, from: IpAddr) {
        self.raise_of(raise, Some(from.to_canonical())).await;
    }

    async fn raise_of(&self, raise: Raise, from: Option<IpAddr>) {
        let Some((alarm, action)) = self.note(&raise, from) else {
            return;
        };
        warn!(
            kind = alarm.kind.name(),
            agent = alarm.agent,
            count = alarm.count,
            "ALARM: {}",
            alarm.text
        );
        let mut detail =
            json!({ "kind": alarm.kind.name(), "agent": alarm.agent, "text": alarm.text });
        if let (AGAIN, Some(detail)) = (action, detail.as_object_mut()) {
            detail.insert("id".into(), alarm.id.into());
            detail.insert("count".into(), alarm.count.into());
        }
        self.tell(action, detail).await;
    }

    /// Writes into the trail. Where that takes nothing now, it is kept in memory and written later; an entry that the
    /// trail took after all is then there twice.
    async fn tell(&self, action: &'static str, detail: Value) {
        let is_stuck = !self.lock().unsaid.is_empty() || self.troubles.has(Trouble::Archiving);
        if is_stuck || !self.audit.record(OWN_NAME, action, detail.clone()).await {
            let mut state = self.lock();
            if state.unsaid.len() < UNSAID_MAX {
                state.unsaid.push_back((action, detail));
            } else {
                state.unsaid_lost += 1;
            }
            drop(state);
            error!(
                action,
                "the audit trail takes nothing now; it is written there later"
            );
        }
    }

    /// Writes what could not be written when it happened. `false` while something waits.
    pub(crate) async fn write_down(&self) -> bool {
        let unwritten = self.lock().unwritten.clone();
        for id in unwritten {
            let mut state = self.lock();
            let written = state.alarms.get(&id).map(|alarm| self.catalogue.put(alarm));
            if written.is_none_or(|written| written.is_ok()) {
                state.unwritten.remove(&id);
            }
        }
        loop {
            let Some((action, detail)) = self.lock().unsaid.front().cloned() else {
                break;
            };
            if self.troubles.has(Trouble::Archiving)
                || !self.audit.record(OWN_NAME, action, detail).await
            {
                return false;
            }
            self.lock().unsaid.pop_front();
        }
        let lost = self.lock().unsaid_lost;
        if lost > 0 {
            let detail = json!({ "count": lost });
            let action = "alarms that could not be written down";
            if !self.audit.record(OWN_NAME, action, detail).await {
                return false;
            }
            self.lock().unsaid_lost -= lost;
        }
        self.lock().unwritten.is_empty()
    }

    /// Notes the alarm. Returns it, and what the trail calls it, when it is new, or has come twice as often as when it was
    /// last said.
    fn note(&self, raise: &Raise, from: Option<IpAddr>) -> Option<(AlarmRecord, &'static str)> {
        let now = clock::unix_us();
        let said = raise.text.clone().cut(ALARM_LEN_MAX);
        let mut state = self.lock();
        let State {
            alarms,
            unwritten,
            news,
            ..
        } = &mut *state;
        let standing = alarms.values_mut().find(|alarm| {
            alarm.is_standing()
                && alarm.kind == raise.kind
                && alarm.agent == raise.agent
                && alarm.key == raise.key
        });
        if let Some(alarm) = standing {
            alarm.count += 1;
            alarm.last_us = now;
            alarm.text = said.to_string();
            alarm.said = Some(said);
            if let Some(from) = from {
                alarm.came_from(from);
            }
            news.entry(alarm.kind)
                .or_default()
                .add(Change::Again, alarm);
            // Counted in memory and shown. The first is durable and said, and then each time it has become twice as many.
            if !alarm.count.is_power_of_two() {
                return None;
            }
            if let Err(error) = self.catalogue.put(alarm) {
                let error = format!("{error:#}");
                error!(error, "the count of an alarm could not be made durable");
                unwritten.insert(alarm.id);
            }
            return Some((alarm.clone(), AGAIN));
        }
        let mut alarm = AlarmRecord {
            id: alarms.last_key_value().map_or(1, |(id, _)| id + 1),
            kind: raise.kind,
            agent: raise.agent.clone(),
            text: said.to_string(),
            said: Some(said),
            key: raise.key.clone(),
            first_us: now,
            last_us: now,
            count: 1,
            acknowledged_by: None,
            acknowledged_us: 0,
            addresses: Vec::new(),
            more_addresses: false,
            over_us: 0,
            over_why: None,
            told: BTreeSet::new(),
        };
        if let Some(from) = from {
            alarm.came_from(from);
        }
        if let Err(error) = self.catalogue.put(&alarm) {
            error!(
                error = format!("{error:#}"),
                "an alarm could not be made durable yet; it is kept in memory"
            );
            unwritten.insert(alarm.id);
        }
        news.entry(alarm.kind)
            .or_default()
            .add(Change::Raised, &alarm);
        alarms.insert(alarm.id, alarm.clone());
        if alarms.len() > ALARMS_MAX
            && let Some(removed) = least(alarms).and_then(|id| alarms.remove(&id))
            && let Err(error) = self.catalogue.write(|changes| changes.remove(&removed))
        {
            error!(
                error = format!("{error:#}"),
                "an old alarm could not be removed"
            );
        }
        Some((alarm, "alarm"))
    }

    /// The agents of which an alarm of a kind stands.
    pub(crate) fn standing(&self, kind: AlarmKind) -> BTreeSet<String> {
        let state = self.lock();
        let alarms = state.alarms.values();
        let standing = alarms.filter(|alarm| alarm.is_standing() && alarm.kind == kind);
        standing.map(|alarm| alarm.agent.clone()).collect()
    }

    /// Agent and key of each alarm of a kind that is not over, seen or not.
    pub(crate) fn lasting(&self, kind: AlarmKind) -> BTreeSet<(String, String)> {
        let state = self.lock();
        let alarms = state.alarms.values();
        let lasting = alarms.filter(|alarm| !alarm.is_over() && alarm.kind == kind);
        lasting
            .map(|alarm| (alarm.agent.clone(), alarm.key.clone()))
            .collect()
    }

    /// What happened to alarms since this was asked last.
    pub(crate) fn take_news(&self) -> BTreeMap<AlarmKind, News> {
        core::mem::take(&mut self.lock().news)
    }

    /// The alarms that stand and did not leave by `channel`: a server that was stopped before they could.
    pub(crate) fn untold(&self, channel: &str) -> BTreeMap<AlarmKind, News> {
        let state = self.lock();
        let mut untold: BTreeMap<AlarmKind, News> = BTreeMap::new();
        for alarm in state.alarms.values() {
            if alarm.is_standing() && !alarm.told.contains(channel) {
                let news = untold.entry(alarm.kind).or_default();
                news.add(Change::Raised, alarm);
            }
        }
        untold
    }

    /// Notes that alarms left by `channel`.
    pub(crate) fn told(&self, ids: &BTreeSet<u64>, channel: &'static str) {
        let mut state = self.lock();
        let mut changed = Vec::new();
        for id in ids {
            if let Some(alarm) = state.alarms.get_mut(id)
                && alarm.told.insert(channel.to_owned())
            {
                changed.push(alarm.clone());
            }
        }
        let put = self
            .catalogue
            .write(|changes| changed.iter().try_for_each(|alarm| changes.put(alarm)));
        if let Err(error) = put {
            let error = format!("{error:#}");
            error!(error, "that alarms were sent could not be made durable yet");
            state.unwritten.extend(changed.iter().map(|alarm| alarm.id));
        }
    }
    /// What was wrong with `agent` is over: its alarms of this kind stand no longer.
    pub(crate) async fn end(&self, kind: AlarmKind, agent: &str, why: Said) {
        self.end_those(|alarm| alarm.kind == kind && alarm.agent == agent, &why)
            .await;
    }

    /// The same of one `key`.
    pub(crate) async fn end_of(&self, kind: AlarmKind, agent: &str, key: &str, why: Said) {
        let is_it =
            |alarm: &AlarmRecord| alarm.kind == kind && alarm.agent == agent && alarm.key == key;
        self.end_those(is_it, &why).await;
    }

    async fn end_those(&self, is_one: impl Fn(&AlarmRecord) -> bool, why: &Said) {
        let lasting: Vec<u64> = {
            let state = self.lock();
            let those = state.alarms.values();
            let those = those.filter(|alarm| !alarm.is_over() && is_one(alarm));
            those.map(|alarm| alarm.id).collect()
        };
        for id in lasting {
            let Some(alarm) = self.end_one(id, why) else {
                continue;
            };
            let detail = json!({
                "id": alarm.id, "kind": alarm.kind.name(), "agent": alarm.agent,
                "text": why.to_string(),
            });
            self.tell("alarm ended", detail).await;
        }
    }

    /// Ends one in memory, and in the catalogue as soon as that takes it. None when somebody had seen it, or it is gone:
    /// nobody waits to hear that it is over.
    fn end_one(&self, id: u64, why: &Said) -> Option<AlarmRecord> {
        let mut state = self.lock();
        let State {
            alarms,
            unwritten,
            news,
            ..
        } = &mut *state;
        let ended = alarms.get_mut(&id)?;
        let was_seen = !ended.is_standing();
        ended.over_us = clock::unix_us();
        ended.over_why = Some(why.clone());
        if let Err(error) = self.catalogue.put(ended) {
            let error = format!("{error:#}");
            error!(error, "the end of an alarm could not be made durable yet");
            unwritten.insert(id);
        }
        news.entry(ended.kind).or_default().add(Change::Over, ended);
        (!was_seen).then(|| ended.clone())
    }

    /// Notes that `user` has seen alarm `id`.
    pub(crate) fn acknowledge(&self, id: u64, user: &str) -> Result<()> {
        let mut state = self.lock();
        let alarm = state
            .alarms
            .get(&id)
            .ok_or_else(|| said!("refused.no_alarm", id))?;
        let mut alarm = alarm.clone();
        alarm.acknowledged_by = Some(user.to_owned());
        alarm.acknowledged_us = clock::unix_us();
        self.catalogue.put(&alarm)?;
        state.unwritten.remove(&id);
        state.alarms.insert(id, alarm);
        Ok(())
    }

    /// The alarms, newest first.
    pub(crate) fn list(&self) -> Vec<AlarmRecord> {
        self.lock().alarms.values().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        waits::lock(&self.state)
    }
}

impl AlarmRecord {
    fn came_from(&mut self, from: IpAddr) {
        let Some(first) = self.addresses.first().copied() else {
            return self.addresses.push(from);
        };
        // The first one keeps its place, and the last one stands last: one may be both.
        let others = self.addresses.drain(1..).filter(|known| *known != from);
        let others: Vec<IpAddr> = others.collect();
        self.addresses.extend(others);
        if self.addresses.len() > 1 || from != first {
            self.addresses.push(from);
        }
        if self.addresses.len() > ADDRESSES_MAX {
            self.addresses.remove(1);
            self.more_addresses = true;
        }
    }

    /// Whether nobody has seen it and it is not over.
    pub(crate) fn is_standing(&self) -> bool {
        self.acknowledged_by.is_none() && !self.is_over()
    }

    /// Whether it was over by itself. Earlier versions wrote that the server had seen it.
    pub(crate) fn is_over(&self) -> bool {
        self.over_us > 0 || self.acknowledged_by.as_deref() == Some(OWN_NAME)
    }

    /// The sentence, and from where it came besides. One that an earlier version wrote is what it was.
    pub(crate) fn said(&self, t: Language) -> String {
        let text = match &self.said {
            Some(said) => t.say(said),
            None => t.say(&Said::from(self.text.clone())),
        };
        let (Some(first), Some(last)) = (self.addresses.first(), self.addresses.last()) else {
            return text;
        };
        if self.addresses.len() == 1 {
            return text;
        }
        let distinct: BTreeSet<&IpAddr> = self.addresses.iter().collect();
        let (count, first, last) = (distinct.len(), first.to_string(), last.to_string());
        let from = if self.more_addresses {
            said!("alarm.from_more", count, first, last)
        } else {
            said!("alarm.from", count, first, last)
        };
        format!("{text} {}", t.say(&from))
    }

    /// Why it is over, if it is.
    pub(crate) fn over(&self, t: Language) -> Option<String> {
        let why = || {
            self.over_why
                .as_ref()
                .map_or_else(String::new, |why| t.say(why))
        };
        self.is_over().then(why)
    }
}

/// The one that makes room: the oldest that stands no more; else the oldest of the kind and agent that have the most, so
/// that whoever makes up alarms makes room among them.
fn least(alarms: &BTreeMap<u64, AlarmRecord>) -> Option<u64> {
    let over = alarms.iter().find(|(_, alarm)| !alarm.is_standing());
    if let Some((id, _)) = over {
        return Some(*id);
    }
    let mut crowds: BTreeMap<(AlarmKind, &str), (usize, Reverse<u64>)> = BTreeMap::new();
    for (id, alarm) in alarms {
        let crowd = crowds
            .entry((alarm.kind, &alarm.agent))
            .or_insert((0, Reverse(*id)));
        crowd.0 += 1;
    }
    let largest = crowds.into_values().max();
    largest.map(|(_, Reverse(oldest))| oldest)
}

/// What the trail calls an alarm that came again.
const AGAIN: &str = "alarm again";
/// Addresses that an alarm has by name: the first one, and the last ones.
const ADDRESSES_MAX: usize = 100;
/// Past this many one goes, see [`least`].
const ALARMS_MAX: usize = 1000;
/// What waits in memory for the trail: about 2 MiB.
const UNSAID_MAX: usize = 2000;

#[cfg(test)]
mod tests;
