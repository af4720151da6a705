//! Files that this stream does not know, at the path and beside it: another may have begun with them. Names are exchanged and
//! moved in circles, generations are moved to another directory, and one file is one stream: who began with it reads on, and
//! when that is done with it this one goes on there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, io};

use super::arrange::LOOK_BACK_INTERVAL;
use super::{FileStream, State};
use crate::source::asked::{self, Question, Whose};
use crate::source::bookmark::{Bookmark, FileId, Mark};
use crate::source::claims::Collected;
use crate::source::disk::Seen;

/// What is known of the file at the path that is not the one that is read.
#[derive(Debug, Default)]
pub(super) struct Strange {
    /// It is to be asked whose it is, since then.
    asked: Option<(Seen, Instant)>,
    /// Few streams have one.
    answer: Option<Box<Answer>>,
    /// Generations of which that is asked, and the answers of a while.
    generations: Option<Box<Generations>>,
}

#[derive(Debug, Default)]
struct Generations {
    asked: Vec<(PathBuf, Seen)>,
    answers: BTreeMap<FileId, Answer>,
}

#[derive(Debug)]
struct Answer {
    id: FileId,
    is_anothers: bool,
    /// How far others read it.
    collected: Collected,
    /// How far others read the file that was read last.
    last: Vec<Mark>,
    at: Instant,
}

impl Strange {
    /// Whether another stream reads the file.
    pub(super) fn is_anothers(&self, id: FileId) -> bool {
        self.answer_of(id).is_some_and(|answer| answer.is_anothers)
    }

    fn answer_of(&self, id: FileId) -> Option<&Answer> {
        let at_path = self.answer.as_deref().filter(|answer| answer.id == id);
        at_path.or_else(|| self.generations.as_ref()?.answers.get(&id))
    }

    /// How far others read the file that was asked for, if it is this one.
    pub(super) fn marks(&self, id: FileId) -> Vec<Mark> {
        let answer = self.answer_of(id);
        answer.map_or_else(Vec::new, |answer| answer.collected.marks(id))
    }

    /// Whether another stream read the file as far, too, in which this one took a bookmark.
    pub(super) fn is_read(&self, bookmark: &Bookmark) -> bool {
        let own = Mark::from(bookmark);
        let last = self.answer.iter().flat_map(|answer| &answer.last);
        let mut last = last.filter(|mark| mark.offset != Mark::ALL);
        own.offset > 0 && own.head_len() > 0 && last.any(|mark| own.is_part_of(mark))
    }

    /// Whether it is to be asked whose something is.
    pub(super) fn is_asking(&self) -> bool {
        let generations = self.generations.as_ref();
        self.asked.is_some() || generations.is_some_and(|own| !own.asked.is_empty())
    }

    /// Nothing is to be asked of the path.
    fn forget_path(&mut self) {
        (self.asked, self.answer) = (None, None);
    }

    /// Generations that nobody here knows: those of which it is not known whose they are, are asked for. Whether there are any.
    pub(super) fn ask(&mut self, unknown: Vec<(PathBuf, Seen)>, now: Instant) -> bool {
        if unknown.is_empty() {
            self.generations = None;
            return false;
        }
        let own = self.generations.get_or_insert_default();
        let is_new = |at| now.saturating_duration_since(at) < ANSWER_LASTS;
        own.answers.retain(|_, answer| is_new(answer.at));
        let is_known = |seen: &Seen| own.answers.contains_key(&seen.id);
        let asked = unknown.into_iter().filter(|(_, seen)| !is_known(seen));
        own.asked = asked.collect();
        !own.asked.is_empty()
    }
}

impl FileStream {
    /// Whether the file at the path is one of which it is to be asked whose it is.
    pub(super) fn is_asking(&mut self, at_path: Option<Seen>, now: Instant) -> bool {
        let Some(seen) = at_path else {
            self.strange.forget_path();
            return false;
        };
        let is_closed = self
            .chain
            .closed
            .as_ref()
            .is_some_and(|own| own.id == seen.id);
        let is_own = is_closed || self.chain.is_reading(seen.id);
        // Of a stream that begins it was asked before it was made.
        if is_own || self.chain.is_new() {
            self.strange.forget_path();
            return false;
        }
        let is_known = |answer: &Answer| {
            let is_new = now.saturating_duration_since(answer.at) < LOOK_BACK_INTERVAL;
            answer.id == seen.id && is_new
        };
        let is_answered = self
            .strange
            .answer
            .as_ref()
            .is_some_and(|answer| is_known(answer));
        let since = self.strange.asked.take();
        let since = since.filter(|(asked, _)| asked.id == seen.id);
        let since = since.map_or(now, |(_, since)| since);
        self.strange.asked = (!is_answered).then_some((seen, since));
        self.strange.asked.is_some()
    }

    /// Files of which it is to be asked whose they are: the one at the path, and generations. Where the system tells of what
    /// comes (`is_told`), that is awaited a moment: what was made there is nobody else's.
    pub(crate) fn asks(&self, is_told: bool, now: Instant) -> impl Iterator<Item = Question> {
        let at_path = self.strange.asked.filter(|(_, since)| {
            let is_early = now.saturating_duration_since(*since) < AWAITED;
            // What was there when the agent began is told by nobody.
            let is_told = is_told && self.state != State::Closed;
            !is_told || !is_early || self.arrivals.is_told()
        });
        let at_path = at_path.map(|(seen, _)| (self.place.path.clone(), seen));
        let generations = self.strange.generations.iter();
        let generations = generations.flat_map(|own| own.asked.iter().cloned());
        let files = at_path.into_iter().chain(generations);
        files.map(|(path, file)| Question {
            by: self.place.path.clone(),
            path,
            file,
            last: self.chain.closed.as_ref().map(|closed| closed.id),
            forgot: self.chain.forgot,
        })
    }

    /// Whether it waits to be told whose files are.
    pub(crate) fn waits(&self) -> bool {
        self.strange.is_asking()
    }

    /// Whose the file at a path is.
    pub(crate) fn answer(
        &mut self,
        (path, seen): (&Path, Seen),
        answer: asked::Answer,
        now: Instant,
    ) {
        let is_at_path = path == self.place.path;
        let id = seen.id;
        let is_anothers = match answer.whose {
            Whose::Anothers => true,
            // What was made here only has the number of what another read. Of a generation it is asked how far that was read.
            Whose::AsItSeems => is_at_path && !self.arrivals.is_made(),
            Whose::Nobodys => false,
        };
        let answer = Answer {
            id,
            is_anothers,
            collected: answer.collected,
            last: answer.last,
            at: now,
        };
        if is_at_path {
            self.strange.asked = None;
            self.strange.answer = Some(Box::new(answer));
            self.arrivals.is_anothers(id, is_anothers);
        } else if let Some(own) = &mut self.strange.generations {
            own.asked.retain(|(_, asked)| asked.id != id);
            own.answers.insert(id, answer);
        }
    }
}

/// It is to be asked whose files are before it is known what comes next.
#[derive(Debug)]
pub(super) struct Asking;

impl std::error::Error for Asking {}

impl fmt::Display for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is asked whose files are")
    }
}

/// Whether an error says that it is asked whose files are.
pub(super) fn is_asking(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Asking>())
}

/// An answer counts for so long: who reads a generation may be done with it.
const ANSWER_LASTS: Duration = Duration::from_secs(4);
/// So long it is waited for the system to tell how a file came to the path; that takes milliseconds.
const AWAITED: Duration = Duration::from_millis(250);
