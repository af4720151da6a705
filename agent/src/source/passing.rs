//! Whose turn it is to be read: what changed at once, everything now and then, what is new a little at a time.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use scrinium_segment::fault;

use super::Sources;
use super::asked::{Asked, Question};
use super::claims::Collected;
use super::file::Pass;
use crate::clock;

/// Which streams are to be read: those that the system says changed, those that are not read to their ends, and
/// now and then all of them.
#[derive(Default)]
pub(super) struct Due {
    pub(super) paths: BTreeSet<PathBuf>,
    /// Streams that were not read yet: very many at once must not keep the others waiting.
    pub(super) fresh: BTreeSet<PathBuf>,
    /// When all are; at once when that is not said.
    pub(super) all_at: Option<Instant>,
}

impl Sources {
    /// Lets every source have its turn. Files and the others are first in turns, so that neither has
    /// all the room there is.
    pub(super) fn pass(&mut self, now: Instant) -> Pass {
        self.feeds_first = !self.feeds_first;
        let first = match self.feeds_first {
            true => self.pass_feeds(),
            false => self.pass_files(now),
        };
        let second = match self.feeds_first {
            _ if first == Pass::Blocked || self.context.stopped => Pass::Idle,
            true => self.pass_files(now),
            false => self.pass_feeds(),
        };
        let reached = first.max(second);
        if reached == Pass::Blocked {
            let since = *self.blocked_at.get_or_insert(now);
            if now.duration_since(since) >= DELETED_PATIENCE {
                self.free_deleted();
            }
        } else {
            self.blocked_at = None;
        }
        reached
    }

    pub(super) fn pass_feeds(&mut self) -> Pass {
        let mut reached = Pass::Idle;
        for feed in &mut self.feeds {
            reached = reached.max(feed.pass(&mut self.positions, &mut self.context));
            if reached == Pass::Blocked || self.context.stopped {
                break;
            }
        }
        // Should there be no room before the last one had its turn, it is the first the next time.
        if let [_, _, ..] = &*self.feeds {
            self.feeds.rotate_left(1);
        }
        reached
    }

    /// Lets the streams read on that are due: what changed, or all, and some of those that are new.
    fn pass_files(&mut self, now: Instant) -> Pass {
        self.context.parks = self.streams.len() > self.descriptors_max;
        let reached = match self.due.all_at.is_none_or(|at| now >= at) {
            true => self.pass_all(now),
            false => self.pass_changed(now),
        };
        if reached >= Pass::Paced {
            self.answer(now);
        }
        if reached == Pass::Blocked || self.context.stopped {
            return reached;
        }
        reached.max(self.pass_fresh(now))
    }

    /// Tells streams that found strange files, at their paths and beside them, whose these are.
    fn answer(&mut self, now: Instant) {
        let until = clock::now() + ANSWERS_MAX;
        let asking = self.streams.iter().flat_map(|(by, own)| {
            let counts = by.parent().is_some_and(|dir| self.watching.counts(dir));
            own.asks(counts, now)
        });
        let asking: Vec<Question> = asking.collect();
        if asking.is_empty() {
            return;
        }
        // What rested under another name: its stream knows what that means.
        let resting = asking.iter().filter_map(|question| {
            let before = self.resting.path_of(question.file.id)?;
            (before != question.by).then(|| before.to_path_buf())
        });
        for before in resting.collect::<BTreeSet<PathBuf>>() {
            self.resting.remove(&before);
            if !self.streams.contains_key(&before) {
                let source = self.discovery.source_of(&before);
                self.open(before, source, false, &Arc::default());
            }
        }
        let (is_anew, bookmarks) = self.positions.closed();
        if is_anew {
            self.collected = Collected::default();
        }
        self.collected.note(bookmarks.into_iter());
        let streams = self.streams.iter();
        let mut asked = Asked::of(asking, streams.map(|(path, own)| (&**path, &*own.stream)));
        for n in 0..asked.len() {
            // The others ask still when it is their turn.
            if self.context.stopped || clock::now() >= until {
                return;
            }
            let at = |path: &Path| self.streams.get(path).map(|own| &*own.stream);
            let Some((question, answer)) = asked.answer(n, at, &self.collected) else {
                continue;
            };
            let by = question.by.clone();
            self.context.beat.at(&by);
            if let Some(own) = self.streams.get_mut(&by) {
                own.answer((&question.path, question.file), answer, now);
                if !own.waits() {
                    // Before another reads on in it: what one stream asks stands together.
                    own.stream.pass(&mut self.context, now);
                }
                self.due.paths.insert(by);
            }
            asked.note(n);
        }
    }

