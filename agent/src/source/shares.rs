//! How many new files of its users an agent takes up: every file is a stream for ever, on the server too, and has its
//! part of what the server lets one agent have. A user who makes files as fast as the disk allows must not use up
//! what the others need.
//!
//! Files of root and of the agent's own user have no limit here. A file that is over one waits, and is collected from
//! its beginning when there is room; that is said once a day for each user.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use tracing::warn;

/// Counts new files by who owns them.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// When the counts of users began: a clock that people set may be ahead for a while.
    began: Option<Instant>,
    users: BTreeMap<u32, Share>,
    /// Of all users, since this process began.
    all: usize,
}

#[derive(Debug, Default)]
struct Share {
    taken: usize,
    is_told: bool,
}

impl Shares {
    /// Whether a stream may begin with the file at `path`; it is counted then.
    #[cfg(unix)]
    pub(super) fn take(&mut self, path: &Path, now: Instant) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let Ok(metadata) = std::fs::metadata(path) else {
            return true; // its stream says what is wrong
        };
        self.take_of(metadata.uid(), now)
    }

    /// Files have no owners that could be told apart.
    #[cfg(not(unix))]
    pub(super) fn take(&mut self, _path: &Path, _now: Instant) -> bool {
        true
    }

    #[cfg_attr(
        not(any(unix, test)),
        expect(dead_code, reason = "files have no owners there")
    )]
    fn take_of(&mut self, owner: u32, now: Instant) -> bool {
        if is_trusted(owner) {
            return true;
        }
        let began = *self.began.get_or_insert(now);
        if now.saturating_duration_since(began) >= DAY {
            (self.began, self.users) = (Some(now), BTreeMap::new());
        }
        let share = self.users.entry(owner).or_default();
        if share.taken < NEW_PER_DAY_MAX && self.all < NEW_MAX {
            share.taken += 1;
            self.all += 1;
            return true;
        }
        if !core::mem::replace(&mut share.is_told, true) {
            warn!(
                user = owner,
                files = share.taken,
                of_all_users = self.all,
                "a user of this machine has made more new files than are taken up in a day: further ones wait"
            );
        }
        false
    }
}

/// Whether a file is the system's or the agent's own, and not one of those that a user can make many of.
#[cfg(unix)]
pub(super) fn is_of_system(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path);
    metadata.is_ok_and(|metadata| is_trusted(metadata.uid()))
}

/// Files have no owners that could be told apart.
#[cfg(not(unix))]
pub(super) fn is_of_system(_path: &Path) -> bool {
    true
}

/// Whether what an owner does is what the administrator does.
#[cfg(unix)]
fn is_trusted(owner: u32) -> bool {
    owner == 0 || owner == rustix::process::geteuid().as_raw()
}

#[cfg(not(unix))]
fn is_trusted(_owner: u32) -> bool {
    true
}

const DAY: Duration = Duration::from_secs(86_400);
/// New files of one user in one day, and of all users as long as the process lives: the server lets an agent have
/// 250,000 streams, of which the senders of its relays take 100,000 at most.
const NEW_PER_DAY_MAX: usize = 20_000;
const NEW_MAX: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_a_share_of_a_day_and_all_users_have_one_for_ever_and_root_has_none() {
        let mut shares = Shares::default();
        let start = crate::clock::now();
        let mut take = |owner: u32, days: u32, count: usize| {
            let now = start + DAY * days;
            let taken = (0..count).filter(|_| shares.take_of(owner, now));
            taken.count()
        };
        assert_eq!(take(1000, 0, 30_000), NEW_PER_DAY_MAX);
        assert_eq!(take(1001, 0, 10), 10);
        assert_eq!(take(0, 0, 300_000), 300_000);
        assert_eq!(take(1000, 1, 30_000), NEW_PER_DAY_MAX);
        assert_eq!(take(1000, 1, 10), 0);
        let others: usize = (2000..2010).map(|user| take(user, 1, 30_000)).sum();
        assert_eq!(others, NEW_MAX - 2 * NEW_PER_DAY_MAX - 10);
        assert_eq!(take(1001, 500, 10), 0);
        assert_eq!(take(0, 500, 10), 10);
    }
}
