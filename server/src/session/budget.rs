//! How many streams one agent may have, how long their names may be, and how fast new ones may come.
//!
//! ```text
//! stream opened ─▶ remembered by the session ─▶ first batch ─▶ within the budget: durable, with that batch
//!                                                       └────▶ over it: the agent is told, an alarm, nothing is written
//! ```
//!
//! A stream that was opened costs nothing on the disk before its first entry. Streams that exist go on whatever the
//! budget says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use scrinium_protocol::identity::{AgentId, StreamId};

use crate::archive::Totals;
use crate::catalogue::records::StreamRecord;
use crate::config::AgentStreams;

/// Which limit an agent has reached, and how far that is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum OverBudget {
    #[error("limits.agent_streams_max: an agent may have {0} streams")]
    Streams(usize),
    #[error("the names of an agent's streams may have {NAME_BYTES_MAX} bytes together")]
    Names,
    #[error("{OPENED_MAX} streams may be opened that have no entry yet")]
    Opened,
}

/// How fast new streams of each agent came lately: another connection does not begin anew. Of 20,000 agents 1 MB.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates(Arc<Mutex<BTreeMap<AgentId, Rate>>>);

/// New streams that may come now; refilled with time. Below zero, nothing more is read for a while.
#[derive(Clone, Copy, Debug)]
struct Rate {
    tokens: f64,
    filled_at: Instant,
}

impl Rates {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<AgentId, Rate>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, agent: AgentId) -> Option<Rate> {
        self.lock().get(&agent).copied()
    }

    fn keep(&self, agent: AgentId, rate: Rate) {
        self.lock().insert(agent, rate);
    }
}

/// What one agent has of its budget.
pub(crate) struct Budget {
    agent: AgentId,
    rates: Rates,
    limits: AgentStreams,
    streams: usize,
    name_bytes: usize,
    /// Opened in this session, without an entry yet.
    opened: BTreeMap<StreamId, StreamRecord>,
    rate: Rate,
}

impl Budget {
    /// `totals` are those of the streams that exist.
    pub(crate) fn new(
        agent: AgentId,
        rates: Rates,
        limits: AgentStreams,
        totals: Totals,
        now: Instant,
    ) -> Self {
        let full = Rate {
            tokens: per_second(limits) * BURST_S,
            filled_at: now,
        };
        let mut own = Self {
            agent,
            limits,
            streams: totals.streams,
            name_bytes: totals.name_bytes,
            opened: BTreeMap::new(),
            rate: rates.of(agent).unwrap_or(full),
            rates,
        };
        own.refill(now);
        own
    }

    /// Remembers a stream that is not archived.
    pub(crate) fn open(&mut self, stream: StreamRecord) -> Result<(), OverBudget> {
        if self.opened.len() >= OPENED_MAX && !self.opened.contains_key(&stream.id) {
            return Err(OverBudget::Opened);
        }
        self.opened.insert(stream.id, stream);
        Ok(())
    }

    /// A batch of a stream came. Returns the stream when it is its first one, and the budget allows it.
    pub(crate) fn take(
        &mut self,
        id: StreamId,
        now: Instant,
    ) -> Result<Option<StreamRecord>, OverBudget> {
        let Some(stream) = self.opened.remove(&id) else {
            return Ok(None);
        };
        if self.streams >= self.limits.max {
            return Err(OverBudget::Streams(self.limits.max));
        }
        if self.name_bytes + stream.name.len() > NAME_BYTES_MAX {
            return Err(OverBudget::Names);
        }
        self.refill(now);
        self.rate.tokens -= 1.0;
        self.rates.keep(self.agent, self.rate);
        self.streams += 1;
        self.name_bytes += stream.name.len();
        Ok(Some(stream))
    }

    /// Until when nothing more is to be read: new streams came too fast.
    pub(crate) fn waits_until(&self) -> Option<Instant> {
        let missing = -self.rate.tokens;
        let wait = || Duration::from_secs_f64(missing / per_second(self.limits));
        (missing > 0.0).then(|| self.rate.filled_at + wait())
    }

    /// Time has passed.
    pub(crate) fn refill(&mut self, now: Instant) {
        let Rate { tokens, filled_at } = &mut self.rate;
        let passed = now.saturating_duration_since(*filled_at).as_secs_f64();
        let rate = per_second(self.limits);
        *tokens = (*tokens + passed * rate).min(rate * BURST_S);
        *filled_at = now;
    }
}

fn per_second(limits: AgentStreams) -> f64 {
    let per_minute = u32::try_from(limits.new_per_minute_max).unwrap_or(u32::MAX);
    f64::from(per_minute.max(1)) / 60.0
}

