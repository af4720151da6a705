//! What the files are that a look around found: those that are known, copies of them, and strange ones.

use std::collections::BTreeSet;
use std::io;

use super::FileStream;
use super::chain::Past;
use super::survey::{Found, Survey, What, Why};
use crate::source::bookmark::{Bookmark, HEAD_LEN_MAX, Mark};
use crate::source::follow::{Follow, PART_MIN, Start};

impl FileStream {
    /// Says of each file what it is: by its number first, then by its content alone, for which enough of it must be
    /// there, and the file that it is a copy of not.
    pub(super) fn identify(
        &self,
        survey: &mut Survey,
        current: Option<&Bookmark>,
        why: Why,
    ) -> io::Result<()> {
        let own = survey.at_path.iter_mut().chain(&mut survey.beside);
        let mut all: Vec<(&mut Found, Option<Start>)> = own.map(|found| (found, None)).collect();
        let mut taken = BTreeSet::new();
        let mut has_current = false;
        // What was renamed and is there still, of which what is at the path is no copy however alike they begin: whoever
        // renames a file makes another.
        let mut renamed = BTreeSet::new();
        let mut is_renamed = false;
        for (found, start) in &mut all {
            let is_generation = found.rank.is_some() && why != Why::Truncated;
            match found.what {
                // It has that content no more.
                What::Current => {
                    has_current = why != Why::Truncated;
                    is_renamed |= is_generation;
                }
                What::Past(serial) => {
                    taken.insert(serial);
                    renamed.extend(is_generation.then_some(serial));
                    continue;
                }
                What::CopyOfCurrent | What::CopyOfPath | What::Part | What::Unknown => {}
            }
            let Some(follow) = &mut found.follow else {
                continue;
            };
            let start = match follow.start() {
                Ok(bytes) => start.insert(bytes),
                Err(_) if follow.content.is_packed() => continue,
                Err(error) => return Err(error),
            };
            self.look_up(follow, start, current)?;
            // Where nothing was read, a number may have been given to another file.
            if let Some(current) = current
                && follow.id == current.id
                && current.offset > 0
                && soft(follow.is_of(current), follow)?
            {
                (found.what, has_current) = (What::Current, true);
                is_renamed |= is_generation;
                continue;
            }
            let key = found.seen.id.key();
            let is_one = |past: &&Past| past.mark.key == key && past.identifies(found.seen);
            for past in self.chain.past.iter().filter(is_one) {
                if soft(follow.matches(start, &past.mark), follow)? {
                    found.what = What::Past(past.serial);
                    taken.insert(past.serial);
                    renamed.extend(is_generation.then_some(past.serial));
                    break;
                }
            }
        }
        let starts: Vec<Option<Start>> = all.into_iter().map(|(_, start)| start).collect();
        // A generation that nobody knows is one only when it belongs to whom the others do.
        let owners = self.owners(survey);
        let own = survey.at_path.iter_mut().chain(&mut survey.beside);
        let mut all: Vec<(&mut Found, Option<Start>)> = own.zip(starts).collect();
        for (found, start) in &mut all {
            let owner = found
                .follow
                .as_ref()
                .and_then(|follow| follow.content.stat().ok());
            let is_foreign =
                |owners: &BTreeSet<u32>| owner.is_some_and(|stat| !owners.contains(&stat.owner));
            let is_beside = found.path != self.place.path;
            if is_beside && found.what == What::Unknown && owners.as_ref().is_some_and(is_foreign) {
                survey.foreign += usize::from(found.rank.take().is_some());
                (found.follow, *start) = (None, None);
            }
        }
        let evidence = |offset: u64, is_taken: bool, is_generation: bool| match is_taken {
            true => offset >= HEAD_LEN_MAX as u64,
            false if is_generation => offset > 0,
            false => offset >= PART_MIN,
        };
        for (found, start) in all {
            let (Some(follow), Some(mut start)) = (&mut found.follow, start) else {
                continue;
            };
            // What goes on furthest is what it is: a number given again may be that of an earlier part of it.
            let mut best = match found.what {
                What::Current | What::CopyOfCurrent | What::Part => continue,
                What::Unknown | What::CopyOfPath => 0,
                What::Past(serial) => self.chain.offset_of(serial),
            };
            let is_generation = found.rank.is_some();
            let is_strange = matches!(found.what, What::Unknown | What::CopyOfPath);
            let is_at_path = found.path == self.place.path;
            let is_stale = self.chain.is_stale && is_at_path;
            if let Some(current) = current
                && current.offset > best
                && !(is_at_path && is_renamed)
                && evidence(current.offset, has_current, is_generation || is_stale)
                && soft(follow.is_of(current), follow)?
            {
                (found.what, best) = (What::CopyOfCurrent, current.offset);
            }
            for past in &self.chain.past {
                let offset = past.mark.offset;
                if offset != Mark::ALL
                    && offset > best
                    && !(is_at_path && renamed.contains(&past.serial))
                    && evidence(offset, taken.contains(&past.serial), is_generation)
                    && soft(follow.matches(&mut start, &past.mark), follow)?
                {
                    (found.what, best) = (What::Past(past.serial), offset);
                }
            }
            // It may go on after an earlier copy.
            let is_copy = is_strange && is_generation && found.what != What::CopyOfCurrent;
            if is_copy && self.has_part(follow, &start)? {
                found.what = What::Part;
            }
        }
        survey.guess();
        let at_path = survey.at_path.as_ref();
        let at_path = at_path.and_then(|found| match found.what {
            What::Current => found.follow.as_ref().or(self.chain.current.as_ref()),
            What::CopyOfCurrent | What::CopyOfPath | What::Past(_) | What::Part | What::Unknown => {
                found.follow.as_ref()
            }
        });
        survey.made = at_path.map(|file| (file.id, file.created()));
        self.note_copies(survey)
    }

