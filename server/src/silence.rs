//! What agents should do and do not, as it stands now: who is silent, who does not take its configuration, whose cache is
//! full. Each begins an alarm, and ends it when it is over; so do the sources and troubles that agents say themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use scrinium_protocol::identity::AgentId;

use crate::agents::Live;
use crate::alarms::{AlarmKind, Raise};
use crate::catalogue::records::AgentRecord;
use crate::clock;
use crate::core::Core;
use crate::duties::keep::{Duty, Plan};
use crate::present::{human_bytes, rfc3339};
use crate::said::{Said, said};

/// The duty.
pub(crate) struct Silence {
    core: Arc<Core>,
    /// What was before the start of the server says nothing about agents.
    started_us: u64,
    /// One alarm for one silence: that somebody has seen it does not begin another.
    silent: BTreeMap<AgentId, u64>,
    /// The version of a configuration that each does not take, and was told.
    rejected: BTreeMap<AgentId, u64>,
    /// Whose cache is full, and was told.
    full: BTreeSet<AgentId>,
}

impl Silence {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            started_us: clock::unix_us(),
            silent: BTreeMap::new(),
            rejected: BTreeMap::new(),
            full: BTreeSet::new(),
        }
    }

    /// An agent of which nothing was heard for too long. What it was when the server stopped is not known.
    fn silent(&mut self, agent: &AgentRecord, live: &Live, now_us: u64) -> Option<Raise> {
        let core = &self.core;
        let limit_us = u64::try_from(core.silent_after.as_micros()).unwrap_or(u64::MAX);
        let heard_us = live.heard_us.max(self.started_us).max(agent.enrolled_us);
        if now_us.saturating_sub(heard_us) < limit_us {
            return None;
        }
        if self.silent.insert(agent.id, heard_us) == Some(heard_us) {
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

    /// A configuration that its agent does not take.
    fn rejected(&mut self, agent: &AgentRecord) -> Option<Raise> {
        let (version, why) = rejected_by(agent)?;
        if self.rejected.insert(agent.id, version) == Some(version) {
            return None;
        }
        Some(Raise {
            kind: AlarmKind::ConfigurationRejected,
            agent: agent.name.clone(),
            text: said!("alarm_text.configuration-agent", version, why),
            key: String::new(),
        })
    }

    /// A cache that is nearly full.
    fn full(&mut self, agent: &AgentRecord, live: &Live) -> Option<Raise> {
        if filled(live)? < FULL_PERCENT {
            return None;
        }
        if !self.full.insert(agent.id) {
            return None;
        }
        let said = &live.keep_alive;
        let (used, max) = (
            human_bytes(said.disk_bytes),
            human_bytes(said.disk_bytes_max),
        );
        Some(Raise {
            kind: AlarmKind::CacheFull,
            agent: agent.name.clone(),
            text: said!("alarm_text.cache-full", filled(live)?, used, max),
            key: String::new(),
        })
    }

    /// Ends what is over, also of what stood when the server started.
    async fn end(&mut self, agents: &BTreeMap<String, (AgentRecord, Live)>, now_us: u64) {
        let limit_us = u64::try_from(self.core.silent_after.as_micros()).unwrap_or(u64::MAX);
        let is_heard = |live: &Live| now_us.saturating_sub(live.heard_us) < limit_us;
        for of in Of::ALL {
            for (name, key) in self.core.alarms.lasting(of.kind()) {
                // What the server says of its own configuration is not of an agent.
                if name == crate::core::OWN_NAME {
                    continue;
                }
                let over = match agents.get(&name) {
                    None => Some(said!("over.gone")),
                    Some((agent, _)) if !agent.enabled => Some(said!("over.gone")),
                    Some((agent, live)) => over(of, &key, agent, live, is_heard(live)),
                };
                let Some(over) = over else {
                    continue;
                };
                if let Some((agent, _)) = agents.get(&name) {
                    match of {
                        Of::Configuration => drop(self.rejected.remove(&agent.id)),
                        Of::Cache => drop(self.full.remove(&agent.id)),
                        Of::Silence | Of::Trouble | Of::Source => {}
                    }
                }
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
}

impl Of {
    const ALL: [Self; 5] = [
        Self::Silence,
        Self::Configuration,
        Self::Cache,
        Self::Trouble,
        Self::Source,
    ];

    fn kind(self) -> AlarmKind {
        match self {
            Self::Silence => AlarmKind::AgentSilent,
            Self::Configuration => AlarmKind::ConfigurationRejected,
            Self::Cache => AlarmKind::CacheFull,
            Self::Trouble => AlarmKind::AgentTrouble,
            Self::Source => AlarmKind::SourceTrouble,
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
        // Another key is of something that the server says of it.
        Of::Trouble if key.is_empty() => {
            let is_over = says && live.keep_alive.problem.is_empty();
            is_over.then(|| said!("over.agent"))
        }
        Of::Source => {
            let is_over = says && !live.has_source_trouble(key);
            is_over.then(|| said!("over.agent"))
        }
        Of::Trouble => None,
    }
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
/// A cache that is fuller is an alarm, and none any more when it has so much room: one that goes to and fro is one alarm.
const FULL_PERCENT: u64 = 95;
const ROOM_PERCENT: u64 = 80;
