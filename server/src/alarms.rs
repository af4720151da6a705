//! Alarms: what a person must hear of, kept until a person says so.
//!
//! Every alarm is an entry of the audit stream too, where nobody can take it back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::{error, warn};

use crate::audit::Audit;
use crate::bounds::{self, ALARM_LEN_MAX};
use crate::catalogue::Catalogue;
use crate::catalogue::records::AlarmRecord;
use crate::clock;
use crate::core::OWN_NAME;

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
    state: Mutex<BTreeMap<u64, AlarmRecord>>,
}

impl Alarms {
    pub(crate) fn load(catalogue: Arc<Catalogue>, audit: Audit) -> Result<Self> {
        let alarms = catalogue.load::<AlarmRecord>()?;
        let state = alarms.into_iter().map(|alarm| (alarm.id, alarm)).collect();
        Ok(Self {
            catalogue,
            audit,
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
        if !self.audit.record("server", "alarm", detail).await {
            error!("an alarm could not be written to the audit stream; it stands in the catalogue");
        }
    }

    /// Writes the alarm down; returns it when it is new.
    fn note(&self, raise: &Raise, from: Option<IpAddr>) -> Option<AlarmRecord> {
        let now = clock::unix_us();
        let mut state = self.lock();
        let standing = state.values_mut().find(|alarm| {
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
            }
            return None;
        }
        let mut alarm = AlarmRecord {
            id: state.last_key_value().map_or(1, |(id, _)| id + 1),
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
                "an alarm could not be made durable"
            );
        }
        state.insert(alarm.id, alarm.clone());
        if state.len() > ALARMS_MAX {
            let oldest = state
                .iter()
                .find(|(_, alarm)| alarm.acknowledged_by.is_some())
                .or_else(|| state.first_key_value())
                .map(|(id, _)| *id);
            if let Some(removed) = oldest.and_then(|id| state.remove(&id))
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

    /// What was wrong with `agent` is over: its alarm stands no longer.
    pub(crate) async fn end(&self, kind: AlarmKind, agent: &str, why: &str) {
        let standing: Vec<u64> = {
            let state = self.lock();
            let of_agent = state.values().filter(|alarm| {
                alarm.acknowledged_by.is_none() && alarm.kind == kind && alarm.agent == agent
            });
            of_agent.map(|alarm| alarm.id).collect()
        };
        for id in standing {
            if let Err(error) = self.acknowledge(id, OWN_NAME) {
                error!(
                    error = format!("{error:#}"),
                    "the end of an alarm could not be made durable"
                );
                continue;
            }
            let detail = json!({ "id": id, "kind": kind.name(), "agent": agent, "text": why });
            if !self.audit.record(OWN_NAME, "alarm ended", detail).await {
                error!("the end of an alarm could not be written to the audit stream");
            }
        }
    }

    /// Notes that `user` has seen alarm `id`.
    pub(crate) fn acknowledge(&self, id: u64, user: &str) -> Result<()> {
        let mut state = self.lock();
        let alarm = state
            .get(&id)
            .with_context(|| format!("there is no alarm {id}"))?;
        let mut alarm = alarm.clone();
        alarm.acknowledged_by = Some(user.to_owned());
        alarm.acknowledged_us = clock::unix_us();
        self.catalogue.put(&alarm)?;
        state.insert(id, alarm);
        Ok(())
    }

    /// The alarms, newest first.
    pub(crate) fn list(&self) -> Vec<AlarmRecord> {
        self.lock().values().rev().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, AlarmRecord>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AlarmRecord {
    fn came_from(&mut self, from: IpAddr) {
        // The last one stands last.
        self.addresses.retain(|known| *known != from);
        self.addresses.push(from);
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
        if first == last {
            return self.text.clone();
        }
        let more = if self.more_addresses {
            "more than "
        } else {
            ""
        };
        format!(
            "{} It came from {more}{} addresses, first from {first}, last from {last}.",
            self.text,
            self.addresses.len()
        )
    }
}

/// Addresses that an alarm has by name: the first one, and the last ones.
const ADDRESSES_MAX: usize = 100;
/// Past this many the oldest goes, acknowledged ones first.
const ALARMS_MAX: usize = 1000;

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
        let again = Alarms::load(catalogue, audit).unwrap();
        assert_eq!(again.list().remove(0).count, 1024);
    }

    #[test]
    fn the_text_of_an_alarm_is_bounded() {
        let alarms = alarms("long");
        let alarm = alarms.note(&raise(&"x".repeat(100_000)), None).unwrap();
        assert!(alarm.text.len() <= ALARM_LEN_MAX + '…'.len_utf8());
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
        Alarms::load(catalogue, Audit::new(queue)).unwrap()
    }
}
