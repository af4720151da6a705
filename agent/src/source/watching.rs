//! Which files changed, as the system tells it: they are read at once, the others a moment later.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::{ModifyKind, RenameMode};
use notify::{EventKind, RecursiveMode, Watcher as _};
use tracing::{debug, warn};

use super::feed::Waker;

/// The watch over directories.
pub(super) struct Watching {
    watcher: Option<notify::RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    news: Arc<Mutex<News>>,
}

/// What was told since the last look.
#[derive(Default)]
pub(super) struct News {
    /// Paths at which something changed.
    pub(super) changed: BTreeSet<PathBuf>,
    /// Paths that appeared.
    pub(super) appeared: BTreeSet<PathBuf>,
    /// Those of them at which a file was made, or to which one was renamed, from where if that is known.
    pub(super) made: BTreeMap<PathBuf, Option<PathBuf>>,
    /// Paths that are others now, or none: a directory among them is watched no more.
    moved: BTreeSet<PathBuf>,
    /// There was more than is remembered: anything may have changed.
    pub(super) is_partial: bool,
}

impl News {
    fn note(&mut self, path: PathBuf, appeared: bool) {
        let paths = match appeared {
            true => &mut self.appeared,
            false => &mut self.changed,
        };
        if paths.len() < PATHS_MAX {
            paths.insert(path);
        } else if !paths.contains(&path) {
            self.is_partial = true;
        }
    }
}

impl Watching {
    pub(super) fn start(waker: Waker) -> Self {
        let news: Arc<Mutex<News>> = Arc::default();
        let told = news.clone();
        let tell = move |event: notify::Result<notify::Event>| {
            let Ok(event) = event else {
                // Events were lost: any may be among them.
                lock(&told).is_partial = true;
                return waker.wake();
            };
            let appeared = match event.kind {
                EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(_)) => true,
                EventKind::Modify(_) | EventKind::Remove(_) => false,
                // Reading a file is an event too: only changes count, or we would wake ourselves.
                EventKind::Any | EventKind::Access(_) | EventKind::Other => return,
            };
            let made = match (&event.kind, &*event.paths) {
                (
                    EventKind::Create(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To)),
                    [to],
                ) => Some((to.clone(), None)),
                (EventKind::Modify(ModifyKind::Name(RenameMode::Both)), [from, to]) => {
                    Some((to.clone(), Some(from.clone())))
                }
                _ => None,
            };
            let is_moved = appeared || matches!(event.kind, EventKind::Remove(_));
            let mut news = lock(&told);
            news.is_partial |= event.need_rescan();
            if let Some((to, from)) = made
                && news.made.len() < PATHS_MAX
            {
                news.made.insert(to, from);
            }
            for path in event.paths {
                if is_moved && news.moved.len() < PATHS_MAX {
                    news.moved.insert(path.clone());
                }
                if appeared {
                    news.note(path.clone(), true);
                }
                news.note(path, false);
            }
            drop(news);
            waker.wake();
        };
        let watcher = match notify::recommended_watcher(tell) {
            Ok(watcher) => Some(watcher),
            Err(error) => {
                warn!(%error, "changes are not notified on this system; polling");
                None
            }
        };
        Self {
            watcher,
            watched: BTreeSet::new(),
            news,
        }
    }

    /// Whether changes are told at all.
    pub(super) fn works(&self) -> bool {
        self.watcher.is_some()
    }

    /// Watches these from now on, as far as there is room; when they are all there are, others make room for them.
    pub(super) fn add<'a>(&mut self, directories: impl Iterator<Item = &'a Path>, are_all: bool) {
        let directories: BTreeSet<&Path> = directories.collect();
        if are_all && self.watched.len() >= WATCHES_MAX {
            let others = self.watched.iter();
            let others = others.filter(|own| !directories.contains(&***own));
            let others: Vec<PathBuf> = others.cloned().collect();
            others.iter().for_each(|other| self.forget(other));
        }
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for directory in directories {
            if self.watched.len() >= WATCHES_MAX {
                return;
            }
            if self.watched.contains(directory) {
                continue;
            }
            // Without a watch the poll finds it, a little later.
            if let Err(error) = watcher.watch(directory, RecursiveMode::NonRecursive) {
                debug!(%error, "a directory cannot be watched and is polled");
            }
            self.watched.insert(directory.to_owned());
        }
    }

    /// What was told since the last call. A directory that was removed or renamed is watched when it is found again.
    pub(super) fn take(&mut self) -> News {
        let mut news = core::mem::take(&mut *lock(&self.news));
        for path in core::mem::take(&mut news.moved) {
            if self.watched.contains(&path) {
                self.forget(&path);
            }
        }
        news
    }

    fn forget(&mut self, directory: &Path) {
        self.watched.remove(directory);
        if let Some(watcher) = &mut self.watcher
            && let Err(error) = watcher.unwatch(directory)
        {
            debug!(%error, "a directory is watched no more");
        }
    }
}

fn lock(news: &Mutex<News>) -> MutexGuard<'_, News> {
    news.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Directories that are watched; those after them are polled.
const WATCHES_MAX: usize = 1024;
/// Paths remembered between two looks: who changes more of them at once makes all files be looked at.
const PATHS_MAX: usize = 4096;

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};
    use std::time::Duration;

    use super::*;
    use crate::clock;
    use crate::source::Command;

    fn hears(watching: &mut Watching, woken: &Receiver<Command>, path: &Path) -> bool {
        let until = clock::now() + Duration::from_secs(10);
        while let Some(left) = until.checked_duration_since(clock::now()) {
            if watching.take().changed.contains(path) {
                return true;
            }
            if woken.recv_timeout(left).is_err() {
                return false;
            }
        }
        false
    }

    /// A directory that is removed and made anew is another, of which the system tells nothing before it is asked to.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "nothing of a test is durable")]
    fn a_directory_that_was_made_anew_is_watched_again_and_gone_ones_keep_no_place() {
        let dir = std::env::temp_dir().join(format!("scrinium-watching-{}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        let (own, file) = (dir.join("own"), dir.join("own/a.log"));
        std::fs::create_dir_all(&own).unwrap();
        let (told, woken) = sync_channel(100);
        let mut watching = Watching::start(Waker::new(told));
        watching.add([&*own].into_iter(), true);
        std::fs::write(&file, "a\n").unwrap();
        assert!(hears(&mut watching, &woken, &file));
        std::fs::remove_dir_all(&own).unwrap();
        assert!(hears(&mut watching, &woken, &own));
        std::fs::create_dir_all(&own).unwrap();
        watching.add([&*own].into_iter(), true);
        std::fs::write(&file, "b\n").unwrap();
        assert!(hears(&mut watching, &woken, &file));
        // Where there is no more room, what is not found any more gives its own.
        for n in 0..WATCHES_MAX {
            watching.watched.insert(dir.join(n.to_string()));
        }
        watching.add([&*dir].into_iter(), true);
        assert!(watching.watched.iter().eq([&dir]));
        std::fs::remove_dir_all(dir).unwrap();
    }
}
