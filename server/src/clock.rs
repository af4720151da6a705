//! The only place that reads clocks, and the one scale on which the server counts time.
//!
//! ```text
//! wall clock ─┐                          ┌─▶ [unix_us]: server time, which never goes back
//! boot time ──┼─▶ [crate::time] judges ─▶┤
//! kernel ─────┘                          └─▶ what may be destroyed today
//! ```
//!
//! Server time runs with the time since the machine was started. [`crate::time`] alone moves it: to the wall clock
//! while that is confirmed. So a wall clock that is set wrong ends no session, no token and no wait.

mod kernel;

use core::fmt;
use core::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::said::said;

/// The monotonic clock, for deadlines.
#[expect(clippy::disallowed_methods, reason = "this is the clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Server time in µs since 1970-01-01T00:00Z. It never goes back. In a program that runs no server it is the wall
/// clock.
pub(crate) fn unix_us() -> u64 {
    #[cfg(test)]
    if let Some(virtual_clocks) = VIRTUAL.get() {
        return virtual_clocks.server_us();
    }
    SCALE.now()
}

/// Server time in seconds since 1970-01-01T00:00Z.
pub(crate) fn unix_s() -> u64 {
    unix_us() / 1_000_000
}

/// What the machine's clocks show at one moment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Clocks {
    /// The wall clock, Unix µs; nobody has confirmed it.
    pub(crate) wall_us: u64,
    /// µs since the machine was started, the time it slept included.
    pub(crate) boot_us: u64,
    /// Names this run of the machine.
    pub(crate) run: String,
    /// Whether the kernel says that somebody keeps the wall clock right; none where it does not say.
    pub(crate) synchronised: Option<bool>,
}

/// Reads the clocks. A suspend or a set clock in the middle of it is noticed, and they are read again.
pub(crate) fn clocks() -> Clocks {
    #[cfg(test)]
    if let Some(virtual_clocks) = VIRTUAL.get() {
        return virtual_clocks.clocks();
    }
    let mut before_us = boot_us();
    let mut wall_us = wall_us();
    for _ in 0..READINGS_MAX {
        let after_us = boot_us();
        if after_us.abs_diff(before_us) <= READING_US_MAX {
            break;
        }
        before_us = after_us;
        wall_us = self::wall_us();
    }
    Clocks {
        wall_us,
        boot_us: before_us,
        run: kernel::run_of_the_machine().to_owned(),
        synchronised: kernel::synchronised(),
    }
}

/// The wall clock in µs since 1970-01-01T00:00Z, right or wrong; 0 before it.
pub(crate) fn wall_us() -> u64 {
    #[cfg(test)]
    if let Some(virtual_clocks) = VIRTUAL.get() {
        return virtual_clocks.wall_us;
    }
    #[expect(clippy::disallowed_methods, reason = "this is the clock")]
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

/// µs since the machine was started, the time it slept included.
pub(crate) fn boot_us() -> u64 {
    #[cfg(test)]
    if let Some(virtual_clocks) = VIRTUAL.get() {
        return virtual_clocks.boot_us;
    }
    kernel::boot_us()
}

/// Sets how far server time is ahead of boot time. Server time does not go back for it, but stands still until it is
/// passed; with `may_go_back` it goes back.
pub(crate) fn set_scale(ahead_us: i64, may_go_back: bool) {
    #[cfg(test)]
    if let Some(mut virtual_clocks) = VIRTUAL.get() {
        virtual_clocks.set_scale(ahead_us, may_go_back);
        VIRTUAL.set(Some(virtual_clocks));
        return;
    }
    SCALE.set(ahead_us, may_go_back);
}

/// Server time as the distance to boot time.
struct Scale {
    is_set: AtomicBool,
    ahead_us: AtomicI64,
    /// The latest time that was given.
    last_us: AtomicU64,
}

static SCALE: Scale = Scale {
    is_set: AtomicBool::new(false),
    ahead_us: AtomicI64::new(0),
    last_us: AtomicU64::new(0),
};

impl Scale {
    fn now(&self) -> u64 {
        if !self.is_set.load(Ordering::Acquire) {
            return wall_us();
        }
        let ahead_us = self.ahead_us.load(Ordering::Acquire);
        let now_us = boot_us().saturating_add_signed(ahead_us);
        self.last_us.fetch_max(now_us, Ordering::AcqRel).max(now_us)
    }

    fn set(&self, ahead_us: i64, may_go_back: bool) {
        self.ahead_us.store(ahead_us, Ordering::Release);
        if may_go_back {
            self.last_us.store(0, Ordering::Release);
        }
        self.is_set.store(true, Ordering::Release);
    }
}

#[cfg(test)]
thread_local! {
    /// What the clocks show in a test of this thread that sets them.
    pub(crate) static VIRTUAL: core::cell::Cell<Option<VirtualClocks>> = const { core::cell::Cell::new(None) };
}

/// The clocks of a machine that a test makes up.
#[cfg(test)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VirtualClocks {
    pub(crate) wall_us: u64,
    pub(crate) boot_us: u64,
    /// How often the machine was started.
    pub(crate) run: u64,
    pub(crate) synchronised: Option<bool>,
    /// Server time minus boot time, once a server has set it, and the latest that was given.
    pub(crate) scale: Option<(i64, u64)>,
}

#[cfg(test)]
impl VirtualClocks {
    fn server_us(self) -> u64 {
        match self.scale {
            Some((ahead_us, last_us)) => self.boot_us.saturating_add_signed(ahead_us).max(last_us),
            None => self.wall_us,
        }
    }

    fn set_scale(&mut self, ahead_us: i64, may_go_back: bool) {
        let last_us = if may_go_back || self.scale.is_none() {
            0
        } else {
            self.server_us()
        };
        self.scale = Some((ahead_us, last_us));
    }

    fn clocks(self) -> Clocks {
        Clocks {
            wall_us: self.wall_us,
            boot_us: self.boot_us,
            run: format!("run {}", self.run),
            synchronised: self.synchronised,
        }
    }
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
        // A date and a time would be read as the date.
        let date = Some(text).filter(|text| text.len() <= DAY_LEN);
        let date = date.and_then(|text| text.parse::<jiff::civil::Date>().ok());
        let date = date.ok_or_else(|| said!("time.day", text))?;
        let begin = date.to_zoned(jiff::tz::TimeZone::UTC)?;
        let day = begin.timestamp().as_second() / 86_400;
        Ok(Self(u32::try_from(day)?))
    }
}

/// Bytes of a day as it is written.
const DAY_LEN: usize = "2026-01-31".len();
/// µs of a day.
pub(crate) const DAY_US: u64 = 86_400_000_000;
/// Clocks that are read further apart than this are read again.
const READING_US_MAX: u64 = 100_000;
const READINGS_MAX: u32 = 10;
