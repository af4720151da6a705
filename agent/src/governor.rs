//! Keeps the agent below its share of a processor.

use std::time::{Duration, Instant};

/// Says how long to pause so that processor time stays below a share of the time that passed.
#[derive(Debug)]
pub(crate) struct Governor {
    percent_max: Option<u8>,
    /// Where the account was opened: the clock, and the processor time until then.
    since: Option<(Instant, Duration)>,
}

impl Governor {
    pub(crate) fn new(percent_max: Option<u8>) -> Self {
        Self {
            percent_max,
            since: None,
        }
    }

    /// How long to pause at `now`.
    pub(crate) fn pause(&mut self, now: Instant) -> Duration {
        self.pause_after(now, used())
    }

    fn pause_after(&mut self, now: Instant, used: Duration) -> Duration {
        let Some(percent) = self.percent_max else {
            return Duration::ZERO;
        };
        let (opened, before) = *self.since.get_or_insert((now, used));
        let passed = now.duration_since(opened);
        let due = used.saturating_sub(before) * 100 / u32::from(percent);
        if passed > ACCOUNT && due <= passed {
            // Idle times long ago are no credit; a debt stays one.
            self.since = Some((now, used));
        }
        due.saturating_sub(passed).min(PAUSE_MAX)
    }
}

/// Processor time of this process so far, of all its threads.
#[cfg(all(unix, not(any(target_os = "illumos", target_os = "solaris"))))]
pub(crate) fn used() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// Not measured where the system does not say it without a foreign call: nothing is held back then.
#[cfg(any(not(unix), target_os = "illumos", target_os = "solaris"))]
pub(crate) fn used() -> Duration {
    Duration::ZERO
}

const ACCOUNT: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_too_fast_is_paused_for() {
        let start = crate::clock::now();
        let mut governor = Governor::new(Some(10));
        let ms = Duration::from_millis;
        assert_eq!(governor.pause_after(start, ms(1000)), ms(0));
        // 20 ms in 50 ms are due after 200 ms.
        assert_eq!(governor.pause_after(start + ms(50), ms(1020)), ms(150));
        assert_eq!(governor.pause_after(start + ms(200), ms(1020)), ms(0));
        assert_eq!(Governor::new(None).pause_after(start, ms(1000)), ms(0));
    }
}
