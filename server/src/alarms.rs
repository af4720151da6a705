//! Alarms: what a person must hear of, kept until a person says so.
//!
//! Every alarm is an entry of the audit stream too, where nobody can take it back. While the disk takes nothing, alarms are
//! kept in memory, shown, and written when it takes something again ([`Alarms::write_down`]).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tracing::{error, warn};

use crate::archive::troubles::{Trouble, Troubles};
use crate::audit::Audit;
use crate::bounds::{self, ALARM_LEN_MAX};
use crate::catalogue::Catalogue;
use crate::catalogue::records::AlarmRecord;
use crate::clock;
use crate::core::OWN_NAME;
use crate::waits;

/// What happened.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AlarmKind {
    /// Two machines, or a copy of one, show the same identity.
    IdentityUsedTwice,
    /// A known agent came with a credential that was never its own.
    WrongCredential,
    /// An agent signed two histories of one stream.
    ConflictingBatch,
    /// An enrolment token was refused.
    TokenRefused,
    /// An agent that should report does not.
    AgentSilent,
    /// An agent says what it suffers from.
    AgentTrouble,
    /// An agent cannot collect all of a source.
    SourceTrouble,
    /// Intervals are not sealed any more.
    EvidenceStopped,
    /// The server's own clock was set.
    ClockStepped,
    /// An agent's clock is far from the server's.
    AgentClock,
    /// A backup that was due could not be made.
    BackupFailed,
    /// What is archived is not what was sealed.
    ArchiveDamaged,
    /// Somebody on the way dropped, doubled, moved, forged or altered a record.
    Interference,
    /// An agent holds receipts for entries that are not there.
    ReceiptUnmet,
    /// A listener refused connections, or closed some for others.
    PlacesShort,
    /// More new senders of syslog came than become streams of their own.
    ManySenders,
    /// An agent wants more streams than it may have.
    TooManyStreams,
    /// Somebody tries passwords.
    SignInsRefused,
    /// Entries are not taken.
    CannotArchive,
    /// Logs are not sealed.
    CannotSeal,
    /// What is due is not deleted.
    CannotDelete,
    /// The disk takes no writes, or has no room.
    DiskFull,
    /// The disk will have no room soon.
    DiskShort,
    /// File descriptors are nearly used up.
    DescriptorsShort,
    /// Something that is done again and again is not done.
    DutyFailed,
    /// A part of the program met a fault of the program.
    ProgramFault,
    /// The console's certificate ends soon, or has ended.
    CertificateEnds,
    /// An agent was let in whose machine is not quite the one it was.
    MachineChanged,
}

impl AlarmKind {
    /// The word of the API, the style sheet and the catalogues.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::IdentityUsedTwice => "identity-used-twice",
            Self::WrongCredential => "wrong-credential",
            Self::ConflictingBatch => "conflicting-batch",
            Self::TokenRefused => "token-refused",
            Self::AgentSilent => "agent-silent",
            Self::AgentTrouble => "agent-trouble",
            Self::SourceTrouble => "source-trouble",
            Self::EvidenceStopped => "evidence-stopped",
            Self::ClockStepped => "clock-stepped",
            Self::AgentClock => "agent-clock",
            Self::BackupFailed => "backup-failed",
            Self::ArchiveDamaged => "archive-damaged",
            Self::Interference => "interference",
            Self::ReceiptUnmet => "receipt-unmet",
            Self::PlacesShort => "places-short",
            Self::ManySenders => "many-senders",
            Self::TooManyStreams => "too-many-streams",
            Self::SignInsRefused => "sign-ins-refused",
            Self::CannotArchive => "cannot-archive",
            Self::CannotSeal => "cannot-seal",
            Self::CannotDelete => "cannot-delete",
            Self::DiskFull => "disk-full",
            Self::DiskShort => "disk-short",
            Self::DescriptorsShort => "descriptors-short",
            Self::DutyFailed => "duty-failed",
            Self::ProgramFault => "program-fault",
            Self::CertificateEnds => "certificate-ends",
            Self::MachineChanged => "machine-changed",
        }
    }
}

/// An alarm to be raised.
#[derive(Clone, Debug)]
pub(crate) struct Raise {
    pub(crate) kind: AlarmKind,
    /// Name of the agent; empty when it is none's.
    pub(crate) agent: String,
    pub(crate) text: String,
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
        let Some(alarm) = self.note(&raise, from) else {
            return;
        };
        warn!(
            kind = alarm.kind.name(),
            agent = alarm.agent,
            "ALARM: {}",
            alarm.text
        );
        let detail = json!({ "kind": alarm.kind.name(), "agent": alarm.agent, "text": alarm.text });
        self.tell("alarm", detail).await;
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

