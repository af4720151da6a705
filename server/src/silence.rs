//! What agents should do and do not, as it stands now: who is silent, who does not take its configuration, whose cache is
//! full. Each begins an alarm, and ends it when it is over; so do the sources and troubles that agents say themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use scrinium_protocol::identity::AgentId;

use crate::agents::{Live, News};
use crate::alarms::{AlarmKind, MORE, Raise};
use crate::catalogue::records::AgentRecord;
use crate::clock::{self, DAY_US};
use crate::core::Core;
use crate::duties::keep::{Duty, Plan};
use crate::present::{human_bytes, rfc3339};
use crate::said::{Said, said};

/// The duty.
pub(crate) struct Silence {
    core: Arc<Core>,
    /// What was before the start of the server says nothing about agents.
    started_us: u64,
    /// Who is silent, by name, and was told: one alarm for one silence. That somebody has seen it does not begin another, nor
    /// does a restart.
    silent: BTreeSet<String>,
    /// The version of a configuration that each does not take, and was told.
    rejected: BTreeMap<AgentId, u64>,
    /// Whose cache is full, by name, and was told.
    full: BTreeSet<String>,
}

impl Silence {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        let lasting = |kind| {
            let lasting = core.alarms.lasting(kind).into_keys();
            lasting.map(|(name, _)| name).collect()
        };
        Self {
            started_us: clock::unix_us(),
            silent: lasting(AlarmKind::AgentSilent),
            rejected: BTreeMap::new(),
            full: lasting(AlarmKind::CacheFull),
            core,
        }
    }

    /// An agent of which nothing was heard for too long. What it was when the server stopped is not known.
    fn silent(&mut self, agent: &AgentRecord, live: &Live, now_us: u64) -> Option<Raise> {
        let core = &self.core;
        let limit_us = u64::try_from(core.silent_after.as_micros()).unwrap_or(u64::MAX);
        let heard_us = live.heard_us.max(self.started_us).max(agent.enrolled_us);
        if now_us.saturating_sub(heard_us) < limit_us {
            if self.is_heard(live, now_us) {
                self.silent.remove(&agent.name);
            }
            return None;
        }
        if !self.silent.insert(agent.name.clone()) {
            return None;
        }
        let since = rfc3339(heard_us);
        Some(Raise {
            kind: AlarmKind::AgentSilent,
            agent: agent.name.clone(),
            text: match live.address {
                Some(address) => {
                    said!(
                        "alarm_text.silent-at",
                        &agent.host_name,
                        since,
                        address.to_string()
                    )
                }
                None => said!("alarm_text.silent", &agent.host_name, since),
            },
            key: String::new(),
        })
    }

    /// Whether something was heard of an agent lately, since the start of the server.
    fn is_heard(&self, live: &Live, now_us: u64) -> bool {
        let limit_us = u64::try_from(self.core.silent_after.as_micros()).unwrap_or(u64::MAX);
        now_us.saturating_sub(live.heard_us) < limit_us
    }

    /// A configuration that its agent does not take.
    fn rejected(&mut self, agent: &AgentRecord) -> Option<Raise> {
        let Some((version, why)) = rejected_by(agent) else {
            self.rejected.remove(&agent.id);
            return None;
        };
        if self.rejected.insert(agent.id, version) == Some(version) {
            return None;
        }
        let raise = Raise {
            kind: AlarmKind::ConfigurationRejected,
            agent: agent.name.clone(),
            text: said!("alarm_text.configuration-agent", version, why),
            key: String::new(),
        };
        // Of this version it was told before a restart.
        (!self.core.alarms.says(&raise)).then_some(raise)
    }

    /// A cache that is nearly full.
    fn full(&mut self, agent: &AgentRecord, live: &Live) -> Option<Raise> {
        let percent = filled(live)?;
        if percent < ROOM_PERCENT {
            self.full.remove(&agent.name);
        }
        if percent < FULL_PERCENT || !self.full.insert(agent.name.clone()) {
            return None;
        }
        // Further ones of a day are one alarm that counts, whatever the agent says of itself.
        let is_over = self.core.agents.over(agent.id, News::Caches) > 0;
        let said = &live.keep_alive;
        let (used, max) = (
            human_bytes(said.disk_bytes),
            human_bytes(said.disk_bytes_max),
        );
        Some(Raise {
            kind: AlarmKind::CacheFull,
            agent: agent.name.clone(),
            text: match is_over {
                false => said!("alarm_text.cache-full", percent, used, max),
                true => said!(
                    "alarm_text.caches-full",
                    News::Caches.a_day(),
                    percent,
                    used,
                    max
                ),
            },
            key: match is_over {
                false => String::new(),
                true => MORE.to_owned(),
            },
        })
    }

    /// Who is not there, or not enabled, was told nothing: when it is enabled again, it is told anew.
    fn forget_gone(&mut self, agents: &BTreeMap<String, (AgentRecord, Live)>) {
        let is_there = |name: &String| (agents.get(name)).is_some_and(|(agent, _)| agent.enabled);
        self.silent.retain(is_there);
        self.full.retain(is_there);
        let enabled = agents.values().filter(|(agent, _)| agent.enabled);
        let enabled: BTreeSet<AgentId> = enabled.map(|(agent, _)| agent.id).collect();
        self.rejected.retain(|id, _| enabled.contains(id));
    }

    /// Ends what is over, also of what stood when the server started.
    async fn end(&self, agents: &BTreeMap<String, (AgentRecord, Live)>, now_us: u64) {
        for of in Of::ALL {
            for ((name, key), last_us) in self.core.alarms.lasting(of.kind()) {
                // What the server says of its own configuration is not of an agent.
                if name == crate::core::OWN_NAME {
                    continue;
                }
                let over = match agents.get(&name) {
                    None => Some(said!("over.gone")),
                    Some((agent, _)) if !agent.enabled => Some(said!("over.gone")),
                    // What counts what is over the limit of a day lasts for one.
                    Some(_) if is_sum(&key) && now_us.saturating_sub(last_us) < DAY_US => None,
                    Some((agent, live)) => over(of, &key, agent, live, self.is_heard(live, now_us)),
                };
                let Some(over) = over else {
                    continue;
                };
                self.core.alarms.end_of(of.kind(), &name, &key, over).await;
            }
        }
    }
}

