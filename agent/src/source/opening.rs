//! Streams for the files that were found, and none for those at rest.

use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use scrinium_protocol::sl::sources::SourceState;
use tracing::debug;

use super::claims::{self, Claims, Collected};
use super::disk::{Seen, is_absent};
use super::file::{FileStream, Place, Told};
use super::findings::Finding;
use super::round::{Left, Met};
use super::walker::Looked;
use super::watching::{Made, News};
use super::{AWAKE_MAX, Followed, Sources, Waiting, discover, generations, shares};
use crate::clock;

/// A file without a stream.
struct New<'a> {
    /// There was a stream of its name before.
    is_known: bool,
    path: &'a PathBuf,
    source: usize,
    file: Option<Seen>,
}

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
                self.open_left(found.left);
            }
        }
        let took = clock::now().saturating_duration_since(now);
        self.walker.took(took);
        let news = self.watching.take();
        self.count_arrivals(&news);
        let News {
            changed,
            appeared,
            made,
            is_partial,
            ..
        } = news;
        if is_partial {
            // What is not known to have changed is read when all are, a moment later: who changes very many names must not
            // make all files be looked at all the time.
            self.walker.hurry();
        }
        self.due.paths.extend(changed);
        if !appeared.is_empty() {
            self.meet(appeared, &made, now);
        }
        self.say_vanished();
    }

    /// Tells streams how many files came to their paths: what they do not find of those is gone.
    fn count_arrivals(&mut self, news: &News) {
        let Some((before, now)) = news.taken else {
            return;
        };
        let told = |times, is_made| Told {
            times,
            is_made,
            before,
            now,
        };
        if news.is_partial || !news.placed.is_empty() {
            for (path, followed) in &mut self.streams {
                let dir = path.parent();
                if news.is_partial || dir.is_some_and(|dir| news.placed.contains(dir)) {
                    followed.stream.count_arrivals(told(None, false));
                }
            }
            if news.is_partial {
                return;
            }
        }
        for (path, made) in &news.made {
            let counts = path.parent().is_some_and(|dir| self.watching.counts(dir));
            if let Some(followed) = self.streams.get_mut(path) {
                let times = Some(made.times).filter(|_| counts);
                followed.stream.count_arrivals(told(times, made.is_made));
            }
        }
    }

    /// Opens what appeared, without waiting for a walk: it may be gone by then. What needs more than a look at its own
    /// name is left to the walk.
    pub(super) fn meet(
        &mut self,
        appeared: BTreeSet<PathBuf>,
        made: &BTreeMap<PathBuf, Made>,
        now: Instant,
    ) {
        let mut files = BTreeMap::new();
        for path in appeared {
            if self.streams.contains_key(&path) {
                continue;
            }
            let metadata = match std::fs::symlink_metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) => {
                    if let Some(made) = made.get(&path).filter(|_| is_absent(&error)) {
                        self.note_vanished(&path, made, now);
                    }
                    continue;
                }
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
            for path in files.into_keys() {
                if let Some(made) = made.get(&path)
                    && let Some(followed) = self.streams.get_mut(&path)
                {
                    followed.stream.begin_with(made.is_made);
                }
            }
        }
    }

    /// Opens the streams of files that are not there, of which there are other old generations than before: somebody may
    /// write to those still, or nothing of them was read before they were renamed.
    /// Only the walk asked the file system, which may not answer.
    pub(super) fn open_left(&mut self, mut left: BTreeMap<PathBuf, Left>) {
        let literal = (0..self.discovery.len()).filter_map(|source| self.discovery.literal(source));
        let literal: BTreeSet<PathBuf> = literal.collect();
        left.retain(|path, _| {
            // What is named outright is not looked for before there was a file.
            let is_looked_for = !literal.contains(path) || self.positions.knows_file(path);
            is_looked_for && !self.streams.contains_key(path) && !self.resting.contains(path)
        });
        let before = core::mem::take(&mut self.left);
        let mut collected = None;
        for (path, Left { one, numbers }) in left {
            if before.get(&path) != Some(&numbers) {
                let has_room = self.streams.len() < AWAKE_MAX / 2;
                let is_known = self.positions.knows_file(&path);
                if !has_room || !(is_known || self.shares.take(&one, clock::now())) {
                    continue; // it is found again
                }
                let collected = match &collected {
                    Some(collected) => Arc::clone(collected),
                    None => Arc::clone(collected.insert(self.collected())),
                };
                let source = self.discovery.source_of(&path);
                self.open(path.clone(), source, false, &collected);
            }
            self.left.insert(path, numbers);
        }
    }

    /// Opens a stream for every file that has none. `is_whole` when these are all there are.
    pub(super) fn take_up(&mut self, found: &BTreeMap<PathBuf, usize>, is_whole: bool) {
        if is_whole {
            self.waiting = None;
        }
        let new = self.new_among(found);
        if !new.is_empty() {
            self.open_new(new, found, is_whole);
        }
        if is_whole {
            drop(self.resting.take_unless(|path| found.contains_key(path)));
        }
        let met = self.met.iter().flatten().enumerate();
        let roots = met.filter(|(_, met): &(usize, &Met)| met.has_root);
        let roots = roots.map(|(source, _)| self.discovery.area(source).0);
        let parents = found.keys().filter_map(|path| path.parent());
        self.watching.add(roots.chain(parents), is_whole);
    }

    /// Files without a stream, and not at rest as they are now. Those of streams that began before come first: they know
    /// whose the others are.
    fn new_among<'a>(&self, found: &'a BTreeMap<PathBuf, usize>) -> Vec<New<'a>> {
        let (mut new, now) = (Vec::new(), clock::now());
        for (path, &source) in found {
            if self.streams.contains_key(path) {
                continue;
            }
            self.context.beat.at(path);
            let file = match self.disk.look(path) {
                Ok(Some(seen)) if self.resting.is_unchanged(&*self.disk, path, seen, now) => {
                    continue;
                }
                Ok(Some(seen)) => Some(seen),
                Ok(None) => continue, // gone again
                Err(_) => None,       // its stream will say so
            };
            new.push(New {
                is_known: self.positions.knows_file(path),
                path,
                source,
                file,
            });
        }
        new.sort_by_key(|new| (!new.is_known, new.path));
        new
    }

    fn open_new(&mut self, new: Vec<New<'_>>, found: &BTreeMap<PathBuf, usize>, is_whole: bool) {
        let bases: LazyCell<BTreeSet<PathBuf>, _> = LazyCell::new(|| {
            found
                .keys()
                .flat_map(|path| generations::bases_of(path))
                .collect()
        });
        let collected = self.collected();
        let mut claims = Claims::of(self.streams.values().map(|followed| &*followed.stream));
        for New {
            is_known,
            path,
            source,
            file,
        } in new
        {
            if self.streams.contains_key(path) {
                continue; // opened for an old generation of it
            }
            let has_room = self.streams.len() < AWAKE_MAX_OF_USERS
                || (self.streams.len() < AWAKE_MAX && shares::is_of_system(path));
            if !has_room {
                let waiting = self.waiting.get_or_insert_with(|| Waiting {
                    source,
                    path: path.clone(),
                    files: 0,
                });
                waiting.files += 1;
                continue;
            }
            self.context.beat.at(path);
            if self.resting.contains(path) {
                self.resting.remove(path);
                claims.reading_of(file.map(|file| file.id));
                self.open_as((path, Some(source), false), &collected, &mut claims);
                continue;
            }
            // What rested is somewhere else now: its stream knows what that means.
            if let Some(before) = file.and_then(|file| self.resting.path_of(file.id)) {
                let before = before.to_path_buf();
                self.resting.remove(&before);
                claims.reading_of(file.map(|file| file.id));
                self.open_as((&before, Some(source), false), &collected, &mut claims);
                continue;
            }
            let knows = |own: &Path| {
                let has_begun = self.positions.knows_file(own) || self.streams.contains_key(own);
                self.discovery.wants(own) && has_begun
            };
            if claims::own_path(&*self.disk, path, knows).is_some() {
                continue;
            }
            // Old generations belong to the stream of the file they were, and are read before it.
            let is_there = |base: &Path| {
                found.contains_key(base)
                    || (!is_whole && self.discovery.wants(base) && base.is_file())
            };
            let was_there =
                |base: &Path| self.discovery.wants(base) && self.positions.knows_file(base);
            if let Some(base) = claims::base_of(path, is_there, was_there) {
                if !is_there(&base) && !self.streams.contains_key(&base) {
                    let source = self.discovery.source_of(&base);
                    self.open_as((&base, source, false), &collected, &mut claims);
                }
                continue;
            }
            // A rotated file that matches a glob itself is still the stream it began as, and one file
            // with two names is one stream.
            let at = |own: &Path| self.streams.get(own).map(|followed| &*followed.stream);
            if file.is_some_and(|file| claims.is_anothers(at, file, path)) {
                debug!("a followed file has another name");
                continue;
            }
            if claims.is_target(path) && !self.end_left(path) {
                continue;
            }
            if !is_known && !self.shares.take(path, clock::now()) {
                continue;
            }
            claims.reading_of(file.map(|file| file.id));
            let history = bases.contains(path);
            self.open_as((path, Some(source), history), &collected, &mut claims);
        }
    }

    /// Ends the stream of a link that led to `path` and is gone, before that of `path` begins: two would read on in the
    /// same files when the link came back. Whether nothing stands in the way.
    fn end_left(&mut self, path: &Path) -> bool {
        let mut left = self.streams.iter();
        let left = left.find(|(_, followed)| followed.has_left(path));
        let Some((link, is_sealed)) = left.map(|(link, left)| (link.clone(), left.is_sealed()))
        else {
            return true;
        };
        if is_sealed && let Some(mut followed) = self.streams.remove(&link) {
            followed.close(&mut self.positions);
        }
        is_sealed
    }

    /// How far streams collected files, those that are not open among them.
    fn collected(&mut self) -> Arc<Collected> {
        let (is_anew, bookmarks) = self.positions.closed();
        if is_anew {
            self.collected = Collected::default();
        }
        self.collected.note(bookmarks.into_iter());
        let streams = self.streams.values().map(|followed| &*followed.stream);
        Arc::new(self.collected.with(streams))
    }

    fn open_as(
        &mut self,
        (path, source, history): (&Path, Option<usize>, bool),
        collected: &Arc<Collected>,
        claims: &mut Claims,
    ) {
        self.open(path.to_owned(), source, history, collected);
        if let Some(followed) = self.streams.get(path) {
            claims.add(&followed.stream);
        }
    }

    /// Opens the stream of a path for the source that names it.
    pub(super) fn open(
        &mut self,
        path: PathBuf,
        source: Option<usize>,
        history: bool,
        inherited: &Arc<Collected>,
    ) {
        let output = self.positions.open(discover::stream_of(&path));
        let multiline = source.and_then(|source| self.discovery.multiline(source));
        let place = Place {
            path: path.clone(),
            root: self.discovery.root_of(source, &path),
            deny: self.context.deny.clone(),
            named: self.discovery.named(),
            disk: self.disk.clone(),
        };
        let glob = source.map_or("", |source| self.discovery.glob(source));
        let (began, now) = (self.since.of(glob), clock::now());
        let mut stream = FileStream::new(output, place, multiline, history, began, now);
        stream.inherit(inherited);
        self.due.fresh.insert(path.clone());
        let stream = Box::new(stream);
        self.streams.insert(path, Followed { stream, source });
    }

    /// Says which files wait for room, and where none are found any more.
    pub(super) fn stuck(&self, now: Instant) -> Vec<(usize, Finding)> {
        let mut all = Vec::new();
        if let Some(Waiting {
            source,
            path,
            files,
        }) = &self.waiting
        {
            let cause = format!(
                "{files} files are not looked into yet: there is room for {AWAKE_MAX} that are written to or cannot be read, {AWAKE_MAX_OF_USERS} of users"
            );
            let finding = Finding::trouble(SourceState::NotWalked, path, cause);
            all.push((*source, finding));
        }
        if let Some(path) = self.walker.stuck(now) {
            let mut sources = 0..self.discovery.len();
            let source = sources.find(|source| path.starts_with(self.discovery.area(*source).0));
            let cause = "no new files are found: too many file systems do not answer";
            let finding = Finding::trouble(SourceState::NotWalked, &path, cause);
            all.push((source.unwrap_or(0), finding));
        }
        all
    }

    /// Lets files that are quiet, or cannot be read, do without a stream. Where there are so many, what was written late to
    /// renamed ones of which there is no new one is collected when there is a file at their path again.
    pub(super) fn rest(&mut self, now: Instant) {
        let (positions, resting) = (&mut self.positions, &mut self.resting);
        let due = &self.due;
        self.streams.retain(|path, stream| {
            // It was not looked into yet.
            if due.fresh.contains(path) {
                return true;
            }
            if stream.is_left(now) {
                stream.close(positions);
                return false;
            }
            let Some(rest) = stream.rest(now) else {
                return true;
            };
            let trouble = stream.source.zip(stream.trouble());
            stream.close(positions);
            resting.insert(path, rest, trouble);
            false
        });
    }
}

/// Streams of files at once, those of users among them: the system's own have places that no user can take.
const AWAKE_MAX_OF_USERS: usize = AWAKE_MAX - AWAKE_MAX / 8;