    /// Reads some of what was never read.
    fn pass_fresh(&mut self, now: Instant) -> Pass {
        let until = clock::now() + FRESH_MAX;
        let mut reached = Pass::Idle;
        while let Some(path) = self.due.fresh.pop_first() {
            let Some(stream) = self.streams.get_mut(&path) else {
                continue;
            };
            self.context.beat.at(&path);
            fault::point("agent: a file's turn");
            let pass = stream.pass(&mut self.context, now);
            reached = reached.max(pass);
            match pass {
                Pass::Blocked => {
                    self.due.fresh.insert(path);
                    return reached;
                }
                Pass::Idle => {}
                Pass::Paced | Pass::Busy => {
                    self.due.paths.insert(path);
                }
            }
            if self.context.stopped || clock::now() >= until {
                break;
            }
        }
        match self.due.fresh.is_empty() {
            true => reached,
            false => reached.max(Pass::Busy),
        }
    }

    fn pass_changed(&mut self, now: Instant) -> Pass {
        let mut reached = Pass::Idle;
        for path in core::mem::take(&mut self.due.paths) {
            let Some(stream) = self.streams.get_mut(&path) else {
                continue;
            };
            self.context.beat.at(&path);
            fault::point("agent: a file's turn");
            let pass = stream.pass(&mut self.context, now);
            reached = reached.max(pass);
            if pass == Pass::Blocked {
                self.due.all_at = None;
                self.turn = Some(path);
                return reached;
            }
            if pass != Pass::Idle {
                self.due.paths.insert(path);
            }
            if self.context.stopped {
                return reached;
            }
        }
        reached
    }

    fn pass_all(&mut self, now: Instant) -> Pass {
        let began = clock::now();
        let mut reached = Pass::Idle;
        let mut unread = BTreeSet::new();
        let turn = self.turn.take().unwrap_or_default();
        for is_after in [true, false] {
            let streams = self.streams.iter_mut();
            for (path, stream) in streams.filter(|(path, _)| (**path >= turn) == is_after) {
                if self.due.fresh.contains(path) {
                    continue;
                }
                self.context.beat.at(path);
                fault::point("agent: a file's turn");
                let pass = stream.pass(&mut self.context, now);
                reached = reached.max(pass);
                if pass == Pass::Blocked {
                    self.turn = Some(path.clone());
                }
                if self.context.stopped || reached == Pass::Blocked {
                    self.due.all_at = None;
                    return reached;
                }
                if pass != Pass::Idle {
                    unread.insert(path.clone());
                }
            }
        }
        let positions = &mut self.positions;
        self.streams.retain(|_, stream| {
            let over = stream.is_over(now);
            if over {
                // Should a file of this name come back, its stream goes on.
                stream.close(positions);
            }
            !over
        });
        self.due.paths = unread;
        // Ten thousand quiet files are looked at less often than ten.
        let took = clock::now().saturating_duration_since(began);
        let next = self.poll_interval().max(match reached {
            Pass::Idle => took * ALL_SHARE,
            Pass::Paced | Pass::Busy | Pass::Blocked => Duration::ZERO,
        });
        self.due.all_at = Some(now + next);
        reached
    }

    /// Lets deleted files go that are not read yet, the largest first, while they hold too much disk.
    fn free_deleted(&mut self) {
        let mut held: Vec<(u64, PathBuf)> = self
            .streams
            .iter()
            .map(|(path, stream)| (stream.deleted_bytes(), path.clone()))
            .collect();
        held.sort_unstable();
        let mut total: u64 = held.iter().map(|(bytes, _)| bytes).sum();
        while total > self.deleted_bytes_max
            && let Some((bytes, path)) = held.pop()
        {
            if let Some(stream) = self.streams.get_mut(&path) {
                stream.drop_deleted();
            }
            total -= bytes;
        }
    }
}

/// How long files that were never read are read before the others have their turn.
const FRESH_MAX: Duration = Duration::from_millis(100);
/// How long it is looked whose strange files are before the others have their turn: after a midnight there may be very many.
const ANSWERS_MAX: Duration = Duration::from_millis(200);
/// Looking at all files, changed or not, takes at most one part in so many of the time.
const ALL_SHARE: u32 = 25;
/// A spool that was full for this long may be so for longer: disk space counts then.
const DELETED_PATIENCE: Duration = Duration::from_secs(2);