/// What an alarm is of that ends here.
#[derive(Clone, Copy, Debug)]
enum Of {
    Silence,
    Configuration,
    Cache,
    Trouble,
    Source,
    /// Ends with its agent.
    Streams,
}

impl Of {
    const ALL: [Self; 6] = [
        Self::Silence,
        Self::Configuration,
        Self::Cache,
        Self::Trouble,
        Self::Source,
        Self::Streams,
    ];

    fn kind(self) -> AlarmKind {
        match self {
            Self::Silence => AlarmKind::AgentSilent,
            Self::Configuration => AlarmKind::ConfigurationRejected,
            Self::Cache => AlarmKind::CacheFull,
            Self::Trouble => AlarmKind::AgentTrouble,
            Self::Source => AlarmKind::SourceTrouble,
            Self::Streams => AlarmKind::TooManyStreams,
        }
    }
}

/// Why an alarm of an agent is over, if it is.
fn over(of: Of, key: &str, agent: &AgentRecord, live: &Live, is_heard: bool) -> Option<Said> {
    // What it said before the server started is not known.
    let says = live.state_us > 0;
    match of {
        Of::Silence => is_heard.then(|| said!("over.heard", rfc3339(live.heard_us))),
        Of::Configuration => rejected_by(agent)
            .is_none()
            .then(|| said!("over.configuration")),
        Of::Cache => {
            let is_over = filled(live).is_some_and(|filled| filled < ROOM_PERCENT);
            is_over.then(|| said!("over.cache"))
        }
        // The server says it of the agent.
        Of::Trouble if key == ANSWERS => Some(said!("over.day")),
        Of::Trouble => {
            let is_over = says && live.keep_alive.problem.is_empty();
            is_over.then(|| said!("over.agent"))
        }
        Of::Source => {
            let is_over = match key {
                MORE => says && live.sources_in_trouble() == 0,
                key => says && !live.has_source_trouble(key),
            };
            is_over.then(|| said!("over.agent"))
        }
        Of::Streams => None,
    }
}

