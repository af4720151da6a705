//! What is read next: which files come before the one at the path, which of them are settled, which are new.
//!
//! One rule, whether the agent was there or not: a file that is known goes on where its mark is, and one that is not
//! is collected from its start. Only what was there before the stream began is passed over, and what was forgotten
//! because there was too much of it.

use std::cmp::Reverse;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use tracing::{debug, info, warn};

use super::arrivals::GONE_BETWEEN;
use super::aside::is_out_of_order;
use super::chain::Past;
use super::survey::{Found, Survey, What, Why};
use super::{FileStream, State};
use crate::source::bookmark::{Bookmark, MARKS_MAX, Mark};
use crate::source::disk::Seen;
use crate::source::follow::Follow;

impl FileStream {
    /// Finds the file that is to be read on, and what came after it.
    pub(super) fn resume(&mut self, now: Instant) -> io::Result<()> {
        if let Some(error) = self.unreadable_bookmark.take() {
            return Err(io::Error::other(error));
        }
        self.chain.queued.clear();
        self.more_comes = false;
        if self.chain.is_new() {
            self.begin(now)?;
        } else {
            self.go_on(now)?;
        }
        if let Some(current) = &self.chain.current {
            let (path, id, at) = (current.path.display(), current.id.inode, current.offset);
            debug!(stream = %self.id(), %path, id, at, queued = self.chain.queued.len(), "goes on");
        }
        self.chain.closed = None;
        self.chain.is_stale = false;
        self.arrivals.are_looked_at();
        // What cannot be read yet may be known when it can be.
        self.inherited = match self.refused.is_empty() {
            true => Arc::default(),
            false => Arc::new(self.inherited.of(&self.refused)),
        };
        self.state = State::Open;
        if !self.looked_back {
            self.look_back_at = now + self.first_look_back();
        }
        self.note_target();
        Ok(())
    }

    /// The stream begins: what was there before it is passed over, unless the sources ask for it.
    fn begin(&mut self, now: Instant) -> io::Result<()> {
        // The listing of a directory that did not change since is as good as another: ten thousand streams may begin in it.
        let mut survey = self.survey(Why::Upkeep)?;
        if let Some(error) = survey.error {
            return Err(error);
        }
        let mut unknown = Vec::new();
        let mut is_known = match survey.at_path.as_mut().and_then(|own| own.follow.as_mut()) {
            Some(follow) => self.inherited_mark(follow)?.is_some(),
            None => false,
        };
        for mut found in survey.unknown() {
            let mark = match &mut found.follow {
                Some(follow) => self.inherited_mark(follow)?,
                None => None,
            };
            is_known |= mark.is_some();
            unknown.push((found, mark));
        }
        // Another stream knows all of these that it read or passed over, unless they are more than it remembers.
        let mut goes_on = is_known && unknown.len() < MARKS_MAX;
        for (mut found, mark) in unknown {
            if let Some(mark) = mark {
                // Another stream began with it: what it did not read is read, and what came after it.
                let serial = self.chain.settle(Past::lost(mark));
                goes_on = true;
                found.what = What::Past(serial);
                survey.beside.push(found);
                continue;
            }
            let is_meant =
                |follow: &Follow| goes_on || self.history || follow.begins_after(self.began);
            match found.follow {
                Some(follow) if is_meant(&follow) => self.chain.queued.push_back(follow),
                follow => self.pass_over(Found { follow, ..found }, &mut survey)?,
            }
        }
        let mut has_more = self.chain.queued.len() > QUEUED_MAX;
        self.chain.queued.truncate(QUEUED_MAX);
        for found in core::mem::take(&mut survey.rest) {
            // One at a time is open: those that are wanted are found again when the others are read.
            match self.open(&found.path)? {
                Some(follow) if goes_on || self.history || follow.begins_after(self.began) => {
                    has_more = true;
                }
                follow => self.pass_over(Found { follow, ..found }, &mut survey)?,
            }
        }
        if !self.history {
            self.refuse(core::mem::take(&mut survey.unreadable), true);
        }
        self.more_comes = has_more && !self.chain.queued.is_empty();
        let comes_later = self.more_comes;
        if let Some(Found {
            follow: Some(mut follow),
            ..
        }) = survey.at_path.take_if(|_| !comes_later)
        {
            if let Some(mark) = self.inherited_mark(&mut follow)? {
                follow.resume_at(mark.offset)?;
            }
            self.chain.queued.push_back(follow);
        }
        // It was there when the stream was made.
        let is_found = |seen: Seen| {
            let beside = survey.beside.iter().map(|found| found.seen.id);
            let queued = self.chain.queued.iter().map(|next| next.id);
            beside.chain(queued).any(|id| id == seen.id)
        };
        let is_there = self
            .place
            .disk
            .look(&self.place.path)
            .ok()
            .flatten()
            .is_some();
        let is_gone = |seen: Seen| !is_found(seen) && !self.is_moved_on(seen);
        self.has_vanished = !is_there && self.seen.is_some_and(is_gone);
        self.take_in(survey, now)?;
        self.chain.knows = true;
        self.has_begun(self.chain.queued.len(), now);
        self.chain.current = self.chain.queued.pop_front();
        Ok(())
    }

