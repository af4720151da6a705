//! Signs of life of the thread that reads: who watches it sees that it hangs, and where.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clock;

/// What the thread does, and since when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Beat(Arc<Mutex<Doing>>);

#[derive(Debug, Default)]
struct Doing {
    /// Its last sign of life, or when it said it would be back; none before the first.
    at: Option<Instant>,
    path: PathBuf,
}

impl Beat {
    /// The thread lives, and goes on with what is at `path`.
    pub(super) fn at(&self, path: &Path) {
        let now = clock::now();
        let mut doing = self.lock();
        doing.at = Some(now);
        // The memory of the one before serves again: this is said of every file, every second.
        doing.path.as_mut_os_string().clear();
        doing.path.push(path);
    }

    /// The thread lives.
    pub(super) fn tick(&self) {
        let now = clock::now();
        self.lock().at = Some(now);
    }

    /// The thread waits for others until then.
    pub(super) fn rests_until(&self, then: Instant) {
        let mut doing = self.lock();
        doing.at = Some(then);
        doing.path.as_mut_os_string().clear();
    }

    /// For how long there was no sign of life when that is `limit` or more, and where the thread was then.
    pub(crate) fn silent_for(&self, now: Instant, limit: Duration) -> Option<(Duration, PathBuf)> {
        let doing = self.lock();
        let silent = now.saturating_duration_since(doing.at?);
        (silent >= limit).then(|| (silent, doing.path.clone()))
    }

    fn lock(&self) -> MutexGuard<'_, Doing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_said_nothing_for_too_long_hangs_where_it_was() {
        let (beat, limit) = (Beat::default(), Duration::from_secs(15));
        let start = clock::now();
        let late = start + Duration::from_secs(3600);
        // Nothing was begun that could hang.
        assert!(beat.silent_for(late, limit).is_none());
        beat.rests_until(start + Duration::from_secs(10));
        assert!(
            beat.silent_for(start + Duration::from_secs(24), limit)
                .is_none()
        );
        assert!(
            beat.silent_for(start + Duration::from_secs(25), limit)
                .is_some()
        );
        beat.at(Path::new("/a/longer/one"));
        beat.at(Path::new("/a"));
        beat.tick();
        let (silent, path) = beat.silent_for(late, limit).unwrap();
        assert!(silent > Duration::from_secs(3500));
        assert_eq!(path, Path::new("/a"));
    }
}
