//! What the archive cannot do now: take entries, seal them, delete them, prove them.
//!
//! ```text
//! ingest, upkeep, evidence, a look at the disk ─▶ [Troubles] ─▶ /readyz, metrics, status, overview, alarms
//! ```
//!
//! All of it is in memory: when the disk takes nothing, this is what still speaks.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;
use crate::said::Said;

/// Something that does not work, or soon will not.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Trouble {
    /// Entries are not taken: nothing is acknowledged.
    Archiving,
    /// Logs are not sealed.
    Sealing,
    /// What is due is not deleted or enclosed.
    Deleting,
    /// Intervals are not published.
    Proving,
    /// The disk takes no writes, or has no room.
    Disk,
    /// Room or inodes of the disk come to their end.
    DiskShort,
    /// File descriptors come to their end.
    Descriptors,
}

impl Trouble {
    pub(crate) const ALL: [Self; 7] = [
        Self::Archiving,
        Self::Sealing,
        Self::Deleting,
        Self::Proving,
        Self::Disk,
        Self::DiskShort,
        Self::Descriptors,
    ];

    /// The word of metrics and alarms.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Archiving => "archiving",
            Self::Sealing => "sealing",
            Self::Deleting => "deleting",
            Self::Proving => "proving",
            Self::Disk => "disk",
            Self::DiskShort => "disk-short",
            Self::Descriptors => "descriptors",
        }
    }

    /// What it means, without names of this machine.
    pub(crate) fn sentence(self) -> &'static str {
        match self {
            Self::Archiving => "entries cannot be archived; nothing is acknowledged",
            Self::Sealing => "logs cannot be sealed",
            Self::Deleting => "what is due cannot be deleted",
            Self::Proving => {
                "intervals cannot be published; what comes is archived and not yet proven"
            }
            Self::Disk => "the disk takes no more",
            Self::DiskShort => "the disk is nearly full",
            Self::Descriptors => "file descriptors are nearly used up",
        }
    }

    /// Whether the server does not do its work while it stands.
    fn stops_work(self) -> bool {
        !matches!(self, Self::DiskShort | Self::Descriptors)
    }
}

/// What stands, and since when.
#[derive(Clone, Debug)]
pub(crate) struct Standing {
    pub(crate) trouble: Trouble,
    pub(crate) since_us: u64,
    /// What was met, for an administrator.
    pub(crate) text: Said,
}

/// All troubles that stand.
#[derive(Debug, Default)]
pub(crate) struct Troubles(Mutex<BTreeMap<Trouble, Met>>);

#[derive(Debug)]
struct Met {
    since_us: u64,
    last: Instant,
    text: Said,
}

impl Troubles {
    /// It was met just now.
    pub(crate) fn meet(&self, trouble: Trouble, text: impl Into<Said>) {
        let mut standing = self.lock();
        let (now, text) = (clock::now(), text.into());
        let met = standing.entry(trouble).or_insert_with(|| Met {
            since_us: clock::unix_us(),
            last: now,
            text: Said::default(),
        });
        (met.last, met.text) = (now, text);
    }

    /// It is over.
    pub(crate) fn end(&self, trouble: Trouble) {
        self.lock().remove(&trouble);
    }

    /// It is over if it was not met for `quiet`.
    pub(crate) fn end_if_quiet(&self, trouble: Trouble, quiet: Duration) {
        let now = clock::now();
        let mut standing = self.lock();
        if standing
            .get(&trouble)
            .is_some_and(|met| now.duration_since(met.last) >= quiet)
        {
            standing.remove(&trouble);
        }
    }

    /// What stands now.
    pub(crate) fn list(&self) -> Vec<Standing> {
        let standing = self.lock();
        let standing = standing.iter().map(|(trouble, met)| Standing {
            trouble: *trouble,
            since_us: met.since_us,
            text: met.text.clone(),
        });
        standing.collect()
    }

    /// Whether it stands.
    pub(crate) fn has(&self, trouble: Trouble) -> bool {
        self.lock().contains_key(&trouble)
    }

    /// Whether nothing stands that keeps the server from its work.
    pub(crate) fn is_ready(&self) -> bool {
        !self.lock().keys().any(|trouble| trouble.stops_work())
    }

    /// Whether the archive takes entries, whatever else does not work.
    pub(crate) fn takes_entries(&self) -> bool {
        let standing = self.lock();
        !standing.contains_key(&Trouble::Archiving) && !standing.contains_key(&Trouble::Disk)
    }

    /// What keeps the server from its work.
    pub(crate) fn stoppers(&self) -> Vec<Trouble> {
        let standing = self.lock();
        standing
            .keys()
            .copied()
            .filter(|trouble| trouble.stops_work())
            .collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Trouble, Met>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_is_named_until_it_is_over_and_only_what_stops_work_is_not_ready() {
        let troubles = Troubles::default();
        troubles.meet(Trouble::DiskShort, "9 MiB are left");
        assert!(troubles.is_ready());
        troubles.meet(Trouble::Archiving, "No space left on device");
        troubles.meet(Trouble::Archiving, "Read-only file system");
        assert_eq!(troubles.stoppers(), [Trouble::Archiving]);
        let list = troubles.list();
        assert_eq!(list.len(), 2);
        assert!(
            list.iter()
                .any(|standing| standing.text.to_string() == "Read-only file system")
        );
        troubles.end_if_quiet(Trouble::Archiving, Duration::from_secs(3600));
        assert!(!troubles.is_ready());
        troubles.end_if_quiet(Trouble::Archiving, Duration::ZERO);
        assert!(troubles.is_ready());
        assert!(troubles.takes_entries());
        troubles.meet(Trouble::Sealing, "x");
        assert!(!troubles.is_ready() && troubles.takes_entries());
        troubles.meet(Trouble::Disk, "x");
        assert!(!troubles.takes_entries());
        troubles.end(Trouble::Disk);
        troubles.end(Trouble::Sealing);
        troubles.end(Trouble::DiskShort);
        assert!(troubles.list().is_empty());
    }
}
