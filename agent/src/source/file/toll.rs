//! What looks around cost a stream: one thread reads all streams, and whoever makes many names beside one of them, or
//! renames it all the while, must not take the time of the others.

use std::time::{Duration, Instant};

/// What the looks of a stream took, and when its next turn is.
#[derive(Default)]
pub(super) struct Toll {
    took: Duration,
    is_failed: bool,
    failed: u32,
    until: Option<Instant>,
}

impl Toll {
    /// A look took so long, and came to nothing if it `failed`.
    pub(super) fn add(&mut self, took: Duration, failed: bool) {
        self.took += took;
        self.is_failed |= failed;
    }

    /// A turn of the stream is over.
    pub(super) fn settle(&mut self, now: Instant) {
        let took = core::mem::take(&mut self.took);
        let cost = match took > FREE {
            true => took * TIMES,
            false => Duration::ZERO,
        };
        let wait = match core::mem::take(&mut self.is_failed) {
            true => {
                self.failed = (self.failed + 1).min(DOUBLED_MAX);
                cost.max(FAILED_FIRST * 2_u32.pow(self.failed - 1))
            }
            // Many turns need no look at all.
            false if took.is_zero() => return,
            false => {
                self.failed = 0;
                cost
            }
        };
        self.until = (!wait.is_zero()).then(|| now + wait.min(WAIT_MAX));
    }

    /// Whether it has to wait.
    pub(super) fn waits(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Whether it has to wait so long that people are to know.
    pub(super) fn is_long(&self, now: Instant) -> bool {
        self.until
            .is_some_and(|until| until.saturating_duration_since(now) >= LONG)
    }
}

/// What looks around may take in one turn and cost nothing: some thousand names.
const FREE: Duration = Duration::from_millis(50);
/// A stream whose looks took longer waits so many times as long: it has a twentieth of the thread's time at most.
const TIMES: u32 = 19;
/// How long a stream waits whose files were renamed faster than they were found; twice as long each time, so often.
const FAILED_FIRST: Duration = Duration::from_millis(250);
const DOUBLED_MAX: u32 = 8;
/// However long a look took: the files of the stream are rotated meanwhile, and may be gone then.
const WAIT_MAX: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_waits_for_what_its_looks_took_and_twice_as_long_each_time_they_fail() {
        let now = crate::clock::now();
        let waits = |toll: &Toll| {
            let times = (0..=40_000).step_by(250);
            let mut times = times.map(Duration::from_millis);
            times.find(|&passed| !toll.waits(now + passed)).unwrap()
        };
        let mut toll = Toll::default();
        toll.add(Duration::from_millis(30), false);
        toll.settle(now);
        assert!(!toll.waits(now));
        toll.add(Duration::from_millis(500), false);
        toll.settle(now);
        assert_eq!(waits(&toll), Duration::from_millis(9500));
        assert!(toll.is_long(now));
        let mut before = Duration::ZERO;
        for _ in 0..20 {
            toll.add(Duration::from_millis(5), true);
            toll.settle(now);
            let waited = waits(&toll);
            let doubled = (before * 2).clamp(FAILED_FIRST, WAIT_MAX);
            assert_eq!(waited, doubled);
            before = waited;
        }
        toll.add(Duration::from_millis(5), false);
        toll.settle(now);
        assert!(!toll.waits(now));
    }
}