    /// Whether a generation holds the first of what was read of a file that is open, and no more: whoever compressed or
    /// copied that came to its end before its writer did.
    fn has_part(&self, follow: &Follow, start: &Start) -> io::Result<bool> {
        let Some(end) = follow.content.end()? else {
            return Ok(false);
        };
        // Programs begin their files alike, and one that was made anew may hold no more than that.
        let least = match follow.content.is_packed() {
            true => PART_MIN,
            false => HEAD_LEN_MAX as u64,
        };
        if end.0 < least {
            return Ok(false);
        }
        // A copy of what is at the path may be on its way, and goes on where that is truncated.
        let at_path = self.seen.map(|seen| seen.id);
        let is_done = |open: &Follow| follow.content.is_packed() || at_path != Some(open.id);
        let others = self.chain.open_ones();
        for open in others.filter(|open| open.id != follow.id && is_done(open)) {
            if open.holds(start, &end)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Finds the copies that were made of the file at the path, which is truncated next or goes on: what they hold is in it.
    fn note_copies(&self, survey: &mut Survey) -> io::Result<()> {
        let Some((id, made)) = survey.made else {
            return Ok(());
        };
        let mut own = None;
        for found in &mut survey.beside {
            let (what, is_generation) = (found.what, found.rank.is_some());
            let len = found.seen.len;
            let Some(follow) = &mut found.follow else {
                continue;
            };
            let is_new = what == What::Unknown && is_generation && len >= PART_MIN;
            if !is_new || !follow.is_made_after(id, made) {
                continue;
            }
            if own.is_none() {
                own = self.open(&self.place.path)?.filter(|own| own.id == id);
            }
            let Some(own) = &mut own else {
                return Ok(());
            };
            let (mark, mut start) = (follow.mark_of_all()?, own.start()?);
            if own.matches(&mut start, &mark)? {
                found.what = What::CopyOfPath;
            }
        }
        Ok(())
    }
}

/// A damaged compressed file is none we know.
fn soft(answer: io::Result<bool>, follow: &Follow) -> io::Result<bool> {
    match answer {
        Err(_) if follow.content.is_packed() => Ok(false),
        answer => answer,
    }
}