    /// How far another stream read a file.
    fn inherited_mark(&self, follow: &mut Follow) -> io::Result<Option<Mark>> {
        // What was made at the path is nobody else's, whatever number it was given and however it begins.
        if self.arrivals.is_made() && follow.path == self.place.path {
            return Ok(None);
        }
        let mut marks = self.inherited.marks(follow.id);
        marks.extend(self.strange.marks(follow.id));
        marks.sort_unstable_by_key(|mark| Reverse(mark.offset));
        if marks.is_empty() {
            return Ok(None);
        }
        let mut start = follow.start()?;
        for mark in marks {
            if follow.matches(&mut start, &mark)? {
                return Ok(Some(mark));
            }
        }
        Ok(None)
    }

    /// The stream goes on where it stood.
    fn go_on(&mut self, now: Instant) -> io::Result<()> {
        let Some(bookmark) = self.chain.closed.clone() else {
            let survey = self.survey(Why::Renamed)?;
            return self.go_on_after(survey, now);
        };
        self.output.in_line = bookmark.in_line;
        // Nearly always it is where it was: no need to look around. Of one of which nothing was read only the number says
        // that it is, and that may have been given to another.
        let at_path = self.open(&self.place.path);
        let mut why = Why::Renamed;
        if let Ok(Some(mut follow)) = at_path
            && follow.id == bookmark.id
            && follow.is_of(&bookmark)?
        {
            why = Why::Upkeep;
            if bookmark.offset > 0 {
                self.go_on_in(follow, &bookmark)?;
                if !self.chain.knows {
                    // Version 0.1.0 did not say what was there besides.
                    let mut survey = self.survey(Why::Upkeep)?;
                    for found in survey.unknown() {
                        self.pass_over(found, &mut survey)?;
                    }
                    self.take_in(survey, now)?;
                    self.chain.knows = true;
                }
                return Ok(());
            }
        }
        let mut survey = self.survey(why)?;
        let is_at_path = survey
            .at_path
            .as_ref()
            .is_some_and(|found| found.what == What::Current);
        let found = match is_at_path {
            true => None,
            false => survey.take_current(),
        };
        // What was moved aside and is no generation, or has no more, is not read on when its content goes on at the path.
        let is_aside = found
            .as_ref()
            .is_none_or(|found| found.rank.is_none() || found.seen.len == bookmark.offset);
        let copy_at_path =
            |found: &Found| matches!(found.what, What::Current | What::CopyOfCurrent);
        if is_aside && survey.at_path.as_ref().is_some_and(copy_at_path) {
            if found.is_some() {
                self.chain.settle(Past::lost(Mark::from(&bookmark)));
            }
            // The same content, whatever it was moved through.
            let follow = survey.at_path.take().and_then(|found| found.follow);
            if let Some(follow) = follow {
                self.go_on_in(follow, &bookmark)?;
            }
            self.take_in(survey, now)?;
            self.chain.knows = true;
            return Ok(());
        }
        let found = found.or_else(|| survey.take_copy());
        let is_traced = found.as_ref().is_some_and(|found| self.is_traced(found));
        let Some(Found {
            follow: Some(mut follow),
            rank,
            seen,
            ..
        }) = found
        else {
            if let Some(error) = survey.error {
                return Err(error); // it may be the one
            }
            // Nothing of it was read, and it comes next.
            let comes_next = |found: &Found| found.seen.id == bookmark.id && found.rank.is_some();
            let is_at_path = survey.at_path.as_ref();
            let is_at_path = is_at_path.is_some_and(|found| found.seen.id == bookmark.id);
            let is_there = is_at_path || survey.beside.iter().any(comes_next);
            if bookmark.offset > 0 || !is_there {
                self.say_gone(&bookmark);
                self.pass_over_part(&mut survey)?;
            }
            if !self.chain.knows {
                for found in survey.unknown() {
                    self.pass_over(found, &mut survey)?;
                }
            }
            return self.go_on_after(survey, now);
        };
        info!(stream = %self.id(), "a file was rotated while nobody looked; reading its rest first");
        // What was read is in a copy, and the file itself is still at the path: it was truncated. Where it was compressed,
        // a file begun after the copy's last byte only got the number that was free again.
        let is_copy = follow.id != bookmark.id;
        let is_packed = follow.content.is_packed();
        let is_later = |file: &Follow| is_packed && file.begins_after(seen.modified);
        self.truncated = is_copy
            && survey
                .at_path
                .as_ref()
                .and_then(|found| found.follow.as_ref())
                .is_some_and(|file| file.id == bookmark.id && !is_later(file));
        // One that was read as a copy before is one still.
        // What came to the path by another stream's hand is no original of this one, however old it is.
        let at_path = survey.at_path.as_mut();
        let is_original = match at_path.and_then(|found| found.follow.as_mut()) {
            Some(at_path) => self.inherited_mark(at_path)?.is_none(),
            None => false,
        };
        follow.is_copy = !is_copy && is_original && survey.is_copy(&follow);
        self.go_on_in(follow, &bookmark)?;
        if let Some(current) = &mut self.chain.current {
            current.renamed = Some(now);
        }
        if !self.chain.knows {
            // Version 0.1.0 did not say what was there before: it is what is older by its name and its time.
            for found in survey.unknown() {
                let is_later = found.rank > rank || found.seen.modified > seen.modified;
                match is_later {
                    true => survey.beside.push(found),
                    false => self.pass_over(found, &mut survey)?,
                }
            }
        }
        self.queue(&mut survey)?;
        // Of a copy it is said anyway.
        let may_have_more = !is_traced && !self.truncated;
        if self.chain.queued.is_empty() {
            self.arrivals.may_be_before |= may_have_more && self.arrivals.is_first_look();
        } else {
            self.may_miss |= match self.are_all_found(now) {
                Some(are_all) => !are_all,
                None => may_have_more,
            };
        }
        self.take_in(survey, now)?;
        self.chain.knows = true;
        Ok(())
    }

