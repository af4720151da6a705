//! Days that count otherwise: what was received while server time was behind the true time.
//!
//! After a start of the machine server time goes on where it stood, and nobody knows yet how long the machine was off.
//! Once the time is confirmed, how far server time was behind is known, and age counts from the true day of receipt.

use crate::catalogue::records::TimeSpan;
use crate::clock::{DAY_US, Day};

/// The spans, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Spans(Vec<TimeSpan>);

impl Spans {
    pub(crate) fn new(spans: Vec<TimeSpan>) -> Self {
        Self(spans)
    }

    pub(crate) fn list(&self) -> &[TimeSpan] {
        &self.0
    }

    /// Adds the last one, if anything depends on it: a day, or a delay; whether it does.
    pub(crate) fn add(&mut self, span: TimeSpan) -> bool {
        let true_end_us = span.to_us.saturating_add(span.behind_us);
        if Day::of(span.from_us) == Day::of(true_end_us) && span.behind_us < TOLD_US_MIN {
            return false;
        }
        self.0.push(span);
        if self.0.len() > SPANS_MAX
            && let [first, second, ..] = *self.0.as_slice()
        {
            // As one, the two keep what came between them longer, never shorter.
            self.0.splice(
                ..2,
                [TimeSpan {
                    from_us: first.from_us,
                    to_us: second.to_us.max(first.to_us),
                    behind_us: first.behind_us.max(second.behind_us),
                }],
            );
        }
        true
    }

    /// By how much server time jumped forward between two of its times.
    pub(crate) fn jumped_between_us(&self, from_us: u64, to_us: u64) -> u64 {
        let after_us = to_us.saturating_add(1);
        self.jumped_us(from_us)
            .saturating_sub(self.jumped_us(after_us))
    }

    /// By how much server time jumped forward after `since_us`.
    pub(crate) fn jumped_us(&self, since_us: u64) -> u64 {
        let after = self.0.iter().filter(|span| span.to_us >= since_us);
        after.fold(0, |sum: u64, span| sum.saturating_add(span.behind_us))
    }

    /// When something was truly received that carries a server time, as far as is known by now.
    pub(crate) fn true_receipt_us(&self, received_us: u64) -> u64 {
        let mut containing = self.0.iter().filter(|span| span.contains(received_us));
        let behind_us = containing.next().map_or(0, |span| span.behind_us);
        received_us.saturating_add(behind_us)
    }

    /// The day on which something was received that carries a server time.
    pub(crate) fn day_of_receipt(&self, received_us: u64) -> Day {
        Day::of(self.true_receipt_us(received_us))
    }

    /// The day from which the age of a group of `day` counts: the last true day of what may be in it.
    pub(crate) fn counted_from(&self, day: Day) -> Day {
        let (first_us, last_us) = (day.begin_us(), day.begin_us().saturating_add(DAY_US - 1));
        let touching = self
            .0
            .iter()
            .filter(|span| span.from_us <= last_us && first_us <= span.to_us);
        let ends = touching.map(|span| {
            let last_us = span.to_us.min(last_us);
            Day::of(last_us.saturating_add(span.behind_us))
        });
        ends.fold(day, Day::max)
    }
}

impl TimeSpan {
    fn contains(&self, time_us: u64) -> bool {
        (self.from_us..=self.to_us).contains(&time_us)
    }
}

/// Jumps of less are too short to be remembered for themselves.
const TOLD_US_MIN: u64 = 600_000_000;
/// Past this many the oldest two become one.
const SPANS_MAX: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(hours: u64) -> u64 {
        hours * 3_600_000_000
    }

    #[test]
    fn what_came_while_the_time_was_behind_counts_from_its_true_day() {
        let mut spans = Spans::default();
        // Day 10, 20:00 to 23:00; the machine had been off for 30 days and two hours.
        let span = TimeSpan {
            from_us: hours(10 * 24 + 20),
            to_us: hours(10 * 24 + 23),
            behind_us: hours(30 * 24 + 2),
        };
        assert!(spans.add(span));
        assert_eq!(spans.day_of_receipt(span.from_us - 1), Day(10));
        assert_eq!(spans.day_of_receipt(span.from_us), Day(40));
        assert_eq!(spans.day_of_receipt(span.to_us), Day(41));
        assert_eq!(spans.day_of_receipt(span.to_us + 1), Day(10));
        assert_eq!(spans.counted_from(Day(10)), Day(41));
        assert_eq!(spans.counted_from(Day(9)), Day(9));
        assert_eq!(spans.counted_from(Day(11)), Day(11));
        // A short stop within a day leaves nothing.
        let short = TimeSpan {
            from_us: hours(50 * 24 + 8),
            to_us: hours(50 * 24 + 9),
            behind_us: TOLD_US_MIN - 1,
        };
        assert!(!spans.add(short));
        assert_eq!(spans.list().len(), 1);
        // A delay does not get shorter by what server time jumped meanwhile.
        assert_eq!(spans.jumped_us(span.to_us + 1), 0);
        assert_eq!(spans.jumped_us(span.from_us), span.behind_us);
    }

    #[test]
    fn very_many_spans_become_fewer_and_none_keeps_shorter_for_it() {
        let mut spans = Spans::default();
        let mut all = Vec::new();
        for n in 0..SPANS_MAX as u64 + 10 {
            let span = TimeSpan {
                from_us: hours(24 * (10 + 3 * n)),
                to_us: hours(24 * (10 + 3 * n) + 1),
                behind_us: hours(24 + n % 7),
            };
            assert!(spans.add(span));
            all.push(span);
        }
        assert_eq!(spans.list().len(), SPANS_MAX);
        for span in all {
            let alone = Spans::new(vec![span]);
            let day = Day::of(span.from_us);
            assert!(spans.counted_from(day) >= alone.counted_from(day));
        }
    }
}
