//! Who should report and does not: silence is a finding, not the absence of one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use scrinium_protocol::identity::AgentId;

use crate::alarms::{AlarmKind, Raise};
use crate::clock;
use crate::core::Core;
use crate::duties::keep::{Duty, Plan};
use crate::present::rfc3339;

/// Raises an alarm for every enabled agent that is silent for too long.
pub(crate) struct Silence {
    core: Arc<Core>,
    /// What was before the start of the server says nothing about agents.
    started_us: u64,
    /// One alarm for one silence: that somebody has seen it does not begin another.
    told: BTreeMap<AgentId, u64>,
}

impl Silence {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            started_us: clock::unix_us(),
            told: BTreeMap::new(),
        }
    }
}

impl Duty for Silence {
    async fn round(&mut self) -> Result<()> {
        let core = &self.core;
        let limit_us = u64::try_from(core.silent_after.as_micros()).unwrap_or(u64::MAX);
        let now = clock::unix_us();
        for (agent, live) in core.agents.list() {
            let heard_us = live.heard_us.max(self.started_us).max(agent.enrolled_us);
            if !agent.enabled || now.saturating_sub(heard_us) < limit_us {
                continue;
            }
            if self.told.insert(agent.id, heard_us) == Some(heard_us) {
                continue;
            }
            let last = live
                .address
                .map_or_else(String::new, |address| format!(" It was last at {address}."));
            core.alarms
                .raise(Raise {
                    kind: AlarmKind::AgentSilent,
                    agent: agent.name,
                    text: format!(
                        "nothing was heard of {} since {}.{last}",
                        agent.host_name,
                        rfc3339(heard_us)
                    ),
                    key: String::new(),
                })
                .await;
        }
        Ok(())
    }
}

pub(crate) const PLAN: Plan = Plan {
    point: "duty: silent agents",
    every: Duration::from_secs(5),
    long: Duration::from_secs(60),
    raises: false,
};