    fn go_on_in(&mut self, mut follow: Follow, bookmark: &Bookmark) -> io::Result<()> {
        // Another stream may have read on in it meanwhile.
        let inherited = self.inherited_mark(&mut follow)?;
        let offset = inherited.map_or(0, |mark| mark.offset).max(bookmark.offset);
        follow.resume_at(offset)?;
        self.chain.current = Some(follow);
        Ok(())
    }

    /// Goes on with what is there, whatever was read before.
    fn go_on_after(&mut self, mut survey: Survey, now: Instant) -> io::Result<()> {
        self.queue(&mut survey)?;
        if !self.chain.queued.is_empty() {
            self.are_all_found(now); // where the one that was read is gone, that is said
        }
        let error = survey.error.take();
        self.take_in(survey, now)?;
        self.chain.knows = true;
        self.chain.current = self.chain.queued.pop_front();
        match (error, &self.chain.current) {
            (Some(error), None) => Err(error),
            _ => Ok(()),
        }
    }

    fn say_gone(&mut self, bookmark: &Bookmark) {
        // Who settled it says what is missing of it.
        if self.strange.is_read(bookmark) {
            self.chain.settle(Past::lost(Mark::from(bookmark)));
            return;
        }
        self.output.push_gap(&format!(
            "the file read up to byte {} is gone; what was written to it after that, if anything, was not collected",
            bookmark.offset
        ));
        warn!(stream = %self.id(), offset = bookmark.offset, "a followed file is gone; a gap entry says so");
        // Should it come back, it goes on where it stood.
        if bookmark.offset > 0 {
            self.chain.settle(Past::lost(Mark::from(bookmark)));
        }
    }

