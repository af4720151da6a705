//! How many files came to the path: what is not found of those is gone.

use std::collections::BTreeSet;

use super::{FileStream, State};
use crate::source::bookmark::FileId;

/// What came to the path since the last of it was found.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// How many files, as the system told it; `None`: not all was told.
    told: Option<usize>,
    /// Those of them that other streams read.
    elsewhere: BTreeSet<FileId>,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self {
            told: Some(0),
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

    /// Whether these are all, and those that others read; `None` when nobody told how many came. Counts anew.
    pub(super) fn are(&mut self, found: usize) -> Option<bool> {
        let all = core::mem::take(self);
        let came = all.told.filter(|came| *came > 0);
        came.map(|came| came <= found + all.elsewhere.len())
    }

    /// So many are found, and others are found when these are read.
    pub(super) fn are_found(&mut self, found: usize) {
        self.told = self.told.map(|came| came.saturating_sub(found));
    }
}

impl FileStream {
    /// So many files came to its path; `None`: nobody knows how many.
    pub(crate) fn count_arrivals(&mut self, times: Option<u32>) {
        // What was there before it was looked at first is no news.
        let is_unlooked =
            self.state == State::Closed && self.chain.current.is_none() && !self.looked_back;
        if !is_unlooked {
            let times = times.and_then(|times| usize::try_from(times).ok());
            let told = self.arrivals.told.zip(times);
            self.arrivals.told = told.map(|(all, new)| all.saturating_add(new));
        }
    }

    /// Whether as many files are queued as came to the path, as far as that was told.
    pub(super) fn are_all_found(&mut self) -> Option<bool> {
        let found = self.chain.queued.len();
        if self.more_comes {
            self.arrivals.are_found(found);
            return Some(true);
        }
        self.arrivals.are(found)
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
}
