//! How patient we are with a place that checkpoints go to: when it is tried again, and when that it fails is over.
//!
//! A place that takes one checkpoint and not the next would begin and end an alarm with each, and be tried as if it had never
//! failed. So one success takes back one failure, and an alarm that comes back soon after it was over takes longer to be over.

use std::time::{Duration, Instant};

/// Of one place.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Failures that no success took back, [`FAILURES_MAX`] at most.
    failures: u32,
    /// It is not tried before.
    free_at: Option<Instant>,
    /// It has taken everything since then.
    good_since: Option<Instant>,
    /// It is known not to work, and how often it has failed since.
    alarmed: Option<u64>,
    /// When it was over last.
    over_at: Option<Instant>,
    /// How long it must take everything until it is over.
    calm: Duration,
}

impl Patience {
    /// One whose alarm stands already, if it does: the server was restarted.
    pub(super) fn new(is_alarmed: bool) -> Self {
        Self {
            alarmed: is_alarmed.then_some(0),
            ..Self::default()
        }
    }

    /// When it may be tried again; none: at once.
    pub(super) fn free_at(&self) -> Option<Instant> {
        self.free_at
    }

    /// It failed. Whether people are to be told: the first time, and then each time that it has become twice as often.
    pub(super) fn failed(&mut self, now: Instant) -> bool {
        let wait = RETRY.saturating_mul(1 << self.failures.min(FAILURES_MAX));
        self.failures = self.failures.saturating_add(1).min(FAILURES_MAX);
        self.free_at = Some(now + wait.min(RETRY_MAX));
        self.good_since = None;
        if self.alarmed.is_none() {
            let is_back = self.over_at.is_some_and(|over_at| {
                now.duration_since(over_at) < self.calm.saturating_mul(2).max(SOON)
            });
            self.calm = match is_back {
                true => self.calm.saturating_mul(2).clamp(CALM_MIN, CALM_MAX),
                false => Duration::ZERO,
            };
        }
        let times = self.alarmed.unwrap_or(0).saturating_add(1);
        self.alarmed = Some(times);
        times.is_power_of_two()
    }

    /// It took something. Whether the alarm is over.
    pub(super) fn went_well(&mut self, now: Instant) -> bool {
        self.failures = self.failures.saturating_sub(1);
        self.free_at = None;
        let since = *self.good_since.get_or_insert(now);
        let is_over = self.alarmed.is_some() && now.duration_since(since) >= self.calm;
        if is_over {
            self.alarmed = None;
            self.over_at = Some(now);
        }
        is_over
    }
}

/// Until it is tried again, the first time; then twice as long each time.
const RETRY: Duration = Duration::from_secs(1);
/// At most: nobody waits longer for a place that works again.
const RETRY_MAX: Duration = Duration::from_secs(900);
/// After as many the wait is the longest there is.
const FAILURES_MAX: u32 = 10;
/// What fails again so soon after it was over is the same failure.
const SOON: Duration = Duration::from_secs(3600);
/// How long it must go well then, at first; twice as long each time.
const CALM_MIN: Duration = Duration::from_secs(60);
const CALM_MAX: Duration = Duration::from_secs(24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    /// Tries each second as soon as it may, for `seconds`; how often it was tried, told, and over.
    fn tried(patience: &mut Patience, seconds: u64, works: impl Fn(u64) -> bool) -> [u64; 3] {
        let (begun, mut counts) = (clock::now(), [0; 3]);
        for second in 0..seconds {
            let now = begun + Duration::from_secs(second);
            if patience.free_at().is_some_and(|free_at| now < free_at) {
                continue;
            }
            counts[0] += 1;
            match works(counts[0]) {
                true => counts[2] += u64::from(patience.went_well(now)),
                false => counts[1] += u64::from(patience.failed(now)),
            }
        }
        counts
    }

    #[test]
    fn what_fails_all_day_is_tried_later_and_later_and_told_a_few_times() {
        let [tries, told, over] = tried(&mut Patience::default(), 24 * 3600, |_| false);
        assert!((96..120).contains(&tries), "{tries}");
        assert!(told <= 7 && over == 0, "{told} {over}");
    }

    #[test]
    fn what_works_every_other_time_is_two_alarms_and_not_one_each_time() {
        let [tries, told, over] = tried(&mut Patience::default(), 24 * 3600, |n| n % 2 == 0);
        assert!(tries > 1000, "{tries}");
        assert!(told <= 20 && over <= 1, "{told} {over}");
    }

    #[test]
    fn one_failure_is_over_with_the_next_success_and_a_rare_one_is_each_time() {
        let mut patience = Patience::default();
        let begun = clock::now();
        for hours in [0, 3, 6] {
            let now = begun + Duration::from_secs(hours * 3600);
            assert!(patience.failed(now));
            assert_eq!(patience.free_at(), Some(now + RETRY));
            assert!(patience.went_well(now + RETRY));
            assert_eq!(patience.free_at(), None);
        }
        // Of one that stood before a restart too.
        assert!(Patience::new(true).went_well(begun));
        assert!(!Patience::new(false).went_well(begun));
    }
}
