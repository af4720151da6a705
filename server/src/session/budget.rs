//! How many streams one agent may have, how long their names may be, and how fast new ones may come.
//!
//! ```text
//! stream opened ─▶ remembered by the session ─▶ first batch ─▶ within the budget: durable, with that batch
//!                                                       ├────▶ too fast: it waits (`held.rs`), everything else goes on
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
    #[error("the bookmarks of an agent's streams may have {BOOKMARK_BYTES_MAX} bytes together")]
    Bookmarks,
    #[error("{OPENED_MAX} streams may be opened that have no entry yet")]
    Opened,
}

/// How fast new streams of each agent came lately: another connection does not begin anew. Of 20,000 agents 1 MB.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates(Arc<Mutex<BTreeMap<AgentId, Rate>>>);

/// What is to be done with a batch.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Its stream is known.
    Known,
    /// It is the first one of a stream that may be.
    New(StreamRecord),
    /// It is the first one of a stream that may be later.
    Later(StreamRecord),
}

/// New streams that may come now; refilled with time.
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
    bookmark_bytes: usize,
    /// Of streams that moved in this session, those that wait for the writer too: how long their bookmarks are. 24 bytes for
    /// each stream that the agent may have.
    bookmarks: BTreeMap<StreamId, usize>,
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
            bookmark_bytes: totals.bookmark_bytes,
            bookmarks: BTreeMap::new(),
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

    /// A batch of a stream came.
    pub(crate) fn take(&mut self, id: StreamId, now: Instant) -> Result<Taken, OverBudget> {
        let Some(stream) = self.opened.remove(&id) else {
            return Ok(Taken::Known);
        };
        Ok(match self.admit(&stream, now)? {
            true => Taken::New(stream),
            false => Taken::Later(stream),
        })
    }

    /// Whether a new stream may be now; it counts from then on.
    pub(crate) fn admit(
        &mut self,
        stream: &StreamRecord,
        now: Instant,
    ) -> Result<bool, OverBudget> {
        if self.streams >= self.limits.max {
            return Err(OverBudget::Streams(self.limits.max));
        }
        if self.name_bytes + stream.name.len() > NAME_BYTES_MAX {
            return Err(OverBudget::Names);
        }
        self.refill(now);
        if self.rate.tokens < 1.0 {
            return Ok(false);
        }
        self.rate.tokens -= 1.0;
        self.rates.keep(self.agent, self.rate);
        self.streams += 1;
        self.name_bytes += stream.name.len();
        Ok(true)
    }

    /// A batch brings the bookmark of its stream, in place of the one it had; `known` says how long that is in the
    /// archive. One that takes no more room is always taken.
    pub(crate) fn bookmark(
        &mut self,
        id: StreamId,
        len: usize,
        known: impl FnOnce() -> usize,
    ) -> Result<(), OverBudget> {
        let before = *self.bookmarks.entry(id).or_insert_with(known);
        let bytes = self.bookmark_bytes.saturating_sub(before) + len;
        if len > before && bytes > BOOKMARK_BYTES_MAX {
            return Err(OverBudget::Bookmarks);
        }
        self.bookmark_bytes = bytes;
        self.bookmarks.insert(id, len);
        Ok(())
    }

    /// When the next new stream may be that is refused now.
    pub(crate) fn next_at(&self) -> Instant {
        let missing = (1.0 - self.rate.tokens).max(0.0);
        let wait = Duration::from_secs_f64(missing / per_second(self.limits));
        self.rate.filled_at + wait.max(STEP_MIN)
    }

    /// How many new streams an agent may have in a minute.
    pub(crate) fn per_minute(&self) -> usize {
        self.limits.new_per_minute_max
    }

    /// Time has passed.
    fn refill(&mut self, now: Instant) {
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
/// Bytes of all bookmarks of one agent, in memory: 250,000 files have some 25 MiB of them.
const BOOKMARK_BYTES_MAX: usize = 64 << 20;
/// Streams without an entry in one session: with the longest names 4 MiB. An agent opens one, then sends its batch.
const OPENED_MAX: usize = 1024;
/// New streams that wait are looked at so often at most: at the usual pace 20 of them may be each time.
const STEP_MIN: Duration = Duration::from_millis(20);
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
        let take = |budget: &mut Budget, n| budget.take(stream(n, "x").id, now).unwrap();
        assert!(matches!(take(&mut budget, 0), Taken::New(_)));
        assert!(matches!(take(&mut budget, 0), Taken::Known), "once");
        assert!(matches!(take(&mut budget, 1), Taken::New(_)));
        let over = budget.take(stream(2, "x").id, now).unwrap_err();
        assert_eq!(over, OverBudget::Streams(2));
        assert!(over.to_string().contains("limits.agent_streams_max"));
        // Those that exist go on.
        assert!(matches!(take(&mut budget, 0), Taken::Known));
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
    fn bytes_of_bookmarks_are_bounded_and_one_in_place_of_another_is_counted_once() {
        let now = clock::now();
        let mut budget = budget(1 << 20, 1 << 20, now);
        let id = |n: u32| stream(n, "x").id;
        for _ in 0..100_000 {
            budget.bookmark(id(0), 1024, || 0).unwrap();
        }
        let most = BOOKMARK_BYTES_MAX / 1024;
        let taken = (1..100_000).take_while(|&n| budget.bookmark(id(n), 1024, || 0).is_ok());
        assert_eq!(taken.count(), most - 1);
        let over = budget.bookmark(id(100_000), 1, || 0).unwrap_err();
        assert_eq!(over, OverBudget::Bookmarks);
        // Those that exist go on, and what became shorter makes room.
        budget.bookmark(id(7), 1024, || 0).unwrap();
        budget.bookmark(id(7), 24, || 0).unwrap();
        budget.bookmark(id(100_000), 1000, || 0).unwrap();
        assert!(budget.bookmark(id(7), 25, || 0).is_err());
        // What the archive has of a stream that did not move yet is among the bytes already.
        let totals = Totals {
            bookmark_bytes: BOOKMARK_BYTES_MAX,
            ..Totals::default()
        };
        let limits = budget.limits;
        let mut budget = Budget::new(AgentId([1; 16]), Rates::default(), limits, totals, now);
        assert!(budget.bookmark(id(1), 1, || 0).is_err());
        assert!(budget.bookmark(id(2), 1024, || 1024).is_ok());
    }

    #[test]
    fn new_streams_that_come_too_fast_wait_their_turn_and_are_not_refused() {
        let now = clock::now();
        let mut budget = budget(1 << 20, 60, now);
        let mut later = Vec::new();
        for n in 0..65 {
            budget.open(stream(n, "x")).unwrap();
            match budget.take(stream(n, "x").id, now).unwrap() {
                Taken::New(_) => assert!(n < 60, "{n}"),
                Taken::Later(stream) => later.push(stream),
                Taken::Known => panic!("it is new"),
            }
        }
        assert_eq!(later.len(), 5);
        for (n, stream) in later.iter().enumerate() {
            let at = budget.next_at();
            let waited = at.duration_since(now).as_secs_f64();
            assert!((waited - (n as f64 + 1.0)).abs() < 0.05, "{n}: {waited}");
            assert!(
                !budget
                    .admit(stream, at - Duration::from_millis(500))
                    .unwrap()
            );
            assert!(budget.admit(stream, at).unwrap());
        }
    }

    #[test]
    fn who_connects_again_goes_on_with_the_rate_that_was_left() {
        let now = clock::now();
        let rates = Rates::default();
        let limits = AgentStreams {
            max: 1 << 20,
            new_per_minute_max: 60,
        };
        for n in 0..60 {
            let mut budget = budget_with(rates.clone(), limits, now);
            assert!(budget.admit(&stream(n, "x"), now).unwrap());
        }
        let may = |at: Instant| {
            let mut budget = budget_with(rates.clone(), limits, at);
            budget.admit(&stream(99, "x"), at).unwrap()
        };
        assert!(!may(now));
        assert!(may(now + Duration::from_secs(2)));
        let mut other = Budget::new(AgentId([2; 16]), rates, limits, Totals::default(), now);
        assert!(other.admit(&stream(0, "x"), now).unwrap());
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