    /// The time up to which a file that nobody knows was forgotten; after a start, that of the earliest that is known.
    pub(super) fn forgotten_until(&self, survey: &Survey) -> Option<SystemTime> {
        let earliest = || survey.earliest_known().filter(|_| self.chain.forgot);
        self.chain.forgotten_until.or_else(earliest)
    }

    /// Puts what is new into the queue, oldest first, and the file at the path behind it.
    fn queue(&mut self, survey: &mut Survey) -> io::Result<()> {
        let forgotten_before = self.forgotten_until(survey);
        let (mut forgotten, mut has_more) = (survey.forgotten, !survey.rest.is_empty());
        for mut found in survey.unknown() {
            let is_forgotten = forgotten_before.is_some_and(|time| found.seen.modified <= time);
            forgotten += usize::from(is_forgotten && is_out_of_order(&found, survey));
            if let Some(follow) = &mut found.follow
                && let Some(mark) = self.inherited_mark(follow)?
            {
                // Another stream read it while this one was closed.
                found.what = What::Past(self.chain.settle(Past::lost(mark)));
                survey.beside.push(found);
            } else if let (Some(follow), false) = (found.follow, is_forgotten) {
                if self.chain.queued.len() >= QUEUED_MAX {
                    has_more = true;
                    continue; // it is found again
                }
                let (path, id) = (follow.path.display(), follow.id.inode);
                debug!(stream = %self.output.id(), %path, id, "a rotated file comes next");
                self.chain.queued.push_back(follow);
            }
        }
        self.say_forgotten(forgotten);
        self.more_comes = has_more && !self.chain.queued.is_empty();
        let Some(Found {
            follow: Some(mut follow),
            what,
            ..
        }) = survey.at_path.take()
        else {
            return Ok(());
        };
        // Others come before it: they are looked for when these are read.
        if self.more_comes {
            return Ok(());
        }
        if self.chain.is_reading(follow.id) && what == What::Current {
            return Ok(());
        }
        // Another stream may have read on in it meanwhile.
        let inherited = self.inherited_mark(&mut follow)?;
        let inherited = inherited.map_or(0, |mark| mark.offset);
        if what == What::Unknown && inherited > 0 {
            follow.resume_at(inherited)?;
        }
        if let What::Past(serial) = what
            && let Some(mut past) = self.chain.take_past(serial)
        {
            // A settled file is at the path again.
            past.close();
            if past.mark.offset != Mark::ALL {
                follow.resume_at(past.mark.offset.max(inherited))?;
            }
        }
        let (path, id, at) = (follow.path.display(), follow.id.inode, follow.offset);
        debug!(stream = %self.id(), %path, id, at, ?what, "comes next");
        self.chain.queued.push_back(follow);
        Ok(())
    }

