//! The end of a file: what comes after it, what was truncated, and what is still written to files that were left.

use std::io;
use std::time::Instant;

use scrinium_protocol::entry::ENTRY_LEN_MAX;
use tracing::{info, warn};

use super::arrange::LOOK_BACK_INTERVAL;
use super::chain::{Past, Role};
use super::read::Read;
use super::{FileStream, LINGER, SWITCH_AFTER};
use crate::clock;
use crate::source::Context;
use crate::source::bookmark::Mark;
use crate::source::follow::Follow;
use crate::source::records::Encoding;

impl FileStream {
    /// The current file ends here: goes on to the next generation if there is one. Returns whether
    /// there is more to read.
    pub(super) fn handle_end(&mut self, context: &mut Context, now: Instant) -> io::Result<bool> {
        if !self.chain.queued.is_empty() {
            return self.go_to_next(context, now);
        }
        let at_path = self.place.disk.look(&self.place.path);
        let Some(current) = &mut self.chain.current else {
            return Ok(false);
        };
        let at_path = match at_path {
            Ok(at_path) => at_path,
            Err(error) => {
                current.renamed.get_or_insert(now);
                return Err(error);
            }
        };
        if at_path.is_some_and(|seen| seen.id == current.id) {
            let was_away = current.renamed.take().is_some();
            self.arrivals.may_be_before = false;
            self.say_gone_between(usize::from(was_away || self.arrivals.is_moved())); // and is back
            return Ok(false);
        }
        let renamed = *current.renamed.get_or_insert(now);
        // It came while this one was read: what the system tells of it, and whose it is, is known in the next turn.
        if at_path.is_some() && self.seen.is_some_and(|seen| seen.id == current.id) {
            return Ok(false);
        }
        // What another stream reads is no next one, until that is done with it.
        let at_path = at_path.filter(|seen| !self.strange.is_anothers(seen.id));
        let Some(seen) = at_path else {
            // Renamed, and not yet created again; or that, and renamed too.
            if now < self.look_back_at {
                return Ok(false);
            }
            self.look_back_at = now + LOOK_BACK_INTERVAL;
            return self.find_next(now);
        };
        if seen.len == 0 && now.duration_since(renamed) < SWITCH_AFTER {
            return Ok(false);
        }
        self.find_next(now)
    }

    /// Goes on to the next generation, once the writer has begun it or one after it: until then it may
    /// still write to the current one. Returns whether there is more to read.
    fn go_to_next(&mut self, context: &mut Context, now: Instant) -> io::Result<bool> {
        let Some(current) = &mut self.chain.current else {
            return Ok(false);
        };
        // Nobody goes on writing to a copy.
        let is_copy = self.truncated || current.content.is_packed();
        let renamed = *current.renamed.get_or_insert(now);
        if !is_copy && now.duration_since(renamed) < SWITCH_AFTER {
            let mut begun = false;
            for next in &self.chain.queued {
                begun = begun || next.content.len()? != Some(0);
            }
            if !begun {
                return Ok(false);
            }
        }
        // What it wrote to this one before is there now. Read once more to the end, and what stands behind zeros too.
        if !current.is_at_end()? {
            return Ok(true);
        }
        if current.blank.is_some() && !core::mem::replace(&mut current.is_final, true) {
            current.blank = None;
            return Ok(true);
        }
        let (blank, is_said) = (current.blank_len(), current.says_no_unwritten);
        if !self.finish_line(context) {
            return Ok(true); // its last line waits for room
        }
        if blank > 0 && !is_said {
            self.output.push_gap(&format!(
                "the file ends in {blank} zero bytes, which are no text; they were not collected"
            ));
        }
        if core::mem::take(&mut self.may_miss) {
            let is_deleted = self.chain.current.as_ref().is_some_and(Follow::is_deleted);
            self.output.push_gap(match is_deleted {
                true => "the file was deleted before it was left; rotated files after it, if others were deleted too, were not collected",
                false => "the file was moved away before it was left; files after it, if others were moved or deleted too before they were found, were not collected",
            });
        }
        if self.chain.queued.len() == 1 && core::mem::take(&mut self.truncated) {
            self.say_copied();
        }
        let is_copy = self.chain.current.as_ref().is_some_and(|done| done.is_copy);
        if is_copy {
            self.say_copied();
        }
        // What comes next may be known already, and is so in what is sealed here.
        self.seal(context);
        let next = self.chain.queued.pop_front();
        if let Some(done) = core::mem::replace(&mut self.chain.current, next) {
            // It is watched for late lines; a compressed one has none.
            let is_packed = done.content.is_packed();
            let mut past = Past::of(done, now);
            if is_packed {
                past.close();
            }
            self.chain.settle(past);
            self.close_late_ones();
        }
        self.note_target();
        Ok(true)
    }

    /// A copy was read to its end.
    pub(super) fn say_copied(&mut self) {
        self.output.push_gap(
            "the file was truncated after it was copied; what was written to it between the two, if anything, was not collected",
        );
    }

