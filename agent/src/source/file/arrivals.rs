//! How many files came to the path: what is not found of those is gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{FileStream, State};
use crate::source::bookmark::FileId;

/// What came to the path since the last of it was found.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// How many files, as the system told it; `None`: not all was told.
    told: Option<usize>,
    /// How many of what was found is still to be told, and when it was found: the system tells a moment later.
    untold: (usize, Option<Instant>),
    /// Those of them that other streams read.
    elsewhere: BTreeSet<FileId>,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            told: Some(0),
            untold: (0, None),
            elsewhere: BTreeSet::new(),
        }
    }
}

impl Arrivals {
    /// Another stream reads one of them, or none does.
    pub(super) fn is_anothers(&mut self, id: FileId, is_so: bool) {
        if !is_so {
            self.elsewhere.remove(&id);
        } else if self.elsewhere.len() < ELSEWHERE_MAX {
            self.elsewhere.insert(id);
        }
    }

    /// So many came.
    fn come(&mut self, times: Option<usize>, now: Instant) {
        let (untold, since) = self.untold;
        let is_old = |since| now.saturating_duration_since(since) > TOLD_WITHIN;
        let untold = match since.is_some_and(is_old) {
            true => 0,
            false => untold,
        };
        let known = untold.min(times.unwrap_or(0));
        self.untold.0 = untold - known;
        let told = self.told.zip(times);
        self.told = told.map(|(all, new)| all.saturating_add(new - known));
    }

    /// What came is known, or of no account.
    pub(super) fn forget(&mut self) {
        self.told = Some(0);
        self.elsewhere = BTreeSet::new();
    }

    /// Whether these are all, and those that others read; `None` when nobody told how many came. Counts anew.
    pub(super) fn are(&mut self, found: usize) -> Option<bool> {
        let came = self.told.filter(|came| *came > 0);
        let found = found + self.elsewhere.len();
        self.forget();
        came.map(|came| came <= found)
    }

    /// The same, of files that were just found: of which the system may not have told yet.
    fn are_new(&mut self, found: usize, now: Instant) -> Option<bool> {
        let all = found + self.elsewhere.len();
        let ahead = all.saturating_sub(self.told.unwrap_or(all));
        if ahead > 0 {
            self.untold = (self.untold.0.saturating_add(ahead), Some(now));
        }
        self.are(found)
    }

    /// So many are found, and others are found when these are read.
    pub(super) fn are_found(&mut self, found: usize) {
        self.told = self.told.map(|came| came.saturating_sub(found));
    }
}

impl FileStream {
    /// So many files came to its path; `None`: nobody knows how many.
    pub(crate) fn count_arrivals(&mut self, times: Option<u32>, now: Instant) {
        // What was there before it was looked at first is no news.
        let is_unlooked =
            self.state == State::Closed && self.chain.current.is_none() && !self.looked_back;
        if !is_unlooked {
            let times = times.and_then(|times| usize::try_from(times).ok());
            self.arrivals.come(times, now);
        }
    }

    /// Whether as many files are queued as came to the path, as far as that was told.
    pub(super) fn are_all_found(&mut self, now: Instant) -> Option<bool> {
        let found = self.chain.queued.len();
        if self.more_comes {
            self.arrivals.are_found(found);
            return Some(true);
        }
        self.arrivals.are_new(found, now)
    }

    /// Says that files came to the path and are gone, if more came than these.
    pub(super) fn say_gone_between(&mut self, found: usize) {
        if self.arrivals.are(found) == Some(false) {
            self.output.push_gap(GONE_BETWEEN);
        }
    }
}

pub(super) const GONE_BETWEEN: &str = "more files were made here than are found; what came and went between two looks, if anything was written to it, was not collected";
/// Files that others read of which it is known that they came to this path: each a few bytes.
const ELSEWHERE_MAX: usize = 32;
/// What was found is told by then, however busy the machine is.
const TOLD_WITHIN: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_read_is_not_gone() {
        let id = |inode| FileId { device: 1, inode };
        let told = |told| Arrivals {
            told,
            ..Arrivals::default()
        };
        assert_eq!(told(None).are(5), None);
        assert_eq!(told(Some(0)).are(0), None);
        assert_eq!(told(Some(2)).are(2), Some(true));
        assert_eq!(told(Some(2)).are(1), Some(false));
        let mut arrivals = told(Some(3));
        arrivals.is_anothers(id(1), true);
        arrivals.is_anothers(id(2), true);
        // It is this stream's by now.
        arrivals.is_anothers(id(1), false);
        assert_eq!(arrivals.are(1), Some(false));
        assert_eq!(arrivals.are(1), None);
        let mut arrivals = told(Some(3));
        arrivals.is_anothers(id(1), true);
        arrivals.are_found(1);
        assert_eq!(arrivals.are(1), Some(true));
    }

    /// The system tells of a file a moment after it is there.
    #[test]
    fn what_was_found_before_it_was_told_counts_once() {
        let now = crate::clock::now();
        let (mut arrivals, later) = (Arrivals::default(), now + TOLD_WITHIN);
        assert_eq!(arrivals.are_new(1, now), None);
        arrivals.come(Some(1), later);
        assert_eq!(arrivals.are_new(1, later), None);
        // The one before, the one that is found now, and one that is gone.
        arrivals.come(Some(3), later);
        assert_eq!(arrivals.are_new(1, later), Some(false));
        arrivals.come(Some(1), later);
        assert_eq!(arrivals.are_new(1, later), Some(true));
        // What is told much later is another.
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.are_new(2, now), None);
        arrivals.come(Some(2), later + Duration::from_millis(1));
        assert_eq!(arrivals.are_new(1, later), Some(false));
        // Where not all is told, nothing is known to be untold.
        arrivals.come(None, now);
        assert_eq!(arrivals.are_new(5, now), None);
        arrivals.come(Some(1), now);
        assert_eq!(arrivals.are(0), Some(false));
    }
}
