//! Streams for the files that were found, and none for those at rest.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Instant;

use scrinium_protocol::identity::{StreamKind, StreamName};
use tracing::debug;

use super::bookmark::FileId;
use super::file::{FileStream, Place};
use super::round::Met;
use super::walker::Looked;
use super::watching::News;
use super::{AWAKE_MAX, Followed, Sources, discover, follow, generations, trust};
use crate::clock;

impl Sources {
    /// Takes up what the walk found, and what the system says appeared and changed.
    pub(super) fn look(&mut self, now: Instant) {
        self.walker.review(now);
        match self.walker.take() {
            None => {}
            Some(Looked::Part(files, met)) => {
                self.met = Some(met);
                self.take_up(&files, false);
            }
            Some(Looked::Whole(found)) => {
                self.met = Some(found.met);
                self.take_up(&found.files, true);
            }
        }
        let took = clock::now().saturating_duration_since(now);
        self.walker.took(took);
        let News {
            changed,
            appeared,
            is_partial,
        } = self.watching.take();
        if is_partial {
            // What is not known to have changed is read when all are, a moment later: who changes very many names must not
            // make all files be looked at all the time.
            self.walker.hurry();
        }
        self.due.paths.extend(changed);
        if !appeared.is_empty() {
            self.meet(appeared);
        }
    }

    /// Opens what appeared, without waiting for a walk: it may be gone by then. What needs more than a look at its own
    /// name is left to the walk.
    fn meet(&mut self, appeared: BTreeSet<PathBuf>) {
        let mut files = BTreeMap::new();
        for path in appeared {
            if self.streams.contains_key(&path) {
                continue;
            }
            let Ok(metadata) = std::fs::symlink_metadata(&path) else {
                continue; // gone again
            };
            let source = self.discovery.source_of(&path);
            let is_plain = metadata.is_file()
                && !self.resting.contains(&path)
                && !generations::bases_of(&path).any(|base| self.discovery.wants(&base));
            match source {
                Some(source) if is_plain => {
                    files.insert(path, source);
                }
                // A directory may hold files that are wanted.
                None if metadata.is_file() => {}
                _ => self.walker.hurry(),
            }
        }
        if !files.is_empty() {
            self.take_up(&files, false);
        }
    }

    /// Opens a stream for every file that has none. `is_whole` when these are all there are.
    fn take_up(&mut self, found: &BTreeMap<PathBuf, usize>, is_whole: bool) {
        let bases: LazyCell<BTreeSet<PathBuf>, _> = LazyCell::new(|| {
            found
                .keys()
                .flat_map(|path| generations::bases_of(path))
                .collect()
        });
        if is_whole {
            self.waits_for_room = false;
        }
        let mut new = BTreeMap::new();
        let mut known: Option<BTreeSet<FileId>> = None;
        for (path, &source) in found {
            if self.streams.contains_key(path) {
                continue;
            }
            self.context.beat.at(path);
            let file = match follow::look(path) {
                Ok(Some((file, len))) if self.resting.is_unchanged(path, file, len) => continue,
                Ok(Some((file, _))) => Some(file),
                Ok(None) => continue, // gone again
                Err(_) => None,       // its stream will say so
            };
            if self.streams.len() + new.len() >= AWAKE_MAX {
                self.waits_for_room = true;
                continue;
            }
            let known = known.get_or_insert_with(|| {
                let streams = self.streams.values();
                streams.flat_map(|stream| stream.reading()).collect()
            });
            if self.resting.contains(path) {
                self.resting.remove(path);
                known.extend(file);
                new.insert(path.clone(), (Some(source), false));
                continue;
            }
            // What rested is somewhere else now: its stream knows what that means.
            if let Some(before) = file.and_then(|file| self.resting.path_of(file)) {
                let before = before.to_path_buf();
                self.resting.remove(&before);
                known.extend(file);
                new.insert(before, (Some(source), false));
                continue;
            }
            // A rotated file that matches a glob itself is still the stream it began as, and one file
            // with two names is one stream.
            if file.is_some_and(|file| known.contains(&file)) {
                debug!("a followed file has another name");
                continue;
            }
            // Old generations belong to the stream of the file they were, and are read before it.
            let is_there = |base: &Path| {
                found.contains_key(base)
                    || (!is_whole && self.discovery.wants(base) && base.is_file())
            };
            if generations::bases_of(path).any(|base| is_there(&base)) {
                continue;
            }
            let is_old = self.positions.knows_file(path);
            if !is_old && !self.shares.take(path, clock::unix_us()) {
                continue;
            }
            known.extend(file);
            new.insert(path.clone(), (Some(source), bases.contains(path)));
        }
        for (path, (source, history)) in new {
            self.context.beat.at(&path);
            self.open(path, source, history);
        }
        if is_whole {
            drop(self.resting.take_unless(|path| found.contains_key(path)));
        }
        let met = self.met.iter().flatten().enumerate();
        let roots = met.filter(|(_, met): &(usize, &Met)| met.has_root);
        let roots = roots.map(|(source, _)| self.discovery.area(source).0);
        let parents = found.keys().filter_map(|path| path.parent());
        self.watching.add(roots.chain(parents));
    }

    /// Opens the stream of a path for the source that names it.
    pub(super) fn open(&mut self, path: PathBuf, source: Option<usize>, history: bool) {
        let name = StreamName {
            kind: StreamKind::File,
            name: discover::name_of(&path),
        };
        let output = self.positions.open(name);
        let root = trust::ROOT_DIR.into();
        let deny = self.context.deny.clone();
        let multiline = source.and_then(|source| self.discovery.multiline(source));
        let place = Place {
            path: path.clone(),
            root,
            deny,
        };
        let stream = FileStream::new(output, place, multiline, history, self.began);
        self.due.fresh.insert(path.clone());
        self.streams.insert(path, Followed { stream, source });
    }

    /// Lets files that are read and quiet do without a stream.
    pub(super) fn rest(&mut self, now: Instant) {
        let (positions, resting) = (&mut self.positions, &mut self.resting);
        self.streams.retain(|path, stream| {
            let Some(rest) = stream.rest(now) else {
                return true;
            };
            stream.close(positions);
            resting.insert(path, rest);
            false
        });
    }
}