    /// Writes the alarm down; returns it when it is new.
    fn note(&self, raise: &Raise, from: Option<IpAddr>) -> Option<AlarmRecord> {
        let now = clock::unix_us();
        let mut state = self.lock();
        let State {
            alarms, unwritten, ..
        } = &mut *state;
        let standing = alarms.values_mut().find(|alarm| {
            alarm.acknowledged_by.is_none()
                && alarm.kind == raise.kind
                && alarm.agent == raise.agent
                && alarm.key == raise.key
        });
        if let Some(alarm) = standing {
            alarm.count += 1;
            alarm.last_us = now;
            if let Some(from) = from {
                alarm.came_from(from);
            }
            // Counted in memory and shown. The first is durable, and then each time it has become twice as many.
            if alarm.count.is_power_of_two()
                && let Err(error) = self.catalogue.put(alarm)
            {
                let error = format!("{error:#}");
                error!(error, "the count of an alarm could not be made durable");
                unwritten.insert(alarm.id);
            }
            return None;
        }
        let mut alarm = AlarmRecord {
            id: alarms.last_key_value().map_or(1, |(id, _)| id + 1),
            kind: raise.kind,
            agent: raise.agent.clone(),
            text: bounds::cut(&raise.text, ALARM_LEN_MAX),
            key: raise.key.clone(),
            first_us: now,
            last_us: now,
            count: 1,
            acknowledged_by: None,
            acknowledged_us: 0,
            addresses: Vec::new(),
            more_addresses: false,
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
        alarms.insert(alarm.id, alarm.clone());
        if alarms.len() > ALARMS_MAX {
            let oldest = alarms
                .iter()
                .find(|(_, alarm)| alarm.acknowledged_by.is_some())
                .or_else(|| alarms.first_key_value())
                .map(|(id, _)| *id);
            if let Some(removed) = oldest.and_then(|id| alarms.remove(&id))
                && let Err(error) = self.catalogue.write(|changes| changes.remove(&removed))
            {
                error!(
                    error = format!("{error:#}"),
                    "an old alarm could not be removed"
                );
            }
        }
        Some(alarm)
    }

    /// The agents of which an alarm of a kind stands.
    pub(crate) fn standing(&self, kind: AlarmKind) -> BTreeSet<String> {
        let state = self.lock();
        let alarms = state.alarms.values();
        let standing = alarms.filter(|alarm| alarm.acknowledged_by.is_none() && alarm.kind == kind);
        standing.map(|alarm| alarm.agent.clone()).collect()
    }

    /// What was wrong with `agent` is over: its alarms of this kind stand no longer.
    pub(crate) async fn end(&self, kind: AlarmKind, agent: &str, why: &str) {
        self.end_those(|alarm| alarm.kind == kind && alarm.agent == agent, why)
            .await;
    }

    /// The same of one `key`.
    pub(crate) async fn end_of(&self, kind: AlarmKind, agent: &str, key: &str, why: &str) {
        let is_it =
            |alarm: &AlarmRecord| alarm.kind == kind && alarm.agent == agent && alarm.key == key;
        self.end_those(is_it, why).await;
    }

    async fn end_those(&self, is_one: impl Fn(&AlarmRecord) -> bool, why: &str) {
        let standing: Vec<AlarmRecord> = {
            let state = self.lock();
            let those = state.alarms.values();
            let those = those.filter(|alarm| alarm.acknowledged_by.is_none() && is_one(alarm));
            those.cloned().collect()
        };
        for alarm in standing {
            if !self.end_one(alarm.id) {
                continue;
            }
            let detail = json!({
                "id": alarm.id, "kind": alarm.kind.name(), "agent": alarm.agent, "text": why,
            });
            self.tell("alarm ended", detail).await;
        }
    }

    /// Ends one in memory, and in the catalogue as soon as that takes it. `false` when there is none any more.
    fn end_one(&self, id: u64) -> bool {
        let mut state = self.lock();
        let Some(ended) = state.alarms.get_mut(&id) else {
            return false;
        };
        ended.acknowledged_by = Some(OWN_NAME.to_owned());
        ended.acknowledged_us = clock::unix_us();
        if let Err(error) = self.catalogue.put(ended) {
            let error = format!("{error:#}");
            error!(error, "the end of an alarm could not be made durable yet");
            state.unwritten.insert(id);
        }
        true
    }

    /// Notes that `user` has seen alarm `id`.
    pub(crate) fn acknowledge(&self, id: u64, user: &str) -> Result<()> {
        let mut state = self.lock();
        let alarm = state
            .alarms
            .get(&id)
            .with_context(|| format!("there is no alarm {id}"))?;
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

    /// The sentence, and from where it came besides.
    pub(crate) fn said(&self) -> String {
        let (Some(first), Some(last)) = (self.addresses.first(), self.addresses.last()) else {
            return self.text.clone();
        };
        if self.addresses.len() == 1 {
            return self.text.clone();
        }
        let more = if self.more_addresses {
            "more than "
        } else {
            ""
        };
        let distinct: BTreeSet<&IpAddr> = self.addresses.iter().collect();
        format!(
            "{} It came from {more}{} addresses, first from {first}, last from {last}.",
            self.text,
            distinct.len()
        )
    }
}

/// Addresses that an alarm has by name: the first one, and the last ones.
const ADDRESSES_MAX: usize = 100;
/// Past this many the oldest goes, acknowledged ones first.
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
            assert_eq!(alarms.note(&raise("refused"), Some(from)).is_some(), n == 0);
        }
        let list = alarms.list();
        let [alarm] = list.as_slice() else {
            panic!("{list:?}")
        };
        assert_eq!(alarm.count, 61);
        assert_eq!(
            alarm.said(),
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
                .said()
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
        let alarm = alarms.note(&raise(&"x".repeat(100_000)), None).unwrap();
        assert!(alarm.text.len() <= ALARM_LEN_MAX + '…'.len_utf8());
    }

    #[test]
    fn the_first_address_keeps_its_place() {
        let alarms = alarms("first");
        for address in ["127.0.0.1", "127.0.0.2", "127.0.0.1", "127.0.0.1"] {
            alarms.note(&raise("refused."), Some(address.parse().unwrap()));
        }
        let said = alarms.list().remove(0).said();
        assert!(
            said.ends_with("from 2 addresses, first from 127.0.0.1, last from 127.0.0.1."),
            "{said}"
        );
        alarms.note(&raise("refused."), Some("127.0.0.3".parse().unwrap()));
        let said = alarms.list().remove(0).said();
        assert!(
            said.ends_with("from 3 addresses, first from 127.0.0.1, last from 127.0.0.3."),
            "{said}"
        );
    }

    fn raise(text: &str) -> Raise {
        Raise {
            kind: AlarmKind::TokenRefused,
            agent: String::new(),
            text: text.to_owned(),
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
