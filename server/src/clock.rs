//! The only place that reads the clock.

use core::fmt;
use core::str::FromStr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The monotonic clock, for deadlines.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The wall clock in µs since 1970-01-01T00:00Z; 0 before it.
pub(crate) fn unix_us() -> u64 {
    #[cfg(test)]
    if let Some(virtual_us) = VIRTUAL_US.get() {
        return virtual_us;
    }
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

/// The wall clock in seconds since 1970-01-01T00:00Z.
pub(crate) fn unix_s() -> u64 {
    unix_us() / 1_000_000
}

#[cfg(test)]
thread_local! {
    /// What the wall clock shows in a test of this thread that sets it.
    pub(crate) static VIRTUAL_US: core::cell::Cell<Option<u64>> = const { core::cell::Cell::new(None) };
}

/// A day in UTC, counted from 1970-01-01.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
pub(crate) struct Day(pub(crate) u32);

impl Day {
    /// The day of a time in µs since 1970-01-01T00:00Z.
    pub(crate) fn of(time_us: u64) -> Self {
        Self(u32::try_from(time_us / DAY_US).unwrap_or(u32::MAX))
    }

    /// Its first µs.
    pub(crate) fn begin_us(self) -> u64 {
        u64::from(self.0) * DAY_US
    }

    /// The day so many days before.
    pub(crate) fn before(self, days: u32) -> Self {
        Self(self.0.saturating_sub(days))
    }

    /// The day so many days later.
    pub(crate) fn plus(self, days: u32) -> Self {
        Self(self.0.saturating_add(days))
    }
}

impl fmt::Display for Day {
    /// As `2026-01-31`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = i64::from(self.0) * 86_400;
        match jiff::Timestamp::from_second(seconds) {
            Ok(time) => write!(f, "{}", time.strftime("%F")),
            Err(_) => write!(f, "day {}", self.0),
        }
    }
}

impl FromStr for Day {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let date: jiff::civil::Date = text
            .parse()
            .map_err(|_| anyhow::anyhow!("'{text}' must be a day like 2026-01-31"))?;
        let begin = date.to_zoned(jiff::tz::TimeZone::UTC)?;
        let day = begin.timestamp().as_second() / 86_400;
        Ok(Self(u32::try_from(day)?))
    }
}

/// µs of a day.
pub(crate) const DAY_US: u64 = 86_400_000_000;
