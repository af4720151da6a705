//! Intervals that a package asks for, beside those of every few minutes.
//!
//! ```text
//! export of streams ─▶ has one of them moved since the last interval? ─▶ [Demand]: not too often ─▶ an interval
//!                                                                             └─▶ wait a moment: one for all who wait
//! ```
//!
//! An interval is kept for ever, so nobody makes them by asking again for what is proven already, nor very many by
//! asking for what grows all the time.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use scrinium_protocol::evidence::interval::Doubt;
use scrinium_protocol::identity::StreamId;
use tracing::info;

use super::Evidence;
use crate::archive::Archive;
use crate::clock;

/// How many intervals were asked for lately.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// Falls by one every [`EACH_US`].
    count: u64,
    counted_us: u64,
    /// How many were made, and when this machine had run for how long at the last one, µs.
    made: u64,
    made_us: Option<u64>,
}

impl Demand {
    /// Whether one more is made now. A clock that was set back lets none be forgotten.
    fn take(&mut self, now_us: u64) -> bool {
        let over = now_us.saturating_sub(self.counted_us) / EACH_US;
        if over >= self.count {
            (self.count, self.counted_us) = (0, now_us);
        } else {
            self.count -= over;
            self.counted_us += over * EACH_US;
        }
        let is_free = self.count < AT_ONCE_MAX;
        self.count += u64::from(is_free);
        is_free
    }

    /// How long the next one is still to wait.
    fn wait(&self, boot_us: u64) -> Duration {
        let due_us = self.made_us.map_or(0, |made_us| made_us + APART_US);
        Duration::from_micros(due_us.saturating_sub(boot_us).min(APART_US))
    }
}

impl Evidence {
    /// Publishes an interval for a package of `streams` that is about to be made, so that all of it can be proven: unless
    /// the last one has all of it. Those who ask within [`APART_US`] share one. A stopped volume is left as it is, and so it is when very many are asked for: the
    /// package says which entries are in no interval.
    ///
    /// # Errors
    /// As [`Evidence::seal`].
    pub(crate) fn publish(
        &self,
        archive: &Archive,
        streams: &BTreeSet<StreamId>,
        doubt: impl Fn() -> Option<Doubt>,
    ) -> Result<()> {
        if !self.is_live.load(Ordering::Relaxed) || !self.has_moved(archive, streams) {
            return Ok(());
        }
        let (demand, turn) = &self.demand;
        let mut demand = demand.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is made from here on has all that is wanted, whoever asked for it.
        let made = demand.made;
        loop {
            let wait = demand.wait(clock::boot_us());
            if wait.is_zero() {
                break;
            }
            let woken = turn.wait_timeout(demand, wait);
            (demand, _) = woken.unwrap_or_else(PoisonError::into_inner);
            if demand.made != made {
                return Ok(());
            }
        }
        let now_us = clock::unix_us();
        if !demand.take(now_us) {
            info!(
                "no interval is published for a package: {AT_ONCE_MAX} were a short time ago; the package says what is in none"
            );
            return Ok(());
        }
        // Held until it is sealed: who waits for it finds it whole.
        self.seal(archive, now_us, doubt())?;
        demand.made += 1;
        demand.made_us = Some(clock::boot_us());
        turn.notify_all();
        Ok(())
    }

    /// Whether the archive has entries of these streams that are in no interval.
    fn has_moved(&self, archive: &Archive, streams: &BTreeSet<StreamId>) -> bool {
        let now = archive.streams_among(streams.iter().copied());
        let state = self.lock();
        let mut now = now.into_values().filter(|stream| stream.entries > 0);
        now.any(|stream| state.reached.get(&stream.id) != Some(&stream.reached()))
    }
}

/// So many may be asked for at once: a person who makes packages of one case after the other.
const AT_ONCE_MAX: u64 = 60;
/// Time between two that are asked for, µs: further packages wait for it, and share the next one.
const APART_US: u64 = 3_000_000;
/// One more each ten seconds, µs: 8,640 a day, 5 MB, are the most.
const EACH_US: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_are_some_time_apart_and_the_first_waits_for_none() {
        let mut demand = Demand::default();
        assert_eq!(demand.wait(7), Duration::ZERO);
        demand.made_us = Some(1000);
        assert_eq!(demand.wait(1000), Duration::from_micros(APART_US));
        assert_eq!(demand.wait(1000 + APART_US - 5), Duration::from_micros(5));
        assert_eq!(demand.wait(1000 + APART_US), Duration::ZERO);
    }

    #[test]
    fn intervals_that_are_asked_for_are_bounded_and_come_back_with_time() {
        let mut demand = Demand::default();
        let mut now_us = 1 << 50;
        let taken = (0..1000).filter(|_| demand.take(now_us)).count();
        assert_eq!(taken as u64, AT_ONCE_MAX);
        now_us += EACH_US - 1;
        assert!(!demand.take(now_us));
        now_us += 1;
        assert!(demand.take(now_us) && !demand.take(now_us));
        // A clock that was set back gives none, and one that goes on gives all again.
        assert!(!demand.take(5));
        now_us += EACH_US * AT_ONCE_MAX;
        let taken = (0..1000).filter(|_| demand.take(now_us)).count();
        assert_eq!(taken as u64, AT_ONCE_MAX);
    }
}