    /// The current file was read to its end, and is not at the path: finds what comes next. Returns whether there is
    /// anything.
    pub(super) fn find_next(&mut self, now: Instant) -> io::Result<bool> {
        let mut survey = self.survey(Why::Renamed)?;
        let is_copy = |found: &Found| found.what == What::CopyOfCurrent;
        if survey.at_path.as_ref().is_some_and(is_copy) {
            let follow = survey.at_path.take().and_then(|found| found.follow);
            self.take_in(survey, now)?;
            if let Some(mut follow) = follow
                && let Some(old) = self.chain.current.take()
            {
                // Written anew with the same content: it goes on where the old one stood. Whoever has that open still
                // may write to it.
                info!(stream = %self.id(), "a file was replaced by a copy of itself");
                follow.resume_at(old.offset)?;
                // The line at its end that is not finished goes on in the copy.
                let mut old = old;
                let (offset, is_open) = (old.offset, old.unfinished.take());
                if let Some((len, _)) = is_open {
                    old.resume_at(offset + len as u64)?;
                    if !follow.is_of(&old.bookmark(false))? {
                        old.resume_at(offset)?;
                    }
                }
                self.chain.current = Some(follow);
                self.chain.settle(Past::of(old, now));
                self.close_late_ones();
                self.arrivals.are_new(1, now); // one after the other is the same and more
            }
            return Ok(true);
        }
        // One that was compressed is there still.
        let is_packed = survey
            .beside
            .iter()
            .any(|found| found.what == What::CopyOfCurrent);
        let is_beside = survey
            .beside
            .iter()
            .any(|found| found.what == What::Current);
        let is_own = |found: &Found| matches!(found.what, What::Current | What::CopyOfCurrent);
        let mut own = survey.beside.iter().filter(|found| is_own(found));
        let is_traced = own.any(|found| self.is_traced(found));
        // Where files are rotated, the oldest is deleted: one after that may have been deleted too. What was seen beside the
        // others and is deleted by now was compressed since.
        let is_deleted = self.chain.current.as_ref().is_some_and(Follow::is_deleted);
        let is_rotated = survey.beside.iter().any(|found| found.rank.is_some());
        self.may_miss = is_deleted && is_rotated && !is_packed && !is_beside;
        let has_current = self.chain.current.is_some();
        let is_at_path = survey.at_path.is_some();
        self.queue(&mut survey)?;
        let error = survey.error.take();
        if is_at_path && error.is_none() && !self.chain.queued.is_empty() {
            let is_followed = is_traced || !has_current;
            let is_missing = match self.are_all_found(now) {
                Some(are_all) => !are_all,
                None => self.may_miss || !is_followed,
            };
            let is_missing = core::mem::take(&mut self.arrivals.may_be_before) || is_missing;
            match has_current {
                true => self.may_miss = is_missing,
                false if is_missing => self.output.push_gap(GONE_BETWEEN),
                false => {}
            }
        } else {
            self.arrivals.are_found(self.chain.queued.len(), now);
        }
        self.take_in(survey, now)?;
        match error {
            Some(error) if self.chain.queued.is_empty() => Err(error),
            _ => Ok(!self.chain.queued.is_empty()),
        }
    }

    /// Finds the copy that was made of the current file before it was truncated, and what was copied after it.
    pub(super) fn find_copy(&mut self, now: Instant) -> io::Result<Option<Follow>> {
        let mut survey = self.survey(Why::Truncated)?;
        let copy = survey.take_copy().and_then(|found| found.follow);
        if copy.is_none() {
            self.pass_over_part(&mut survey)?;
        }
        // Files that were copied and truncated meanwhile come after it.
        survey.at_path = None;
        self.queue(&mut survey)?;
        self.take_in(survey, now)?;
        Ok(copy)
    }

