//! Looks at the clocks every few seconds, and tells people of a step and of agents whose clocks are wrong.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use scrinium_protocol::identity::AgentId;
use serde_json::json;

use super::confirmation::distance;
use super::told::duration;
use crate::alarms::{AlarmKind, Raise};
use crate::core::{Core, OWN_NAME};
use crate::duties::keep::{Duty, Plan};
use crate::present::rfc3339;

/// Watches this machine's clocks and those of agents.
pub(crate) struct Watch {
    core: Arc<Core>,
    offset_us_max: u64,
    wrong: BTreeSet<AgentId>,
}

impl Watch {
    pub(crate) fn new(core: Arc<Core>, offset_max: Duration) -> Self {
        Self {
            core,
            offset_us_max: u64::try_from(offset_max.as_micros()).unwrap_or(u64::MAX),
            wrong: BTreeSet::new(),
        }
    }
}

impl Duty for Watch {
    async fn round(&mut self) -> Result<()> {
        let core = self.core.clone();
        let looked = tokio::task::spawn_blocking(move || core.time.look()).await;
        tell_of_steps(&self.core).await;
        tell_of_agents(&self.core, self.offset_us_max, &mut self.wrong).await;
        looked.context("looking at the clocks")?;
        Ok(())
    }
}

/// An alarm and an entry of the trail with both times. What the archive does not take now is told later.
async fn tell_of_steps(core: &Core) {
    while let Some(step) = core.time.untold() {
        let detail = json!({
            "kind": step.kind, "expected": rfc3339(step.expected_us), "shown": rfc3339(step.shown_us),
            "server": rfc3339(step.at_us), "seconds": distance(step.shown_us, step.expected_us) / 1_000_000,
        });
        if !core.audit.record(OWN_NAME, "clock stepped", detail).await {
            return;
        }
        core.alarms
            .raise(Raise {
                kind: AlarmKind::ClockStepped,
                agent: OWN_NAME.to_owned(),
                text: format!(
                    "{}. Nothing is deleted until the time is confirmed; what is received carries the server's own time meanwhile. See: scrinium-server status",
                    step.sentence()
                ),
                key: format!("{}", step.at_us),
            })
            .await;
        core.time.told(step);
    }
}

/// One alarm for each time that an agent's clock is far from this one's; it ends with it.
async fn tell_of_agents(core: &Core, offset_us_max: u64, wrong: &mut BTreeSet<AgentId>) {
    let (reference_us, is_confirmed) = core.time.reference_us();
    for (agent, name, shown_us) in core.agents.named_clocks(crate::clock::boot_us()) {
        let offset_us = distance(shown_us, reference_us);
        if offset_us.unsigned_abs() <= offset_us_max {
            if wrong.remove(&agent) {
                core.alarms
                    .end(AlarmKind::AgentClock, &name, "its clock is right again")
                    .await;
            }
            continue;
        }
        if !wrong.insert(agent) {
            continue;
        }
        let way = if offset_us > 0 { "ahead of" } else { "behind" };
        let doubt = if is_confirmed {
            ""
        } else {
            " This server's own clock is not confirmed: it may be the one that is wrong."
        };
        core.alarms
            .raise(Raise {
                kind: AlarmKind::AgentClock,
                agent: name,
                text: format!(
                    "its clock is {} {way} this server's: times of what it collects are off by as much. Set it right (NTP).{doubt}",
                    duration(offset_us.unsigned_abs())
                ),
                key: String::new(),
            })
            .await;
    }
}

pub(crate) const PLAN: Plan = Plan {
    point: "duty: clocks",
    every: Duration::from_secs(2),
    long: Duration::from_secs(60),
    raises: false,
};