    /// The file was truncated under us: what it held after our position may be in a copy beside it.
    pub(super) fn handle_truncation(
        &mut self,
        context: &mut Context,
        now: Instant,
    ) -> io::Result<()> {
        self.seal(context);
        let copied = self.find_copy(now)?;
        let Some(current) = self.chain.current.take() else {
            return Ok(());
        };
        let bookmark = current.bookmark(self.output.in_line);
        let again = current.anew();
        self.chain.queued.push_back(again);
        if let Some(mut copy) = copied {
            info!(stream = %self.id(), "a file was truncated; its copy is read to the end first");
            copy.resume_at(bookmark.offset)?;
            copy.renamed = Some(now);
            self.chain.current = Some(copy);
            self.truncated = true;
            return Ok(());
        }
        warn!(stream = %self.id(), offset = bookmark.offset, "a file was truncated and no copy is beside it; a gap entry says so");
        self.output.push_gap(&format!(
            "the file was truncated after byte {}; what was written to it between the last look and that, if anything, was not collected; what it holds now is collected from its start, also what was collected before",
            bookmark.offset
        ));
        // A copy that turns up later is known.
        if bookmark.offset > 0 {
            self.chain.settle(Past::lost(Mark::from(&bookmark)));
        }
        self.chain.current = self.chain.queued.pop_front();
        Ok(())
    }

    /// The last line of a generation ends with its file; `false` when there is no room for all of it yet.
    pub(super) fn finish_line(&mut self, context: &mut Context) -> bool {
        let Some(mut follow) = self.chain.current.take() else {
            return true;
        };
        let (len, since) = follow.unfinished.take().unzip();
        let len = len.unwrap_or(0);
        let mut is_whole = true;
        let mut line = vec![0; len.min(ENTRY_LEN_MAX)];
        let got = follow.content.read_at(&mut line, follow.offset);
        line.truncate(got.unwrap_or(0));
        if !line.is_empty() {
            let flags = Encoding::of(&follow.head).flags();
            let tail_len = follow.tail.len();
            let window = [&*follow.tail, &line].concat();
            let mut at = tail_len;
            is_whole = self.push_line(
                &mut at,
                window.len(),
                (flags, flags),
                &window,
                &mut follow,
                Role::Current,
                clock::unix_us(),
                context,
            );
            follow.move_to(at, tail_len, &window);
            let left = window.len() - at;
            follow.unfinished = since.filter(|_| left > 0).map(|since| (left, since));
        }
        self.chain.current = Some(follow);
        if is_whole {
            self.output.close_line();
        }
        is_whole
    }

    /// Reads what a slow writer still added to renamed files; lets them go after a quiet while.
    pub(super) fn late(&mut self, context: &mut Context, now: Instant) -> io::Result<()> {
        let mut outcome = Ok(());
        let open = self.chain.past.iter().filter(|past| past.open.is_some());
        let open: Vec<u64> = open.map(|past| past.serial).collect();
        for serial in open {
            let Some(mut follow) = self.chain.past(serial).and_then(|past| past.open.take()) else {
                continue;
            };
            let before = follow.offset;
            let is_packed = follow.content.is_packed();
            if is_packed && context.unpacking.is_used_up(clock::now()) {
                if let Some(past) = self.chain.past(serial) {
                    past.open = Some(follow);
                }
                continue;
            }
            if !follow.is_at_end().unwrap_or(false) {
                // What comes is of another file than the line that is open.
                self.output.close_line();
            }
            let read = self.read(&mut follow, Role::Late(serial), context, now);
            self.output.close_line();
            if follow.offset > before {
                (follow.renamed, self.read_at) = (Some(now), now);
                follow.grew |= !is_packed;
            }
            context.unpacking.take(follow.content.take_unpacked());
            // Nobody goes on writing to a compressed one.
            let is_whole = is_packed && follow.unfinished.is_none();
            let is_quiet = |at| is_whole || now.duration_since(at) >= LINGER;
            let is_over = follow.renamed.is_none_or(is_quiet) && matches!(read, Ok(Read::End));
            let Some(past) = self.chain.past(serial) else {
                continue;
            };
            past.open = Some(follow);
            match read {
                Ok(Read::Truncated) => {
                    // What it is now is seen at the next look.
                    past.close();
                    past.seen = None;
                }
                Ok(_) if is_over => past.close(),
                Ok(_) => {}
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// Bytes on the disk that only we still hold there: of deleted files not read to the end.
    pub(crate) fn deleted_bytes(&self) -> u64 {
        let deleted = self.chain.open_ones().filter(|follow| follow.is_deleted());
        let bytes = deleted.map(|follow| follow.content.len().ok().flatten().unwrap_or(0));
        bytes.sum()
    }

    /// Lets deleted files go before they were read to the end; a gap entry says what that costs.
    pub(crate) fn drop_deleted(&mut self) {
        let all = self.chain.current.take().into_iter();
        let all = all.chain(self.chain.queued.drain(..));
        let (gone, kept): (Vec<Follow>, Vec<Follow>) = all.partition(Follow::is_deleted);
        self.chain.queued = kept.into();
        self.chain.current = self.chain.queued.pop_front();
        for past in &mut self.chain.past {
            if past.open.as_ref().is_some_and(Follow::is_deleted) {
                past.close();
            }
        }
        for follow in gone {
            let len = follow.content.len().ok().flatten().unwrap_or(0);
            let lost = len.saturating_sub(follow.offset);
            // What was read of it is not read again, should a copy of it come.
            if follow.offset > 0 {
                self.chain.settle(Past::lost(follow.mark()));
            }
            if lost == 0 {
                continue;
            }
            warn!(stream = %self.id(), lost, "a deleted file was let go before it was read to the end; a gap entry says so");
            self.output.push_gap(&format!(
                "the file was deleted, and let go to free its disk space; bytes {} to {len} of it were not collected",
                follow.offset
            ));
        }
    }
}
