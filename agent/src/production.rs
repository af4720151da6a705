//! How fast the sources produce, and so how long an outage the cache outlasts.

use std::time::{Duration, Instant};

/// A running mean of what is produced, over about a minute.
#[derive(Debug, Default)]
pub(crate) struct Production {
    since: Option<(Instant, u64)>,
    bytes_per_s: Option<f64>,
}

impl Production {
    /// `total` bytes were produced until `now`.
    pub(crate) fn update(&mut self, now: Instant, total: u64) {
        let (since, before) = *self.since.get_or_insert((now, total));
        let passed = now.duration_since(since);
        if passed < SAMPLE {
            return;
        }
        self.since = Some((now, total));
        let rate = total.saturating_sub(before) as f64 / passed.as_secs_f64();
        let weight = (passed.as_secs_f64() / MEMORY.as_secs_f64()).min(1.0);
        let mean = self.bytes_per_s.unwrap_or(rate);
        self.bytes_per_s = Some(mean + (rate - mean) * weight);
    }

    /// How long it takes to produce `bytes`; `None` while next to nothing is produced.
    pub(crate) fn time_for(&self, bytes: u64) -> Option<Duration> {
        let rate = self.bytes_per_s.filter(|rate| *rate >= 1.0)?;
        Duration::try_from_secs_f64(bytes as f64 / rate).ok()
    }
}

const SAMPLE: Duration = Duration::from_secs(5);
const MEMORY: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    /// AGT-10: 600 MB at 1 MB/s last about ten minutes.
    #[test]
    fn the_time_until_full_follows_the_rate() {
        let mut now = crate::clock::now();
        let mut production = Production::default();
        production.update(now, 0);
        assert_eq!(production.time_for(1), None);
        for n in 1..=60 {
            now += SAMPLE;
            production.update(now, n * 5_000_000);
        }
        let lasts = production.time_for(600_000_000).unwrap().as_secs();
        assert!((598..=602).contains(&lasts), "{lasts}");
        for _ in 0..200 {
            now += SAMPLE;
            production.update(now, 60 * 5_000_000);
        }
        assert_eq!(production.time_for(600_000_000), None);
    }
}
