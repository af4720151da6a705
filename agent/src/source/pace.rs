//! How fast something may be taken: a second's worth at once, then as it comes back.

use std::time::{Duration, Instant};

/// Bytes a second.
#[derive(Debug)]
pub(super) struct Pace {
    per_s: u64,
    left: u64,
    since: Option<Instant>,
}

impl Pace {
    pub(super) fn new(per_s: u64) -> Self {
        Self {
            per_s,
            left: per_s,
            since: None,
        }
    }

    /// Whether nothing may be taken at `now`.
    pub(super) fn is_used_up(&mut self, now: Instant) -> bool {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_millis();
        let back = u64::try_from(passed)
            .unwrap_or(u64::MAX)
            .saturating_mul(self.per_s)
            / 1000;
        if back > 0 {
            self.left = self.left.saturating_add(back).min(self.per_s);
            self.since = Some(now);
        }
        self.left == 0
    }

    /// How much may be taken at `now`.
    pub(super) fn left(&mut self, now: Instant) -> u64 {
        self.is_used_up(now);
        self.left
    }

    /// So many bytes were taken; more than there were is a debt of nothing but this moment.
    pub(super) fn take(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }
}

/// Bytes a second that come out of compressed files, of all together: what took days to write is read in
/// minutes, and a file of few bytes that unpacks to many leaves the processor, the link and the server to the others.
pub(super) const UNPACKED_PER_S_MAX: u64 = 16 << 20;
/// Bytes a second of compressed files that are compared with what is known, which is nearly all that is done with them:
/// about a fifth of a processor.
pub(super) const COMPARED_PER_S_MAX: u64 = 64 << 20;
/// How soon it is looked again whether there is more to take.
pub(super) const PACE_INTERVAL: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_takes_no_more_than_its_bytes() {
        let start = crate::clock::now();
        let mut pace = Pace::new(1000);
        assert!(!pace.is_used_up(start));
        pace.take(1000);
        assert!(pace.is_used_up(start));
        let mut taken = 0;
        for ms in 1..=10_000 {
            while !pace.is_used_up(start + Duration::from_millis(ms)) {
                pace.take(1);
                taken += 1;
            }
        }
        assert_eq!(taken, 10_000);
        // What was not taken is no credit for later.
        assert!(!pace.is_used_up(start + Duration::from_secs(100)));
        pace.take(1000);
        assert!(pace.is_used_up(start + Duration::from_secs(100)));
    }
}
