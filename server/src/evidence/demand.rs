//! Intervals that a package asks for, beside those of every few minutes.
//!
//! ```text
//! export of streams ─▶ has one of them moved since the last interval? ─▶ [Demand]: not too often ─▶ an interval
//! ```
//!
//! An interval is kept for ever, so nobody makes them by asking again for what is proven already, nor very many by
//! asking for what grows all the time.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use anyhow::Result;
use scrinium_protocol::evidence::interval::Doubt;
use scrinium_protocol::identity::StreamId;
use tracing::info;

use super::Evidence;
use crate::archive::Archive;

/// How many intervals were asked for lately.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// Falls by one every [`EACH_US`].
    count: u64,
    counted_us: u64,
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
}

impl Evidence {
    /// Publishes an interval for a package of `streams` that is about to be made, so that all of it can be proven: unless
    /// the last one has all of it. A stopped volume is left as it is, and so it is when very many are asked for: the
    /// package says which entries are in no interval.
    ///
    /// # Errors
    /// As [`Evidence::seal`].
    pub(crate) fn publish(
        &self,
        archive: &Archive,
        streams: &BTreeSet<StreamId>,
        now_us: u64,
        doubt: Option<Doubt>,
    ) -> Result<()> {
        if !self.is_live.load(Ordering::Relaxed) || !self.has_moved(archive, streams) {
            return Ok(());
        }
        let mut demand = self.demand.lock().unwrap_or_else(PoisonError::into_inner);
        if !demand.take(now_us) {
            info!(
                "no interval is published for a package: {AT_ONCE_MAX} were a short time ago; the package says what is in none"
            );
            return Ok(());
        }
        drop(demand);
        self.seal(archive, now_us, doubt).map(drop)
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
/// One more each ten seconds, µs: 8,640 a day, 5 MB, are the most.
const EACH_US: u64 = 10_000_000;

#[cfg(test)]
mod tests {
    use super::*;

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
