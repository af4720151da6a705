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
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::Result;
use serde_json::{Value, json};
use tracing::{error, warn};

pub(crate) use self::kind::{AlarmKind, Known, Severity};
use self::news::{Change, News};
use crate::audit::Actor;
use crate::bounds::ALARM_LEN_MAX;
use crate::catalogue::Catalogue;
use crate::catalogue::records::AlarmRecord;
use crate::clock;
use crate::core::OWN_NAME;
use crate::i18n::Language;
use crate::said::{Said, said};
use crate::unsaid::Unsaid;
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
    trail: Arc<Unsaid>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    alarms: BTreeMap<u64, AlarmRecord>,
    /// What was not taken for mail, webhooks and syslog yet.
    news: BTreeMap<AlarmKind, News>,
    /// Alarms that the catalogue does not have as they are.
    unwritten: BTreeSet<u64>,
}

impl Alarms {
    pub(crate) fn load(catalogue: Arc<Catalogue>, trail: Arc<Unsaid>) -> Result<Self> {
        let alarms = catalogue.load::<AlarmRecord>()?;
        let state = State {
            alarms: alarms.into_iter().map(|alarm| (alarm.id, alarm)).collect(),
            ..State::default()
        };
        Ok(Self {
            catalogue,
            trail,
            state: Mutex::new(state),
        })
    }

    /// Raises an alarm; counts it when the same one stands already.
    pub(crate) async fn raise(&self, raise: Raise) {
        let noted = self.note(&raise, None);
        self.tell_noted(noted).await;
    }

    /// The same of what came from an address: whatever addresses it comes from, it is one alarm.
    pub(crate) async fn raise_from(&self, raise: Raise, from: IpAddr) {
        let noted = self.note(&raise, Some(from.to_canonical()));
        self.tell_noted(noted).await;
    }

