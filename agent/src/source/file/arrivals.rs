//! How many files came to the path: what is not found of those is gone.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{FileStream, State};
use crate::source::bookmark::FileId;

/// What the system told of a path since it was looked last at what it told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// How many files came; `None`: nobody knows.
    pub(crate) times: Option<u32>,
    /// The last of them was made there, and not renamed to it.
    pub(crate) is_made: bool,
    /// When it was looked before, and now.
    pub(crate) before: Instant,
    pub(crate) now: Instant,
}

/// What came to the path since the last of it was found.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// How many files, as the system told it; `None`: not all was told.
    told: Option<usize>,
    /// How many of what was found is still to be told, and when it was found: the system tells a moment later.
    untold: (usize, Option<Instant>),
    /// Something was told, if only of what was found before.
    is_heard: bool,
    /// How the last came, if that was told.
    last: Last,
    /// Those of them that other streams read.
    elsewhere: BTreeSet<FileId>,
    /// It was looked since the start: before that, nobody told of what came.
    is_looked_at: bool,
    /// Others may have come before that, which nobody knows by their names.
    pub(super) may_be_before: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Last {
    Unknown,
    Made,
    Moved,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            told: Some(0),
            untold: (0, None),
            is_heard: false,
            last: Last::Unknown,
            elsewhere: BTreeSet::new(),
            is_looked_at: false,
            may_be_before: false,
        }
    }
}

impl Arrivals {
    /// Whether it was not looked yet since the start.
    pub(super) const fn is_first_look(&self) -> bool {
        !self.is_looked_at
    }

    pub(super) const fn are_looked_at(&mut self) {
        self.is_looked_at = true;
    }

    /// Another stream reads one of them, or none does.
    pub(super) fn is_anothers(&mut self, id: FileId, is_so: bool) {
        if !is_so {
            self.elsewhere.remove(&id);
        } else if self.elsewhere.len() < ELSEWHERE_MAX {
            self.elsewhere.insert(id);
        }
    }

    /// More was told.
    fn come(&mut self, news: Told) {
        let (untold, found) = self.untold;
        // What was found since it was looked last is told now at the earliest.
        let is_old =
            |found| found < news.before && news.now.saturating_duration_since(found) > TOLD_WITHIN;
        let untold = match found.is_some_and(is_old) {
            true => 0,
            false => untold,
        };
        let times = news.times.and_then(|times| usize::try_from(times).ok());
        self.is_heard |= times.is_some_and(|times| times > 0);
        let known = untold.min(times.unwrap_or(0));
        self.untold.0 = untold - known;
        let told = self.told.zip(times);
        self.told = told.map(|(all, new)| all.saturating_add(new - known));
        self.last = match times {
            None => Last::Unknown,
            Some(times) if times <= known => self.last, // of what was found already
            Some(_) if news.is_made => Last::Made,
            Some(_) => Last::Moved,
        };
    }

    /// Whether anything was told of what was not found yet.
    pub(super) fn is_told(&self) -> bool {
        self.told != Some(0)
    }

    /// Whether what came last was made at the path.
    pub(super) fn is_made(&self) -> bool {
        self.last == Last::Made
    }

    /// Whether what came last was renamed to the path.
    pub(super) fn is_moved(&self) -> bool {
        self.last == Last::Moved
    }

    /// What came is known, or of no account.
    fn forget(&mut self) {
        self.told = Some(0);
        self.is_heard = false;
        self.last = Last::Unknown;
        self.elsewhere = BTreeSet::new();
    }

    /// Whether these are all, and those that others read; `None` when nobody told how many came. Counts anew.
    pub(super) fn are(&mut self, found: usize) -> Option<bool> {
        let came = self.told.filter(|came| *came > 0 || self.is_heard);
        let found = found + self.elsewhere.len();
        self.forget();
        came.map(|came| came <= found)
    }

    /// The same, of files that were just found: of which the system may not have told yet.
    pub(super) fn are_new(&mut self, found: usize, now: Instant) -> Option<bool> {
        self.credit(found + self.elsewhere.len(), now);
        self.are(found)
    }

