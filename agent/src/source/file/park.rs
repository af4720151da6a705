//! When files are closed and streams end: what is quiet needs no descriptor, and no memory after a while.

use std::io;
use std::time::{Duration, Instant};

use super::chain::Past;
use super::{FORGET_AFTER, FileStream, Pass, State, Wanting};
use crate::source::Context;
use crate::source::content::Packing;
use crate::source::follow::Follow;
use crate::source::resting::Rest;

impl FileStream {
    /// Nothing was written for a while to a file that was renamed, of which there is no other yet: it needs no
    /// descriptor, and is looked at from now on like the others that are settled.
    pub(super) fn leave(&mut self, context: &mut Context, now: Instant) {
        self.say_gone_between(0); // another came, and is gone too
        self.seal(context);
        if let Some(current) = self.chain.current.take() {
            let mut past = Past::of(current, now);
            past.close();
            self.chain.settle(past);
            self.look_back_at = now;
        }
    }

    /// Whether it is not wanted any more, or its files are gone and everything of them was read.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        // Of what was there before nobody waits for more.
        let is_unread = self.is_unread();
        let is_there = |past: &Past| past.path.is_some() && (!is_unread || past.mark.offset == 0);
        let current = self.chain.current.as_ref();
        let has_files = current.is_some_and(|current| !current.is_deleted())
            || !self.refused.is_empty()
            || self.chain.past.iter().any(is_there);
        // What a link led to may have a stream of its own when the link is gone.
        let has_files = has_files && self.target.is_none();
        self.wanting == Wanting::Ended || (self.is_left(now) && !has_files)
    }

    /// Whether nothing of it was ever collected.
    pub(super) fn is_unread(&self) -> bool {
        self.output.position().bookmark.is_empty() && self.output.is_empty()
    }

    /// Whether there is no file at its path, and everything of the others was read some time ago. Who has them open may
    /// write to them still.
    pub(crate) fn is_left(&self, now: Instant) -> bool {
        let over = |follow: &Follow| {
            let is_quiet = |at| now.duration_since(at) > FORGET_AFTER;
            follow.renamed.is_some_and(is_quiet)
                && follow.unfinished.is_none()
                && follow.is_at_end().unwrap_or(false)
        };
        self.state == State::Open
            && self.output.is_empty()
            && self.chain.queued.is_empty()
            && self.chain.past.iter().all(|past| past.open.is_none())
            && self.chain.current.as_ref().is_none_or(over)
            && match self.place.disk.look(&self.place.path) {
                Ok(at_path) => at_path.is_none_or(|seen| self.strange.is_anothers(seen.id)),
                Err(_) => false,
            }
    }

    /// What is to be remembered of its file while the stream is closed, if all of it was read some time ago, or it cannot
    /// be read.
    pub(crate) fn rest(&self, now: Instant) -> Option<Rest> {
        let rests = self.wanting == Wanting::Wanted
            && self.output.is_empty()
            && now.duration_since(self.read_at) >= REST_AFTER;
        if !rests {
            return None;
        }
        let seen = match self.state {
            State::Parked(seen, _) => seen,
            // What cannot be read keeps no place that others need.
            State::Open | State::Closed => {
                self.complaint.as_ref()?;
                self.place.disk.look(&self.place.path).ok().flatten()?
            }
        };
        let mut beside = Vec::new();
        for past in &self.chain.past {
            // Nobody goes on writing to a compressed one.
            let Some(path) = past
                .path
                .as_ref()
                .filter(|path| Packing::of(path).is_none())
            else {
                continue;
            };
            let looked = self.place.disk.look(path).ok().flatten();
            match (past.seen, looked) {
                (Some(seen), Some(looked)) if seen == looked => beside.push((path.clone(), seen)),
                // It may not be read, or is elsewhere: that is known when settled files were looked at.
                (None, Some(looked)) if self.looked_back => beside.push((path.clone(), looked)),
                (None, None) => {}
                _ => return None,
            }
        }
        // Neither shows in what the file is.
        let is_to_be_tried = self.complaint.is_some() || self.chain.has_room;
        Some(Rest {
            stream: self.id(),
            seen,
            beside: beside.into(),
            again_at: is_to_be_tried.then(|| now + TRIED_AGAIN),
        })
    }

    /// On Windows the name of a deleted file may stay, and open no more, until everybody has let go of
    /// it. What was read is found again by its content, should it be another reason.
    pub(super) fn let_go(&mut self, context: &mut Context) -> io::Result<()> {
        let Some(current) = &self.chain.current else {
            return Ok(());
        };
        let is_read = current.is_at_end()? && self.chain.queued.is_empty();
        if is_read && self.finish_line(context) {
            self.shut(context);
        }
        Ok(())
    }

    /// Closes all files; they are found again by their content.
    pub(super) fn shut(&mut self, context: &mut Context) {
        self.seal(context);
        if let Some(current) = self.chain.current.take() {
            self.chain.closed = Some(current.bookmark(self.output.in_line));
        }
        for next in core::mem::take(&mut self.chain.queued) {
            // One that was settled before is known as that when it is found again.
            if next.offset > 0 {
                self.chain.settle(Past::lost(next.mark()));
            }
        }
        for past in &mut self.chain.past {
            past.close();
        }
        self.looked_back = false;
        self.state = State::Closed;
    }

    /// Closes a file that needs no open descriptor to be found again: where there are too many, and when it is quiet,
    /// so that its file system can be unmounted.
    pub(super) fn park(&mut self, pass: Pass, context: &mut Context, now: Instant) {
        let is_plain = |follow: &Follow| follow.unfinished.is_none() && follow.renamed.is_none();
        let can = self.chain.current.as_ref().is_some_and(is_plain);
        let is_late = self.chain.past.iter().any(|past| past.open.is_some());
        if !can || !self.chain.queued.is_empty() || (is_late && !context.parks) {
            return;
        }
        // Their late lines are looked for when this stream is opened again, and from time to time.
        self.shut(context);
        self.output.shrink();
        if let (Pass::Idle, Some(seen)) = (pass, self.seen) {
            self.state = State::Parked(seen, now);
        }
    }
}

/// A file that is not read for so long rests, should there be many.
const REST_AFTER: Duration = Duration::from_secs(2);
/// A file at rest that cannot be read, or has room for lines at its end, is looked into again after this.
const TRIED_AGAIN: Duration = Duration::from_secs(60);