    /// Writes into the log and the trail what [`Alarms::note`] says is to be said.
    pub(crate) async fn tell_noted(&self, noted: Option<Noted>) {
        let Some(Noted(alarm, action)) = noted else {
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

    async fn tell(&self, action: &str, detail: Value) {
        self.trail.tell(&Actor::of(OWN_NAME), action, detail).await;
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
        self.trail.write_down().await && self.lock().unwritten.is_empty()
    }

    /// Notes the alarm. Returns it, and what the trail calls it, when it is new, or has come twice as often as when it was
    /// last said.
    pub(crate) fn note(&self, raise: &Raise, from: Option<IpAddr>) -> Option<Noted> {
        let now = clock::unix_us();
        let said = raise.text.clone().cut(ALARM_LEN_MAX);
        let mut state = self.lock();
        let State {
            alarms,
            unwritten,
            news,
            ..
        } = &mut *state;
        let is_it = |alarm: &AlarmRecord| {
            let is_known = alarm.is_standing()
                || !alarm.is_over()
                    && match raise.kind.known() {
                        Known::Never => false,
                        Known::ByKey => true,
                        Known::BySaid => raise.key == MORE || alarm.text == said.to_string(),
                    };
            is_known && raise.is_of(alarm)
        };
        if let Some(alarm) = alarms.values_mut().find(|alarm| is_it(alarm)) {
            let was_seen = !alarm.is_standing();
            alarm.count += 1;
            alarm.last_us = now;
            alarm.text = said.to_string();
            alarm.said = Some(said);
            if let Some(from) = from {
                alarm.came_from(from);
            }
            if !was_seen {
                news.entry(alarm.kind)
                    .or_default()
                    .add(Change::Again, alarm);
            }
            // Counted in memory and shown. The first is durable and said, and then each time it has become twice as many.
            if !alarm.count.is_power_of_two() {
                return None;
            }
            if let Err(error) = self.catalogue.put(alarm) {
                let error = format!("{error:#}");
                error!(error, "the count of an alarm could not be made durable");
                unwritten.insert(alarm.id);
            }
            return Some(Noted(alarm.clone(), AGAIN));
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
        Some(Noted(alarm, "alarm"))
    }

    /// Agent and key of each alarm of a kind that is not over, seen or not, and when it was raised last, Unix µs. What a duty
    /// has told is here, and not in its memory alone: the server may have been restarted since.
    pub(crate) fn lasting(&self, kind: AlarmKind) -> BTreeMap<(String, String), u64> {
        let state = self.lock();
        let alarms = state.alarms.values();
        let lasting = alarms.filter(|alarm| !alarm.is_over() && alarm.kind == kind);
        lasting
            .map(|alarm| ((alarm.agent.clone(), alarm.key.clone()), alarm.last_us))
            .collect()
    }

    /// The keys of those of the server itself.
    pub(crate) fn lasting_of_server(&self, kind: AlarmKind) -> BTreeSet<String> {
        let lasting = self.lasting(kind).into_keys();
        let of_server = lasting.filter(|(agent, _)| agent == OWN_NAME);
        of_server.map(|(_, key)| key).collect()
    }

    /// Whether an alarm of the same agent and key says the same, and is not over.
    pub(crate) fn says(&self, raise: &Raise) -> bool {
        let text = raise.text.clone().cut(ALARM_LEN_MAX).to_string();
        let state = self.lock();
        let mut alarms = state.alarms.values();
        alarms.any(|alarm| !alarm.is_over() && raise.is_of(alarm) && alarm.text == text)
    }

    /// What happened to alarms since this was asked last.
    pub(crate) fn take_news(&self) -> BTreeMap<AlarmKind, News> {
        core::mem::take(&mut self.lock().news)
    }

    /// The alarms that stand and did not leave by `channel`, which is one of a `way`: a server that was stopped before they could. What is news
    /// still is not among them: it leaves as that.
    pub(crate) fn untold(&self, channel: &str, way: &str) -> BTreeMap<AlarmKind, News> {
        let state = self.lock();
        let mut untold: BTreeMap<AlarmKind, News> = BTreeMap::new();
        for alarm in state.alarms.values() {
            let is_news = state
                .news
                .get(&alarm.kind)
                .is_some_and(|news| news.ids.contains(&alarm.id));
            // Earlier versions wrote down the way, whoever it led to.
            let is_told = alarm.told.contains(channel) || alarm.told.contains(way);
            if alarm.is_standing() && !is_told && !is_news {
                let news = untold.entry(alarm.kind).or_default();
                news.add(Change::Raised, alarm);
            }
        }
        untold
    }

    /// Notes that alarms left by `channel`.
    pub(crate) fn told(&self, ids: &BTreeSet<u64>, channel: &str) {
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

    /// Those of the server itself of things that are not looked at any more, known by their keys, are over.
    pub(crate) async fn end_all_but(&self, kind: AlarmKind, kept: &BTreeSet<String>) {
        for key in self.lasting_of_server(kind).difference(kept) {
            let over = said!("over.unkept");
            self.end_of(kind, OWN_NAME, key, over).await;
        }
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
            // Also of one that somebody has seen: the trail says how long it lasted.
            let detail = json!({
                "id": alarm.id, "kind": alarm.kind.name(), "agent": alarm.agent,
                "text": why.to_string(),
            });
            self.tell("alarm ended", detail).await;
        }
    }

    /// Ends one in memory, and in the catalogue as soon as that takes it. None when it is gone.
    fn end_one(&self, id: u64, why: &Said) -> Option<AlarmRecord> {
        let mut state = self.lock();
        let State {
            alarms,
            unwritten,
            news,
            ..
        } = &mut *state;
        let ended = alarms.get_mut(&id)?;
        ended.over_us = clock::unix_us();
        ended.over_why = Some(why.clone());
        if let Err(error) = self.catalogue.put(ended) {
            let error = format!("{error:#}");
            error!(error, "the end of an alarm could not be made durable yet");
            unwritten.insert(id);
        }
        news.entry(ended.kind).or_default().add(Change::Over, ended);
        Some(ended.clone())
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

/// An alarm that is to be told of, and what the trail calls what became of it.
#[derive(Debug)]
pub(crate) struct Noted(AlarmRecord, &'static str);

impl Raise {
    fn is_of(&self, alarm: &AlarmRecord) -> bool {
        alarm.kind == self.kind && alarm.agent == self.agent && alarm.key == self.key
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

/// The one that makes room: the oldest that is over; else the oldest that somebody has seen, which lasts and would be told anew;
/// else the oldest of the kind and agent that have the most, so that whoever makes up alarms makes room among them.
fn least(alarms: &BTreeMap<u64, AlarmRecord>) -> Option<u64> {
    let oldest = |is_one: fn(&AlarmRecord) -> bool| {
        let mut those = alarms.iter().filter(|(_, alarm)| is_one(alarm));
        those.next().map(|(id, _)| *id)
    };
    let seen = |alarm: &AlarmRecord| !alarm.is_standing();
    if let Some(id) = oldest(AlarmRecord::is_over).or_else(|| oldest(seen)) {
        return Some(id);
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

/// The key of the alarm that counts what is over the limit of a day, whatever its sentence says now.
pub(crate) const MORE: &str = "more";
/// What the trail calls an alarm that came again.
const AGAIN: &str = "alarm again";
/// Addresses that an alarm has by name: the first one, and the last ones.
const ADDRESSES_MAX: usize = 100;
/// Past this many one goes, see [`least`].
const ALARMS_MAX: usize = 1000;

#[cfg(test)]
mod tests;
