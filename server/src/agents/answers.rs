//! What agents answer to their configurations, as far as it is written down: an agent that changes its answer again and
//! again fills neither the catalogue nor the audit trail.
//!
//! ```text
//! answer ─▶ the same as before ─▶ nothing
//!       ├─▶ the first to a version that a person made ─▶ written
//!       └─▶ another one ─▶ written, [CHANGES_A_DAY_MAX] times a day ─▶ counted, and shown
//! ```

use scrinium_protocol::identity::AgentId;
use scrinium_protocol::sl::message::ConfigurationAnswer;

use super::Agents;
use super::live::Limit;
use crate::clock::{self, DAY_US};
use anyhow::Result;

/// What became of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Answered {
    /// It says what is known.
    Known,
    /// It is news, and durable.
    Written,
    /// It is one more than is written in a day: so many of them came today.
    Counted(u64),
}

/// Changes of an agent's answers on one day.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changes {
    /// Days this machine runs: a clock that is set begins no other day.
    day: u64,
    written: u32,
    counted: u64,
}

impl Changes {
    /// One more; how many are over the limit today, this one with them. Zero: it is to be written.
    fn add(&mut self, boot_us: u64) -> u64 {
        let day = boot_us / DAY_US;
        if day != self.day {
            *self = Self {
                day,
                ..Self::default()
            };
        }
        if self.written < CHANGES_A_DAY_MAX {
            self.written += 1;
        } else {
            self.counted += 1;
        }
        self.counted
    }
}

impl Agents {
    /// Notes what an agent said of its configuration.
    ///
    /// # Errors
    /// The catalogue does not take it.
    pub(crate) fn configured(&self, id: AgentId, answer: ConfigurationAnswer) -> Result<Answered> {
        {
            let mut state = self.lock();
            let configuration = state.agents.get(&id).map(|agent| &agent.configuration);
            let Some(configuration) = configuration.cloned() else {
                return Ok(Answered::Known);
            };
            let live = state.live.entry(id).or_default();
            live.in_force = answer.in_force.into();
            let is_news = configuration.as_ref().is_some_and(|configuration| {
                configuration.version == answer.version
                    && (configuration.answered, &configuration.rejected)
                        != (answer.version, &answer.rejected)
            });
            if !is_news {
                return Ok(Answered::Known);
            }
            // Versions are made by persons: one answer to each costs what they began themselves.
            let is_first = configuration.is_some_and(|known| known.answered != answer.version);
            if !is_first {
                let changes = state.answers.entry(id).or_default();
                let counted = changes.add(clock::boot_us());
                if counted > 0 {
                    if let Some(live) = state.live.get_mut(&id) {
                        live.reach(Limit::Answers, said(counted));
                    }
                    return Ok(Answered::Counted(counted));
                }
            }
        }
        self.change_id(id, |agent| {
            if let Some(configuration) = &mut agent.configuration {
                configuration.answered = answer.version;
                configuration.rejected = answer.rejected;
            }
            Ok(())
        })?;
        Ok(Answered::Written)
    }
}

/// What the agent's page says.
pub(crate) fn said(counted: u64) -> String {
    format!(
        "it changed its answer to its configuration more than {CHANGES_A_DAY_MAX} times in a day; {counted} further answers of this day were counted and not written down"
    )
}

/// Changes of an agent's answers that are written in a day, aside from the first answer to each version: a configuration that is
/// taken up, taken back and taken up again every hour. Each costs a write of the catalogue and an entry of the trail.
const CHANGES_A_DAY_MAX: u32 = 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_past_the_limit_of_a_day_are_counted_and_the_next_day_begins_anew() {
        let mut changes = Changes::default();
        let begin = 5 * DAY_US;
        for n in 0..100_u64 {
            let over = changes.add(begin + n);
            assert_eq!(over, (n + 1).saturating_sub(CHANGES_A_DAY_MAX.into()));
        }
        assert_eq!(changes.add(begin + DAY_US), 0);
        assert_eq!(changes.written, 1);
    }
}
