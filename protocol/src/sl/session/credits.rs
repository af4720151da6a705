//! How much of one lane may be on the way.
//!
//! What waits on the way makes everything newer, and the other lane, wait behind it. So a lane uses no
//! more of its credits than the link empties in a moment: less after an ack that took long, more after
//! quick ones.

use std::time::{Duration, Instant};

/// The credits of one lane.
#[derive(Debug, Default)]
pub(super) struct Credits {
    in_flight: u64,
    /// What the server allows.
    max: u64,
    /// What is used of it now.
    used: u64,
    /// The quickest ack so far: what the link takes when nothing waits on it.
    quickest: Option<Duration>,
    /// Batches sent before this say nothing about the credits since.
    shrunk_at: Option<Instant>,
}

impl Credits {
    pub(super) fn new(max: u32) -> Self {
        Self {
            max: u64::from(max),
            used: u64::from(max).min(START),
            ..Self::default()
        }
    }

    /// Whether `len` more bytes may go. A lane always takes one batch, however small its credits.
    pub(super) fn take(&self, len: u64) -> bool {
        self.in_flight == 0 || self.in_flight + len <= self.used
    }

    pub(super) fn sent(&mut self, len: u64) {
        self.in_flight += len;
    }

    /// `len` bytes sent at `sent_at` were acked.
    pub(super) fn acked(&mut self, len: u64, sent_at: Instant, now: Instant) {
        self.in_flight -= len;
        let delay = now.saturating_duration_since(sent_at);
        let quickest = self.quickest.map_or(delay, |quickest| quickest.min(delay));
        self.quickest = Some(quickest);
        // A slow server, and not a narrow link, may be what takes long: the same answer is right.
        let waited = delay.saturating_sub(quickest.min(QUICKEST_MAX));
        if waited > WAIT_MAX {
            if self.shrunk_at.is_none_or(|at| sent_at >= at) {
                self.used = (self.used / 2).max(1);
                self.shrunk_at = Some(now);
            }
        } else if waited < WAIT_MAX / 2 {
            self.used = (self.used + len).min(self.max);
        }
    }
}

/// A batch may wait on the way for this long.
const WAIT_MAX: Duration = Duration::from_millis(600);
/// More than this is no way, it is a queue.
const QUICKEST_MAX: Duration = Duration::from_secs(2);
/// Credits used before the first ack.
const START: u64 = 512 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_acks_shrink_what_is_used_once_a_round_and_quick_ones_let_it_grow() {
        #[expect(clippy::disallowed_methods, reason = "the epoch of virtual time")]
        let begin = Instant::now();
        let mut credits = Credits::new(4 << 20);
        let at = |ms| begin + Duration::from_millis(ms);
        assert!(
            credits.take(512 << 10) && credits.take(10 << 20),
            "one batch always goes"
        );
        let round = |credits: &mut Credits, begin_ms: u64, delay_ms: u64| {
            for _ in 0..8 {
                credits.sent(64 << 10);
            }
            for _ in 0..8 {
                credits.acked(64 << 10, at(begin_ms), at(begin_ms + delay_ms));
            }
        };
        round(&mut credits, 0, 10);
        assert_eq!(credits.used, 1 << 20);
        round(&mut credits, 1000, 400);
        assert_eq!(credits.used, 1 << 20, "neither quick nor slow");
        round(&mut credits, 2000, 900);
        assert_eq!(
            credits.used,
            512 << 10,
            "eight slow acks of one round count once"
        );
        for n in 0..40 {
            round(&mut credits, 10_000 * n, 5_000);
        }
        credits.sent(1);
        assert!(!credits.take(1));
        credits.acked(1, at(500_000), at(500_001));
        for n in 60..120 {
            round(&mut credits, 10_000 * n, 10);
        }
        assert_eq!(credits.used, 4 << 20);
    }

    #[test]
    fn a_long_way_is_no_queue() {
        #[expect(clippy::disallowed_methods, reason = "the epoch of virtual time")]
        let begin = Instant::now();
        let mut credits = Credits::new(4 << 20);
        for _ in 0..100 {
            credits.sent(64 << 10);
            credits.acked(64 << 10, begin, begin + Duration::from_millis(800));
        }
        assert_eq!(credits.used, 4 << 20);
    }
}
