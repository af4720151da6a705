//! Looks at the clocks every few seconds, and tells people of a step and of agents whose clocks are wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::confirmation::distance;
use super::told::duration_said;
use crate::alarms::{AlarmKind, Raise};
use crate::core::{Core, OWN_NAME};
use crate::duties::keep::{Duty, Plan};
use crate::present::rfc3339;
use crate::said::said;

/// Watches this machine's clocks and those of agents.
pub(crate) struct Watch {
    core: Arc<Core>,
    offset_us_max: u64,
    wrong: Wrong,
}

impl Watch {
    pub(crate) fn new(core: Arc<Core>, offset_max: Duration) -> Self {
        let lasting = core.alarms.lasting(AlarmKind::AgentClock).into_keys();
        Self {
            wrong: Wrong::of(lasting.map(|(name, _)| name).collect()),
            core,
            offset_us_max: u64::try_from(offset_max.as_micros()).unwrap_or(u64::MAX),
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
                text: said!("alarm_text.clock-stepped", step.said()),
                key: format!("{}", step.at_us),
            })
            .await;
        core.time.told(step);
    }
}

/// One alarm for each time that an agent's clock is far from this one's; it ends when the clock has been right for a while.
async fn tell_of_agents(core: &Core, offset_us_max: u64, wrong: &mut Wrong) {
    let (reference_us, is_confirmed) = core.time.reference_us();
    let boot_us = crate::clock::boot_us();
    for name in wrong.forget_all_but(&core.agents.enabled_names()) {
        let over = said!("over.gone");
        core.alarms.end(AlarmKind::AgentClock, &name, over).await;
    }
    for (_, name, shown_us) in core.agents.named_clocks(boot_us) {
        let offset_us = distance(shown_us, reference_us);
        match wrong.look(&name, offset_us.unsigned_abs() <= offset_us_max, boot_us) {
            Change::None => continue,
            Change::Ended => {
                core.alarms
                    .end(AlarmKind::AgentClock, &name, said!("over.agent-clock"))
                    .await;
                continue;
            }
            Change::Begun => {}
        }
        let by = duration_said(offset_us.unsigned_abs());
        let wrong = match offset_us > 0 {
            true => said!("alarm_text.agent-clock-ahead", by),
            false => said!("alarm_text.agent-clock-behind", by),
        };
        let text = match is_confirmed {
            true => wrong,
            false => said!("alarm_text.agent-clock-doubt", wrong),
        };
        core.alarms
            .raise(Raise {
                kind: AlarmKind::AgentClock,
                agent: name,
                text,
                key: String::new(),
            })
            .await;
    }
}

/// Agents whose clocks are wrong, or were not long ago, by name.
#[derive(Default)]
struct Wrong(BTreeMap<String, Seen>);

/// What was seen of one clock.
struct Seen {
    /// Its alarm stands.
    stands: bool,
    /// Since when it has been right, boot time in µs.
    right_since: Option<u64>,
    /// How long it must be right before its alarm ends, µs.
    patience_us: u64,
}

/// What became of an agent's clock.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Change {
    None,
    Begun,
    Ended,
}

impl Wrong {
    /// As the alarms say that stood when the server started.
    fn of(standing: BTreeSet<String>) -> Self {
        let seen = |name| (name, Seen::standing());
        Self(standing.into_iter().map(seen).collect())
    }

    /// Forgets those that are deleted or disabled: nobody says how their clocks are. Returns whose alarms stand.
    fn forget_all_but(&mut self, enabled: &BTreeSet<String>) -> Vec<String> {
        let gone = self.0.extract_if(.., |name, _| !enabled.contains(name));
        let standing = gone.filter(|(_, seen)| seen.stands);
        standing.map(|(name, _)| name).collect()
    }

    fn look(&mut self, name: &str, is_right: bool, now_us: u64) -> Change {
        let Some(seen) = self.0.get_mut(name) else {
            if is_right {
                return Change::None;
            }
            self.0.insert(name.to_owned(), Seen::standing());
            return Change::Begun;
        };
        if !is_right {
            seen.right_since = None;
            if seen.stands {
                return Change::None;
            }
            // Wrong again: its next end is waited for longer.
            seen.stands = true;
            seen.patience_us = (seen.patience_us * 4).min(PATIENCE_US_MAX);
            return Change::Begun;
        }
        let right_us = now_us.saturating_sub(*seen.right_since.get_or_insert(now_us));
        if seen.stands && right_us >= seen.patience_us {
            seen.stands = false;
            return Change::Ended;
        }
        if right_us >= PATIENCE_US_MAX {
            self.0.remove(name);
        }
        Change::None
    }
}

impl Seen {
    fn standing() -> Self {
        Self {
            stands: true,
            right_since: None,
            patience_us: PATIENCE_US,
        }
    }
}

/// How long a clock must have been right before its alarm ends; four times as long each time it was wrong again.
const PATIENCE_US: u64 = 5 * 1_000_000;
/// No longer than that, and when it has been right for so long it begins anew.
const PATIENCE_US_MAX: u64 = 60 * 60 * 1_000_000;
pub(crate) const PLAN: Plan = Plan {
    point: "duty: clocks",
    every: Duration::from_secs(2),
    long: Duration::from_secs(60),
    raises: false,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_goes_to_and_fro_is_few_alarms() {
        let mut wrong = Wrong::default();
        assert_eq!(wrong.look("web1", true, 0), Change::None);
        let mut begun = 0;
        // Wrong and right in turns for a day.
        for second in 0..86_400 {
            let is_right = second / 30 % 2 == 1;
            begun += u32::from(wrong.look("web1", is_right, second * 1_000_000) == Change::Begun);
        }
        assert_eq!(begun, 3);
        let right_us = 90_000 * 1_000_000;
        assert_eq!(wrong.look("web1", true, right_us), Change::Ended);
        assert_eq!(wrong.look("web1", true, right_us + 1), Change::None);
        assert!(wrong.0.is_empty());
    }

    #[test]
    fn who_is_gone_has_no_clock_and_is_told_anew_when_it_is_back() {
        let mut wrong = Wrong::of(BTreeSet::from(["web1".to_owned(), "web2".to_owned()]));
        let enabled = BTreeSet::from(["web2".to_owned()]);
        assert_eq!(wrong.forget_all_but(&enabled), ["web1"]);
        assert!(wrong.forget_all_but(&enabled).is_empty());
        assert_eq!(wrong.look("web1", false, 7), Change::Begun);
        assert_eq!(wrong.look("web2", false, 7), Change::None);
    }

    /// It was raised before the server was restarted.
    #[test]
    fn an_alarm_that_stood_at_the_start_ends_too() {
        let mut wrong = Wrong::of(BTreeSet::from(["web1".to_owned()]));
        assert_eq!(wrong.look("web1", true, 7), Change::None);
        assert_eq!(wrong.look("web1", true, 7 + PATIENCE_US), Change::Ended);
    }
}
