//! What agents say that is written down, so often a day: an agent that says something else again and again fills neither
//! the catalogue nor the audit trail, and makes no alarm for each.
//!
//! ```text
//! said ─▶ the same as before ─▶ nothing
//!     └─▶ something else ─▶ written, [News::a_day] times ─▶ counted, and shown
//! ```

use anyhow::Result;
use scrinium_protocol::identity::AgentId;
use scrinium_protocol::sl::message::ConfigurationAnswer;

use super::live::Limit;
use super::{Agents, State};
use crate::clock::{self, DAY_US};

/// What costs a write, an entry of the trail or an alarm each time an agent says something else.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum News {
    /// Its answer to its configuration, aside from the first one to each version.
    Answers,
    /// A source that needs a person.
    Sources,
    /// It came with another machine, or with a state of before.
    Arrivals,
}

impl News {
    /// How many are written in a day.
    pub(crate) fn a_day(self) -> u64 {
        match self {
            // A configuration that is taken up, taken back and taken up again every hour; and changes of a machine.
            Self::Answers | Self::Arrivals => 24,
            // All sources that an agent tells of, in each state.
            Self::Sources => 256,
        }
    }
}

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

/// How often an agent said something else on one day.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Said {
    /// Days this machine runs: a clock that is set begins no other day.
    day: u64,
    count: u64,
}

impl State {
    /// An agent says something else; how many are over the limit of the day, this one with them. Zero: it is to be
    /// written.
    pub(super) fn over(&mut self, id: AgentId, news: News) -> u64 {
        let said = self.said.entry((id, news)).or_default();
        said.over(news, clock::boot_us())
    }
}

impl Said {
    fn over(&mut self, news: News, boot_us: u64) -> u64 {
        let day = boot_us / DAY_US;
        if day != self.day {
            *self = Self { day, count: 0 };
        }
        self.count += 1;
        self.count.saturating_sub(news.a_day())
    }
}

impl Agents {
    /// An agent came with something else; how many are over the limit of the day, this one with them. Zero: it is to be
    /// written.
    pub(crate) fn over(&self, id: AgentId, news: News) -> u64 {
        self.lock().over(id, news)
    }

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
                let counted = state.over(id, News::Answers);
                if counted > 0 {
                    if let Some(live) = state.live.get_mut(&id) {
                        live.reach(Limit::Answers, said_of_answers(counted));
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
pub(crate) fn said_of_answers(counted: u64) -> String {
    format!(
        "it changed its answer to its configuration more than {} times in a day; {counted} further answers of this day were counted and not written down",
        News::Answers.a_day()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_limit_of_a_day_is_counted_and_the_next_day_begins_anew() {
        let mut said = Said::default();
        let begin = 5 * DAY_US;
        for n in 0..100_u64 {
            let over = said.over(News::Answers, begin + n);
            assert_eq!(over, (n + 1).saturating_sub(24));
        }
        assert_eq!(said.over(News::Answers, begin + DAY_US), 0);
        assert_eq!(said.count, 1);
    }
}