/// Bytes of all names of one agent: 250,000 paths of 134 bytes. They are in memory, twice.
const NAME_BYTES_MAX: usize = 32 << 20;
/// Streams without an entry in one session: with the longest names 4 MiB. An agent opens one, then sends its batch.
const OPENED_MAX: usize = 1024;
/// So many seconds' worth of new streams may come at once.
const BURST_S: f64 = 60.0;

#[cfg(test)]
mod tests {
    use scrinium_protocol::identity::StreamKind;

    use super::*;
    use crate::archive::log::new_stream;
    use crate::clock;

    #[test]
    fn a_stream_counts_with_its_first_batch_and_the_one_over_the_limit_is_refused() {
        let now = clock::now();
        let mut budget = budget(2, 60_000, now);
        for n in 0..3 {
            budget.open(stream(n, "x")).unwrap();
        }
        assert!(budget.take(stream(0, "x").id, now).unwrap().is_some());
        assert!(
            budget.take(stream(0, "x").id, now).unwrap().is_none(),
            "once"
        );
        assert!(budget.take(stream(1, "x").id, now).unwrap().is_some());
        let over = budget.take(stream(2, "x").id, now).unwrap_err();
        assert_eq!(over, OverBudget::Streams(2));
        assert!(over.to_string().contains("limits.agent_streams_max"));
        // Those that exist go on.
        assert!(budget.take(stream(0, "x").id, now).unwrap().is_none());
    }

    #[test]
    fn opened_streams_and_bytes_of_names_are_bounded() {
        let now = clock::now();
        let mut budget = budget(1 << 20, 1 << 20, now);
        let opened = (0..5000).take_while(|&n| budget.open(stream(n, "x")).is_ok());
        assert_eq!(opened.count(), OPENED_MAX);
        let long = "x".repeat(4096);
        let mut budget = budget_of_names(now);
        let mut taken = 0;
        let refused = loop {
            let stream = stream(taken, &long);
            let id = stream.id;
            budget.open(stream).unwrap();
            match budget.take(id, now) {
                Ok(_) => taken += 1,
                Err(over) => break over,
            }
        };
        assert_eq!(
            (refused, taken as usize * 4096),
            (OverBudget::Names, NAME_BYTES_MAX)
        );
    }

    #[test]
    fn new_streams_that_come_too_fast_are_waited_for_and_not_refused() {
        let mut now = clock::now();
        let mut budget = budget(1 << 20, 60, now);
        for n in 0..65 {
            budget.open(stream(n, "x")).unwrap();
            budget.take(stream(n, "x").id, now).unwrap().unwrap();
        }
        let until = budget.waits_until().unwrap();
        assert_eq!((until - now).as_secs(), 5);
        now = until;
        budget.refill(now);
        assert_eq!(budget.waits_until(), None);
    }

    #[test]
    fn who_connects_again_goes_on_with_the_rate_that_was_left() {
        let now = clock::now();
        let rates = Rates::default();
        let limits = AgentStreams {
            max: 1 << 20,
            new_per_minute_max: 60,
        };
        for n in 0..65 {
            let mut budget = budget_with(rates.clone(), limits, now);
            budget.open(stream(n, "x")).unwrap();
            budget.take(stream(n, "x").id, now).unwrap().unwrap();
        }
        let waits = |at: Instant| budget_with(rates.clone(), limits, at).waits_until();
        assert_eq!((waits(now).unwrap() - now).as_secs(), 5);
        assert_eq!(waits(now + Duration::from_secs(6)), None);
        let other = Budget::new(AgentId([2; 16]), rates, limits, Totals::default(), now);
        assert_eq!(other.waits_until(), None);
    }

    fn budget(max: usize, new_per_minute_max: usize, now: Instant) -> Budget {
        let limits = AgentStreams {
            max,
            new_per_minute_max,
        };
        budget_with(Rates::default(), limits, now)
    }

    fn budget_with(rates: Rates, limits: AgentStreams, now: Instant) -> Budget {
        Budget::new(AgentId([1; 16]), rates, limits, Totals::default(), now)
    }

    fn budget_of_names(now: Instant) -> Budget {
        budget(1 << 20, 1 << 20, now)
    }

    fn stream(n: u32, name: &str) -> StreamRecord {
        let agent = AgentId([1; 16]);
        let id = StreamId::derive(agent, StreamKind::File, &n.to_string());
        new_stream(id, agent, StreamKind::File, name.to_owned())
    }
}