/// Whether an alarm, known by its key, counts what is over the limit of a day.
fn is_sum(key: &str) -> bool {
    matches!(key, MORE | ANSWERS)
}

/// The version of its configuration that an agent does not take, and why.
fn rejected_by(agent: &AgentRecord) -> Option<(u64, &String)> {
    let sent = agent.configuration.as_ref()?;
    let why = sent.rejected.as_ref()?;
    (sent.answered == sent.version).then_some((sent.version, why))
}

/// How full the cache of an agent is, percent; none where it has not said.
fn filled(live: &Live) -> Option<u64> {
    let said = &live.keep_alive;
    let percent = said
        .disk_bytes
        .saturating_mul(100)
        .checked_div(said.disk_bytes_max)?;
    (live.state_us > 0).then_some(percent)
}

impl Duty for Silence {
    async fn round(&mut self) -> Result<()> {
        let now_us = clock::unix_us();
        let mut agents = BTreeMap::new();
        for (agent, live) in self.core.agents.list() {
            if agent.enabled {
                let raises = [
                    self.silent(&agent, &live, now_us),
                    self.rejected(&agent),
                    self.full(&agent, &live),
                ];
                for raise in raises.into_iter().flatten() {
                    self.core.alarms.raise(raise).await;
                }
            }
            agents.insert(agent.name.clone(), (agent, live));
        }
        self.forget_gone(&agents);
        self.end(&agents, now_us).await;
        Ok(())
    }
}