    /// So many are found, and others are found when these are read.
    pub(super) fn are_found(&mut self, found: usize, now: Instant) {
        self.credit(found, now);
        self.told = self.told.map(|came| came.saturating_sub(found));
    }

    /// What is found beyond what was told is told later.
    fn credit(&mut self, found: usize, now: Instant) {
        let ahead = found.saturating_sub(self.told.unwrap_or(found));
        if ahead > 0 {
            self.untold = (self.untold.0.saturating_add(ahead), Some(now));
        }
    }
}

impl FileStream {
    /// Files came to its path.
    pub(crate) fn count_arrivals(&mut self, told: Told) {
        // What was there before it was looked at first is no news.
        let is_unlooked =
            self.state == State::Closed && self.chain.current.is_none() && !self.looked_back;
        if !is_unlooked {
            self.arrivals.come(told);
        }
    }

    /// The stream begins with a file of which the system told that it was made at its path, or renamed to it.
    pub(crate) fn begin_with(&mut self, is_made: bool) {
        self.arrivals.last = match is_made {
            true => Last::Made,
            false => Last::Moved,
        };
    }

    /// The stream began with so many files.
    pub(super) fn has_begun(&mut self, found: usize, now: Instant) {
        match self.arrivals.last {
            Last::Unknown => self.arrivals.are_found(found, now), // the system may tell of these only now
            Last::Made | Last::Moved => self.arrivals.forget(),
        }
    }

    /// Whether as many files are queued as came to the path, as far as that was told.
    pub(super) fn are_all_found(&mut self, now: Instant) -> Option<bool> {
        let found = self.chain.queued.len();
        if self.more_comes {
            self.arrivals.are_found(found, now);
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
/// What was found is told so long after it, when it was looked since at what is told: the system's thread may lag.
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
        arrivals.are_found(1, crate::clock::now());
        assert_eq!(arrivals.are(1), Some(true));
    }

    /// The system tells of a file a moment after it is there.
    #[test]
    fn what_was_found_before_it_was_told_counts_once() {
        let start = crate::clock::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let come = |arrivals: &mut Arrivals, times: u32, before: u64, now: u64| {
            arrivals.come(Told {
                times: Some(times),
                is_made: true,
                before: at(before),
                now: at(now),
            });
        };
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.are_new(1, at(0)), None);
        come(&mut arrivals, 1, 1, 2);
        assert!(!arrivals.is_told() && !arrivals.is_made());
        // Whether it was this one or the one before that was told now: there are no others.
        assert_eq!(arrivals.are_new(1, at(2)), Some(true));
        // The one before, the one that is found now, and one that is gone.
        come(&mut arrivals, 3, 2, 3);
        assert!(arrivals.is_told() && arrivals.is_made());
        assert_eq!(arrivals.are_new(1, at(3)), Some(false));
        come(&mut arrivals, 1, 3, 4);
        assert_eq!(arrivals.are_new(1, at(4)), Some(true));
        // What is told long after it was looked at what was told is another; however long that took.
        for (before, is_all) in [(1, false), (0, true)] {
            let mut arrivals = Arrivals::default();
            assert_eq!(arrivals.are_new(1, at(0)), None);
            come(&mut arrivals, 2, before, 60);
            assert_eq!(arrivals.are_new(1, at(60)), Some(is_all));
        }
        // One that was gone, told late, is missed when the last is at the path.
        let mut arrivals = Arrivals::default();
        assert_eq!(arrivals.are_new(1, at(0)), None);
        come(&mut arrivals, 2, 0, 1);
        assert_eq!(arrivals.are(0), Some(false));
        // Where not all is told, nothing is known to be untold.
        arrivals.come(Told {
            times: None,
            is_made: false,
            before: at(1),
            now: at(2),
        });
        assert_eq!(arrivals.are_new(5, at(2)), None);
        come(&mut arrivals, 1, 2, 3);
        assert_eq!(arrivals.are(0), Some(false));
    }
}
