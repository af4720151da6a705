//! A file at the path that this stream does not know: another may have begun with it. Names are exchanged and moved in
//! circles, and one file is one stream: who began with it reads on, and when that is done with it this one goes on there.

use std::time::Instant;

use super::FileStream;
use super::arrange::LOOK_BACK_INTERVAL;
use crate::source::bookmark::{FileId, Mark};
use crate::source::claims::Collected;
use crate::source::disk::Seen;

/// What is known of the file at the path that is not the one that is read.
#[derive(Debug, Default)]
pub(super) struct Strange {
    /// It is to be asked whose it is.
    asked: Option<Seen>,
    answer: Option<Answer>,
    /// How far others read it.
    collected: Collected,
}

#[derive(Debug)]
struct Answer {
    id: FileId,
    is_anothers: bool,
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
        self.collected.marks(id)
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
        self.strange.asked = (!self.strange.answer.as_ref().is_some_and(is_known)).then_some(seen);
        self.strange.asked.is_some()
    }

    /// The file at the path, if it is to be asked whose it is.
    pub(crate) fn asks(&self) -> Option<Seen> {
        self.strange.asked
    }

    /// Another stream reads the file at the path, or none, and how far it was read then.
    pub(crate) fn answer(&mut self, is_anothers: bool, collected: Collected, now: Instant) {
        let Some(Seen { id, .. }) = self.strange.asked.take() else {
            return;
        };
        self.strange.answer = Some(Answer {
            id,
            is_anothers,
            at: now,
        });
        self.strange.collected = collected;
        self.arrivals.is_anothers(id, is_anothers);
    }
}
