//! How many of the statements that something is missing a package by a query shows of one agent.
//!
//! ```text
//! batch ─▶ lines that match: all │ other statements of a gap: so many of its agent, the first ones ─▶ the rest is counted
//! ```
//!
//! They are shown whatever the words of the query are, in every package that may be about them. An agent says as many as it
//! likes, four thousand of them in 300 bytes on the wire: without a bound one agent would make everybody's packages slow and long.

use std::collections::BTreeMap;

use scrinium_protocol::identity::{AgentId, StreamId};

use crate::index::lines::Line;
use crate::index::query::Query;

/// What is shown of every agent, while it is chosen.
#[derive(Default)]
pub(super) struct Budgets {
    used: BTreeMap<AgentId, Used>,
}

#[derive(Default)]
struct Used {
    gaps: usize,
    bytes: usize,
}

/// Where in each stream the statements end that are shown, and how many are left out.
#[derive(Default)]
pub(super) struct Ends {
    ends: BTreeMap<StreamId, At>,
    left_out: BTreeMap<AgentId, u64>,
}

/// A batch of a stream: its extent, and the sequence it begins with.
pub(super) type At = (usize, u64);

/// What a batch has of what is asked for.
#[derive(Default)]
pub(super) struct Seen {
    /// Something matches.
    pub(super) matches: bool,
    gaps: usize,
    bytes: usize,
}

impl Seen {
    pub(super) fn add(&mut self, query: &Query, line: &Line<'_>) {
        if is_only_gap(query, line) {
            self.gaps += 1;
            self.bytes += line.text.len();
        } else {
            self.matches = true;
        }
    }
}

impl Budgets {
    /// Whether a batch is shown. What an agent says is missing there is, as long as it has some left; the batch with which it
    /// runs out is the last.
    pub(super) fn take(
        &mut self,
        (agent, stream): (AgentId, StreamId),
        at: At,
        seen: &Seen,
        ends: &mut Ends,
    ) -> bool {
        if seen.gaps == 0 {
            return seen.matches;
        }
        let used = self.used.entry(agent).or_default();
        if used.gaps < GAPS_MAX && used.bytes < GAP_BYTES_MAX {
            used.gaps += seen.gaps;
            used.bytes += seen.bytes;
            return true;
        }
        ends.ends.entry(stream).or_insert(at);
        let gaps = u64::try_from(seen.gaps).unwrap_or(u64::MAX);
        *ends.left_out.entry(agent).or_default() += gaps;
        seen.matches
    }
}

impl Ends {
    /// Whether a line of a batch is shown.
    pub(super) fn shows(&self, query: &Query, stream: StreamId, at: At, line: &Line<'_>) -> bool {
        let is_behind = self.ends.get(&stream).is_some_and(|end| at >= *end);
        !is_behind || !is_only_gap(query, line)
    }

    /// Statements that are not shown, by agent.
    pub(super) fn left_out(&self) -> &BTreeMap<AgentId, u64> {
        &self.left_out
    }
}

/// Whether a line is there for what it says is missing, and not for its words.
fn is_only_gap(query: &Query, line: &Line<'_>) -> bool {
    line.is_gap && !query.matches(&line.text)
}

/// Statements of gaps of one agent in a package, and a batch more: an honest agent has some for each outage.
const GAPS_MAX: usize = 10_000;
/// The same in bytes of their text, and a batch more: an honest one is a sentence with a path.
const GAP_BYTES_MAX: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn line(text: &str, is_gap: bool) -> Line<'_> {
        Line {
            entries: 0..1,
            time_us: 1,
            claimed_us: None,
            is_gap,
            text: Cow::Borrowed(text.as_bytes()),
        }
    }

    #[test]
    fn one_agent_has_so_many_and_the_next_one_has_its_own() {
        let query = Query::parse("word").unwrap();
        let (one, other) = (AgentId([1; 16]), AgentId([2; 16]));
        let stream = |number| StreamId([number; 16]);
        let seen = |lines: &[(&str, bool)]| {
            let mut seen = Seen::default();
            for (text, is_gap) in lines {
                seen.add(&query, &line(text, *is_gap));
            }
            seen
        };
        let (mut budgets, mut ends) = (Budgets::default(), Ends::default());
        let many = vec![("gap: something", true); 4096];
        let mut shown = 0;
        for first in 0..10 {
            let at = (0, first * 4096);
            let is_shown = budgets.take((one, stream(1)), at, &seen(&many), &mut ends);
            shown += usize::from(is_shown);
        }
        assert_eq!(shown, GAPS_MAX.div_ceil(4096));
        assert_eq!(ends.left_out().get(&one), Some(&(7 * 4096)));
        // What matches is shown in any case, what is missing in another of its streams is not any more.
        let both = seen(&[("a word", false), ("gap: something", true)]);
        assert!(budgets.take((one, stream(2)), (3, 5), &both, &mut ends));
        let gap = line("gap: something", true);
        assert!(!ends.shows(&query, stream(2), (3, 5), &gap));
        assert!(ends.shows(&query, stream(2), (3, 4), &gap));
        assert!(ends.shows(&query, stream(2), (3, 5), &line("gap: a word", true)));
        assert!(ends.shows(&query, stream(2), (3, 5), &line("a word", false)));
        // Another agent's are.
        let few = seen(&[("gap: something", true)]);
        assert!(budgets.take((other, stream(3)), (0, 0), &few, &mut ends));
        assert!(ends.shows(&query, stream(3), (9, 9), &gap));
        // So it is with very long ones.
        let long = "x".repeat(GAP_BYTES_MAX);
        let long = seen(&[(&long, true)]);
        assert!(budgets.take((other, stream(3)), (0, 1), &long, &mut ends));
        assert!(!budgets.take((other, stream(3)), (0, 2), &few, &mut ends));
        assert_eq!(ends.left_out().get(&other), Some(&1));
        let nothing = seen(&[]);
        assert!(!budgets.take((other, stream(4)), (0, 0), &nothing, &mut ends));
    }
}
