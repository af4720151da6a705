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
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_many_addresses_is_one_alarm_with_the_first_and_the_last() {
        let alarms = alarms("many");
        for n in 0..61_u8 {
            let from = IpAddr::from([192, 0, 2, n]);
            let said = alarms.note(&raise("refused"), Some(from));
            assert_eq!(said.is_some(), (u64::from(n) + 1).is_power_of_two());
        }
        let list = alarms.list();
        let [alarm] = list.as_slice() else {
            panic!("{list:?}")
        };
        assert_eq!(alarm.count, 61);
        assert_eq!(
            alarm.said(Language::En),
            "refused It came from 61 addresses, first from 192.0.2.0, last from 192.0.2.60."
        );
        for n in 0..1000_u16 {
            let [high, low] = n.to_be_bytes();
            alarms.note(&raise("refused"), Some(IpAddr::from([198, 51, high, low])));
        }
        let alarm = alarms.list().remove(0);
        assert_eq!(alarm.addresses.len(), ADDRESSES_MAX);
        assert!(
            alarm
                .said(Language::En)
                .contains("more than 100 addresses, first from 192.0.2.0, last from 198.51.3.231.")
        );
        // The count of a restart is behind by a factor of two at most.
        let Alarms {
            catalogue, audit, ..
        } = alarms;
        let again = Alarms::load(catalogue, audit, Arc::default()).unwrap();
        assert_eq!(again.list().remove(0).count, 1024);
    }

    #[test]
    fn the_text_of_an_alarm_is_bounded() {
        let alarms = alarms("long");
        let (alarm, _) = alarms.note(&raise(&"x".repeat(100_000)), None).unwrap();
        assert!(alarm.text.len() <= ALARM_LEN_MAX + '…'.len_utf8());
    }

    #[tokio::test]
    async fn an_alarm_has_the_text_of_now_is_over_by_itself_and_is_new_the_next_time() {
        let alarms = alarms("live");
        alarms.note(&raise("since 17:17."), None);
        alarms.note(&raise("since 17:26."), None);
        let [alarm] = alarms.list().try_into().unwrap();
        assert_eq!(
            (alarm.said(Language::En).as_str(), alarm.count),
            ("since 17:26.", 2)
        );
        alarms
            .end(AlarmKind::TokenRefused, "", said!("over.backup"))
            .await;
        let ended = alarms.list().remove(0);
        assert!(ended.is_over() && !ended.is_standing() && ended.acknowledged_by.is_none());
        assert_eq!(
            ended.over(Language::It).unwrap(),
            Language::It.text("over.backup")
        );
        alarms.note(&raise("since 18:00."), None);
        let list = alarms.list();
        assert_eq!((list.len(), list[0].count), (2, 1));
        // Seen by somebody it is not new, and it still can be over.
        alarms.acknowledge(list[0].id, "anna").unwrap();
        assert!(alarms.standing(AlarmKind::TokenRefused).is_empty());
        assert_eq!(alarms.lasting(AlarmKind::TokenRefused).len(), 1);
        alarms
            .end(AlarmKind::TokenRefused, "", said!("over.backup"))
            .await;
        assert!(alarms.lasting(AlarmKind::TokenRefused).is_empty());
    }

    #[test]
    fn what_an_earlier_version_wrote_is_shown() {
        let old = r#"{"id":7,"kind":"agent-silent","agent":"web1","text":"nothing was heard of vm","key":"",
            "first_us":1,"last_us":2,"count":3,"acknowledged_by":null,"acknowledged_us":0}"#;
        let mut old: AlarmRecord = serde_json::from_str(old).unwrap();
        assert!(old.is_standing());
        assert_eq!(old.said(Language::En), "nothing was heard of vm");
        assert!(old.said(Language::It).contains("nothing was heard of vm"));
        // What it called seen by the server was over.
        old.acknowledged_by = Some(OWN_NAME.to_owned());
        assert!(old.is_over());
    }

    #[test]
    fn what_did_not_leave_before_a_stop_leaves_after_it() {
        let alarms = alarms("untold");
        alarms.note(&raise("one"), None);
        assert_eq!(alarms.take_news().len(), 1);
        assert!(alarms.take_news().is_empty());
        let Alarms {
            catalogue, audit, ..
        } = alarms;
        let again = Alarms::load(catalogue.clone(), audit.clone(), Arc::default()).unwrap();
        let untold = again.untold("mail");
        assert_eq!(untold.len(), 1);
        again.told(&untold[&AlarmKind::TokenRefused].ids, "mail");
        let again = Alarms::load(catalogue, audit, Arc::default()).unwrap();
        assert!(again.untold("mail").is_empty() && !again.untold("webhook").is_empty());
    }

    #[test]
    fn each_kind_and_each_trouble_has_its_words_in_each_language() {
        for t in Language::ALL {
            for kind in AlarmKind::ALL {
                assert_ne!(
                    t.text(&format!("alarm.{}", kind.name())),
                    "?",
                    "{}",
                    kind.name()
                );
            }
            for trouble in Trouble::ALL {
                assert_ne!(t.text(&format!("trouble.{}", trouble.name())), "?");
            }
            for severity in Severity::ALL {
                assert_ne!(t.text(&format!("severity.{}", severity.name())), "?");
            }
        }
    }

    #[test]
    fn the_first_address_keeps_its_place() {
        let alarms = alarms("first");
        for address in ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.1"] {
            alarms.note(&raise("refused."), Some(address.parse().unwrap()));
        }
        let said = alarms.list().remove(0).said(Language::En);
        assert!(
            said.ends_with("from 2 addresses, first from 127.0.0.1, last from 127.0.0.1."),
            "{said}"
        );
        alarms.note(&raise("refused."), Some("127.0.0.3".parse().unwrap()));
        let said = alarms.list().remove(0).said(Language::En);
        assert!(
            said.ends_with("from 3 addresses, first from 127.0.0.1, last from 127.0.0.3."),
            "{said}"
        );
    }

    /// An agent that made up sources made the alarms of everybody else go.
    #[test]
    fn whoever_raises_very_many_makes_room_among_them() {
        let alarms = alarms("crowd");
        alarms.note(&raise("a token of somebody else"), None);
        for n in 0..2 * ALARMS_MAX {
            let made_up = Raise {
                kind: AlarmKind::SourceTrouble,
                agent: "evil1".into(),
                text: Said::from("made up"),
                key: n.to_string(),
            };
            alarms.note(&made_up, None);
        }
        let list = alarms.list();
        assert_eq!(list.len(), ALARMS_MAX);
        let stays = |alarm: &&AlarmRecord| alarm.kind == AlarmKind::TokenRefused;
        assert_eq!(list.iter().filter(stays).count(), 1);
        let made_up = list.iter().filter(|alarm| !stays(alarm));
        let newest = made_up.map(|alarm| alarm.id).max();
        assert_eq!(newest, list.iter().map(|alarm| alarm.id).max());
    }

    fn raise(text: &str) -> Raise {
        Raise {
            kind: AlarmKind::TokenRefused,
            agent: String::new(),
            text: Said::from(text.to_owned()),
            key: String::new(),
        }
    }

    fn alarms(name: &str) -> Alarms {
        let name = format!("scrinium-alarms-{name}-{}.db", std::process::id());
        let path = std::env::temp_dir().join(name);
        drop(std::fs::remove_file(&path));
        let key = scrinium_protocol::secret::Secret::new([1; 32]);
        let catalogue = Arc::new(Catalogue::create(&path, &key).unwrap());
        let (queue, _entries) = tokio::sync::mpsc::channel(1);
        Alarms::load(catalogue, Audit::new(queue), Arc::default()).unwrap()
    }
}
