//! A file at the path that this stream does not know: another may have begun with it. Names are exchanged and moved in
//! circles, and one file is one stream: who began with it reads on, and when that is done with it this one goes on there.

use std::time::{Duration, Instant};

use super::FileStream;
use super::arrange::LOOK_BACK_INTERVAL;
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
}

#[derive(Debug)]
struct Answer {
    id: FileId,
    is_anothers: bool,
    /// How far others read it.
    collected: Collected,
    /// How far others read what has the number of the file that was read last.
    last: Vec<Mark>,
    at: Instant,
}

impl Strange {
    /// Whether another stream reads the file.
    pub(super) fn is_anothers(&self, id: FileId) -> bool {
        let answer = self.answer.as_ref();
        answer.is_some_and(|answer| answer.id == id && answer.is_anothers)
    }

    /// How far others read the file that was asked for, if it is this one.
    pub(super) fn marks(&self, id: FileId) -> Vec<Mark> {
        let answer = self.answer.as_ref();
        answer.map_or_else(Vec::new, |answer| answer.collected.marks(id))
    }

    /// Whether another stream read the file as far, too, in which this one took a bookmark.
    pub(super) fn is_read(&self, bookmark: &Bookmark) -> bool {
        let own = Mark::from(bookmark);
        let last = self.answer.iter().flat_map(|answer| &answer.last);
        let mut last = last.filter(|mark| mark.offset != Mark::ALL);
        own.offset > 0 && own.head_len() > 0 && last.any(|mark| own.is_part_of(mark))
    }

    /// Whether it is to be asked whose it is.
    pub(super) const fn is_asking(&self) -> bool {
        self.asked.is_some()
    }
}

impl FileStream {
    /// Whether the file at the path is one of which it is to be asked whose it is.
    pub(super) fn is_asking(&mut self, at_path: Option<Seen>, now: Instant) -> bool {
        let Some(seen) = at_path else {
            self.strange = Strange::default();
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
            self.strange = Strange::default();
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
        self.strange.is_asking()
    }

    /// The file at the path, if it is to be asked whose it is. Where the system tells of what comes (`is_told`), that is
    /// awaited a moment: what was made there is nobody else's.
    pub(crate) fn asks(&self, is_told: bool, now: Instant) -> Option<Question> {
        let (file, since) = self.strange.asked?;
        let is_early = now.saturating_duration_since(since) < AWAITED;
        let last = self.chain.closed.as_ref().map(|closed| closed.id);
        let question = Question { file, last };
        (!is_told || !is_early || self.arrivals.is_told()).then_some(question)
    }

    /// Whose the file at the path is.
    pub(crate) fn answer(&mut self, answer: asked::Answer, now: Instant) {
        let Some((Seen { id, .. }, _)) = self.strange.asked.take() else {
            return;
        };
        let is_anothers = match answer.whose {
            Whose::Anothers => true,
            // What was made here only has the number of what another read.
            Whose::AsItSeems => !self.arrivals.is_made(),
            Whose::Nobodys => false,
        };
        self.strange.answer = Some(Box::new(Answer {
            id,
            is_anothers,
            collected: answer.collected,
            last: answer.last,
            at: now,
        }));
        self.arrivals.is_anothers(id, is_anothers);
    }
}

/// So long it is waited for the system to tell how a file came to the path; that takes milliseconds.
const AWAITED: Duration = Duration::from_millis(250);
