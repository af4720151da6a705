//! Who should report and does not: silence is a finding, not the absence of one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use scrinium_protocol::identity::AgentId;

use crate::alarms::{AlarmKind, Raise};
use crate::clock;
use crate::core::Core;
use crate::present::rfc3339;

/// Raises an alarm for every enabled agent that is silent for too long, until the task is dropped.
pub(crate) async fn watch(core: Arc<Core>) {
    // What was before the start of the server says nothing about agents.
    let started_us = clock::unix_us();
    let limit_us = u64::try_from(core.silent_after.as_micros()).unwrap_or(u64::MAX);
    // One alarm for one silence: that somebody has seen it does not begin another.
    let mut told: BTreeMap<AgentId, u64> = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let now = clock::unix_us();
        for (agent, live) in core.agents.list() {
            let heard_us = live.heard_us.max(started_us).max(agent.enrolled_us);
            if !agent.enabled || now.saturating_sub(heard_us) < limit_us {
                continue;
            }
            if told.insert(agent.id, heard_us) == Some(heard_us) {
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
    }
}

const LOOK_INTERVAL: Duration = Duration::from_secs(5);
