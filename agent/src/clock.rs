//! The only place that reads the clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// The monotonic clock, for deadlines.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// What a clock on the wall shows here: by the time zone that this machine has now (jiff looks again every five minutes).
pub(crate) fn local() -> Zoned {
    let time_us = i64::try_from(unix_us()).unwrap_or(i64::MAX);
    let at = Timestamp::from_microsecond(time_us).unwrap_or(Timestamp::UNIX_EPOCH);
    at.to_zoned(TimeZone::system())
}

/// The wall clock in µs since 1970-01-01T00:00Z; 0 before it.
pub(crate) fn unix_us() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}
