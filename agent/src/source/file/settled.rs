//! Files that are settled: where they are now, whether they grew, and those of which nothing is to be collected.

use std::io;
use std::time::Instant;

use tracing::debug;

use super::chain::Past;
use super::survey::{Found, Survey, What};
use super::{FileStream, LINGERING_MAX};
use crate::source::bookmark::{Bookmark, Mark};

impl FileStream {
    /// Notes where settled files are, and opens those that grew.
    pub(super) fn take_in(&mut self, survey: Survey, now: Instant) -> io::Result<()> {
        self.say_foreign(survey.foreign);
        let found = survey.beside.iter().filter_map(|found| match found.what {
            What::Past(serial) => Some(serial),
            What::Current | What::CopyOfCurrent | What::CopyOfPath | What::Part | What::Unknown => {
                None
            }
        });
        let found: Vec<u64> = found.collect();
        let is_blind = survey.is_blind;
        for past in self.chain.past.iter_mut().filter(|_| !is_blind) {
            if past.open.is_none() && !found.contains(&past.serial) {
                (past.path, past.seen) = (None, None);
                // Of others that are gone it is known that nobody wrote to them.
                if core::mem::take(&mut past.mark.grew) {
                    let offset = past.mark.offset;
                    self.output.push_gap(&format!(
                        "a rotated file that was still written to is gone, which was read up to byte {offset}; what was written to it after that, if anything, was not collected"
                    ));
                }
            }
        }
        for found in survey.beside {
            match found.what {
                What::Past(serial) => self.take_in_past(serial, found, now)?,
                What::Part => self.take_in_part(found)?,
                What::Current | What::CopyOfCurrent | What::CopyOfPath | What::Unknown => {}
            }
        }
        self.refuse(survey.unreadable, false);
        Ok(())
    }

    pub(super) fn take_in_past(
        &mut self,
        serial: u64,
        found: Found,
        now: Instant,
    ) -> io::Result<()> {
        let Some(past) = self.chain.past(serial) else {
            return Ok(());
        };
        if let Some(open) = &mut past.open {
            open.path = found.path;
            return Ok(());
        }
        past.path = Some(found.path);
        let Some(mut follow) = found.follow else {
            // One that may not be read is looked at again: its number does not say what it holds.
            past.seen = past.seen.filter(|seen| *seen == found.seen);
            return Ok(());
        };
        // A copy of it, compressed perhaps, takes its place.
        past.mark.key = found.seen.id.key();
        past.seen = Some(found.seen);
        let (offset, len) = (past.mark.offset, found.seen.len);
        let has_more = offset != Mark::ALL
            && match follow.content.is_packed() {
                true => follow.has_after(offset),
                false => len > offset,
            };
        if has_more {
            follow.resume_at(past.mark.offset)?;
            follow.grew = past.mark.grew;
            debug!(path = %follow.path.display(), id = follow.id.inode, at = follow.offset, "a settled file grew");
            follow.renamed = Some(now);
            past.open = Some(follow);
            self.close_late_ones();
        }
        Ok(())
    }

    /// What it holds was collected of the file it was made of.
    fn take_in_part(&mut self, found: Found) -> io::Result<()> {
        let Some(mut follow) = found.follow else {
            return Ok(());
        };
        if let Some(mark) = follow.mark_of_part()? {
            debug!(path = %follow.path.display(), id = follow.id.inode, "a rotated file was copied before all was written to it");
            self.chain.settle(Past {
                path: Some(found.path),
                seen: Some(found.seen),
                ..Past::lost(mark)
            });
        }
        Ok(())
    }

    /// No more files are open beside the current one than a few; the others are looked at again later.
    pub(super) fn close_late_ones(&mut self) {
        let mut open: Vec<(bool, Option<Instant>, &mut Past)> = Vec::new();
        for past in &mut self.chain.past {
            let Some(follow) = &past.open else { continue };
            let has_more = follow.unfinished.is_some() || !follow.is_at_end().unwrap_or(true);
            open.push((has_more, follow.renamed, past));
        }
        // What is read to its end makes room first, else nobody would ever come to the end of the others.
        open.sort_by_key(|(has_more, renamed, _)| (*has_more, *renamed));
        let many = open.len().saturating_sub(LINGERING_MAX);
        for (_, _, past) in open.into_iter().take(many) {
            past.close();
        }
    }

    /// A copy of the current file that ends before where that was read: it was written to, and read, between the copy
    /// and its truncation. All of the copy is collected then. It is the first of which that is so; there may be
    /// copies before it, of what was not read.
    pub(super) fn pass_over_part(&mut self, survey: &mut Survey) -> io::Result<()> {
        let closed = self.chain.closed.clone();
        let current = self.chain.current.as_ref();
        let Some(bookmark) = current.map(|follow| follow.bookmark(false)).or(closed) else {
            return Ok(());
        };
        let head = current.map(|current| current.head.clone());
        let is_found = self.pass_over_part_of(survey, &bookmark, head.as_deref())?;
        if !is_found && survey.at_path.is_none() {
            // Its file system may be away, and come back with the copy.
            self.cut = Some((bookmark, head));
        }
        Ok(())
    }

    /// The same of what was read up to `bookmark`; whether there is one.
    pub(super) fn pass_over_part_of(
        &mut self,
        survey: &mut Survey,
        bookmark: &Bookmark,
        head: Option<&[u8]>,
    ) -> io::Result<bool> {
        let mut is_found = false;
        let forgotten = self.forgotten_until(survey);
        for mut found in survey.unknown() {
            let seen = found.seen;
            // One that could not be read before was there before.
            let is_new = seen.len > 0
                && forgotten.is_none_or(|time| seen.modified > time)
                && !self.refused.contains(&seen.id.key());
            let is_part = match &mut found.follow {
                Some(follow)
                    if !is_found && is_new && (follow.is_copy || follow.content.is_packed()) =>
                {
                    is_found = follow.is_part_of(bookmark, head)?;
                    is_found
                }
                Some(_) | None => false,
            };
            match is_part {
                true => self.pass_over(found, survey)?,
                false => survey.beside.push(found),
            }
        }
        Ok(is_found)
    }

    /// A file that was there before the stream began.
    pub(super) fn pass_over(&mut self, mut found: Found, survey: &mut Survey) -> io::Result<()> {
        let mark = match found.follow.take() {
            Some(mut follow) => {
                follow
                    .mark_of_all()
                    .or_else(|error| match follow.content.is_packed() {
                        true => Ok(Mark::of_id(follow.id)), // a damaged one
                        false => Err(error),
                    })?
            }
            None => Mark::of_id(found.seen.id),
        };
        found.what = What::Past(self.chain.settle(Past {
            path: Some(found.path.clone()),
            seen: Some(found.seen),
            ..Past::lost(mark)
        }));
        survey.beside.push(found);
        Ok(())
    }
}
