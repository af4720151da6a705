//! What agents say that is written down, so often a day: an agent that says something else again and again fills neither
//! the catalogue nor the audit trail, and makes no alarm for each.
//!
//! ```text
//! said ─▶ the same as before ─▶ nothing
//!     └─▶ something else ─▶ written, [News::a_day] times ─▶ counted, shown, and in the trail as one sum an hour
//! ```
//!
//! A kill loses the sum of the hour that runs; a stop writes it.

use anyhow::Result;
use scrinium_protocol::identity::{AgentId, Epoch};
use scrinium_protocol::sl::message::ConfigurationAnswer;

use super::live::Limit;
use super::{Agents, State};
use crate::clock::{self, DAY_US};
use crate::said::{Said as Sentence, said};

/// What costs a write, an entry of the trail or an alarm each time an agent says something else.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum News {
    /// Its answer to its configuration, aside from the first one to each version.
    Answers,
    /// A source that needs a person.
    Sources,
    /// What it says it suffers from.
    Troubles,
    /// Its cache is full.
    Caches,
    /// It came with another machine, or with a state of before.
    Arrivals,
    /// A record of its session was altered, doubled or left out on the way.
    Interference,
    /// It showed a receipt for entries that are missing.
    Unmet,
    /// A machine that a person is to decide about, other than the one before.
    Quarantines,
    /// It began a new epoch: further ones are not let in.
    Epochs,
}

impl News {
    /// How many are written in a day.
    pub(crate) fn a_day(self) -> u64 {
        match self {
            // A configuration that is taken up, taken back and taken up again every hour; changes of a machine; what an agent
            // suffers from, and has room again, every hour.
            Self::Answers
            | Self::Arrivals
            | Self::Interference
            | Self::Troubles
            | Self::Caches
            | Self::Quarantines
            | Self::Epochs => 24,
            // All sources that an agent tells of, in each state.
            Self::Sources => 256,
            // A server that was restored has to name what it lost: of so many streams each, of all others how many.
            Self::Unmet => 1024,
        }
    }

    /// What a sum of them is called in the trail.
    pub(crate) fn action(self) -> &'static str {
        match self {
            Self::Answers => "configured, in sum",
            Self::Sources => "sources in trouble, in sum",
            Self::Troubles => "agent in trouble, in sum",
            Self::Caches => "cache of an agent full, in sum",
            Self::Arrivals => "machine changed or state of before, in sum",
            Self::Interference => "interference on the wire, in sum",
            Self::Unmet => "receipts for entries that are missing, in sum",
            Self::Quarantines => "machines that wait for approval, in sum",
            Self::Epochs => "new epochs refused, in sum",
        }
    }
}

/// What was counted of an agent and is no entry of its own.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct NewsSum {
    /// Its name; its id, if it was removed since.
    pub(crate) agent: String,
    pub(crate) news: News,
    pub(crate) count: u64,
    /// When the first and the last of them came, Unix µs.
    pub(crate) first_us: u64,
    pub(crate) last_us: u64,
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
    unsummed: Unsummed,
}

/// What was counted and is in no sum yet.
#[derive(Clone, Copy, Debug, Default)]
struct Unsummed {
    count: u64,
    /// When the first of them came, by the time this machine runs.
    begun_us: u64,
    first_us: u64,
    last_us: u64,
}

impl State {
    /// An agent says something else; how many are over the limit of the day, this one with them. Zero: it is to be
    /// written.
    pub(super) fn over(&mut self, id: AgentId, news: News) -> u64 {
        let said = self.said.entry((id, news)).or_default();
        said.over(news, clock::boot_us(), clock::unix_us())
    }

    /// An agent was removed; what was counted of it is still to be told.
    pub(super) fn forget_said(&mut self, id: AgentId) {
        let is_told = |said: &Said| said.unsummed.count == 0;
        self.said
            .retain(|(agent, _), said| *agent != id || !is_told(said));
    }
}