pub(crate) const PLAN: Plan = Plan {
    point: "duty: silent agents",
    every: Duration::from_secs(5),
    long: Duration::from_secs(60),
    raises: false,
};
/// The key of the alarm of an agent that changes its answer to its configuration too often.
pub(crate) const ANSWERS: &str = "answers";
/// A cache that is fuller is an alarm, and none any more when it has so much room: one that goes to and fro is one alarm.
const FULL_PERCENT: u64 = 95;
const ROOM_PERCENT: u64 = 80;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use scrinium_protocol::sl::message::KeepAlive;
    use scrinium_protocol::sl::sources::{SourceReport, SourceReports, SourceState};

    use super::*;
    use crate::core::Running;
    use crate::core::tests::{new_volume, running};

    const ID: AgentId = AgentId([1; 16]);

    fn with_agent(name: &str) -> (PathBuf, Running) {
        let dir = new_volume(name, |catalogue| {
            catalogue.put(&AgentRecord::named("web1", 1, 0)).unwrap();
        });
        let running = running(&dir);
        (dir, running)
    }

    /// What the agent says, and what the server makes of it.
    async fn hear(silence: &mut Silence, says: KeepAlive) {
        let core = silence.core.clone();
        for raise in core.agents.heard(ID, Some(says)) {
            core.alarms.raise(raise).await;
        }
        silence.round().await.unwrap();
    }

    fn lasting(core: &Core, kind: AlarmKind) -> Vec<String> {
        let lasting = core.alarms.lasting(kind).into_keys();
        lasting.map(|(_, key)| key).collect()
    }

    fn count(core: &Core, kind: AlarmKind) -> usize {
        let alarms = core.alarms.list().into_iter();
        alarms.filter(|alarm| alarm.kind == kind).count()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_silence_that_was_seen_is_no_new_alarm_after_a_restart_and_one_after_the_agent_is_back()
     {
        let (dir, running) = with_agent("silent");
        let core = running.core.clone();
        let start = || Silence {
            started_us: 0,
            ..Silence::new(core.clone())
        };
        let mut silence = start();
        silence.round().await.unwrap();
        let [alarm] = core.alarms.list().try_into().unwrap();
        core.alarms.acknowledge(alarm.id, "anna").unwrap();
        // The server is restarted.
        let mut silence = start();
        silence.round().await.unwrap();
        assert_eq!(count(&core, AlarmKind::AgentSilent), 1);
        core.agents.set_enabled("web1", false).unwrap();
        silence.round().await.unwrap();
        assert!(lasting(&core, AlarmKind::AgentSilent).is_empty());
        core.agents.set_enabled("web1", true).unwrap();
        silence.round().await.unwrap();
        assert_eq!(count(&core, AlarmKind::AgentSilent), 2);
        assert_eq!(lasting(&core, AlarmKind::AgentSilent).len(), 1);
        drop((core, silence));
        running.close().await;
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_an_agent_says_again_and_again_is_so_many_alarms_a_day_and_one_that_counts_for_a_day()
     {
        let (dir, running) = with_agent("more");
        let core = running.core.clone();
        let mut silence = Silence::new(core.clone());
        let a_day = usize::try_from(News::Troubles.a_day()).unwrap();
        for n in 0..a_day + 10 {
            let full = KeepAlive {
                disk_bytes: 96,
                disk_bytes_max: 100,
                problem: format!("its disk is full for the {n}th time"),
                ..KeepAlive::default()
            };
            hear(&mut silence, full).await;
            let well = KeepAlive {
                disk_bytes: 7,
                disk_bytes_max: 100,
                ..KeepAlive::default()
            };
            hear(&mut silence, well).await;
        }
        for kind in [AlarmKind::AgentTrouble, AlarmKind::CacheFull] {
            assert_eq!(count(&core, kind), a_day + 1, "{kind:?}");
            assert_eq!(lasting(&core, kind), [MORE], "{kind:?}");
        }
        drop((core, silence));
        running.close().await;
        std::fs::remove_dir_all(dir).unwrap();
    }

    /// It ended every five seconds, and began again with the next source that the agent made up.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_alarm_that_counts_sources_is_one_while_any_is_in_trouble() {
        let (dir, running) = with_agent("sources");
        let core = running.core.clone();
        let mut silence = Silence::new(core.clone());
        let says = |names: std::ops::Range<u64>| {
            let rows = names.map(|n| SourceReport {
                source: format!("/{n}"),
                state: SourceState::Unreadable,
                needs_person: true,
                files: 1,
                path: String::new(),
                cause: "because".into(),
            });
            KeepAlive {
                sources: Some(SourceReports {
                    rows: rows.collect(),
                    more: 0,
                }),
                ..KeepAlive::default()
            }
        };
        hear(&mut silence, says(0..News::Sources.a_day())).await;
        for n in 300..310 {
            hear(&mut silence, says(n..n + 1)).await;
            assert_eq!(lasting(&core, AlarmKind::SourceTrouble), [MORE]);
        }
        let alarms = core.alarms.list();
        let more: Vec<_> = alarms.iter().filter(|alarm| alarm.key == MORE).collect();
        assert_eq!((more.len(), more[0].count), (1, 10));
        // None is in trouble any more: it is over when a day has passed.
        hear(&mut silence, says(0..0)).await;
        assert_eq!(lasting(&core, AlarmKind::SourceTrouble), [MORE]);
        let agents = core.agents.list().into_iter();
        let agents = agents.map(|(agent, live)| (agent.name.clone(), (agent, live)));
        let tomorrow_us = clock::unix_us() + DAY_US;
        silence.end(&agents.collect(), tomorrow_us).await;
        assert!(lasting(&core, AlarmKind::SourceTrouble).is_empty());
        drop((core, silence));
        running.close().await;
        std::fs::remove_dir_all(dir).unwrap();
    }
}