    /// Looks at settled files: whoever never opened the new one goes on writing to them. Returns whether one is to be
    /// read on.
    pub(super) fn look_back(&mut self, now: Instant) -> io::Result<bool> {
        if now < self.look_back_at {
            return Ok(false);
        }
        self.look_back_at = now + LOOK_BACK_INTERVAL;
        let mut moved = !self.refused.is_empty() || !self.strangers.is_empty();
        let changed = self.changes();
        moved |= core::mem::replace(&mut self.changed, changed.clone()) != changed;
        let disk = self.place.disk.clone();
        for past in &self.chain.past {
            let (None, Some(path)) = (&past.open, &past.path) else {
                continue;
            };
            match disk.look(path) {
                Ok(seen) => moved |= seen != past.seen,
                Err(_) => moved |= past.seen.is_some(),
            }
        }
        // Where they are is not known after a start.
        moved |= !core::mem::replace(&mut self.looked_back, true);
        if !moved {
            return Ok(false);
        }
        let mut survey = match self.survey(Why::Upkeep) {
            Ok(survey) => survey,
            Err(error) => {
                self.looked_back = false; // it is to be looked once more
                return Err(error);
            }
        };
        let forgotten_before = self.forgotten_until(&survey);
        // What is new beside a file that is where it was may be a copy that is just being made.
        let mut strangers = Vec::new();
        let mut forgotten = survey.forgotten;
        for found in survey.unknown() {
            let is_forgotten = forgotten_before.is_some_and(|time| found.seen.modified <= time);
            forgotten += usize::from(is_forgotten && is_out_of_order(&found, &survey));
            let is_queued = self.chain.is_reading(found.seen.id);
            // What comes next is no stranger: it has its turn when those before it are read.
            let is_known = is_forgotten || is_queued || self.more_comes;
            let Some(mut follow) = found.follow.filter(|_| !is_known) else {
                continue;
            };
            if let Some(mark) = self.inherited_mark(&mut follow)? {
                self.chain.settle(Past::lost(mark));
                continue; // where it is, is seen at the next look
            }
            if self.strangers.contains(&found.seen) {
                debug!(path = %follow.path.display(), id = follow.id.inode, "a rotated file turned up");
                if follow.is_copy {
                    self.say_copied();
                }
                let late = Past {
                    seen: None,
                    ..Past::of(follow, now)
                };
                self.chain.settle(late);
                self.arrivals.are_found(1, now);
            } else if strangers.len() < STRANGERS_MAX {
                strangers.push(found.seen);
            }
        }
        self.say_forgotten(forgotten);
        self.strangers = strangers;
        survey.at_path = None;
        self.take_in(survey, now)?;
        self.close_late_ones();
        Ok(self.chain.past.iter().any(|past| past.open.is_some()))
    }

    /// When names changed last where files of the stream lie.
    fn changes(&self) -> Vec<Option<SystemTime>> {
        let paths = [Some(&self.place.path), self.target.as_ref()];
        let dirs = paths.into_iter().flatten().filter_map(|path| path.parent());
        dirs.map(|dir| self.place.disk.changed(dir)).collect()
    }

    /// Remembers what a link at the path leads to: what it led to is rotated there.
    pub(super) fn note_target(&mut self) {
        if let Ok(Some(_)) = self.place.disk.read_link(&self.place.path) {
            self.target = self.place.disk.canonical(&self.place.path).ok();
        }
    }

    /// Not all streams look at once.
    fn first_look_back(&self) -> Duration {
        let spread = self.id().0.first().copied().unwrap_or(0);
        LOOK_BACK_INTERVAL * u32::from(spread) / 256
    }
}

/// Generations that are open because they come next; the others are found again when these are read. Each is a
/// descriptor, of which one user must not hold all.
const QUEUED_MAX: usize = 16;
/// How often it is looked whether a settled file grew.
pub(super) const LOOK_BACK_INTERVAL: Duration = Duration::from_secs(5);
/// Files of which it is remembered that they are new: each a few bytes.
const STRANGERS_MAX: usize = 32;