impl Said {
    fn over(&mut self, news: News, boot_us: u64, now_us: u64) -> u64 {
        let day = boot_us / DAY_US;
        if day != self.day {
            (self.day, self.count) = (day, 0);
        }
        self.count += 1;
        let over = self.count.saturating_sub(news.a_day());
        if over > 0 {
            let unsummed = &mut self.unsummed;
            if unsummed.count == 0 {
                (unsummed.begun_us, unsummed.first_us) = (boot_us, now_us);
            }
            unsummed.count += 1;
            unsummed.last_us = now_us;
        }
        over
    }

    /// What is to be summed up now: what began an hour ago, or all.
    fn take_due(&mut self, boot_us: u64, all: bool) -> Option<Unsummed> {
        let unsummed = self.unsummed;
        let is_over = boot_us.saturating_sub(unsummed.begun_us) >= SUM_US;
        if unsummed.count == 0 || !(all || is_over) {
            return None;
        }
        self.unsummed = Unsummed::default();
        Some(unsummed)
    }
}

impl Agents {
    /// An agent came with something else; how many are over the limit of the day, this one with them. Zero: it is to be
    /// written.
    pub(crate) fn over(&self, id: AgentId, news: News) -> u64 {
        self.lock().over(id, news)
    }

    /// A stream of an agent begins an epoch that it never had. All its streams begin the same one, each with its next
    /// entries; how many are over the limit of the day.
    pub(crate) fn begins_epoch(&self, id: AgentId, epoch: Epoch) -> u64 {
        let mut state = self.lock();
        let live = state.live.entry(id).or_default();
        if live.epoch == Some(epoch) {
            return 0;
        }
        let over = state.over(id, News::Epochs);
        if over == 0 {
            state.live.entry(id).or_default().epoch = Some(epoch);
        }
        over
    }

    /// The sums that are due, for the trail; of all that was counted, when `all` says so.
    pub(crate) fn news_due(&self, all: bool) -> Vec<NewsSum> {
        let boot_us = clock::boot_us();
        let mut state = self.lock();
        let State { agents, said, .. } = &mut *state;
        let mut due = Vec::new();
        said.retain(|(id, news), said| {
            let agent = agents.get(id);
            if let Some(unsummed) = said.take_due(boot_us, all) {
                due.push(NewsSum {
                    agent: agent.map_or_else(|| id.to_string(), |agent| agent.name.clone()),
                    news: *news,
                    count: unsummed.count,
                    first_us: unsummed.first_us,
                    last_us: unsummed.last_us,
                });
            }
            agent.is_some() || said.unsummed.count > 0
        });
        due
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
pub(crate) fn said_of_answers(counted: u64) -> Sentence {
    said!("agent_says.answers", News::Answers.a_day(), counted)
}

/// What is over the limit of a day is one entry so often, µs.
const SUM_US: u64 = 3_600_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_the_limit_of_a_day_is_counted_and_the_next_day_begins_anew() {
        let mut said = Said::default();
        let begin = 5 * DAY_US;
        for n in 0..100_u64 {
            let over = said.over(News::Answers, begin + n, 1000 + n);
            assert_eq!(over, (n + 1).saturating_sub(24));
        }
        assert_eq!(said.over(News::Answers, begin + DAY_US, 5000), 0);
        assert_eq!(said.count, 1);
    }
    #[test]
    fn what_is_not_written_is_in_a_sum_an_hour_and_none_is_left_out() {
        let mut said = Said::default();
        let mut sums = Vec::new();
        // Ten a second, for a day.
        for n in 0..864_000_u64 {
            let boot_us = 5 * DAY_US + n * 100_000;
            said.over(News::Interference, boot_us, n);
            sums.extend(said.take_due(boot_us, false));
        }
        assert_eq!(sums.len(), 23);
        let rest = said.take_due(0, true).unwrap();
        let summed = sums.iter().chain([&rest]).map(|sum| sum.count).sum::<u64>();
        assert_eq!(summed + 24, 864_000);
        assert_eq!((sums[0].first_us, rest.last_us), (24, 863_999));
        assert!(said.take_due(u64::MAX, true).is_none());
    }
}
