//! The room of the volume's disk: what is free, what that means, and when it will be gone.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::StatVfsMountFlags;

use crate::present::human_bytes;
use crate::said::{Said, said};
use crate::waits;

/// What a file system has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    pub(crate) free_bytes: u64,
    pub(crate) total_bytes: u64,
    /// 0 of 0 where the file system makes them as needed.
    pub(crate) free_inodes: u64,
    pub(crate) total_inodes: u64,
    pub(crate) is_read_only: bool,
}

impl Space {
    /// Asks the file system of a directory. It may wait for one that is elsewhere.
    pub(crate) fn of(dir: &Path) -> io::Result<Self> {
        // A file system that does not answer keeps who asks, and nobody else.
        let space = waits::off_worker(|| rustix::fs::statvfs(dir))?;
        Ok(Self {
            free_bytes: space.f_bavail.saturating_mul(space.f_frsize),
            total_bytes: space.f_blocks.saturating_mul(space.f_frsize),
            free_inodes: space.f_favail,
            total_inodes: space.f_files,
            is_read_only: space.f_flag.contains(StatVfsMountFlags::RDONLY),
        })
    }

    /// Why nothing can be written, if nothing can.
    pub(crate) fn refuses(&self) -> Option<Said> {
        if self.is_read_only {
            return Some(said!("met.read_only"));
        }
        if self.free_bytes < FULL_BYTES {
            return Some(said!("met.no_room", human_bytes(self.free_bytes)));
        }
        let is_full = self.total_inodes > 0 && self.free_inodes < FULL_INODES;
        is_full.then(|| said!("met.no_inodes", self.free_inodes, self.total_inodes))
    }

    /// What will soon be gone, if something will.
    pub(crate) fn runs_short(&self) -> Option<Said> {
        let short_bytes = SHORT_BYTES.min(self.total_bytes / SHORT_PART);
        if self.free_bytes < short_bytes {
            let (free, total) = (human_bytes(self.free_bytes), human_bytes(self.total_bytes));
            return Some(said!("met.short_room", free, total));
        }
        let short_inodes = SHORT_INODES.min(self.total_inodes / SHORT_PART);
        let is_short = self.free_inodes < short_inodes;
        is_short.then(|| said!("met.short_inodes", self.free_inodes, self.total_inodes))
    }
}

/// How the room shrank in the last day, as far back as this process looks.
#[derive(Debug, Default)]
pub(crate) struct Forecast {
    samples: VecDeque<(Instant, u64)>,
}

impl Forecast {
    /// Notes what is free; says in how long all of it is gone at the rate of the last day, once it was looked for long enough.
    pub(crate) fn look(&mut self, now: Instant, free_bytes: u64) -> Option<Duration> {
        let last = self.samples.back().map(|(at, _)| *at);
        if last.is_none_or(|at| now.duration_since(at) >= SAMPLE_INTERVAL) {
            self.samples.push_back((now, free_bytes));
        }
        while self.samples.len() > SAMPLES_MAX {
            self.samples.pop_front();
        }
        let (begun, free_then) = *self.samples.front()?;
        let passed = now.duration_since(begun);
        let used = free_then.checked_sub(free_bytes).filter(|&used| used > 0)?;
        if passed < LOOKED_MIN {
            return None;
        }
        let seconds = u128::from(free_bytes) * u128::from(passed.as_secs()) / u128::from(used);
        Some(Duration::from_secs(
            u64::try_from(seconds).unwrap_or(u64::MAX),
        ))
    }
}

/// With less than this free, nothing more is taken: the smallest log needs as much.
const FULL_BYTES: u64 = 1 << 20;
const FULL_INODES: u64 = 8;
/// With less free than this, or than one part in [`SHORT_PART`] of a small disk, a person is to make room.
const SHORT_BYTES: u64 = 256 << 20;
const SHORT_INODES: u64 = 1000;
const SHORT_PART: u64 = 20;
/// One day of them is kept.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(600);
const SAMPLES_MAX: usize = 145;
/// Sealing and compaction make waves: nothing is said of a shorter time.
const LOOKED_MIN: Duration = Duration::from_secs(6 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn space() -> Space {
        Space {
            free_bytes: 50 * GIB,
            total_bytes: 100 * GIB,
            free_inodes: 1 << 20,
            total_inodes: 1 << 21,
            is_read_only: false,
        }
    }

    #[test]
    fn a_disk_is_full_by_bytes_by_inodes_or_by_its_mount_and_short_before() {
        assert!(space().refuses().is_none() && space().runs_short().is_none());
        let with = |change: fn(&mut Space)| {
            let mut space = space();
            change(&mut space);
            (
                space
                    .refuses()
                    .map(|said| said.to_string())
                    .unwrap_or_default(),
                space.runs_short().is_some(),
            )
        };
        assert!(
            with(|space| space.is_read_only = true)
                .0
                .contains("read-only")
        );
        assert!(with(|space| space.free_bytes = 4096).0.contains("are free"));
        assert!(with(|space| space.free_inodes = 0).0.contains("inodes"));
        assert_eq!(
            with(|space| space.free_bytes = 200 << 20),
            (String::new(), true)
        );
        assert_eq!(with(|space| space.free_inodes = 900), (String::new(), true));
        // A small disk is not short all its life, and btrfs counts no inodes.
        assert_eq!(
            with(|space| (space.total_bytes, space.free_bytes) = (60 << 20, 40 << 20)),
            (String::new(), false)
        );
        assert_eq!(
            with(|space| (space.total_inodes, space.free_inodes) = (0, 0)),
            (String::new(), false)
        );
    }

    #[test]
    fn room_that_shrinks_is_forecast_from_what_the_last_day_took() {
        let mut forecast = Forecast::default();
        let begun = crate::clock::now();
        let hour = |n: u64| begun + Duration::from_secs(n * 3600);
        for n in 0..6 {
            assert_eq!(forecast.look(hour(n), (100 - n) * GIB), None, "hour {n}");
        }
        // A gibibyte an hour, 94 are left.
        assert_eq!(
            forecast.look(hour(6), 94 * GIB),
            Some(Duration::from_secs(94 * 3600))
        );
        // What was deleted in the night counts.
        assert_eq!(forecast.look(hour(7), 101 * GIB), None);
        for n in 8..200 {
            let _none = forecast.look(hour(n), 50 * GIB);
        }
        assert!(forecast.samples.len() <= SAMPLES_MAX);
    }
}
