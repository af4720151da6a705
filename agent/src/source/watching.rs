//! Which files changed, as the system tells it: they are read at once, the others a moment later.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use notify::event::ModifyKind;
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
            let mut news = lock(&told);
            news.is_partial |= event.need_rescan();
            for path in event.paths {
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

    /// Watches these from now on, as far as there is room.
    pub(super) fn add<'a>(&mut self, directories: impl Iterator<Item = &'a Path>) {
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

    /// What was told since the last call.
    pub(super) fn take(&self) -> News {
        core::mem::take(&mut *lock(&self.news))
    }
}

fn lock(news: &Mutex<News>) -> MutexGuard<'_, News> {
    news.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Directories that are watched; those after them are polled.
const WATCHES_MAX: usize = 1024;
/// Paths remembered between two looks: who changes more of them at once makes all files be looked at.
const PATHS_MAX: usize = 4096;
